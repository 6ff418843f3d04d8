"""Ids of a COCO json in 8 bytes each."""

from __future__ import annotations

import json
import re
from array import array
from typing import Any

import numpy as np

from pretrain.data.packing.first_seen import FirstSeen
from pretrain.data.packing.sources.file_table import TextRun
from pretrain.data.packing.sources.texts import id_key

LIMIT = 10**18  # integers below it are kept as they are
NO_ID = -(2**63)  # the key of what cannot be an id
_SMALL = re.compile(r"0|-?[1-9][0-9]{0,17}")  # a text that is such an integer


class Ids:
    """What stands where an id should be, as an integer, its code. An integer is kept as twice itself,
    anything else as an odd number, with its JSON kept once. Codes with one key are one id (see `id_key`).
    """

    def __init__(self) -> None:
        self._texts, self._first = TextRun(), FirstSeen()
        self._keys = array("q")  # of each of the texts

    def code(self, value: Any) -> int:
        """The code of a JSON value."""
        if type(value) is int and -LIMIT < value < LIMIT:
            return 2 * value
        text = json.dumps(value)
        number = self._first.number_of(text.encode(), len(self._texts), self._texts.encoded)
        if number == len(self._texts):
            self._texts.append(text)
            self._keys.append(2 * number + 1)
            self._keys[number] = self._key(value, 2 * number + 1)
        return 2 * number + 1

    def _key(self, value: Any, code: int) -> int:
        key = id_key(value)
        if key is None:
            return NO_ID
        if _SMALL.fullmatch(key):
            return 2 * int(key)
        return code if key == value else self.code(key)

    def value(self, code: int) -> Any:
        """What has this code."""
        return json.loads(self._texts[code // 2]) if code % 2 else code // 2

    def key(self, code: int) -> int:
        """The key of a code; `NO_ID` where it is none of an id."""
        return self._keys[code // 2] if code % 2 else code

    def keys(self, codes: array[int]) -> np.ndarray:
        """The key of each code. Shape (len(codes),), int64."""
        keys = np.frombuffer(codes, np.int64)
        odd = np.flatnonzero(keys & 1)
        if len(odd):
            keys = keys.copy()
            keys[odd] = np.frombuffer(self._keys, np.int64)[keys[odd] >> 1]
        return keys
