"""Made-up captions in four languages: scenes with their own things,
in sentences with the language's function words.

Each scene is (subjects, what they do, where, what else is there); what stands in one of these never meets
what stands in another scene, as in photos, while articles,
prepositions and conjunctions are the same everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

Scene = tuple[Sequence[str], Sequence[str], Sequence[str], Sequence[str]]

SCENES: dict[str, list[Scene]] = {
    "English": [
        (
            ["a man", "a young woman", "two boys", "a surfer"],
            ["riding a wave on", "carrying", "standing next to", "kneeling on"],
            ["a surfboard", "a white surfboard"],
            ["in the ocean", "near the beach", "in the sea behind some people"],
        ),
        (
            ["a dog", "a brown dog", "a puppy", "a black dog"],
            ["catching", "running after", "jumping near", "playing with"],
            ["a frisbee", "a red frisbee", "a tennis ball"],
            ["in the grass", "behind a park", "by the lawn of a park"],
        ),
        (
            ["a cat", "a grey cat", "two cats", "a kitten"],
            ["sleeping on", "sitting on", "lying next to", "looking at"],
            ["a sofa", "a laptop", "the keyboard of a laptop"],
            ["in a living room", "with a pillow", "and an old blanket near the living room"],
        ),
        (
            ["a red bus", "a double decker bus", "a truck", "several cars"],
            ["parked in front of", "stopping near", "driving past", "waiting at"],
            ["a stop sign", "a traffic light", "the traffic lights"],
            ["on a busy street", "in the city behind some people", "by the street of a city"],
        ),
        (
            ["a plate of pizza", "a slice of pizza", "a pizza", "a hot dog"],
            ["is served with", "sits next to", "lies near", "is topped with"],
            ["a glass of wine", "a fork", "cheese and tomatoes"],
            ["on a wooden table", "by the table of an old restaurant", "in a restaurant"],
        ),
        (
            ["a giraffe", "three giraffes", "a zebra", "a herd of zebras"],
            ["eating from", "standing near", "walking between", "reaching for the leaves of"],
            ["tall trees", "an old tree", "some trees"],
            ["in the zoo", "behind a fence", "by the fence of a zoo"],
        ),
        (
            ["a train", "a freight train", "an old train", "a steam engine"],
            ["is coming into", "is leaving", "travels near", "stands in"],
            ["the train station", "a station", "a tunnel"],
            ["on the tracks", "with smoke over the tracks", "and people on the platform"],
        ),
        (
            ["a skier", "a group of skiers", "a child", "a snowboarder"],
            ["going down", "jumping from", "standing at the top of", "racing down"],
            ["a ski slope", "a snowy hill", "a slope"],
            ["in the mountains", "with ski poles", "in the snow of the mountains"],
        ),
    ],
    "Vietnamese": [
        (
            ["một người đàn ông", "một cậu bé", "một người phụ nữ", "hai người đàn ông"],
            ["đang đi xe đạp", "đang dắt xe đạp", "và chiếc xe đạp", "đứng cạnh xe đạp"],
            ["trên đường phố", "ở các đường phố", "trên những con đường của thành phố"],
            ["và đội mũ bảo hiểm", "với mũ bảo hiểm", "trong thành phố"],
        ),
        (
            ["một con chó", "hai con chó", "một con chó đen", "con chó nhỏ"],
            ["đang chạy theo", "đứng cạnh", "đang chơi với", "và"],
            ["một quả bóng", "quả bóng đỏ", "những quả bóng của các em bé"],
            ["trên bãi cỏ", "trong công viên", "dưới những cái cây của công viên"],
        ),
        (
            ["các con mèo", "con mèo trắng", "hai con mèo", "một con mèo"],
            ["đang ngủ trên", "đang nằm dưới", "ngồi cạnh", "nằm trong"],
            ["ghế sofa", "một chiếc máy tính", "cái ghế sofa và chiếc máy tính"],
            ["ở phòng khách", "trong phòng khách", "của phòng khách"],
        ),
        (
            ["các bác sĩ", "một bác sĩ", "một y tá", "bác sĩ và y tá"],
            ["đang theo dõi", "đang khám cho", "theo dõi", "nói chuyện với"],
            ["một bệnh nhân", "các bệnh nhân", "những bệnh nhân"],
            ["trong bệnh viện", "ở bệnh viện", "trên giường bệnh viện"],
        ),
        (
            ["một đĩa mì", "một bát phở", "bát phở", "hai bát phở"],
            ["được đặt trên", "ở trên", "nằm trên", "với đôi đũa trên"],
            ["bàn gỗ", "một chiếc bàn gỗ", "cái bàn gỗ"],
            ["trong nhà hàng", "ở các nhà hàng", "của nhà hàng và những cốc bia"],
        ),
        (
            ["một chiếc máy bay", "máy bay", "hai chiếc máy bay", "các máy bay"],
            ["đang hạ cánh xuống", "đang cất cánh từ", "đỗ cạnh", "bay theo"],
            ["sân bay", "đường băng của sân bay", "đường băng"],
            ["dưới bầu trời xanh", "và bầu trời xanh", "trong bầu trời xanh"],
        ),
        (
            ["những chiếc thuyền", "một chiếc thuyền", "hai chiếc thuyền", "một ngư dân"],
            ["đang trôi trên", "ở trên", "nằm trên", "câu cá trên"],
            ["dòng sông", "một dòng sông", "bờ sông"],
            ["với những ngọn núi", "và ngọn núi", "dưới những ngọn núi"],
        ),
    ],
    "German": [
        (
            ["ein Mann", "eine Frau", "ein junger Mann", "zwei Kinder"],
            ["mit einem Surfbrett", "auf einem Surfbrett", "und ein Surfbrett", "trägt ein Surfbrett"],
            ["reitet auf einer Welle", "steht in den Wellen", "und eine große Welle"],
            ["im Meer", "am Strand", "an dem Strand von dem Meer"],
        ),
        (
            ["ein Hund", "ein brauner Hund", "der Hund", "zwei Hunde"],
            ["fängt", "rennt nach", "spielt mit", "und"],
            ["einem Frisbee", "einem Ball", "einem roten Ball"],
            ["auf der Wiese", "im Park", "auf einer Wiese im Park"],
        ),
        (
            ["eine Katze", "die Katze", "eine graue Katze", "zwei Katzen"],
            ["schläft auf", "liegt auf", "sitzt neben", "und ein Kissen auf"],
            ["dem Sofa", "einem Laptop", "der Tastatur von einem Laptop"],
            ["im Wohnzimmer", "und eine Decke", "mit einer Decke in einem Wohnzimmer"],
        ),
        (
            ["ein roter Bus", "der Bus", "ein Lastwagen", "ein Auto"],
            ["hält an", "parkt vor", "wartet an", "fährt zu"],
            ["einer Ampel", "der Ampel", "einem Schild und einer Ampel"],
            ["auf der Straße", "in der Stadt", "am Rand von einer Straße in der Stadt"],
        ),
        (
            ["eine Pizza", "die Pizza", "ein Teller mit Pizza", "ein Stück Pizza"],
            ["liegt neben", "und", "steht mit", "auf"],
            ["einem Glas Wein", "einer Gabel", "Käse und Tomaten"],
            ["auf dem Tisch", "am Tisch im Restaurant", "in einem Restaurant"],
        ),
        (
            ["eine Giraffe", "zwei Giraffen", "ein Zebra", "die Zebras"],
            ["frisst von", "steht bei", "geht unter", "und"],
            ["einem Baum", "hohen Bäumen", "den Bäumen"],
            ["im Zoo", "und ein Zaun", "am Zaun von einem Zoo"],
        ),
        (
            ["ein Zug", "der Zug", "eine Lokomotive", "ein alter Zug"],
            ["fährt in", "kommt aus", "steht in", "und"],
            ["dem Bahnhof", "einem Bahnhof", "einem Tunnel"],
            ["auf den Gleisen", "mit Rauch am Bahnsteig", "und die Menschen auf dem Bahnsteig"],
        ),
    ],
    "Chinese": [
        (
            ["一个男人", "几个女人", "年轻的男人", "年轻的男孩"],
            ["正在骑", "和他有", "推着一辆", "在骑着"],
            ["自行车", "一辆自行车", "红色的自行车"],
            ["在街道上", "在城市的街道上", "和戴着头盔"],
        ),
        (
            ["一只狗", "两只狗", "一只黑色的狗", "一只小狗"],
            ["正在追", "旁边有", "叼着", "和一辆"],
            ["飞盘", "一个足球", "红色的飞盘"],
            ["在草地上", "在公园里", "在公园的草地上"],
        ),
        (
            ["一只猫", "两只猫", "一只白色的猫", "一只小猫"],
            ["正在看", "睡觉在", "上有", "坐在"],
            ["沙发", "一台电脑", "电脑和沙发"],
            ["上的客厅里", "旁边的客厅", "和客厅的枕头"],
        ),
        (
            ["一辆公共汽车", "一辆卡车", "一辆红色的公共汽车", "几辆卡车"],
            ["停在", "正在等", "开过", "和"],
            ["红绿灯", "一个红绿灯", "红绿灯的路口"],
            ["在路口上", "在高速公路上", "和路口的行人"],
        ),
        (
            ["一个披萨", "一盘意大利面", "一块披萨", "一盘披萨"],
            ["和", "放在", "旁边有", "上有"],
            ["一杯葡萄酒", "葡萄酒", "一个叉子和奶酪"],
            ["在木桌上", "在餐厅的木桌上", "在餐厅里"],
        ),
        (
            ["飞机", "两架飞机", "一架白色的飞机", "蓝色的飞机"],
            ["正在降落在", "停在", "和一辆", "上有"],
            ["机场", "跑道", "机场的跑道"],
            ["在蓝天上", "和蓝天", "在蓝天的白云里"],
        ),
        (
            ["一只长颈鹿", "两只长颈鹿", "一只斑马", "几只斑马"],
            ["正在吃", "站在", "旁边有", "和一辆"],
            ["大树", "一棵大树", "大树的树叶"],
            ["在动物园里", "在动物园的围栏里", "和围栏"],
        ),
    ],
}

# words of grammar that no reader would search by, those that occur in the captions above
_GRAMMAR = {
    "English": "a an the on in at of to for with and by from near next behind past after into down is "
    "some several",
    "Vietnamese": "một hai con chiếc cái các những và với của ở trên trong đang được theo cạnh dưới từ",
    "German": "ein eine einen einem einer der die das dem den und mit auf in im an am von vor nach neben "
    "bei unter aus zu",
    "Chinese": "一 一个 一只 一辆 个 只 辆 两 的 在 和 上 里 着 正 正在 有 几",
}
FUNCTION_WORDS = {language: frozenset(words.split()) for language, words in _GRAMMAR.items()}


def captions_in(language: str, num: int, *, seed: int = 0) -> list[str]:
    """`num` captions, one an image."""
    generator, scenes = random.Random(seed), SCENES[language]
    blank = "" if language == "Chinese" else " "
    found = []
    for _ in range(num):
        scene = scenes[generator.randrange(len(scenes))]
        found.append(blank.join(generator.choice(part) for part in scene))
    return found
