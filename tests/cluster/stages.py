"""A stage for the tests of pipelines: counts to a number, keeps its place in OUT,
and leaves a result that tells of every step.

    python -m tests.cluster.stages OUT STEPS [SEED] [--exit CODE]

The result is a hash over all steps, so a step that is lost,
repeated or in the wrong order makes another one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from pathlib import Path

from cluster import storage


def main() -> int:
    """Counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("steps", type=int)
    parser.add_argument("seed", nargs="?", default="")
    parser.add_argument("--exit", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.05)
    options = parser.parse_args()
    began = time.time()
    place, journal = storage.join(options.out, "place.json"), Path(options.out) / "processes"
    state = storage.read_json(place) if storage.exists(place) else {"step": 0, "hash": options.seed}
    journal.parent.mkdir(parents=True, exist_ok=True)
    with open(journal, "a") as file:
        file.write(f"{os.getpid()}\n")
    print(f"stage: starts at step {state['step']}", flush=True)
    while state["step"] < options.steps:
        step = state["step"] + 1
        state = {"step": step, "hash": hashlib.sha256(f"{state['hash']} {step}".encode()).hexdigest()}
        storage.write_json(place, state)
        print(f"stage: step {step}/{options.steps}", flush=True)
        time.sleep(options.pause)
    if options.exit:
        print(f"the words before the end, {options.exit}", flush=True)
        return options.exit
    score = int(state["hash"][:6], 16) / 16**6
    metrics = {"score": score, "steps": state["step"]}
    result = {"status": "finished", "value": state["hash"], "metrics": metrics}
    result |= {"began": began, "ended": time.time(), "threads": os.environ.get("OMP_NUM_THREADS")}
    storage.write_json(storage.join(options.out, "result.json"), result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
