"""What `embed` computes of decoded images: a teacher's pooled features and reduced maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from cluster.batch.jobs import Compute
from cluster.errors import UserError
from pretrain.data.reading.decoded import pixels_of
from pretrain.data.reading.feature_layout import FEATURES, MAPS, as_column
from pretrain.encoders.looking import Look
from pretrain.encoders.map_components import MapComponents, at_cells
from pretrain.encoders.teachers import open_teacher


@dataclass(frozen=True)
class Embedding:
    """Makes features of decoded images; sent to each process that computes,
    where calling it loads the teacher.

    Args:
        teacher: its name.
        size: of the images, in pixels.
        cells: of the maps, one side; 0 for no maps.
        components: that maps are reduced by.
        num_threads: 0 for as many as torch takes.
    """

    teacher: str
    size: int
    cells: int = 0
    components: MapComponents | None = None
    num_threads: int = 0

    def __call__(self) -> Compute:
        """Loads the teacher and gives the function that makes a part of a table."""
        if self.num_threads:
            torch.set_num_threads(self.num_threads)
        look = Look(open_teacher(self.teacher), device_here())

        def compute(table: pa.Table) -> pa.Table:
            good_B = table["pixels"].combine_chunks().is_valid().to_numpy(zero_copy_only=False)
            pixels = pixels_of(table, size=self.size, channels=look.teacher.in_channels)
            columns = self._columns(look, pixels, np.flatnonzero(good_B))
            result = table.drop_columns(["pixels", "checksum"])
            added = {name: as_column(values_BN, good_B) for name, values_BN in columns.items()}
            added["checksum"] = table["checksum"]
            for position, (name, column) in enumerate(added.items()):
                result = result.add_column(position, name, column)
            return result

        return compute

    def _columns(self, look: Look, pixels: np.ndarray, good: np.ndarray) -> dict[str, np.ndarray]:
        """float16 [good rows, N] for each column."""
        parts: dict[str, list[np.ndarray]] = {FEATURES: []}
        for start in range(0, len(good), look.images_per_pass):
            output = look(pixels[good[start : start + look.images_per_pass]])
            parts[FEATURES].append(output.pooled_BD.cpu().numpy())
            if self.components is not None:
                reduced = self.components.reduce(at_cells(output.maps[-1], self.cells))
                parts.setdefault(MAPS, []).append(reduced.flatten(1).cpu().numpy())
        widths = {FEATURES: look.teacher.dim}
        if self.components is not None:
            widths[MAPS] = self.components.channels * self.cells**2
        return {name: self._halves(parts.get(name, []), width) for name, width in widths.items()}

    def _halves(self, parts: list[np.ndarray], width: int) -> np.ndarray:
        exact = np.concatenate(parts) if parts else np.zeros((0, width), np.float32)
        if len(exact) and not np.abs(exact).max() < np.finfo(np.float16).max:  # NaN too
            raise UserError(
                f"the teacher {self.teacher} gives features up to {np.abs(exact).max():g}, which float16 "
                "cannot represent"
            )
        return exact.astype(np.float16)


def device_here() -> torch.device:
    """The device of this process."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
