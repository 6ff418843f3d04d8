"""What the `datasets` library writes is read as it lies:
images, classes with their names, boxes, captions.
"""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pretrain.data.checking.check import check
from pretrain.data.images.decode import decode_image
from pretrain.data.packing.importing import ImportOptions, import_images
from pretrain.data.packing.packing import pack, schema_of
from pretrain.data.packing.regroup import regroup
from pretrain.data.reading.annotation_columns import (
    find_boxes_column,
    find_captions_column,
    find_class_column,
)
from pretrain.data.reading.annotations import read_boxes, read_captions, read_classes
from pretrain.data.reading.labels import read_class_names_of
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.shards import Shards, read_in_sequence

datasets = pytest.importorskip("datasets")

NUM = 12
CLASSES, TAGS, KINDS = ["cat", "dog", "cow"], ["red", "big"], ["wheel", "door"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pixels(number):
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (10 + number, 20, 3), dtype=np.uint8)


def box(number, index):
    return [float(index), 1.5, 4.25 + number / 4, 3.0]


def rows():
    for number in range(NUM):
        of_row = [(box(number, index), (number + index) % 2) for index in range(number % 3)]
        yield {
            "image": Image.fromarray(pixels(number)),
            "label": number % 3,
            "labels": [n for n in range(2) if number >> n & 1],
            "objects": {"bbox": [b for b, _ in of_row], "category": [c for _, c in of_row]},
            "pairs": [{"bboxes": b, "label": KINDS[c]} for b, c in of_row],
            "captions": [f"image {number}"] * (number % 2),
        }


def features():
    d = datasets
    return d.Features(
        {
            "image": d.Image(),
            "label": d.ClassLabel(names=CLASSES),
            "labels": d.Sequence(d.ClassLabel(names=TAGS)),
            "objects": d.Sequence(
                {"bbox": d.Sequence(d.Value("float32"), length=4), "category": d.ClassLabel(names=KINDS)}
            ),
            "pairs": [{"bboxes": d.Sequence(d.Value("float64")), "label": d.Value("string")}],
            "captions": d.Sequence(d.Value("string")),
        }
    )


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    datasets.Dataset.from_list(list(rows()), features=features()).to_parquet(str(path))
    return str(path)


def assert_all_equal(url):
    """Every row as `datasets` was given it."""
    manifest = load_manifest(url)
    schema = pq.read_schema(manifest.files[0].url)
    columns = ["label", "labels", "objects", "pairs", "captions"]
    read = list(read_in_sequence(Shards(manifest, image_column="image", columns=columns)))
    label, labels = (find_class_column(schema, name, url) for name in ("label", "labels"))
    objects, pairs = (find_boxes_column(schema, name, url) for name in ("objects", "pairs"))
    find_captions_column(schema, "captions", url)
    number = 0
    for piece in read:
        for index, image in enumerate(piece.images):
            value = {name: piece.columns[name][index] for name in columns}
            assert (decode_image(image) == pixels(number)).all()
            assert read_classes(value["label"], label) == [CLASSES[number % 3]]
            assert read_classes(value["labels"], labels) == [TAGS[n] for n in range(2) if number >> n & 1]
            expected = [box(number, n) for n in range(number % 3)]
            corners = [[x, y, x + w, y + h] for x, y, w, h in expected]
            for column in (objects, pairs):
                boxes = read_boxes(value[column.column], column)
                assert boxes.xyxy_N4.tolist() == corners
                kinds = [KINDS[(number + n) % 2] for n in range(number % 3)]
                assert boxes.classes == kinds
            assert read_captions(value["captions"]) == [f"image {number}"] * (number % 2)
            number += 1
    assert number == NUM
    assert read_class_names_of(manifest, manifest, "label").names == CLASSES


def test_a_data_set_by_datasets_is_read_as_it_lies(written):
    assert_all_equal(written)
    report = check(written)
    assert report["labels"]["label"]["counts"] == {"cat": 4, "cow": 4, "dog": 4}
    assert report["labels"]["labels"]["counts"] == {"big": 6, "red": 6}
    assert report["boxes"]["boxes"] == 12 and report["boxes"]["classes"] == {"door": 6, "wheel": 6}
    assert report["captions"]["captions"] == 6 and report["bad"] == report["bad_annotations"] == 0


def test_a_rewritten_data_set_is_still_one_for_datasets(written, tmp_path):
    regroup(written, str(tmp_path / "fixed"))
    assert_all_equal(str(tmp_path / "fixed"))
    again = datasets.Dataset.from_parquet(f"{tmp_path}/fixed/*.parquet", cache_dir=str(tmp_path / "hf"))
    assert again.features == features()
    for before, after in zip(rows(), again, strict=True):
        assert (np.asarray(after.pop("image")) == np.asarray(before.pop("image"))).all()
        assert after == before


def as_pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def assert_readable_elsewhere(folder, cache_dir, expected):
    """`datasets` and pandas see the same pixels and the same values in all other columns."""
    pandas = pytest.importorskip("pandas")
    opened = datasets.Dataset.from_parquet(f"{folder}/*.parquet", cache_dir=str(cache_dir))
    assert isinstance(opened.features["image"], datasets.Image)
    frame = pandas.read_parquet(folder)
    assert len(opened) == len(frame) == len(expected)
    for index, (image, others) in enumerate(expected):
        row = dict(opened[index])
        assert (np.asarray(row.pop("image")) == image).all() and row == others
        assert (as_pixels(frame["image"][index]["bytes"]) == image).all()
        for name, value in others.items():
            plain = frame[name][index]
            assert (plain.tolist() if isinstance(plain, np.ndarray) else plain) == value


def test_our_shards_open_in_datasets_and_in_pandas(tmp_path):
    buffers = [io.BytesIO() for _ in range(NUM)]
    for number, buffer in enumerate(buffers):
        Image.fromarray(pixels(number)).save(buffer, "PNG")
    expected = [
        (pixels(n), {"label": CLASSES[n % 3], "captions": [f"image {n}"] * (n % 3)}) for n in range(NUM)
    ]
    shards = [
        {"image": {"bytes": buffer.getvalue(), "path": f"{n}.png"}, **expected[n][1]}
        for n, buffer in enumerate(buffers)
    ]
    schema = schema_of(label=pa.string(), captions=pa.list_(pa.string()))
    pack(shards, str(tmp_path / "packed"), schema, rows_per_group=5, bytes_per_shard=4000)
    assert len(list((tmp_path / "packed").glob("*.parquet"))) > 1
    assert_readable_elsewhere(tmp_path / "packed", tmp_path / "hf", expected)


def test_imported_folders_open_in_datasets_and_in_pandas(tmp_path):
    for number in range(NUM):
        folder = tmp_path / "photos" / CLASSES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(folder / f"{number}.png")
    import_images(str(tmp_path / "photos"), str(tmp_path / "shards"), ImportOptions(), workers=2)
    (shard,) = sorted((tmp_path / "shards").rglob("*.parquet"))
    expected = []
    for row in pq.read_table(shard).to_pylist():
        image = row.pop("image")
        expected.append((as_pixels(image["bytes"]), row))
    # which pixels belong to which class is known from the sources
    assert sorted((image.shape[0] - 10, row["label"]) for image, row in expected) == [
        (number, CLASSES[number % 3]) for number in range(NUM)
    ]
    assert_readable_elsewhere(shard.parent, tmp_path / "hf", expected)


def test_encoded_files_of_any_kind(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(pixels(3)).save(buffer, "WEBP", lossless=True)
    data = [{"image": {"bytes": buffer.getvalue(), "path": "a.webp"}}, {"image": None}]
    of_images = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_list(data, features=of_images).to_parquet(str(tmp_path / "a.parquet"))
    report = check(str(tmp_path / "a.parquet"))
    assert report["formats"] == {"WebP": 1} and report["bad_rows"][0]["reason"] == "null"
