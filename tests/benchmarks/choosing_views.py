"""Would local views teach small networks more? Multi-crop variants of four methods at equal CPU time,
by linear probe.

    python -m tests.benchmarks.choosing_views SHARDS [--seeds 0 1] [--cpu-seconds 100] [--rows NAME ...]

SHARDS holds `train`, `validation` and `test` as `tests.benchmarks.clothing` packs them. `convattn_nano` with
a stem of stride 4 sees views of 64 pixels, and local ones of 32 pixels where a row has any; the learning
rate follows half a cosine over the time that a row has. The variants:

- `simclr_local`: two local views of mild scale; pairs of a global and a local view have as much weight as
  the global pair (the balanced terms of https://arxiv.org/abs/2210.02808).
- `byol_local`, `simsiam_local`, `mocov3_local`: the targets of both global views are predicted from local
  views, too; `byol_two_predictors` and the same of the others have one predictor for each kind of view
  (https://arxiv.org/abs/2602.05845).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from lightly.models.modules.heads import BYOLPredictionHead, MoCoProjectionHead, SimSiamPredictionHead
from torch import Tensor

from pretrain.data.reading.loader import Loader
from pretrain.data.reading.manifest import load_manifest
from pretrain.data.reading.order import Order
from pretrain.data.reading.shards import Shards
from pretrain.data.views.recipes import ViewSpec, recipe_views
from pretrain.data.views.viewing import Viewer
from pretrain.encoders import Encoder, build_encoder, save_encoder
from pretrain.methods import Method
from pretrain.methods.byol import BYOL
from pretrain.methods.mocov3 import MoCoV3
from pretrain.methods.simclr import SimCLR
from pretrain.methods.simsiam import SimSiam
from pretrain.training.contract import StepOutput
from pretrain.training.optimizers import Rates, build_optimizer, parameter_groups, set_rates
from tests.benchmarks.clothing import SPLITS, probes

BATCH, SIZE, LOCAL_SIZE, NUM_LOCAL = 64, 64, 32, 2
LOCAL_SCALE = (0.1, 0.5)
CALIBRATION_STEPS = 12


class SimCLRWithLocals(SimCLR):
    """SimCLR's pair, and each global view with each local one;
    the pairs of a kind share a weight of one half.
    """

    num_views = None

    def forward(self, views: list[Tensor]) -> StepOutput:
        sizes = [len(view) for view in views]
        projected = self.projector(torch.cat(self.features(views))).split(sizes)
        among = self.criterion(projected[0], projected[1])
        across = [self.criterion(one, other) for one in projected[:2] for other in projected[2:]]
        loss = (among + torch.stack(across).mean()) / 2
        return StepOutput(loss=loss, embeddings=(projected[0].detach(), projected[1].detach()))


class BYOLWithLocals(BYOL):
    """BYOL whose online network sees local views, too; with a predictor of their own if asked."""

    num_views = None

    def __init__(self, encoder: Encoder, *, two_predictors: bool, **arguments: Any) -> None:
        super().__init__(encoder, **arguments)
        hidden, dim = arguments["hidden_dim"], arguments["projection_dim"]
        self.local_predictor = BYOLPredictionHead(dim, hidden, dim) if two_predictors else self.predictor

    def forward(self, views: list[Tensor]) -> StepOutput:
        projections = [self.projector(features) for features in self.features(views)]
        predictions = [self.predictor(one) for one in projections[:2]]
        locals_ = [self.local_predictor(one) for one in projections[2:]]
        with torch.no_grad():
            targets = [self.target_projector(one) for one in self.features(views[:2], self.target_encoder)]
        among = [self.criterion(predictions[0], targets[1]), self.criterion(predictions[1], targets[0])]
        across = [self.criterion(one, target) for one in locals_ for target in targets]
        loss = 2 + torch.stack(among).mean() + torch.stack(across).mean()
        return StepOutput(loss=loss, embeddings=(projections[0].detach(), projections[1].detach()))


class SimSiamWithLocals(SimSiam):
    """SimSiam that predicts the projections of global views from local ones, too;
    with a predictor of their own if asked.
    """

    num_views = None

    def __init__(self, encoder: Encoder, *, two_predictors: bool, **arguments: Any) -> None:
        super().__init__(encoder, **arguments)
        dim, bottleneck = arguments["projection_dim"], arguments["bottleneck_dim"]
        self.local_predictor = (
            SimSiamPredictionHead(dim, bottleneck, dim) if two_predictors else self.predictor
        )

    def forward(self, views: list[Tensor]) -> StepOutput:
        projections = [self.projector(features) for features in self.features(views)]
        first, second = (one.detach() for one in projections[:2])
        among = [
            self.criterion(self.predictor(projections[0]), second),
            self.criterion(self.predictor(projections[1]), first),
        ]
        predictions = [self.local_predictor(one) for one in projections[2:]]
        across = [self.criterion(one, target) for one in predictions for target in (first, second)]
        loss = (torch.stack(among).mean() + torch.stack(across).mean()) / 2
        return StepOutput(loss=loss, embeddings=(first, second))


class MoCoV3WithLocals(MoCoV3):
    """MoCo v3 whose local views find the keys of both global views, too;
    with a predictor of their own if asked.
    """

    num_views = None

    def __init__(self, encoder: Encoder, *, two_predictors: bool, **arguments: Any) -> None:
        super().__init__(encoder, **arguments)
        hidden, dim = arguments["hidden_dim"], arguments["projection_dim"]
        own = MoCoProjectionHead(dim, hidden, dim, num_layers=2, batch_norm=True)
        self.local_predictor = own if two_predictors else self.predictor

    def forward(self, views: list[Tensor]) -> StepOutput:
        projections = [self.projector(features) for features in self.features(views)]
        queries = [self.predictor(one) for one in projections[:2]]
        local_queries = [self.local_predictor(one) for one in projections[2:]]
        with torch.no_grad():
            keys = [self.key_projector(one) for one in self.features(views[:2], self.key_encoder)]
        among = [self._contrast(queries[0], keys[1]), self._contrast(queries[1], keys[0])]
        across = [self._contrast(one, key) for one in local_queries for key in keys]
        loss = torch.stack(among).mean() + torch.stack(across).mean()
        return StepOutput(loss=loss, embeddings=(queries[0].detach(), queries[1].detach()))


def views_of(recipe: str, num_local: int) -> list[ViewSpec]:
    """The two views of a recipe with milder crops, then local ones of the same colours."""
    views = recipe_views(recipe, SIZE, {"crop_scale": [0.2, 1.0]})
    local = recipe_views(recipe, LOCAL_SIZE, {"crop_scale": list(LOCAL_SCALE)})
    return views + local[:1] * num_local


def method_of(row: str, encoder: Encoder) -> tuple[Method, list[ViewSpec]]:
    """A row's method and views."""
    simclr = {"temperature": 0.2, "hidden_dim": 512, "decoupled": True}
    byol = {"hidden_dim": 512, "projection_dim": 128, "momentum": 0.99}
    simsiam = {"hidden_dim": 512, "projection_dim": 512, "bottleneck_dim": 128}
    mocov3 = {"hidden_dim": 512, "projection_dim": 128}
    if row == "simclr":
        return SimCLR(encoder, **simclr), views_of("simclr", 0)
    if row == "simclr_local":
        return SimCLRWithLocals(encoder, **simclr), views_of("simclr", NUM_LOCAL)
    if row == "byol":
        return BYOL(encoder, **byol), views_of("byol", 0)
    if row == "simsiam":
        return SimSiam(encoder, **simsiam), views_of("moco_v2", 0)
    if row == "mocov3":
        return MoCoV3(encoder, **mocov3), views_of("byol", 0)
    two = row.endswith("_two_predictors")
    if row.startswith("byol"):
        return BYOLWithLocals(encoder, two_predictors=two, **byol), views_of("byol", NUM_LOCAL)
    if row.startswith("simsiam"):
        return SimSiamWithLocals(encoder, two_predictors=two, **simsiam), views_of("moco_v2", NUM_LOCAL)
    return MoCoV3WithLocals(encoder, two_predictors=two, **mocov3), views_of("byol", NUM_LOCAL)


ROWS = (
    *("simclr", "simclr_local"),
    *("byol", "byol_local", "byol_two_predictors"),
    *("simsiam", "simsiam_local", "simsiam_two_predictors"),
    *("mocov3", "mocov3_local", "mocov3_two_predictors"),
)
# of 256 images, scaled linearly: that of configs/pretrain/small
PEAK_RATES = {"simclr": 4e-3, "byol": 4e-3, "simsiam": 1e-3, "mocov3": 4e-3}


def main(arguments: list[str] | None = None) -> None:
    """Trains, probes and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.choosing_views", description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--cpu-seconds", type=float, default=100.0)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--out", type=Path, default=Path("runs/choosing-views"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    shards = {split: options.shards / split for split in SPLITS}
    print(f"{'row':20} {'seed':>4} {'steps':>6} {'linear':>7} {'10-shot':>8}")
    table: dict[str, list[tuple[float, float]]] = {}
    for seed in options.seeds:
        for row in options.rows:
            file = options.out / f"{row}-{seed}.json"
            if not file.exists():
                encoder, steps = trained(row, seed, options.cpu_seconds, shards["train"])
                url = str(options.out / f"{row}-{seed}")
                save_encoder(encoder.eval(), url, input_size=SIZE)
                linear, few = probes(url, shards, seed=seed, random=False)
                file.write_text(json.dumps({"linear": linear, "few": few, "steps": steps}))
            told = json.loads(file.read_text())
            table.setdefault(row, []).append((told["linear"], told["few"]))
            print(
                f"{row:20} {seed:>4} {told['steps']:>6} {told['linear']:>7.1%} {told['few']:>8.1%}",
                flush=True,
            )
    for row, scores in table.items():
        linear, few = (statistics.mean(column) for column in zip(*scores, strict=True))
        print(f"{row:20} mean {'':>6} {linear:>7.1%} {few:>8.1%}")


def trained(row: str, seed: int, budget: float, train: Path) -> tuple[Encoder, int]:
    """An encoder after so many seconds of CPU of this process, and how many steps they were."""
    torch.manual_seed(seed)
    encoder = build_encoder("convattn_nano", stem_stride=4)
    method, specs = method_of(row, encoder)
    manifest = load_manifest(str(train), columns=["image"])
    order = Order(
        manifest.rows_of_group, batch_size_global=BATCH, num_streams=BATCH, window_rows=8192, seed=seed
    )
    shards = Shards(manifest, image_column="image")
    viewer = Viewer(specs, seed=seed, device=torch.device("cpu"), keep="host")
    source, transform = shards, viewer.host_transform()
    peak = PEAK_RATES[row.split("_")[0]] * BATCH / 256
    groups = parameter_groups(
        method, weight_decay=0.05, learning_rate_factor=lambda name: 1.0, constant_rate=()
    )
    optimizer = build_optimizer("adamw", groups, learning_rate=peak, momentum=0.9)
    method.train()
    with Loader(order, source, transform, rank=0, world_size=1, kept=viewer.kept_images()) as loader:
        for _ in range(CALIBRATION_STEPS):  # compiles the views' loops, which is not part of the training
            viewer.finish(next(loader))
        began, step = time.process_time(), 0
        while (share := (time.process_time() - began) / budget) < 1:
            rate = peak * min(share / 0.02, 0.5 * (1 + math.cos(math.pi * share)))
            set_rates(optimizer, Rates(rate, rate, 0.05))
            output = method(viewer.finish(next(loader)))
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step(round(1000 * share), 1000)
            step += 1
    return encoder, step


if __name__ == "__main__":
    main()
