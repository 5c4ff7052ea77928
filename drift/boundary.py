"""The one way out of every command: what can be expected is a line and an exit code, all else is to be reported.

What can be expected: our own errors, a disk or a file that refuses, too little memory, input that is nested without
end, a reader of the output who has gone, an interruption. Anything else is a defect in drift: the traceback goes to a
file, and a person is asked to report it.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from drift.errors import DriftError
from drift.shown import clipped, printable
from drift.streams import Output, safe_streams

__all__ = ["DEFECT", "FAILED", "INTERRUPTED", "command", "tell"]

#: Exit codes that all commands share: what can be expected, a defect of drift (``EX_SOFTWARE``), Ctrl-C.
FAILED, DEFECT, INTERRUPTED = 2, 70, 130


class _Main(Protocol):
    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def command(
    speaker: str,
    codes: Mapping[type[DriftError], int] | None = None,
    failed: int = FAILED,
    interrupted: str = "interrupted",
) -> Callable[[_Main], _Main]:
    """Make a command of a function: it returns an exit code, whatever happens.

    Parameters
    ----------
    speaker : str
        Who speaks, at the beginning of every line of an error.
    codes : mapping, optional
        Exit codes of some kinds of our errors.
    failed : int
        Exit code of all else that can be expected.
    interrupted : str
        What is said at Ctrl-C, and at a polite request to end.

    Returns
    -------
    callable
        Takes a function of the arguments that returns an exit code, and returns one that raises nothing but the
        ``SystemExit`` of ``argparse``.
    """

    def of(main: _Main) -> _Main:
        @functools.wraps(main)
        def guarded(argv: Sequence[str] | None = None) -> int:
            with safe_streams() as out, _terminable():
                try:
                    return _flushed(out, lambda: main(argv))
                except DriftError as error:
                    tell(speaker, str(error))
                    return next((code for kind, code in (codes or {}).items() if isinstance(error, kind)), failed)
                except KeyboardInterrupt:
                    tell(speaker, interrupted)
                    return INTERRUPTED
                except Exception as error:
                    expected = _expected(error)
                    tell(speaker, expected or _defect(speaker, error))
                    return failed if expected else DEFECT

        return guarded

    return of


def tell(speaker: str, text: str) -> None:
    """Say something on standard error, in lines that each say who speaks."""
    for line in text.splitlines() or [""]:
        print(f"{speaker}: {printable(line)}", file=sys.stderr, flush=True)


def _flushed(out: Output, act: Callable[[], int]) -> int:
    """Carry out a command, and see that what it printed arrives, however it ends."""
    try:
        code = int(act())
    except SystemExit:
        out.finish()
        raise
    except BaseException:
        out.flush()
        raise
    out.finish()
    return code


def _expected(error: Exception) -> str:
    """What to say of an error of the system; nothing where it is none."""
    if isinstance(error, OSError):
        where = f"{clipped(error.filename)}: " if isinstance(error.filename, (str, os.PathLike)) else ""
        return f"{where}{error.strerror or error}. Nothing more was done; what was complete before is kept."
    if isinstance(error, MemoryError):
        return "not enough memory for what was asked. Ask for less, or run it on a machine with more."
    if isinstance(error, RecursionError):
        return "a file or an argument is nested too deeply to be read. Such files are not made by drift."
    return ""


def _defect(speaker: str, error: Exception) -> str:
    """Keep the traceback, and ask for a report."""
    told = "".join(traceback.format_exception(error))
    said = f"{type(error).__name__}: {clipped(error)}"
    try:
        handle, path = tempfile.mkstemp(prefix=f"{speaker}-", suffix=".traceback.txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{' '.join(map(printable, sys.argv))}\n\n{told}")
    except OSError:
        return f"this is a defect in drift ({said}). Please report it, with what follows:\n{told}"
    return (
        f"this is a defect in drift ({said}). Please report it at the issue tracker of drift's repository, with the "
        f"command and the file {path}"
    )


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _terminable() -> Iterator[None]:
    """Let a polite request to end (``kill``, a closed terminal) do what Ctrl-C does: clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # What is ignored stays ignored: `nohup` means it.
    before = [(n, handler) for n in numbers if (handler := signal.getsignal(n)) is not signal.SIG_IGN]
    for number, _ in before:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
