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

from cluster.errors import UserError, first_line
from pretrain.encoders.layers import AttentionOverMaps
from pretrain.exporting import proof
from pretrain.exporting.exported import CENTRE, LETTERBOX, SIZES, Exported, ForPixels, sizes_on_canvas

TOLERANCE = 1e-4
INPUT = "images"
LARGEST = 64  # strides of a side, where the size is free


def onnx_bytes(exported: Exported, say: Callable[[str], object] = print) -> tuple[bytes, dict[str, Any]]:
    """The model as ONNX: images with values in [0, 1] in, the network's `output_names` out;
    and what was found of it.

    The batch is always free. The size is that of the model; it is free, in whole multiples of the largest
    stride, where the network computes the same for every size. Attention that pools its keys by the size of
    the map does not, nor do networks with positions of fixed number,
    and boxes belong to canvases of one size.

    Raises UserError when packages are missing or onnxruntime computes something else than PyTorch or answers
    images otherwise than Fovea.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            "the ONNX export needs onnx, onnxscript and onnxruntime: pip install 'fovea[onnx]'"
        ) from error
    network = exported.network
    if network is None:
        raise UserError(f"a {exported.kind} model is not exported as ONNX; --format huggingface takes it")
    stride, size = exported.encoder.strides[-1], exported.size
    reason = _why_fixed(exported, stride)
    if reason is None:
        try:
            data = _export(network, size, exported.encoder.in_channels, stride)
            differences = _differences(network, data, exported, [size, size + stride, 4 * size])
            if max(differences.values()) <= TOLERANCE:
                return data, {
                    "size": f"any multiple of {stride}",
                    **_proven(exported, data, differences, say),
                }
            reason = f"at other sizes it differs by {max(differences.values()):.1e}"
        except UserError:
            raise
        except Exception as error:
            # whatever the exporter or the runtime makes of a free size, a fixed one may still do
            reason = first_line(error)[:200]
    say(f"the size is fixed to {size} x {size}: {reason}")
    try:
        data = _export(network, size, exported.encoder.in_channels, None)
    except Exception as error:
        line = first_line(error)[:300]
        raise UserError(f"{exported.encoder.spec['name']} cannot be exported as ONNX: {line}") from error
    differences = {} if "boxes" in network.output_names else _differences(network, data, exported, [size])
    return data, {"size": f"{size} x {size}", **_proven(exported, data, differences, say)}


def _why_fixed(exported: Exported, stride: int) -> str | None:
    if exported.framing.kind != CENTRE:
        return f"a {exported.kind} model sees images on canvases of this size"
    if exported.size % stride:
        return f"it was trained at this size, which is not a multiple of its largest stride ({stride})"
    if exported.fixed_size:
        return "its head flattens the last map"
    if any(isinstance(part, AttentionOverMaps) and part.max_keys for part in exported.encoder.modules()):
        return "its attention pools keys by the size of the map (max_keys); max_keys=0 would free it"
    return None


def _proven(
    exported: Exported, data: bytes, differences: dict[int, float], say: Callable[[str], object]
) -> dict[str, Any]:
    """What the file's answers to images differ by. Raises UserError when that is too much."""
    if differences:
        say(
            proof.check(
                "outputs of onnxruntime and of PyTorch to noise", max(differences.values()), TOLERANCE
            )
        )
    images, what = proof.proof_images(exported)
    arrays, geometry = proof.framed(exported, images)
    session, names = _session(data), exported.network.output_names if exported.network else []
    parts = []
    for start in range(0, len(images), 5):  # batches of unequal size
        some = slice(start, start + 5)
        inputs = {INPUT: arrays[0][some].astype(np.float32) / 255}
        here = None if geometry is None else geometry[:, some]
        if here is not None and exported.framing.kind == LETTERBOX:
            inputs[SIZES] = sizes_on_canvas(here, exported.size)
        parts.append(exported.answers_of(dict(zip(names, session.run(None, inputs), strict=True)), here))
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    difference = proof.max_difference(exported.answer(arrays, geometry), found)
    say(proof.check(f"answers of onnxruntime and of Fovea to {what}", difference, exported.onnx_bound))
    return {"largest difference": max([difference, *differences.values()])}


def _export(network: ForPixels, size: int, channels: int, stride: int | None) -> bytes:
    """Exports with a free batch, and with `stride` also a free size."""
    from torch.export import Dim

    dims: dict[int, Any] = {0: Dim("batch")}
    sides = (size, size)
    # unlike, so that nothing takes them for equal, and no map of one pixel, which stays one
    if stride is not None:
        dims |= {
            axis: stride * Dim(name, min=1, max=LARGEST) for axis, name in ((2, "rows"), (3, "columns"))
        }
        smaller = max(size, 2 * stride)
        sides = smaller, smaller + stride
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), _quiet():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            network,
            (torch.rand(2, channels, *sides), *network.optional.values()),
            str(path),
            input_names=[INPUT, *network.optional],
            output_names=list(network.output_names),
            dynamic_shapes=(dims, *[None] * len(network.optional)),
            dynamo=True,
            external_data=False,
            verbose=False,
            custom_translation_table=network.translations(),
        )
        return _with_optional(path.read_bytes(), network)


def _with_optional(data: bytes, network: ForPixels) -> bytes:
    """Gives optional inputs their default values, and as many rows as there are images."""
    if not network.optional:
        return data
    import onnx

    model = onnx.load_from_string(data)
    for taken in model.graph.input:
        if taken.name in network.optional:
            taken.type.tensor_type.shape.dim[0].dim_param = f"{taken.name}_batch"
            value = network.optional[taken.name].numpy()
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, taken.name))
    return bytes(model.SerializeToString())


def _session(data: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def _differences(network: ForPixels, data: bytes, exported: Exported, sizes: list[int]) -> dict[int, float]:
    """The largest difference between onnxruntime and PyTorch at each size, over batches of 1 and 3."""
    session = _session(data)
    generator = torch.Generator().manual_seed(0)
    differences = {}
    for size in sizes:
        found = []
        for batch in (1, 3):
            images = torch.rand(batch, exported.encoder.in_channels, size, size, generator=generator)
            given = session.run(None, {INPUT: images.numpy()})
            found += [
                float(np.abs(a - b.numpy()).max()) for a, b in zip(given, network(images), strict=True)
            ]
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
