"""`explain` as a user runs it, and what its images are made of."""

import io
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.errors import UserError, run_command
from pretrain.__main__ import main
from pretrain.data.reading.picking import pick_images
from pretrain.encoders import build_encoder, load_encoder, save_encoder
from pretrain.encoders.attention_maps import attention_maps
from pretrain.explaining import explain
from pretrain.explaining.components import as_colours
from tests.pretrain.shards import write_shards

TRAP = "<img src=x onerror=alert(1)>&.jpg"


def jpeg(number, size=(60, 40)):
    pixels = np.random.default_rng(number).integers(
        0, 255, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An encoder, a folder of images of different shapes, and shards of them."""
    folder = tmp_path_factory.mktemp("explaining")
    torch.manual_seed(0)
    save_encoder(
        build_encoder("convattn_nano", stem_stride=2, attention_from=3),
        str(folder / "encoder"),
        input_size=32,
    )
    (folder / "photos" / "deep").mkdir(parents=True)
    (folder / "photos" / TRAP).write_bytes(jpeg(0))
    (folder / "photos" / "deep" / "tall.JPG").write_bytes(jpeg(1, (40, 80)))
    (folder / "photos" / "broken.jpg").write_bytes(b"no image")
    write_shards(folder / "few", [jpeg(30), jpeg(31), jpeg(32)])
    write_shards(folder / "shards", [jpeg(number) for number in range(20)])
    return folder


class Page(HTMLParser):
    """The tags and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def test_the_command_writes_images_and_a_page_that_asks_no_network(world, tmp_path, capsys):
    out = tmp_path / "out"
    told = [
        str(world / "encoder"),
        str(world / "photos"),
        f"{world}/few/*.parquet",
        str(out),
        "--limit",
        "6",
    ]
    assert run_command(lambda: main(["explain", *told])) == 0
    said = capsys.readouterr().out
    assert "5 images explained" in said and "broken.jpg is left out: not an image" in said
    folders = sorted(path for path in out.iterdir() if path.is_dir())
    assert len(folders) == 5
    rows = {"overview", "stage3.block1", "stage3.block2", "stage3.block3", "stage4.block1"}
    assert all({path.stem for path in folder.iterdir()} == rows for folder in folders)
    strip = Image.open(folders[0] / "stage4.block1.png")
    assert strip.width == 6 * 160 + 5 * 4  # the mean and five heads
    page = Page((out / "index.html").read_text())
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 5 * (4 + 3 * 5 + 6)
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in images)
    assert not any("onerror" in attributes for _, attributes in page.tags) and TRAP in page.texts
    assert {tag for tag, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "em", "section", "div",
        "figure", "figcaption", "span", "img",
    }  # fmt: skip


def test_check_explains_the_first_images_and_writes_nothing(world, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    told = ["explain", str(world / "encoder"), str(world / "shards"), str(out), "--check"]
    assert run_command(lambda: main(told)) == 0
    said = capsys.readouterr().out
    assert "4 of 16 images explained; about" in said and "nothing was written" in said
    assert not (tmp_path / "deep").exists()
    (tmp_path / "deep").write_text("a file where a folder is needed")
    assert run_command(lambda: main(told)) == 2
    assert f"cannot write to {out}" in capsys.readouterr().err


def test_in_a_notebook(world):
    explanations = explain(str(world / "encoder"), str(world / "photos"))
    assert [explanation.name for explanation in explanations] == [TRAP, "tall.JPG"]
    wide, tall = explanations
    assert wide.pixels_HW3.shape == (32, 48, 3) and tall.pixels_HW3.shape == (64, 32, 3)  # multiples of 16
    assert tall.rollout_HW.shape == (8, 4) and tall.rollout_HW.sum() == pytest.approx(1, abs=1e-5)
    encoder = load_encoder(str(world / "encoder")).eval()
    images = torch.from_numpy(wide.pixels_HW3.copy()).permute(2, 0, 1)[None] / 255
    images = (images - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    for layer, heads in attention_maps(encoder, images).items():
        np.testing.assert_allclose(
            wide.attention[layer], heads[0], atol=2e-3
        )  # the image here is rounded to bytes
    assert wide.features["stage 4"].shape == (2, 3, 3)
    assert wide.sheet().size[0] > 1000
    square = explain(str(world / "encoder"), str(world / "photos"), square=True, size=64)
    assert all(explanation.pixels_HW3.shape == (64, 64, 3) for explanation in square)


def test_images_are_spread_over_all_sources(world):
    names = [p.name for p in pick_images([str(world / "shards"), f"{world}/photos/deep/*"], limit=5)]
    assert names == ["row 0", "row 5", "row 10", "row 15", "tall.JPG"]
    assert len(pick_images(str(world / "shards"), limit=100)) == 20


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("{world}/nowhere", "there is nothing at .*nowhere"),
        ("{world}/encoder", "no images in .*encoder"),
        ("{world}/photos/broken.jpg", "none of the images can be decoded: broken.jpg: not an image"),
    ],
)
def test_what_cannot_be_explained_is_said(world, images, words):
    with pytest.raises(UserError, match=words):
        explain(str(world / "encoder"), images.format(world=world))


def test_a_network_of_one_size_says_what_to_do(tmp_path, world):
    save_encoder(
        build_encoder("timm:vit_relpos_small_patch16_224", depth=3), str(tmp_path / "encoder"), input_size=64
    )
    with pytest.raises(UserError, match=r"does not take images of 64 x 96 pixels .*--square"):
        explain(str(tmp_path / "encoder"), str(world / "photos" / TRAP))


def test_colours_follow_the_strongest_directions():
    generator = np.random.default_rng(0)
    where = np.zeros((4, 6))
    where[1:3, 2:5] = 1.0
    direction = generator.normal(size=8)
    maps = [
        direction[:, None, None] * (where + 3 * shift) + generator.normal(0, 1e-3, (8, 4, 6))
        for shift in (0, 1)
    ]
    first, second = as_colours(maps)
    red = np.stack([first[..., 0], second[..., 0]]).astype(float)
    wanted = np.stack([where, where + 3])
    assert abs(np.corrcoef(red.ravel(), wanted.ravel())[0, 1]) > 0.999
    (flat,) = as_colours([np.ones((2, 3, 3))])
    assert (flat == 128).all()  # nothing to tell apart, nothing to see
