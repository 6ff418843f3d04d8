"""Every configuration that ships is complete and can be built, and its header says how to run it."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from cluster.settings import load_settings
from pretrain.methods import METHODS, build_method, method_views
from pretrain.papers import PAPERS, defaults_of
from pretrain.settings import PretrainSettings
from pretrain.starting import fresh_encoder, resolved
from tests.pretrain.features import describe_features_only

CONFIGS = sorted(Path("configs/pretrain").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_it_builds_and_says_how_to_run_it(path, tmp_path):
    given = ["data.url=shards", "out=run"]
    is_live = re.search(r"^ +teacher: ", path.read_text(), re.MULTILINE) is not None
    if "\n  name: distill\n" in path.read_text() and not is_live:
        given.append(f"method.arguments.features={describe_features_only(tmp_path)}")
    settings, _ = resolved(load_settings(PretrainSettings, str(path), given, beneath=defaults_of))
    # a live teacher is opened with its weights
    with nullcontext() if is_live else torch.device("meta"):
        build_method(settings.method.name, fresh_encoder(settings), settings.method.arguments)
    views = method_views(
        settings.method.name, settings.views.recipe, settings.views.size, settings.views.arguments
    )
    assert len(views) >= (1 if settings.method.name == "distill" else 2)
    header = path.read_text().split("\n\n")[0]
    assert f"python -m pretrain {path}" in header or path.name == "demo.yaml"
    expected = " ".join(header.partition("Expect")[2].replace("#", " ").split())
    assert re.search(r"minute|hour|day|gives no time|the time of", expected), header
    assert re.search(r"\d %|\d AP", expected), header
    assert "https://arxiv.org/abs/" in header


def test_every_method_has_its_paper_and_both_configurations():
    names = set(METHODS)
    assert set(PAPERS) == names
    for folder in ("configs/pretrain", "configs/pretrain/small"):
        assert names <= {path.stem for path in Path(folder).glob("*.yaml")}
        for name in names:
            assert f"  name: {name}\n" in (Path(folder) / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", ["barlow_twins", "byol", "simclr", "swav", "vicreg"])
def test_networks_with_layer_norm_learn_by_adamw_where_the_paper_has_lars(name):
    def optimizer(*more):
        given = ["data.url=shards", "out=run", f"method.name={name}", *more]
        return load_settings(PretrainSettings, None, given, beneath=defaults_of).optimizer

    for convattn in ([], ["encoder.name=convattn_nano"], ["encoder.url=runs/first/encoder"]):
        assert (optimizer(*convattn).name, optimizer(*convattn).learning_rate) == ("adamw", 1.5e-4)
        # what is asked for is the paper's, with the rate of the paper
        lars = optimizer(*convattn, "optimizer.name=lars")
        assert lars.learning_rate == PAPERS[name]["optimizer"]["learning_rate"]
        assert optimizer(*convattn, "optimizer.learning_rate=1e-3").learning_rate == 1e-3
    for residual in ("encoder.name=timm:resnet50", "encoder.url=timm:resnet50"):
        told = optimizer(residual)
        assert {"name": told.name, "learning_rate": told.learning_rate} == {
            key: PAPERS[name]["optimizer"][key] for key in ("name", "learning_rate")
        }
