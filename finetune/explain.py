"""What a fine-tuned model looks at.

from finetune.explain import explain

for explanation in explain("runs/classifier/model", "my/photos"):
    display(explanation.sheet())
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.command_line import CommandLine
from cluster.errors import UserError, choose
from finetune.class_maps import CLASS_MAPS, HasLogits
from finetune.model import load_model
from finetune.tasks.classification import ImageClassifier
from pretrain.data.reading.picking import pick_images
from pretrain.explaining import ClassMap, Explainer, Explanation
from pretrain.explaining.command import explain_parser, run_explain

NUM_CLASSES = 3


def parser() -> CommandLine:
    """The command line."""
    parser = explain_parser(
        "python -m finetune explain",
        "MODEL",
        "Draws the evidence for each class, attention by layer and head, features.",
    )
    parser.add_argument(
        "--class",
        action="append",
        default=[],
        dest="classes",
        metavar="NAME",
        help="show the evidence for this class instead of the most likely one",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """python -m finetune explain MODEL IMAGES OUT: draws what a model looks at."""
    return run_explain(
        parser().parse_args(arguments),
        lambda options: open_explainer(
            options.network,
            size=options.size,
            square=options.square,
            queries=options.queries,
            classes=options.classes,
        ),
    )


def open_explainer(
    url: str,
    *,
    size: int | None = None,
    square: bool = False,
    queries: str = "all",
    classes: Sequence[str] = (),
) -> Explainer:
    """The explainer of a model folder; class maps are of the three likeliest classes,
    or of those that are named.

    Raises UserError for a class that the model does not have.
    """
    predictor = load_model(url)
    config = predictor.config
    names = list(config.get("class_names", []))
    classifier = predictor if isinstance(predictor, ImageClassifier) else None
    if classes and classifier is None:
        raise UserError(
            f"{url} is a {config['task']} model, and class maps are of classifiers; leave --class out"
        )
    chosen = [names.index(choose("class", name, names)) for name in classes]
    return Explainer(
        predictor.model.encoder,
        size=size or config["image_size"],
        mean=config["mean"],
        std=config["std"],
        square=square,
        queries=queries,
        class_maps=None
        if classifier is None
        else lambda images: class_maps(classifier, images, names, chosen),
    )


def explain(
    model_url: str,
    images: str | Sequence[str],
    *,
    limit: int = 16,
    size: int | None = None,
    square: bool = False,
    queries: str = "all",
    classes: Sequence[str] = (),
    image_column: str = "image",
) -> list[Explanation]:
    """Explains what a model folder makes of images: paths, folders, globs, Parquet URLs.
    See `pretrain.explaining.explain`.
    """
    explainer = open_explainer(model_url, size=size, square=square, queries=queries, classes=classes)
    return explainer.explain(pick_images(images, limit=limit, image_column=image_column))


def class_maps(
    predictor: ImageClassifier, images_1CHW: Tensor, names: Sequence[str], chosen: Sequence[int]
) -> list[ClassMap]:
    """Maps of an image by each method, for the chosen classes or the likeliest."""
    model = predictor.model
    assert isinstance(model, HasLogits)
    with torch.no_grad():
        scores = predictor.as_probabilities(model.logits_of(model.encoder(images_1CHW)))[0]
    classes = list(chosen) or scores.topk(min(NUM_CLASSES, len(names))).indices.tolist()
    images = images_1CHW.repeat(len(classes), 1, 1, 1)
    return [
        ClassMap(names[index], float(scores[index]), _drawable(heat_HW).cpu().numpy(), method)
        for method, function in CLASS_MAPS.items()
        for index, heat_HW in zip(
            classes, function(model, images, torch.tensor(classes, device=images.device)), strict=True
        )
    ]


def _drawable(heat_HW: Tensor) -> Tensor:
    """The map as it can be seen: gradients of single pixels are averaged over their neighbours,
    and the strongest 1 % cut.
    """
    if heat_HW.numel() > 64 * 64:
        heat_HW = F.avg_pool2d(heat_HW[None, None], 7, stride=1, padding=3, count_include_pad=False)[0, 0]
    return heat_HW.clamp_max(float(heat_HW.float().flatten().quantile(0.99)))
