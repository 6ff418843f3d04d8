"""Any timm network under the encoder contract."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cluster.errors import UserError, nearest
from pretrain.encoders.base import Encoder


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
        try:
            network = timm.create_model(
                name, features_only=True, in_chans=in_channels, pretrained=pretrained, **arguments
            )
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
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
        self._names = [parameter for parameter, _ in self.named_parameters()]
        groups = list(dict.fromkeys(_group(parameter) for parameter in self._names))
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


def _group(parameter_name: str) -> str:
    """`network.stages_1.blocks.0.conv.weight` -> `network.stages_1.blocks.0`: up to the last number, or the module."""
    parts = parameter_name.split(".")[:-1]
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[:2])


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
