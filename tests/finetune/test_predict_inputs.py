"""Inputs of `predict` that are not one upright image each:
turned videos, animated images, several data sets, huge photos.
"""

import io
import json

import av
import numpy as np
import pytest
from PIL import Image

from cluster.errors import run_command
from cluster.lease import HELD, held_folder
from finetune.__main__ import main
from finetune.predicting.sources import find_clips
from pretrain.data.images import decode, pixels
from pretrain.data.images.decode import BadImage, decode_image, set_max_pixels
from pretrain.data.images.frames import animation, num_frames
from pretrain.data.reading.image_paths import use_image_root
from tests.finetune.test_export_model import a_model
from tests.pretrain.shards import encoded, photo, write_by_path, write_shards


@pytest.fixture(autouse=True)
def usual_limit():
    yield
    set_max_pixels(None)


def test_a_video_of_a_phone_that_is_held_upright_is_upright(tmp_path):
    still = np.zeros((48, 96, 3), np.uint8)
    still[:, :48] = 255  # coded lying: bright at the left
    for rotation in (0, 90, 180, -90):
        path = tmp_path / f"{rotation}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 96, 48, "yuv420p"
            if rotation:
                stream.set_display_rotation(rotation)
            for _ in range(3):
                for packet in stream.encode(av.VideoFrame.from_ndarray(still, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
        (clip,) = find_clips([str(path)])
        shown = next(item.pixels() for item in clip.items())
        with av.open(str(path)) as container:
            told = next(container.decode(video=0)).rotation
        wanted = np.rot90(still, told // 90)
        assert abs(told) == abs(rotation) and shown.shape == wanted.shape
        assert np.abs(shown.astype(int) - wanted).mean() < 20


def animated(num, form="GIF"):
    frames = [Image.new("RGB", (20, 16), (10 * number, 200 - 10 * number, 40)) for number in range(num)]
    buffer = io.BytesIO()
    more = {"lossless": True} if form == "WEBP" else {}
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], duration=100, **more)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_frames_of_animated_images(form):
    data = animated(4, form)
    assert num_frames(data) == 4 and num_frames(encoded(3)) == 1 and num_frames(b"garbage") == 1
    frames = list(animation(data))
    assert [round(seconds, 3) for seconds, _ in frames] == [0, 0.1, 0.2, 0.3]
    for number, (_, pixels_HW3) in enumerate(frames):
        assert np.abs(pixels_HW3.astype(int) - (10 * number, 200 - 10 * number, 40)).max() <= 8
    with pytest.raises(BadImage):
        list(animation(b"garbage"))


def records(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_animated_images_give_their_frames_where_asked_and_a_note_where_not(tmp_path, capsys):
    model, photos = a_model(tmp_path, "full"), tmp_path / "photos"
    photos.mkdir()
    (photos / "moving.gif").write_bytes(animated(3))
    (photos / "still.png").write_bytes(encoded(5, size=(20, 16)))
    assert run_command(lambda: main(["predict", model, str(photos), str(tmp_path / "a")])) == 0
    assert (
        "1 images are animated, and only their first frame was looked at; --frames"
        in capsys.readouterr().out
    )
    assert len(records(tmp_path / "a")) == 2
    assert run_command(lambda: main(["predict", model, str(photos), str(tmp_path / "b"), "--frames"])) == 0
    assert "images are animated" not in capsys.readouterr().out
    found = [
        (one["source"].rpartition("/")[2], one["index"], one["seconds"]) for one in records(tmp_path / "b")
    ]
    assert sorted(found[:3]) == [("moving.gif", 0, 0.0), ("moving.gif", 1, 0.1), ("moving.gif", 2, 0.2)]
    assert len(found) == 4


def test_a_limit_of_pixels_and_a_reduced_size(tmp_path, capsys, monkeypatch):
    data = photo(3, side=64)
    set_max_pixels(4000)
    with pytest.raises(BadImage, match="too large: 64x64"):
        decode_image(data)
    with pytest.raises(BadImage, match="too large"):
        pixels.open_image(data)
    set_max_pixels(None)
    assert decode.max_pixels_now() == 100_000_000
    # what is allowed beyond the usual limit is never held at its whole size
    monkeypatch.setattr(pixels, "MAX_PIXELS", 1500)
    image = pixels.open_image(data)
    assert image.decode(1).shape[1:3] == (32, 32) and image.decode(8).shape[1:3] == (8, 8)
    monkeypatch.undo()
    model, path = a_model(tmp_path, "full"), tmp_path / "photo.jpg"
    path.write_bytes(data)
    told = ["predict", model, str(path), str(tmp_path / "out"), "--max-megapixels", "0.004"]
    assert run_command(lambda: main(told)) == 2
    assert "none of 1 images could be decoded" in capsys.readouterr().err
    assert records(tmp_path / "out")[0]["error"] == "too large: 64x64 pixels"
    assert run_command(lambda: main([*told[:3], str(tmp_path / "b"), "--max-megapixels", "1"])) == 0
    assert run_command(lambda: main([*told[:3], str(tmp_path / "c"), "--max-megapixels", "0"])) == 2


def test_rows_of_two_data_sets_count_alike_with_and_without_workers(tmp_path):
    from cluster.batch.jobs import Machines
    from finetune.model import load_model
    from finetune.predicting.command import parser, write_records
    from finetune.predicting.spread import job_of, predict_shards

    model = a_model(tmp_path, "full")
    inputs = [
        write_shards(
            tmp_path / name, [encoded(number, size=(16, 16)) for number in numbers], rows_per_file=6
        )
        for name, numbers in (("one", range(10)), ("two", range(20, 27)))
    ]
    assert run_command(lambda: main(["predict", model, *inputs, str(tmp_path / "here")])) == 0
    clips, there = find_clips(inputs), str(tmp_path / "there")
    machines = Machines(workers=0)
    predictor = load_model(model)
    job, manifest = job_of(predictor, model, clips, there, machines, image_column="image")
    stream = predict_shards(job, manifest, clips, machines)
    assert write_records(parser().parse_args([model, *inputs, there]), predictor, stream, [], 17) == (17, 0)
    here, spread = records(tmp_path / "here"), records(tmp_path / "there")
    assert [(one["source"], one["index"]) for one in here] == [
        (one["source"], one["index"]) for one in spread
    ]
    assert [one["index"] for one in here] == [*range(10), *range(7)]


def test_two_commands_do_not_write_into_one_folder(tmp_path, capsys):
    model, out = a_model(tmp_path, "full"), tmp_path / "out"
    (tmp_path / "a.png").write_bytes(encoded(5, size=(20, 16)))
    command = ["predict", model, str(tmp_path / "a.png"), str(out)]
    with held_folder(str(out)):
        assert run_command(lambda: main(command)) == 2
    assert "is in use: process" in capsys.readouterr().err
    (out / HELD).write_text("half a li")  # what a killed command leaves is no prediction
    assert run_command(lambda: main(command)) == 0
    assert not (out / HELD).exists()


def test_images_that_a_data_set_names_by_path(tmp_path):
    write_by_path(tmp_path, 3)
    model = a_model(tmp_path / "made", "full")
    words = ["predict", str(model), str(tmp_path / "data")]
    assert run_command(lambda: main([*words, str(tmp_path / "nothing")])) == 2
    try:
        told = [*words, str(tmp_path / "out"), "--image-root", str(tmp_path / "photos")]
        assert run_command(lambda: main(told)) == 0
    finally:
        use_image_root(None)
    words[2] = str(tmp_path / "photos")
    assert run_command(lambda: main([*words, str(tmp_path / "wanted")])) == 0
    found, wanted = (
        [
            record["scores"]
            for record in map(json.loads, (tmp_path / name / "predictions.jsonl").read_text().splitlines())
        ]
        for name in ("out", "wanted")
    )
    assert found == wanted and len(found) == 3
