"""One Ray head with a job server for all tests of jobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.head import Head


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    """A head with two CPUs that asks for a token."""
    made = Head()
    try:
        made.start()
        yield made
    finally:
        made.stop()
