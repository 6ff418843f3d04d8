"""What in an image is evidence for a class: Grad-CAM and integrated gradients, by captum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cluster.errors import UserError
from pretrain.encoders import Encoder
from pretrain.encoders.attention_maps import eval_mode

STEPS = 32  # of the integral


@runtime_checkable
class HasLogits(Protocol):
    """A task model whose head gives a logit a class of the encoder's maps."""

    encoder: Encoder

    def logits_of(self, maps: list[Tensor]) -> Tensor:
        """[B, num_classes]."""


def grad_cam(model: nn.Module, images_BCHW: Tensor, classes_B: Tensor) -> Tensor:
    """Grad-CAM (https://arxiv.org/abs/1610.02391) on the encoder's last map:
    [B, H, W] of that map, not negative.

    With a linear head on the pooled map it is exactly what each position adds to the logit, where that is
    positive, up to a factor.

    Raises UserError for a model without logits, or where captum is not installed.
    """
    attr = _captum()
    network = _Differentiable(model)
    with eval_mode(model), torch.enable_grad():
        # a frozen encoder's maps have a gradient only by way of the images
        images = images_BCHW.detach().clone().requires_grad_()
        heat_B1HW: Tensor = attr.LayerGradCam(network, network.last_map).attribute(
            images, target=classes_B, relu_attributions=True
        )
    return heat_B1HW.detach()[:, 0]


def integrated_gradients(model: nn.Module, images_BCHW: Tensor, classes_B: Tensor) -> Tensor:
    """Integrated gradients (https://arxiv.org/abs/1703.01365) from a grey image, [B, H, W] of the image's
    pixels: the size of what each pixel adds to the logit, over its channels.

    Raises UserError for a model without logits, or where captum is not installed.
    """
    attr = _captum()
    network = _Differentiable(model)
    with eval_mode(model), torch.enable_grad():
        # zero is the mean colour of the training data
        fractions_BCHW: Tensor = attr.IntegratedGradients(network).attribute(
            images_BCHW.detach(),
            target=classes_B,
            n_steps=STEPS,
            internal_batch_size=max(STEPS, len(images_BCHW)),
        )
    return fractions_BCHW.detach().sum(1).abs()


# what a map is called -> its function
CLASS_MAPS: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "Grad-CAM": grad_cam,
    "integrated gradients": integrated_gradients,
}


class _LastMap(nn.Module):
    """The encoder's last map as a module's output, for captum to hook; the maps before it are kept."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.before: list[Tensor] = []

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """[B, C, H, W]."""
        *self.before, last = self.encoder(images_BCHW)
        return last


class _Differentiable(nn.Module):
    """A task model's logits with gradient, also where its encoder is frozen."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, HasLogits):
            raise UserError("class maps need a model with classes; this one has none")
        self.model: Any = model
        self.last_map = _LastMap(model.encoder)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """[B, num_classes]."""
        last = self.last_map(images_BCHW)
        logits: Tensor = self.model.logits_of([*self.last_map.before, last])
        return logits


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise UserError("class maps need captum: pip install 'fovea[explain]'") from error
    return captum.attr
