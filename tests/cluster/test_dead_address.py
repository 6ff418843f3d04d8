"""An address where no Ray answers is said within seconds."""

from __future__ import annotations

import socket
import time

import pytest

from cluster.errors import UserError
from cluster.training.ray_session import check_answers


def test_nothing_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", f"localhost:{port}"):
        with pytest.raises(UserError, match=r"nothing answers there .*RAY_ADDRESS"):
            check_answers(address)
    with pytest.raises(UserError, match="nothing answers there"):
        check_answers("no-such-host.invalid:6379")
    check_answers("auto")


@pytest.mark.slow
def test_something_listens_and_says_nothing() -> None:
    began = time.monotonic()
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(UserError, match="did not answer as Ray within 3 s"),
    ):
        check_answers(f"127.0.0.1:{silent.getsockname()[1]}", answer_seconds=3)
    assert time.monotonic() - began < 30
