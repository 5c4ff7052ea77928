"""Standard output and standard error of a command, fit for texts that come from files.

A terminal obeys control characters, so they are written as what they are called; a character that the stream's encoding
lacks is written as its number. A reader who closes the pipe (``| head``) ends the output and not the work; what cannot
be written for another reason is an error that is said.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO, cast

from drift.shown import printable_lines

__all__ = ["Errors", "Output", "plain_stream", "safe_streams"]

#: What progress bars of libraries write: a return to the beginning of the line, and one line up.
_OF_BARS = re.compile("(\r|\x1b\\[A)")


class Output:
    """A text stream like standard output, in place of which it stands."""

    def __init__(self, stream: TextIO) -> None:
        self.inner = stream
        self._over = False
        self._failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write what a terminal may show of a text."""
        encoding = self.encoding
        shown = self._shown(text).encode(encoding, "backslashreplace").decode(encoding)
        self._carefully(lambda: self.inner.write(shown))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what was written."""
        self._carefully(self.inner.flush)

    def finish(self) -> None:
        """Flush, and raise what a writer kept to itself: ``argparse`` does."""
        self.flush()
        if self._failure is not None:
            raise self._failure

    @property
    def encoding(self) -> str:
        """Of the stream that is written to."""
        return self.inner.encoding or "utf-8"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def _shown(self, text: str) -> str:
        return printable_lines(text)

    def _carefully(self, act: Callable[[], Any]) -> None:
        if self._over:
            return
        try:
            act()
        except BrokenPipeError:
            self._end()
        except OSError as error:
            self._end()
            self._refused(error)

    def _refused(self, error: OSError) -> None:
        self._failure = OSError(error.errno, f"standard output cannot be written ({error.strerror or error})")
        raise self._failure from error

    def _end(self) -> None:
        """Let what is left in the buffer go nowhere: the interpreter would complain of it when it ends."""
        self._over = True
        if self.inner in (sys.__stdout__, sys.__stderr__):
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.inner.fileno())
                os.close(nowhere)


class Errors(Output):
    """Standard error: progress bars may move on it, and there is nowhere to say that it cannot be written."""

    def _shown(self, text: str) -> str:
        parts = _OF_BARS.split(text)  # every other part is a bar's own
        return "".join(part if n % 2 else printable_lines(part) for n, part in enumerate(parts))

    def _refused(self, error: OSError) -> None:
        pass


@contextmanager
def safe_streams() -> Iterator[Output]:
    """Let standard output and standard error be safe ones for a while; standard output is handed on."""
    before = sys.stdout, sys.stderr
    # Whoever started the process may have closed them (`>&-`): then there is nowhere to write to.
    with ExitStack() as nowhere:
        there = [
            nowhere.enter_context(open(os.devnull, "w", encoding="utf-8")) if stream is None else plain_stream(stream)
            for stream in before
        ]
        out, err = Output(there[0]), Errors(there[1])
        sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
        try:
            yield out
        finally:
            err.flush()
            sys.stdout, sys.stderr = before


def plain_stream(stream: TextIO) -> TextIO:
    """What a stream of a command writes to: for a progress bar, which moves the cursor itself."""
    return stream.inner if isinstance(stream, Output) else stream
