"""One kind of exception for what a user can fix, and the exit codes of every command.

Exit codes: 0 done; 1 a fault of ours or of the machine (with a traceback); 2 something the user can fix
(one clear line, no traceback); 3 the run stopped itself by a rule (collapse, non-finite loss, too many bad
rows); 130 interrupted, and the same command continues.
"""

from __future__ import annotations

import atexit
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from types import FrameType, TracebackType
from typing import NoReturn

from cluster.process import set_up_process
from cluster.renamed import VALUES, is_now_called
from cluster.secrets import masked

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_STOPPED = 3
EXIT_INTERRUPTED = 130

LINES = "\n\t"  # what a traceback is made of


class UserError(Exception):
    """Something the user can fix: names the file, key or row, the value seen and what would be right."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it: the line that helps, and not where in our files it was raised."""
        return [f"{type(self).__name__}: {printable(masked(str(self)))}"]


class StoreUnavailable(UserError):
    """A store that did not answer, however often it was asked; the same request may succeed later."""


class RunStopped(Exception):
    """A run that ended itself by a rule; the message says which rule,
    what was seen and what usually helps.
    """


class WorkerFailed(Exception):
    """A worker's own exception, given up after all restarts;
    the message holds the worker's whole traceback, once.
    """


def printable(text: str, *, keep: str = "") -> str:
    """Text that does nothing to a terminal: control and format characters are escaped,
    but those in `keep`.
    """
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """A ready `; did you mean 'x'?` for error messages, or an empty string when nothing is near."""
    matches = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def choose(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns `name` when it is one of `known`; raises UserError that lists them otherwise."""
    names = sorted(known)
    if name not in names:
        if VALUES.get(name) in names:
            raise UserError(f"{kind} {is_now_called(repr(name), repr(VALUES[name]))}")
        raise UserError(f"unknown {kind} {name!r}{nearest(name, names)} (known: {', '.join(names)})")
    return name


ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # what ends a command as Ctrl-C does


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    # signals that somebody else handles or ignores are left alone
    usual = (signal.SIG_DFL, signal.default_int_handler)
    former = {number: signal.getsignal(number) for number in ENDS}
    taken = {number: handler for number, handler in former.items() if handler in usual}
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    except Exception as error:
        # compiled code that is loaded or called at that moment may make another exception of it
        if came and not isinstance(error, (UserError, RunStopped, WorkerFailed)):
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


def _print_masked(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print(printable(masked(text), keep=LINES), file=sys.stderr, end="", flush=True)


def run_command(main: Callable[[], int | None]) -> int:
    """Runs a command's main function and turns its exceptions into one clear line and an exit code.

    What is none of them goes on, and its traceback is printed without secrets. SIGTERM and SIGHUP (a closed
    terminal, unless `nohup` keeps it away) end a command as Ctrl-C does, so
    that nothing half written stays behind.
    """
    sys.excepthook = _print_masked
    set_up_process()
    try:
        with _interrupted_by_signals():
            return main() or 0
    except UserError as error:
        way_out = (
            "; give the same command again once the store answers"
            if isinstance(error, StoreUnavailable)
            else ""
        )
        print(f"error: {printable(masked(str(error)))}{way_out}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    except RunStopped as error:
        print(f"stopped: {printable(masked(str(error)))}", file=sys.stderr, flush=True)
        return EXIT_STOPPED
    except WorkerFailed as error:  # its text is the traceback that helps; ours would only hide it
        print(f"error: {printable(masked(str(error)), keep=LINES)}", file=sys.stderr, flush=True)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `... | head` closed our output: not worth a traceback
        sys.stderr.close()
        return EXIT_FAILED


def run_process(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command as the whole of this process: `run_command`, and ends with its exit code.

    The first signal while Python takes itself down changes nothing: what it would stop is written already.
    The second ends the process, should that take long.
    """
    taken: list[signal.Signals] = []

    def too_late(number: int, frame: FrameType | None) -> None:
        for each in taken:
            signal.signal(each, signal.SIG_DFL)

    def to_the_end() -> None:
        # while modules are torn down, Python gives up its own handlers, and a signal would be deadly again
        for each in taken:
            signal.signal(each, signal.SIG_IGN)

    atexit.register(to_the_end)  # the first to be registered is the last to be called
    code = run_command(main)
    taken += [number for number in ENDS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, too_late)
    sys.exit(code)


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its type's name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
