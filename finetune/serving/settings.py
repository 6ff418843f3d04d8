"""The schema of `python -m finetune serve`."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.settings import setting


@dataclass(frozen=True)
class ServeSettings:
    """How a model is served."""

    host: str = setting(
        "127.0.0.1",
        help="address to listen on; any address that other machines can reach (0.0.0.0) requires "
        "clients to send a token",
    )
    port: int = setting(8000, minimum=0, maximum=65535, help="port to listen on; 0 takes a free one")
    token_file: str | None = setting(
        None,
        help="file with the token that clients must send; null: FOVEA_SERVE_TOKEN, else one is "
        "generated and printed if the host requires one",
    )
    replicas: int = setting(
        1, minimum=1, help="processes that hold the model, each with its own CPUs or GPU"
    )
    cpus_per_replica: int | None = setting(
        None,
        minimum=1,
        help="CPUs of each replica, and its decoding threads; null: this machine's CPUs, shared evenly",
    )
    gpus_per_replica: int | None = setting(
        None, minimum=0, maximum=1, help="GPUs of each replica, 0 or 1; null: 1 if there is one"
    )
    address: str | None = setting(None, help="Ray cluster to join; null: RAY_ADDRESS, else a private Ray")
    batch_size: int = setting(32, minimum=1, help="maximum number of images in a batch")
    batch_wait_seconds: float = setting(
        0.005, minimum=0, maximum=10, help="how long a batch that is not full waits for more images"
    )
    threshold: float | None = setting(
        None,
        minimum=0,
        maximum=1,
        help="minimum score of a box, a keyword, or a class (of a multi-label model) in an answer; "
        "null: all boxes, and the model's own threshold for the others",
    )
    top_k: int | None = setting(
        None,
        minimum=1,
        help="maximum number of scores, boxes or keywords per image, the best ones; null: all",
    )
    max_megabytes: float = setting(
        50.0, above=0, help="maximum size of a request (MB); a larger one is refused before it is read"
    )
    max_megapixels: float = setting(
        50.0, above=0, help="maximum megapixels of an image; a larger one is not decoded"
    )
    max_images: int = setting(32, minimum=1, help="maximum number of images in a request")
    max_requests: int = setting(
        256, minimum=1, help="maximum number of requests in progress; others are asked to try again later"
    )
    max_waiting_megabytes: float = setting(
        500.0,
        above=0,
        help="maximum total size of the requests in progress (MB); others are asked to try again later",
    )
    timeout_seconds: float = setting(
        60.0, above=0, help="time limit for receiving a request, and again for answering it"
    )
    drain_seconds: float = setting(
        30.0, minimum=0, help="time that requests in progress get when the command is stopped"
    )
