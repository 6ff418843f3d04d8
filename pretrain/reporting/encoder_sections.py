"""The parts of a page that show what an encoder has learnt:
neighbours, a map of embeddings, where it looks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from pretrain.data.images.heat_maps import enlarged, overlay
from pretrain.data.reading.loader import filled
from pretrain.data.views.augment import normalised
from pretrain.data.views.view_sheet import shown
from pretrain.encoders import Encoder
from pretrain.encoders.attention_maps import attention_maps, attention_rollout
from pretrain.reporting.elements import element
from pretrain.reporting.embeddings import map_colours, neighbours, plane
from pretrain.reporting.page import Section, Templates
from pretrain.reporting.page_images import class_colour, data_url
from pretrain.reporting.samples import Sample

NUM_QUERIES, NUM_NEIGHBOURS, NUM_LOOKED_AT = 12, 6, 8
MAP_WIDTH, MAP_HEIGHT, THUMB = 1180.0, 660.0, 46.0
MAX_CLASSES = 10
MIN_CELLS = 7
FINE_PIXELS = 128  # smaller images are looked at twice as large, so that maps have some cells


@dataclass(frozen=True)
class Embedded:
    """A sample of which the first n images have features [n, D].

    Attributes:
        labels: as text, where there are some.
        source: where the images are from.
        taught: what the labels had to do with the encoder.
    """

    sample: Sample
    features_ND: np.ndarray
    labels: Sequence[str] | None
    source: str
    taught: str = "taught the encoder nothing"

    def __post_init__(self) -> None:
        if self.labels is not None:
            object.__setattr__(self, "labels", list(self.labels)[: len(self)])

    def __len__(self) -> int:
        return len(self.features_ND)


def neighbour_section(embedded: Embedded) -> Section:
    """A dozen images, each with those that the encoder finds most alike."""
    return _neighbours(embedded, "neighbours", "Nearest neighbours", "")


def teacher_section(student: Embedded, teacher: Embedded, name: str) -> Section:
    """The same images with those that the teacher finds most alike."""
    num = min(len(student), len(teacher))
    mine, theirs = (
        neighbours(embedded.features_ND[:num], NUM_NEIGHBOURS)[0] for embedded in (student, teacher)
    )
    shared = np.mean(
        [len(set(a) & set(b)) / len(a) for a, b in zip(mine.tolist(), theirs.tolist(), strict=True)]
    )
    chance = mine.shape[1] / max(1, num - 1)
    words = (
        f" These are the neighbours according to the teacher, {name}. {100 * shared:.0f} % of the encoder's "
        f"{mine.shape[1]} nearest are also the teacher's; by chance it would be {100 * chance:.0f} %."
    )
    return _neighbours(teacher, "teacher", "The teacher's nearest neighbours", words)


def _neighbours(embedded: Embedded, id: str, title: str, words: str) -> Section:
    order_Nk, similarity_Nk = neighbours(embedded.features_ND, NUM_NEIGHBOURS)
    tiles, labels = embedded.sample.tiles, embedded.labels
    rows = []
    for query in spread_queries(labels, len(embedded), NUM_QUERIES):
        found = [
            {
                "url": data_url(tiles[index], longest=96),
                "label": labels[index] if labels else "",
                "same": labels is not None and labels[index] == labels[query],
                "similarity": f"{similarity:.2f}",
            }
            for index, similarity in zip(
                order_Nk[query].tolist(), similarity_Nk[query].tolist(), strict=True
            )
        ]
        rows.append(
            {"url": data_url(tiles[query]), "label": labels[query] if labels else "", "found": found}
        )
    lead = (
        f"The nearest of {len(embedded):,} images ({embedded.source}) by the angle between features, "
        "nearest first."
    )
    if labels is not None:
        fractions, guess = agreement(order_Nk, labels)
        lead += (
            f" Over all of them, {100 * fractions:.0f} % of the {order_Nk.shape[1]} nearest have the "
            f"query's class; by chance it would be {100 * guess:.0f} %. The labels {embedded.taught}."
        )
    body = Templates().render("neighbours.html", rows=rows, labelled=labels is not None)
    return Section(id, title, body, lead + words)


def agreement(order_Nk: np.ndarray, labels: Sequence[str]) -> tuple[float, float]:
    """Fraction of neighbours of the query's class, and what it would be for random neighbours."""
    same = [labels[index] == labels[query] for query, row in enumerate(order_Nk.tolist()) for index in row]
    counts, num = Counter(labels).values(), len(labels)
    guess = sum(count * (count - 1) for count in counts) / max(1, num * (num - 1))
    return sum(same) / max(1, len(same)), guess


def spread_queries(labels: Sequence[str] | None, num_images: int, max_queries: int) -> list[int]:
    """Images to ask for: of every class in turn, or evenly spread where there are none."""
    if labels is None:
        return np.unique(
            np.linspace(0, num_images - 1, min(max_queries, num_images)).round().astype(int)
        ).tolist()
    of_class: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        of_class.setdefault(label, []).append(index)
    queues = [of_class[label] for label in sorted(of_class)]
    chosen: list[int] = []
    while len(chosen) < min(max_queries, num_images):
        for queue in queues:
            if queue and len(chosen) < max_queries:
                chosen.append(queue.pop(0))
    return chosen


def map_section(embedded: Embedded) -> Section:
    """All images of the sample on a plane on which like features lie together."""
    positions = plane(embedded.features_ND)
    names = [name for name, _ in Counter(embedded.labels or ()).most_common()]
    number = {name: index for index, name in enumerate(names)}
    numbers = [number[label] for label in embedded.labels] if embedded.labels else None
    shown_names = names if len(names) <= MAX_CLASSES else names[: MAX_CLASSES - 1]
    legend = [(name, class_colour(index)) for index, name in enumerate(shown_names)]
    if len(names) > MAX_CLASSES:
        legend.append((f"{len(names) - len(shown_names)} more classes", class_colour(MAX_CLASSES - 1)))
    svg = embedding_map(embedded.sample.tiles[: len(embedded)], positions, numbers, embedded.labels)
    lead = (
        f"{len(embedded):,} images ({embedded.source}); images that are close look similar to the encoder "
        "(t-SNE of their features). Images are drawn where there is room, dots elsewhere; distances "
        "between distant groups mean little."
    )
    return Section("map", "Map of embeddings", Templates().render("map.html", svg=svg, legend=legend), lead)


def embedding_map(
    tiles: Sequence[np.ndarray],
    positions_N2: np.ndarray,
    numbers: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
) -> Markup:
    """Dots at all positions and thumbnails where they do not cover each other,
    framed in the colour of their class.
    """
    xs = THUMB / 2 + 8 + positions_N2[:, 0] * (MAP_WIDTH - THUMB - 16)
    ys = THUMB / 2 + 8 + (1 - positions_N2[:, 1]) * (MAP_HEIGHT - THUMB - 16)
    taken: list[tuple[float, float]] = []
    dots, thumbs = [], []
    for index, (x, y) in enumerate(zip(xs.tolist(), ys.tolist())):
        colour = f"--swatch: {class_colour(numbers[index])}" if numbers is not None else None
        title = element("title", labels[index] if labels else f"image {index + 1}")
        if all(max(abs(x - other_x), abs(y - other_y)) >= THUMB + 3 for other_x, other_y in taken):
            taken.append((x, y))
            left, top = x - THUMB / 2, y - THUMB / 2
            image = element(
                "image", href=data_url(tiles[index], longest=72), x=left, y=top, width=THUMB, height=THUMB
            )
            frame = element("rect", x=left, y=top, width=THUMB, height=THUMB, rx=4, style=colour)
            thumbs.append(element("g", title, image, frame, class_="thumb"))
        else:
            dots.append(element("circle", title, cx=x, cy=y, r=4.2, style=colour))
    return element(
        "svg", *dots, *thumbs, viewBox=f"0 0 {MAP_WIDTH:g} {MAP_HEIGHT:g}", class_="map", role="img",
        aria_label="Map of embeddings",
    )  # fmt: skip


@torch.no_grad()
def attention_section(
    encoder: Encoder, sample: Sample, *, mean: Sequence[float], std: Sequence[float], how: Mapping[str, Any]
) -> Section:
    """Where the encoder looks in a few images, and what it takes to be alike. `how` goes to `looked_at`."""
    crops = looked_at(sample, num=NUM_LOOKED_AT, channels=encoder.in_channels, **how)
    device = next(encoder.parameters()).device
    images = normalised(crops, device, mean, std)
    squares = [shown(crop) for crop in crops]
    columns: list[tuple[str, list[np.ndarray]]] = [("image", squares)]
    for stage, heat_BHW in last_of_stages(encoder, images):
        columns.append((stage, [overlay(square, heat) for square, heat in zip(squares, heat_BHW)]))
    maps = encoder(images)
    # the last map that has some cells: the last of all has few for small images
    colours_BHW3 = map_colours(next((m for m in reversed(maps) if min(m.shape[2:]) >= MIN_CELLS), maps[0]))
    columns.append(
        ("features", [_smooth(colours, square.shape[0]) for colours, square in zip(colours_BHW3, squares)])
    )
    cards = [
        [{"title": title, "url": data_url(tiles[index], longest=176)} for title, tiles in columns]
        for index in range(len(squares))
    ]
    with_attention = len(columns) > 2
    lead = (
        "Bright areas get the most attention from the whole image, averaged over the heads of a stage's "
        "last layer. "
        if with_attention
        else "This encoder has no attention layers. "
    ) + "In the last image, areas of the same colour have similar features, in all images."
    return Section("attention", "Where it looks", Templates().render("attention.html", cards=cards), lead)


def last_of_stages(encoder: Encoder, images: torch.Tensor) -> list[tuple[str, np.ndarray]]:
    """Attention [B, H, W] of the last layer of each stage (of the whole network where
    layers have no stages), and rollout.
    """
    maps = attention_maps(encoder, images)
    stages = {name.split(".")[0] if name.startswith("stage") else "last layer": name for name in maps}
    found = [
        (stage.replace("stage", "stage "), maps[name].mean(1).float().cpu().numpy())
        for stage, name in stages.items()
    ]
    rolled = attention_rollout(encoder, images)
    return [*found, ("all layers", rolled.float().cpu().numpy())] if rolled is not None else found


def looked_at(sample: Sample, *, num: int, channels: int, size: int, crop_fraction: float) -> np.ndarray:
    """uint8 [B, C, S, S]: the first images once more, twice as large where they are small."""
    from pretrain.data.views.random_views import CentralCrop

    crop = CentralCrop(size if size >= FINE_PIXELS else 2 * size, fraction=crop_fraction, channels=channels)
    filling, _ = filled(crop, [row.data for row in sample.first[:num]])
    return filling.arrays[0]


def _smooth(colours_HW3: np.ndarray, side: int) -> np.ndarray:
    return np.stack(
        [enlarged(colours_HW3[..., channel], (side, side)) * 255 for channel in range(3)], axis=-1
    ).round().clip(0, 255).astype(np.uint8)  # fmt: skip
