"""A teacher at work: in what precision, in what order of channels, and how many images at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pretrain.data.views.augment import normalised
from pretrain.encoders.teaching import Teacher, TeacherOutput

IMAGES_PER_PASS, IMAGES_PER_PASS_OF_CPU = 128, 8  # a CPU takes half the time where activations stay small


class Look:
    """A teacher on a device.

    Args:
        teacher: is moved there.
        device: that computes.
        dtype: in which an accelerator does, by default that of the teacher's weights;
            a CPU computes in float32.
    """

    def __init__(self, teacher: Teacher, device: torch.device, *, dtype: torch.dtype | None = None) -> None:
        self.teacher, self.device = teacher, device
        # the order of channels in which both CPUs and accelerators convolve fastest
        teacher.network.to(device).to(memory_format=torch.channels_last)
        self.images_per_pass = IMAGES_PER_PASS_OF_CPU if device.type == "cpu" else IMAGES_PER_PASS
        # a CPU computes in float32, whatever the weights were stored in
        self._dtype = (dtype or teacher.dtype) if device.type != "cpu" else torch.float32
        if device.type == "cpu":
            teacher.network.float()

    def __call__(self, pixels_BCSS: np.ndarray) -> TeacherOutput:
        """The teacher's features of uint8 images [B, C, S, S], in float32."""
        return self.at(normalised(pixels_BCSS.copy(), self.device, self.teacher.mean, self.teacher.std))

    @torch.no_grad()
    def at(self, images_BCHW: Tensor) -> TeacherOutput:
        """The teacher's features of images normalised as it expects, in float32."""
        images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            output = self.teacher.network(images_BCHW)
        return TeacherOutput(output.pooled_BD.float(), [output_map.float() for output_map in output.maps])
