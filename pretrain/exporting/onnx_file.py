"""ONNX, checked against PyTorch by onnxruntime before it is kept."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.errors import UserError
from pretrain.encoders.layers import AttentionOverMaps
from pretrain.exporting.exported import Exported, FromPixels

TOLERANCE = 1e-4
INPUT = "images"
LARGEST = 64  # strides of a side, where the size is free


def onnx_bytes(exported: Exported, say: Callable[[str], object] = print) -> tuple[bytes, dict[str, Any]]:
    """The model as ONNX: images with values in [0, 1] in, `FromPixels.output_names` out; and what was found of it.

    The batch is always free. The size is (in whole multiples of the largest stride) where the network computes the same for
    every size; attention that pools its keys by the size of the map does not, nor do networks with positions of fixed number.

    Raises UserError when packages are missing or onnxruntime computes something else than PyTorch.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("the ONNX export needs onnx, onnxscript and onnxruntime: pip install fovea[onnx]") from error
    network = FromPixels(exported).eval()
    stride = exported.encoder.strides[-1]
    size = max(1, round(exported.size / stride)) * stride
    pools = any(isinstance(part, AttentionOverMaps) and part.max_keys for part in exported.encoder.modules())
    reason = "its attention pools keys by the size of the map (max_keys); max_keys=0 would free it" if pools else ""
    if not pools:
        try:
            data = _export(network, size, exported.encoder.in_channels, stride)
            differences = _differences(network, data, exported, [size, size + stride, 4 * size])
            if max(differences.values()) <= TOLERANCE:
                return data, {"size": f"any multiple of {stride}", "largest difference": max(differences.values())}
            reason = f"at other sizes it differs by {max(differences.values()):.1e}"
        except Exception as error:
            # whatever the exporter or the runtime makes of a free size, a fixed one may still do
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    say(f"the size is fixed to {size} x {size}: {reason}")
    data = _export(network, size, exported.encoder.in_channels, None)
    difference = max(_differences(network, data, exported, [size]).values())
    if not difference <= TOLERANCE:
        raise UserError(
            f"onnxruntime differs from PyTorch by {difference:.1e}, more than {TOLERANCE:g}: nothing was written"
        )
    return data, {"size": f"{size} x {size}", "largest difference": difference}


def _export(network: FromPixels, size: int, channels: int, stride: int | None) -> bytes:
    """Exports with a free batch, and with `stride` also a free size."""
    from torch.export import Dim

    dims: dict[int, Any] = {0: Dim("batch")}
    if stride is not None:
        dims |= {axis: stride * Dim(name, min=1, max=LARGEST) for axis, name in ((2, "rows"), (3, "columns"))}
    sides = (size, size)
    if stride is not None:  # unlike, so that nothing takes them for equal, and no map of one pixel, which stays one
        smaller = max(size, 2 * stride)
        sides = smaller, smaller + stride
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), _quiet():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            network,
            (torch.rand(2, channels, *sides),),
            str(path),
            input_names=[INPUT],
            output_names=network.output_names,
            dynamic_shapes=(dims,),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        return path.read_bytes()


@torch.no_grad()
def _differences(network: FromPixels, data: bytes, exported: Exported, sizes: list[int]) -> dict[int, float]:
    """The largest difference between onnxruntime and PyTorch at each size, over batches of 1 and 3."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    differences = {}
    for size in sizes:
        found = []
        for batch in (1, 3):
            images = torch.rand(batch, exported.encoder.in_channels, size, size, generator=generator)
            given = session.run(None, {INPUT: images.numpy()})
            found += [float(np.abs(a - b.numpy()).max()) for a, b in zip(given, network(images), strict=True)]
        differences[size] = max(found)
    return differences


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the exporter's progress and warnings."""
    import warnings

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir")]
    former = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, former, strict=True):
            logger.setLevel(level)
