"""What ranks agree on is looked at a step late, and nothing that a run does or leaves is another for it."""

import itertools
import math
import re

import pytest
import torch
from torch import nn

from cluster.errors import RunStopped
from pretrain.training import distributed, loop
from pretrain.training.agreement import Agreement, StepNumbers
from pretrain.training.anchoring import hold_on
from pretrain.training.checkpoints import load_newest
from pretrain.training.contract import StepOutput
from pretrain.training.optimizers import OPTIMIZERS, build_optimizer, move_unless, parameter_groups
from pretrain.training.stepping import Gradients
from tests.pretrain.toy import Toy, assert_same_weights, run
from tests.ranks import run_on_ranks

NEVER = 100_000


def fused(name):
    return lambda module: build_optimizer(
        name, parameter_groups(module, weight_decay=0.1), learning_rate=0.05
    )


def test_numbers_of_a_step_are_read_when_the_next_one_is_under_way(tmp_path, monkeypatch):
    order = []

    class Watched(Agreement):
        def read(self):
            order.append(f"read {self.step}")
            return super().read()

    class Telling(Toy):
        def forward(self, inputs):
            order.append(f"forward {int(self.seen)}")
            return super().forward(inputs)

    monkeypatch.setattr(loop, "Agreement", Watched)
    run(str(tmp_path / "run"), steps=6, module=Telling(), log_every_steps=4, checkpoint_every_steps=NEVER)
    assert order == [
        "forward "
        "0", "forward 1", "read 0", "forward 2", "read 1", "forward 3", "read 2", "read 3",
         # step 4 is logged
        "forward 4", "forward 5", "read 4", "read 5",
    ]  # fmt: skip


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_late_look_changes_no_bit(tmp_path, name):
    options = {"optimizer": fused(name), "checkpoint_every_steps": NEVER}
    (early, *_), (late, outcome, _) = (
        run(str(tmp_path / f"{every}"), log_every_steps=every, **options) for every in (1, 30)
    )
    assert_same_weights(early, late)
    assert outcome.progress.bad_row_count == 1 and outcome.progress.step == 30


@pytest.mark.parametrize("poison_at", [0, 9])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_an_unsound_step_that_is_seen_late_moves_nothing(tmp_path, name, poison_at):
    """The same parameters as when each step is waited for,
    and as by an optimizer that is not called for that step.
    """
    trained = []
    for url, every, by in (
        ("late", 30, fused(name)),
        ("early", 1, fused(name)),
        ("plain", 30, plainly(name)),
    ):
        module = Toy()
        module.poison_at = poison_at
        options = {"on_nonfinite": "skip", "log_every_steps": every, "checkpoint_every_steps": NEVER}
        _, outcome, records = run(str(tmp_path / url), module=module, optimizer=by, **options)
        assert outcome.progress.skipped_steps == 1
        assert [r["text"] for r in records if r.get("kind") == "warning"] == [
            f"step {poison_at} skipped: loss or gradient is not finite"
        ]
        trained.append(module)
    for module in trained[1:]:
        assert_same_weights(trained[0], module)


def plainly(name):
    def build(module):
        optimizer = fused(name)(module)
        optimizer._step_supports_amp_scaling = False  # so that the host decides
        return optimizer

    return build


def test_a_run_that_stops_by_the_rule_stops_a_step_late_with_the_same_words(tmp_path):
    told = []
    for every in (1, 30):
        module = Toy()
        module.poison_at = 9
        with pytest.raises(
            RunStopped, match=r"step 9: the loss \(nan\).*the parameters were not changed"
        ) as stopped:
            run(str(tmp_path / f"{every}"), module=module, log_every_steps=every, optimizer=fused("adamw"))
        told.append(re.sub(r"gradient \(norm [^)]*\)", "", str(stopped.value)))
        assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert told[0] == told[1]


@pytest.mark.parametrize(("wanted", "step"), [("stop", 9), ("checkpoint", 9)])
def test_stops_and_checkpoints_that_are_asked_for_come_a_step_late_at_most(
    tmp_path, monkeypatch, wanted, step
):
    """Asked for between two log lines: during the forward pass of step 7,
    so step 8 hears of it and is the last.
    """
    contexts = []

    class Asking(Toy):
        def forward(self, inputs):
            if int(self.seen) == 7:
                (contexts[0].request_stop if wanted == "stop" else contexts[0].request_checkpoint)()
            return super().forward(inputs)

    class Knowing(loop.Logbook):
        def __init__(self, module, optimizer, progress, plan, context, *more):
            contexts.append(context)
            super().__init__(module, optimizer, progress, plan, context, *more)

    monkeypatch.setattr(loop, "Logbook", Knowing)
    url, options = str(tmp_path / "run"), {"log_every_steps": NEVER, "checkpoint_every_steps": NEVER}
    if wanted == "stop":
        _, outcome, _ = run(url, module=Asking(), **options)
        assert outcome.status == "interrupted" and outcome.progress.step == step
    else:
        with pytest.raises(KeyboardInterrupt):
            run(url, module=Asking(), die_at=8 * 20, **options)
    assert load_newest(url).progress.step == step
    assert (
        load_newest(url).progress.loss_count == step
    )  # nothing of what the checkpoint holds is a step behind
    monkeypatch.undo()
    whole, *_ = run(str(tmp_path / "whole"), **options)
    continued, *_ = run(url, **options)
    assert_same_weights(whole, continued)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_step_that_is_left_out_on_the_device_leaves_every_bit(name, held):
    torch.manual_seed(0)
    sound, unsound = torch.zeros(()), torch.ones(())
    networks = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(5, 2)).to(memory_format=torch.channels_last)]
    networks.append(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(5, 2)).to(memory_format=torch.channels_last))
    networks[1].load_state_dict(networks[0].state_dict())
    movers = [fused(name)(network) for network in networks]
    if held:
        start = {key: value + 0.1 for key, value in networks[0].named_parameters()}
        for mover, network in zip(movers, networks, strict=True):
            hold_on(mover, network, start, strength=0.01, peak_rate=0.05)

    def leave_gradients(seed, bad=None):
        for network in networks:
            torch.manual_seed(seed)
            for parameter in network.parameters():
                parameter.grad = torch.randn_like(parameter)
                if bad is not None:
                    parameter.grad[(0,) * parameter.ndim] = bad

    for step, bad in itertools.product(range(3), (math.nan, -math.inf)):
        leave_gradients(10 * step, bad)
        before = {key: value.clone() for key, value in networks[0].state_dict().items()}
        move_unless(unsound, movers[0])
        for key, value in networks[0].state_dict().items():
            assert torch.equal(value, before[key]), (step, key)
        leave_gradients(step)
        move_unless(sound, movers[0])
        movers[1].step()
        assert_same_weights(*networks)
        for state, other in zip(movers[0].state.values(), movers[1].state.values(), strict=True):
            for key, value in state.items():
                assert torch.equal(value, other[key]), (step, key)


def agreed(bad):
    """What a rank of two knows of a step after which rank 1 has `bad` as its loss, stops,
    and had two bad rows.
    """
    rank = distributed.rank()
    loss = torch.tensor(bad if rank else 1.0)
    agreement = Agreement(
        Gradients(StepOutput(loss), loss.double(), torch.tensor(2.0), 0.1),
        step=3, samples_seen=32, loss_weight=0.5, stops=rank == 1, asked=False, num_bad_rows=2 * rank,
    )  # fmt: skip
    return float(agreement.unsound), agreement.read()


def test_all_ranks_know_the_same():
    assert run_on_ranks(agreed, 2, 2.0) == [(0.0, StepNumbers(1.5, False, True, False, 2))] * 2
    for unsound, numbers in run_on_ranks(agreed, 2, math.nan):
        assert unsound == 1.0 and numbers.unsound and math.isnan(numbers.loss)
