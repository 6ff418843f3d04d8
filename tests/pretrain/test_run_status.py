"""What a run folder says about how a run is going or ended."""

import json
import os

import pytest

from cluster.errors import RunStopped, UserError
from pretrain.training.run_folder import read_result, running, write_result


def test_while_it_runs_a_mark_is_there_and_an_older_end_is_not(tmp_path):
    write_result(str(tmp_path), {"status": "interrupted", "step": 4})
    with running(str(tmp_path)):
        mark = json.loads((tmp_path / "running.json").read_text())
        assert mark["pid"] == os.getpid() and mark["started_at"] > 1.7e9 and mark["host"]
        assert read_result(str(tmp_path)) is None
        write_result(str(tmp_path), {"status": "finished"})
    assert not (tmp_path / "running.json").exists()
    assert read_result(str(tmp_path)) == {"status": "finished"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RunStopped("step 9: collapse"), "stopped"),
        (KeyboardInterrupt(), "interrupted"),
        (UserError("no such key; token=abcdefghij"), "failed"),
        (ZeroDivisionError("division by zero"), "failed"),
    ],
)
def test_an_exception_is_written_down_and_goes_on(tmp_path, error, status):
    with pytest.raises(type(error)), running(str(tmp_path)):
        raise error
    result = read_result(str(tmp_path))
    assert result["status"] == status and "abcdefghij" not in result["reason"]
    assert result["reason"].startswith(str(error)[:12] or "KeyboardInterrupt")
    assert not (tmp_path / "running.json").exists()
