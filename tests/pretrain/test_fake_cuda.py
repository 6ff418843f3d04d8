"""A step of every method on CUDA tensors, without a GPU:
where tensors lie, what the host waits for, and dtypes.
"""

from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.data.reading.loader import Batch
from pretrain.data.views import augment
from pretrain.encoders import build_encoder, save_encoder
from pretrain.methods import METHODS, build_method
from pretrain.papers import PAPERS
from pretrain.training.agreement import Agreement
from pretrain.training.optimizers import Rates, build_optimizer, parameter_groups
from pretrain.training.plan import Plan
from pretrain.training.settings import TrainingSettings
from pretrain.training.stepping import Stepper
from tests.pretrain.fake_cuda import CUDA, Watch, fake_cuda, move_to_fake
from tests.pretrain.features import describe_features_only

SMALL = {
    "dino": {"output_dim": 64, "hidden_dim": 32, "bottleneck_dim": 16},
    "swav": {"num_prototypes": 30, "hidden_dim": 32, "projection_dim": 16, "queue_size": 16,
             "queue_from": 0.0},
    "moco": {"queue_size": 64}, "densecl": {"queue_size": 64},
    "barlow_twins": {"hidden_dim": 32, "projection_dim": 32},
    "vicreg": {"hidden_dim": 32, "projection_dim": 32},
}  # fmt: skip
NAMES = sorted(METHODS.keys() - {"distill"})  # whose inputs are more than views
VARIANTS = [*((name, {}) for name in NAMES), ("simclr", {"decoupled": True})]
IDS = [f"{name}{'-decoupled' * bool(more)}" for name, more in VARIANTS]
TEACHER_DIM, MAP_SHAPE = 6, (3, 4, 4)
STORED, LIVE = False, True
MAPS = {"map_weight": 0.5}
ALL_LOSSES = {"batch_weight": 0.2, "contrast_weight": 0.3}
DISTILLING = [
    # uploads: the features, and how they are mixed or, for maps, those and where the views lie
    pytest.param(STORED, ALL_LOSSES | {"mixing": 0.5}, 2, id="stored vectors"),
    pytest.param(STORED, ALL_LOSSES | MAPS, 3, id="stored maps"),
    pytest.param(STORED, {"loss": "similarity", "queue_size": 12}, 1, id="stored vectors and a queue"),
    pytest.param(LIVE, ALL_LOSSES | {"mixing": 0.5}, 1, id="live"),
    pytest.param(LIVE, ALL_LOSSES | MAPS, 0, id="live maps"),
    pytest.param(LIVE, MAPS | {"sees": "whole"}, 1, id="live maps of whole images"),
]


def method_of(name, depths=(1, 1, 1, 1), **more):
    torch.manual_seed(0)
    return build_method(name, build_encoder("convattn_nano", depths=depths), SMALL.get(name, {}) | more)


def distillation_of(folder, live, **more):
    """Distillation from made-up features, or from a small encoder that is asked in each step."""
    if live:
        torch.manual_seed(1)
        save_encoder(build_encoder("convattn_nano", stem_stride=4), str(folder / "teacher"), input_size=64)
        source = {"teacher": str(folder / "teacher")}
    else:
        source = {"features": describe_features_only(folder, dim=TEACHER_DIM)}
    return method_of("distill", hidden_dim=32, **source, **more)


def batch_beside(num_views, batch=8):
    """What comes beside the views of a batch: what is stored of the images, and where the views lie."""
    generator = np.random.default_rng(0)
    stored = generator.standard_normal((batch, TEACHER_DIM)).astype(np.float16)
    maps = generator.standard_normal((batch, *MAP_SHAPE)).astype(np.float16)
    where_VB5 = np.tile(np.array([0.1, 0.2, 0.7, 0.9, 1], np.float32), (num_views, batch, 1))
    columns = {"features": list(stored), "maps": list(maps)}
    return Batch(np.arange(batch), np.zeros(batch, np.int64), [], columns, geometry_VB5=where_VB5)


def views_of(method, device, batch=8):
    sizes = [64] * method.num_views if method.num_views else [64, 64, 32, 32]
    return [torch.empty(batch, 3, size, size, device=device) for size in sizes]


def watched_step(method, name, make_inputs):
    """The optimizer, the gradients and the watch of the second step of a method on fake CUDA tensors.

    Forward, optimizer and what follows; the first step may read what the state holds, the second must know
    it.
    """
    optimizer = build_optimizer(
        PAPERS[name]["optimizer"]["name"], parameter_groups(method, weight_decay=0.1), learning_rate=0.1
    )
    plan = Plan("", TrainingSettings(batch_size_global=8), 10, 10, lambda step: Rates(0.1, 0.1, 0.1))
    stepper = Stepper(method, optimizer, plan, CUDA)

    def leave_gradients(*_):
        for parameter in method.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None

    for step in range(2):
        watch = Watch()
        with watch.reading(), mock.patch.object(Tensor, "backward", leave_gradients):
            gradients = stepper.backward(make_inputs(), step)
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
    return optimizer, gradients, watch


def assert_sound(method, optimizer, gradients, watch, uploads=0):
    """Nothing is waited for or mixed, dtypes are as meant, and `uploads` copies go to the device."""
    assert not watch.mixed
    assert not watch.waits
    # the numbers of the step, which nobody waits for
    copies = dict(watch.copies)
    (numbers,) = (copy for copy in copies if copy.startswith("cuda to cpu"))
    assert numbers.startswith("cuda to cpu training/agreement.py") and copies.pop(numbers) == 1
    assert sum(copies.values()) == uploads
    assert all(copy.startswith("cpu to cuda training/feeding.py") for copy in copies)

    # -- dtypes as meant
    assert gradients.output.loss.dtype == torch.float32 and gradients.output.loss.device == CUDA
    products = {kind for (op, kind) in watch.ops if op.startswith(("convolution", "mm", "addmm", "bmm"))}
    assert torch.bfloat16 in products
    assert {kind for (op, kind) in watch.ops if op.startswith("convolution")} == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in method.parameters())
    for state in optimizer.state.values():
        assert all(value.device == CUDA and value.dtype == torch.float32 for value in state.values())


@pytest.mark.parametrize(("name", "more"), VARIANTS, ids=IDS)
def test_a_step_waits_for_nothing_and_mixes_no_devices(name, more):
    method = method_of(name, **more)
    with fake_cuda():
        move_to_fake(method)
        assert_sound(method, *watched_step(method, name, lambda: views_of(method, CUDA)))


@pytest.mark.parametrize(("teacher", "more", "uploads"), DISTILLING)
def test_a_step_of_distillation_waits_for_nothing_and_mixes_no_devices(teacher, more, uploads, tmp_path):
    """With what makes its inputs: features are sent to the device, or a teacher looks at the views."""
    method = distillation_of(tmp_path, teacher, **more)
    # the last is for the teacher alone
    sizes = [64, 64, 48] if more.get("sees") == "whole" else [64, 64]
    with fake_cuda():
        move_to_fake(method)
        method.train()

        def make_inputs():
            views = [torch.empty(8, 3, size, size, device=CUDA) for size in sizes]
            return method.to_inputs(views, batch_beside(len(sizes)))

        optimizer, gradients, watch = watched_step(method, "distill", make_inputs)
        assert_sound(method, optimizer, gradients, watch, uploads)
        if not teacher:
            # what the student shall predict is no less exact than what is stored
            assert watch.ops["mm.default", torch.float32] == 1
    augment.channel_values.cache_clear()  # fake ones are of no use to others


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


@pytest.mark.parametrize("more", [ALL_LOSSES | MAPS, {"loss": "similarity", "queue_size": 12}])
def test_the_backward_pass_of_distillation_waits_for_nothing(more, tmp_path):
    method = distillation_of(tmp_path, STORED, **more).to("meta")
    views = [torch.empty(8, 3, 64, 64, device="meta")] * 2
    for step in range(2):
        inputs = method.to_inputs(views, batch_beside(2))
        watch = Watch("meta")
        # the meta device has no autocast that could be turned off
        with watch.reading(), mock.patch.object(torch, "autocast", lambda *_, **__: nullcontext()):
            method(inputs).loss.backward()
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
