"""The loaders' benchmark measures ours from disk and from a store,
and goes on without a peer that is not there.
"""

import re
import sys

import pytest

from tests.benchmarks import peers
from tests.benchmarks.photo_like import write_photo_like


@pytest.mark.slow
def test_ours_is_measured_and_a_missing_peer_costs_its_row(tmp_path, capsys):
    photos = write_photo_like(tmp_path / "photos", 160)
    peers.main([
        str(photos), "--peer-python", sys.executable, "--repeats", "1", "--batches", "2", "--warm-up", "1",
        "--copies", "1", "--delay", "0.01", "--rows", "ours_disk", "dali_once", "ours_s3",
    ])  # fmt: skip
    told = capsys.readouterr().out
    assert "nvidia-dali-cuda120 not installed" in told
    assert re.search(r"dali_once from .*train failed: [^$]*No module named 'nvidia\.dali'", told), told
    for row in ("ours_disk", "ours_s3"):
        assert re.search(
            rf"^{row} +\d+ images/s \(\d+ to \d+\) +[\d.]+ ms of CPU an image \(medians of 1\)$", told, re.M
        )
    assert "times dali" not in told


def test_the_summary_compares_with_the_best_of_the_peers(capsys):
    def turns(*pairs):
        return [{"rate": rate, "cpu_ms": cpu} for rate, cpu in pairs]

    peers.summary({
        "ours_disk": turns((900, 1.0), (1000, 1.0), (1100, 1.4)),
        "dali_once": turns((400, 3.0)),
        "dali_twice": turns((500, 3.5)),
    })  # fmt: skip
    assert (
        "ours_disk: 2.00 times dali_twice by the clock, 3.00 times dali_once in CPU time (goal 3.0)"
        in capsys.readouterr().out
    )
