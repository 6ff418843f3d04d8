"""The door: what is accepted, and what each refusal says."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cluster.errors import UserError
from cluster.settings import load_settings, setting, to_dict, to_yaml


@dataclass(frozen=True)
class Training:
    epochs: int = setting(10, help="passes over the data", minimum=1, maximum=1000)
    learning_rate: float = setting(0.1, help="peak", minimum=0.0)
    schedule: str = setting("cosine", help="shape", choices=["cosine", "constant"])
    clip: float | None = setting(None, help="largest gradient norm", minimum=0.0)


@dataclass(frozen=True)
class Schema:
    data: str = setting(help="where the shards are")
    sizes: list[int] = setting([1, 2], help="some sizes")
    training: Training = setting(Training, help="how long and how fast")


@dataclass(frozen=True)
class Network:
    name: str = setting("a", help="which")
    arguments: dict[str, int] = setting({}, help="its arguments")


@dataclass(frozen=True)
class NetworkSchema:
    network: Network = setting(Network, help="network")


def _file(folder: Path, text: str) -> str:
    path = folder / "settings.yaml"
    path.write_text(text)
    return str(path)


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    config = _file(tmp_path, "data: here\ntraining:\n  epochs: 3\n  schedule: constant\n")
    settings = load_settings(Schema, config, ["training.epochs=5", "sizes=[7]", "training.clip=1"])
    assert settings == Schema(data="here", sizes=[7], training=Training(epochs=5, schedule="constant", clip=1.0))
    assert isinstance(settings.training, Training)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.training.epochs = 6  # type: ignore[misc]


def test_loading_does_not_change_the_defaults(tmp_path: Path) -> None:
    load_settings(Schema, None, ["data=x", "sizes=[9]", "training.epochs=2"])
    assert load_settings(Schema, None, ["data=x"]) == Schema(data="x", sizes=[1, 2], training=Training())


def test_what_is_written_loads_again(tmp_path: Path) -> None:
    settings = load_settings(Schema, None, ["data='s3://b/ä: #1'", "training.learning_rate=1e-4"])
    assert load_settings(Schema, _file(tmp_path, to_yaml(settings)), []) == settings
    assert yaml.safe_load(to_yaml(settings)) == to_dict(settings)
    assert to_dict(settings)["training"]["clip"] is None


def test_interpolation_resolves(tmp_path: Path) -> None:
    config = _file(tmp_path, "data: runs/${training.epochs}\n")
    assert load_settings(Schema, config, ["training.epochs=4"]).data == "runs/4"


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ([], ["data", "has no value", "where the shards are", "data=..."]),
        (["data=x", "training.epoch=3"], ["training.epoch=3", "unknown setting", "did you mean 'training.epochs'"]),
        (["data=x", "epochs=3"], ["unknown setting 'epochs'", "did you mean 'epochs'"]),
        (["data=x", "training.epochs=many"], ["training.epochs='many'", "wrong type", "a whole number"]),
        (["data=x", "training.epochs=2.5"], ["training.epochs=2.5", "wrong type"]),
        (["data=x", "training.epochs=0"], ["training.epochs=0", "at least 1"]),
        (["data=x", "training.epochs=1001"], ["training.epochs=1001", "at most 1000"]),
        (["data=x", "training.learning_rate=.nan"], ["training.learning_rate=nan", "at least 0"]),
        (["data=x", "training.clip=-1"], ["training.clip=-1", "at least 0"]),
        (["data=x", "training.schedule=cosin"], ["'cosin'", "did you mean 'cosine'", "cosine, constant"]),
        (["data=x", "training=3"], ["training"]),
        (["data"], ["'data' is not an override", "key=value"]),
        (["--data=x"], ["'--data=x' is not an override"]),
        (["=x"], ["'=x' is not an override"]),
        (["data=[1"], ["cannot read the value in 'data=[1'"]),
        (["data=${nowhere}"], ["do not resolve", "nowhere"]),
        (["data=${unknown_resolver:1}"], ["do not resolve"]),
    ],
)
def test_refusals_name_the_key_the_value_and_what_is_right(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_settings(Schema, None, overrides)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("data: [1", "cannot be read as YAML"),
        ("- 1\n- 2\n", "must hold `key: value` lines"),
        ("data: x\ntrainin:\n  epochs: 1\n", "did you mean 'training'"),
        ("data: x\ntraining:\n  epochs: [1]\n", "training.epochs"),
        ("data: \x00", "cannot be read as YAML"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        load_settings(Schema, _file(tmp_path, text), [])
    assert part in str(caught.value)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_settings(Schema, _file(tmp_path, "# nothing yet\n"), ["data=x"]) == Schema(data="x", sizes=[1, 2])


def test_a_missing_file_is_told_with_its_neighbours(tmp_path: Path) -> None:
    _file(tmp_path, "data: x")
    with pytest.raises(UserError, match=r"setings.yaml does not exist; did you mean .*settings.yaml"):
        load_settings(Schema, str(tmp_path / "setings.yaml"), [])
    with pytest.raises(UserError, match="is a folder"):
        load_settings(Schema, str(tmp_path), [])
    with pytest.raises(UserError, match="looks like an override"):
        load_settings(Schema, "training.epochs=3", [])


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ([], Network("b", {"width": 3})),
        (["network.arguments.depth=1"], Network("b", {"width": 3, "depth": 1})),
        (["network.name=b"], Network("b", {"width": 3})),
        (["network.name=c"], Network("c", {})),
        (["network.arguments.depth=1", "network.name=c"], Network("c", {"depth": 1})),
    ],
)
def test_another_name_takes_the_arguments_of_the_former_with_it(
    tmp_path: Path, overrides: list[str], wanted: Network
) -> None:
    config = _file(tmp_path, "network:\n  name: b\n  arguments: {width: 3}\n")
    assert load_settings(NetworkSchema, config, overrides).network == wanted
