"""python -m pretrain.data import | check | views | demo"""

from __future__ import annotations

import argparse
import typing
from collections.abc import Sequence
from typing import Any

from cluster.command_line import CommandLine, as_settings
from cluster.errors import UserError, run_process

AS_IT_STANDS = argparse.RawDescriptionHelpFormatter

# What a command needs is imported by its handler, so that --help and typing errors answer at once, and
# Ctrl-C meets `run_command`.

EXAMPLES = """examples:
  python -m pretrain.data import my/photos my/shards                      class folders give the labels
  python -m pretrain.data import my/photos s3://bucket/shards --validation 0.2
  python -m pretrain.data check s3://bucket/shards --rows all --sheet sheet.png
  python -m pretrain.data check downloaded/data --fix my/shards           the same rows in small row groups
  python -m pretrain.data views my/shards --recipe dino                   a sheet of what a method sees
  python -m pretrain.data demo my/demo --images 2000

SRC, DEST and URL are local paths or URLs of any store that fsspec knows (s3://, gs://, hf://, ...).
"""


def main(words: Sequence[str] | None = None) -> int:
    """Reads the command line, or `words` in its place, and runs one command."""
    line = parser()
    arguments, rest = line.parse_known_args(words)
    # words behind an option are no positional ones to argparse, once there were none behind the first
    if rest and arguments.handler is not _views:
        line.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.arguments += as_settings(rest)
    return int(arguments.handler(arguments))


def parser() -> CommandLine:
    """The command line."""
    from pretrain.data.packing.import_command import add_import

    parser = CommandLine(
        prog="python -m pretrain.data",
        description="Makes data sets of Parquet shards and looks into them.",
        epilog=EXAMPLES,
        formatter_class=AS_IT_STANDS,
    )
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="import | check | views | demo"
    )

    add_import(commands)
    _add_check(commands)
    _add_views(commands)
    _add_demo(commands)
    return parser


def _add_check(commands: Any) -> None:
    look = commands.add_parser(
        "check",
        help="describe a data set, and rewrite it with small row groups",
        description="Prints files, rows, row groups and columns, the classes of all rows, and for a sample "
        "of the rows how\n"
        "the images decode, exact duplicates, captions and boxes. Columns named label, labels, objects, "
        "captions or caption\n"
        "are looked at when their types fit, and boxes under any name; name others with the options.",
        epilog="examples: python -m pretrain.data check 's3://bucket/shards/*.parquet' --rows all\n"
        "          python -m pretrain.data check 'hf://datasets/OWNER/NAME/**/*.parquet' --sheet sheet.png\n"
        "          python -m pretrain.data check downloaded/data --fix my/shards --drop-bad "
        "--drop-duplicates",
        formatter_class=AS_IT_STANDS,
    )
    look.add_argument("url", metavar="URL", help="a Parquet file, a folder of them, or a glob in quotes")
    look.add_argument(
        "--image-column", default="image", metavar="NAME", help="column with the images (default: image)"
    )
    look.add_argument(
        "--image-root",
        metavar="FOLDER",
        help="folder of the images, if the files hold only their paths (as data.image_root)",
    )
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
        help="column with boxes and their classes: struct<bbox, category> of lists, or a list of such "
        "structs",
    )
    look.add_argument("--caption-column", metavar="NAME", help="column with a caption or a list of captions")
    look.add_argument(
        "--box-format",
        default="xywh",
        choices=["xywh", "xyxy"],
        help="four numbers of a box, in pixels: left, top, width, height (default), or left, top, right, "
        "bottom",
    )
    look.add_argument(
        "--rows", default="1000", metavar="N|all", help="how many rows to look at (default: 1000)"
    )
    look.add_argument(
        "--sheet", metavar="FILE.png", help="draw images spread over the rows, with labels and boxes"
    )
    look.add_argument("--json", metavar="FILE", help="write the report as JSON")
    look.add_argument(
        "--fix",
        metavar="DEST",
        help="then write all rows, in order and with all columns, to shards with small row groups in DEST, "
        "a new folder",
    )
    look.add_argument(
        "--decoded",
        action="store_true",
        help="with --fix: store images decoded, which takes several times the space and is read "
        "several times as fast",
    )
    look.add_argument(
        "--drop-bad", action="store_true", help="with --fix: leave out rows whose image is bad"
    )
    look.add_argument(
        "--drop-duplicates",
        action="store_true",
        help="with --fix: keep only the first of images that are equal byte for byte; what is left out is "
        "listed in "
        "DEST/_dropped.jsonl",
    )
    look.set_defaults(handler=_check)


def _add_views(commands: Any) -> None:
    views = commands.add_parser(
        "views",
        help="draw images and the views that a recipe makes of them",
        description="Writes a contact sheet: a line for each image, with its crops drawn in, and its views "
        "beside it.",
        epilog="example: python -m pretrain.data views my/shards --size 64 --set crop_scale=[0.2,1] "
        "strength=0.5",
        formatter_class=AS_IT_STANDS,
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
    views.add_argument(
        "--size", type=int, default=224, metavar="N", help="side of a view in pixels (default: 224)"
    )
    views.add_argument("--channels", type=int, default=3, metavar="N", help="as views.channels (default: 3)")
    views.add_argument(
        "--image-column", default="image", metavar="NAME", help="column with the images (default: image)"
    )
    views.add_argument("--images", type=int, default=8, metavar="N", help="how many images (default: 8)")
    views.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the views (default: 0)")
    views.add_argument(
        "--out", default="views.png", metavar="FILE.png", help="the sheet (default: views.png)"
    )
    views.set_defaults(handler=_views)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="make a small data set to try everything with",
        description="Writes a small made-up data set with labels, boxes and captions to DEST.",
        epilog="example: python -m pretrain.data demo my/demo --images 2000",
        formatter_class=AS_IT_STANDS,
    )
    demo.add_argument("dest", metavar="DEST", help="folder for the shards, new or empty")
    demo.add_argument("--images", type=int, default=2000, metavar="N", help="how many (default: 2000)")
    demo.add_argument(
        "--validation",
        type=float,
        default=0.2,
        metavar="FRACTION",
        help="fraction of them that is held out (default: 0.2)",
    )
    demo.add_argument(
        "--unlabelled",
        type=int,
        default=0,
        metavar="N",
        help="further ones, of the image alone (default: 0)",
    )
    demo.add_argument(
        "--seed", type=int, default=0, metavar="S", help="another seed makes other images (default: 0)"
    )
    demo.set_defaults(handler=_demo)


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of one of the commands."""
    for action in parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return typing.cast(argparse.ArgumentParser, action.choices[command])
    raise KeyError(command)


def _check(arguments: argparse.Namespace) -> int:
    check_as_asked(arguments)
    return 0


def check_as_asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """Checks as the options of the command ask for, and prints; returns the report."""
    from pretrain.data.checking.check import check, parse_rows
    from pretrain.data.checking.check_report import print_fix, print_report
    from pretrain.data.checking.columns import Asked
    from pretrain.data.packing.regroup import check_locations, lies_in, regroup
    from pretrain.data.reading.image_paths import use_image_root

    if arguments.fix is None and (arguments.drop_bad or arguments.drop_duplicates or arguments.decoded):
        raise UserError(
            "--drop-bad, --drop-duplicates and --decoded need --fix DEST; a check alone changes nothing"
        )
    if arguments.sheet is not None and not arguments.sheet.lower().endswith(".png"):
        raise UserError(
            f"--sheet {arguments.sheet}: the contact sheet is a PNG; name a file that ends in .png"
        )
    num_rows = parse_rows(arguments.rows)
    use_image_root(arguments.image_root)
    if arguments.fix is not None:
        check_locations(arguments.url, arguments.fix)
        if arguments.sheet is not None and lies_in(arguments.sheet, arguments.fix):
            raise UserError(
                f"--sheet {arguments.sheet} lies in --fix {arguments.fix}; name a file outside it"
            )
    asked = Asked(
        tuple(arguments.label_column),
        arguments.objects_column,
        arguments.caption_column,
        arguments.box_format,
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
            decoded_form=arguments.decoded,
            show_progress=True,
        )
        print_fix(report["fix"])
    if arguments.json is not None:
        from cluster import storage

        storage.write_json(arguments.json, report)
    return report


def _views(arguments: argparse.Namespace) -> int:
    from cluster.typed_yaml import read_words
    from pretrain.data.views.view_sheet import write_view_sheet

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
    from cluster import storage
    from pretrain.data.scenes.scenes import SUMMARY, UNFINISHED, write_demo

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
        validation_fraction=arguments.validation,
        num_unlabelled=arguments.unlabelled,
        seed=arguments.seed,
    )
    print(f"wrote the demo data set to {arguments.dest}")
    for name, value in written.items():
        print(f"  {name}: {value}")
    return 0


if __name__ == "__main__":
    run_process(main)
