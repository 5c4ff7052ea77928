"""Dumps of tensors: folders of safetensors files with one tensor per chain step, layer and kind.

The header of a safetensors file is read here and its data memory-mapped, because the NumPy loader of the safetensors
package knows no bf16 and no fp8. Only the rows that are asked for are ever turned into floating-point numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from drift.errors import DatasetError
from drift.paths import outside_path
from drift.reading.diagnose.formats import FORMATS, Format, fits, written
from drift.reading.diagnose.importers import Found, Piece, found_in
from drift.reading.diagnose.stored import OF_HEADS, Place, Stored, part, squeezed, with_heads

__all__ = ["FORMATS", "KINDS", "Dump", "Format", "Place", "fits", "open_dump", "unpacked", "written"]

KINDS = ("hidden", "key", "value", "cache_key", "cache_value", "final", "logits")
_MOST_MAPS = 256  # files that are mapped at a time: a system has a bound on them


@dataclass
class Dump:
    """One lane's tensors.

    Attributes
    ----------
    folder : Path
        Where they lie.
    boundaries : list of int
        Token index at which each step begins, and the number of tokens of the text.
    places : dict
        Per place, its tensors by step.
    ignored : list of str
        Names of tensors that follow no naming scheme.
    metadata : dict
        That of the files.
    said : str
        What it was read as, where it has no names of our own.
    neighbours : int
        Features of each head of keys that are stored with rotary pairs side by side, and read halves apart.
    """

    folder: Path
    boundaries: list[int] = field(default_factory=list)
    places: dict[Place, dict[int, Stored]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    said: str = ""
    neighbours: int = 0
    _maps: dict[Path, np.memmap] = field(default_factory=dict, repr=False)

    @property
    def tokens(self) -> int:
        """Tokens of the text."""
        return self.boundaries[-1]

    @property
    def steps(self) -> int:
        """Chain steps."""
        return len(self.boundaries) - 1

    def step_of(self, token: int) -> int:
        """The step that a token belongs to."""
        return int(np.searchsorted(self.boundaries, token, side="right")) - 1

    def span(self, place: Place, step: int) -> tuple[int, int]:
        """Token range that a tensor covers; logits of fewer rows than the step has tokens are those of its last."""
        stop = self.boundaries[step + 1]
        return stop - self.places[place][step].tokens, stop

    def covered(self, place: Place, start: int, stop: int) -> list[tuple[int, int]]:
        """Token ranges within ``start`` to ``stop`` for which the place was dumped, in order and joined."""
        found: list[tuple[int, int]] = []
        for step in sorted(self.places.get(place, {})):
            low, high = self.span(place, step)
            low, high = max(low, start), min(high, stop)
            if low < high:
                if found and found[-1][1] == low:
                    found[-1] = (found[-1][0], high)
                else:
                    found.append((low, high))
        return found

    def dtypes(self, place: Place) -> set[str]:
        """Stored formats of a place, as safetensors names them."""
        return {stored.dtype for stored in self.places[place].values()}

    def shape(self, place: Place) -> tuple[int, ...]:
        """Shape of a place's tensors without the token axis: [feature] or [head, feature]."""
        return next(iter(self.places[place].values())).axes

    def read(self, place: Place, start: int, stop: int) -> np.ndarray:
        """Read the tokens ``start`` to ``stop`` of a place.

        Returns
        -------
        ndarray of float32 or float64
            [token, feature] or [head, token, feature]. The range must be covered.
        """
        parts = []
        for step in sorted(self.places[place]):
            low, high = self.span(place, step)
            first, last = max(low, start), min(high, stop)
            if first < last:
                parts.append(self._rows(self.places[place][step], first - low, last - low))
        return self._in_halves(place, parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-2))

    def cache(self, place: Place, step: int) -> np.ndarray:
        """Read what a cache held after a step: [head, token, feature]."""
        stored = self.places[place][step]
        return self._in_halves(place, self._rows(stored, 0, stored.tokens))

    def _in_halves(self, place: Place, keys: np.ndarray) -> np.ndarray:
        """Put rotary pairs that are neighbours half a head apart."""
        if not self.neighbours or place.kind not in ("key", "cache_key"):
            return keys
        width = self.neighbours
        order = np.concatenate([np.arange(0, width, 2), np.arange(1, width, 2), np.arange(width, keys.shape[-1])])
        return keys[..., order]

    def _rows(self, stored: Stored, start: int, stop: int) -> np.ndarray:
        try:
            rows = stored.rows(self._map(stored.path), start, stop)
            return rows if stored.plus is None else stored.added(rows, self._rows(stored.plus, start, stop))
        except (OSError, TypeError, ValueError) as error:
            raise DatasetError(f"{stored.path}: {stored.name} is not there any more ({error}).") from error

    def _map(self, path: Path) -> np.memmap:
        found = self._maps.get(path)
        if found is None:
            if len(self._maps) >= _MOST_MAPS:
                self._maps.pop(next(iter(self._maps)))
            found = self._maps[path] = np.memmap(path, dtype=np.uint8, mode="r")
        return found


def _checked(stored: Stored) -> Stored:
    """Refuse numbers of a format that cannot be compared."""
    if stored.dtype not in FORMATS:
        raise DatasetError(
            f"{stored.path}: {stored.name} is stored as {stored.dtype}; only floating-point tensors can be compared "
            f"({', '.join(FORMATS)}). Dump it before it is quantised, or after it was dequantised."
        )
    return stored


_TOKENS_FIRST = "If {} is [token, head, feature], say how many heads it has: --heads {}."


def open_dump(
    source: str | Path, heads: int | None = None, form: str | None = None, layers: Sequence[int] = ()
) -> Dump:
    """Open a dump; nothing but headers is read.

    Parameters
    ----------
    source : path
        A folder or a file: of safetensors with names of our own, or as one of the importers reads it.
    heads : int, optional
        Heads of keys and values. With it they may be stored as [token, head, feature] or [token, head * feature], too;
        where a step has as many tokens as there are heads, the other steps tell.
    form : str, optional
        Name of the importer; by default the content tells.
    layers : sequence of int, optional
        After how many blocks the hidden states were taken, where the files do not tell.

    Raises
    ------
    DatasetError
        If there is none, a file is broken, a tensor is there twice, or the tensors of a step disagree about its
        number of tokens.
    """
    dump = Dump(outside_path(source, DatasetError))
    found = found_in(dump.folder, form, heads, layers)
    dump.metadata, dump.ignored, dump.said = found.metadata, found.ignored, found.said
    token_first = heads is not None and any(_token_first(piece, heads) for piece in found.pieces)
    for piece in found.pieces:
        stored, kind = _checked(piece.stored), piece.place.kind
        if kind in OF_HEADS and 0 not in stored.shape:
            if piece.heads is not None:
                stored = with_heads(stored, piece.heads, True)
            elif heads is not None:
                stored = with_heads(stored, heads, token_first)
        stored = squeezed(stored, kind)
        before = dump.places.setdefault(piece.place, {}).setdefault(piece.step, stored)
        if before is not stored:
            raise DatasetError(
                f"{stored.name} is there twice, in {before.path} and {stored.path}"
                + (". Remove one of them." if before.name == stored.name else f" (there as {before.name}).")
            )
    if not dump.places:
        raise DatasetError(_nothing(dump.folder, found))
    dump.boundaries = _boundaries(dump)
    for place, steps in dump.places.items():
        if place.kind not in ("cache_key", "cache_value"):
            _same_shape(dump.folder, place, steps.values())
    return dump


def _nothing(folder: Path, found: Found) -> str:
    example = f" It holds, for example, {found.ignored[0]!r}." if found.ignored else ""
    return f"{folder}: {found.wanted}.{example} docs/diagnose.md has the naming scheme."


def unpacked(dump: Dump, lengths: Sequence[Mapping[str, int] | Sequence[int]]) -> dict[str, Dump]:
    """Take a dump of packed batches apart: a lane per sequence, with steps of its own. Nothing is copied.

    Parameters
    ----------
    dump : Dump
        Of steps in which several sequences stand one after the other, as in continuous batching.
    lengths : sequence of mapping or sequence of int
        Per step, the tokens of each sequence in the order of the pack: by name, or, where all steps hold the same
        sequences, without (then they are called 0, 1, ...). A sequence need not be in every step.

    Returns
    -------
    dict
        Per sequence, its lane. Logits and final states of one row per sequence are those of its last token. Whole
        caches are left out, since a pack has none in the order of a text.

    Raises
    ------
    DatasetError
        If the lengths do not add up to the tokens of a step.
    """
    if len(lengths) != dump.steps:
        raise DatasetError(
            f"{dump.folder}: has {dump.steps} steps, and lengths of sequences are given for {len(lengths)}."
        )
    lanes: dict[str, Dump] = {}
    for step, given in enumerate(lengths):
        named = dict(given) if isinstance(given, Mapping) else {str(i): n for i, n in enumerate(given)}
        total = dump.boundaries[step + 1] - dump.boundaries[step]
        if any(n < 0 for n in named.values()) or sum(named.values()) != total:
            raise DatasetError(
                f"{dump.folder}: step {step} has {total} tokens, and the lengths of its sequences are "
                f"{_listing(list(named.values()))}, {sum(named.values())} together."
            )
        here = {name: n for name, n in named.items() if n}
        start = 0
        for index, (name, n) in enumerate(here.items()):
            lane = lanes.setdefault(
                name, replace(dump, folder=Path(f"{dump.folder} [{name}]"), boundaries=[0], places={})
            )
            own = len(lane.boundaries) - 1
            for place, steps in dump.places.items():
                own_rows = part(steps[step], (start, n), total, (index, len(here))) if step in steps else None
                if own_rows is not None and not place.kind.startswith("cache"):
                    lane.places.setdefault(place, {})[own] = own_rows
            lane.boundaries.append(lane.boundaries[-1] + n)
            start += n
    for lane in lanes.values():
        # What the files say of their text they say of the pack.
        lane.metadata = {key: value for key, value in dump.metadata.items() if not key.startswith("tokens")}
    return lanes


def _token_first(piece: Piece, heads: int) -> bool:
    """Whether keys or values are [token, head, feature] without doubt."""
    shape = piece.stored.shape[-3:]
    return piece.place.kind in OF_HEADS and len(shape) == 3 and shape[1] == heads != shape[0]


def _same_shape(folder: Path, place: Place, tensors: Iterable[Stored]) -> None:
    shapes: dict[tuple[int, ...], str] = {}
    for stored in tensors:
        shapes.setdefault(stored.axes, stored.name)
    if len(shapes) > 1:
        (one, first), (two, second) = list(shapes.items())[:2]
        raise DatasetError(
            f"{folder}: {first} and {second} differ in more than their tokens ({list(one)} and {list(two)} without "
            "the token axis): they cannot be one model's."
            + (f" {_TOKENS_FIRST.format(first, 'N')}" if len(one) == len(two) == 2 and one[1] == two[1] else "")
        )


def _boundaries(dump: Dump) -> list[int]:
    """Token index at which each step begins, and the end."""
    counts: dict[int, Stored] = {}
    rows: dict[int, Stored] = {}
    for place, steps in dump.places.items():
        for step, stored in steps.items():
            if place.kind in ("cache_key", "cache_value"):
                continue
            # Engines often keep the logits of a step's last token only.
            table = rows if place.kind in ("final", "logits") else counts
            known = table.setdefault(step, stored)
            if table is counts and known.tokens != stored.tokens:
                raise DatasetError(
                    f"{dump.folder}: {known.name} has {known.tokens} tokens, but {stored.name} has {stored.tokens}. "
                    "Keys and values are what the step appended, not the whole cache (that is cache_key and "
                    f"cache_value).{_hint(known, stored)}"
                )
            if table is rows and known.tokens < stored.tokens:
                table[step] = stored
    for step, last in rows.items():
        if counts.setdefault(step, last).tokens < last.tokens:
            raise DatasetError(
                f"{dump.folder}: {last.name} has {last.tokens} rows, but step {step} has only {counts[step].tokens} "
                f"tokens.{_hint(counts[step], last)}"
            )
    if not counts:
        raise DatasetError(f"{dump.folder}: holds caches only; the keys and values that each step appended are needed.")
    missing = sorted(set(range(max(counts) + 1)) - set(counts))
    if missing:
        raise DatasetError(
            f"{dump.folder}: steps {_listing(missing)} are missing; steps count from 0 without gaps, or the tokens "
            "of the later ones have no place in the text."
        )
    return [0, *np.cumsum([counts[step].tokens for step in sorted(counts)]).tolist()]


def _hint(*pair: Stored) -> str:
    """What to do where one of two tensors has the other's tokens where heads are expected."""
    for stored, other in (pair, pair[::-1]):
        if len(stored.shape) == 3 and stored.shape[0] == other.tokens:
            return f" {_TOKENS_FIRST.format(stored.name, stored.tokens)}"
    return ""


def _listing(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(n) for n in numbers[:5])
    return shown + (", ..." if len(numbers) > 5 else "")


def merged(a: Dump, b: Dump) -> Iterator[tuple[int, int]]:
    """Yield the token ranges of the finer of two cuts, as far as both dumps reach."""
    stop = min(a.tokens, b.tokens)
    cuts = sorted({c for c in (*a.boundaries, *b.boundaries) if c < stop} | {stop})
    yield from pairwise(cuts)
