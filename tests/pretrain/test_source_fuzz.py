"""Whatever is in a tar, an annotation or a row: records that can be packed, or one clear error."""

import json

import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import UserError
from pretrain.data.packing.importing import import_images
from pretrain.data.packing.sources import list_records
from tests.pretrain.shards import encoded
from tests.pretrain.source_files import json_values, make_tar, write

fuzz = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def list_or_refuse(path, **options):
    """Whatever is in a source: records that can be packed, or one clear error."""
    try:
        records = list_records(str(path), **options).records
    except UserError as error:
        assert str(error)
        return
    for record in records:
        for text in (
            record.path,
            *(record.captions or ()),
            *(record.objects.category if record.objects else ()),
        ):
            text.encode()


@fuzz
@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=6), st.integers(0, 4096))
def test_any_tar(tmp_path, changes, length):
    tar = tmp_path / "a.tar"
    if not tar.exists():
        make_tar(tar, {"a.png": encoded(0), "a.json": b'{"label": 1}', "a.cls": b"1"})
        (tmp_path / "whole").write_bytes(tar.read_bytes())
    data = bytearray((tmp_path / "whole").read_bytes()[: max(length, 512)])
    for position, value in changes:
        data[position % len(data)] = value
    header = data[:512]
    header[148:156] = b" " * 8  # the checksum put right, so that damage inside a header is read
    data[148:156] = b"%06o\0 " % sum(header)
    tar.write_bytes(data)
    list_or_refuse(tar)


xml_texts = st.text(
    st.characters(codec="utf-8", exclude_characters="<>&", exclude_categories=["Cc", "Cs"]), max_size=8
)


@fuzz
@given(
    st.lists(
        st.tuples(xml_texts, st.lists(st.one_of(xml_texts, st.floats().map(str)), max_size=5)), max_size=3
    ),
    st.sampled_from(["utf-8", "latin-1", "utf-16", "nonsense", ""]),
)
def test_any_voc(tmp_path, objects, encoding):
    write(tmp_path / "a.png", encoded(0))
    keys = ("xmin", "ymin", "xmax", "ymax", "zmax")
    inner = "".join(
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{k}>{v}</{k}>" for k, v in zip(keys, box))
        + "</bndbox></object>"
        for name, box in objects
    )
    head = f'<?xml version="1.0" encoding="{encoding}"?>' if encoding else ""
    write(tmp_path / "a.xml", f"{head}<annotation>{inner}</annotation>")
    list_or_refuse(tmp_path, kind="voc")


@fuzz
@given(
    st.lists(
        st.lists(st.one_of(st.floats().map(str), st.integers().map(str), st.text(max_size=4)), max_size=7)
    )
)
def test_any_yolo(tmp_path, lines):
    write(tmp_path / "a.png", encoded(0))
    write(tmp_path / "a.txt", "\n".join(" ".join(line) for line in lines).encode("utf-8", "replace"))
    list_or_refuse(tmp_path, kind="yolo")


@settings(fuzz, max_examples=30)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["label", "tags", "caption", "objects"]), json_values), max_size=4
    )
)
def test_whatever_is_listed_is_packed(tmp_path, rows):
    write(tmp_path / "a.png", encoded(0))
    table = write(
        tmp_path / "t.jsonl", "\n".join(json.dumps({"path": "a.png", **row}) for row in [*rows, {}])
    )
    try:
        import_images(str(table), str(tmp_path / "out"), overwrite=True, show_progress=False)
    except UserError as error:
        assert "not one image" in str(error) or "none of the" in str(error)
    else:
        assert pq.read_table(tmp_path / "out" / "shard-00000.parquet").num_rows == 1
