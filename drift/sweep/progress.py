"""What a person sees while a sweep runs: a bar on a terminal, plain lines elsewhere; all of it on stderr."""

from __future__ import annotations

import sys
from typing import Any, TextIO

__all__ = ["Bar", "Lines", "Silent", "reporter"]


class Silent:
    """Says nothing; the base of the others."""

    def line(self, text: str) -> None:
        """Say one thing."""

    def begin(self, seconds: float) -> None:
        """All groups together are expected to take this long."""

    def group(self, title: str, seconds: float, documents: int) -> None:
        """A group begins; it is expected to take this long."""

    def fraction(self, done: float) -> None:
        """Take note that so much of the group is done, 0 to 1."""

    def group_done(self, text: str) -> None:
        """The group is over."""

    def end(self) -> None:
        """Nothing more will come."""


class Lines(Silent):
    """One line per group and document."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._documents = 0
        self._told = 0

    def line(self, text: str) -> None:
        """Print it."""
        print(text, file=self._stream, flush=True)

    def group(self, title: str, seconds: float, documents: int) -> None:
        """Say what begins."""
        self._documents, self._told = documents, 0
        self.line(title)

    def fraction(self, done: float) -> None:
        """Show how far it is."""
        finished = min(int(done * self._documents + 1e-9), self._documents)
        if finished > self._told:
            self._told = finished
            self.line(f"    document {finished} of {self._documents}")

    def group_done(self, text: str) -> None:
        """Say how it went."""
        self.line(f"    {text}")


class Bar(Silent):
    """A bar over the whole sweep, in expected seconds; lines appear above it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Any = None
        self._before = 0.0
        self._share = 0.0

    def line(self, text: str) -> None:
        """Print it."""
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.write(text, file=self._stream)

    def begin(self, seconds: float) -> None:
        """Draw the bar."""
        from tqdm import tqdm

        self._bar = tqdm(
            total=max(seconds, 1e-3),
            file=self._stream,
            bar_format="{percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left",
            dynamic_ncols=True,
            leave=False,
        )

    def group(self, title: str, seconds: float, documents: int) -> None:
        """Say what begins."""
        self._share = seconds
        self.line(title)

    def fraction(self, done: float) -> None:
        """Show how far it is."""
        if self._bar is not None:
            self._bar.update(min(self._before + done * self._share, self._bar.total) - self._bar.n)

    def group_done(self, text: str) -> None:
        """Say how it went."""
        self.fraction(1.0)
        self._before += self._share
        self.line(f"    {text}")

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def reporter(stream: TextIO | None = None) -> Silent:
    """A bar where a person looks on, lines where a file does."""
    stream = stream or sys.stderr
    return Bar(stream) if stream.isatty() else Lines(stream)
