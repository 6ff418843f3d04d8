"""Which record first had the bytes of an image, for millions of images in little memory."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from itertools import count

FIRST_SLOTS = 2**12
MAX_FULL = 0.6  # fraction of the slots; above it there are twice as many


class FirstSeen:
    """Numbers by digest, of which the first 8 bytes are kept:
    20 to 40 bytes an image, where a dictionary takes 190.

    Two of ten million different images begin alike with a probability of 3 in a million. A table with open
    addressing: a digest is looked for from the slot that it names on, up to the first that is empty.
    """

    def __init__(self) -> None:
        self._make(FIRST_SLOTS)
        self._num = 0

    def __len__(self) -> int:
        return self._num

    def _make(self, num_slots: int) -> None:
        self._mask = num_slots - 1
        self._keys = array("Q", bytes(8 * num_slots))  # 0 is an empty slot
        self._numbers = array("i", bytes(4 * num_slots))

    def first(self, digest: bytes, number: int) -> int:
        """The number that this digest was first seen with; this one, where it is new."""
        key = int.from_bytes(digest[:8], "little") or 1
        slot = self._slot(key)
        if self._keys[slot]:
            return self._numbers[slot]
        self._keys[slot], self._numbers[slot] = key, number
        self._num += 1
        if self._num > MAX_FULL * len(self._keys):
            self._grow()
        return number

    def number_of(self, key: bytes, number: int, key_of: Callable[[int], bytes]) -> int:
        """The number that a key was first seen with; this one, where it is new. `key_of`: of an earlier one,
        for in a million lists of millions a few have two keys with one digest.
        """
        for attempt in count():
            digest = hashlib.blake2b(b"%d %b" % (attempt, key), digest_size=8).digest()
            earlier = self.first(digest, number)
            if earlier == number or key_of(earlier) == key:
                return earlier
        raise AssertionError

    def _slot(self, key: int) -> int:
        """Where the key is, or where it belongs."""
        slot = key & self._mask
        while (found := self._keys[slot]) and found != key:
            slot = (slot + 1) & self._mask
        return slot

    def _grow(self) -> None:
        keys, numbers = self._keys, self._numbers
        self._make(2 * len(keys))
        for key, number in zip(keys, numbers, strict=True):
            if key:
                slot = self._slot(key)
                self._keys[slot], self._numbers[slot] = key, number
