"""The demo's scenes are repeatable, what is said of them is true,
and only shape and texture tell their classes.
"""

import io
import json
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage.feature import hog
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cluster.errors import UserError
from pretrain.data.scenes.captions import NUMBERS, captions, noun, plural, relation
from pretrain.data.scenes.scenes import SIDE, compose, main_class, recoloured, scene, tight_box, write_demo
from pretrain.data.scenes.sources import CLASSES, TEXTURES, all_cutouts, cutouts_of

NUM_SEEN = 60


@pytest.fixture(scope="module")
def composed():
    return [compose(index, 5) for index in range(NUM_SEEN)]


@pytest.fixture(scope="module")
def rows():
    return [scene(index, 5) for index in range(NUM_SEEN)]


def pixels(row):
    with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
        return np.asarray(image)


# -- repeatable ---------------------------------------------------------------------------------------------


def test_a_scene_depends_on_seed_and_index_alone(rows):
    for index in (41, 3, 17):  # in another order than they were made in
        assert scene(index, 5) == rows[index]
    assert scene(3, 6)["image"]["bytes"] != rows[3]["image"]["bytes"]
    assert len({row["image"]["bytes"] for row in rows}) == NUM_SEEN


def test_classes_are_balanced_and_in_random_order():
    labels = [main_class(index, 0) for index in range(200)]
    assert Counter(labels) == dict.fromkeys(CLASSES, 20)
    assert labels[:10] != labels[10:20]
    assert labels != [main_class(index, 1) for index in range(200)]


def test_validation_has_coins_faces_and_handwriting_of_its_own():
    for kind in CLASSES:
        training, held_out = (set(cutouts_of(kind, held_out=flag)) for flag in (False, True))
        assert training and held_out
        assert training | held_out == set(all_cutouts()[kind])
        assert bool(training & held_out) == (kind not in ("coin", "digit", "face")), kind
    for index in range(30):
        for thing in compose(index, 5, held_out=True).things:
            assert thing.cutout in cutouts_of(thing.cutout.kind, held_out=True)


def test_the_sample_photos_hold_what_is_cut_from_them():
    cutouts = all_cutouts()
    assert tuple(cutouts) == CLASSES
    assert len(cutouts["coin"]) == 24
    for kind, some in cutouts.items():
        for cutout in some[:30]:
            alpha = np.asarray(cutout.image.getchannel("A")) / 255
            assert 0.15 < alpha.mean() < 0.95, kind  # neither a speck nor a whole rectangle


# -- boxes --------------------------------------------------------------------------------------------------


def test_boxes_are_tight_around_what_is_seen(composed, rows):
    for image, row in zip(composed, rows):
        assert len(row["objects"]["bbox"]) == len(image.things) <= 3
        for (x, y, width, height), thing in zip(row["objects"]["bbox"], image.things):
            inside = np.zeros((SIDE, SIDE), dtype=bool)
            inside[int(y) : int(y + height), int(x) : int(x + width)] = True
            assert x >= 0 and y >= 0 and x + width <= SIDE and y + height <= SIDE
            assert not (thing.visible_HW & ~inside).any()
            edges = [thing.visible_HW[int(y)], thing.visible_HW[int(y + height) - 1]]
            edges += [thing.visible_HW[:, int(x)], thing.visible_HW[:, int(x + width) - 1]]
            assert all(edge.any() for edge in edges)


def test_the_masks_lie_where_the_image_differs_from_its_ground(composed):
    for image in composed:
        seen = np.any([thing.visible_HW for thing in image.things], axis=0)
        main = image.image_HW3[image.things[0].visible_HW].mean(axis=0)
        assert np.abs(main - image.image_HW3[~seen].mean(axis=0)).max() > 15
        # and not a few pixels beside it: moved by a third of the scene, the mask tells less
    moved = [np.roll(image.things[0].visible_HW, SIDE // 3, axis=(0, 1)) for image in composed]
    there, elsewhere = (
        np.mean(
            [
                np.abs(p.image_HW3[mask].mean() - p.image_HW3[~mask].mean())
                for p, mask in zip(composed, masks)
            ]
        )
        for masks in ([image.things[0].visible_HW for image in composed], moved)
    )
    assert there > 2 * elsewhere


def test_the_main_object_is_the_largest_and_little_is_hidden(composed):
    for image in composed:
        sides = [max(box[2] - box[0], box[3] - box[1]) for box in (thing.box for thing in image.things)]
        assert 0.55 * SIDE <= sides[0] <= 0.95 * SIDE
        assert all(0.15 * SIDE <= side < sides[0] for side in sides[1:])
        for thing in image.things:
            assert thing.visible_HW.sum() >= 20
    assert len({len(image.things) for image in composed}) == 3  # none to two small things


def test_a_tight_box():
    mask = np.zeros((8, 9), dtype=bool)
    mask[2, 3] = mask[5, 4] = True
    assert tight_box(mask) == (3, 2, 5, 6)


# -- sentences ----------------------------------------------------------------------------------------------


def test_the_first_sentence_counts_what_the_boxes_hold(composed, rows):
    grounds = {name: phrases for name, _, _, _, phrases in TEXTURES}
    for image, row in zip(composed, rows):
        names = [noun(thing.cutout.kind) for thing in image.things]
        first = row["captions"][0]
        assert first.startswith(f"a {names[0]} {grounds[image.background.name][0]}")
        for name, count in Counter(names[1:]).items():
            said = f"a {name}" if count == 1 else f"{NUMBERS[count]} {plural(name)}"
            assert re.search(rf"(with|,|and) {said}\b", first), (first, said)
        assert len(re.findall(r"\b(?:with|and)\b|,", first)) == len(set(names[1:]))
        assert row["objects"]["category"] == [thing.cutout.kind for thing in image.things]
        assert row["label"] == row["objects"]["category"][0]


def test_words_of_place_agree_with_the_boxes(composed, rows):
    checked = Counter()
    for image, row in zip(composed, rows):
        boxes = {noun(thing.cutout.kind): thing.box for thing in image.things}
        for sentence in row["captions"]:
            match = re.fullmatch(r"a ([\w ]+?) (above|below|beside) a (.+)", sentence)
            if not match:
                continue
            small, main = boxes[match[1]], boxes[match[3]]
            in_both = min(small[2], main[2]) - max(small[0], main[0])  # columns
            dy = (small[1] + small[3]) / 2 - (main[1] + main[3]) / 2
            agrees = {"above": dy < 0, "below": dy > 0, "beside": in_both <= (small[2] - small[0]) / 2}
            assert agrees[match[2]], (sentence, small, main)
            checked[match[2]] += 1
    assert min(checked[word] for word in ("above", "below", "beside")) >= 2


@pytest.mark.parametrize(
    "box, expected",
    [
        ((0, 40, 10, 50), "beside"),
        ((80, 40, 90, 50), "beside"),
        ((40, 0, 50, 10), "above"),
        ((40, 80, 50, 90), "below"),
        ((0, 0, 10, 10), "above"),
        ((27, 40, 37, 50), None),  # reaches into it for most of its width
        ((23, 40, 33, 50), "beside"),  # touches it
    ],
)
def test_relation(box, expected):
    assert relation(box, (30, 30, 70, 70)) == expected


def test_the_grammar():
    main, six, coin = (30, 30, 70, 70), (0, 40, 10, 50), (40, 0, 50, 10)
    ground = ("on grass", "in the grass")
    assert captions([("cat", main)], ground) == ["a cat on grass", "a cat in the grass"]
    digit = noun("digit")
    assert captions([("cat", main), (digit, six), ("coin", coin), (digit, six)], ground) == [
        "a cat on grass with two handwritten digits and a coin",
        "a coin above a cat",
        "a cat in the grass",
    ]


# -- what tells the class -----------------------------------------------------------------------------------


def test_a_layer_keeps_its_structure_and_loses_its_colours():
    rng = np.random.default_rng(0)
    red = np.zeros((20, 20, 3))
    red[..., 0] = rng.uniform(150, 250, (20, 20))
    layers = [recoloured(red, np.ones((20, 20)), 120.0, (22.0, 50.0), rng) for _ in range(200)]
    means = np.array([layer.mean(axis=(0, 1)) for layer in layers])
    assert np.abs(means.mean(axis=0) - 120).max() < 8  # no colour is preferred
    assert means.std(axis=0).min() > 3
    for layer in layers[:5]:
        assert np.corrcoef(layer.mean(axis=2).ravel(), red[..., 0].ravel())[0, 1] > 0.8


def thumbnail_probe(rows, num_train):
    """Accuracy of logistic regression on the 192 numbers of thumbnails of 8 x 8 pixels,
    the best of three penalties.
    """
    labels = np.array([row["label"] for row in rows])
    thumbnails = np.stack(
        [
            np.asarray(Image.fromarray(pixels(row)).resize((8, 8), Image.Resampling.BOX)).ravel()
            for row in rows
        ]
    )
    scores = []
    for strength in (1e-3, 1e-2, 1e-1):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=strength))
        model.fit(thumbnails[:num_train], labels[:num_train])
        scores.append(model.score(thumbnails[num_train:], labels[num_train:]))
    return max(scores)


@pytest.mark.slow
def test_thumbnails_tell_the_class_of_fewer_than_four_scenes_in_ten():
    rows = [scene(index, 1, held_out=index >= 2000) for index in range(2400)]
    assert thumbnail_probe(rows, 2000) < 0.4


def test_colours_do_not_tell_the_class_but_shape_does():
    """Against chance (0.1), with 400 scenes to learn from and 300 others to tell."""
    rows = [scene(index, 1, held_out=index >= 400) for index in range(700)]
    labels = np.array([row["label"] for row in rows])
    images = [pixels(row) for row in rows]

    def accuracy(features, classifier):
        model = make_pipeline(StandardScaler(), classifier).fit(features[:400], labels[:400])
        return model.score(features[400:], labels[400:])

    mean_and_spread = np.array([np.r_[image.mean(axis=(0, 1)), image.std(axis=(0, 1))] for image in images])
    histogram = np.array(
        [[np.histogram(image[..., channel], 8, (0, 256))[0] for channel in range(3)] for image in images]
    ).reshape(len(images), 24)
    for name, features in (
        ("mean", mean_and_spread[:, :3]),
        ("spread", mean_and_spread),
        ("histogram", histogram),
    ):
        for classifier in (LogisticRegression(max_iter=500), KNeighborsClassifier(15)):
            assert accuracy(features, classifier) < 0.2, (name, classifier)

    shape = []
    for row, image in zip(rows, images):
        x, y, width, height = row["objects"]["bbox"][0]
        main = Image.fromarray(image).convert("L").crop((x, y, x + width, y + height)).resize((48, 48))
        shape.append(hog(np.asarray(main), 9, (8, 8), (2, 2)))
    assert accuracy(np.array(shape), LogisticRegression(max_iter=500, C=0.01)) > 0.5


# -- files --------------------------------------------------------------------------------------------------


def test_the_layout_of_the_shards(tmp_path):
    seen = []
    summary = write_demo(
        str(tmp_path / "demo"), num_images=60, seed=5, progress=lambda done, of: seen.append((done, of))
    )
    assert seen == [(50, 60), (60, 60)]
    classes = list(CLASSES)
    assert summary == {
        "num_images": 60,
        "train": 48,
        "validation": 12,
        "unlabelled": 0,
        "classes": classes,
        "seed": 5,
    }
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"train", "validation", "demo.json"}
    assert json.loads((tmp_path / "demo" / "demo.json").read_text()) == summary
    rows = []
    for split, num_rows in (("train", 48), ("validation", 12)):
        table = pa.concat_tables(
            pq.read_table(file) for file in sorted((tmp_path / "demo" / split).glob("*.parquet"))
        )
        assert table.num_rows == num_rows
        assert table.schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        assert table.schema.field("label").type == pa.string()
        assert table.schema.field("objects").type == pa.struct(
            [("bbox", pa.list_(pa.list_(pa.float32()))), ("category", pa.list_(pa.string()))]
        )
        assert table.schema.field("captions").type == pa.list_(pa.string())
        rows += table.to_pylist()
    assert rows == [scene(index, 5, held_out=index >= 48) for index in range(60)]
    assert {pixels(row).shape for row in rows} == {(SIDE, SIDE, 3)}
    assert all(row["image"]["bytes"].startswith(b"\xff\xd8") for row in rows)  # JPEG


def test_scenes_without_labels_are_others_and_hold_nothing_but_images(tmp_path):
    write_demo(str(tmp_path / "demo"), num_images=20, validation_fraction=0.5, num_unlabelled=30, seed=5)
    (file,) = (tmp_path / "demo" / "unlabelled").glob("*.parquet")
    assert pq.read_schema(file).names == ["image"]
    rows = pq.read_table(file).to_pylist()
    assert [row["image"] for row in rows] == [scene(index, 5)["image"] for index in range(20, 50)]
    for split in ("train", "validation"):
        (file,) = (tmp_path / "demo" / split).glob("*.parquet")
        assert pq.read_metadata(file).num_rows == 10


def test_the_same_arguments_give_the_same_files(tmp_path):
    for name in ("one", "two"):
        write_demo(str(tmp_path / name), num_images=20, seed=9)
    files = [path.relative_to(tmp_path / "one") for path in sorted((tmp_path / "one").rglob("*.*"))]
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_what_it_refuses(tmp_path):
    with pytest.raises(UserError, match="num_images is 19, but a demo needs at least 20"):
        write_demo(str(tmp_path / "demo"), num_images=19)
    for share in (0.0, 1.0):
        with pytest.raises(
            UserError, match=f"validation_fraction is {share:g}, but both splits need a scene"
        ):
            write_demo(str(tmp_path / "demo"), num_images=20, validation_fraction=share)
    with pytest.raises(UserError, match="num_unlabelled is -1"):
        write_demo(str(tmp_path / "demo"), num_unlabelled=-1)
    with pytest.raises(UserError, match="seed is -1"):
        write_demo(str(tmp_path / "demo"), seed=-1)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty \(it holds 'notes.txt'\)"):
        write_demo(str(tmp_path))
    assert not (tmp_path / "demo").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_demo_that_was_cut_off_is_made_anew_and_a_finished_one_is_kept(tmp_path, capsys, monkeypatch):
    from pretrain.data.__main__ import main

    folder = tmp_path / "demo"

    def cut(done, of):
        if done > of // 2:
            raise KeyboardInterrupt

    def demo(images):
        monkeypatch.setattr("sys.argv", ["pretrain.data", "demo", str(folder), "--images", str(images)])
        return main()

    with pytest.raises(KeyboardInterrupt):
        write_demo(str(folder), num_images=40, progress=cut)
    assert demo(20) == 0
    assert {path.name for path in folder.iterdir()} == {"train", "validation", "demo.json"}
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert demo(20) == 0
    assert "finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    with pytest.raises(UserError, match="is not empty"):
        demo(30)
