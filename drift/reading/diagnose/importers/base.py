"""What every importer is given, and what it hands back."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from drift._bounds import MOST_BLOCKS, MOST_DIGITS, MOST_DUMP_FILES, MOST_STEPS
from drift.errors import DatasetError
from drift.reading.diagnose.containers import SUFFIXES, Held, tensors_in
from drift.reading.diagnose.stored import Place, Stored
from drift.shown import clipped

__all__ = [
    "PLACES",
    "Found",
    "Importer",
    "Options",
    "Piece",
    "Source",
    "bounded",
    "numbered",
    "ranks_said",
    "steps_of",
    "wanted",
]

_DEPTH = 4  # folders inside one another: step, rank and data are three
_NUMBER = re.compile(r"\d+")
_LONGEST = 256  # characters of a tensor's name: paths of modules have fewer

#: Tensors by names of our own, without the step: layers from 0, blocks from 1.
PLACES = re.compile(
    r"layer\.(?P<layer>\d+)\.hidden|block\.(?P<block>\d+)\.(?P<kind>key|value|cache_key|cache_value)"
    r"|(?P<last>final|logits)"
)


@dataclass(frozen=True)
class Options:
    """What files do not say.

    Attributes
    ----------
    heads : int or None
        Heads of keys and values.
    layers : tuple of int
        After how many blocks hidden states were taken.
    """

    heads: int | None = None
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A tensor that has a place.

    Attributes
    ----------
    place : Place
    step : int
        Chain step, from 0.
    stored : Stored
        As the file has it, but for a batch axis of 1.
    heads : int or None
        Heads of keys and values that are [token, head, feature] or [token, head * feature]; None: as the options say.
    """

    place: Place
    step: int
    stored: Stored
    heads: int | None = None


@dataclass
class Found:
    """What an importer found.

    Attributes
    ----------
    pieces : list of Piece
    ignored : list of str
        Names of tensors that have no place.
    metadata : dict
        What the files say of themselves.
    said : str
        What they were read as, and what else is to be known; "" for names of our own.
    wanted : str
        What is wrong if there are no pieces.
    """

    pieces: list[Piece] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    said: str = ""
    wanted: str = ""


class Source:
    """A file or folder that is to be recognised.

    Attributes
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: dict[Path, Held] = {}

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """All plain files of a folder, some levels down, in order; or the file itself.

        Raises
        ------
        DatasetError
            If there is none, or more than are read.
        """
        if self.path.is_file():
            return (self.path,)
        found: list[Path] = []
        for folder, below, names in os.walk(self.path):
            if len(Path(folder).relative_to(self.path).parts) >= _DEPTH:
                below.clear()
            found += [Path(folder, name) for name in names]
            if len(found) > MOST_DUMP_FILES:
                raise DatasetError(f"{clipped(self.path)}: holds more than {MOST_DUMP_FILES:,} files.")
        return tuple(sorted(found, key=_natural))

    @cached_property
    def containers(self) -> tuple[Path, ...]:
        """Files of tensors in the folder itself; the file, if it is one."""
        if self.path.is_file():
            return (self.path,)
        return tuple(path for path in self.files if path.parent == self.path and path.suffix in SUFFIXES)

    def held(self, path: Path) -> Held:
        """What a file holds; errors as :func:`~drift.reading.diagnose.containers.tensors_in`."""
        if path not in self._held:
            held = tensors_in(path)
            shown = {name: name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in held.tensors}
            self._held[path] = Held({shown[name]: one for name, one in held.tensors.items()}, held.metadata)
        return self._held[path]

    def only(self, writer: str) -> Path:
        """The one file of tensors that there is, as there must be of a program that writes one per request.

        Raises
        ------
        DatasetError
            If there are more, or none.
        """
        if len(self.containers) != 1:
            raise DatasetError(
                f"{clipped(self.path)}: holds {len(self.containers)} files of tensors; {writer} writes one per "
                "request: name that of one."
            )
        return self.containers[0]

    def parts(self, path: Path) -> tuple[str, ...]:
        """Names of the folders that a file lies in, from the one that was given, and its own."""
        return path.relative_to(self.path).parts if path != self.path else (path.name,)


@dataclass(frozen=True)
class Importer:
    """A format.

    Attributes
    ----------
    name : str
        As ``--from`` takes it.
    title : str
        In words.
    knows : callable
        Whether a source is one.
    read : callable
        What it holds. Raises :class:`~drift.errors.DatasetError`.
    """

    name: str
    title: str
    knows: Callable[[Source], bool]
    read: Callable[[Source, Options], Found]


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Numbers in a path count as such: step 10 comes after step 9."""
    found = re.split(r"(\d+)", str(path))
    return [(1, int(part), "") if place % 2 and len(part) <= MOST_DIGITS else (0, 0, part) for place, part in
            enumerate(found)]  # fmt: skip


def bounded(path: Path, name: str, digits: str, most: int = MOST_BLOCKS) -> int:
    """A number in a name.

    Raises
    ------
    DatasetError
        If it is beyond what a dump may hold.
    """
    if len(digits) > MOST_DIGITS or int(digits) > most:
        raise DatasetError(f"{path}: {name[:80]}: {digits[:20]} is beyond what a dump may hold ({most:,} at most).")
    return int(digits)


def wanted(match: re.Match[str], path: Path, name: str) -> Place:
    """The place that a name of our own says.

    Raises
    ------
    DatasetError
        If it is none that there can be.
    """
    layer, block, last = match["layer"], match["block"], match["last"]
    number = bounded(path, name, layer or block or "0")
    if block is not None and number == 0:
        raise DatasetError(f"{path}: {name}: blocks count from 1; block 0 does not exist.")
    return Place("hidden" if layer is not None else match["kind"] or last, number)


def steps_of(path: Path, labels: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], int]:
    """Steps by the numbers that a format gives them: from 0, in order.

    Parameters
    ----------
    path : Path
        What a message calls them by.
    labels : sequence of tuple of int
        Numbers of step, and of call within the step.

    Raises
    ------
    DatasetError
        If some between the first and the last are missing, or there are too many.
    """
    order = sorted(set(labels))
    firsts = sorted({label[0] for label in order})
    if len(order) > MOST_STEPS:
        raise DatasetError(f"{clipped(path)}: has {len(order):,} steps; at most {MOST_STEPS:,} are read.")
    if firsts and firsts[-1] - firsts[0] + 1 != len(firsts):
        gap = next(number for number, after in pairwise(firsts) if after != number + 1)
        raise DatasetError(
            f"{clipped(path)}: there is a step {gap} and a later one, but no step {gap + 1}: the tokens of the later "
            "ones have no place in the text."
        )
    return {label: step for step, label in enumerate(order)}


def ranks_said(rank: str, ranks: Collection[str]) -> str:
    """Say which rank of several was read: each has the whole of hidden states, and a share of the heads."""
    name = rank if rank.startswith(("rank", "proc")) else f"rank {rank}"
    return f" Of {len(ranks)} ranks {clipped(name)} was read." if len(ranks) > 1 else ""


def numbered(files: Sequence[Path], given: Path) -> dict[Path, int]:
    """Steps of files or folders by the last number in their names.

    Raises
    ------
    DatasetError
        If there are several, and they have none, or the same.
    """
    if len(files) == 1:
        return {files[0]: 0}
    labels = {}
    for file in files:
        numbers = _NUMBER.findall(file.stem if file.suffix in SUFFIXES else file.name)
        if not numbers:
            raise DatasetError(
                f"{clipped(given)}: {file.name!r} is one of {len(files)} and has no number: give one, or number them "
                "by step (0, 1, ...)."
            )
        labels[file] = (bounded(given, file.name, numbers[-1], MOST_STEPS),)
    if len(set(labels.values())) < len(files):
        raise DatasetError(
            f"{clipped(given)}: two of its {len(files)} files have the same number; steps have one each."
        )
    steps = steps_of(given, list(labels.values()))
    return {file: steps[label] for file, label in labels.items()}
