"""Any timm network under the encoder contract."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from cluster.errors import UserError, first_line
from pretrain.encoders.base import Attention, Encoder
from pretrain.encoders.timm_arguments import check_architecture

# what makes timm's transformers take images of any size (whole patches, for ViTs);
# an argument of the same name overrides it
ANY_SIZE_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("vision_transformer", {"dynamic_img_size": True}),
    ("deit", {"dynamic_img_size": True}),
    ("eva", {"dynamic_img_size": True}),
    ("swin_transformer", {"strict_img_size": False}),
    ("swin_transformer_v2", {"strict_img_size": False}),
]

FEATURES_ONLY = ("out_indices", "output_stride")  # what timm knows of feature extraction alone


def any_size_options(name: str) -> dict[str, Any]:
    """What makes a network take images of other sizes than it was trained on, as far as it can."""
    import timm

    options: dict[str, Any] = {}
    for family, option in ANY_SIZE_OPTIONS:
        if timm.models.is_model_in_modules(name.split(".")[0], [family]):
            options |= option
    return options


def check_timm_name(name: str) -> None:
    """Raises UserError unless timm knows the network: a plain name, perhaps with the tag of its weights."""
    import timm

    bare = name.split(".")[0]
    if re.fullmatch(r"[\w.-]+", name) and timm.is_model(bare):
        return
    near = get_close_matches(bare, timm.list_models(), n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise UserError(f"unknown timm network {name!r}{hint} (timm.list_models() names all)")


def hub_trouble(name: str, error: BaseException) -> UserError:
    """What is said when the model hub does not give a network's weights."""
    return UserError(
        f"the weights of timm:{name} cannot be loaded: {first_line(error)}; without internet, put them in a "
        f"folder as timm writes it (timm:local-dir:FOLDER) or name a file (timm:{name.split('.')[0]}@FILE, "
        ".safetensors or .pth)"
    )


class TimmEncoder(Encoder):
    """`timm:NAME`, by timm's own feature extraction.

    Args:
        name: timm's name of the network, without `timm:`.
        in_channels: of the images.
        pretrained: loads timm's weights, which needs network access to the model hub the first time.
        weights: of the whole network by timm's own names, to begin with.
        arguments: further keyword arguments of timm.create_model, those of `timm_arguments`.

    Raises UserError for an unknown name, arguments that the network does not take,
    or weights that cannot be had.
    """

    def __init__(
        self,
        name: str,
        *,
        in_channels: int = 3,
        pretrained: bool = False,
        weights: Mapping[str, Tensor] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        import timm  # takes a second to import, and only this encoder needs it

        check_timm_name(name)
        check_architecture(f"timm:{name}", arguments)
        arguments = any_size_options(name) | arguments
        more: dict[str, Any] = {}
        if weights is not None:
            known: Any = timm.models.get_pretrained_cfg(name)
            size = (in_channels, *known.input_size[1:])
            more["pretrained_cfg_overlay"] = {
                "state_dict": dict(weights),
                "num_classes": 0,
                "input_size": size,
            }
        try:
            network = timm.create_model(
                name,
                features_only=True,
                in_chans=in_channels,
                pretrained=pretrained or weights is not None,
                **more,
                **arguments,
            )
        except OSError as error:
            raise hub_trouble(name, error) from error
        except (TypeError, ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
            # what timm says of a bad argument, and of a network that has no feature maps
            raise UserError(f"timm:{name} cannot be built: {first_line(error)}") from error
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
        """The attention over all patches of ViTs and their kin (DINOv3, EVA, BEiT), by timm's names;
        none of windows.
        """
        return dict(self._attention)

    def attention_of(
        self, layer: Any, inputs: tuple[Any, ...], options: dict[str, Any], images_BCHW: Tensor
    ) -> Attention:
        """By timm's own unfused path, so that rotary positions,
        biases and norms of queries are in the weights.
        """
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
    """Attention modules of a network that keeps one sequence of patches from end to end
    and can do without its fused kernel.
    """
    if not hasattr(getattr(network, "model", None), "num_prefix_tokens"):
        return {}
    return {
        name: module
        for name, module in network.named_modules()
        if hasattr(module, "fused_attn") and isinstance(getattr(module, "attn_drop", None), nn.Dropout)
    }


def _group(parameter_name: str) -> str:
    """`network.stages_1.blocks.0.conv.weight` -> `network.stages_1.blocks.0`:
    up to the last number, or the module.
    """
    parts = parameter_name.split(".")[:-1]
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[:2])
