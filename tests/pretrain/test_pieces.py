"""Steps in exact pieces: the same bits on any number of ranks, and the gradients of the whole batch."""

from __future__ import annotations

import math

import pytest
import torch

from cluster.errors import UserError
from pretrain.encoders import build_encoder
from pretrain.methods import METHODS, build_method
from pretrain.methods.pieces import Pieces
from pretrain.training import distributed
from pretrain.training.optimizers import build_optimizer, parameter_groups
from tests.pretrain.small_methods import STEPS, make_inputs, small_arguments
from tests.ranks import run_on_ranks

BATCH = 12


def make(name, *, pieces, images_per_pass=0, drop_path=0.2):
    torch.manual_seed(0)
    encoder = build_encoder("convattn_nano", stem_stride=2, drop_path=drop_path)
    with small_arguments(name) as arguments:
        return build_method(name, encoder, arguments, images_per_pass=images_per_pass, exact_pieces=pieces)


def inputs_of_rank(method, name, step):
    share = BATCH // distributed.world_size()
    start = distributed.rank() * share
    return make_inputs(method, name, step, BATCH, slice(start, start + share), torch.float32)


def steps_of(names, num_steps=2, pieces=6):
    """Losses and the whole state after some steps of this rank's share of each batch, with drop path."""
    torch.set_num_threads(1)
    results = {}
    for name in names:
        method = make(name, pieces=pieces)
        optimizer = build_optimizer("sgd", parameter_groups(method, weight_decay=1e-4), learning_rate=0.05)
        losses = []
        for step in range(num_steps):
            torch.manual_seed(step)
            optimizer.zero_grad()
            output = method(inputs_of_rank(method, name, step))
            output.loss.backward()
            method.pieces.finish()
            optimizer.step()
            method.after_step(step, STEPS)
            losses.append(float(output.loss.detach()))
        results[name] = losses, {key: value.numpy().copy() for key, value in method.state_dict().items()}
    return results


def test_every_method_is_the_same_on_one_and_two_ranks():
    assert_equal_on_ranks(sorted(METHODS), 2)


def test_three_ranks_are_one():
    # a sum of three equal numbers over three is not always that number,
    # so nothing may be averaged over ranks
    assert_equal_on_ranks(["simclr", "moco", "vicreg"], 3)


def assert_equal_on_ranks(names, num_ranks):
    before = torch.get_num_threads()
    wanted = steps_of(names)
    torch.set_num_threads(before)
    for theirs in run_on_ranks(steps_of, num_ranks, names):
        for name in names:
            losses, state = wanted[name]
            assert theirs[name][0] == losses, name
            assert all(state[key].tobytes() == value.tobytes() for key, value in theirs[name][1].items()), (
                name
            )


@pytest.mark.parametrize("images_per_pass", [0, 2])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_gradients_are_those_of_the_whole_batch(name, images_per_pass):
    whole = make(name, pieces=0, drop_path=0.0)
    pieces = make(name, pieces=3, images_per_pass=images_per_pass, drop_path=0.0)
    outputs = [method(inputs_of_rank(method, name, 0)) for method in (whole, pieces)]
    for output in outputs:
        output.loss.backward()
    pieces.pieces.finish()
    assert float(outputs[1].loss.detach()) == pytest.approx(float(outputs[0].loss.detach()), rel=1e-5)
    for (key, one), other in zip(whole.named_parameters(), pieces.parameters(), strict=True):
        if one.grad is not None and float(one.grad.abs().max()) > 1e-6:
            torch.testing.assert_close(
                other.grad, one.grad, rtol=1e-3, atol=1e-3 * float(one.grad.abs().max()), msg=key
            )
            assert layout_of(other.grad) == layout_of(other)


def layout_of(tensor):
    # the stride of a dimension of size 1 says nothing: kernels of different processors write it differently
    return [step for size, step in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def test_sums_are_exact_and_what_is_not_finite_is_seen():
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))]
    values = [[1e30, 1.0, -1e30], [3e-40, 2e-30, 0.0]]
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        pieces = Pieces(3)
        for index in order:
            scaled = [torch.tensor([row[index]]) for row in values]
            outputs = pieces_outputs(pieces, parameters, scaled)
            pieces.take(outputs, [torch.ones(()) for _ in outputs])
        pieces.finish()
        assert parameters[0].grad.tolist() == [0.0, 0.0]  # 1 is far below the unit that 1e30 sets
        assert parameters[1].grad.tolist() == pytest.approx([2e-30] * 3)
    outputs = pieces_outputs(pieces, parameters, [torch.tensor([math.nan]), torch.tensor([1.0])])
    pieces.take(outputs, [torch.ones(()) for _ in outputs])
    pieces.finish()
    assert parameters[0].grad.isnan().all() and parameters[1].grad.tolist() == [1.0] * 3


def pieces_outputs(pieces, parameters, scales):
    outputs = [(parameter * scale).sum() for parameter, scale in zip(parameters, scales, strict=True)]
    pieces._parameters, pieces._num_calls = parameters, 1
    return outputs


def test_batch_norm_in_pieces_is_refused():
    encoder = build_encoder("convattn_nano", norm="batch")
    with pytest.raises(UserError, match=r"method\.exact_pieces=4 is not possible with batch norm"):
        build_method("simclr", encoder, {}, exact_pieces=4)
