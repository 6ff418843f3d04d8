"""Any timm network under the encoder contract."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cluster.errors import UserError, nearest
from pretrain.encoders.base import Encoder

# what makes timm's transformers take images of any size (whole patches, for ViTs); an argument of the same name overrides it
ANY_SIZE_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("vision_transformer", {"dynamic_img_size": True}),
    ("deit", {"dynamic_img_size": True}),
    ("eva", {"dynamic_img_size": True}),
    ("swin_transformer", {"strict_img_size": False}),
    ("swin_transformer_v2", {"strict_img_size": False}),
]


class TimmEncoder(Encoder):
    """`timm:NAME`, by timm's own feature extraction.

    Args:
        name: timm's name of the network, without `timm:`.
        in_channels: of the images.
        pretrained: loads timm's weights, which needs network access to the model hub the first time.
        arguments: further keyword arguments of timm.create_model.

    Raises UserError for an unknown name, arguments that the network does not take, or weights that cannot be had.
    """

    def __init__(self, name: str, *, in_channels: int = 3, pretrained: bool = False, **arguments: Any) -> None:
        super().__init__()
        import timm  # takes a second to import, and only this encoder needs it
        from timm.layers.attention import Attention

        bare = name.split(".")[0]
        if not timm.is_model(bare):
            hint = nearest(bare, timm.list_models())
            raise UserError(f"unknown timm network {name!r}{hint} (timm.list_models() names all)")
        for family, option in ANY_SIZE_OPTIONS:
            if timm.models.is_model_in_modules(bare, [family]):
                arguments = option | arguments
        try:
            network = timm.create_model(
                name, features_only=True, in_chans=in_channels, pretrained=pretrained, **arguments
            )
        except (TypeError, ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
            # what timm says of a bad argument, and of a network that has no feature maps
            raise UserError(f"timm:{name} cannot be built: {_first_line(error)}") from error
        except OSError as error:
            raise UserError(
                f"the weights of timm:{name} cannot be loaded: {_first_line(error)}; pretrained=false starts from random ones"
            ) from error
        # weights are saved with the encoder, so building it again must not ask the hub
        self.spec = {"name": f"timm:{name}", "arguments": {"in_channels": in_channels, **arguments}}
        self.network: nn.Module = network
        self.in_channels = in_channels
        info: Any = network.feature_info
        self.channels, self.strides = tuple(info.channels()), tuple(info.reduction())
        self._attention = {key: layer for key, layer in network.named_modules() if isinstance(layer, Attention)}
        groups = list(dict.fromkeys(_group(parameter) for parameter, _ in self.named_parameters()))
        self._layer = {group: index for index, group in enumerate(groups)}
        self.num_layers = len(groups)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """The network's feature maps."""
        maps = self.network(images_BCHW)
        # some networks (Swin and its kin) give channels last
        return [
            m if m.shape[1] == channels else m.permute(0, 3, 1, 2)
            for m, channels in zip(maps, self.channels, strict=True)
        ]

    def layer_of(self, parameter_name: str) -> int:
        """Layers are the network's blocks in the order in which timm registers them."""
        return self._layer[_group(parameter_name)]

    def attention_layers(self) -> dict[str, nn.Module]:
        """The plain attention of ViTs, by timm's names, the class token among queries and keys; no other kind of attention."""
        return dict(self._attention)

    def attention_weights(self, layer: Any, inputs: tuple[Tensor, ...]) -> Tensor:
        """softmax(Q K^T / sqrt(d)) of a timm layer on tokens [B, N, C]: [B, heads, N, N]."""
        batch, num_tokens, _ = inputs[0].shape
        qkv_3BhNd = layer.qkv(inputs[0]).reshape(batch, num_tokens, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = layer.q_norm(qkv_3BhNd[0]), layer.k_norm(qkv_3BhNd[1])
        weights: Tensor = (q @ k.transpose(-2, -1) * layer.scale).softmax(-1)
        return weights


def _group(parameter_name: str) -> str:
    """`network.stages_1.blocks.0.conv.weight` -> `network.stages_1.blocks.0`: up to the last number, or the module."""
    parts = parameter_name.split(".")[:-1]
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[:2])


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
