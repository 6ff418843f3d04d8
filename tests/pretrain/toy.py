"""A toy problem for the training loop, runs of it, and what two runs must have in common."""

import dataclasses
import json
import math

import torch
from torch import nn

from cluster import storage
from cluster.training.rank_context import local_context
from pretrain.training.contract import StepOutput, Trainable, TrainingBatch
from pretrain.training.loop import train
from pretrain.training.optimizers import Rates
from pretrain.training.plan import Plan
from pretrain.training.run_folder import RunFolder
from pretrain.training.settings import TrainingSettings


class Toy(Trainable):
    """A regression with dropout, a buffer that counts, and a loss that can be made to fail."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.poison_at = None
        self.steps_called = 0

    def forward(self, inputs):
        self.steps_called += 1
        loss = (self.layers(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        if self.poison_at is not None and int(self.seen) == self.poison_at:
            loss = loss * math.nan
        return StepOutput(loss=loss, logs={"twice": 2 * loss.detach()})

    def after_step(self, step, num_steps):
        self.seen += 1


class ToyBatches:
    """Batches that are a function of the position, and end the process's patience where told."""

    def __init__(self, samples_seen, die_at=None):
        self.position, self.die_at, self.closed = samples_seen, die_at, False

    def __next__(self):
        if self.die_at is not None and self.position >= self.die_at:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(self.position)
        self.position += 8
        bad = {"file: row group 0, row 3": "truncated"} if self.position == 16 else {}
        return TrainingBatch(torch.randn(8, 4, generator=generator), bad)

    def close(self):
        self.closed = True


def run(
    url,
    *,
    steps=30,
    module=None,
    die_at=None,
    stop_at=None,
    close=True,
    on_record=None,
    ask_at=None,
    optimizer=None,
    **options,
):
    module = module or Toy()
    optimizer = optimizer(module) if optimizer else torch.optim.AdamW(module.parameters(), lr=0.1)
    records = []

    def show(record):
        records.append(record)
        if on_record is not None:
            on_record(record)
        if ask_at is not None and record.get("step") == ask_at:
            context.request_checkpoint()
        if stop_at is not None and record.get("step") == stop_at:
            context.request_stop()

    with local_context(show) as context:
        folder = RunFolder(url)
        names = {field.name for field in dataclasses.fields(TrainingSettings)}
        settings = {
            "batch_size_global": 8, "log_every_steps": 1, "checkpoint_every_steps": 7,
            "checkpoint_every_seconds": 600.0, **options,
        }  # fmt: skip
        plan = Plan(
            url, TrainingSettings(**{name: settings[name] for name in names & settings.keys()}),
            steps, 10, lambda step: Rates(0.05 * (1 - step / 100), 0.05, 0.0), seed=7,
            **{name: value for name, value in settings.items() if name not in names},
        )  # fmt: skip
        try:
            outcome = train(
                module,
                optimizer,
                plan,
                context=context,
                run=folder,
                batches_from=lambda seen: ToyBatches(seen, die_at),
            )
        finally:
            if close:
                folder.close()
    return module, outcome, records


def trace(url):
    lines = storage.read_bytes(storage.join(url, "metrics.jsonl")).decode().splitlines()
    return [
        {key: json.loads(line)[key] for key in ("step", "loss", "gradient_norm", "twice")} for line in lines
    ]


def assert_same_weights(first, second):
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
