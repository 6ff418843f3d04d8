"""Classes of boxes whose numbers differ from file to file are read by their names."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from finetune.tasks.detection.boxes import TargetReader, boxes_column_of, classes_of, take_census
from pretrain.data.reading.labels import ClassNames
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.shards import Shards, read_in_sequence


def write_numbered(file, names):
    """Two rows, each with one box of a class that the file numbers as its ClassLabel says:
    bar, then disc.
    """
    feature = {"bbox": {}, "category": {"feature": {"_type": "ClassLabel", "names": names}, "_type": "List"}}
    objects = [{"bbox": [[1.0, 1, 9, 9]], "category": [names.index(name)]} for name in ("bar", "disc")]
    table = pa.table({"image": [b"x", b"y"], "objects": objects})
    metadata = {"huggingface": json.dumps({"info": {"features": {"objects": feature}}})}
    file.parent.mkdir(exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), file)


def test_class_numbers_of_boxes_are_read_by_name(tmp_path):
    write_numbered(tmp_path / "train" / "a.parquet", ["disc", "bar"])
    write_numbered(tmp_path / "train" / "b.parquet", ["bar", "disc", "star"])
    write_numbered(tmp_path / "validation" / "a.parquet", ["bar", "disc"])
    census = []
    for name in ("train", "validation"):
        manifest = load_manifest(str(tmp_path / name), columns=["objects"])
        shards = Shards(manifest, image_column="image", columns=["objects"])
        census.append(take_census(shards, boxes_column_of(manifest, "objects", "xywh")))
    assert census[0].boxes_of_class == {"bar": 2, "disc": 2}
    classes = classes_of(*census)
    assert classes.names == ["disc", "bar", "star"]
    reader = TargetReader(census[1].column, classes)
    (rows,) = read_in_sequence(shards)
    read = [
        reader.read(value, width=20, height=20)[0].classes_N.tolist() for value in rows.columns["objects"]
    ]
    assert read == [[1], [0]]
    old = ClassNames((0, 1), ["bar", "disc"])  # of a model that was trained on numbers
    assert [old.ids(value["category"]).tolist() for value in rows.columns["objects"]] == [[0], [1]]
