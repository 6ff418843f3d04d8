"""Statistics of features over a whole data set, and the principal components that maps are reduced to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import safetensors.numpy

from cluster import storage
from cluster.errors import UserError
from cluster.secrets import masked
from pretrain.data.reading.feature_layout import DESCRIPTION, FEATURES, FORMAT_VERSION, STATISTICS, as_rows
from pretrain.data.reading.manifest import Manifest

MAX_COMPONENTS = 256


class Moments:
    """Mean and covariance of vectors that come in pieces, in float64."""

    def __init__(self, dim: int) -> None:
        self.num = 0
        # near the mean, so that nothing is lost when its square is taken away
        self._shift_D: np.ndarray | None = None
        self._sum_D, self._products_DD = np.zeros(dim), np.zeros((dim, dim))

    def add(self, vectors_BD: np.ndarray) -> None:
        """Takes in some vectors."""
        if not len(vectors_BD):
            return
        exact_BD = vectors_BD.astype(np.float64)
        if self._shift_D is None:
            self._shift_D = exact_BD.mean(0)
        exact_BD -= self._shift_D
        self.num += len(exact_BD)
        self._sum_D += exact_BD.sum(0)
        self._products_DD += exact_BD.T @ exact_BD

    def mean_and_covariance(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [D] and [D, D], of the population; at least one vector must have come."""
        assert self._shift_D is not None
        mean_D = self._sum_D / self.num
        return mean_D + self._shift_D, self._products_DD / self.num - np.outer(mean_D, mean_D)


def principal(covariance_DD: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvectors [D, K] of the largest eigenvalues, and those [K], falling;
    the largest number of each is positive.
    """
    values, vectors = np.linalg.eigh(covariance_DD)
    values_K, vectors_DK = values[::-1][:num].clip(0), vectors[:, ::-1][:, :num]
    largest = np.abs(vectors_DK).argmax(0)
    return vectors_DK * np.where(
        vectors_DK[largest, np.arange(vectors_DK.shape[1])] < 0, -1.0, 1.0
    ), values_K


def pooled_statistics(part_urls: Sequence[str], *, dim: int) -> tuple[dict[str, np.ndarray], int]:
    """Statistics of the pooled features of all parts, float32, and how many rows have features.

    `mean` [D], `deviation` [D], `eigenvectors` [D, K] of the covariance with K <= 256, `deviations` [K]
    along them, and `variance` [1], the sum over all dimensions.
    One part at a time is in memory, and three matrices [D, D].
    """
    moments = Moments(dim)
    for part_BD in _features_of_parts(part_urls):
        moments.add(part_BD)
    if not moments.num:
        raise UserError("no image could be decoded, so there are no features; bad_rows.jsonl says why")
    mean_D, covariance_DD = moments.mean_and_covariance()
    vectors_DK, values_K = principal(covariance_DD, min(MAX_COMPONENTS, dim, max(1, moments.num - 1)))
    statistics = {
        "mean": mean_D,
        "deviation": np.sqrt(covariance_DD.diagonal().clip(0)),
        "eigenvectors": vectors_DK,
        "deviations": np.sqrt(values_K),
        "variance": covariance_DD.trace().reshape(1),
    }
    return {name: np.ascontiguousarray(value, np.float32) for name, value in statistics.items()}, moments.num


def _features_of_parts(urls: Sequence[str]) -> Iterator[np.ndarray]:
    def read(url: str) -> np.ndarray:
        with storage.open_input(url) as file:
            column = pq.ParquetFile(file).read(columns=[FEATURES]).column(0)
        return np.concatenate([rows[good] for rows, good in map(as_rows, column.chunks)])

    with ThreadPoolExecutor(1, thread_name_prefix="parts") as ahead:
        following = ahead.submit(read, urls[0])
        for url in [*urls[1:], None]:
            part_BD = following.result()
            if url is not None:
                following = ahead.submit(read, url)
            yield part_BD


def write_description(
    out: str,
    parts: Sequence[str],
    *,
    manifest: Manifest,
    data_urls: Sequence[str],
    rows_per_part: int,
    teacher: Mapping[str, Any],
    maps: Mapping[str, Any] | None,
    images: Mapping[str, Any],
) -> None:
    """Writes the statistics of finished parts, and then features.json, which says that nothing is missing.

    Args:
        out: folder of the parts.
        parts: their names, sorted.
        manifest, data_urls: of the data.
        rows_per_part: that the parts were made with.
        teacher: as it describes itself; `dim` is that of the features.
        maps: `cells`, `channels` and `explained` of the maps, if there are any.
        images: how the teacher saw them.
    """
    statistics, num_good = pooled_statistics(
        [storage.join(out, part) for part in parts], dim=int(teacher["dim"])
    )
    storage.write_bytes(storage.join(out, STATISTICS), safetensors.numpy.save(statistics))
    sizes = {file.url.rsplit("/", 1)[-1]: file.size_bytes for file in storage.find_files(out, ".parquet")}
    rows_of_source = np.bincount(manifest.source_of_group, weights=manifest.rows_of_group)
    described = {
        "format_version": FORMAT_VERSION,
        "fingerprint": manifest.fingerprint,
        "rows": manifest.num_rows,
        "good_rows": num_good,
        "data": [
            {"url": masked(url), "rows": int(rows), "fingerprint": fingerprint}
            for url, rows, fingerprint in zip(
                data_urls, rows_of_source, manifest.source_fingerprints, strict=True
            )
        ],
        "teacher": dict(teacher),
        "dim": int(teacher["dim"]),
        "maps": maps,
        "images": dict(images),
        "rows_per_part": rows_per_part,
        "part_bytes": [sizes[part] for part in parts],
    }
    storage.write_json(storage.join(out, DESCRIPTION), described)


def read_tensors(url: str) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file. Raises UserError when it is missing or damaged."""
    return tensors_in(storage.read_bytes(url), url)


def tensors_in(content: bytes, url: str) -> dict[str, np.ndarray]:
    """The arrays of what a safetensors file holds.
    Raises UserError that names the file when it is damaged.
    """
    try:
        return dict(safetensors.numpy.load(content))
    except Exception as error:
        raise UserError(f"{url} is damaged ({error}); remove it and run embed again") from error
