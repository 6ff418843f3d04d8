"""The model card: what was trained on what, how well it does, how to load it, and what not to expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from cluster.settings import flattened
from pretrain.exporting.exported import Exported

LOADING = {
    "onnx": """session = onnxruntime.InferenceSession("model.onnx")
# float32 [batch, channels, height, width], RGB with values from 0 to 1; normalisation is inside
# {framing}
outputs = session.run(None, {"images": images})""",
    "timm": """import timm
{register}
model = timm.create_model("local-dir:FOLDER", pretrained=True{extra})""",
    "huggingface": """from transformers import AutoImageProcessor, {auto}

# the folder holds the network's source: read it, or load it from a source you trust
model = {auto}.from_pretrained("FOLDER", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("FOLDER"){more}""",
}
# of a kind of model: its name, its tag on the Hugging Face hub, and what is done with the outputs
KINDS = {
    "encoder": ("Encoder", "image-feature-extraction", ""),
    "classification": ("Classifier", "image-classification", """
logits = model(**processor(images=image, return_tensors="pt")).logits"""),
    "detection": ("Detector", "object-detection", """
outputs = model(**processor(images=image, return_tensors="pt"))
# boxes in pixels, labels (model.config.id2label) and scores
sizes = [(image.height, image.width)]
processor.post_process_object_detection(outputs, threshold=0.3, target_sizes=sizes)"""),
    "summarization": ("Summarizer", "image-to-text", """
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
inputs = processor(images=image, return_tensors="pt")
tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)
scores = model(**inputs).keyword_logits.sigmoid()  # names: model.config.id2label"""),
}  # fmt: skip


def model_card(exported: Exported, form: str, found: Mapping[str, Any]) -> str:
    """README.md of an exported folder. `found` is what the export itself measured."""
    kind, tag, _ = KINDS[exported.kind]
    result = exported.run.get("result") or {}
    settings = yaml.safe_load(exported.run["settings"]) if exported.run.get("settings") else {}
    data, knn = settings.get("data", {}), settings.get("knn") or {}
    classes = "keywords" if exported.kind == "summarization" else "classes"
    header = {
        "library_name": {"huggingface": "transformers", "timm": "timm", "onnx": "onnx"}[form],
        "pipeline_tag": tag,
        "tags": ["fovea", exported.encoder.spec["name"]],
    }
    facts = {**exported.facts, "input size": exported.size, "channels": list(exported.encoder.channels),
             "strides": list(exported.encoder.strides), "parameters": _parameters(exported),
             **found}  # fmt: skip
    parts = [
        "---\n" + yaml.safe_dump(header, sort_keys=False) + "---",
        f"# {kind} by {exported.encoder.spec['name']}",
        f"Exported from `{_code(exported.source)}` by Fovea.",
        "## Use\n\n```python\n" + _loading(exported, form) + "\n```",
        "## What it is\n"
        "\n" + _table({key: value for key, value in facts.items() if value not in (None, "", {})}),
        "## Data\n\n" + _table(
            {
                "training data": data.get("url", "not known"),
                "validation data": settings.get("validation_url") or knn.get("test_url") or "none",
                "images seen in training (with repetition)": result.get("samples_seen", "not known"),
                "rows that could not be used": result.get("bad_rows", "not known"),
                classes: ", ".join(exported.class_names) or "none",
            }
        ),
        "## Results\n\n" + _results(result),
        "## Limits\n\n" + _limits(exported, result),
    ]  # fmt: skip
    if settings:
        listed = _table(flattened(settings))
        parts.append(
            f"## Settings of the run\n\n<details><summary>all settings</summary>\n\n{listed}\n\n</details>"
        )
    return "\n\n".join(parts) + "\n"


def _loading(exported: Exported, form: str) -> str:
    own = not exported.encoder.spec["name"].startswith("timm:")
    auto = exported.hugging_face.auto + (", AutoTokenizer" if exported.kind == "summarization" else "")
    loading = LOADING[form].replace(", {auto}", f", {auto}").replace("{auto}", exported.hugging_face.auto)
    framing = "; ".join(exported.framing.described()["steps"])
    loading = loading.replace("{framing}", framing).replace("{more}", KINDS[exported.kind][2])
    register = "import pretrain.exporting.timm_models  # registers the network (pip install fovea)"
    loading = loading.replace("{register}", register if own else "").replace("\n\n", "\n")
    return loading.replace("{extra}", "" if own or exported.head is not None else ", features_only=True")


def _results(result: Mapping[str, Any]) -> str:
    metrics = result.get("metrics") or {}
    if not metrics:
        return "The run left no scores next to the folder."
    images = result.get("validation_images")
    measured = (
        f"Measured on {images:,} validation images, on which the best checkpoint was chosen too.\n\n"
        if images
        else ""
    )
    return measured + _table({name.replace("_", " "): value for name, value in metrics.items()})


def _limits(exported: Exported, result: Mapping[str, Any]) -> str:
    lines = []
    images = result.get("validation_images")
    if exported.kind == "encoder":
        lines.append(
            "It was trained without labels and predicts nothing by itself: train a head on its features."
        )
    elif exported.kind == "detection":
        lines.append(
            "It finds only things of its classes, and none that are much smaller on the canvas than those "
            "in its training data."
        )
    elif exported.kind == "summarization":
        lines.append(
            "It writes what captions of its training data say, even of an image that shows something else."
        )
    else:
        lines.append(
            "It knows only its classes and gives every image one of them, even an image that shows none. "
            "Its scores are not calibrated unless the calibration error above says so."
        )
    if images and exported.kind == "classification":
        fraction = 0.98 / images**0.5  # half the width of 95 % at an accuracy of one half
        lines.append(
            f"With {images:,} validation images an accuracy is known only to about {fraction:.0%} at best."
        )
    lines += [
        f"It was trained at {exported.size} pixels; much larger or smaller images, and other kinds of "
        "images than its training data, were not measured.",
        "It has the biases of its training data. It was not examined for uses where people may come to "
        "harm.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {_text(key)} | {_text(_short(value))} |" for key, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _short(value: Any) -> str:
    return (
        f"{value:.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def _text(value: str) -> str:
    """A text that stays text in Markdown and HTML, on one line."""
    line = " ".join(str(value).split())
    for sign in "\\`*_[]|#":
        line = line.replace(sign, "\\" + sign)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _code(value: str) -> str:
    return value.replace("`", "'").replace("\n", " ")


def _parameters(exported: Exported) -> int:
    return sum(tensor.numel() for tensor in exported.encoder.parameters())
