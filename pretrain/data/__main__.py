"""python -m pretrain.data import | check | views | demo"""

from __future__ import annotations

import argparse
import sys
import typing
from collections.abc import Sequence
from typing import Any

from cluster import storage
from cluster.errors import EXIT_STOPPED, UserError, run_command
from cluster.web_guard import allow_local_redirects

# What a command needs is imported by its handler, so that --help and typing errors answer at once.

EXAMPLES = """examples:
  python -m pretrain.data import my/photos my/shards                      class folders give the labels
  python -m pretrain.data import my/photos s3://bucket/shards --validation 0.2
  python -m pretrain.data check s3://bucket/shards --rows all --sheet sheet.png
  python -m pretrain.data check downloaded/data --fix my/shards           the same rows in row groups that suit training
  python -m pretrain.data views my/shards --recipe dino                   a sheet of what a method sees
  python -m pretrain.data demo my/demo --images 2000

SRC, DEST and URL are local paths or URLs of any store that fsspec knows (s3://, gs://, hf://, ...).
"""


def main(words: Sequence[str] | None = None) -> int:
    """Reads the command line, or `words` in its place, and runs one command."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(words)
    # words behind an option are no positional ones to argparse, once there were none behind the first
    if rest and not (arguments.handler is _views and all("=" in word and word[0] != "-" for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.arguments += rest
    return int(arguments.handler(arguments))


def _parser() -> argparse.ArgumentParser:
    as_it_stands = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.data",
        description="Makes data sets of Parquet shards and looks into them.",
        epilog=EXAMPLES,
        formatter_class=as_it_stands,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="import | check | views | demo")

    pack = commands.add_parser(
        "import",
        help="pack images into shards",
        description="Packs the images of SRC into shards in DEST. Every image is decoded for checking; bad ones are listed in\n"
        "DEST/_quarantine.jsonl, the others are stored byte for byte as they are (but see --short-side). A summary goes to\n"
        "DEST/_import.json. The same command again continues an import that was cut off.\n\n"
        "The kind of SRC is recognised, or given by --kind:\n"
        "  folder       images, or a folder for each class; hidden folders and those with a leading underscore are left out\n"
        "  coco         COCO json: FILE.json with boxes or captions, or a folder with one, or with one for each split\n"
        "  voc          Pascal VOC: a folder with an xml file for each image, in Annotations/ or beside it\n"
        "  yolo         YOLO and Darknet: a folder with a txt file for each image, in labels/ or beside it; class names in a\n"
        "               yaml, classes.txt or obj.names\n"
        "  labelme      a json file with shapes beside each image\n"
        "  cvat         CVAT for images: one xml with the shapes of many images\n"
        "  table        FILE.csv, .tsv, .jsonl, a .json list or .parquet with a column of paths or URLs, and "
        "labels, captions or\n"
        "               boxes (xmin, ymin, xmax, ymax; Open Images); or a folder with metadata.csv, .jsonl or .parquet\n"
        "  sidecar      texts beside images: .txt, .caption, .json, .cls (img2dataset and captioning programs)\n"
        "  tar          tars with WebDataset naming: a file, folder or glob\n"
        "  torchvision  torchvision:NAME or torchvision:NAME:SPLIT, such as torchvision:CIFAR10:test\n\n"
        "Splits that the source has (folders train, val, test; a yaml; a column) go to DEST/train, "
        "DEST/validation, DEST/test.\n"
        "What became of every file is in DEST/_import.json; exit code 3 means that too many were set aside.\n\n"
        "Columns of the shards, as far as the source has them: image {bytes, path}, label, labels, captions, and objects\n"
        "{bbox, category} with boxes as left, top, width, height in pixels.",
        epilog="examples: python -m pretrain.data import my/photos my/shards --validation 0.2\n"
        "          python -m pretrain.data import annotations/instances_train2017.json my/shards --images train2017\n"
        "          python -m pretrain.data import links.csv my/shards --drop-duplicates --short-side 256\n"
        "          python -m pretrain.data import 's3://bucket/shards/*.tar' s3://bucket/parquet",
        formatter_class=as_it_stands,
    )
    pack.add_argument("src", metavar="SRC", help="what to pack")
    pack.add_argument("dest", metavar="DEST", help="folder for the shards, new or empty")
    pack.add_argument("--kind", default="auto", metavar="KIND", help="kind of source (default: auto)")
    pack.add_argument(
        "--labels",
        metavar="auto|folders|none",
        help="folder: folders takes the folder that holds an image as its class; auto (default) does so when all images lie "
        "exactly one folder deep, in two folders or more; none: no classes",
    )
    pack.add_argument(
        "--images", metavar="FOLDER", help="coco, cvat, table: the folder of the images (default: looked for)"
    )
    pack.add_argument(
        "--boxes",
        metavar="xywh|xyxy|cxcywh|shares",
        help="coco, voc, yolo, table: what the four numbers of a box are: left, top, width, height; corners; centre and "
        "size, all in pixels; or shares of the sides (default: what the kind of source has)",
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
        metavar="SHARE",
        help="share of images or annotations that may be set aside before the import ends with exit code 3 (default: 0.05)",
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
    pack.add_argument("--root", metavar="FOLDER", help="torchvision: where its data sets are kept (default: data)")
    pack.add_argument("--download", action="store_true", default=None, help="torchvision: fetch what is not there")
    pack.add_argument(
        "--validation",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the images that goes to DEST/validation, the rest to DEST/train (default: 0, no split)",
    )
    pack.add_argument("--drop-duplicates", action="store_true", help="keep only the first of images with equal bytes")
    pack.add_argument(
        "--short-side",
        type=int,
        default=0,
        metavar="N",
        help="scale larger images down to N pixels on their short side and store them as JPEG (default: 0, as they are)",
    )
    pack.add_argument("--jpeg-quality", type=int, default=92, metavar="Q", help="of scaled images (default: 92)")
    pack.add_argument("--rows-per-group", type=int, default=64, metavar="N", help="rows of a row group (default: 64)")
    pack.add_argument("--group-mib", type=int, default=8, metavar="N", help="largest MiB of a row group (default: 8)")
    pack.add_argument("--shard-mib", type=int, default=256, metavar="N", help="MiB of a shard (default: 256)")
    pack.add_argument(
        "--check", action="store_true", help="look at the source and a few images, estimate, pack nothing"
    )
    pack.add_argument(
        "--overwrite",
        action="store_true",
        help="remove what an earlier import wrote to DEST; one that was cut off and had the same options is continued",
    )
    pack.add_argument("--seed", type=int, default=0, metavar="S", help="of the order in the shards (default: 0)")
    pack.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="threads that read and decode (default: one for each CPU; 32 in stores)",
    )
    pack.set_defaults(handler=_import)

    look = commands.add_parser(
        "check",
        help="say what is in a data set, and put its row groups right",
        description="Prints files, rows, row groups and columns, the classes of all rows, and for a sample of the rows how\n"
        "the images decode, exact duplicates, captions and boxes. Columns named label, labels, objects, captions or caption\n"
        "are looked at when their types fit, and boxes under any name; name others with the options.",
        epilog="examples: python -m pretrain.data check 's3://bucket/shards/*.parquet' --rows all\n"
        "          python -m pretrain.data check 'hf://datasets/OWNER/NAME/**/*.parquet' --sheet sheet.png\n"
        "          python -m pretrain.data check downloaded/data --fix my/shards --drop-bad --drop-duplicates",
        formatter_class=as_it_stands,
    )
    look.add_argument("url", metavar="URL", help="a Parquet file, a folder of them, or a glob in quotes")
    look.add_argument("--image-column", default="image", metavar="NAME", help="column with the images (default: image)")
    look.add_argument(
        "--label-column",
        action="append",
        default=[],
        metavar="NAME",
        help="column with a class or a list of classes; may be given several times",
    )
    look.add_argument(
        "--objects-column",
        metavar="NAME",
        help="column with boxes and their classes: struct<bbox, category> of lists, or a list of such structs",
    )
    look.add_argument("--caption-column", metavar="NAME", help="column with a caption or a list of captions")
    look.add_argument(
        "--box-format",
        default="xywh",
        choices=["xywh", "xyxy"],
        help="four numbers of a box, in pixels: left, top, width, height (default), or left, top, right, bottom",
    )
    look.add_argument("--rows", default="1000", metavar="N|all", help="how many rows to look at (default: 1000)")
    look.add_argument("--sheet", metavar="FILE.png", help="draw images spread over the rows, with labels and boxes")
    look.add_argument("--json", metavar="FILE", help="write the report as JSON")
    look.add_argument(
        "--fix",
        metavar="DEST",
        help="then write all rows, in order and with all columns, to shards with small row groups in DEST, a new folder",
    )
    look.add_argument("--drop-bad", action="store_true", help="with --fix: leave out rows whose image is bad")
    look.add_argument(
        "--drop-duplicates",
        action="store_true",
        help="with --fix: of images that are equal byte for byte keep the first; what is left out is in DEST/_dropped.jsonl",
    )
    look.set_defaults(handler=_check)

    views = commands.add_parser(
        "views",
        help="draw images and the views that a recipe makes of them",
        description="Writes a contact sheet: a line for each image, with its crops drawn in, and its views beside it.",
        epilog="example: python -m pretrain.data views my/shards --size 64 --set crop_scale=[0.2,1] strength=0.5",
        formatter_class=as_it_stands,
    )
    views.add_argument("url", metavar="URL", help="a Parquet file, a folder of them, or a glob in quotes")
    views.add_argument(
        "arguments", nargs="*", metavar="KEY=VALUE", help="arguments of the recipe, as in views.arguments"
    )
    views.add_argument(
        "--recipe",
        default="simclr",
        metavar="NAME",
        help="simclr, moco_v2, byol, vicreg, swav, dino, densecl or weak (default: simclr)",
    )
    views.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="arguments of the recipe, as in views.arguments",
    )
    views.add_argument("--size", type=int, default=224, metavar="N", help="side of a view in pixels (default: 224)")
    views.add_argument("--channels", type=int, default=3, metavar="N", help="as views.channels (default: 3)")
    views.add_argument(
        "--image-column", default="image", metavar="NAME", help="column with the images (default: image)"
    )
    views.add_argument("--images", type=int, default=8, metavar="N", help="how many images (default: 8)")
    views.add_argument("--seed", type=int, default=0, metavar="S", help="another seed makes other views (default: 0)")
    views.add_argument("--out", default="views.png", metavar="FILE.png", help="the sheet (default: views.png)")
    views.set_defaults(handler=_views)

    demo = commands.add_parser(
        "demo",
        help="make a small data set to try everything with",
        description="Writes a small made-up data set with labels, boxes and captions to DEST.",
        epilog="example: python -m pretrain.data demo my/demo --images 2000",
        formatter_class=as_it_stands,
    )
    demo.add_argument("dest", metavar="DEST", help="folder for the shards, new or empty")
    demo.add_argument("--images", type=int, default=2000, metavar="N", help="how many (default: 2000)")
    demo.add_argument(
        "--validation", type=float, default=0.2, metavar="SHARE", help="share of them that is held out (default: 0.2)"
    )
    demo.add_argument(
        "--unlabelled", type=int, default=0, metavar="N", help="further ones, of the image alone (default: 0)"
    )
    demo.add_argument("--seed", type=int, default=0, metavar="S", help="another seed makes other images (default: 0)")
    demo.set_defaults(handler=_demo)
    return parser


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of one of the commands."""
    for action in _parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return typing.cast(argparse.ArgumentParser, action.choices[command])
    raise KeyError(command)


def _import(arguments: argparse.Namespace) -> int:
    summary = import_as_asked(arguments)
    if summary is not None and summary["stopped"] is not None:
        print(f"stopped: {summary['stopped']}", file=sys.stderr, flush=True)
        return EXIT_STOPPED
    return 0


def import_as_asked(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Imports as the options of the command ask for, and prints; returns the summary, None for a check."""
    from pretrain.data.importing import ImportOptions, describe_import, import_images
    from pretrain.data.sources import Columns

    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers must be at least 1, not {arguments.workers}")
    options = ImportOptions(
        validation_share=arguments.validation,
        seed=arguments.seed,
        drop_duplicates=arguments.drop_duplicates,
        short_side=arguments.short_side,
        jpeg_quality=arguments.jpeg_quality,
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
        from pretrain.data.import_check import check_import

        print("\n".join(check_import(arguments.src, arguments.dest, options, **more)))
        return None
    try:
        summary = import_images(arguments.src, arguments.dest, options, max_set_aside=arguments.max_set_aside, **more)
    except KeyboardInterrupt:
        print("whole shards are kept; the same command continues", file=sys.stderr, flush=True)
        raise
    print(describe_import(summary, arguments.dest))
    return summary


def _check(arguments: argparse.Namespace) -> int:
    check_as_asked(arguments)
    return 0


def check_as_asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """Checks as the options of the command ask for, and prints; returns the report."""
    from pretrain.data.check import Asked, check, parse_rows
    from pretrain.data.check_report import print_fix, print_report
    from pretrain.data.regroup import check_places, lies_in, regroup

    if arguments.fix is None and (arguments.drop_bad or arguments.drop_duplicates):
        raise UserError("--drop-bad and --drop-duplicates need --fix DEST; a check alone changes nothing")
    if arguments.sheet is not None and not arguments.sheet.lower().endswith(".png"):
        raise UserError(f"--sheet {arguments.sheet}: the contact sheet is a PNG; name a file that ends in .png")
    num_rows = parse_rows(arguments.rows)
    if arguments.fix is not None:
        check_places(arguments.url, arguments.fix)
        if arguments.sheet is not None and lies_in(arguments.sheet, arguments.fix):
            raise UserError(f"--sheet {arguments.sheet} lies in --fix {arguments.fix}; name a file outside of it")
    asked = Asked(
        tuple(arguments.label_column), arguments.objects_column, arguments.caption_column, arguments.box_format
    )
    report = check(
        arguments.url,
        arguments.image_column,
        num_rows,
        asked=asked,
        sheet_url=arguments.sheet,
        show_progress=True,
    )
    print_report(report)
    if arguments.fix is not None:
        report["fix"] = regroup(
            arguments.url,
            arguments.fix,
            arguments.image_column,
            drop_bad=arguments.drop_bad,
            drop_duplicates=arguments.drop_duplicates,
            show_progress=True,
        )
        print_fix(report["fix"])
    if arguments.json is not None:
        storage.write_json(arguments.json, report)
    return report


def _views(arguments: argparse.Namespace) -> int:
    from cluster.typed_yaml import read_words
    from pretrain.data.view_sheet import write_view_sheet

    for name in ("size", "channels", "images"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(arguments, name)}")
    if not arguments.out.lower().endswith(".png"):
        raise UserError(f"--out {arguments.out}: the contact sheet is a PNG; name a file that ends in .png")
    given = read_words([*arguments.arguments, *arguments.set])
    num = write_view_sheet(
        arguments.url,
        arguments.out,
        arguments.recipe,
        size=arguments.size,
        arguments=given,
        image_column=arguments.image_column,
        channels=arguments.channels,
        num_images=arguments.images,
        seed=arguments.seed,
    )
    print(f"views of {num} images: {arguments.out}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from pretrain.data.demo_scenes import SUMMARY, UNFINISHED, write_demo

    if arguments.images < 1:
        raise UserError(f"--images must be at least 1, not {arguments.images}")
    num_validation = round(arguments.images * arguments.validation)
    asked = {
        "train": arguments.images - num_validation,
        "validation": num_validation,
        "unlabelled": arguments.unlabelled,
        "seed": arguments.seed,
    }
    names = storage.names_in(arguments.dest)
    if SUMMARY in names and UNFINISHED not in names:
        summary = storage.read_json(storage.join(arguments.dest, SUMMARY))
        if {name: summary.get(name) for name in asked} == asked:
            print(f"the demo data set in {arguments.dest} is finished already")
            return 0
    if names and UNFINISHED not in names:
        raise UserError(f"{arguments.dest} is not empty (it holds {names[0]}); name another folder")
    written = write_demo(
        arguments.dest,
        num_images=arguments.images,
        validation_share=arguments.validation,
        num_unlabelled=arguments.unlabelled,
        seed=arguments.seed,
    )
    print(f"wrote the demo data set to {arguments.dest}")
    for name, value in written.items():
        print(f"  {name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
