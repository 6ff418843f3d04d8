"""What is drawn for the colours of views, as a pure function of (seed, pass
over the data set, row id, view).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pretrain.data.hashing import uniform
from pretrain.data.views import colour_kernels as kernels
from pretrain.data.views.recipes import ViewSpec

COLOUR = 12


@dataclass(frozen=True)
class Colours:
    """What was drawn for one view of a batch; every array has B entries,
    `order_B4` the order of the four jitters.

    `flipped`, `jittered`, `greyed`, `blurred` and `solarized` say which samples an operation is done to;
    `order_B4` numbers brightness, contrast, saturation and hue from 0 to 3.
    """

    flipped: np.ndarray
    jittered: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    order_B4: np.ndarray
    greyed: np.ndarray
    blurred: np.ndarray
    sigma: np.ndarray
    solarized: np.ndarray

    def rows(self, spec: ViewSpec) -> np.ndarray:
        """float32 [B, 12] for `colour_kernels.colour` and `augment.apply_colours`;
        what is not done is -1 or 0.
        """
        rows = np.zeros((len(self.flipped), kernels.NUM_PARAMETERS), np.float32)
        rows[:, :4] = np.where(self.jittered[:, None], self.order_B4, -1)
        for column, values in (
            (kernels.BRIGHTNESS, self.brightness),
            (kernels.CONTRAST, self.contrast),
            (kernels.SATURATION, self.saturation),
            (kernels.HUE, self.hue),
            (kernels.GREY, self.greyed),
            (kernels.SIGMA, np.where(self.blurred, self.sigma, 0)),
            (kernels.SOLARIZE, self.solarized),
            (kernels.SOLARIZE_FIRST, spec.solarize_first),
        ):
            rows[:, column] = values
        return rows

    def changes(self, spec: ViewSpec) -> np.ndarray:
        """Which samples have any colour to be changed, bool [B]."""
        return self.jittered | self.greyed | self.blurred | self.solarized


def draw_colours(
    spec: ViewSpec, *, seed: int, passes: np.ndarray, row_ids: np.ndarray, view: int
) -> Colours:
    """Draws the parameters of view number `view` of the rows, int64 [B], in their passes, int64 [B]."""
    u = uniform(
        COLOUR, seed, np.asarray(passes)[:, None], np.asarray(row_ids)[:, None], view, np.arange(14)
    ).T

    def factor(draw: np.ndarray, strength: float) -> np.ndarray:
        low = max(0.0, 1.0 - strength)
        return low + (1.0 + strength - low) * draw

    return Colours(
        flipped=u[0] < spec.flip,
        jittered=u[1] < spec.jitter,
        brightness=factor(u[2], spec.brightness),
        contrast=factor(u[3], spec.contrast),
        saturation=factor(u[4], spec.saturation),
        hue=spec.hue * (2 * u[5] - 1),
        order_B4=np.argsort(u[6:10], axis=0, kind="stable").T,
        greyed=u[10] < spec.grey,
        blurred=u[11] < spec.blur,
        sigma=spec.blur_sigma[0] + (spec.blur_sigma[1] - spec.blur_sigma[0]) * u[12],
        solarized=u[13] < spec.solarize,
    )
