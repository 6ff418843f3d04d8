"""What an import says is true: its account sums to the files on disk,
and each packed box lies on the block drawn for it.
"""

import io
import json
import random

import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from cluster import storage
from cluster.errors import UserError
from pretrain.data.images.geometry import Frame, WrongFrame, scale_to, turn, upright_boxes
from pretrain.data.packing.importing import ImportOptions, import_images
from pretrain.data.packing.regroup import regroup
from tests.pretrain.annotated import (
    FRAMED,
    WRITERS,
    Scene,
    block_in,
    files_below,
    overlap,
    put,
    random_scenes,
)


def imported(src, dest, **options):
    """(summary, path -> row) of an import that may set anything aside."""
    chosen = options.pop("options", None)
    summary = import_images(str(src), str(dest), chosen, show_progress=False, max_set_aside=1.0, **options)
    rows = [
        row
        for file in storage.find_files(str(dest), ".parquet")
        for row in pq.read_table(file.url).to_pylist()
    ]
    return summary, {row["image"]["path"]: row for row in rows}


def corners(box):
    """(left, top, right, bottom) of (x, y, width, height)."""
    return box[0], box[1], box[0] + box[2], box[1] + box[3]


def check_boxes(rows, pixels=0.0):
    """Each box of each image lies on its block, or no side is further from it than so many pixels: in an
    image that was scaled, a side may lie within a pixel."""
    for path, row in rows.items():
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(row["image"]["bytes"])))
        for box in row["objects"]["bbox"] if row.get("objects") else ():
            found = block_in(image)
            apart = max(abs(mine - its) for mine, its in zip(corners(box), corners(found), strict=True))
            assert overlap(box, found) >= 0.9 or apart <= pixels, (path, box, found)


def check_account(summary, src):
    """All files of the source are in the account, once."""
    files = [row for row in summary["ledger"]["rows"] if row["of"] == "files"]
    assert sum(row["count"] for row in files) == summary["ledger"]["files"] == files_below(src), files


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_is_turned_as_its_image_is(orientation):
    scene = Scene("a.png", (60, 40), (7, 5, 20, 10), orientation)
    stored = scene.stored()
    frame = Frame(stored.size, orientation)
    assert turn(block_in(stored), frame) == scene.block and frame.upright == scene.size
    boxes = [tuple(map(float, block_in(stored)))]
    if orientation >= 5:
        assert upright_boxes(boxes, frame, drawn_on=stored.size) == [scene.block]
        twice = [tuple(2 * value for value in boxes[0])]
        assert upright_boxes(twice, frame, drawn_on=(80, 120)) == [scene.block]
    elif orientation > 1:  # the size is the same both ways; only the rest of the set can tell
        assert upright_boxes(boxes, frame, drawn_on=stored.size, on_stored=True) == [scene.block]
        assert upright_boxes([scene.block], frame, drawn_on=stored.size, on_stored=False) == [scene.block]
        with pytest.raises(WrongFrame, match="nothing in the source says"):
            upright_boxes(boxes, frame, drawn_on=stored.size)
    with pytest.raises(WrongFrame, match="not the same shape scaled"):
        upright_boxes(boxes, frame, drawn_on=(300, 40))


def test_what_counts_as_scaled():
    assert scale_to((640, 480), (640, 480)) == (1.0, 1.0)
    assert (
        scale_to((1333, 801), (500, 300)) is not None and scale_to((1333, 801), (501, 300)) is not None
    )  # rounded sides
    assert scale_to((640, 480), (640, 640)) is None and scale_to((640, 480), (480, 640)) is None


@pytest.mark.parametrize("how", ["upright", "stored", "doubled", "none"])
@pytest.mark.parametrize("kind", sorted(FRAMED))
def test_boxes_of_every_kind_and_turn(tmp_path, kind, how):
    orientations = range(1, 9) if how != "none" else (1,)
    scenes = random_scenes(random.Random(7), 16, orientations=orientations)
    FRAMED[kind](tmp_path / "src", scenes, how)
    summary, rows = imported(tmp_path / "src", tmp_path / "out")
    assert summary["kind"] == ("table" if kind == "boxes_csv" else kind)
    check_boxes(rows)
    check_account(summary, tmp_path / "src")
    aside = summary["images"] + summary["quarantined"]
    assert (
        aside == 16 and summary["images"] >= 9
    )  # what cannot be told is set aside by name, the others are there


@pytest.mark.parametrize("kind", sorted(WRITERS.keys() - {"tar"}))
def test_an_image_that_is_missing_is_not_taken_for_one_of_its_name_elsewhere(tmp_path, kind):
    scenes = random_scenes(random.Random(5), 8, orientations=(1,), endings=(".jpg",))
    src = tmp_path / "src"
    WRITERS[kind](src, scenes, "upright")
    (missing,) = [file for file in src.rglob("*.jpg") if file.name == scenes[2].name]
    missing.unlink()
    other = Scene(missing.name, scenes[2].size, (1, 1, 40, 40))
    put(src / "other" / missing.name, other.encoded())
    asked = "table" if kind in ("boxes_csv", "hf_folder", "hf_parquet") else kind
    summary, rows = imported(src, tmp_path / "out", kind=asked)
    check_boxes(rows)
    check_account(summary, src)
    assert not any(row["objects"]["bbox"] for path, row in rows.items() if path.startswith("other/"))
    assert len(rows) == 7 and summary["quarantined"] == 1
    (told,) = (
        json.loads(line) for line in (tmp_path / "out" / "_quarantine.jsonl").read_text().splitlines()
    )
    assert told["path"].endswith(missing.name) and f"other/{missing.name} is another" in told["reason"]


def test_images_may_all_lie_elsewhere(tmp_path):
    """Names without folders, of images in two: found by their ends, as all of them are."""
    scenes = random_scenes(random.Random(6), 8, orientations=(1,), endings=(".jpg",))
    coco = WRITERS["coco"]
    coco(tmp_path / "src", scenes, "upright")
    for number, scene in enumerate(scenes):
        folder = tmp_path / "src" / "photos" / f"part {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / "images" / scene.name).rename(folder / scene.name)
    summary, rows = imported(tmp_path / "src", tmp_path / "out")
    check_boxes(rows)
    assert len(rows) == 8 and summary["quarantined"] == 0


def test_a_square_image_that_exif_turns_is_set_aside_where_nothing_tells(tmp_path):
    scenes = [
        Scene("a.jpg", (160, 160), (20, 50, 40, 60), 6),
        Scene("b.jpg", (120, 90), (20, 20, 40, 50), 1),
    ]
    for how in ("upright", "stored"):
        WRITERS["coco"](tmp_path / how, scenes, how)
        summary, rows = imported(tmp_path / how, tmp_path / f"{how} out")
        check_boxes(rows)
        assert summary["images"] == summary["quarantined"] == 1
        # an image on its side shows how the others lie
        WRITERS["coco"](
            tmp_path / f"{how} 2", [*scenes, Scene("c.jpg", (120, 90), (20, 20, 40, 50), 8)], how
        )
        _, rows = imported(tmp_path / f"{how} 2", tmp_path / f"{how} 2 out")
        check_boxes(rows)
        assert len(rows) == (3 if how == "upright" else 2)


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_every_kind_says_the_same_of_the_same_images(tmp_path, kind):
    scenes = random_scenes(random.Random(3), 8, orientations=(1, 6))
    WRITERS[kind](tmp_path / "src", scenes, "upright")
    summary, rows = imported(tmp_path / "src", tmp_path / "out")
    assert summary["images"] == 8 and summary["quarantined"] == 0 and summary["stopped"] is None
    found = {path.rpartition("/")[2]: row for path, row in rows.items()}
    for scene in scenes:
        row = found[scene.name]
        assert row["image"]["bytes"] == scene.encoded()
        assert row["objects"]["category"] == [scene.label]
        assert row["objects"]["bbox"][0] == pytest.approx(scene.block, abs=1e-3)
        if "captions" in row:
            assert row["captions"] == list(scene.captions)
    check_account(summary, tmp_path / "src")


def test_every_way_gives_the_same_shards(tmp_path):
    """Boxes and classes of one set written in every format; captions where a format has them."""
    scenes = random_scenes(random.Random(11), 10, orientations=(1, 3, 6))
    found = {}
    for kind, write in WRITERS.items():
        write(tmp_path / kind, scenes, "upright")
        _, rows = imported(tmp_path / kind, tmp_path / f"{kind} out")
        found[kind] = {
            path.rpartition("/")[2]: (
                row["image"]["bytes"],
                row["objects"]["category"],
                [[round(number, 2) for number in box] for box in row["objects"]["bbox"]],
            )
            for path, row in rows.items()
        }
        if rows and "captions" in next(iter(rows.values())):
            assert {path.rpartition("/")[2]: tuple(row["captions"]) for path, row in rows.items()} == {
                scene.name: scene.captions for scene in scenes
            }
    assert len(found["coco"]) == 10 and all(other == found["coco"] for other in found.values())
    # Parquet is a data set already: written anew, it holds the same rows
    regroup(str(tmp_path / "coco out"), str(tmp_path / "parquet"))
    before, after = (
        pq.read_table(tmp_path / folder, columns=["image", "objects"]) for folder in ("coco out", "parquet")
    )
    assert after.to_pylist() == before.to_pylist()


def spoil(src, scenes, chance):
    """Faults and strange files, as people have them."""
    put(src / ".DS_Store", b"x")
    put(src / "notes.md", b"mine")
    put(src / "clip.mp4", b"\0" * 50)
    put(src / "extra.jxl", b"\xff\x0a" + b"0" * 40)
    put(src / ".cache" / "a.jpg", scenes[0].encoded())
    (src / "nothing here").mkdir()
    (src / "gone.jpg").symlink_to(src / "never.jpg")
    (src / "to a folder").symlink_to(src / "nothing here")
    images = sorted(
        path
        for path in src.rglob("*")
        if path.suffix.lower() in (".jpg", ".jpeg", ".png") and path.is_file()
    )
    for path in images:
        roll = chance.random()
        if roll < 0.1:
            path.write_bytes(path.read_bytes()[:300])
        elif roll < 0.15:
            path.unlink()
        elif roll < 0.2 and ".cache" not in str(path):
            put(path.parent / f"copy of {path.name}", path.read_bytes())


def mixture(tmp_path, seed):
    """A made tree with faults, of one kind or with another one beside, imported;
    what it says is compared with the disk.
    """
    chance = random.Random(seed)
    kind, how = chance.choice(sorted(WRITERS)), chance.choice(["upright", "stored", "doubled"])
    scenes = random_scenes(chance, chance.randint(6, 14))
    src, asked = tmp_path / f"{seed} [set]", "auto"
    WRITERS[kind](src, scenes, how)
    if chance.random() < 0.4:
        other = chance.choice(sorted(WRITERS.keys() - {kind}))
        WRITERS[other](src / "other", random_scenes(chance, 3), how)
        asked = {"boxes_csv": "table", "hf_folder": "table", "hf_parquet": "table"}.get(kind, kind)
    spoil(src, scenes, chance)
    options = ImportOptions(
        short_side=chance.choice([0, 0, 80]), validation_fraction=chance.choice([0, 0, 0.3])
    )
    try:
        summary, rows = imported(src, tmp_path / f"out {seed}", options=options, kind=asked)
    except UserError as error:  # one line that says what to do
        assert any(
            words in str(error) for words in ("can be used", "ways", "leaves none", "several tables")
        ), error
        return
    check_account(summary, src)
    check_boxes(rows, pixels=1.0 if options.short_side else 0.0)
    for name in ("_files.jsonl", "_quarantine.jsonl"):
        file = tmp_path / f"out {seed}" / name
        for line in file.read_text().splitlines() if file.exists() else ():
            assert json.loads(line)["path"]


@pytest.mark.parametrize("seed", range(14))
def test_mixtures(tmp_path, seed):
    mixture(tmp_path, seed)


@pytest.mark.slow
def test_many_mixtures(tmp_path):
    for seed in range(100, 400):
        mixture(tmp_path, seed)
