"""Folders of Hugging Face transformers as teachers: DINOv2, DINOv3, SigLIP, CLIP and similar ones; only
their vision part is used.

The folder lies at any URL and is read by us: `config.json`, `preprocessor_config.json` and safetensors. No
code of the folder runs, and nothing is asked of the hub: the kind of network must be one of those below,
which transformers itself holds, and what its config says beyond an architecture (quantization, kernels to be
fetched, code to be mapped) is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from cluster import storage
from cluster.errors import UserError, first_line, nearest
from pretrain.encoders.base import Encoder
from pretrain.encoders.building import rebuild_encoder
from pretrain.encoders.fingerprints import weights_fingerprint
from pretrain.encoders.saving import CONFIG, WEIGHTS, licence_of, load_state_strict
from pretrain.encoders.teaching import Teacher, TeacherOutput

# kind in config.json -> transformers' config and network
KINDS = {
    "beit": ("BeitConfig", "BeitModel"),
    "clip": ("CLIPVisionConfig", "CLIPVisionModelWithProjection"),
    "clip_vision_model": ("CLIPVisionConfig", "CLIPVisionModel"),
    "convnext": ("ConvNextConfig", "ConvNextModel"),
    "convnextv2": ("ConvNextV2Config", "ConvNextV2Model"),
    "dinov2": ("Dinov2Config", "Dinov2Model"),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
    "dinov3_convnext": ("DINOv3ConvNextConfig", "DINOv3ConvNextModel"),
    "dinov3_vit": ("DINOv3ViTConfig", "DINOv3ViTModel"),
    "ijepa": ("IJepaConfig", "IJepaModel"),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel"),
    "siglip_vision_model": ("SiglipVisionConfig", "SiglipVisionModel"),
    "vit": ("ViTConfig", "ViTModel"),
}
WITH_TEXT = ("clip", "siglip")  # whose config holds that of the vision part
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
INDEX = "model.safetensors.index.json"
# what a config may say besides an architecture, and what would make transformers fetch or run something
REFUSED = ("auto_map", "quantization_config", "custom_pipelines")
IGNORED = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_name_or_path",
    "architectures",
)


def is_transformers(url: str) -> bool:
    """Whether a folder holds a network of transformers, by its config."""
    config_url = storage.join(url, CONFIG)
    if not storage.exists(config_url):
        return False
    config = storage.read_json(config_url)
    return isinstance(config, dict) and "model_type" in config and "kind" not in config


def exported_encoder(url: str) -> tuple[Encoder, dict[str, Any]] | None:
    """The encoder in a folder that `export --format huggingface` wrote, without its code,
    and how images are made.

    None for every other folder. Raises UserError for one that is damaged.
    """
    config_url = storage.join(url, CONFIG)
    config = storage.read_json(config_url)
    if config.get("model_type") != "fovea":
        return None
    encoder = rebuild_encoder(config.get("encoder"), config.get("arguments"), where=config_url)
    own = {k.removeprefix("encoder."): v for k, v in _tensors(url).items() if k.startswith("encoder.")}
    load_state_strict(encoder, own, url)
    mean, std, size = _preprocessing(url)
    said = {"mean": mean, "std": std, "input_size": [encoder.in_channels, size], "license": licence_of(url)}
    return encoder, said


def transformers_teacher(name: str) -> Teacher:
    """The teacher in a folder of transformers. Raises UserError, one line, for what cannot be loaded."""
    url = storage.absolute(name)
    config = storage.read_json(storage.join(url, CONFIG))
    kind = _kind(url, config)
    _check_config(url, config)
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"{name} is a folder of transformers, which is not installed: pip install transformers"
        ) from error
    config_name, network_name = KINDS[kind]
    if not hasattr(transformers, network_name):
        raise UserError(
            f"{url} holds a {kind}, which the installed transformers {transformers.__version__} does not "
            "know; update it"
        )
    tensors, network_class = _tensors(url), getattr(transformers, network_name)
    try:
        with _quiet(transformers.logging):  # what it would say of missing weights is said below
            network, info = network_class.from_pretrained(
                None,
                config=getattr(transformers, config_name)(**_vision_config(kind, config)),
                state_dict=dict(tensors),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError, OSError) as error:
        text = first_line(error)
        raise UserError(f"{url} ({kind}) cannot be built: {text}") from error
    missing = [key for key in info["missing_keys"] if not key.startswith(OPTIONAL)]
    reshaped = [str(key[0] if isinstance(key, tuple) else key) for key in info.get("mismatched_keys", ())]
    if missing or reshaped:
        num, first = len(network.state_dict()), sorted(missing + reshaped)[0]
        raise UserError(
            f"the weights in {url} are not those of the {kind} that its {CONFIG} describes: of "
            f"{num} tensors {len(missing)} are missing and {len(reshaped)} have another shape, first {first}"
        )
    network.float()
    mean, std, size = _preprocessing(url)
    has_pooler = not any(key.startswith(OPTIONAL) for key in info["missing_keys"])
    wrapped = TransformersNetwork(network, size=size, channels=len(mean), has_pooler=has_pooler)
    return Teacher(
        network=wrapped.eval().requires_grad_(False),
        name=name,
        dim=wrapped.dim,
        channels=wrapped.channels,
        strides=wrapped.strides,
        in_channels=len(mean),
        input_size=size,
        mean=mean,
        std=std,
        dtype=next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32),
        weights_sha256=weights_fingerprint(network.state_dict()),
        licence=licence_of(url),
    )


def _vision_config(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the network that sees, out of a config."""
    said = dict(config)
    if kind in WITH_TEXT:
        said = dict(config.get("vision_config") or {})
        if "projection_dim" in config:
            said["projection_dim"] = config["projection_dim"]
    others = (*IGNORED, "model_type", "dtype", "torch_dtype")
    return {key: value for key, value in said.items() if key not in others}


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Has transformers say nothing but errors."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


# what pools may be missing: features are then the class token or the mean of patches
OPTIONAL = ("pooler.", "head.")


class TransformersNetwork(nn.Module):
    """A vision network of transformers: its image embedding, and its patches as one map.

    Pooled is the image embedding where the network projects one, else what it pools, else its class token,
    else the mean of its patches. Class token and registers are not in the map.

    Args:
        network: of transformers, in float32.
        size: side of an image that it takes, in pixels.
        channels: of its images.
        has_pooler: its pooling layer was trained.
    """

    def __init__(self, network: nn.Module, *, size: int, channels: int, has_pooler: bool) -> None:
        super().__init__()
        self.network = network.eval()
        self._has_pooler = has_pooler
        takes = inspect.signature(network.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        settings: Any = network.config
        # DINOv3's ConvNeXt gives its last map of stride 32 as tokens, behind their mean
        patch = getattr(settings, "patch_size", 32 if settings.model_type == "dinov3_convnext" else None)
        self._patch: int | None = patch if isinstance(patch, int) else None
        with torch.no_grad():
            output = self(torch.zeros(1, channels, size, size))
        self.dim = output.pooled_BD.shape[1]
        self.channels = tuple(m.shape[1] for m in output.maps)
        self.strides = tuple(round(size / m.shape[2]) for m in output.maps)

    def forward(self, images_BCHW: Tensor) -> TeacherOutput:
        """Features [B, dim] and one map."""
        network: Any = self.network
        output = network(pixel_values=images_BCHW, **self._options)
        last = output.last_hidden_state
        if last.ndim == 4:
            maps_BCHW, class_BD = last, None
        elif self._patch is None:
            kind = type(network).__name__
            raise UserError(
                f"{kind} gives tokens, and its config.json does not say the size of its patches (patch_size)"
            )
        else:
            height, width = (side // self._patch for side in images_BCHW.shape[2:])
            num_extra = last.shape[1] - height * width
            maps_BCHW = last[:, num_extra:].transpose(1, 2).unflatten(2, (height, width))
            class_BD = last[:, 0] if num_extra else None
        pooled_BD = getattr(output, "image_embeds", None)
        if pooled_BD is None and self._has_pooler:
            pooled_BD = getattr(output, "pooler_output", None)
        if pooled_BD is None:
            pooled_BD = maps_BCHW.mean((2, 3)) if class_BD is None else class_BD
        return TeacherOutput(pooled_BD.flatten(1), [maps_BCHW])


def _kind(url: str, config: Mapping[str, Any]) -> str:
    kind = str(config["model_type"])
    if kind not in KINDS:
        raise UserError(
            f"{url} holds a network of kind {kind!r}, which cannot be a teacher{nearest(kind, KINDS)} "
            f"(known: {', '.join(sorted(KINDS))})"
        )
    return kind


def _check_config(url: str, config: Mapping[str, Any]) -> None:
    """Raises UserError where a config wants more than a network of transformers with plain weights."""
    for part in (config, config.get("vision_config") or {}):
        for key in REFUSED:
            if part.get(key):
                raise UserError(
                    f"{storage.join(url, CONFIG)} says {key}, which would run or fetch something beyond the "
                    "folder's weights; save the network again without it"
                )
        for key, value in part.items():
            if (
                isinstance(value, str)
                and key in ("hidden_act", "hidden_activation")
                and not value.isidentifier()
            ):
                raise UserError(f"{storage.join(url, CONFIG)} is damaged: {key} is {value!r}")


def _tensors(url: str) -> dict[str, Tensor]:
    there = storage.names_in(url)
    files = [WEIGHTS] if WEIGHTS in there else []
    if INDEX in there and not files:
        listed = storage.read_json(storage.join(url, INDEX)).get("weight_map", {}).values()
        files = sorted(set(listed))
        for file in files:
            if "/" in file or not file.endswith(".safetensors"):
                raise UserError(f"{storage.join(url, INDEX)} is damaged: it names {file!r}")
    if not files:
        others = [name for name in there if name.endswith((".bin", ".h5", ".msgpack", ".pt", ".pth"))]
        beside = f"; {others[0]} is not opened: save the network again as safetensors" if others else ""
        raise UserError(f"{url} holds no {WEIGHTS} (there: {', '.join(there[:8])}){beside}")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= safetensors.torch.load(storage.read_bytes(storage.join(url, file)))
        except safetensors.SafetensorError as error:
            raise UserError(f"{storage.join(url, file)} is not a valid safetensors file: {error}") from error
    return tensors


def _preprocessing(url: str) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Mean, standard deviation and side of the images, as the folder says."""
    there = storage.names_in(url)
    if PREPROCESSOR in there:
        where = storage.join(url, PREPROCESSOR)
        said = storage.read_json(where)
    elif PROCESSOR in there:
        where = storage.join(url, PROCESSOR)
        said = storage.read_json(where).get("image_processor")
    else:
        raise UserError(f"{url} holds no {PREPROCESSOR}, which says mean, std and size of the images")
    if not isinstance(said, dict):
        raise UserError(f"{where} says nothing about images")
    size: Any = (
        said.get("crop_size") if said.get("do_center_crop") and said.get("crop_size") else said.get("size")
    )
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    if not isinstance(size, int) or size < 1:
        raise UserError(f"{where} gives no image size (size is {said.get('size')!r})")
    if said.get("do_normalize") is False:
        return (0.0,) * 3, (1.0,) * 3, size
    mean: Any
    std: Any
    mean, std = said.get("image_mean"), said.get("image_std")
    for key, values in (("image_mean", mean), ("image_std", std)):
        if not isinstance(values, list) or not values or not all(isinstance(v, int | float) for v in values):
            raise UserError(f"{where}: {key} is {values!r}, not a list of numbers")
    return tuple(map(float, mean)), tuple(map(float, std)), size
