"""What an import does with one prepared image: packs it and counts it, or says why not."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pretrain.data.packing.import_journal import Journal
from pretrain.data.packing.ledger import ASIDE, DUPLICATE, PACKED, Files
from pretrain.data.packing.packing import ShardWriter
from pretrain.data.packing.preparing import Prepared
from pretrain.data.packing.sources import Record, Records
from pretrain.data.packing.sources.record_list import FewWords

LEAK = "image of one split with the bytes of one of another"
ROW_FIELDS = ("label", "labels", "objects", "captions")


@dataclass
class Tally:
    """What an import has done so far; all of it JSON, for the journal."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> label ("" for none) -> images
    bytes_before: int = 0
    bytes_after: int = 0
    duplicates: int = 0
    boxes: int = 0
    captions: int = 0
    aside: int = 0
    leaks: int = 0
    aside_here: int = 0  # of the images set aside, those whose files were listed with the source
    left_out_here: int = 0  # the same of duplicates
    facts: dict[str, int] = field(default_factory=dict)  # what was seen of single images -> how often
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Images packed."""
        return sum(sum(labels.values()) for labels in self.counts.values())


@dataclass(frozen=True)
class Taking:
    """All that packing an image needs.

    Args:
        records, sides: of the whole source in the order of packing, and the split of each ("" where nothing
            is split off).
        files: of the source.
        tally, journal: take note.
        drop_duplicates: of images with equal bytes only the first is packed.
    """

    records: Records
    sides: FewWords
    files: Files
    tally: Tally
    journal: Journal
    drop_duplicates: bool

    @property
    def tells_equal_apart(self) -> bool:
        """Whether it matters that two images have equal bytes."""
        return self.drop_duplicates or any(self.sides.words)

    def take(self, item: Prepared, number: int, writer: ShardWriter) -> None:
        """Packs one image and counts it, or says why not. `number`: its index among the records."""
        record, tally = item.record, self.tally
        for note in item.notes:
            self.journal.set_aside(record.path, note)
        if item.data is None:
            tally.aside += 1
            tally.aside_here += self.files.holds(record.url)
            tally.examples.setdefault(ASIDE, record.path)
            return
        for fact, num in item.facts.items():
            self._saw(fact, record, num)
        if self.drop_duplicates or self.sides[number]:
            earlier = self.journal.first_with(item.digest, number)
            if earlier is not None and (reason := self._why_left_out(record, number, earlier)) is not None:
                tally.left_out_here += self.files.holds(record.url)
                tally.examples.setdefault(DUPLICATE, record.path)
                self.journal.set_aside(record.path, reason)
                return
        self._write(item, writer, tally.counts.setdefault(self.sides[number], {}))

    def _why_left_out(self, record: Record, number: int, earlier: int) -> str | None:
        """Why an image with the bytes of an earlier one is left out;
        None where it is packed all the same.
        """
        first = self.records[earlier]
        if self.drop_duplicates:
            self.tally.duplicates += 1
            reason = f"a duplicate of {first.path}"
            here, there = (
                other.label if other.labels is None else list(other.labels) for other in (record, first)
            )
            return (
                reason if here == there else f"{reason}, but its label there is {there!r} and here {here!r}"
            )
        if self.sides[earlier] == self.sides[number]:
            return None
        if record.split is None or first.split is None or first.split == record.split:
            self.tally.leaks += 1
            return (
                f"a duplicate of {first.path}, which is in {self.sides[earlier]}; it would be in both splits"
            )
        self._saw(LEAK, record, 1)  # the source has it so
        return None

    def _saw(self, fact: str, record: Record, num: int) -> None:
        self.tally.facts[fact] = self.tally.facts.get(fact, 0) + num
        self.tally.examples.setdefault(fact, record.path)

    def _write(self, item: Prepared, writer: ShardWriter, labels: dict[str, int]) -> None:
        record, tally = item.record, self.tally
        assert item.data is not None
        row: dict[str, Any] = {"image": {"bytes": item.data, "path": item.path}}
        for name in ROW_FIELDS:
            value = item.objects if name == "objects" else getattr(record, name)
            if value is not None:
                row[name] = (
                    asdict(value)
                    if name == "objects"
                    else list(value)
                    if isinstance(value, tuple)
                    else value
                )
        writer.write(row)
        tally.examples.setdefault(PACKED, record.path)
        told = record.labels if record.label is None else None
        for label in told or (record.label or "",):
            labels[label] = labels.get(label, 0) + 1
        if told:
            labels[""] = labels.get("", 0) + 1 - len(told)  # so that the counts of a split sum to its images
        tally.bytes_before += item.bytes_before
        tally.bytes_after += len(item.data)
        tally.boxes += len(item.objects.bbox) if item.objects else 0
        tally.captions += len(record.captions or ())
