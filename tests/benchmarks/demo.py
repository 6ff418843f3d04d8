"""What `make demo` shows, over seeds: each score beside random weights, whether colours would have told,
and the sentences.

    python -m tests.benchmarks.demo [--seeds 0 1 2] [--out runs/demo-seeds] [--no-probe]

Each seed is a demo of its own, as a user runs it, with scenes, encoder and models of that seed; the same
command again continues and trains nothing twice. Goals: accuracy at least 0.80 and 0.20 above random
weights; AP50 at least 0.50 and 0.10 above; CIDEr-D at least 1.5 and keyword F1 at least 0.5, both at least
20 % above; kNN of the encoder at least 0.60; no row behind. A linear probe on thumbnails of 8 x 8 pixels
stays under 40 %. Of the twelve sentences on the page at least eight name the main thing.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cluster.columns import in_columns
from fovea.demo_scores import Row, score_rows
from pretrain.data.scenes.captions import noun
from pretrain.data.scenes.scenes import compose
from pretrain.data.scenes.sources import CLASSES

SENTENCES = 12
PROBE_SCENES, PROBE_HELD_OUT = 4000, 1000
PENALTIES = (1e-3, 1e-2, 1e-1)  # inverse strengths
SECONDS = "seconds.json"


def main(arguments: list[str] | None = None) -> None:
    """Runs the demos and prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.demo", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/demo-seeds"))
    parser.add_argument(
        "--no-probe", action="store_true", help="leave out the probe on thumbnails, a minute a seed"
    )
    options = parser.parse_args(arguments)
    demos = {}
    for seed in options.seeds:
        out = options.out / f"seed{seed}"
        run(out, seed)
        demos[seed] = score_rows(out)
        named, sentences = sentences_of(out / "summarize/report.html")
        times = json.loads((out / SECONDS).read_text())
        seconds = f"{times['wall']:.0f} s, {times['cpu']:.0f} s of CPU"
        print(
            f"seed {seed}: {seconds}; {named} of {len(sentences)} sentences name the main thing", flush=True
        )
        if not options.no_probe:
            print(
                f"seed {seed}: linear probe on thumbnails of 8 x 8 pixels {thumbnail_probe(seed):.1%}",
                flush=True,
            )
        show(demos[seed])
    print(f"\nseeds {', '.join(map(str, demos))}: mean, and the worst of {len(demos)}")
    show_all(list(demos.values()))


def run(out: Path, seed: int) -> None:
    """A demo; nothing when it is finished."""
    if (out / SECONDS).exists():
        return
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "fovea.demo", "--out", str(out), "--seed", str(seed)]
    subprocess.run(
        command, check=True, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}, stdout=sys.stderr
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (out / SECONDS).write_text(json.dumps({"wall": time.monotonic() - started, "cpu": cpu}))


def sentences_of(page: Path) -> tuple[int, list[str]]:
    """The first sentences on a summarizer's page,
    and how many of them name the main thing as a reference does.
    """
    text = page.read_text()
    found = re.findall(r'<p class="said">(.*?)</p>\s*<ul class="list"><li>(.*?)</li>', text, re.DOTALL)[
        :SENTENCES
    ]
    pairs = [tuple(html.unescape(part) for part in pair) for pair in found]
    return sum(main_thing(said) == main_thing(true) for said, true in pairs), [said for said, _ in pairs]


def main_thing(sentence: str) -> str | None:
    """The class that a sentence names first; the main object of a scene
    stands first in its first caption.
    """
    places = {kind: sentence.find(noun(kind)) for kind in CLASSES}
    known = {kind: place for kind, place in places.items() if place >= 0}
    return min(known, key=lambda kind: known[kind]) if known else None


def thumbnail_probe(seed: int) -> float:
    """Accuracy on held-out scenes of logistic regression on 192 numbers, learnt with labels of as many
    scenes as the demo has without; the best of three penalties."""
    scenes = [
        compose(index, seed, held_out=index >= PROBE_SCENES)
        for index in range(PROBE_SCENES + PROBE_HELD_OUT)
    ]
    thumbnails = np.stack(
        [
            np.asarray(Image.fromarray(one.image_HW3).resize((8, 8), Image.Resampling.BOX)).ravel()
            for one in scenes
        ]
    )
    labels = np.array([one.things[0].cutout.kind for one in scenes])
    scores = []
    for strength in PENALTIES:
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=strength))
        probe.fit(thumbnails[:PROBE_SCENES], labels[:PROBE_SCENES])
        scores.append(float(probe.score(thumbnails[PROBE_SCENES:], labels[PROBE_SCENES:])))
    return max(scores)


def show(rows: Sequence[Row]) -> None:
    """One seed."""
    lines = [
        [
            row.what,
            row.score,
            f"{row.pretrained:.3f}",
            "" if row.simclr is None else f"{row.simclr:.3f}",
            f"{row.random:.3f}",
            f"{row.gain:+.3f}",
        ]
        for row in rows
    ]
    print(
        in_columns(["model", "score", "pretrained", "SimCLR", "random", "gain"], lines, right=range(2, 6)),
        flush=True,
    )


def show_all(demos: Sequence[Sequence[Row]]) -> None:
    """Each row's mean, and its smallest value and gain."""
    lines = []
    for rows in zip(*demos, strict=True):
        pretrained, random, gains = (
            [getattr(row, name) for row in rows] for name in ("pretrained", "random", "gain")
        )
        simclr = [row.simclr for row in rows if row.simclr is not None]
        lines.append(
            [
                rows[0].what,
                rows[0].score,
                f"{np.mean(pretrained):.3f}",
                f"{np.mean(simclr):.3f}" if simclr else "",
                f"{np.mean(random):.3f}",
                f"{np.mean(gains):+.3f}",
                f"{min(pretrained):.3f}",
                f"{min(gains):+.3f}",
            ]
        )
    head = ["model", "score", "pretrained", "SimCLR", "random", "gain", "worst", "worst gain"]
    print(in_columns(head, lines, right=range(2, 8), width=100), flush=True)


if __name__ == "__main__":
    main()
