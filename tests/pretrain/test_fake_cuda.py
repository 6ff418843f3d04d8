"""A step of every method on CUDA tensors, without a GPU:
where tensors lie, what the host waits for, and dtypes.
"""

from unittest import mock

import pytest
import torch
from torch import Tensor

from pretrain.data.views import augment
from pretrain.encoders import build_encoder
from pretrain.methods import METHODS, build_method
from pretrain.papers import PAPERS
from pretrain.training.agreement import Agreement
from pretrain.training.optimizers import Rates, build_optimizer, parameter_groups
from pretrain.training.plan import Plan
from pretrain.training.settings import TrainingSettings
from pretrain.training.stepping import Stepper
from tests.pretrain.fake_cuda import CUDA, Watch, fake_cuda, move_to_fake

SMALL = {
    "dino": {"output_dim": 64, "hidden_dim": 32, "bottleneck_dim": 16},
    "swav": {"num_prototypes": 30, "hidden_dim": 32, "projection_dim": 16, "queue_size": 16,
             "queue_from": 0.0},
    "moco": {"queue_size": 64}, "densecl": {"queue_size": 64},
    "barlow_twins": {"hidden_dim": 32, "projection_dim": 32},
    "vicreg": {"hidden_dim": 32, "projection_dim": 32},
}  # fmt: skip
NAMES = sorted(METHODS.keys() - {"distill"})  # which needs a teacher
VARIANTS = [*((name, {}) for name in NAMES), ("simclr", {"decoupled": True})]
IDS = [f"{name}{'-decoupled' * bool(more)}" for name, more in VARIANTS]


def method_of(name, **more):
    torch.manual_seed(0)
    return build_method(name, build_encoder("convattn_nano"), SMALL.get(name, {}) | more)


def views_of(method, device, batch=8):
    sizes = [64] * method.num_views if method.num_views else [64, 64, 32, 32]
    return [torch.empty(batch, 3, size, size, device=device) for size in sizes]


@pytest.mark.parametrize(("name", "more"), VARIANTS, ids=IDS)
def test_a_step_waits_for_nothing_and_mixes_no_devices(name, more):
    """Forward, optimizer and what follows; the first step may read what the state holds,
    the second must know it.
    """
    method = method_of(name, **more)
    with fake_cuda():
        move_to_fake(method)
        optimizer = build_optimizer(
            PAPERS[name]["optimizer"]["name"], parameter_groups(method, weight_decay=0.1), learning_rate=0.1
        )
        plan = Plan("", TrainingSettings(batch_size_global=8), 10, 10, lambda step: Rates(0.1, 0.1, 0.1))
        stepper = Stepper(method, optimizer, plan, CUDA)

        def leave_gradients(*_):
            for parameter in method.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None

        views = views_of(method, CUDA)
        for step in range(2):
            watch = Watch()
            with watch.reading(), mock.patch.object(Tensor, "backward", leave_gradients):
                gradients = stepper.backward(views, step)
                agreement = Agreement(
                    gradients,
                    step=step,
                    samples_seen=8,
                    loss_weight=1.0,
                    stops=False,
                    asked=False,
                    num_bad_rows=1,
                )
                stepper.move(step, unsound=agreement.unsound)
        assert not watch.mixed
        assert not watch.waits
        # the numbers of the step, which nobody waits for
        (copy,) = watch.copies
        assert copy.startswith("cuda to cpu training/agreement.py") and watch.copies[copy] == 1

        # -- dtypes as meant
        assert gradients.output.loss.dtype == torch.float32 and gradients.output.loss.device == CUDA
        products = {kind for (op, kind) in watch.ops if op.startswith(("convolution", "mm", "addmm", "bmm"))}
        assert torch.bfloat16 in products
        assert {kind for (op, kind) in watch.ops if op.startswith("convolution")} == {torch.bfloat16}
        assert all(p.dtype == torch.float32 for p in method.parameters())
        for state in optimizer.state.values():
            assert all(value.device == CUDA and value.dtype == torch.float32 for value in state.values())


@pytest.mark.parametrize(("name", "more"), VARIANTS, ids=IDS)
def test_the_backward_pass_waits_for_nothing(name, more):
    method = method_of(name, **more).to("meta")
    for step in range(2):
        watch = Watch("meta")
        with watch.reading():
            method(views_of(method, "meta")).loss.backward()
        method.after_step(step, 10)
    assert not watch.waits and not watch.copies
    assert all(p.grad is not None for p in method.encoder.parameters() if p.requires_grad)


def test_the_watch_sees_waits():
    """What lightly's losses do, and what is easily written."""
    with fake_cuda():
        square, watch = torch.empty(4, 4, device=CUDA), Watch()
        with watch.reading():
            float(square.sum())
            square.to("cpu")
            torch.tensor([1.0, 2.0], device=CUDA)
            square[torch.arange(4)]
            if square[0, 0] > 0:
                pass
            square[~torch.eye(4, dtype=torch.bool, device=CUDA)]
        kinds = sorted(wait.split(" ")[0] for wait in watch.waits.elements())
        assert kinds == ["__bool__", "__float__", "cpu", "cuda", "index.Tensor"] and watch.mixed


def test_views_are_finished_without_waiting():
    with fake_cuda(), mock.patch.object(augment, "colouring", lambda device: augment.apply_colours):
        for _ in range(2):
            watch = Watch()
            with watch.reading():
                crops = torch.empty(8, 3, 64, 64, dtype=torch.uint8, device=CUDA)
                views = augment.finish_views(
                    [crops, crops], [torch.empty(8, 16, device=CUDA)] * 2, device=CUDA
                )
        assert not watch.waits and not watch.copies and not watch.mixed
        assert [view.dtype for view in views] == [torch.float32] * 2
    augment.channel_values.cache_clear()  # fake ones are of no use to others


@pytest.mark.parametrize("name", ["convattn_tiny", "timm:resnet18"])
def test_what_blocks_hand_on_is_bfloat16_and_the_last_map_of_the_family_float32(name):
    encoder = build_encoder(name)
    kinds = set()
    for block in encoder.blocks():
        block.register_forward_hook(lambda block, inputs, output: kinds.add(output.dtype))
    with fake_cuda():
        move_to_fake(encoder)
        with torch.autocast("cuda", torch.bfloat16):
            maps = encoder(torch.empty(2, 3, 224, 224, device=CUDA))
    assert kinds == {torch.bfloat16}
    if name.startswith("convattn"):
        assert [one.dtype for one in maps] == [torch.bfloat16] * 3 + [torch.float32]
