"""Images with one red block each, and sets of them in every format that boxes come in."""

import csv
import io
import json
import os
import tarfile
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pretrain.data.images.decode import UPRIGHT

INVERSE = {5: 5, 6: 8, 7: 7, 8: 6}  # the turn that a turn undoes; the others undo themselves


@dataclass
class Scene:
    """An image as it is seen: (width, height), the block (x, y, width, height),
    and how its file is turned.
    """

    name: str
    size: tuple
    block: tuple
    orientation: int = 1
    label: str = "red"
    captions: tuple = ()

    def pixels(self):
        """As it is seen."""
        width, height = self.size
        pixels = np.full((height, width, 3), 120, np.uint8)
        x, y, w, h = self.block
        pixels[y : y + h, x : x + w] = (235, 20, 20)
        return Image.fromarray(pixels)

    def stored(self):
        """As the file has it, before EXIF turns it."""
        orientation = INVERSE.get(self.orientation, self.orientation)
        return self.pixels().transpose(UPRIGHT[orientation]) if orientation != 1 else self.pixels()

    def encoded(self):
        """The file."""
        exif = Image.Exif()
        exif[0x0112] = self.orientation
        buffer = io.BytesIO()
        form = "PNG" if self.name.lower().endswith(".png") else "JPEG"
        self.stored().save(buffer, form, quality=95, exif=exif)
        return buffer.getvalue()

    def frame(self, how):
        """((width, height), box) as an annotation program records them: `upright`, `stored`, `doubled`
        (before the image was scaled down) or `none` (no size)."""
        if how == "stored":
            return self.stored().size, block_in(self.stored())
        factor = 2 if how == "doubled" else 1
        size = None if how == "none" else tuple(factor * side for side in self.size)
        return size, tuple(factor * value for value in self.block)


def block_in(image):
    """(x, y, width, height) of the red block."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    rows, columns = np.nonzero((pixels[..., 0] > 180) & (pixels[..., 1] < 90))
    return int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


def overlap(one, other):
    """Intersection over union of two boxes (x, y, width, height)."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right, bottom = min(one[0] + one[2], other[0] + other[2]), min(one[1] + one[3], other[1] + other[3])
    inner = max(0, right - left) * max(0, bottom - top)
    return inner / (one[2] * one[3] + other[2] * other[3] - inner)


def random_scenes(random, num, *, orientations=range(1, 9), endings=(".jpg", ".JPG", ".png", ".jpeg")):
    """Images of any size and turn; one block each."""
    scenes = []
    for number in range(num):
        size = random.choice([(128, 96), (96, 128), (180, 120), (160, 160), (122, 94)])
        w, h = random.randint(40, size[0] // 2), random.randint(40, size[1] // 2)
        block = (random.randint(0, size[0] - w), random.randint(0, size[1] - h), w, h)
        name = f"{random.choice(['', '_DSC', 'a [1] '])}{number:03d}{random.choice(endings)}"
        label = random.choice(["cat", "dog"])
        scenes.append(
            Scene(
                name,
                size,
                block,
                random.choice(list(orientations)),
                label,
                (f"image {number}, with a {label}",),
            )
        )
    return scenes


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def write_images(folder, scenes):
    for scene in scenes:
        put(folder / scene.name, scene.encoded())


def coco(src, scenes, how):
    write_images(src / "images", scenes)
    images, annotations = [], []
    for number, scene in enumerate(scenes):
        size, box = scene.frame(how)
        images.append(
            {"id": number, "file_name": scene.name} | ({"width": size[0], "height": size[1]} if size else {})
        )
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": ["cat", "dog", "red"].index(scene.label),
                "bbox": box,
            }
        )
        annotations += [{"id": 0, "image_id": number, "caption": caption} for caption in scene.captions]
    categories = [{"id": number, "name": name} for number, name in enumerate(("cat", "dog", "red"))]
    put(
        src / "annotations.json",
        json.dumps({"images": images, "annotations": annotations, "categories": categories}),
    )


def voc(src, scenes, how):
    write_images(src / "JPEGImages", scenes)
    for scene in scenes:
        size, (x, y, w, h) = scene.frame(how)
        sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
        corners = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        put(
            src / "Annotations" / f"{os.path.splitext(scene.name)[0]}.xml",
            f"<annotation><filename>{scene.name}</filename>{sides}<object><name>{scene.label}</name><bndbox>{corners}</bndbox>"
            "</object></annotation>",
        )


def yolo(src, scenes, how):
    write_images(src / "images", scenes)
    put(src / "data.yaml", "names: [cat, dog, red]\n")
    for scene in scenes:
        (width, height), (x, y, w, h) = scene.size, scene.block
        numbers = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
        line = f"{['cat', 'dog', 'red'].index(scene.label)} {' '.join(map(repr, numbers))}\n"
        put(src / "labels" / f"{os.path.splitext(scene.name)[0]}.txt", line)


def labelme(src, scenes, how):
    write_images(src, scenes)
    for scene in scenes:
        size, (x, y, w, h) = scene.frame(how)
        shape = {"label": scene.label, "shape_type": "rectangle", "points": [[x + w, y], [x, y + h]]}
        sides = {"imageWidth": size[0], "imageHeight": size[1]} if size else {}
        put(
            src / f"{os.path.splitext(scene.name)[0]}.json",
            json.dumps({"version": "5.0", "imagePath": scene.name, "shapes": [shape], **sides}),
        )


def cvat(src, scenes, how):
    write_images(src / "images", scenes)
    lines = []
    for number, scene in enumerate(scenes):
        size, (x, y, w, h) = scene.frame(how)
        sides = f'width="{size[0]}" height="{size[1]}"' if size else ""
        box = f'<box label="{scene.label}" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}"/>'
        lines.append(f'<image id="{number}" name="{scene.name}" {sides}>{box}</image>')
    put(src / "annotations.xml", f"<annotations><version>1.1</version>{''.join(lines)}</annotations>")


def boxes_csv(src, scenes, how):
    write_images(src, scenes)
    buffer = io.StringIO()
    table = csv.writer(buffer)
    table.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
    for scene in scenes:
        size, (x, y, w, h) = scene.frame(how)
        table.writerow([scene.name, *(size or ("", "")), scene.label, x, y, x + w, y + h])
    put(src / "_annotations.csv", buffer.getvalue())


def _row(scene):
    objects = {"bbox": [list(scene.block)], "category": [scene.label]}
    return {"file_name": scene.name, "objects": objects, "text": list(scene.captions)}


def hf_folder(src, scenes, how):
    write_images(src, scenes)
    put(src / "metadata.jsonl", "".join(json.dumps(_row(scene)) + "\n" for scene in scenes))


def hf_parquet(src, scenes, how):
    write_images(src, scenes)
    pq.write_table(pa.Table.from_pylist([_row(scene) for scene in scenes]), src / "metadata.parquet")


def tar(src, scenes, how):
    src.mkdir(parents=True, exist_ok=True)
    with tarfile.open(src / "000.tar", "w") as members:
        for scene in scenes:
            said = {"objects": _row(scene)["objects"], "captions": list(scene.captions)}
            stem = os.path.splitext(scene.name)[0]
            for name, data in ((scene.name, scene.encoded()), (f"{stem}.json", json.dumps(said).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                members.addfile(info, io.BytesIO(data))


FRAMED = {
    "coco": coco,
    "voc": voc,
    "labelme": labelme,
    "cvat": cvat,
    "boxes_csv": boxes_csv,
}  # that record sizes
UPRIGHT_ONLY = {"yolo": yolo, "hf_folder": hf_folder, "hf_parquet": hf_parquet, "tar": tar}
WRITERS = FRAMED | UPRIGHT_ONLY


def files_below(folder):
    """How many files (and links) lie below a folder, hidden ones too."""
    return sum(
        len(names) + sum(os.path.islink(os.path.join(here, name)) for name in folders)
        for here, folders, names in os.walk(folder)
    )
