"""The door: what is accepted, and what each refusal says."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import UserError
from cluster.schemas import describe
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
    assert settings == Schema(
        data="here", sizes=[7], training=Training(epochs=5, schedule="constant", clip=1.0)
    )
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
        (
            ["data=x", "training.epoch=3"],
            ["training.epoch=3", "unknown setting", "did you mean 'training.epochs'"],
        ),
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
        (["data=x", "sizes=[1"], ["cannot read the value in 'sizes=[1'"]),
        (["data=x", "sizes=1"], ["sizes=1 has the wrong type", "a list in brackets"]),
        (["data=x", "sizes={a:1}"], ["write a space after the colon: a: 1"]),
        (["data="], ["data=None", "a text"]),
        (["data=''"], ["data=''", "must not be empty"]),
        (["data=x", "training.learning_rate=inf"], ["training.learning_rate=inf", "finite"]),
        (["data=x", "training.epochs=0x10"], ["training.epochs='0x10'", "a whole number"]),
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
        ("data: \x00", "line 1, column 7 cannot be read as YAML: the character"),
        (
            "data: x\ntraining:\n\tepochs: 3\n",
            "line 3, column 1 cannot be read as YAML: found character '\\t'",
        ),
        ("data: x\ntraining:\n\tepochs: 3\n", "by spaces, not by tabs"),
        (
            "data: x\nsizes: [1]\ndata: y\n",
            "line 3, column 1: the key 'data' appears twice (first in line 1)",
        ),
        (
            "data: x\ntraining:\n  epochs: 3\ntraining.epochs: 4\n",
            "line 4, column 1: the value of 'training.epochs' appears twice",
        ),
        ("data: x\n? [a, b]\n: 1\n", "a key must be a word"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        load_settings(Schema, _file(tmp_path, text), [])
    assert part in str(caught.value)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_settings(Schema, _file(tmp_path, "# nothing yet\n"), ["data=x"]) == Schema(
        data="x", sizes=[1, 2]
    )


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


@pytest.mark.parametrize(
    "typed",
    [
        "runs/a #1",
        "1.10",
        "007",
        "12:30:00",
        "yes",
        "no",
        "1e3",
        "0x10",
        "010",
        "[a",
        "{a:1}",
        "a: b",
        "2026-01-01",
        "null",
        "*x",
        "&y",
        "!z",
        "@a",
        "%b",
        " - c",
        "a'b",
        "~",
        "1_000",
        ".5",
        "True",
        "s3://b/k/[2]?.parquet",
        "| x",
        "> y",
    ],
)
def test_a_text_is_what_was_typed(typed: str, tmp_path: Path) -> None:
    settings = load_settings(Schema, None, [f"data={typed}"])
    assert settings.data == typed
    assert (
        load_settings(Schema, _file(tmp_path, to_yaml(settings)), []) == settings
    )  # and once it was written down


@pytest.mark.parametrize("typed", ["007", "1.10", "yes", "12:30:00", "1e3", "2026-01-01", "0x10"])
def test_a_text_in_a_file_is_what_stands_there(typed: str, tmp_path: Path) -> None:
    assert load_settings(Schema, _file(tmp_path, f"data: {typed}\n"), []).data == typed


def test_quotes_are_taken_off_and_numbers_are_decimal() -> None:
    typed = ["data='it''s'", "training.epochs=010", "training.clip='3'", "sizes=[010, '2']"]
    settings = load_settings(Schema, None, typed)
    assert settings == Schema(data="it's", sizes=[10, 2], training=Training(epochs=10, clip=3.0))
    assert load_settings(Schema, None, ['data="a b"', "training.clip=null"]).training.clip is None


def test_without_a_type_words_are_those_of_yaml_1_2() -> None:
    typed = "arguments={a: yes, b: 1e-3, c: 007, d: true, e: null, f: [1, x], g: '3', secret_key: 12}"
    settings = load_settings(
        Free, None, [typed, "arguments.h=12:30:00", "arguments.token=0123", "url=[1.10, 2]"]
    )
    assert settings.arguments == {
        "a": "yes", "b": 1e-3, "c": "007", "d": True, "e": None, "f": [1, "x"], "g": "3", "secret_key": "12",
        "h": "12:30:00", "token": "0123",
    }  # fmt: skip
    assert settings.url == ["1.10", "2"] and load_settings(Free, None, ["url=007"]).url == "007"


@dataclass(frozen=True)
class Free:
    url: Any = setting("x", texts=True, help="one or several")
    arguments: dict[str, Any] = setting({}, help="whatever")


def test_blocks_dotted_keys_and_merges_in_a_file(tmp_path: Path) -> None:
    wanted = Schema(data="x", sizes=[1, 2], training=Training(epochs=3, clip=1.0))
    for text in (
        "data: x\ntraining.epochs: 3\ntraining.clip: 1\n",
        "data: x\ntraining:\n  clip: 1\ntraining.epochs: 3\n",
        "data: x\nsizes: &s [1, 2]\ntraining: {<<: {epochs: 7, clip: 1}, epochs: 3}\n",
    ):
        assert load_settings(Schema, _file(tmp_path, text), []) == wanted
    empty = "data: x\ntraining:\n#  epochs: 3\n"
    assert load_settings(Schema, _file(tmp_path, empty), []) == Schema(data="x", sizes=[1, 2])


def test_what_another_name_leaves_out_is_told(tmp_path: Path) -> None:
    config, told = _file(tmp_path, "network:\n  name: b\n  arguments: {width: 3}\n"), []
    load_settings(NetworkSchema, config, ["network.name=c"], told=told.append)
    assert told == ["note: network.name=c leaves out network.arguments={'width': 3}, which were those of b"]


def test_bounds_that_may_not_be_reached() -> None:
    for value, words in [("0", "above 0"), ("1", "below 1"), ("nan", "above 0")]:
        with pytest.raises(UserError, match=rf"share={value}.*must be {words}"):
            load_settings(Bounded, None, [f"share={value}.0" if value != "nan" else "share=nan"])
    with pytest.raises(UserError, match=r"parts=.*at least 2"):
        load_settings(Bounded, None, ["parts=[3, 1]"])
    assert "above 0, below 1" in describe(Bounded) and "at least 2" in describe(Bounded)


@dataclass(frozen=True)
class Bounded:
    share: float = setting(0.5, above=0, below=1, help="a share")
    parts: list[int] = setting([], minimum=2, help="some")
