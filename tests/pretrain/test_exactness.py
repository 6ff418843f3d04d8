"""Reproducible and fast kernels: what is set inside, and that it is as before outside."""

import pytest
import torch

from pretrain.training.exactness import exactness


def state():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.mark.parametrize("reproducible", [True, False])
def test_kernels_are_chosen_inside_and_left_as_they_were_outside(reproducible):
    before = state()
    with pytest.raises(KeyError), exactness(reproducible):
        assert torch.are_deterministic_algorithms_enabled() == reproducible
        assert torch.backends.cudnn.benchmark != reproducible
        if torch.cuda.is_available():
            assert torch.get_float32_matmul_precision() == ("highest" if reproducible else "high")
        raise KeyError
    assert state() == before
