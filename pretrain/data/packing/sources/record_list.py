"""Millions of records in little memory: a row of numbers each, and the rest in a file of its own."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from typing import Any, Self, overload

import numpy as np

from pretrain.data.packing.first_seen import FirstSeen
from pretrain.data.packing.sources.file_table import ENCODING, FileTable, TextRun
from pretrain.data.packing.sources.image_record import Holder, Objects, Record
from pretrain.data.packing.sources.splits import SPLITS
from pretrain.data.packing.sources.spool import Spool

# what a record has, in two bytes; above these bits lies the number of its split, from 1 on
SIZED, RELATIVE, REST, OWN_PATH, LABELS, OBJECTS, CAPTIONS, PROBLEM = (1 << bit for bit in range(8))
SPLIT_BIT, BELOW_SPLIT = 8, (1 << 8) - 1
IN_REST = {"labels": LABELS, "objects": OBJECTS, "captions": CAPTIONS, "problem": PROBLEM}


class Records(Sequence[Record]):
    """Records in a compact form: 10 bytes each where a file of `files` with a label and a split is all;
    what else is known lies in a `Spool`, and takes 8 bytes more of memory for each.

    Args:
        files: of the source; most images should be among them.
    """

    def __init__(self, files: FileTable | None = None, records: Iterable[Record] = ()) -> None:
        self.files = FileTable() if files is None else files
        self._numbers = array("i")  # of the files; -1 for images elsewhere
        self._labels = array("i")  # numbers of words, from 1 on; 0 for none
        self._flags = array("H")
        self._places = array("q")  # in the spool; empty until the first record needs it
        self._words: list[str] = []
        self._number_of_word: dict[str, int] = {}
        self._spool: Spool | None = None
        self._holders: list[Holder] = []
        self.extend(records)

    def __len__(self) -> int:
        return len(self._flags)

    @overload
    def __getitem__(self, number: int) -> Record: ...

    @overload
    def __getitem__(self, number: slice) -> Self: ...

    def __getitem__(self, number: int | slice) -> Record | Self:
        if isinstance(number, slice):
            return self.taken(np.arange(len(self))[number])
        flags, file, word = self._flags[number], self._numbers[number], self._labels[number]
        rest = self._rest(number) if flags & REST else {}
        url = self.files.url(file) if file >= 0 else rest["url"]
        size_bytes = self.files.size_bytes(file) if flags & SIZED else rest.get("size_bytes", 0)
        return Record(
            url,
            rest["path"] if flags & OWN_PATH else self.files.path(file),
            size_bytes,
            self._words[word - 1] if word else None,
            relative_boxes=bool(flags & RELATIVE),
            split=self._split(flags),
            **_read_again(rest, self._holders),
        )

    def __setitem__(self, number: int, record: Record) -> None:
        row = self._row(record, self._numbers[number])
        self._numbers[number], self._labels[number], self._flags[number], place = row
        if place >= 0:
            self._with_places(len(self))
            self._places[number] = place

    def append(self, record: Record) -> None:
        """Adds a record."""
        number, word, flags, place = self._row(record, self._numbers[-1] + 1 if self._numbers else 0)
        if place >= 0 or self._places:
            self._with_places(len(self))
            self._places.append(place)
        self._numbers.append(number)
        self._labels.append(word)
        self._flags.append(flags)

    def extend(self, records: Iterable[Record]) -> None:
        """Adds records."""
        for record in records:
            self.append(record)

    def paths(self) -> Iterator[str]:
        """The path of each."""
        for number, (flags, file) in enumerate(zip(self._flags, self._numbers, strict=True)):
            yield self._rest(number)["path"] if flags & OWN_PATH else self.files.path(file)

    def knows(self, column: str) -> bool:
        """Whether the source says such things (label, labels, objects, captions) of any image."""
        if column == "label":
            return bool(np.any(np.frombuffer(self._labels, np.int32)))
        return bool(np.any(self._flags_array() & IN_REST[column]))

    def knows_both_labels(self) -> bool:
        """Whether any image has a label and a list of them."""
        labels = np.frombuffer(self._labels, np.int32)
        return bool(np.any((self._flags_array() & LABELS > 0) & (labels > 0)))

    def all_have_problems(self) -> bool:
        """Whether none can be packed."""
        return bool(np.all(self._flags_array() & PROBLEM))

    def labels(self) -> set[str]:
        """The different values of `label`."""
        return {self._words[word - 1] for word in np.unique(np.frombuffer(self._labels, np.int32)) if word}

    def num_of_split(self) -> Counter[str | None]:
        """How many records there are of each split that there is."""
        codes, nums = np.unique(self._flags_array() >> SPLIT_BIT, return_counts=True)
        names = (None, *SPLITS)
        return Counter({names[code]: int(num) for code, num in zip(codes, nums, strict=True)})

    def of_split(self, split: str | None) -> np.ndarray:
        """The numbers of the records of a split."""
        return np.flatnonzero(self._flags_array() >> SPLIT_BIT == _split_code(split))

    def split(self, number: int) -> str | None:
        """The split of a record."""
        return self._split(self._flags[number])

    def put_split(self, number: int, split: str | None) -> None:
        """Says of which split a record is."""
        self._flags[number] = self._flags[number] & BELOW_SPLIT | _split_code(split) << SPLIT_BIT

    def forget_splits(self) -> None:
        """Leaves no record with a split."""
        self._flags = array("H", (self._flags_array() & BELOW_SPLIT).tobytes())

    def files_used(self) -> bytearray:
        """Of each of `files`, by number, whether a record has it: 1 or 0."""
        used = np.zeros(len(self.files), np.uint8)
        numbers = np.frombuffer(self._numbers, np.int32)
        used[numbers[numbers >= 0]] = 1
        return bytearray(used)

    def taken(self, numbers: np.ndarray) -> Self:
        """The records of these numbers, in their order. They share what is not in memory."""
        other = copy(self)
        other._numbers, other._labels = _taken(self._numbers, numbers), _taken(self._labels, numbers)
        other._flags = _taken(self._flags, numbers)
        other._places = _taken(self._places, numbers) if self._places else array("q")
        return other

    def _flags_array(self) -> np.ndarray:
        return np.frombuffer(self._flags, np.uint16)

    @staticmethod
    def _split(flags: int) -> str | None:
        code = flags >> SPLIT_BIT
        return SPLITS[code - 1] if code else None

    def _with_places(self, num: int) -> None:
        """Makes room for the places of so many records."""
        if len(self._places) < num:
            self._places.extend([-1] * (num - len(self._places)))

    def _row(self, record: Record, likely: int) -> tuple[int, int, int, int]:
        """(number of its file, of its label, flags, place of the rest or -1) of a record."""
        file = self.files.number_of_url(record.url, likely)
        word, rest = 0, _rest_of(record)
        if record.label is not None:
            word = self._number_of_word.setdefault(record.label, len(self._words) + 1)
            if word > len(self._words):
                self._words.append(record.label)
        if file < 0:
            rest["url"] = record.url
        if file < 0 or self.files.path(file) != record.path:
            rest["path"] = record.path
        is_sized = file >= 0 and record.size_bytes == self.files.size_bytes(file)
        if record.size_bytes and not is_sized:
            rest["size_bytes"] = record.size_bytes
        if record.holder is not None:
            rest["holder"], rest["place"] = self._holder_number(record.holder), record.place
        flags = SIZED * is_sized | RELATIVE * record.relative_boxes | OWN_PATH * ("path" in rest)
        flags |= _split_code(record.split) << SPLIT_BIT | REST * bool(rest)
        for name, bit in IN_REST.items():
            flags |= bit * (name in rest)
        return file, word, flags, self._put(rest) if rest else -1

    def _holder_number(self, holder: Holder) -> int:
        """The last holder is asked first, for the records of one follow each other."""
        for number in range(len(self._holders) - 1, -1, -1):
            if self._holders[number] is holder:
                return number
        self._holders.append(holder)
        return len(self._holders) - 1

    def _put(self, rest: dict[str, Any]) -> int:
        self._spool = self._spool or Spool()
        return self._spool.append(json.dumps(rest, separators=(",", ":")).encode())

    def _rest(self, number: int) -> dict[str, Any]:
        assert self._spool is not None
        rest: dict[str, Any] = json.loads(self._spool.read(self._places[number]))
        return rest


def _rest_of(record: Record) -> dict[str, Any]:
    """What is known of a record besides its file, label and split."""
    rest: dict[str, Any] = {}
    for name in ("labels", "captions", "frame", "problem"):
        if (value := getattr(record, name)) is not None:
            rest[name] = value
    if record.objects is not None:
        rest["objects"] = record.objects.bbox, record.objects.category
    return rest


def _read_again(rest: dict[str, Any], holders: Sequence[Holder]) -> dict[str, Any]:
    """The fields of a record that `_rest_of` and `_row` put down."""
    fields: dict[str, Any] = {}
    for name in ("labels", "captions", "frame"):
        if name in rest:
            fields[name] = tuple(rest[name])
    if "objects" in rest:
        bbox, category = rest["objects"]
        fields["objects"] = Objects(tuple(tuple(box) for box in bbox), tuple(category))
    if "problem" in rest:
        fields["problem"] = rest["problem"]
    if "holder" in rest:
        fields["holder"], fields["place"] = holders[rest["holder"]], rest["place"]
    return fields


def _split_code(split: str | None) -> int:
    return 0 if split is None else 1 + SPLITS.index(split)


def _taken(values: array[int], numbers: np.ndarray) -> array[int]:
    return array(values.typecode, np.frombuffer(values, values.typecode)[numbers].tobytes())


class FewWords(Sequence[str]):
    """Texts of which few differ, with a byte for each."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        self.words: list[str] = []
        self._codes = bytearray()
        for word in words:
            if word not in self.words:
                self.words.append(word)
            self._codes.append(self.words.index(word))

    def __len__(self) -> int:
        return len(self._codes)

    @overload
    def __getitem__(self, number: int) -> str: ...

    @overload
    def __getitem__(self, number: slice) -> list[str]: ...

    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self.words[code] for code in self._codes[number]]
        return self.words[self._codes[number]]

    def numbers_of(self, word: str) -> np.ndarray:
        """Where the word is: int32, sorted."""
        code = self.words.index(word)
        return np.flatnonzero(np.frombuffer(self._codes, np.uint8) == code).astype(np.int32)


class Distinct:
    """Records of which no two have the same key, with 20 to 40 bytes for each."""

    def __init__(self, records: Records, key_of: Callable[[Record], str]) -> None:
        self.records, self._key_of = records, key_of
        self._first = FirstSeen()

    def add(self, record: Record) -> int | None:
        """Appends a record; where there is one with its key, returns the number of that instead."""
        number = self._first.number_of(self._key(record), len(self.records), self._key_at)
        if number < len(self.records):
            return number
        self.records.append(record)
        return None

    def _key(self, record: Record) -> bytes:
        return self._key_of(record).encode(*ENCODING)

    def _key_at(self, number: int) -> bytes:
        return self._key(self.records[number])


def in_order_of(records: Records, key_of: Callable[[Record], str]) -> Records:
    """The records sorted by a text; those with the same stay in their order."""
    return records.taken(TextRun(map(key_of, records)).order())
