"""Boxes, captions and classes come out the same however a file lays them out;
what cannot be used is BadAnnotation.
"""

import json
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import UserError
from pretrain.data.reading.annotation_columns import (
    find_boxes_column,
    find_captions_column,
    find_class_column,
)
from pretrain.data.reading.annotations import (
    BadAnnotation,
    Boxes,
    name_of_class,
    read_boxes,
    read_captions,
    read_classes,
    values_of,
)
from pretrain.data.reading.naming import named, names_at, names_in

F32, I64, STRING = pa.float32(), pa.int64(), pa.string()


def columns(name, box, classes, *, fields=("bbox", "category")):
    """The same layout as a struct of lists and as a list of structs."""
    struct = pa.struct([(fields[0], pa.list_(box)), (fields[1], pa.list_(classes))])
    structs = pa.list_(pa.struct([(fields[0], box), (fields[1], classes)]))
    return [pa.schema([(name, struct)]), pa.schema([(name, structs)])]


def found(schema, name="objects", **options):
    return find_boxes_column(schema, name, "a.parquet", **options)


@pytest.mark.parametrize(
    "box",
    [
        pa.list_(F32),
        pa.list_(F32, 4),
        pa.large_list(pa.float64()),
        pa.list_(I64),
        pa.list_(pa.decimal128(9, 2)),
    ],
)
@pytest.mark.parametrize(
    "fields", [("bbox", "category"), ("bboxes", "label"), ("boxes", "categories"), ("BBox", "Class")]
)
def test_both_layouts_hold_the_same(box, fields):
    of_lists, of_structs = columns("objects", box, STRING, fields=fields)
    boxes, classes = [[1, 2, 3, 4], [5, 6, 7, 8]], ["cat", "dog"]
    rows = pa.array([dict(zip(fields, (boxes, classes))), None], of_lists.field(0).type)
    others = pa.array(
        [[dict(zip(fields, pair)) for pair in zip(boxes, classes)], None], of_structs.field(0).type
    )
    for schema, array in ((of_lists, rows), (of_structs, others)):
        column = found(schema)
        full, empty = (read_boxes(value, column) for value in values_of(array))
        assert full.xyxy_N4.dtype == np.float32 and full.xyxy_N4.tolist() == [[1, 2, 4, 6], [5, 6, 12, 14]]
        assert full.classes == classes and len(full) == 2
        assert empty.xyxy_N4.shape == (0, 4) and len(empty) == 0
        corners = read_boxes(array[0].as_py(), found(schema, box_format="xyxy"))
        assert corners.xyxy_N4.tolist() == boxes


def test_columns_are_found_without_a_name():
    boxes = pa.struct([("bboxes", pa.list_(pa.list_(F32))), ("labels", pa.list_(STRING))])
    others = [("image", pa.binary()), ("label", I64), ("text", STRING), ("pairs", pa.list_(pa.list_(F32)))]
    assert (
        find_boxes_column(pa.schema([*others, ("annotations", boxes), ("later", boxes)])).column
        == "annotations"
    )
    assert find_boxes_column(pa.schema([("annotations", boxes), ("objects", boxes)])).column == "objects"
    assert find_captions_column(pa.schema([*others, ("caption", STRING)])).column == "caption"
    assert (
        find_captions_column(pa.schema([("caption", STRING), ("captions", pa.list_(STRING))])).column
        == "captions"
    )
    with pytest.raises(
        UserError, match=r"the data has no column with boxes \(columns there: image, label, text, pairs"
    ):
        find_boxes_column(pa.schema(others))
    with pytest.raises(UserError, match=r"a.parquet: column 'objects' is int64; objects must be struct<"):
        find_boxes_column(pa.schema([("objects", I64), ("annotations", boxes)]), url="a.parquet")
    with pytest.raises(
        UserError, match=r"the data has no column 'captions'; did you mean 'capt'\? \(columns there: "
    ):
        find_captions_column(pa.schema([*others, ("capt", STRING)]))


def test_objects_without_classes_or_without_boxes():
    column = found(
        pa.schema([("objects", pa.struct([("bbox", pa.list_(pa.list_(F32))), ("area", pa.list_(F32))]))])
    )
    assert column.class_field is None
    assert read_boxes({"bbox": [[0, 0, 1, 1]], "area": [1]}, column).classes == [None]
    for value in ({"bbox": [], "area": []}, {"bbox": None, "area": None}, {}):
        assert len(read_boxes(value, column)) == 0


def test_what_boxes_may_not_hold():
    column = found(columns("objects", pa.list_(F32), I64)[0])
    for value, reason in [
        ({"bbox": [[0, 0, 1, 1]], "category": []}, "1 boxes but 0 classes"),
        ({"bbox": [[0, 0, 1, 1]], "category": None}, "1 boxes but 0 classes"),
        ({"bbox": None, "category": [1, 2]}, "0 boxes but 2 classes"),
        ({"bbox": [[0, 0, 1, 1], [0, 0, 1]], "category": [1, 2]}, r"bbox\[1\] is not four finite numbers"),
        ({"bbox": [[0, 0, 1, 1], None], "category": [1, 2]}, r"bbox\[1\] is not four finite numbers"),
        ({"bbox": [[0, 0, None, 1]], "category": [1]}, r"bbox\[0\] is not four finite numbers"),
        (
            {"bbox": [[0, 0, 1, 1], [0, 0, float("nan"), 1]], "category": [1, 2]},
            r"bbox\[1\] is not four finite",
        ),
        ({"bbox": [[0, 1e39, 1, 1]], "category": [1]}, r"bbox\[0\] is not four finite"),
        ({"bbox": [[1e308, 0, 1e308, 1]], "category": [1]}, r"bbox\[0\] is not four finite"),
        ({"bbox": [[0, 0, 1, 1]], "category": [None]}, r"category\[0\] is null"),
        ({"bbox": [[0, 0, 1, 1]], "category": [True]}, r"category\[0\] is a bool"),
        ({"bbox": 3, "category": [1]}, "bbox is not a list"),
        (b"", "not UTF-8"),
        (3.5, "a float, which is not expected"),
    ]:
        with pytest.raises(BadAnnotation, match=reason):
            read_boxes(value, column)
    with pytest.raises(BadAnnotation, match=r"objects\[1\] is null"):
        read_boxes(
            [{"bbox": [0, 0, 1, 1], "category": 1}, None], found(columns("objects", pa.list_(F32), I64)[1])
        )


def test_boxes_against_an_image():
    boxes = Boxes(
        np.array(
            [[0, 0, 20, 10], [-0.5, 0, 20.5, 10], [-2, 0, 5, 5], [0, 0, 5, 12], [3, 3, 3, 9]], np.float32
        ),
        [1] * 5,
    )
    assert boxes.outside(20, 10).tolist() == [False, False, True, True, False]
    assert boxes.outside(20, 10, tolerance=0).tolist() == [False, True, True, True, False]
    assert boxes.degenerate().tolist() == [False, False, False, False, True]
    none = Boxes(np.zeros((0, 4), np.float32), [])
    assert none.outside(2, 2).shape == none.degenerate().shape == (0,)


def test_captions():
    assert (
        read_captions(None) == read_captions("") == read_captions(" \n") == read_captions([None, " "]) == []
    )
    assert read_captions(" a cat\n") == ["a cat"]
    for kind in (
        STRING,
        pa.large_string(),
        pa.string_view(),
        pa.list_(STRING),
        pa.dictionary(pa.int8(), STRING),
    ):
        assert find_captions_column(pa.schema([("caption", kind)])).column == "caption"
    assert read_captions(["a cat", None, "", "cafe\u0301"]) == ["a cat", "caf\u00e9"]
    for value in (b"", 3, ["a", 3]):
        with pytest.raises(BadAnnotation):
            read_captions(value)


def test_classes_and_their_names():
    feature = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    features = {
        "label": feature,
        "old": {"feature": feature, "length": -1, "_type": "Sequence"},
        "new": {"feature": feature, "_type": "List"},
        "objects": {"bbox": {}, "category": {"feature": feature, "_type": "List"}},
        "older": {"feature": {"category": feature}, "_type": "Sequence"},
        "oldest": [{"category": [feature]}],
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema([("label", I64), ("new", pa.list_(I64))]).with_metadata(metadata)
    for path in (
        ["label"],
        ["old"],
        ["new"],
        ["objects", "category"],
        ["older", "category"],
        ["oldest", "category"],
    ):
        assert names_at(schema, *path) == ("cat", "dog")
    for path in (["objects"], ["objects", "bbox"], ["objects", "nothing"], ["nothing"], ["label", "names"]):
        assert names_at(schema, *path) is None
    single, several = (find_class_column(schema, name, "a.parquet") for name in ("label", "new"))
    assert (single.is_list, several.is_list) == (False, True)
    assert (
        read_classes(1, single) == [1]
        and read_classes([0, 1], several) == [0, 1]
        and read_classes(None, several) == []
    )
    names = names_in(schema, "label")
    assert [named(value, names) for value in (0, 1, 2, -1, "x", [1, 0])] == [
        "cat",
        "dog",
        2,
        None,
        "x",
        ["dog", "cat"],
    ]
    objects = {"bbox": [[1, 2, 3, 4]], "category": [1]}
    assert named(objects, names_in(schema, "objects")) == objects | {"category": ["dog"]}
    assert named([{"category": 0}], names_in(schema, "older")) == [{"category": "cat"}]
    assert [name_of_class(value) for value in (None, 1, "x")] == ["(null)", "1", "x"]
    with pytest.raises(BadAnnotation, match=r"new\[1\] is null"):
        read_classes([0, None], several)


def test_columns_that_do_not_suit():
    objects = columns("objects", pa.list_(F32), STRING)[0].field("objects")
    schema = pa.schema([objects, ("caption", STRING), ("score", F32), ("label", I64)])
    for find, name, words in [
        (
            find_boxes_column,
            "object",
            r"a.parquet has no column 'object'; did you mean 'objects'\? \(columns there: objects, ",
        ),
        (find_captions_column, "captions", "did you mean 'caption'"),
        (find_class_column, "lable", "did you mean 'label'"),
        (find_captions_column, "label", "column 'label' is int64; captions must be string or list<string>"),
        (find_class_column, "score", "column 'score' is float; classes must be text or whole numbers"),
        (find_class_column, "objects", "classes must be"),
        (find_boxes_column, "label", r"column 'label' is int64; objects must be struct<"),
    ]:
        with pytest.raises(UserError, match=words):
            find(schema, name, "a.parquet")
    for struct, words in [
        (pa.struct([("polygon", I64)]), r"no field for boxes \(fields there: polygon; known: bbox, "),
        (
            pa.struct([("bbox", pa.list_(F32))]),
            r"objects.bbox is list<item: float>; boxes must be list<list<float>>",
        ),
        (pa.struct([("bbox", pa.list_(pa.list_(STRING)))]), "four numbers a box"),
        (
            pa.struct([("bbox", pa.list_(pa.list_(F32))), ("category", I64)]),
            "objects.category is int64; classes must be lists of",
        ),
        (pa.struct([("bbox", pa.list_(pa.list_(F32))), ("bbox", I64)]), "two fields 'bbox'"),
        (
            pa.list_(pa.struct([("bbox", pa.list_(F32)), ("category", F32)])),
            "objects.category is float; classes must be text",
        ),
    ]:
        with pytest.raises(UserError, match=words):
            found(pa.schema([("objects", struct)]))
    twice = pa.schema([("label", I64), ("label", I64)])
    with pytest.raises(UserError, match="2 columns named 'label'"):
        find_class_column(twice, "label", "a.parquet")


def test_text_that_is_not_utf8():
    broken = pa.array([b"good", b"\xff\xfe", None]).view(STRING)
    assert values_of(broken) == ["good", b"", None]
    assert values_of(pa.array([[0, 1, 2]]).cast(pa.list_(I64))) == [[0, 1, 2]]
    lists = pa.ListArray.from_arrays([0, 1, 2, 2], broken.slice(0, 2))
    assert values_of(lists) == [["good"], b"", []]


NUMBERS = [pa.float16(), F32, pa.float64(), pa.int8(), I64, pa.uint64()]
CLASSES = [pa.int8(), I64, pa.uint16(), STRING, pa.large_string()]


@st.composite
def tables(draw):
    """An objects column of a type that suits, with whatever values Arrow lets it hold."""
    number, kind = draw(st.sampled_from(NUMBERS)), draw(st.sampled_from(CLASSES))
    if pa.types.is_floating(number):
        # a float16 array takes numpy values alone
        values = st.floats(width=16) if number == pa.float16() else st.floats(width=32)
        numbers = values.map(np.float16) if number == pa.float16() else values
    else:
        numbers = st.integers(0, 127)
    classes = st.text(max_size=3) if kind in (STRING, pa.large_string()) else st.integers(0, 127)
    box = (
        st.none()
        | st.lists(st.none() | numbers, min_size=3, max_size=5)
        | st.lists(numbers, min_size=4, max_size=4)
    )
    a_class = st.none() | classes
    pairs = st.fixed_dictionaries({"bbox": box, "category": a_class})
    struct = st.fixed_dictionaries(
        {
            "bbox": st.none() | st.lists(box, max_size=4),
            "category": st.none() | st.lists(a_class, max_size=4),
        }
    )
    schema = draw(st.sampled_from(columns("objects", pa.list_(number), kind)))
    rows = struct if pa.types.is_struct(schema.field(0).type) else st.lists(st.none() | pairs, max_size=4)
    return schema, pa.array(draw(st.lists(st.none() | rows, max_size=4)), schema.field(0).type)


@settings(max_examples=300, deadline=None)
@given(tables())
def test_any_values_give_boxes_or_bad_annotation(table):
    schema, array = table
    for box_format in ("xywh", "xyxy"):
        column = found(schema, box_format=box_format)
        for value in values_of(array):
            try:
                boxes = read_boxes(value, column)
            except BadAnnotation as error:
                assert 0 < len(str(error)) < 200
                continue
            assert boxes.xyxy_N4.shape == (len(boxes.classes), 4) and boxes.xyxy_N4.dtype == np.float32
            assert np.isfinite(boxes.xyxy_N4).all() and all(
                isinstance(name, int | str) for name in boxes.classes
            )


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=4)
    | st.decimals(),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["bbox", "category", "x"]), inner)
    ),
    max_leaves=20,
)


@settings(max_examples=500, deadline=None)
@given(ANYTHING)
def test_any_python_values_do_no_harm(value):
    box_columns = [found(schema) for schema in columns("objects", pa.list_(F32), STRING)]
    class_column = find_class_column(pa.schema([("label", I64)]), "label", "a.parquet")
    for read in (
        *(lambda value, column=column: read_boxes(value, column) for column in box_columns),
        read_captions,
        lambda value: read_classes(value, class_column),
    ):
        with suppress(BadAnnotation):
            read(value)


@settings(max_examples=200, deadline=None)
@given(ANYTHING, st.sampled_from([["label"], ["objects", "category"]]))
def test_any_features_do_no_harm(features, path):
    text = json.dumps({"info": {"features": {path[0]: features}}}, default=str)
    names = names_at(pa.schema([("label", I64)]).with_metadata({"huggingface": text}), *path)
    assert names is None or all(isinstance(name, str) for name in names)
