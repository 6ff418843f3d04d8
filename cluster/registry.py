"""Classes by their names, each imported when it is first asked for: a command that needs one of them does
not wait for the libraries of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Generic, TypeVar, cast

T = TypeVar("T")


class Registry(MutableMapping[str, T], Generic[T]):
    """Name -> class, in the order given.

    Args:
        places: name -> `module:Class`. A class itself may be set under a name as well.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._found: dict[str, T | str] = dict(places)

    def __getitem__(self, name: str) -> T:
        found = self._found[name]
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            found = self._found[name] = cast(T, getattr(import_module(module), attribute))
        return found

    def __setitem__(self, name: str, value: T) -> None:
        self._found[name] = value

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, name: object) -> bool:
        return name in self._found
