"""Encoded images are views of Arrow's memory, whatever the column looks like."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pretrain.data.shards import _buffers


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize(
    "values", [[], [None], [None, None], [b""], [b"ab", None, b"", b"cde"], [b"x" * 1000, b"y", None]]
)
def test_buffers_hold_the_values_of_any_slice(kind, values):
    array = pa.array(values, kind)
    for start in range(len(values) + 1):
        part = array.slice(start)
        assert [None if one is None else one.to_pybytes() for one in _buffers(part)] == values[start:]
    filtered = array.filter(pa.array([value is not None for value in values], pa.bool_()))
    assert [one.to_pybytes() for one in _buffers(filtered)] == [value for value in values if value is not None]
