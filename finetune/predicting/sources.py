"""Images to predict for, one by one: image files, folders, globs, Parquet shards, frames of videos."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster import storage
from cluster.errors import UserError
from finetune.image_inputs import encoded, pixels_of
from pretrain.data.images.frames import animation, num_frames
from pretrain.data.reading.manifest import IMAGE_SUFFIXES, load_manifest
from pretrain.data.reading.shards import Shards, read_in_sequence

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg")
PARQUET = (".parquet", ".pq")
ANIMATED_SUFFIXES = (".gif", ".webp", ".png", ".apng", ".avif")


@dataclass(frozen=True)
class Item:
    """An image to predict for.

    Attributes:
        source: the file it comes from.
        index: its number in the input: of an image among the images, the frame of a video or an animated
            image, the row of the data set.
        seconds: since the video's start; None where there is no time.
        data: an encoded image, or the pixels uint8 [H, W, 3] of a frame; None where a row holds no image.
    """

    source: str
    index: int
    seconds: float | None
    data: Any

    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3], the right way up. Raises BadImage."""
        return self.data if isinstance(self.data, np.ndarray) else pixels_of(bytes(self.data))

    def encoded(self, channels: int) -> bytes:
        """The bytes of an image file; of a frame, those of a file with its pixels."""
        return encoded(self.data, channels) if isinstance(self.data, np.ndarray) else bytes(self.data)


@dataclass(frozen=True)
class Clip:
    """Images that belong together: a video, a data set, or the images that an input names, in order.

    Attributes:
        name: of the input.
        kind: `images`, `animation`, `parquet` or `video`.
        urls: of its files.
        num_items: of its images, where that is known beforehand.
        animated: how many images of which only the first frame was taken, in a list of one.
    """

    name: str
    kind: str
    urls: tuple[str, ...]
    num_items: int | None
    animated: list[int] = field(default_factory=lambda: [0], compare=False)

    def items(
        self, *, image_column: str = "image", fps: float | None = None, every: int = 1
    ) -> Iterator[Item]:
        """Its images in order, every so many of them.

        `fps` gives images a time. Raises UserError for a video that cannot be opened;
        a damaged end of one is left out.
        """
        if self.kind == "images":
            for index, url in enumerate(self.urls[::every]):
                seconds = None if fps is None else index * every / fps
                data = storage.read_bytes(url)
                self.animated[0] += url.lower().endswith(ANIMATED_SUFFIXES) and num_frames(data) > 1
                yield Item(url, index * every, seconds, data)
        elif self.kind == "animation":
            for url in self.urls:
                for index, (seconds, pixels_HW3) in enumerate(animation(storage.read_bytes(url))):
                    if index % every == 0:
                        yield Item(url, index, seconds, pixels_HW3)
        elif self.kind == "parquet":
            yield from self._rows(image_column, every)
        else:
            for url in self.urls:
                yield from _frames(url, every)

    def _rows(self, image_column: str, every: int) -> Iterator[Item]:
        manifest = load_manifest(list(self.urls), columns=[image_column], image_column=image_column)
        shards = Shards(manifest, image_column=image_column)
        for rows in read_in_sequence(shards):
            for row_id, image in zip(rows.row_ids, rows.images, strict=True):
                if row_id % every == 0:
                    yield Item(shards.location(row_id).file, row_id, None, image)


def find_clips(inputs: Sequence[str], *, image_column: str = "image", frames: bool = False) -> list[Clip]:
    """What the inputs name: files, folders, globs, data sets, in any store.
    With `frames` each animated image is a clip.

    Raises UserError for an input that names no image.
    """
    clips: list[Clip] = []
    for given in inputs:
        files = [file.url for file in storage.find_files(given, "")]
        images = tuple(url for url in files if url.lower().endswith(IMAGE_SUFFIXES))
        shards = tuple(url for url in files if url.lower().endswith(PARQUET))
        videos = [url for url in files if url.lower().endswith(VIDEO_SUFFIXES)]
        moving = {url: num for url in images if frames and (num := _num_animated(url)) > 1}
        images = tuple(url for url in images if url not in moving)
        clips.extend(Clip(url, "animation", (url,), num) for url, num in moving.items())
        if images:
            clips.append(Clip(given, "images", images, len(images)))
        if shards:
            manifest = load_manifest(list(shards), columns=[image_column], image_column=image_column)
            clips.append(Clip(given, "parquet", shards, manifest.num_rows))
        clips.extend(Clip(url, "video", (url,), _num_frames(url)) for url in videos)
        if not (images or shards or videos or moving):
            if not files:
                raise UserError(
                    f"{given} does not exist or is empty; give images, folders, globs, Parquet or videos"
                )
            raise UserError(
                f"{given} holds no image, Parquet file or video (there: {', '.join(files[:3])}); known "
                f"endings are {', '.join((*IMAGE_SUFFIXES, *PARQUET, *VIDEO_SUFFIXES))}"
            )
    return clips


def _num_animated(url: str) -> int:
    """Frames of an image file of a kind that can have several."""
    return num_frames(storage.read_bytes(url)) if url.lower().endswith(ANIMATED_SUFFIXES) else 1


def load_av() -> Any:
    """PyAV. Raises UserError where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise UserError("videos need the package av: pip install 'fovea[video]'") from error
    av.logging.set_level(av.logging.PANIC)  # what is wrong with a video is said by us
    return av


def open_video(url: str) -> Any:
    """A video as PyAV opens it. Raises UserError for what is none."""
    av = load_av()
    try:
        container = av.open(
            storage.local_path(url) if storage.is_local(url) else io.BytesIO(storage.read_bytes(url))
        )
        if not container.streams.video:
            raise UserError(f"{url} holds no video stream")
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"{url} cannot be read as a video: {error}") from error
    return container


def _num_frames(url: str) -> int | None:
    with open_video(url) as container:
        return int(container.streams.video[0].frames) or None


def frame_rate(url: str) -> float:
    """Frames of a video a second; 25 where it does not say."""
    with open_video(url) as container:
        rate = container.streams.video[0].average_rate
    return float(rate) if rate else 25.0


def _frames(url: str, every: int) -> Iterator[Item]:
    av = load_av()
    with open_video(url) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        try:
            for index, frame in enumerate(container.decode(stream)):
                if index % every == 0:
                    seconds = float(frame.time) if frame.time is not None else None
                    # a phone that is held upright records lying down and says so
                    turns = round(getattr(frame, "rotation", 0) / 90) % 4
                    pixels_HW3 = frame.to_ndarray(format="rgb24")
                    yield Item(url, index, seconds, np.ascontiguousarray(np.rot90(pixels_HW3, turns)))
        except av.FFmpegError:  # a video that was cut off: what came before counts
            return
