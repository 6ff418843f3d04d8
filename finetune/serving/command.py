"""python -m finetune serve MODEL: a model behind HTTP, on Ray Serve."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cluster import storage
from cluster.calling import add_settings, settings_given
from cluster.command_line import CommandLine
from cluster.errors import UserError
from finetune.serving.settings import ServeSettings

TOKEN_VARIABLE = "FOVEA_SERVE_TOKEN"  # noqa: S105 - its name
SHORTEST_TOKEN = 16
BACKLOG = 2048
DESCRIPTION = """Answers images over HTTP with the records that `predict` writes, until it is stopped
(Ctrl-C, SIGTERM).

  curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/predict
  curl -F image=@one.jpg -F image=@two.jpg http://127.0.0.1:8000/predict
"""


def parser() -> CommandLine:
    """The command line."""
    parser = CommandLine(
        prog="python -m finetune serve",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="model folder, a path or any fsspec URL")
    add_settings(parser, ServeSettings)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Reads the command line and serves until it is ended; returns the exit code."""
    options = parser().parse_args(arguments)
    serve(options.model, settings_given(options, ServeSettings))
    return 0


def serve(model_url: str, settings: ServeSettings) -> None:
    """Serves a model until the process is told to end, and prints where.

    Raises UserError for a model, an address or a token that cannot be used.
    """
    try:
        from cluster.serving.replicas import Service, replicas
        from finetune.serving.app import MEGA, new_app
        from finetune.serving.server import answer_requests
    except ImportError as error:
        raise UserError(f"serving needs Ray Serve: pip install 'fovea[serve]' ({error})") from error
    from finetune.model import load_model
    from finetune.serving.served_model import ServedModel, with_threshold

    token, made = token_of(settings)
    with bound(settings.host, settings.port) as listener:
        # what is wrong with a model is said here, and not by a replica
        predictor = with_threshold(load_model(model_url), settings.threshold)
        model = ServedModel(
            storage.absolute(model_url),
            int(settings.max_megapixels * MEGA),
            settings.cpus_per_replica or 0,
            settings.threshold,
            settings.top_k,
        )
        service = Service(
            model,
            settings.replicas,
            settings.cpus_per_replica,
            settings.gpus_per_replica,
            settings.batch_size,
            settings.batch_wait_seconds,
            settings.address,
        )
        print(
            f"serve: starting {settings.replicas} replica{'s' * (settings.replicas > 1)} of {model_url}",
            flush=True,
        )
        with replicas(service) as running:
            app = new_app(
                running, predictor.config, predictor.names, predictor.result_type, settings,
                channels=predictor.channels, token=token,
            )  # fmt: skip
            start_listening(listener)
            if made:
                print(f"serve: clients must send this token, which is not shown again: {token}", flush=True)
            print(f"serve: {url_of(listener)} answers; Ctrl-C ends it", flush=True)
            asyncio.run(answer_requests(app, listener, drain_seconds=settings.drain_seconds))
    print("serve: ended", flush=True)


def token_of(settings: ServeSettings) -> tuple[str | None, bool]:
    """The token that clients must send, or None; and whether it was made here.
    Raises UserError for one that is too weak.
    """
    given, where = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
    if settings.token_file is not None:
        where = settings.token_file
        try:
            given = Path(where).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the token cannot be read from the file {where}: {error}") from error
    if given is None:
        return (None, False) if is_loopback(settings.host) else (secrets.token_urlsafe(32), True)
    if len(given) < SHORTEST_TOKEN or not given.isascii() or not given.isprintable() or " " in given:
        raise UserError(
            f"the token in {where} has {len(given)} characters; it needs {SHORTEST_TOKEN} or more, without "
            "blanks (python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one)"
        )
    return given, False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host == "localhost"


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the address and lets nobody in yet. Raises UserError where that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"host={host} is no address of this machine: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _taken(host, port, error) from error
    return listener


def start_listening(listener: socket.socket) -> None:
    """Lets clients in. Raises UserError where another server took the port meanwhile."""
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _taken(host, port, error) from error


def _taken(host: str, port: int, error: OSError) -> UserError:
    return UserError(
        f"cannot listen on port {port} of {host}: {error.strerror}; give another port, or port 0 for a free "
        "one"
    )


def url_of(listener: socket.socket) -> str:
    """Where clients find a socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
