"""JSON files item by item: as Python objects a whole file takes ten times its text."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from cluster import storage
from pretrain.data.packing.sources.records import check_size, read_json
from pretrain.data.packing.sources.texts import encoding_of

PIECE_BYTES = 2**20
LOOK_AHEAD = 3  # 1 may be the begin of 1e+5: what follows a value tells that the value has ended
_BLANKS = re.compile(r"[ \t\n\r]*")


class JsonText:
    """A JSON text that is read in pieces and decoded as far as it is asked for.

    All methods raise ValueError for what is no JSON, and RecursionError for too many lists in lists.
    """

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text, self._at = "", 0
        self._decode = json.JSONDecoder().raw_decode

    def sign(self) -> str:
        """The next character that is no blank, which stays; an empty text at the end."""
        here = self._text[self._at : self._at + 1]
        if here > " ":
            return here
        while True:
            blanks = _BLANKS.match(self._text, self._at)
            assert blanks is not None  # it matches anything
            self._at = blanks.end()
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def value(self) -> Any:
        """The next value as a whole."""
        self.sign()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except ValueError:
                if not self._more():
                    raise
                continue
            if end + LOOK_AHEAD <= len(self._text) or not self._more():
                self._at = end
                return value

    def items(self) -> Iterator[Any]:
        """The items of the list that is next."""
        self._take("[")
        if self.sign() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self._take(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """The names in the object that is next; after each the caller takes what it stands for."""
        self._take("{")
        if self.sign() == "}":
            self._at += 1
            return
        while True:
            if self.sign() != '"':
                raise ValueError("no name in an object")
            name: str = self.value()
            self._take(":")
            yield name
            if self._take(",}") == "}":
                return

    def pass_over(self) -> None:
        """Reads the next value to its end and keeps nothing."""
        if self.sign() != "[":
            self.value()
            return
        for _ in self.items():
            pass

    def end(self) -> None:
        """Nothing may follow."""
        if self.sign():
            raise ValueError("text behind the value")

    def _take(self, signs: str) -> str:
        sign = self.sign()
        if not sign or sign not in signs:
            raise ValueError(f"{sign!r} in place of one of {signs!r}")
        self._at += 1
        return sign

    def _more(self) -> bool:
        """Reads on; False where nothing is left."""
        rest = self._text[self._at :]
        parts, num = [rest], 0
        for piece in self._pieces:
            parts.append(piece)
            num += len(piece)
            if num > len(rest):  # twice the text each time: a long value is not begun again too often
                break
        if not num:
            return False
        self._text, self._at = "".join(parts), 0
        return True


@contextmanager
def json_text(url: str) -> Iterator[JsonText]:
    """A JSON file in pieces; what is done with it should end with `end()`.

    Raises UserError when it is missing, huge or damaged; of damage it says where.
    """
    check_size(url)
    with _opened(url) as file:
        try:
            yield JsonText(_pieces(file))
        except (ValueError, RecursionError):
            read_json(url)  # raises, and says where
            raise


@contextmanager
def _opened(url: str) -> Iterator[IO[bytes]]:
    if url.startswith(("http://", "https://")):  # not every server sends parts
        yield io.BytesIO(storage.read_bytes(url))
        return
    with storage.open_input(url) as file:
        yield file


def _pieces(file: IO[bytes]) -> Iterator[str]:
    """The text of a file in pieces. Raises ValueError for bytes that are no such text."""
    data = file.read(PIECE_BYTES)
    decoder = codecs.getincrementaldecoder(encoding_of(data))()
    while data:
        yield decoder.decode(data)
        data = file.read(PIECE_BYTES)
    yield decoder.decode(b"", final=True)
