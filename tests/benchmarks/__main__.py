"""`make bench`: every benchmark that needs nothing but this repository,
and those on photos when their folder is given.

    python -m tests.benchmarks [--photos FOLDER [--cells FOLDER]]

The folder of photos holds `train`, `validation` and `test`, each with a folder a class; that of cells is
what `tests.benchmarks.detection` calls BCCD.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from pathlib import Path

import torch

from pretrain.data.packing.importing import import_images
from pretrain.data.scenes.scenes import write_demo
from tests.benchmarks import (
    accelerator,
    activations,
    attention_cost,
    clothing,
    continuing,
    demo,
    detection,
    distilling,
    encoders,
    few_labels,
    finetuning,
    importing,
    maps,
    memory,
    methods,
    overlap,
    predicting,
    range_reads,
    ray_share,
    reading,
    reports,
    scaling,
    serving,
    startup,
    stored_features,
    streaming,
    submitting,
    view_training,
    views,
    workers,
)


def main() -> None:
    """Runs them one after another, so that none disturbs another."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--cells", type=Path)
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}"
    )
    print("\n== activations")
    activations.main([])
    print("\n== attention_cost")
    attention_cost.main([])
    print("\n== reports")
    reports.main([])
    print("\n== startup")
    startup.main([])
    print("\n== memory")
    memory.main([])
    print("\n== importing")
    importing.main([])
    print("\n== range_reads")
    range_reads.main([])
    print("\n== streaming")
    streaming.main([])
    print("\n== submitting")
    submitting.main([])
    print("\n== ray_share")
    with tempfile.TemporaryDirectory() as folder:
        write_demo(folder, num_images=400)
        ray_share.main([f"{folder}/train"])
        print("\n== reading")
        reading.main([f"{folder}/train"])
        print("\n== workers")
        workers.main([f"{folder}/train"])
        print("\n== scaling")
        scaling.main([f"{folder}/train"])
    print("\n== serving")
    serving.main([])
    print("\n== stored_features")
    stored_features.main([])
    print("\n== overlap")
    overlap.main(["--encoder", "convattn_nano"])
    print("\n== demo")
    with tempfile.TemporaryDirectory() as folder:
        demo.main(["--out", folder])
    print("\n== maps")
    with tempfile.TemporaryDirectory() as folder:
        cells = [] if options.cells is None else ["--bccd", str(options.cells)]
        maps.main(["--out", folder, "--seeds", "0", *cells])
    if torch.cuda.is_available():
        print("\n== accelerator")
        accelerator.main([] if options.photos is None else [str(options.photos)])
    if options.photos is not None:
        print("\n== clothing")
        clothing.main([str(options.photos)])
        print("\n== distilling")
        distilling.main([str(options.photos), "--finetune"])
        print("\n== continuing")
        continuing.main([str(options.photos)])
        print("\n== finetuning")
        finetuning.main([str(options.photos)])
        print("\n== predicting")
        with tempfile.TemporaryDirectory() as folder:
            import_images(str(options.photos / "train"), f"{folder}/train")
            predicting.main([f"{folder}/train"])
        print("\n== views")
        views.main([str(options.photos)])
        print("\n== methods")
        methods.main([str(options.photos)])
        print("\n== encoders")
        encoders.main([str(options.photos)])
        print("\n== view_training")
        view_training.main([str(options.photos)])
        if options.cells is not None:
            print("\n== detection")
            detection.main([str(options.cells), str(options.photos / "train")])
    if options.cells is not None:
        print("\n== few_labels")
        few_labels.main([str(options.cells)])


if __name__ == "__main__":
    main()
