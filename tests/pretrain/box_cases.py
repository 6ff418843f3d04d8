"""COCO, VOC, YOLO, labelme and CVAT as people have them: each maker is a few small files,
with what comes out or what is said. `test_import_cases` adds the other sources and imports them all.
"""

import json

from PIL import Image

from tests.pretrain.annotated import put
from tests.pretrain.shards import encoded

BOX = [4, 6, 10, 8]
DOG = {"bbox": [[4, 6, 10, 8]], "category": ["dog"]}
NOTHING = {"bbox": [], "category": []}
YOLO = "0.3 0.5 0.333333333 0.4"  # the same box of an image of 30 x 20

CASES = []  # (maker, exit code, path -> columns of its row or None where it is left out, what is said)


def comes_out(rows, says=()):
    """Such rows, with exit code 0."""
    return lambda maker: CASES.append((maker, 0, rows, says)) or maker


def refused(*says):
    """Exit code 2, with such words."""
    return lambda maker: CASES.append((maker, 2, None, says)) or maker


def photos(folder, *paths):
    """Images of 30 x 20, no two alike."""
    for path in paths:
        put(folder / path, encoded(sum(map(ord, path)) % 250, size=(30, 20)))


def annotation(number, **more):
    return {"id": number, "image_id": number, "category_id": 1, "bbox": BOX, **more}


def coco(file, names, annotations, *, categories=({"id": 1, "name": "dog"},), **sides):
    images = [{"id": number, "file_name": name, **sides} for number, name in enumerate(names)]
    put(file, json.dumps({"images": images, "annotations": annotations, "categories": list(categories)}))


def voc(objects, size=(30, 20), name="1.png"):
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation><filename>{name}</filename>{sides}{''.join(objects)}</annotation>"


def voc_object(name="dog", box=(4, 6, 14, 14)):
    corners = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"


# -- makers: each fills a folder and may give back options or another source --------------------------------


@comes_out(
    {"train2017/1.png": {"objects": DOG}, "val2017/2.png": {"objects": NOTHING}},
    says=["train: 2, validation: 2"],
)
def coco_of_splits(src):
    for split in ("train2017", "val2017"):
        photos(src, f"{split}/1.png", f"{split}/2.png")
        coco(src / f"annotations/instances_{split}.json", ["1.png", "2.png"], [annotation(0)])


@comes_out({"1.png": {"objects": DOG, "captions": ["a dog"]}})
def coco_with_odd_fields(src):
    photos(src, "1.png")
    coco(src / "a.json", ["1.png"], [annotation(0.0, iscrowd="0", category_id="1", caption=" a dog\n")])


@refused("the id '1' stands for the categories 'dog' and 'cat'")
def coco_of_one_number_for_two_names(src):
    photos(src, "1.png")
    coco(src / "a.json", ["1.png"], [], categories=[{"id": 1, "name": "dog"}, {"id": "1", "name": "cat"}])


@comes_out(
    {"2.png": {"objects": DOG}, "1.png": None},
    says=["only crowd regions"],
)
def coco_of_crowds_alone(src):
    photos(src, "1.png", "2.png")
    coco(src / "a.json", ["1.png", "2.png"], [annotation(0, iscrowd=1), annotation(1)])
    return ["--max-set-aside", "1"]


@comes_out(
    {"1.png": {"objects": DOG}},
    says=["scaled to its size"],
)
def coco_scaled_after_drawing(src):
    photos(src, "1.png")
    coco(src / "a.json", ["1.png"], [annotation(0, bbox=[12, 18, 30, 24])], width=90, height=60)


@comes_out(
    {"1.png": None, "2.png": {"objects": DOG}},
    says=["drawn on an image of 70 x 90"],
)
def coco_of_another_image(src):
    photos(src, "1.png", "2.png")
    images = [{"id": 0, "file_name": "1.png", "width": 70, "height": 90}, {"id": 1, "file_name": "2.png"}]
    tree = {
        "images": images,
        "annotations": [annotation(0), annotation(1)],
        "categories": [{"id": 1, "name": "dog"}],
    }
    put(src / "a.json", json.dumps(tree))
    return ["--max-set-aside", "1"]


@comes_out({".../elsewhere/1.png": {"objects": DOG}})
def coco_in_the_root_of_the_disk(src):
    photos(src.parent / "elsewhere", "1.png")
    coco(src / "a.json", [str(src.parent / "elsewhere" / "1.png")], [annotation(0)])
    return [str(src / "a.json"), "--images", "/"]


@comes_out(
    {"images/1.png": {"objects": DOG}},
    says=["object 2"],
)
def voc_beside_polygons(src):
    photos(src, "images/1.png")
    points = "<x1>4</x1><y1>6</y1><x2>14</x2><y2>6</y2><x3>14</x3><y3>14</y3>"
    polygon = f"<object><name>dog</name><polygon>{points}</polygon></object>"
    put(src / "annotations/1.xml", voc([polygon, "<object><name>cat</name></object>"]))
    return ["--max-set-aside", "1"]


@comes_out(
    {"JPEGImages/1.png": {"objects": DOG}, "JPEGImages/2.png": None},
    says=["image whose annotation cannot be read"],
)
def voc_damaged(src):
    photos(src, "JPEGImages/1.png", "JPEGImages/2.png")
    put(src / "Annotations/1.xml", voc([voc_object()]))
    put(src / "Annotations/2.xml", "<annotation><object>")
    return ["--max-set-aside", "1"]


@comes_out(
    {"train/images/train.png": {"objects": DOG}, "old/images/old.png": None},
    says=["train: 1, validation: 1", "belong to no split"],
)
def yolo_with_splits_in_its_yaml(src):
    for split in ("train", "valid", "old"):
        photos(src, f"{split}/images/{split}.png")
        put(src / f"{split}/labels/{split}.txt", f"1 {YOLO}\n")
    put(
        src / "data.yaml",
        "path: /elsewhere/set\ntrain: ../train/images\nval: valid/images\nnames: {0: cat, '1': dog}\n",
    )


@comes_out(
    {"images/1.JPG": {"objects": DOG}, "images/2.png": {"objects": DOG}},
    says=["comes twice"],
)
def yolo_of_powershell(src):
    photos(src, "images/1.JPG", "images/2.png")
    put(src / "labels/1.TXT", f"1.0\t{YOLO}\r\n".encode("utf-16"))
    put(src / "labels/2.txt", ("﻿" + f"1,{YOLO.replace(' ', ',')}\n1,{YOLO.replace(' ', ',')}\n"))
    put(src / "classes.txt", "cat\ndog\n\n")


@comes_out(
    {"1.png": {"objects": DOG}, "2.png": {"objects": DOG}},
    says=["class 1 has no name"],
)
def yolo_polygons(src):
    photos(src, "1.png", "2.png")
    x, y, right, bottom = 4 / 30, 6 / 20, 14 / 30, 14 / 20
    put(src / "1.txt", f"2 {x} {y} {right} {y} {right} {bottom} {x} {bottom}\n")
    put(src / "2.txt", f"2 {YOLO} 0.87\n")
    put(src / "classes.txt", "cat\n\ndog\n")


@refused("--boxes cxcywh")
def yolo_in_pixels(src):
    photos(src, "1.png")
    put(src / "1.txt", "0 9 10 10 8\n")


@comes_out({"1.png": {"objects": DOG}})
def yolo_in_pixels_read_so(src):
    yolo_in_pixels(src)
    put(src / "classes.txt", "dog\n")
    return ["--boxes", "cxcywh"]


@comes_out(
    {"1.png": {"objects": {"bbox": [[2, 3, 5, 4]], "category": ["dog"]}}},
    says=["2 x shape without a box (point)"],
)
def labelme_of_shapes(src):
    photos(src, "1.png", "2.png")
    shapes = [
        {"label": "dog", "shape_type": "rectangle", "points": [[14, 6], [4, 14]]},
        {"label": "dog", "shape_type": "point", "points": [[1, 1]]},
    ]
    for name in ("1", "2"):
        tree = {"imagePath": f"..\\x\\{name}.png", "imageWidth": 60, "imageHeight": 40, "shapes": shapes}
        put(src / f"{name}.json", json.dumps(tree))


@comes_out(
    {"images/1.png": {"objects": DOG}, "images/2.png": {"objects": DOG}},
    says=["rotated <box>", "train: 1, validation: 1"],
)
def cvat_turned(src):
    photos(src, "images/1.png", "images/2.png")
    box = '<box label="dog" xtl="5" ytl="5" xbr="13" ybr="15" rotation="90.0"/>'
    ellipse = '<ellipse label="dog" cx="9" cy="10" rx="4" ry="5" rotation="270"/>'
    rows = [
        f'<image name="{n}.png" subset="{split}" width="30" height="20">{shape}</image>'
        for n, split, shape in ((1, "Train", box), (2, "Validation", ellipse))
    ]
    put(src / "annotations.xml", f"<annotations>{''.join(rows)}</annotations>")


@comes_out(
    {"1.jpg": {"objects": DOG}, "2.jpg": {"objects": DOG}, "3.jpg": {"objects": DOG}},
    says=["2 x image whose boxes were rotated"],
)
def coco_with_sizes_in_part(src):
    exif = Image.Exif()
    exif[0x0112] = 6
    images = [{"id": 0, "file_name": "1.jpg", "width": 20, "height": 30}, {"id": 1, "file_name": "2.jpg"}]
    for number in (1, 2):
        Image.new("RGB", (20, 30), (number, 0, 0)).save(src / f"{number}.jpg", exif=exif)
    Image.new("RGB", (30, 20)).save(src / "3.jpg")
    # on the pixels as stored: what lies 6 from the left there lies 6 from the top of the upright image
    boxes = [annotation(number, bbox=[6, 16, 8, 10]) for number in (0, 1)] + [annotation(2)]
    tree = {
        "images": [*images, {"id": 2, "file_name": "3.jpg"}],
        "annotations": boxes,
        "categories": [{"id": 1, "name": "dog"}],
    }
    put(src / "a.json", json.dumps(tree))
