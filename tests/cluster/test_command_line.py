"""Options as `--name value` and as `name=value`: the same,
except for the value of an option and what stands behind `--`.
"""

from __future__ import annotations

import pytest

from cluster.command_line import CommandLine, as_settings


def parser() -> CommandLine:
    line = CommandLine(prog="try")
    line.add_argument("inputs", nargs="+")
    line.add_argument("--batch-size", type=int, default=64)
    line.add_argument("--draw", action="store_true")
    line.add_argument("--label", action="append", default=[])
    line.add_argument("--crop-fraction", type=float)
    return line


@pytest.mark.parametrize(
    "words",
    [
        ["a", "b", "--batch-size", "8", "--draw", "--label", "x=y", "--label=z"],
        ["a", "batch_size=8", "b", "draw=true", "label=x=y", "label=z"],
        ["batch-size=8", "a", "b", "--draw", "--label", "x=y", "label=z"],
    ],
)
def test_both_ways_are_the_same(words: list[str]) -> None:
    read = vars(parser().parse_intermixed_args(words))
    assert read == {
        "inputs": ["a", "b"],
        "batch_size": 8,
        "draw": True,
        "label": ["x=y", "z"],
        "crop_fraction": None,
    }


def test_what_is_no_option_or_the_value_of_one_stays() -> None:
    assert parser().parse_args(["year=2024/a.jpg"]).inputs == ["year=2024/a.jpg"]
    read = parser().parse_args(
        ["--label", "draw=true", "draw=false", "--", "year=2024/a.jpg", "batch_size=8"]
    )
    assert read.inputs == ["year=2024/a.jpg", "batch_size=8"]
    assert read.label == ["draw=true"] and not read.draw and read.batch_size == 64


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "draw=yes"], "draw=yes is not possible; it is true or false"),
        (["a", "--crop-share", "0.5"], "--crop-share is now called --crop-fraction"),
        (["a", "crop_share=0.5"], "crop_share is now called crop_fraction"),
        (["a", "batch_size=many"], "argument --batch-size: invalid int value: 'many'"),
    ],
)
def test_what_is_wrong_is_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(words)
    assert said in capsys.readouterr().err


def test_settings_as_options() -> None:
    assert as_settings(["a.yaml", "--x.y", "-1", "z=2", "--x.num-rows=3"]) == [
        "a.yaml",
        "x.y=-1",
        "z=2",
        "x.num_rows=3",
    ]
