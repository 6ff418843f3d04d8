"""The command-line options of batch jobs: how many processes, where, and their progress."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence

from cluster.batch.jobs import Machines
from cluster.errors import UserError


def add_machine_options(parser: argparse._ActionsContainer) -> None:
    """Adds what `machines_of` reads."""
    parser.add_argument(
        "--workers",
        type=whole(0),
        default=0,
        help="Ray processes that compute; 0: only this process, without Ray",
    )
    parser.add_argument(
        "--readers", type=whole(0), default=0, help="Ray processes that decode; 0: one for each worker"
    )
    parser.add_argument(
        "--cpus-per-worker", type=whole(1), default=1, help="CPUs of each computing process (default: 1)"
    )
    parser.add_argument(
        "--cpus-per-reader",
        type=whole(1),
        default=1,
        help="CPUs and threads of each decoding process (default: 1)",
    )
    parser.add_argument(
        "--gpus-per-worker",
        type=float,
        help="GPUs of each computing process; by default 1 if this machine has a GPU, else 0",
    )
    for who in ("worker", "reader"):
        parser.add_argument(
            f"--{who}-label",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help=f"label of the nodes for {who}s",
        )
    parser.add_argument(
        "--check",
        action="store_true",
        help="tries a first part, estimates time and memory, and starts nothing",
    )
    parser.add_argument("--address", help="Ray cluster to join; by default RAY_ADDRESS, else a private Ray")


def machines_of(options: argparse.Namespace, *, has_gpu: bool) -> Machines:
    """Where the work is to be done. Raises UserError for labels that are none."""
    gpus = options.gpus_per_worker
    is_joined = options.address or os.environ.get("RAY_ADDRESS")
    if options.workers and gpus is None and not has_gpu and is_joined:
        print("workers compute on CPUs, as this machine has no GPU: --gpus-per-worker 1 gives each one")
    return Machines(
        workers=options.workers,
        readers=options.readers,
        cpus_per_worker=options.cpus_per_worker,
        gpus_per_worker=gpus if gpus is not None else float(has_gpu),
        cpus_per_reader=options.cpus_per_reader,
        worker_labels=_labels(options.worker_label),
        reader_labels=_labels(options.reader_label),
        address=options.address,
    )


def whole(minimum: int) -> Callable[[str], int]:
    """Reads a whole number that is large enough."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {minimum}")
        return int(text)

    return read


def _labels(given: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise UserError(
                f"label {key + equals + value!r}: write KEY=VALUE, such as ray.io/node-group=cpu"
            )
    return {key: value for key, _, value in pairs}
