"""What methods share: how they call encoders, and momentum copies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.data.reading.loader import Batch
from pretrain.data.views.augment import IMAGENET_MEAN, IMAGENET_STD
from pretrain.encoders import Encoder
from pretrain.encoders.layers import at_least_float32
from pretrain.methods.pieces import Pieces
from pretrain.training.contract import GradientExchange, Trainable
from pretrain.training.distributed import ALONE, Ranks, all_ranks
from pretrain.training.schedules import half_cosine


class Method(Trainable):
    """An encoder and a way to train it; see `pretrain.methods` for the contract.

    Attributes:
        encoder: trained by gradient.
        recipe: views by default, of `pretrain.data.views.recipes`.
        num_views: how many views `forward` takes; None for two or more, the first two of them global.
        constant_rate: prefixes of parameters whose learning rate stays at its peak after the warm-up.
        images_per_pass: images that go through an encoder at once; 0 for all. See `last_map`.
        pieces: when set, the encoder sees the global batch in pieces, and every rank computes the loss of
            all of it; see `pretrain.methods.pieces`.
        stored_features, stored_columns: folder of `python -m pretrain embed` and its columns that are read
            beside the rows.
        learns_from: name, weights and licence of a network outside that is learnt from, for what a run
            leaves.
        normalisation: mean and deviation of each channel by which the views are normalised.
    """

    recipe: str
    num_views: int | None = 2
    constant_rate: tuple[str, ...] = ()
    images_per_pass: int = 0
    pieces: Pieces | None = None
    stored_features: str | None = None
    stored_columns: Sequence[str] = ()
    learns_from: Mapping[str, Any] | None = None
    normalisation: tuple[Sequence[float], Sequence[float]] = (IMAGENET_MEAN, IMAGENET_STD)

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def sees_global_batch(self) -> bool:
        """Whether the encoder sees the global batch in pieces,
        and every rank computes the loss of all of it.
        """
        return self.pieces is not None

    @property
    def ranks(self) -> Ranks:
        """Those that the loss is shared with: none but this where every rank has the whole global batch."""
        return ALONE if self.sees_global_batch else all_ranks()

    def exchange(self) -> GradientExchange:
        """See `Trainable.exchange`."""
        return self.pieces or super().exchange()

    def see_in_pieces(self, num: int) -> None:
        """From now on the encoder sees the global batch in so many pieces, see `pretrain.methods.pieces`."""
        self.pieces = Pieces(num)
        for part in self.modules():
            # lightly's criteria, which would gather what is the whole batch already
            if hasattr(part, "gather_distributed"):
                part.gather_distributed = False  # type: ignore[assignment]

    @property
    def exported(self) -> Encoder:
        """The encoder that a run leaves behind."""
        return self.encoder

    def to_inputs(self, views: list[Tensor], batch: Batch) -> Any:
        """What `forward` takes, of the finished views and the rest of a batch;
        by default the views alone.
        """
        return views

    def last_map(self, images_BCHW: Tensor, encoder: Encoder | None = None) -> Tensor:
        """The last map of an encoder (`self.encoder` by default), [B, C, H, W] in float32 or more.

        With `images_per_pass` the activations of one pass at a time are in memory: a pass keeps its last map
        only and is repeated when its gradient comes, so that a loss over the whole batch stays exact (Gao et
        al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup,
        https://arxiv.org/abs/2101.06983), for the price of one more forward pass.
        """
        return self.last_maps(images_BCHW, 1, encoder)[0]

    def last_maps(self, images_BCHW: Tensor, num: int, encoder: Encoder | None = None) -> list[Tensor]:
        """The last `num` maps of an encoder, finest first; see `last_map`."""
        encoder = encoder or self.encoder
        size = self.images_per_pass
        if not size or len(images_BCHW) <= size:
            return _last_maps(encoder, num, images_BCHW)
        parts = images_BCHW.split(size)
        if not torch.is_grad_enabled():
            passes = [_last_maps(encoder, num, images) for images in parts]
        else:
            passes = [checkpoint(_last_maps, encoder, num, images, use_reentrant=False) for images in parts]
        return [torch.cat(maps) for maps in zip(*passes, strict=True)]

    def features(self, views: Sequence[Tensor], encoder: Encoder | None = None) -> list[Tensor]:
        """Pooled features [B, C] of each view. Views of one size go through the encoder together."""
        return self._encoded(
            lambda part: [_pooled(last) for (last,) in self._maps(part, 1, encoder)], views, encoder
        )

    def maps(self, views: Sequence[Tensor], encoder: Encoder | None = None) -> list[Tensor]:
        """The last map of each view. Views of one size go through the encoder together."""
        return [maps[0] for maps in self.pyramids(views, 1, encoder)]

    def pyramids(
        self, views: Sequence[Tensor], num: int, encoder: Encoder | None = None
    ) -> list[list[Tensor]]:
        """The last `num` maps of each view, finest first.
        Views of one size go through the encoder together.
        """
        flat = self._encoded(
            lambda part: [level for maps in self._maps(part, num, encoder) for level in maps], views, encoder
        )
        return [flat[start : start + num] for start in range(0, len(flat), num)]

    def _encoded(
        self,
        encode: Callable[[Sequence[Tensor]], list[Tensor]],
        views: Sequence[Tensor],
        encoder: Encoder | None,
    ) -> list[Tensor]:
        if self.pieces is None:
            return encode(views)
        trained = [p for p in (encoder or self.encoder).parameters() if p.requires_grad]
        return self.pieces.run(encode, views, trained)

    def _maps(self, views: Sequence[Tensor], num: int, encoder: Encoder | None) -> list[list[Tensor]]:
        maps: dict[int, list[Tensor]] = {}
        sizes = dict.fromkeys(view.shape[1:] for view in views)
        for size in sizes:
            indices = [index for index, view in enumerate(views) if view.shape[1:] == size]
            together = self.last_maps(torch.cat([views[index] for index in indices]), num, encoder)
            levels = [level.split(len(views[indices[0]])) for level in together]
            maps.update(
                (index, [level[position] for level in levels]) for position, index in enumerate(indices)
            )
        return [maps[index] for index in range(len(views))]


def _pooled(maps_BCHW: Tensor) -> Tensor:
    return maps_BCHW.mean((2, 3))


def _last_maps(encoder: Encoder, num: int, images_BCHW: Tensor) -> list[Tensor]:
    return [at_least_float32(level) for level in encoder(images_BCHW)[-num:]]


def momentum_copy(module: nn.Module) -> nn.Module:
    """A copy that is moved by `move_towards` only, and drops no paths."""
    teacher = copy.deepcopy(module).requires_grad_(False)
    for part in teacher.modules():
        if hasattr(part, "drop_prob"):
            part.drop_prob = 0.0  # type: ignore[assignment]
    return teacher


@torch.no_grad()
def move_towards(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, for parameters;
    buffers follow the teacher's own inputs.
    """
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1.0 - momentum)


def rising_momentum(base: float, step: int, num_steps: int) -> float:
    """From `base` at step 0 to 1 at the end by half a cosine (BYOL, section 3.2)."""
    return half_cosine(base, 1.0, step / max(1, num_steps))


@torch.no_grad()
def relative_distance(teacher: nn.Module, student: nn.Module) -> float:
    """Norm of the difference of all parameters over that of the student's."""
    ours, theirs = [p.detach() for p in student.parameters()], [p.detach() for p in teacher.parameters()]
    apart = torch._foreach_norm(torch._foreach_sub(ours, theirs))
    return float(torch.stack(apart).norm() / torch.stack(torch._foreach_norm(ours)).norm())
