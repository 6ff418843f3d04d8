"""What is imported when it is first asked for: a command that needs one of several classes does not wait for
the libraries of the others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

from cluster.process import set_up_process

T = TypeVar("T")


def imported_later(
    package: str, names: Sequence[str], home: str, **homes: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names come from modules below it.

    Args:
        package: its `__name__`.
        names: its `__all__`.
        home: the module of all names, except for those in `homes`, name -> module.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        set_up_process()  # before torch is loaded
        return getattr(import_module(homes.get(name, home)), name)

    def listed() -> list[str]:
        return [*vars(sys.modules[package]), *names]

    return get, listed


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
