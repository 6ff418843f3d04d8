"""python -m pretrain.data import | check | demo"""

from __future__ import annotations

import argparse
import sys

from cluster import storage
from cluster.errors import UserError, run_command

# What a command needs is imported by its handler, so that --help and typing errors answer at once.

EXAMPLES = """examples:
  python -m pretrain.data import my/photos my/shards                      class folders give the labels
  python -m pretrain.data import my/photos s3://bucket/shards --validation 0.2
  python -m pretrain.data check s3://bucket/shards --rows all
  python -m pretrain.data demo my/demo --images 2000

SRC, DEST and URL are local paths or URLs of any store that fsspec knows (s3://, gs://, hf://, ...).
"""


def main() -> int:
    """Reads the command line and runs one command."""
    arguments = _parser().parse_args()
    return int(arguments.handler(arguments))


def _parser() -> argparse.ArgumentParser:
    as_it_stands = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.data",
        description="Makes data sets of Parquet shards and looks into them.",
        epilog=EXAMPLES,
        formatter_class=as_it_stands,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="import | check | demo")

    pack = commands.add_parser(
        "import",
        help="pack a folder of images into shards",
        description="Packs the images in SRC and its sub-folders into shards in DEST. Every image is decoded for checking;\n"
        "bad ones are listed in DEST/quarantine.jsonl, the others are stored byte for byte as they are. Hidden folders and\n"
        "those whose names begin with an underscore are passed over. A summary goes to DEST/import.json.",
        epilog="example: python -m pretrain.data import my/photos my/shards --validation 0.2",
        formatter_class=as_it_stands,
    )
    pack.add_argument("src", metavar="SRC", help="folder of images, or of a folder for each class")
    pack.add_argument("dest", metavar="DEST", help="folder for the shards, new or empty")
    pack.add_argument(
        "--labels",
        default="auto",
        metavar="auto|folders|none",
        help="folders: an image's class is the folder that holds it; auto (default): so when all images lie exactly one "
        "folder deep, in two folders or more; none: no classes",
    )
    pack.add_argument(
        "--validation",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the images that goes to DEST/validation, the rest to DEST/train (default: 0, no split)",
    )
    pack.add_argument("--overwrite", action="store_true", help="remove what an earlier import wrote to DEST")
    pack.add_argument("--seed", type=int, default=0, metavar="S", help="of the order in the shards (default: 0)")
    pack.add_argument(
        "--workers", type=int, metavar="N", help="threads that read and decode (default: one for each CPU)"
    )
    pack.set_defaults(handler=_import)

    look = commands.add_parser(
        "check",
        help="say what is in a data set",
        description="Prints files, rows, row groups, columns, labels, and how a sample of the images decodes.",
        epilog="example: python -m pretrain.data check 's3://bucket/shards/*.parquet' --rows all",
        formatter_class=as_it_stands,
    )
    look.add_argument("url", metavar="URL", help="a Parquet file, a folder of them, or a glob in quotes")
    look.add_argument("--image-column", default="image", metavar="NAME", help="column with the images (default: image)")
    look.add_argument("--rows", default="1000", metavar="N|all", help="how many images to decode (default: 1000)")
    look.set_defaults(handler=_check)

    demo = commands.add_parser(
        "demo",
        help="make a small data set to try everything with",
        description="Writes a small made-up data set with labels, boxes and captions to DEST.",
        epilog="example: python -m pretrain.data demo my/demo --images 2000",
        formatter_class=as_it_stands,
    )
    demo.add_argument("dest", metavar="DEST", help="folder for the shards, new or empty")
    demo.add_argument("--images", type=int, default=2000, metavar="N", help="how many (default: 2000)")
    demo.add_argument("--seed", type=int, default=0, metavar="S", help="another seed makes other images (default: 0)")
    demo.set_defaults(handler=_demo)
    return parser


def _import(arguments: argparse.Namespace) -> int:
    from pretrain.data.importing import describe_import, import_folder

    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers must be at least 1, not {arguments.workers}")
    summary = import_folder(
        arguments.src,
        arguments.dest,
        labels=arguments.labels,
        validation_share=arguments.validation,
        seed=arguments.seed,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
    )
    print(describe_import(summary, arguments.dest))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from pretrain.data.check import check, parse_rows, print_report

    print_report(check(arguments.url, arguments.image_column, parse_rows(arguments.rows), show_progress=True))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from pretrain.data.demo_scenes import write_demo

    if arguments.images < 1:
        raise UserError(f"--images must be at least 1, not {arguments.images}")
    if names := storage.names_in(arguments.dest):
        raise UserError(f"{arguments.dest} is not empty (it holds {names[0]}); name another folder")
    written = write_demo(arguments.dest, num_images=arguments.images, seed=arguments.seed)
    print(f"wrote the demo data set to {arguments.dest}")
    for name, value in written.items():
        print(f"  {name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
