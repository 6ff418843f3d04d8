"""What a folder of features says about itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cluster import storage
from cluster.errors import UserError
from pretrain.data.reading.feature_layout import (
    COMPONENTS,
    DESCRIPTION,
    FORMAT_VERSION,
    STATISTICS,
)
from pretrain.data.reading.feature_statistics import read_tensors


@dataclass(frozen=True)
class MapShape:
    """Of stored maps, `channels` x `cells` x `cells`; `explained`: the share of the variance kept."""

    channels: int
    cells: int
    explained: float


@dataclass(frozen=True, eq=False)
class Description:
    """What a folder of features says about itself.

    Attributes:
        url: of the folder.
        dim: of pooled features.
        maps: None where there are none.
        rows: of the data, bad ones included.
        teacher: name, weights_sha256, licence, dim and input_size, see
            `pretrain.encoders.teaching.Teacher.described`.
        images: how the teacher saw them: `size` in pixels, `whole_image`, `crop_share`.
        fingerprint: hex, of features.json, which changes with data, teacher and everything else.
        content: features.json.
    """

    url: str
    dim: int
    maps: MapShape | None
    rows: int
    teacher: dict[str, Any]
    images: dict[str, Any]
    fingerprint: str
    content: dict[str, Any]

    @cached_property
    def statistics(self) -> dict[str, np.ndarray]:
        """Of the pooled features of all rows, float32, see
        `pretrain.data.reading.feature_statistics.pooled_statistics`.

        `mean` [D], `deviation` [D], `eigenvectors` [D, K], `deviations` [K], `variance` [1].
        """
        return read_tensors(storage.join(self.url, STATISTICS))

    @cached_property
    def map_components(self) -> dict[str, np.ndarray]:
        """The PCA of the maps, see `pretrain.encoders.map_components.MapComponents`; there must be maps.

        `mean` [C], `components` [C, channels], `deviations` [channels], `scale` [1], `explained` [1]: what
        is stored is `(map - mean) @ components / scale`.
        """
        return read_tensors(storage.join(self.url, COMPONENTS))


def describe_features(url: str) -> Description:
    """What a folder of features holds. Raises UserError for none, an unfinished one or another format."""
    url = storage.absolute(url)
    description_url = storage.join(url, DESCRIPTION)
    if not storage.exists(description_url):
        there = storage.names_in(url)
        if "job.json" in there:
            raise UserError(
                f"{url}: the features are not finished, {DESCRIPTION} is missing; run embed again"
            )
        raise UserError(
            f"{url} is not a folder of features: it holds no {DESCRIPTION} (there: "
            f"{', '.join(there[:8]) or 'nothing'}); make one with: python -m pretrain embed TEACHER DATA OUT"
        )
    text = storage.read_bytes(description_url)
    try:
        content = json.loads(text)
        if (version := content["format_version"]) != FORMAT_VERSION:
            raise UserError(
                f"{description_url} has format version {version!r}, this program reads version "
                f"{FORMAT_VERSION}; run embed again into an empty folder"
            )
        maps = content["maps"]
        if maps is not None:
            maps = MapShape(int(maps["channels"]), int(maps["cells"]), float(maps["explained"]))
        return Description(
            url=url,
            dim=int(content["dim"]),
            maps=maps,
            rows=int(content["rows"]),
            teacher=dict(content["teacher"]),
            images=dict(content["images"]),
            fingerprint=hashlib.sha256(text).hexdigest(),
            content=content,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{description_url} is damaged ({error!r}); run embed again into an empty folder"
        ) from error
