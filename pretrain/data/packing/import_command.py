"""`python -m pretrain.data import`: its options, and what they do."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cluster.errors import EXIT_STOPPED, UserError
from cluster.lease import held_beside
from cluster.storage.web_guard import allow_local_redirects

DESCRIPTION = """Packs the images of SRC into shards in DEST. Every image is decoded for checking; bad ones
are listed in DEST/_quarantine.jsonl, the others are stored byte for byte (except with --short-side). A
summary goes to DEST/_import.json. The same command again continues an import that was cut off.

The kind of SRC is recognised, or given by --kind:
  folder       images, or a folder for each class; hidden folders and those with a leading underscore are
               left out
  coco         COCO json: FILE.json with boxes or captions, or a folder with one, or with one for each split
  voc          Pascal VOC: a folder with an xml file for each image, in Annotations/ or beside it
  yolo         YOLO and Darknet: a folder with a txt file for each image, in labels/ or beside it; class
               names in a yaml, classes.txt or obj.names
  labelme      a json file with shapes beside each image
  cvat         CVAT for images: one xml with the shapes of many images
  table        FILE.csv, .tsv, .jsonl, a .json list or .parquet with a column of paths or URLs, and labels,
               captions or boxes (xmin, ymin, xmax, ymax; Open Images); or a folder with metadata.csv,
               .jsonl or .parquet
  sidecar      texts beside images: .txt, .caption, .json, .cls (img2dataset and captioning programs)
  tar          tars with WebDataset naming: a file, folder or glob
  torchvision  torchvision:NAME or torchvision:NAME:SPLIT, such as torchvision:CIFAR10:test

Splits that the source has (folders train, val, test; a yaml; a column) go to DEST/train, DEST/validation and
DEST/test. What happened to every file is in DEST/_import.json; exit code 3 means that too many were
set aside.

Columns of the shards, as far as the source has them: image {bytes, path}, label, labels, captions, and
objects {bbox, category} with boxes as left, top, width, height in pixels."""
EPILOG = """examples: python -m pretrain.data import my/photos my/shards --validation 0.2
          python -m pretrain.data import annotations/instances_train2017.json my/shards --images train2017
          python -m pretrain.data import links.csv my/shards --drop-duplicates --short-side 256
          python -m pretrain.data import 's3://bucket/shards/*.tar' s3://bucket/parquet"""


def add_import(commands: Any) -> None:
    """Adds the command to those of `python -m pretrain.data`."""
    pack = commands.add_parser(
        "import",
        help="pack images into shards",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pack.add_argument("src", metavar="SRC", help="what to pack")
    pack.add_argument("dest", metavar="DEST", help="folder for the shards, new or empty")
    pack.add_argument("--kind", default="auto", metavar="KIND", help="kind of source (default: auto)")
    _add_options_of_source(pack)
    _add_options_of_shards(pack)
    pack.add_argument(
        "--check",
        action="store_true",
        help="look at the source and a few images and estimate, but pack nothing",
    )
    pack.add_argument(
        "--overwrite",
        action="store_true",
        help="remove what an earlier import wrote to DEST; one that was cut off and had the same options "
        "is continued",
    )
    pack.add_argument(
        "--seed", type=int, default=0, metavar="S", help="seed of the order in the shards (default: 0)"
    )
    pack.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="threads that read and decode (default: one for each CPU; 32 in stores)",
    )
    pack.set_defaults(handler=run_import)


def _add_options_of_source(pack: argparse.ArgumentParser) -> None:
    pack.add_argument(
        "--labels",
        metavar="auto|folders|none",
        help="folder: folders takes the folder that holds an image as its class; auto (default) does so "
        "when all images lie "
        "exactly one folder deep, in two folders or more; none: no classes",
    )
    pack.add_argument(
        "--images",
        metavar="FOLDER",
        help="coco, cvat, table: the folder of the images (default: looked for)",
    )
    pack.add_argument(
        "--boxes",
        metavar="xywh|xyxy|cxcywh|fractions",
        help="coco, voc, yolo, table: what the four numbers of a box are: left, top, width, height; "
        "corners; centre and "
        "size, all in pixels; or fractions of the sides (default: what the kind of source has)",
    )
    pack.add_argument(
        "--split",
        metavar="train|validation|test|none",
        help="pack one of the source's splits, or all images alike (default: each to its own folder)",
    )
    pack.add_argument(
        "--max-set-aside",
        type=float,
        default=0.05,
        metavar="FRACTION",
        help="fraction of images or annotations that may be set aside before the import ends with exit "
        "code 3 (default: 0.05)",
    )
    for name in ("path", "label", "caption"):
        pack.add_argument(
            f"--{name}-column", metavar="NAME", help=f"table: column of the {name} (default: usual names)"
        )
    pack.add_argument(
        "--allow-local-redirects",
        action="store_true",
        help="follow redirects of listed web addresses to this machine (default: such images are set aside)",
    )
    pack.add_argument(
        "--root", metavar="FOLDER", help="torchvision: where its data sets are kept (default: data)"
    )
    pack.add_argument(
        "--download", action="store_true", default=None, help="torchvision: download what is missing"
    )


def _add_options_of_shards(pack: argparse.ArgumentParser) -> None:
    pack.add_argument(
        "--validation",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="fraction of the images that goes to DEST/validation, the rest to DEST/train (default: 0, no "
        "split)",
    )
    pack.add_argument(
        "--drop-duplicates", action="store_true", help="keep only the first of images with equal bytes"
    )
    pack.add_argument(
        "--short-side",
        type=int,
        default=0,
        metavar="N",
        help="scale larger images down to N pixels on their short side and store them as JPEG (default: 0, "
        "as they are)",
    )
    pack.add_argument(
        "--decoded",
        action="store_true",
        help="store images decoded, in 1.5 bytes a pixel (3 where the short side is below 256): "
        "several times the disk space of JPEG, read several times as fast, and only by Fovea",
    )
    pack.add_argument(
        "--jpeg-quality",
        type=int,
        default=92,
        metavar="Q",
        help="JPEG quality of scaled images (default: 92)",
    )
    pack.add_argument(
        "--rows-per-group", type=int, default=64, metavar="N", help="rows in a row group (default: 64)"
    )
    pack.add_argument(
        "--group-mib", type=int, default=8, metavar="N", help="maximum MiB of a row group (default: 8)"
    )
    pack.add_argument(
        "--shard-mib", type=int, default=256, metavar="N", help="MiB of a shard (default: 256)"
    )


def run_import(arguments: argparse.Namespace) -> int:
    """Packs, or looks at what would be packed; returns the exit code."""
    summary = import_as_asked(arguments)
    if summary is not None and summary["stopped"] is not None:
        print(f"stopped: {summary['stopped']}", file=sys.stderr, flush=True)
        return EXIT_STOPPED
    return 0


def import_as_asked(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Imports as the options of the command ask for, and prints; returns the summary, None for a check."""
    from pretrain.data.packing.importing import ImportOptions, describe_import, import_images
    from pretrain.data.packing.sources import Columns

    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers must be at least 1, not {arguments.workers}")
    options = ImportOptions(
        validation_fraction=arguments.validation,
        seed=arguments.seed,
        drop_duplicates=arguments.drop_duplicates,
        short_side=arguments.short_side,
        jpeg_quality=arguments.jpeg_quality,
        decoded_form=arguments.decoded,
        rows_per_group=arguments.rows_per_group,
        bytes_per_group=arguments.group_mib * 2**20,
        bytes_per_shard=arguments.shard_mib * 2**20,
    )
    more = {
        "kind": arguments.kind,
        "workers": arguments.workers,
        "overwrite": arguments.overwrite,
        "labels": arguments.labels,
        "images": arguments.images,
        "boxes": arguments.boxes,
        "split": arguments.split,
        "columns": Columns(arguments.path_column, arguments.label_column, arguments.caption_column),
        "root": arguments.root,
        "download": arguments.download,
    }
    if arguments.allow_local_redirects:
        allow_local_redirects()
    if arguments.check:
        from pretrain.data.packing.import_check import check_import

        print("\n".join(check_import(arguments.src, arguments.dest, options, **more)))
        return None
    try:
        with held_beside(arguments.dest):
            summary = import_images(
                arguments.src, arguments.dest, options, max_set_aside=arguments.max_set_aside, **more
            )
    except KeyboardInterrupt:
        print("whole shards are kept; the same command continues", file=sys.stderr, flush=True)
        raise
    print(describe_import(summary, arguments.dest))
    return summary
