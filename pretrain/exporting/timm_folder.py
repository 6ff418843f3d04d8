"""A folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from cluster.errors import UserError, first_line
from pretrain.data.images.decode import decode_upright
from pretrain.encoders import pooled
from pretrain.encoders.timm_encoder import FEATURES_ONLY
from pretrain.exporting import proof
from pretrain.exporting.exported import Exported, contiguous
from pretrain.exporting.hugging_face import PROCESSED, SAME_PIXELS

# what brings timm's own head to the mean of the last map, by the arguments of its networks
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"global_pool": "avg"},
    {"global_pool": "avg", "final_norm": False, "fc_norm": False},
)
TOLERANCE = 1e-4


def timm_files(exported: Exported) -> tuple[dict[str, bytes], list[str], dict[str, float]]:
    """The folder's files by name, lines that say how it was proven, and the differences that were found.

    One of timm's own networks becomes a plain folder of timm's. An encoder's maps are those of
    `features_only=True`; layers behind them (a last norm, a head) were never trained. A classifier is timm's
    own where its head can be that of timm. The convattn family needs
    `pretrain.exporting.timm_models` imported.

    Raises UserError for what is neither an encoder nor a classifier,
    and where timm cannot compute what Fovea computes.
    """
    if exported.kind not in ("encoder", "classification") or exported.fixed_size:
        what = "classifiers that flatten the last map" if exported.fixed_size else f"{exported.kind} models"
        raise UserError(f"timm cannot hold {what}; --format huggingface takes them")
    spec = exported.encoder.spec
    arguments = {key: value for key, value in spec["arguments"].items() if key != "in_channels"}
    own, head = not spec["name"].startswith("timm:"), exported.head
    if own:
        tensors = contiguous(exported.tensors())
        if head is not None and head["norm"].state_dict():
            arguments["normalised_features"] = True
    elif head is not None:
        arguments = {key: value for key, value in arguments.items() if key not in FEATURES_ONLY}
        arguments, tensors = _classifier(exported, arguments)
    else:
        arguments = {key: value for key, value in arguments.items() if key not in FEATURES_ONLY}
        tensors = _filled(exported, _whole(exported, arguments))
    num_classes = len(exported.class_names)
    config: dict[str, Any] = {
        "architecture": spec["name"].removeprefix("timm:").split(".")[0],
        "num_classes": num_classes,
        "num_features": exported.encoder.channels[-1],
        # of timm's own networks, layers behind the maps were never trained;
        # timm does not ask, a teacher does
        "maps_only": not own and head is None,
        "label_names": exported.class_names,
        "model_args": {**arguments, "num_classes": num_classes, "in_chans": exported.encoder.in_channels},
        "pretrained_cfg": {
            "num_classes": num_classes,
            "input_size": [exported.encoder.in_channels, exported.size, exported.size],
            "fixed_input_size": False,
            "mean": list(exported.mean),
            "std": list(exported.std),
            "interpolation": "bilinear",
            "crop_pct": exported.framing.fraction,
            "crop_mode": "center",
            "classifier": "head",
            "first_conv": None,
        },
    }
    files = {
        "config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
        "model.safetensors": safetensors.torch.save(tensors, {"format": "pt"}),
    }
    return files, *_proven(exported, files)


def _proven(exported: Exported, files: Mapping[str, bytes]) -> tuple[list[str], dict[str, float]]:
    """Loads the folder as its users do and compares the answers, to the same pixels and to images that
    timm's transforms make. Raises UserError when they are too far apart."""
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    import pretrain.exporting.timm_models  # noqa: F401 - registers the family

    with tempfile.TemporaryDirectory(prefix="fovea-export-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        more: dict[str, Any] = {} if exported.head is not None else {"features_only": True}
        try:
            model = timm.create_model(f"local-dir:{folder}", pretrained=True, **more).eval()
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"timm cannot load what was exported: {first_line(error)}; nothing was written"
            ) from error
    images, what = proof.proof_images(exported)
    arrays, geometry = proof.framed(exported, images)
    answers = exported.answer(arrays, geometry)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (exported.mean, exported.std))
    given = {"the same pixels": ((torch.from_numpy(arrays[0]).float() / 255 - mean) / std, SAME_PIXELS)}
    if exported.encoder.in_channels in PROCESSED:
        config = {**json.loads(files["config.json"])["pretrained_cfg"]}
        transform = create_transform(**resolve_data_config(pretrained_cfg=config))
        mode = "L" if exported.encoder.in_channels == 1 else "RGB"
        seen = [transform(decode_upright(image).convert(mode)) for image in images]
        given[what] = torch.stack(seen), exported.images_bound
    lines, numbers = [], {}
    for told, (images_BCHW, bound) in given.items():
        with torch.no_grad():
            said = model(images_BCHW)
        outputs = (
            {"logits": said.numpy()}
            if exported.head is not None
            else {"features": pooled(_maps(said, exported)).numpy()}
        )
        given_answers = exported.answers_of(outputs, None)
        difference = proof.max_difference(answers, given_answers)
        on_average = None if told == "the same pixels" else proof.mean_difference(answers, given_answers)
        lines.append(
            proof.check(f"answers of timm and of Fovea to {told}", difference, bound, mean=on_average)
        )
        numbers[f"largest difference on {told}"] = difference
    return lines, numbers


def _maps(maps: list[Tensor], exported: Exported) -> list[Tensor]:
    """Channels first, which some networks give last."""
    return [
        one if one.shape[1] == channels else one.permute(0, 3, 1, 2)
        for one, channels in zip(maps, exported.encoder.channels, strict=True)
    ]


def _classifier(exported: Exported, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments and weights of timm's own classifier that computes what Fovea's does: the mean of the last
    map, and a linear layer, into which a norm before it is folded.
    Raises UserError where timm's head does something else.
    """
    assert exported.head is not None
    norm: Any = exported.head["norm"]
    linear: Any = exported.head["head"]
    weight, bias = linear.weight.detach(), linear.bias.detach()
    if norm.state_dict():
        scale = (norm.running_var + norm.eps).rsqrt()
        weight, bias = weight * scale, bias - weight @ (norm.running_mean * scale)
    images = torch.rand(2, exported.encoder.in_channels, exported.size, exported.size)
    with torch.no_grad():
        wanted = pooled(exported.encoder(images)) @ weight.T + bias
    for way in WAYS:
        try:
            whole = _whole(exported, arguments | way, num_classes=len(exported.class_names)).eval()
            last = whole.get_classifier()
            assert isinstance(last, nn.Linear) and last.weight.shape == weight.shape
            tensors = _filled(exported, whole)
            name = next(name for name, module in whole.named_modules() if module is last)
            tensors |= {
                f"{name}.weight": weight.contiguous().clone(),
                f"{name}.bias": bias.contiguous().clone(),
            }
            whole.load_state_dict(tensors)
            with torch.no_grad():
                if float((whole(images) - wanted).abs().max()) <= TOLERANCE * max(
                    1.0, float(wanted.abs().max())
                ):
                    return arguments | way, tensors
        except (
            TypeError,
            ValueError,
            RuntimeError,
            AssertionError,
            StopIteration,
            AttributeError,
            UserError,
        ):
            continue  # a network without such an argument, or with another head
    raise UserError(
        f"timm's own head of {exported.encoder.spec['name']} does not compute a linear layer on the mean of "
        "the last map; --format huggingface takes this classifier"
    )


def _whole(exported: Exported, arguments: Mapping[str, Any], *, num_classes: int = 0) -> Any:
    """timm's network around an encoder's, with fresh weights."""
    import timm

    name, channels = exported.encoder.spec["name"].removeprefix("timm:"), exported.encoder.in_channels
    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=channels, **arguments)


def _filled(exported: Exported, whole: nn.Module) -> dict[str, Tensor]:
    """The weights of a timm encoder by the names of the whole network,
    which feature extraction took apart.
    """
    spec = exported.encoder.spec
    tensors = {key: tensor.clone() for key, tensor in whole.state_dict().items()}
    for key, tensor in exported.encoder.state_dict().items():
        inner = key.removeprefix("network.").removeprefix("model.")
        # feature extraction joins the names of what it took out of a list:
        # stages_0.blocks -> stages.0.blocks
        target = inner if inner in tensors else re.sub(r"^([a-z_]+)_(\d+)\.", r"\1.\2.", inner)
        if target not in tensors or tensors[target].shape != tensor.shape:
            raise UserError(
                f"{spec['name']} cannot be exported for timm: its {key} does not exist in the whole network"
            )
        tensors[target] = tensor.detach().cpu().contiguous().clone()
    return tensors
