"""Small sources for tests: their files, and what is in the shards that they are packed into."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import strategies as st

from cluster import storage
from pretrain.data.packing.importing import import_images


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def make_tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def packed(src, dest, **options):
    """path -> row of the shards, with `image` its bytes."""
    summary = import_images(str(src), str(dest), show_progress=False, **options)
    rows = [
        r for file in storage.find_files(str(dest), ".parquet") for r in pq.read_table(file.url).to_pylist()
    ]
    assert len(rows) == summary["images"]
    return {row["image"]["path"]: {**row, "image": row["image"]["bytes"]} for row in rows}


def quarantined(dest):
    file = Path(dest) / "_quarantine.jsonl"
    return (
        {line["path"]: line["reason"] for line in map(json.loads, file.read_text().splitlines())}
        if file.exists()
        else {}
    )


def voc(name, *boxes):
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>"
        "</object>"
        for label, x0, y0, x1, y1 in boxes
    )
    return f"<annotation><filename>{name}</filename>{objects}</annotation>"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
