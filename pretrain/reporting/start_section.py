"""What a run started from, and how far its weights have moved from there."""

from __future__ import annotations

from cluster.secrets import masked
from pretrain.reporting.elements import element
from pretrain.reporting.folder import RunRecord
from pretrain.reporting.numbers import percent
from pretrain.reporting.page import Section, Tile


def moved_tiles(run: RunRecord) -> list[Tile]:
    """One number: the distance from the start, where there was one."""
    overall = (run.result.get("moved") or {}).get("overall")
    return [] if overall is None else [Tile("Moved", percent(overall), "of the start's norm, all weights")]


def start_section(run: RunRecord) -> Section | None:
    """The start's name, checksum and licence, and the distance of each layer; None for fresh weights."""
    start, moved = run.result.get("started_from"), run.result.get("moved") or {}
    if not isinstance(start, dict):
        return None
    layers = [
        ("stem" if number == 0 else f"layer {number}", "–" if fraction is None else percent(fraction))
        for number, fraction in enumerate(moved.get("by_layer") or [])
    ]
    rows = [
        ("weights", masked(str(start.get("name")))),
        ("checksum (sha256)", str(start.get("weights_sha256"))),
        ("licence", str(start.get("licence") or "its files do not say")),
        *layers,
    ]
    body = element(
        "table", *(element("tr", element("th", name), element("td", value)) for name, value in rows)
    )
    return Section(
        "start",
        "The start",
        body,
        "The weights that the run started from, and how far each layer has moved: the norm of the "
        "difference divided by that of the starting weights. Early layers that move far forget what they "
        "knew; method.keep and encoder.layer_decay hold them back.",
    )
