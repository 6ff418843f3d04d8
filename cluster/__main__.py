"""python -m cluster submit | status | logs | stop | list | pipeline"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from cluster.command_line import CommandLine, as_settings
from cluster.errors import UserError, run_process

DESCRIPTION = "Jobs and pipelines of jobs on a Ray cluster."
ADDRESS_HELP = (
    "the cluster's dashboard, http://HOST:8265 (default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine)"
)
SUBMIT_EPILOG = """example: python -m cluster submit --name first -- \\
    python -m pretrain configs/pretrain/simclr.yaml data.url=s3://bucket/shards out=s3://bucket/first \\
    cluster.workers=8

The working tree is sent along: code and configurations, without what .gitignore and .rayignore name,
environments, data and runs. Ctrl-C leaves the job running. The exit code is the job's."""
PIPELINE_EPILOG = """example: python -m cluster pipeline configs/pipelines/demo.yaml out=runs/pipeline

If --address or the environment names a cluster, each stage is a Ray job there; otherwise the stages are
processes on this machine, side by side as their cpus allow. Given again, the same command does what is
missing. Submit it as a job so that it outlives the terminal:
  python -m cluster submit -- python -m cluster pipeline FILE.yaml out=s3://bucket/night"""


def main(arguments: list[str]) -> int:
    """Reads the command line and runs."""
    ours, command = arguments, []
    if "--" in arguments:
        cut = arguments.index("--")
        ours, command = arguments[:cut], arguments[cut + 1 :]
    line = parser()
    options, rest = line.parse_known_args(ours)
    if rest and options.command != "pipeline":
        line.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.settings += as_settings(rest)
    if command and options.command != "submit":
        raise UserError("only `submit` takes a command after --")
    options.words = command
    code: int = options.handler(options)
    return code


def _job(name: str) -> Callable[[argparse.Namespace], int]:
    """A command's function; its module is imported when it is called, because Ray's takes a second."""

    def handler(options: argparse.Namespace) -> int:
        from cluster.jobs import job_commands

        handlers = {
            "submit": job_commands.submit,
            "status": job_commands.status,
            "logs": job_commands.logs,
            "stop": job_commands.stop,
            "list": job_commands.list_jobs,
        }
        return handlers[name](options)

    return handler


def _pipeline(options: argparse.Namespace) -> int:
    from cluster.jobs.pipeline.command import pipeline

    return pipeline(options)


def parser() -> CommandLine:
    """The command line."""
    parser = CommandLine(prog="python -m cluster", description=DESCRIPTION)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")

    def add(name: str, handler: Any, help: str, epilog: str | None = None) -> argparse.ArgumentParser:
        form = argparse.RawDescriptionHelpFormatter
        made = commands.add_parser(name, help=help, description=help, epilog=epilog, formatter_class=form)
        made.add_argument("--address", help=ADDRESS_HELP)
        made.set_defaults(handler=handler)
        return made

    submit = add("submit", _job("submit"), "run a command on the cluster and follow it", SUBMIT_EPILOG)
    submit.usage = "python -m cluster submit [options] -- COMMAND ..."
    submit.add_argument("--name", help="begins the job's id (default: the command's module)")
    submit.add_argument(
        "--cpus", type=_amount, default=0.0, help="CPUs of the command itself; workers ask for their own"
    )
    submit.add_argument("--gpus", type=_amount, default=0.0, help="GPUs of the command itself")
    submit.add_argument(
        "--runtime-env", metavar="FILE.yaml", help="Ray runtime environment: pip, env_vars, image_uri, ..."
    )
    submit.add_argument("--detach", action="store_true", help="do not follow")
    submit.add_argument("--list-files", action="store_true", help="say what would be sent, and send nothing")
    for name, handler, help in (
        ("status", _job("status"), "the state of a job"),
        ("logs", _job("logs"), "what a job printed"),
        ("stop", _job("stop"), "end a job"),
    ):
        one = add(name, handler, help)
        one.add_argument("job", metavar="JOB", help="id of the job")
        if name == "logs":
            one.add_argument(
                "-f",
                "--follow",
                action="store_true",
                help="follow until the job ends and exit with its code",
            )
    add("list", _job("list"), "the jobs of the cluster, the newest first")
    pipeline = add("pipeline", _pipeline, "run stages that depend on each other", PIPELINE_EPILOG)
    pipeline.add_argument("file", metavar="FILE.yaml", help="the stages; see configs/pipelines/")
    pipeline.add_argument(
        "settings", metavar="key=value", nargs="*", help="parameters and settings of the file"
    )
    return parser


def _amount(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not possible: 0 or more")
    return value


if __name__ == "__main__":
    run_process(lambda: main(sys.argv[1:]))
