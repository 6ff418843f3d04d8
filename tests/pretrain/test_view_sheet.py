"""`python -m pretrain.data views`: the sheet shows the views that a run would see,
and says what is wrong.
"""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from cluster.errors import UserError, run_command
from pretrain.data.__main__ import main
from pretrain.data.views.recipes import recipe_views
from pretrain.methods import method_views
from tests.pretrain.shards import photo, write_shards


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    images = [photo(number) for number in range(20)]
    images[0] = b"nothing"
    return write_shards(tmp_path_factory.mktemp("sheet"), images)


def views(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["pretrain.data", "views", *map(str, arguments)])
    return run_command(main)


@pytest.mark.parametrize(("recipe", "num_views"), [("simclr", 2), ("dino", 8), ("weak", 1)])
def test_a_line_for_each_image(url, tmp_path, monkeypatch, capsys, recipe, num_views):
    out = tmp_path / "views.png"
    assert views(monkeypatch, url, "--recipe", recipe, "--size", 48, "--images", 3, "--out", out) == 0
    assert "views of 2 images" in capsys.readouterr().out  # and the reason of the bad one
    page = Image.open(io.BytesIO(out.read_bytes()))
    column, line = 166, 194  # a cell with its gap, see pretrain.data.images.sheet
    assert page.size == (6 + (1 + num_views) * column, 6 + 3 * line)
    pixels = np.asarray(page)
    for view in range(1 + num_views):  # something is drawn in the middle of each cell of the second line
        cell = pixels[6 + line : 6 + line + 160, 6 + view * column : 6 + view * column + 160]
        assert cell[60:100, 60:100].std() > 1
    assert (
        views(monkeypatch, url, "--recipe", recipe, "--size", 48, "--images", 3, "--out", tmp_path / "2.png")
        == 0
    )
    assert (tmp_path / "2.png").read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "simclear"], "unknown recipe 'simclear'; did you mean 'simclr'"),
        (["--set", "crop_scal=[0.2,1]"], "unknown argument 'crop_scal'; did you mean 'crop_scale'"),
        (["crop_scal=[0.2,1]"], "unknown argument 'crop_scal'; did you mean 'crop_scale'"),
        (
            ["--set", "crop_scale=[2,3]"],
            "crop_scale=[2, 3] is not possible: give [low, high], above 0 and at most 1",
        ),
        (["--set", "crop_scale"], "'crop_scale' is not KEY=VALUE"),
        (["--size", "0"], "--size must be at least 1, not 0"),
        (["--out", "views.jpg"], "name a file that ends in .png"),
    ],
)
def test_mistakes(url, tmp_path, monkeypatch, capsys, arguments, words):
    assert views(monkeypatch, url, "--out", tmp_path / "views.png", *arguments) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) == 1


def test_a_method_is_told_what_views_it_cannot_use():
    with pytest.raises(UserError, match=r"method simclr takes 2 views, but views.recipe=dino makes 8"):
        method_views("simclr", "dino", 32, {})
    assert method_views("simclr", "byol", 32, {}) == recipe_views("byol", 32, {})
