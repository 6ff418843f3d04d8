"""`python -m finetune predict`: images, data sets and videos in, records, alarms, places and tracks out."""

import dataclasses
import io
import json
import shutil

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cluster.errors import run_command
from finetune.__main__ import main
from finetune.model import load_model, save_model
from finetune.predicting.localizing import Localizer
from finetune.predicting.records import RecordWriter, record_of
from finetune.predicting.videos import VideoWriter
from finetune.tasks.classification.task import Classification
from finetune.tasks.detection.task import Detection
from pretrain.encoders import build_encoder
from tests.pretrain.shards import write_shards

NAMES = ["<i>dark</i>", "light"]


def drawn(bright, width=64, height=48):
    """A JPEG that is grey, or with a bright square at the left."""
    pixels = np.full((height, width, 3), 60, np.uint8)
    if bright:
        pixels[8:40, 4:28] = 250
    return pixels


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A classifier whose second class is brightness:
    its head is fitted to the features of bright and dark images.
    """
    url = str(tmp_path_factory.mktemp("model") / "model")
    torch.manual_seed(0)
    encoder = build_encoder("convattn_nano", stem_stride=1).eval()
    config = {
        "task": "classification", "mode": "full", "encoder": encoder.spec, "encoder_url": "random",
        "image_size": 48, "crop_fraction": 1.0, "mean": [0.5] * 3, "std": [0.25] * 3,
        "image_column": "image", "columns": {"label": "label"}, "class_names": NAMES, "class_values": NAMES,
    }  # fmt: skip
    classifier = Classification.new_model(encoder, config)
    predictor = Classification.predictor(classifier, config)
    with torch.no_grad():
        images = [
            predictor.images(drawn(bright).transpose(2, 0, 1)[None, :, :, :48].copy()) for bright in (0, 1)
        ]
        dark, bright = (encoder(image)[-1].mean((2, 3))[0] for image in images)
        difference = bright - dark
        direction = 8 * difference / difference.square().sum()
        classifier.head.weight.copy_(torch.stack([-direction, direction]))
        middle = float(direction @ (bright + dark)) / 2
        classifier.head.bias.copy_(torch.tensor([middle, -middle]))
    save_model(url, classifier, config)
    return url


def run(*arguments):
    return run_command(lambda: main(["predict", *map(str, arguments)]))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def video(tmp_path):
    """Thirty frames, ten a second: bright from frame 10 to 14 and from 25 on."""
    path = tmp_path / "a video.mp4"
    with VideoWriter(path, frame_rate=10) as writer:
        for frame in range(30):
            writer.write(drawn(10 <= frame < 15 or frame >= 25))
    return path


def test_images_and_shards_give_the_same_records(model, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    images = [encoded(drawn(number % 2)) for number in range(6)] + [b"no image"]
    for number, data in enumerate(images):
        (folder / f"{number}.jpg").write_bytes(data)
    shards = write_shards(tmp_path / "shards", images)
    assert run(model, folder, tmp_path / "one", "--draw", "--batch-size", 4) == 0
    assert run(model, shards, tmp_path / "two", "--batch-size", 3) == 0
    one, two = (lines(tmp_path / name / "predictions.jsonl") for name in ("one", "two"))
    assert [record["label"] for record in one[:6]] == NAMES * 3
    assert one[6]["error"] == two[6]["error"] and "not an image" in one[6]["error"] and "label" not in one[6]
    for first, second in zip(one[:6], two[:6], strict=True):
        assert first["scores"] == pytest.approx(second["scores"], abs=1e-5)
    assert [record["source"].rpartition("/")[2] for record in one] == [f"{n}.jpg" for n in range(7)]
    table = pq.read_table(tmp_path / "one" / "predictions.parquet").to_pylist()
    assert [row["label"] for row in table] == [*NAMES * 3, None]
    assert dict(table[0]["scores"]) == pytest.approx(one[0]["scores"])
    assert len(list((tmp_path / "one" / "drawn").iterdir())) == 6
    predicted = load_model(model).predict(images[:6])
    assert [p.score for p in predicted] == pytest.approx([record["score"] for record in one[:6]], abs=1e-5)


def test_where_nothing_can_be_decoded_the_exit_code_says_so(model, tmp_path, capsys):
    shards = write_shards(tmp_path / "shards", [b"no image"] * 3)
    assert run(model, shards, tmp_path / "out") == 2
    assert "none of 3 images could be decoded" in capsys.readouterr().err
    assert len(lines(tmp_path / "out" / "predictions.jsonl")) == 3


def test_check_predicts_a_batch_and_leaves_nothing(model, video, tmp_path, capsys):
    shards = write_shards(tmp_path / "shards", [encoded(drawn(True))] * 5 + [b"no image"])
    assert run(model, shards, tmp_path / "out", "--check") == 0
    assert "first 6 images: 1 of which cannot be decoded" in capsys.readouterr().out
    assert run(model, shards, video, tmp_path / "out", "--check", "--batch-size", 2) == 0
    said = capsys.readouterr().out
    assert "first 2 images: 0" in said and "nothing was started" in said
    assert not (tmp_path / "out").exists()
    assert run(model, tmp_path / "none", tmp_path / "out", "--check") == 2
    for impossible, words in {
        ("--track",): "--track links boxes",
        ("--localize", "zebra"): "zebra",
        ("--alarm", "zebra>0.5"): "not a class of the model",
        ("--draw", "--workers", 1): "give them without --workers",
    }.items():
        assert run(model, shards, tmp_path / "out", "--check", *impossible) == 2
        assert words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("which", ["model", "detector"])
def test_workers_write_the_same_records(which, request, tmp_path, shared_ray):
    images = [encoded(drawn(number % 2)) for number in range(9)]
    images[4] = b"no image"
    shards = write_shards(tmp_path / "shards", images, rows_per_group=4)
    folder = request.getfixturevalue(which)
    alarm = ["--alarm", "light>0.9" if which == "model" else "cat>0.01"]
    assert run(folder, shards, tmp_path / "here", *alarm) == 0
    assert run(folder, shards, tmp_path / "there", *alarm, "--workers", 2) == 0
    here, there = (lines(tmp_path / name / "predictions.jsonl") for name in ("here", "there"))
    assert len(here) == 9 and here[4]["error"] == there[4]["error"]
    for one, other in zip(here, there, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            if key in ("boxes", "scores") and one["error"] is None:
                close(one[key], other[key])
            elif key != "score":
                assert one[key] == other[key]
    alarms = [(tmp_path / name / "alarms.jsonl").read_text() for name in ("here", "there")]
    assert alarms[0].count("\n") == alarms[1].count("\n") > 0
    assert run(folder, shards, tmp_path / "there", "--workers", 1) == 0  # nothing is left to do
    assert run(folder, shards, tmp_path / "drawn", "--workers", 1, "--draw") == 2


def close(one, other):
    if isinstance(one, dict):
        assert other == pytest.approx(one, abs=1e-4)
    else:
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-2)


def test_a_video_raises_alarms_with_times_and_events(model, video, tmp_path):
    out = tmp_path / "out"
    assert run(model, video, out, "--alarm", "light>0.9", "--alarm-gap", 0.3) == 0
    records = lines(out / "predictions.jsonl")
    assert [record["index"] for record in records] == list(range(30))
    assert records[12]["seconds"] == pytest.approx(1.2)
    told = lines(out / "alarms.jsonl")
    assert [line["index"] for line in told if line["kind"] == "frame"] == [*range(10, 15), *range(25, 30)]
    events = [line for line in told if line["kind"] == "event"]
    assert [(event["start"], event["end"]) for event in events] == [
        ("00:00:01.000", "00:00:01.400"),
        ("00:00:02.500", "00:00:02.900"),
    ]
    assert run(model, video, tmp_path / "every", "--every", 5) == 0
    assert [record["index"] for record in lines(tmp_path / "every" / "predictions.jsonl")] == [
        0,
        5,
        10,
        15,
        20,
        25,
    ]


def test_regions_lie_where_the_class_is(model, tmp_path):
    found = Localizer(load_model(model), "light").localize(encoded(drawn(True)))
    assert found.heat_HW.shape == (48, 64) and found.probability > 0.9
    left, top, right, bottom = found.regions[0].box
    centre = (left + right) / 2, (top + bottom) / 2
    assert 4 <= centre[0] <= 28 and 8 <= centre[1] <= 40
    (tmp_path / "a.jpg").write_bytes(encoded(drawn(True)))
    assert run(model, tmp_path / "a.jpg", tmp_path / "out", "--localize", "light") == 0
    (record,) = lines(tmp_path / "out" / "predictions.jsonl")
    assert record["regions"][0]["box"] == list(found.regions[0].box)
    (row,) = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert row["regions"] == record["regions"]
    assert {path.suffix for path in (tmp_path / "out" / "maps").iterdir()} == {".png", ".jpg"}


def test_small_things_in_a_large_image_are_found_at_the_scale_of_training(model, tmp_path):
    large = np.full((200, 300, 3), 60, np.uint8)
    large[100:132, 220:244] = 250  # as large as in the images of the model
    found = Localizer(load_model(model), "light", size=200).localize(encoded(large))
    assert found.heat_HW.shape == (200, 300) and found.probability > 0.5
    left, top, right, bottom = found.regions[0].box
    assert left < 232 < right and top < 116 < bottom and (right - left) * (bottom - top) < 0.25 * 200 * 300
    dark = Localizer(load_model(model), "light", size=200).localize(
        encoded(np.full((200, 300, 3), 60, np.uint8))
    )
    assert max((region.score for region in dark.regions), default=0) < 0.1 < found.regions[0].score
    (tmp_path / "a.png").write_bytes(encoded(large))
    assert run(model, tmp_path / "a.png", tmp_path / "out", "--localize", "light", "--size", 200) == 0
    (record,) = lines(tmp_path / "out" / "predictions.jsonl")
    assert record["regions"][0]["box"] == list(found.regions[0].box)


def test_what_cannot_be_done_is_said_in_a_line(model, tmp_path, capsys):
    photo = tmp_path / "a.jpg"
    photo.write_bytes(encoded(drawn(False)))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "video.mp4").write_bytes(b"no video at all")
    for arguments, words in (
        (
            (photo, tmp_path / "o", "--alarm", "zebra>0.5"),
            "not a class of the model (known: <i>dark</i>, light)",
        ),
        ((photo, tmp_path / "o", "--alarm", "light"), "write CLASS>FRACTION"),
        ((photo, tmp_path / "o", "--alarm", "light>7"), "a fraction from 0 to 1"),
        ((photo, tmp_path / "o", "--localize", "lihgt"), "did you mean 'light'"),
        ((photo, tmp_path / "o", "--track"), "this model is for classification"),
        ((photo, tmp_path / "o", "--every", "0"), "it must be at least 1"),
        ((photo, tmp_path / "o", "--size", "64"), "give --localize CLASS with it"),
        ((tmp_path / "none", tmp_path / "o"), "does not exist or is empty"),
        ((tmp_path / "notes.txt", tmp_path / "o"), "holds no image, Parquet file or video"),
        ((tmp_path / "video.mp4", tmp_path / "o"), "cannot be read as a video"),
        ((photo, tmp_path), "is not empty"),
    ):
        assert run(model, *arguments) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error


def test_a_video_that_was_cut_off_counts_as_far_as_it_goes(model, tmp_path):
    whole = tmp_path / "whole.mkv"
    container = av.open(str(whole), "w")
    stream = container.add_stream("mpeg4", rate=10)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for frame in range(40):
        noise = np.random.default_rng(frame).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        for packet in stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")):
            container.mux(packet)
    for packet in stream.encode():
        container.mux(packet)
    container.close()
    (tmp_path / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert run(model, tmp_path / "cut.mkv", tmp_path / "out") == 0
    assert 5 < len(lines(tmp_path / "out" / "predictions.jsonl")) < 40


@dataclasses.dataclass(frozen=True)
class Word:
    text: str
    map_HW: np.ndarray


@dataclasses.dataclass(frozen=True)
class Everything:
    boxes_N4: np.ndarray
    scores: np.ndarray
    words: list[Word]
    shares: dict[str, float]
    place: tuple[float, float] | None


def test_records_and_their_schema_hold_all_but_maps(tmp_path):
    results = [
        Everything(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), [], {}, None),
        Everything(
            np.arange(8.0).reshape(2, 4),
            np.array([0.5, 1]),
            [Word("a", np.zeros((2, 2)))],
            {"x": 1.0},
            (1.0, 2.0),
        ),
    ]
    place = {"source": "s", "index": 0, "seconds": None, "error": None}
    with RecordWriter(str(tmp_path), Everything) as writer:
        for result in results:
            writer.write(place | record_of(result))
    first, second = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert first["boxes"] == [] and first["place"] is None
    assert second["boxes"] == [[0, 1, 2, 3], [4, 5, 6, 7]] and second["scores"] == [0.5, 1]
    assert (
        second["words"] == [{"text": "a"}] and second["shares"] == [("x", 1.0)] and second["place"] == [1, 2]
    )
    assert lines(tmp_path / "predictions.jsonl")[1]["boxes"] == second["boxes"]


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A detector with fresh weights, which finds boxes everywhere."""
    url = str(tmp_path_factory.mktemp("detector") / "model")
    torch.manual_seed(0)
    encoder = build_encoder("convattn_nano", stem_stride=4).eval()
    config = {
        "task": "detection", "mode": "full", "encoder": encoder.spec, "encoder_url": "random",
        "image_size": 96, "crop_fraction": 1.0, "mean": [0.5] * 3, "std": [0.25] * 3,
        "image_column": "image", "columns": {"objects": "objects"}, "class_names": ["cat", "dog"],
        "class_values": ["cat", "dog"], "box_format": "xyxy", "score_threshold": 0.0, "strides": [8, 16],
        "anchors": [[[16, 16]], [[32, 32]]], "head": "fcos", "channels": 32, "depth": 1,
        "max_detections": 10, "hard_attention_keys": 0, "hard_attention_stages": 0,
    }  # fmt: skip
    save_model(url, Detection.new_model(encoder, config), config)
    return url


def test_a_model_whose_config_has_former_names_predicts_the_same(detector, tmp_path):
    former = tmp_path / "model"
    shutil.copytree(detector, former)
    config = json.loads((former / "config.json").read_text())
    config["most"], config["crop_share"] = config.pop("max_detections"), config.pop("crop_fraction")
    (former / "config.json").write_text(json.dumps(config))
    image = drawn(True)
    (found,), (wanted,) = load_model(str(former)).predict(image), load_model(detector).predict(image)
    assert len(found) == 10 and list(found) == list(wanted)


def test_a_detector_follows_boxes_through_a_video(detector, video, tmp_path):
    pytest.importorskip("trackers", reason="OpenCV in it needs libGL", exc_type=ImportError)
    out = tmp_path / "out"
    assert run(detector, video, out, "--track", "--track-score", 0.01, "--draw", "--every", 3) == 0
    records = lines(out / "predictions.jsonl")
    assert len(records) == 10 and {"boxes", "labels", "scores", "tracks"} <= records[0].keys()
    table = pq.read_table(out / "predictions.parquet")
    assert table["boxes"].to_pylist() == [record["boxes"] for record in records]
    with av.open(str(out / "tracks" / "a_video.mp4")) as drawn:
        assert sum(1 for _ in drawn.decode(video=0)) == 10
    assert (out / "tracks" / "a_video.txt").exists() and len(list((out / "drawn").iterdir())) == 10
