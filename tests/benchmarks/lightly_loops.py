"""Training loops as lightly's documentation builds them:
its transform, a DataLoader, and losses and heads by hand.

Each loop takes an encoder and image size like ours, and heads as large as those of `configs/pretrain/small`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightly import loss as losses
from lightly import transforms
from lightly.data import LightlyDataset
from lightly.loss.lejepa_loss import LeJEPALoss
from lightly.models.modules import heads
from lightly.models.utils import deactivate_requires_grad, select_most_similar, update_momentum
from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
from torch import Tensor, nn

from pretrain.encoders import Encoder
from tests.benchmarks.cpu_time import cpu_seconds

HIDDEN = 512


class Loop(nn.Module):
    """What one of lightly's examples holds: `loss_of(views)`,
    and `before` each step the move of momentum copies.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.width = encoder, encoder.channels[-1]

    def backbone(self, images: Tensor, encoder: nn.Module | None = None) -> Tensor:
        return (encoder or self.encoder)(images)[-1].mean((2, 3))

    def copies(self, *parts: nn.Module) -> list[nn.Module]:
        made = [copy.deepcopy(part) for part in parts]
        for part in made:
            deactivate_requires_grad(part)
        return made

    def before(self) -> None:
        """Nothing for methods without a momentum encoder."""

    def after(self) -> None:
        """Nothing for methods without prototypes."""


class SimCLR(Loop):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.head = heads.SimCLRProjectionHead(self.width, HIDDEN, 128)
        self.criterion = losses.DCLLoss(temperature=0.2)

    def loss_of(self, views: list[Tensor]) -> Tensor:
        first, second = (self.head(self.backbone(view)) for view in views)
        return self.criterion(first, second)


class MoCo(Loop):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.head = heads.MoCoProjectionHead(self.width, HIDDEN, 128)
        self.key_encoder, self.key_head = self.copies(encoder, self.head)
        self.criterion = losses.NTXentLoss(temperature=0.2, memory_bank_size=(1024, 128))

    def before(self) -> None:
        update_momentum(self.encoder, self.key_encoder, m=0.99)
        update_momentum(self.head, self.key_head, m=0.99)

    def loss_of(self, views: list[Tensor]) -> Tensor:
        query = self.head(self.backbone(views[0]))
        with torch.no_grad():
            key = self.key_head(self.backbone(views[1], self.key_encoder))
        return self.criterion(query, key)


class MoCoV3(Loop):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.head = heads.MoCoProjectionHead(self.width, HIDDEN, 128, num_layers=3, batch_norm=True)
        self.predictor = heads.MoCoProjectionHead(128, HIDDEN, 128, num_layers=2, batch_norm=True)
        self.key_encoder, self.key_head = self.copies(encoder, self.head)

    def before(self) -> None:
        update_momentum(self.encoder, self.key_encoder, m=0.99)
        update_momentum(self.head, self.key_head, m=0.99)

    def loss_of(self, views: list[Tensor]) -> Tensor:
        queries = [self.predictor(self.head(self.backbone(view))) for view in views]
        with torch.no_grad():
            keys = [self.key_head(self.backbone(view, self.key_encoder)) for view in views]
        return self._contrast(queries[0], keys[1]) + self._contrast(queries[1], keys[0])

    def _contrast(self, query: Tensor, key: Tensor) -> Tensor:
        query, key = nn.functional.normalize(query, dim=1), nn.functional.normalize(key, dim=1)
        return nn.functional.cross_entropy(query @ key.T / 0.2, torch.arange(len(query))) * 0.4


class BYOL(Loop):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.head = heads.BYOLProjectionHead(self.width, HIDDEN, 128)
        self.predictor = heads.BYOLPredictionHead(128, HIDDEN, 128)
        self.key_encoder, self.key_head = self.copies(encoder, self.head)
        self.criterion = losses.NegativeCosineSimilarity()

    def before(self) -> None:
        update_momentum(self.encoder, self.key_encoder, m=0.98)
        update_momentum(self.head, self.key_head, m=0.98)

    def loss_of(self, views: list[Tensor]) -> Tensor:
        predictions = [self.predictor(self.head(self.backbone(view))) for view in views]
        with torch.no_grad():
            targets = [self.key_head(self.backbone(view, self.key_encoder)) for view in views]
        return (self.criterion(predictions[0], targets[1]) + self.criterion(predictions[1], targets[0])) / 2


class SimSiam(Loop):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.head = heads.SimSiamProjectionHead(self.width, HIDDEN, 512)
        self.predictor = heads.SimSiamPredictionHead(512, 128, 512)
        self.criterion = losses.NegativeCosineSimilarity()

    def loss_of(self, views: list[Tensor]) -> Tensor:
        projections = [self.head(self.backbone(view)) for view in views]
        first, second = (self.predictor(projection) for projection in projections)
        return (
            self.criterion(first, projections[1].detach()) + self.criterion(second, projections[0].detach())
        ) / 2


class BarlowTwins(Loop):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.head = heads.BarlowTwinsProjectionHead(self.width, HIDDEN, 512)
        self.criterion: nn.Module = losses.BarlowTwinsLoss()

    def loss_of(self, views: list[Tensor]) -> Tensor:
        first, second = (self.head(self.backbone(view)) for view in views)
        return self.criterion(first, second)


class VICReg(BarlowTwins):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.head = heads.VICRegProjectionHead(self.width, HIDDEN, 512)
        self.criterion = losses.VICRegLoss()


class SwAV(Loop):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.head = heads.SwaVProjectionHead(self.width, HIDDEN, 128)
        self.prototypes = heads.SwaVPrototypes(128, 64)
        self.criterion = losses.SwaVLoss(temperature=0.2, sinkhorn_epsilon=0.03)

    def after(self) -> None:
        self.prototypes.normalize()

    def loss_of(self, views: list[Tensor]) -> Tensor:
        embeddings = [nn.functional.normalize(self.head(self.backbone(view)), dim=1) for view in views]
        scores = [self.prototypes(embedding) for embedding in embeddings]
        return self.criterion(scores[:2], scores[2:])


class DINO(Loop):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.head = heads.DINOProjectionHead(self.width, HIDDEN, 128, 1024, freeze_last_layer=1)
        (self.key_encoder,) = self.copies(encoder)
        self.key_head = heads.DINOProjectionHead(
            self.width, HIDDEN, 128, 1024
        )  # its weight norm cannot be copied
        deactivate_requires_grad(self.key_head)
        self.criterion = losses.DINOLoss(output_dim=1024)

    def before(self) -> None:
        update_momentum(self.encoder, self.key_encoder, m=0.98)
        update_momentum(self.head, self.key_head, m=0.98)

    def loss_of(self, views: list[Tensor]) -> Tensor:
        with torch.no_grad():
            teacher = [self.key_head(self.backbone(view, self.key_encoder)) for view in views[:2]]
        return self.criterion(teacher, [self.head(self.backbone(view)) for view in views], epoch=0)


class DenseCL(Loop):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.head = heads.DenseCLProjectionHead(self.width, HIDDEN, 128)
        self.dense_head = heads.DenseCLProjectionHead(self.width, HIDDEN, 128)
        self.key_encoder, self.key_head, self.key_dense_head = self.copies(
            encoder, self.head, self.dense_head
        )
        self.criterion = losses.NTXentLoss(temperature=0.2, memory_bank_size=(1024, 128))
        self.dense_criterion = losses.NTXentLoss(temperature=0.2, memory_bank_size=(1024, 128))

    def before(self) -> None:
        update_momentum(self.encoder, self.key_encoder, m=0.99)
        update_momentum(self.head, self.key_head, m=0.99)
        update_momentum(self.dense_head, self.key_dense_head, m=0.99)

    def loss_of(self, views: list[Tensor]) -> Tensor:
        query_map = self.encoder(views[0])[-1].flatten(2).mT
        query, dense_query = self.head(query_map.mean(1)), self.dense_head(query_map)
        with torch.no_grad():
            key_map = self.key_encoder(views[1])[-1].flatten(2).mT
            key, dense_key = self.key_head(key_map.mean(1)), self.key_dense_head(key_map)
        matched = select_most_similar(query_map, key_map, dense_key)
        dense = self.dense_criterion(dense_query.flatten(0, 1), matched.flatten(0, 1))
        return (self.criterion(query, key) + dense) / 2


class LeJEPA(Loop):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        self.head = heads.LeJEPAProjectionHead(self.width, HIDDEN, 64)
        self.criterion = LeJEPALoss()

    def loss_of(self, views: list[Tensor]) -> Tensor:
        embeddings = [self.head(self.backbone(view)) for view in views]
        return self.criterion(local_proj=torch.stack(embeddings), global_proj=torch.stack(embeddings[:2]))


def _two_views(kind: Callable[..., Any]) -> Callable[[int, int], Any]:
    return lambda size, _: kind(input_size=size)


def _byol(size: int, _: int) -> Any:
    return transforms.BYOLTransform(BYOLView1Transform(input_size=size), BYOLView2Transform(input_size=size))


def _dino(size: int, local: int) -> Any:
    return transforms.DINOTransform(global_crop_size=size, local_crop_size=local, n_local_views=4)


def _swav(size: int, local: int) -> Any:
    return transforms.SwaVTransform(crop_sizes=(size, local), crop_counts=(2, 0))


LOOPS: dict[str, tuple[type[Loop], Callable[[int, int], Any]]] = {
    "barlow_twins": (BarlowTwins, _byol),
    "byol": (BYOL, _byol),
    "densecl": (DenseCL, _two_views(transforms.DenseCLTransform)),
    "dino": (DINO, _dino),
    "lejepa": (LeJEPA, _dino),
    "moco": (MoCo, _two_views(transforms.MoCoV2Transform)),
    "mocov3": (MoCoV3, _byol),
    "simclr": (SimCLR, _two_views(transforms.SimCLRTransform)),
    "simsiam": (SimSiam, _two_views(transforms.SimSiamTransform)),
    "swav": (SwAV, _swav),
    "vicreg": (VICReg, _two_views(transforms.VICRegTransform)),
}


def seconds_per_step(
    name: str,
    encoder: Encoder,
    photos: str,
    *,
    size: int,
    local: int,
    batch: int,
    workers: int,
    steps: int,
    skip: int,
    device: str = "cpu",
) -> tuple[float, float]:
    """Of `steps` steps after the first `skip`, by the clock and of CPU.

    On a GPU in bfloat16, as lightly's trainer examples do with `precision`.
    """
    kind, transform = LOOPS[name]
    loop = kind(encoder).to(device)
    data = LightlyDataset(photos, transform=transform(size, local))
    # all steps in one epoch: workers start once, and all of them have batches
    repeats = math.ceil((skip + steps + 1) * batch / len(data))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.ConcatDataset([data] * repeats),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=device != "cpu",
    )
    optimizer = torch.optim.AdamW([p for p in loop.parameters() if p.requires_grad], lr=1e-3)
    started = cpu = 0.0
    for step, views in enumerate(_endless(loader)):
        if step == skip:
            started, cpu = time.perf_counter(), cpu_seconds()
        if step == skip + steps:
            break
        loop.before()
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            loss = loop.loss_of([view.to(device, non_blocking=True) for view in views])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loop.after()
        float(loss.detach())  # waits for the step, as a printed loss does
    return (time.perf_counter() - started) / steps, (cpu_seconds() - cpu) / steps


def _endless(loader: Any) -> Iterator[list[Tensor]]:
    while True:
        for batch in loader:
            yield batch[0]
