"""Decoded images that stay in the host's memory, whatever their sizes, as many as a limit allows:
none is decoded twice.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from pretrain.data.images.decode import BadImage
from pretrain.data.images.pixels import open_image

GIB = 2**30


class KeptImages:
    """Images of a rank that were decoded before. Safe to use from several threads.

    Args:
        limit_bytes: of decoded pixels (four bytes each; of images that are stored decoded, what these take
            on disk); what does not fit is decoded again each time.
        channels: see `pretrain.data.images.pixels.open_image`.
    """

    def __init__(self, limit_bytes: int, *, channels: int = 3) -> None:
        self._limit, self._channels, self._bytes = limit_bytes, channels, 0
        self._images: dict[int, np.ndarray | bytes | BadImage] = {}
        self._lock = threading.Lock()

    def pixels(self, row_id: int, data: Any) -> Any:
        """The pixels of a row if they are kept or can be, else its encoded file as it came.
        Raises BadImage.
        """
        kept = self._images.get(row_id)
        if kept is None:
            if self._bytes >= self._limit:
                return data
            try:
                image = open_image(data, channels=self._channels, fast=True)
                # planes stay planes: crops are cut out of them, and they take less memory than pixels
                kept = bytes(data) if image.planes is not None else image.decode(1).copy()
            except BadImage as error:
                kept = error
            with self._lock:
                if row_id not in self._images:
                    self._images[row_id] = kept
                    self._bytes += 0 if isinstance(kept, BadImage) else _num_bytes(kept)
        if isinstance(kept, BadImage):
            raise BadImage(str(kept))
        return kept


def _num_bytes(kept: np.ndarray | bytes) -> int:
    return len(kept) if isinstance(kept, bytes) else kept.nbytes
