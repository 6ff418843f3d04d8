"""A folder for transformers: weights, configs, and the source of the network,
so that Fovea itself is not needed to load it.

It is proven before it is kept: a process that cannot import Fovea loads it as its users will, by
AutoImageProcessor and the model's own Auto class, and its answers are compared with Fovea's.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors.torch

import cluster.errors
import cluster.process
import cluster.renamed
import cluster.secrets
from cluster.errors import UserError
from pretrain.data.images.decode import decode_upright
from pretrain.encoders import base, building, classic, convattn, layers, timm_arguments, timm_encoder
from pretrain.exporting import proof
from pretrain.exporting.exported import (
    CENTRE,
    LETTERBOX,
    MODELING,
    SIZES,
    Exported,
    Framing,
    contiguous,
    model_source,
    sizes_on_canvas,
)

# the modules that every copied model needs; each becomes a file of its own name
COPIED: tuple[ModuleType, ...] = (
    cluster.errors,
    cluster.process,
    cluster.renamed,
    cluster.secrets,
    base,
    building,
    classic,
    convattn,
    layers,
    timm_arguments,
    timm_encoder,
)
# one class for all, so that the copied files lie side by side
OURS = re.compile(r"^(\s*)from (?:cluster|pretrain|finetune)(?:\.\w+)*\.(\w+) import", re.MULTILINE)
# of probabilities and scores, and of features in their own length: the largest difference to the same
# pixels; images are scaled by the folder's processor, which rounds positions to whole pixels,
# and have a bound of their own
SAME_PIXELS = 1e-4
PROCESSED = (1, 3)  # channels that transformers' processors know

# what a user writes, in a process that cannot import Fovea; argv: folder, Auto class, inputs.npz, output.npz
STRANGER = """
import glob, sys
for name in ("cluster", "pretrain", "finetune"):
    sys.modules[name] = None
import numpy as np, torch, transformers
from PIL import Image
folder, auto, inputs, output = sys.argv[1:]
transformers.logging.set_verbosity_error()
how = {"trust_remote_code": True, "output_loading_info": True}
model, loading = getattr(transformers, auto).from_pretrained(folder, **how)
wrong = {key: sorted(map(str, value)) for key, value in loading.items() if value}
assert not wrong, wrong
model.eval()
given = dict(np.load(inputs))
def plain(value):
    return value.detach().float().numpy()
def answers(inputs, processor=None, sizes=None):
    with torch.no_grad():
        if auto == "AutoModelForObjectDetection":
            how = {"threshold": 0.0, "target_sizes": sizes}
            found = processor.post_process_object_detection(model(**inputs), **how)
            names = ("boxes", "scores", "labels")
            return {key: np.stack([plain(one[key]) for one in found]) for key in names}
        said = model(**inputs)
    if auto == "AutoModel":
        return {"features": plain(said.pooler_output)}
    if auto == "AutoModelForImageClassification":
        return {"logits": plain(said.logits)}
    images = inputs["pixel_values"]
    ids = [model.generate(pixel_values=images[row : row + 1])[0] for row in range(len(images))]
    tokens = np.zeros((len(ids), max(map(len, ids))), np.int64)
    for row, one in zip(tokens, ids):
        row[: len(one)] = one.numpy()
    return {"keywords": plain(said.keyword_logits), "tokens": tokens}
kept, processor = {}, None
if "no_processor" not in given:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    paths = sorted(glob.glob(inputs.removesuffix("inputs.npz") + "image*.png"))
    each = [processor(images=Image.open(path), return_tensors="pt") for path in paths]
    taken = [key for key in each[0] if key in ("pixel_values", "pixel_mask")]
    inputs_of_all = {key: torch.cat([one[key] for one in each]) for key in taken}
    ones = [(1.0, 1.0)] * len(paths)
    kept |= {"image_" + key: value for key, value in answers(inputs_of_all, processor, ones).items()}
if auto == "AutoModelForObjectDetection" and processor is None:
    processor = transformers.DetrImageProcessor()
pixels = {key: torch.from_numpy(given[key]) for key in ("pixel_values", "picture_sizes") if key in given}
ones = [(1.0, 1.0)] * len(given["pixel_values"])
kept |= {"pixels_" + key: value for key, value in answers(pixels, processor, ones).items()}
np.savez(output, **kept)
"""


def hugging_face_files(exported: Exported) -> dict[str, bytes]:
    """The folder's files by name."""
    parts = exported.hugging_face
    copied = {
        f"{module.__name__.rpartition('.')[2]}.py": inspect.getsource(module)
        for module in (*COPIED, *parts.modules)
    }
    copied |= {
        f"{MODELING}.py": model_source("pretrain.exporting", MODELING),
        f"{parts.file}.py": parts.source,
    }
    files = {name: _copied(source) for name, source in copied.items()}
    files["config.json"] = _json(_config(exported))
    if exported.encoder.in_channels in PROCESSED:
        files["preprocessor_config.json"] = _json(_processor(exported))
    files["model.safetensors"] = safetensors.torch.save(contiguous(exported.tensors()), {"format": "pt"})
    return {**files, **parts.files}


def _config(exported: Exported) -> dict[str, Any]:
    parts, names = exported.hugging_face, exported.class_names
    config: dict[str, Any] = {
        "model_type": "fovea",
        "architectures": [parts.model],
        "encoder": exported.encoder.spec["name"],
        "arguments": exported.encoder.spec["arguments"],
        "image_size": exported.size,
        "num_channels": exported.encoder.in_channels,
    }
    if names:
        config["id2label"] = dict(enumerate(names))
        config["label2id"] = {name: index for index, name in enumerate(names)}
    kinds = {"AutoConfig": f"{MODELING}.FoveaConfig", "AutoModel": f"{MODELING}.FoveaModel"}
    kinds[parts.auto] = f"{parts.file}.{parts.model}"
    return {**config, **parts.config, "auto_map": kinds}


def _processor(exported: Exported) -> dict[str, Any]:
    """transformers' own image processor that looks at what Fovea looks at."""
    framing: Framing = exported.framing
    side = {"height": framing.size, "width": framing.size}
    common: dict[str, Any] = {
        "do_resize": True,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(exported.mean),
        "image_std": list(exported.std),
        "do_convert_rgb": exported.encoder.in_channels == 3,
    }
    if framing.kind == LETTERBOX:
        # padding comes after normalisation, so that 0 is the mean colour
        whole = {"shortest_edge": framing.size, "longest_edge": framing.size}
        return {
            "image_processor_type": "DetrImageProcessor",
            "size": whole,
            "do_pad": True,
            "pad_size": side,
            **common,
        }
    scaled = max(framing.size, round(framing.size / framing.fraction))
    size = {"shortest_edge": scaled} if framing.kind == CENTRE else {"height": scaled, "width": scaled}
    kind = "CLIPImageProcessor"  # which scales the short side and cuts out the middle
    return {"image_processor_type": kind, "size": size, "do_center_crop": True, "crop_size": side, **common}


def prove(exported: Exported, files: Mapping[str, bytes]) -> tuple[list[str], dict[str, float]]:
    """Lines that say how far the folder's answers lie from Fovea's, and the numbers.

    Raises UserError when they are too far apart, or transformers is missing.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            "a Hugging Face folder is checked by transformers itself: pip install 'fovea[huggingface]'"
        )
    images, what = proof.proof_images(exported)
    arrays, geometry = proof.framed(exported, images)
    answers = exported.answer(arrays, geometry)
    pixels_BCHW = (arrays[0] / np.float32(255) - _column(exported.mean)) / _column(exported.std)
    inputs = {"pixel_values": pixels_BCHW.astype(np.float32)}
    if exported.framing.kind == LETTERBOX and geometry is not None:
        inputs[SIZES] = sizes_on_canvas(geometry, exported.size)
    with_processor = "preprocessor_config.json" in files
    if not with_processor:
        inputs["no_processor"] = np.zeros(0)
    given = _by_a_stranger(exported, files, inputs, images)
    numbers, lines = {}, []
    for which, told, bound in (
        ("pixels", "the same pixels", SAME_PIXELS),
        ("image", what, exported.images_bound),
    ):
        found = {
            key.removeprefix(f"{which}_"): value
            for key, value in given.items()
            if key.startswith(f"{which}_")
        }
        if which == "image":
            # a sentence is another as soon as one word is, which a shift of a pixel may tip
            found.pop("tokens", None)
        if found:
            said = exported.answers_of(found, None)
            wanted = {name: answers[name] for name in said}
            difference = proof.max_difference(wanted, said)
            mean = None if which == "pixels" else proof.mean_difference(wanted, said)
            lines.append(
                proof.check(f"answers of transformers and of Fovea to {told}", difference, bound, mean=mean)
            )
            numbers[f"largest difference on {told}"] = difference
    if not with_processor:
        lines.append(
            f"transformers has no image processor for {exported.encoder.in_channels} channels; give "
            "pixel_values"
        )
    return lines, numbers


def _by_a_stranger(
    exported: Exported, files: Mapping[str, bytes], inputs: Mapping[str, np.ndarray], images: list[bytes]
) -> dict[str, np.ndarray]:
    """What the folder answers in a process of its own, without Fovea, the hub or the user's caches."""
    with tempfile.TemporaryDirectory(prefix="fovea-export-") as name:
        root = Path(name)
        folder = root / "folder"
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        np.savez(root / "inputs.npz", **inputs)  # type: ignore[arg-type]
        if "no_processor" not in inputs:
            for number, image in enumerate(images):
                decoded = decode_upright(image)
                grey = exported.encoder.in_channels == 1
                (decoded.convert("L") if grey else decoded).save(root / f"image{number:02}.png")
        apart = {
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(root / "modules"),
            "TOKENIZERS_PARALLELISM": "false",
        }
        arguments = [
            str(folder),
            exported.hugging_face.auto,
            str(root / "inputs.npz"),
            str(root / "given.npz"),
        ]
        done = subprocess.run(
            [sys.executable, "-c", STRANGER, *arguments],
            env=os.environ | apart,
            cwd=root,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise UserError(f"transformers cannot use what was exported: {last}; nothing was written")
        return dict(np.load(root / "given.npz", allow_pickle=False))


def _column(values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, np.float32)[:, None, None]


def _copied(source: str) -> bytes:
    return OURS.sub(r"\1from .\2 import", source).encode()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
