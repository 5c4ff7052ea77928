"""What a person sees while a sweep runs: a bar on a terminal, plain lines elsewhere; all of it on stderr.

Several groups may be under way at once: each is known by its place, as in ``[2/7]``; one alone needs none.
"""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

from drift.shown import printable
from drift.streams import plain_stream

__all__ = ["Bar", "Lines", "Silent", "reporter"]


class Silent:
    """Says nothing; the base of the others."""

    def line(self, text: str) -> None:
        """Say one thing."""

    def begin(self, seconds: float) -> None:
        """All groups together are expected to take this long."""

    def group(self, title: str, seconds: float, documents: int, place: str = "") -> None:
        """A group begins; it is expected to take this long."""

    def fraction(self, done: float, place: str = "") -> None:
        """Take note that so much of the group is done, 0 to 1."""

    def group_done(self, text: str, place: str = "") -> None:
        """The group is over."""

    def end(self) -> None:
        """Nothing more will come."""


class Lines(Silent):
    """One line per group and document."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._under_way: dict[str, tuple[int, int]] = {}  # of each group its documents, and how many are told of

    def line(self, text: str) -> None:
        """Print it."""
        print(printable(text), file=self._stream, flush=True)

    def group(self, title: str, seconds: float, documents: int, place: str = "") -> None:
        """Say what begins."""
        self._under_way[place] = documents, 0
        self.line(title)

    def fraction(self, done: float, place: str = "") -> None:
        """Show how far it is."""
        documents, told = self._under_way.get(place, (0, 0))
        finished = min(int(done * documents + 1e-9), documents)
        if finished > told:
            self._under_way[place] = documents, finished
            self.line(f"    {place}{' ' * bool(place)}document {finished} of {documents}")

    def group_done(self, text: str, place: str = "") -> None:
        """Say how it went."""
        self._under_way.pop(place, None)
        self.line(f"    {text}")


class Bar(Silent):
    """A bar over the whole sweep, in expected seconds; lines appear above it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = plain_stream(stream)  # a bar moves the cursor itself
        self._bar: Any = None
        self._over = 0.0
        self._under_way: dict[str, tuple[float, float]] = {}  # of each group its seconds, and the part that is done

    def line(self, text: str) -> None:
        """Print it."""
        if self._bar is None:
            print(printable(text), file=self._stream, flush=True)
        else:
            self._bar.write(printable(text), file=self._stream)

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

    def group(self, title: str, seconds: float, documents: int, place: str = "") -> None:
        """Say what begins."""
        self._under_way[place] = seconds, 0.0
        self.line(title)

    def fraction(self, done: float, place: str = "") -> None:
        """Show how far it is."""
        if place in self._under_way:
            self._under_way[place] = self._under_way[place][0], done
        if self._bar is not None:
            so_far = self._over + sum(seconds * part for seconds, part in self._under_way.values())
            self._bar.update(min(so_far, self._bar.total) - self._bar.n)

    def group_done(self, text: str, place: str = "") -> None:
        """Say how it went."""
        self._over += self._under_way.pop(place, (0.0, 0.0))[0]
        self.fraction(1.0, place)
        self.line(f"    {text}")

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def reporter(stream: TextIO | None = None) -> Silent:
    """A bar where a person looks on, lines where a file does."""
    stream = stream or sys.stderr
    return Bar(stream) if _has_room(stream) else Lines(stream)


def _has_room(stream: TextIO) -> bool:
    """Whether it is a terminal that knows its width: one of no columns would show no bar, and no lines instead."""
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:
        return False
