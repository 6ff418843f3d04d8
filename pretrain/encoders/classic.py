"""`convattn_classic`: Conv(32), ConvolutionalAttention(32), max-pool;
flatten and dense are the classifier's.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.encoders.base import Encoder, keyword_arguments
from pretrain.encoders.layers import ConvolutionalAttention


class ClassicEncoder(Encoder):
    """One map at half the size of the image.

    Args:
        in_channels: of the images.
        dim: channels of both layers.
        attention, top_k, kv_stride, max_keys: see `pretrain.encoders.layers`.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        dim: int = 32,
        attention: str = "soft",
        top_k: int = 16,
        kv_stride: int = 1,
        max_keys: int = 256,
    ) -> None:
        super().__init__()
        self.spec = {"name": "convattn_classic", "arguments": keyword_arguments(ClassicEncoder, locals())}
        self.in_channels, self.channels, self.strides = in_channels, (dim,), (2,)
        self.num_layers = 2
        self.conv = nn.Conv2d(in_channels, dim, 3, padding=1)
        self.attend = ConvolutionalAttention(
            dim, 1, mode=attention, top_k=top_k, kv_stride=kv_stride, max_keys=max_keys
        )

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """[B, dim, ceil(H / 2), ceil(W / 2)]."""
        attended = F.relu(self.attend(F.relu(self.conv(images_BCHW))))
        return [F.max_pool2d(attended, 2, ceil_mode=True)]

    def layer_of(self, parameter_name: str) -> int:
        """0 for the convolution, 1 for the attention."""
        return 0 if parameter_name.startswith("conv.") else 1

    def attention_layers(self) -> dict[str, nn.Module]:
        """The one attention layer."""
        return {"attend": self.attend}
