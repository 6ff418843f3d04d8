"""The helper that other tests stand on."""

from __future__ import annotations

import pytest
import torch
from torch import distributed

from tests.ranks import run_on_ranks


def _sum_of_ranks(offset: float) -> tuple[int, float]:
    total = torch.tensor([distributed.get_rank() + offset])
    distributed.all_reduce(total)
    return distributed.get_rank(), total.item()


def _fail_on_rank_one() -> None:
    if distributed.get_rank() == 1:
        raise ValueError("only here")


def test_results_come_by_rank() -> None:
    assert run_on_ranks(_sum_of_ranks, 2, 10.0) == [(0, 21.0), (1, 21.0)]


def test_a_failing_rank_is_named_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)rank 1:.*_fail_on_rank_one.*ValueError: only here"):
        run_on_ranks(_fail_on_rank_one, 2)
