"""Every method on two gloo ranks against one process, in passes against whole batches, and continued
from the state that it leaves.
"""

import io

import numpy as np
import pytest
import torch

from cluster.errors import UserError
from pretrain.encoders import build_encoder
from pretrain.methods import METHODS, build_method
from pretrain.training import distributed
from pretrain.training.batch_norm import synchronise_batch_norm
from pretrain.training.distributed import GradientAverager
from pretrain.training.optimizers import build_optimizer, parameter_groups
from tests.pretrain.small_methods import BATCH, STEPS, make_inputs, make_method
from tests.ranks import contiguous_messages, run_on_ranks

pytestmark = pytest.mark.usefixtures("one_thread")


def steps_of(name, num_steps, *, method=None, first=0):
    """Losses, gradients and the method after some steps of this rank's share of each batch."""
    rank, world = distributed.rank(), distributed.world_size()
    method = method or make_method(name)
    synchronise_batch_norm(method)
    averager = GradientAverager((p for p in method.parameters() if p.requires_grad), bucket_bytes=100_000)
    optimizer = build_optimizer("sgd", parameter_groups(method, weight_decay=1e-4), learning_rate=0.05)
    losses, share = [], BATCH // world
    for step in range(first, first + num_steps):
        optimizer.zero_grad()
        output = method(make_inputs(method, name, step, rows=slice(rank * share, (rank + 1) * share)))
        output.loss.backward()
        averager.finish()
        optimizer.step()
        method.after_step(step, STEPS)
        losses.append(float(output.loss.detach()))
    return losses, method


ACROSS_RANKS = ["simclr", "moco", "vicreg", "dino"]


def one_rank(names):
    results = {}
    for name in names:
        with contiguous_messages():
            losses, method = steps_of(name, 4)
        gradients = {key: p.grad.numpy().copy() for key, p in method.named_parameters() if p.requires_grad}
        results[name] = (
            losses,
            gradients,
            {key: value.numpy().copy() for key, value in method.state_dict().items()},
        )
    return results


# negatives, a queue, statistics over ranks, a centre; test_pieces compares every method in exact pieces
@pytest.mark.parametrize(
    "names",
    [
        ACROSS_RANKS,
        pytest.param(sorted(set(METHODS) - set(ACROSS_RANKS)), marks=pytest.mark.slow),
    ],
    ids=["some", "the others"],
)
def test_steps_on_two_ranks_equal_one_process(names):
    ranks = run_on_ranks(one_rank, 2, names)
    for name in names:
        losses, method = steps_of(name, 4)
        state = method.state_dict()
        np.testing.assert_allclose(
            np.mean([rank[name][0] for rank in ranks], 0), losses, rtol=1e-9, err_msg=name
        )
        for rank in ranks:
            _, gradients, theirs = rank[name]
            for key, parameter in method.named_parameters():
                if parameter.requires_grad:
                    wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    np.testing.assert_allclose(
                        gradients[key], wanted.numpy(), rtol=1e-6, atol=1e-10, err_msg=f"{name}: {key}"
                    )
            for key, value in state.items():
                np.testing.assert_allclose(
                    theirs[key], value.numpy(), rtol=1e-6, atol=1e-9, err_msg=f"{name}: {key}"
                )


@pytest.mark.parametrize("name", sorted(METHODS))
def test_all_state_is_in_the_state_dict(name):
    _, method = steps_of(name, 3)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    losses, method = steps_of(name, 3, method=method, first=3)
    file.seek(0)
    other = make_method(name)
    other.load_state_dict(torch.load(file, weights_only=True))
    other_losses, other = steps_of(name, 3, method=other, first=3)
    assert other_losses == losses
    for key, value in method.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize("name", sorted(METHODS))
def test_passes_of_an_eighth_equal_the_whole_batch(name):
    whole, parts = make_method(name), make_method(name, images_per_pass=BATCH // 8)
    outputs = [method(make_inputs(method, name)) for method in (whole, parts)]
    for output in outputs:
        output.loss.backward()
    assert float(outputs[1].loss.detach()) == pytest.approx(float(outputs[0].loss.detach()), rel=1e-12)
    for (key, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-8, atol=1e-12, msg=key)


def test_batch_norm_in_passes_is_refused():
    encoder = build_encoder("convattn_nano", norm="batch")
    with pytest.raises(UserError, match=r"method\.images_per_pass=16 is not possible with batch norm"):
        build_method("simclr", encoder, {}, images_per_pass=16)


def test_the_teacher_of_dino_is_what_a_run_leaves():
    _, method = steps_of("dino", 2)
    assert method.exported is method.teacher
    assert 0 < method.health()["teacher_distance"] < 1


def test_queues_take_in_the_newest_keys_and_forget_the_oldest():
    _, method = steps_of("moco", 1)
    first = method.criterion.memory_bank.bank.clone()
    _, method = steps_of("moco", 1, method=method, first=1)
    second = method.criterion.memory_bank.bank
    assert torch.equal(first[:BATCH], second[:BATCH]) and not torch.equal(
        first[BATCH : 2 * BATCH], second[BATCH : 2 * BATCH]
    )
    torch.testing.assert_close(second[: 2 * BATCH].norm(dim=1), torch.ones(2 * BATCH, dtype=second.dtype))
