"""JSON read in pieces is what Python's own reader makes of it; what is kept of a COCO json in compact form
is what a dictionary of lists would hold.
"""

import json
import random
import tracemalloc
from collections import defaultdict

import numpy as np
import pytest

from cluster.errors import UserError
from pretrain.data.packing.sources import json_stream, list_records
from pretrain.data.packing.sources.coco_annotations import Annotations
from pretrain.data.packing.sources.coco_content import Content
from pretrain.data.packing.sources.coco_ids import NO_ID, Ids
from pretrain.data.packing.sources.coco_joined import Joined
from pretrain.data.packing.sources.json_stream import JsonText
from pretrain.data.packing.sources.texts import id_key

IDS = [0, 1, -1, 1.0, -0.0, "1", " 1 ", "1.0", "-0", "01", "x", "X", "ü\udc80", 2.5, "2.5", True, None, [1]]
IDS += [{}, 10**18, str(10**18), float(10**18), 10**18 - 1, 1 - 10**18, 10**30, 1e300, float("inf"), " "]
WORDS = ["1", "-2.5e+3", "1e5", " ", "\n", ",", ",", "{", "}", '{"a":', '"b"', "[", "]", ":", "null", "NaN"]
WORDS += ["-Infinity", '"\\u00fc\\"]"', '{"a": [1, {"b": 2}], "a": 3}', "\f"]
AROUND = [("", ""), ("[", "]"), ('{"a": ', "}"), ("[1, ", ', "z"]'), ('{"b": 1, ', "}")]


def in_pieces(draw, text):
    """A text cut anywhere."""
    cuts = sorted(draw.choices(range(len(text) + 1), k=draw.randint(0, 6)))
    return JsonText(text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True))


def whole(text):
    """What a text holds, item by item and name by name."""
    match text.sign():
        case "[":
            value = list(text.items())
        case "{":
            value = {name: whole_member(text) for name in text.members()}
        case _:
            value = text.value()
    text.end()
    return value


def whole_member(text):
    return list(text.items()) if text.sign() == "[" else text.value()


@pytest.mark.parametrize("seed", range(4))
def test_pieces_of_json_are_what_python_reads(seed):
    draw, nums = random.Random(seed), [0, 0]
    for _ in range(6000):
        text = "".join(draw.choices(WORDS, k=draw.randint(0, 5)))
        text = text.join(draw.choice(AROUND))
        try:
            expected = json.loads(text)
        except ValueError:
            with pytest.raises(ValueError):
                whole(in_pieces(draw, text))
            nums[0] += 1
        else:
            assert repr(whole(in_pieces(draw, text))) == repr(expected), text  # NaN is not equal to itself
            nums[1] += 1
    assert min(nums) > 500


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_file_is_read_in_pieces_of_any_length(tmp_path, monkeypatch, encoding):
    tree = [{"name": "ü中\U0001f600" * 3, "at": [0.5, -1e-7, 12345678]}] * 5
    (tmp_path / "a.json").write_bytes(json.dumps(tree, ensure_ascii=False).encode(encoding))
    for length in (5, 6, 7, 64):
        monkeypatch.setattr(json_stream, "PIECE_BYTES", length)
        with json_stream.json_text(str(tmp_path / "a.json")) as text:
            assert whole(text) == tree


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"images": [1,\n 2', "a.json is not valid JSON: Expecting ',' delimiter: line 2 column 3"),
        (b'{"images": []} x', "is not valid JSON: Extra data: line 1 column 16"),
        (b'{"images": ["\xfc"]}', "a.json is not UTF-8 text; save it as UTF-8"),
        (b"[" * 200_000, "is not valid JSON: maximum recursion depth"),
    ],
)
def test_damage_is_told_with_its_place(tmp_path, content, said):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        Content(str(tmp_path / "a.json"), None)
    assert said in str(error.value)


def test_ids_are_one_where_their_keys_are():
    ids = Ids()
    codes = [ids.code(value) for value in IDS]
    assert [repr(ids.value(code)) for code in codes] == [repr(value) for value in IDS]
    assert codes == [ids.code(value) for value in IDS]
    keys = [ids.key(code) for code in codes]
    assert [key == NO_ID for key in keys] == [id_key(value) is None for value in IDS]
    for one, first in zip(keys, IDS, strict=True):
        assert [one == other for other in keys] == [id_key(first) == id_key(second) for second in IDS]


def random_annotation(draw):
    if draw.random() < 0.05:
        return draw.choice(["text", None, [1]])
    one = {"image_id": draw.choice([1, 2, "3", 4.0, 9, None]), "category_id": draw.choice([1, "2", 7])}
    one["bbox"] = draw.choice([[1, 2, 3.5, draw.random()], ["1", 2, 3, 4], [1, 2, 3], None])
    one["caption"] = draw.choice(["a", "b ", " ", 5, ["c", "d"]])
    one["iscrowd"] = draw.choice([0, 0, 1])
    return {key: value for key, value in one.items() if draw.random() < 0.8}


def by_image(annotations, classes):
    """Image's key -> (boxes, captions, number of bad boxes, of crowds); and which annotations are bad."""
    of, bad = defaultdict(lambda: [[], [], 0, 0]), []
    for number, one in enumerate(annotations):
        image = id_key(one.get("image_id")) if isinstance(one, dict) else None
        if image not in ("1", "2", "3", "4"):
            bad.append(number)
            continue
        caption = one.get("caption", "")
        if caption == 5:
            bad.append(number)
        else:
            texts = caption if isinstance(caption, list) else [caption.strip()]
            of[image][1] += [text for text in texts if text]
        if "caption" in one and one.get("bbox") is None and "category_id" not in one:
            continue
        name = classes.get(id_key(one.get("category_id")))
        if one.get("iscrowd"):
            of[image][3] += 1
        elif one.get("bbox") is None or len(one["bbox"]) != 4 or name is None:
            of[image][2] += 1
            bad.append(number)
        else:
            of[image][0].append((tuple(map(float, one["bbox"])), name))
    return of, bad


@pytest.mark.parametrize("seed", range(5))
def test_annotations_by_image_are_those_of_a_dictionary(seed):
    draw, ids = random.Random(seed), Ids()
    classes = {"1": "cat", "2": "dog"}
    items = [random_annotation(draw) for _ in range(400)]
    annotations = Annotations(ids, "xywh")
    for item in items:
        annotations.append(item)
    keys = np.array(sorted(ids.key(ids.code(number)) for number in (1, 2, 3, 4)), np.int64)
    joined = Joined(annotations, keys, {ids.key(ids.code(key)): name for key, name in classes.items()})
    expected, bad = by_image(items, classes)
    for group, key in enumerate(keys.tolist()):
        said = joined.said(group)
        boxes, captions, num_bad, num_crowds = expected[str(ids.value(key))]
        assert (list(said.boxes), list(said.captions)) == (boxes, captions) and boxes and captions
        assert (said.num_bad, said.num_crowds) == (num_bad, num_crowds)
        assert bool(said.first_bad) == (num_bad > 0)
    told = list(joined.problems())
    assert [number for number, _ in told] == bad
    assert {reason.split()[0] for _, reason in told} == {"not", "image_id", "bbox", "caption", "category_id"}


def test_an_image_of_a_coco_json_takes_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "PIECE_BYTES", 2**14)
    num, boxes = 1500, 5
    (tmp_path / "images").mkdir()
    images = [{"id": at, "file_name": f"{at:08d}.jpg", "width": 640, "height": 480} for at in range(num)]
    for image in images:
        (tmp_path / "images" / image["file_name"]).touch()
    annotations = [
        {"image_id": at * 7 % num, "category_id": 1, "bbox": [at / 7, 2, 3, 4], "segmentation": [[1.5] * 40]}
        for at in range(num * boxes)
    ]
    tree = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(tree))
    del images, annotations, tree
    list_records(str(file))  # modules and caches are there the second time
    tracemalloc.start()
    listing = list_records(str(file))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(listing.records) == num and len(listing.records[0].objects.bbox) == boxes
    assert peak / num < 1000  # as objects and their text 10,000
