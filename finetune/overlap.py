"""Validation images that are training images: they flatter the metrics, so they are counted and reported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster import storage
from pretrain.data.hashing import image_digest
from pretrain.data.reading.manifest import Manifest
from pretrain.data.reading.shards import Shards, read_in_sequence

MAX_ROWS = 20_000  # of either data set: to read all of a large one would hold up the start
MAX_BYTES_HERE, MAX_BYTES_AWAY = 256 * 2**20, 32 * 2**20


@dataclass(frozen=True)
class Overlap:
    """Of so many validation rows `num` are, byte by byte, among so many training rows;
    `first` says where one lies.
    """

    num: int
    num_validation: int
    num_train: int
    first: str = ""

    def __str__(self) -> str:
        return (
            f"{self.num:,} of {self.num_validation:,} validation rows that were looked at are equal to "
            f"training rows ({self.num_train:,} looked at; first: {self.first}); the model has seen them, "
            "so its scores will be too high"
        )

    def as_json(self) -> dict[str, Any]:
        """For result.json."""
        return {"equal": self.num, "validation_rows": self.num_validation, "training_rows": self.num_train}


_found: dict[tuple[str, str, str], Overlap] = {}  # a run asks at its start and again for its result


def overlap(train: Manifest, validation: Manifest, *, image_column: str) -> Overlap:
    """Compares images by their bytes: all rows, or of large data sets whole
    row groups spread evenly over them.
    """
    key = train.fingerprint, validation.fingerprint, image_column
    if key not in _found:
        known = {digest for digest, _ in _digests(train, image_column)}
        looked = list(_digests(validation, image_column))
        same = [location for digest, location in looked if digest in known]
        _found[key] = Overlap(len(same), len(looked), len(known), same[0] if same else "")
    return _found[key]


def _digests(manifest: Manifest, image_column: str) -> Iterator[tuple[bytes, str]]:
    """Digest and location of each row that holds an image, of those that are looked at."""
    max_bytes = MAX_BYTES_HERE if storage.is_local(manifest.files[0].url) else MAX_BYTES_AWAY
    bytes_a_row = max(1.0, float(manifest.bytes_of_group.sum()) / max(1, manifest.num_rows))
    shards = Shards(
        manifest.sample(max(1, int(min(MAX_ROWS, max_bytes / bytes_a_row)))), image_column=image_column
    )
    for rows in read_in_sequence(shards):
        for row_id, data in zip(rows.row_ids, rows.images, strict=True):
            if data is not None:
                yield image_digest(data), str(shards.location(row_id))
