"""python -m finetune report OUT [OUT ...]: report.html of a run, or one page that joins several runs."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cluster import storage
from cluster.command_line import CommandLine
from cluster.errors import UserError
from finetune.reporting.base import PACKAGE
from finetune.reporting.joined import REPORT, joined_page
from finetune.reporting.run_page import page_of
from pretrain.reporting.folder import read_run
from pretrain.reporting.page import Templates

SECONDS = 20.0


def parser() -> CommandLine:
    """The command line."""
    parser = CommandLine(prog="python -m finetune report", description=__doc__)
    parser.add_argument(
        "outs", metavar="OUT", nargs="+", help="folder of a run (path or URL), finished or not"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="page that joins the runs, pretraining runs included (default for several: report.html in"
        " their common folder)",
    )
    parser.add_argument(
        "--images", type=int, help="number of images to use (default: report_images of the run's settings)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help=f"approximate time to spend on images (default: {SECONDS:g})",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Reads the command line and writes the page; returns the exit code."""
    options = parser().parse_args(arguments)
    if len(options.outs) == 1 and options.out is None:
        url = write_report(options.outs[0], num_images=options.images, seconds=options.seconds)
    else:
        url = write_joined_report(options.outs, options.out)
    print(f"report: {url}")
    return 0


def write_report(out: str, *, num_images: int | None = None, seconds: float = SECONDS) -> str:
    """Writes OUT/report.html and returns its URL; see `pretrain.report.write_report`.

    Raises UserError when OUT is not a fine-tuning run.
    """
    run = read_run(out)
    if "task" not in run.settings:
        raise UserError(
            f"{run.url} is a pretraining run; its report is written by: python -m pretrain report {out}"
        )
    url = storage.join(run.url, REPORT)
    storage.write_bytes(url, Templates(PACKAGE).page(page_of(run, num_images=num_images, seconds=seconds)))
    return url


def write_joined_report(outs: Sequence[str], target: str | None = None) -> str:
    """Writes one page of several runs and returns its URL; a folder that is no run is said to be missing.

    Args:
        outs: folders of runs, of pretraining and of any task.
        target: the file; report.html in the folder that holds them all when it is None.

    Raises UserError when the runs have no folder in common and no target is given.
    """
    outs = [storage.absolute(out) for out in outs]
    target = storage.absolute(target) if target else storage.join(_common_folder(outs), REPORT)
    storage.write_bytes(target, Templates(PACKAGE).page(joined_page(outs, target)))
    return target


def _common_folder(outs: Sequence[str]) -> str:
    parents = [out.rstrip("/").split("/")[:-1] for out in outs]
    common = os.path.commonprefix(parents)  # noqa: RUF071 - of lists of folder names
    if not any(common):
        raise UserError(
            f"{' and '.join(outs[:2])} have no folder in common; say where the page goes with --out FILE"
        )
    return "/".join(common)
