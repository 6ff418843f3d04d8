"""Any timm network under the encoder contract."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cluster.errors import UserError, nearest
from pretrain.encoders.base import Attention, Encoder

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
        self._attention = _attention_over_patches(network)
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
        """The attention over all patches of ViTs and their kin (DINOv3, EVA, BEiT), by timm's names; none of windows."""
        return dict(self._attention)

    def attention_of(
        self, layer: Any, inputs: tuple[Any, ...], options: dict[str, Any], images_BCHW: Tensor
    ) -> Attention:
        """By timm's own unfused path, so that rotary positions, biases and norms of queries are in the weights."""
        network: Any = self.network
        weights: list[Tensor] = []
        hook = layer.attn_drop.register_forward_pre_hook(lambda _, dropped: weights.append(dropped[0]))
        fused, layer.fused_attn = layer.fused_attn, False
        try:
            layer.forward(*inputs, **options)
        finally:
            layer.fused_attn = fused
            hook.remove()
        height, width = (side // self.strides[-1] for side in images_BCHW.shape[2:])
        num_extra = weights[0].shape[-1] - height * width
        has_class = num_extra > 0 and getattr(network.model, "cls_token", None) is not None
        return Attention(weights[0], (height, width), num_extra=num_extra, has_class=has_class)


def _attention_over_patches(network: nn.Module) -> dict[str, nn.Module]:
    """Attention modules of a network that keeps one sequence of patches from end to end and can do without its fused kernel."""
    if not hasattr(getattr(network, "model", None), "num_prefix_tokens"):
        return {}
    return {
        name: module
        for name, module in network.named_modules()
        if hasattr(module, "fused_attn") and isinstance(getattr(module, "attn_drop", None), nn.Dropout)
    }


def _group(parameter_name: str) -> str:
    """`network.stages_1.blocks.0.conv.weight` -> `network.stages_1.blocks.0`: up to the last number, or the module."""
    parts = parameter_name.split(".")[:-1]
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[:2])


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
