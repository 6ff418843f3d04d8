"""Settings that pretraining and fine-tuning share. Each key says what it means; `--help` prints them."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from cluster import storage
from cluster.errors import UserError
from cluster.settings import setting
from pretrain.data.images.decode import set_max_pixels
from pretrain.data.reading.image_paths import use_image_root
from pretrain.training import parent
from pretrain.training.optimizers import OPTIMIZERS
from pretrain.training.schedules import SCALINGS


@dataclass(frozen=True)
class DataSettings:
    """Which rows are read, and how."""

    url: Any = setting(
        texts=True,
        help="Parquet shards: a folder, file or glob, or a list of these; paths or any fsspec URLs (s3://, "
        "gs://, hf://, ...)",
    )
    weights: list[float] = setting(
        [],
        above=0,
        help="for a list of URLs: how often the rows of each are seen in an epoch; empty is once each",
    )
    image_column: str = setting("image", help="column of encoded images: struct<bytes, path> or binary")
    image_root: str | None = setting(
        None,
        help="folder (a path or any fsspec URL) of the images, if the files hold their paths instead "
        "of their bytes",
    )
    num_streams: int = setting(
        0, minimum=0, help="canonical streams; 0 takes the largest divisor of the batch up to 64"
    )
    shuffle_window_rows: int = setting(
        8192, minimum=1, help="rows (over all ranks) inside which rows are shuffled"
    )
    max_bad_fraction: float = setting(
        0.05, minimum=0, maximum=1, help="fraction of undecodable rows that stops the run"
    )
    max_megapixels: float = setting(
        100.0, above=0, help="larger images are bad rows; JPEGs above 100 are decoded at a reduced size"
    )
    on_change: str = setting(
        "refuse",
        choices=["refuse", "continue"],
        help="what to do when the data changed under an unfinished run: refuse, or continue with the new "
        "data",
    )
    decode_threads: int = setting(
        0, minimum=0, help="threads a worker decodes with; 0 takes its share of the CPUs"
    )
    read_threads: int = setting(4, minimum=1, help="threads a worker waits for storage with")
    prefetch_batches: int = setting(2, minimum=1, help="batches kept ready; more use more memory")
    prefetch_mib: int = setting(
        256, minimum=1, help="MiB of encoded images a worker reads ahead of the rows in use"
    )
    keep: str = setting(
        "none",
        choices=["none", "host"],
        help="keep decoded images in the memory of each worker, for data that fits",
    )
    keep_gib: float = setting(
        4.0, minimum=0, help="GiB that a worker may use for this; the rest is decoded each time"
    )
    storage_options: dict[str, Any] = setting(
        {},
        help="fsspec options for the store of url: endpoint_url, key, secret, anon, ...; secrets are never "
        "written down",
    )
    cache_dir: str | None = setting(
        None, help="folder on a local disk that keeps what was read from a store"
    )
    cache_gib: float = setting(
        0.0, minimum=0, help="GiB that cache_dir may take on each node; 0 keeps nothing"
    )

    def __post_init__(self) -> None:
        urls = self.url if isinstance(self.url, list) else [self.url]
        if not urls or not all(isinstance(url, str) and url for url in urls):
            raise UserError(f"data.url={self.url!r} is not possible: give a path, a URL, or a list of them")

    def use_stores(self) -> None:
        """Makes this process read with these stores, cache, image root and size of images;
        each process calls it first.
        """
        use_image_root(self.image_root)
        storage.use_options(self.urls, self.storage_options)
        storage.use_cache(self.cache_dir, self.cache_gib)
        set_max_pixels(int(self.max_megapixels * 1e6))

    @property
    def keep_bytes(self) -> int:
        """Memory for decoded images."""
        return int(self.keep_gib * 2**30)

    @property
    def urls(self) -> list[str]:
        """The data sets to read, at least one."""
        return list(self.url) if isinstance(self.url, list) else [self.url]

    def with_absolute_urls(self) -> DataSettings:
        """The same with local paths made absolute: workers may run in another folder."""
        urls = [storage.absolute(url) for url in self.urls]
        root = None if self.image_root is None else storage.absolute(self.image_root)
        return dataclasses.replace(
            self, url=urls if isinstance(self.url, list) else urls[0], image_root=root
        )


@dataclass(frozen=True)
class OptimizerSettings:
    """How parameters move."""

    name: str = setting("adamw", choices=sorted(OPTIMIZERS), help="optimizer")
    learning_rate: float = setting(
        1e-3, minimum=0, help="peak learning rate before scaling by the batch size"
    )
    scaling: str = setting(
        "linear", choices=sorted(SCALINGS), help="linear: times batch / 256; sqrt: times sqrt(batch); none"
    )
    momentum: float = setting(0.9, minimum=0, below=1, help="momentum; the first beta of adamw")
    weight_decay: float = setting(
        0.05, minimum=0, help="weight decay of matrices and kernels (not of biases and norms)"
    )
    final_weight_decay: float | None = setting(
        None, minimum=0, help="weight decay at the last step, reached along half a cosine; null: constant"
    )
    final_fraction: float = setting(
        0.0, minimum=0, maximum=1, help="fraction of the peak learning rate at the last step"
    )


@dataclass(frozen=True)
class TrainingSettings:
    """How long and in what steps."""

    batch_size_global: int = setting(256, minimum=2, help="images of a step over all workers")
    epochs: float = setting(100.0, minimum=0, help="passes over the data")
    steps: int | None = setting(
        None, minimum=1, help="number of steps, instead of epochs; null: as many as the epochs take"
    )
    warmup_epochs: float = setting(10.0, minimum=0, help="epochs in which the learning rate rises")
    precision: str = setting(
        "auto", choices=["auto", "float32", "bfloat16"], help="auto: bfloat16 on CUDA, float32 on the CPU"
    )
    reproducible: bool = setting(
        True,
        help="the same seed gives the same numbers bit for bit; false: faster kernels on CUDA that may not",
    )
    compile: bool | None = setting(None, help="torch.compile the encoder; null: on CUDA only")
    activation_checkpointing: bool = setting(
        False,
        help="keep only the inputs of the encoder's blocks and recompute the rest in the backward "
        "pass: less memory, up to a third more computation, the same numbers",
    )
    clip_gradient: float = setting(0.0, minimum=0, help="maximum norm of the gradient; 0 does not clip")
    on_nonfinite: str = setting(
        "stop", choices=["stop", "skip"], help="what to do at a non-finite loss or gradient"
    )
    log_every_steps: int = setting(20, minimum=1, help="steps between two lines of metrics.jsonl")
    checkpoint_every_steps: int = setting(1000, minimum=1, help="steps between two checkpoints")
    checkpoint_every_seconds: float = setting(
        300.0, minimum=0, help="seconds after which a checkpoint is written anyway"
    )
    parent: str | None = setting(
        None,
        help="another run, RUN or RUN@STEP, from whose checkpoint this one starts, with settings of "
        "its own (learning rate, length, ...)",
    )
    keep_checkpoints: int = setting(2, minimum=1, help="newest checkpoints kept")

    def __post_init__(self) -> None:
        if self.epochs == 0 and self.steps is None:
            raise UserError(
                "training.epochs=0 is not possible: no step is taken; give more, or training.steps"
            )

    def with_absolute_parent(self) -> TrainingSettings:
        """The same with a local path made absolute: workers may run in another folder."""
        return dataclasses.replace(self, parent=parent.absolute(self.parent))


@dataclass(frozen=True)
class ClusterSettings:
    """Where the work runs."""

    workers: int = setting(1, minimum=0, help="Ray workers; 0 runs in this process without Ray")
    min_workers: int = setting(
        0,
        minimum=0,
        help="minimum number of workers to continue with when machines are lost (the run grows again "
        "later); 0: wait for `workers`",
    )
    cpus_per_worker: float | None = setting(
        None,
        above=0,
        help="CPUs of a worker; null: this machine's CPUs, shared evenly; on a cluster, the share of "
        "the node's CPUs that belongs to a GPU",
    )
    gpus_per_worker: float | None = setting(
        None,
        minimum=0,
        maximum=1,
        help="1: a worker computes on a GPU, 0: on CPUs; null is 1 where there are GPUs, else 0",
    )
    max_failures: int = setting(3, minimum=-1, help="restarts after failures; -1 for no limit")
    hang_seconds: float = setting(
        600.0, minimum=1, help="seconds that workers wait for one that hangs before all are restarted"
    )
    resize_seconds: float = setting(
        60.0, minimum=1, help="seconds between checks whether a shrunk run can grow again"
    )
    address: str | None = setting(None, help="Ray cluster to join; null: RAY_ADDRESS, else a private Ray")


@dataclass(frozen=True)
class EncoderSettings:
    """Which network."""

    name: str = setting(
        "convattn_small", help="convattn_nano|tiny|small|base, convattn_classic or timm:NAME"
    )
    arguments: dict[str, Any] = setting({}, help="keyword arguments of the encoder")


# settings that may differ when a run is continued, because they do not change what is computed: where and
# how fast it runs, what is watched, and the rules that end it
UNSEEN = (
    "out",
    "report_images",
    "tracking",
    "compare",
    "cluster.",
    "data.on_change",
    "data.decode_threads",
    "data.read_threads",
    "data.prefetch_batches",
    "data.prefetch_mib",
    "data.keep",
    "data.keep_gib",
    "data.storage_options",
    "data.storage_options.",
    "data.cache_dir",
    "data.image_root",
    "data.cache_gib",
    "training.checkpoint_every_steps",
    "training.checkpoint_every_seconds",
    "training.keep_checkpoints",
)
FREE_TO_CHANGE = (  # of the others it is said when they differ
    *UNSEEN,
    "data.max_bad_fraction",
    "training.on_nonfinite",
    "training.log_every_steps",
    "training.compile",
    "training.activation_checkpointing",
    "method.on_collapse",
    "rankme_images",
    "knn.",
    "patience",
)


class RunKeywords(TypedDict, total=False):
    """Short names of settings, for calls from Python; see `cluster.calling.short_names`."""

    out: Annotated[str | os.PathLike[str], "out"]
    image_column: Annotated[str, "data.image_column"]
    epochs: Annotated[float, "training.epochs"]
    steps: Annotated[int, "training.steps"]
    batch_size: Annotated[int, "training.batch_size_global"]
    precision: Annotated[str, "training.precision"]
    optimizer: Annotated[str, "optimizer.name"]
    learning_rate: Annotated[float, "optimizer.learning_rate"]
    weight_decay: Annotated[float, "optimizer.weight_decay"]
    workers: Annotated[int, "cluster.workers"]
    patience: Annotated[int, "patience"]
    seed: Annotated[int, "seed"]
    tracking: Annotated[list[str], "tracking"]
    report_images: Annotated[int, "report_images"]
