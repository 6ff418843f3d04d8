"""Writes videos: frames one after the other into a file that players can read."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from finetune.predicting.sources import load_av


class VideoWriter:
    """Writes an MP4 (H.264) of frames uint8 [H, W, 3] of one size. Use as a context manager."""

    def __init__(self, path: Path, *, frame_rate: float) -> None:
        self._path, self._rate = path, Fraction(frame_rate).limit_denominator(1001)
        self._container: Any = None

    def __enter__(self) -> Self:
        self._av = load_av()
        self._container = self._av.open(str(self._path), "w")
        self._stream: Any = None
        return self

    def write(self, pixels_HW3: np.ndarray) -> None:
        """Adds a frame. An odd side loses its last line, which H.264 cannot hold."""
        height, width = (side // 2 * 2 for side in pixels_HW3.shape[:2])
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        frame = self._av.VideoFrame.from_ndarray(
            np.ascontiguousarray(pixels_HW3[:height, :width]), format="rgb24"
        )
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stream is not None and kind is None:
            for packet in self._stream.encode():
                self._container.mux(packet)
        self._container.close()
