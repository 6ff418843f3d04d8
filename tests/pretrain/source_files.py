"""Small sources for tests: their files, and what is in the shards that they are packed into."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import strategies as st

from cluster import storage
from pretrain.data.packing.importing import ImportOptions, import_images
from tests.pretrain.shards import encoded


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def photos(folder, *names):
    for number, name in enumerate(names):
        write(folder / name, encoded(number, size=(64, 48)))


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


def imported(src, dest, **options):
    """(summary, path -> row, split -> paths)."""
    chosen = ImportOptions(**options.pop("options", {}))
    summary = import_images(str(src), str(dest), chosen, show_progress=False, **options)
    rows, splits = {}, {}
    for file in storage.find_files(str(dest), ".parquet"):
        for row in pq.read_table(file.url).to_pylist():
            rows[row["image"]["path"]] = row
            splits.setdefault(file.url.split("/")[-2], set()).add(row["image"]["path"])
    return summary, rows, splits


def lines_of(dest, name):
    file = dest / name
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def voc(name, *boxes):
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for label, x0, y0, x1, y1 in boxes
    )
    return f"<annotation><filename>{name}</filename>{objects}</annotation>"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
