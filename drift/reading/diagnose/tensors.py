"""Dumps of tensors: folders of safetensors files with one tensor per chain step, layer and kind.

The header of a safetensors file is read here and its data memory-mapped, because the NumPy loader of the safetensors
package knows no bf16 and no fp8. Only the rows that are asked for are ever turned into floating-point numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from drift._bounds import MOST_BLOCKS, MOST_DIGITS, MOST_STEPS
from drift._outside import NoFileError, OutsideError
from drift._tensor_files import Header, StoredTensor, read_header
from drift.errors import DatasetError
from drift.paths import outside_path
from drift.reading.diagnose.formats import FORMATS, SIZES, STORED, Format, decoded, fits, written

__all__ = ["FORMATS", "KINDS", "Dump", "Format", "Place", "fits", "open_dump", "unpacked", "written"]

KINDS = ("hidden", "key", "value", "cache_key", "cache_value", "final", "logits")
_NAME = re.compile(
    r"step\.(\d+)\.(?:layer\.(\d+)\.(hidden)|block\.(\d+)\.(key|value|cache_key|cache_value)|(final|logits))"
)


@dataclass(frozen=True, order=True)
class Place:
    """Where in the network a tensor is from: its kind, and its layer or block (0 for `final` and `logits`)."""

    kind: str
    block: int

    def __str__(self) -> str:
        """The place, in words."""
        if self.kind == "hidden":
            return "the embeddings" if self.block == 0 else f"the hidden state after block {self.block}"
        if self.kind in ("final", "logits"):
            return "the state after the final norm" if self.kind == "final" else "the logits"
        what = {"key": "keys", "value": "values", "cache_key": "cached keys", "cache_value": "cached values"}
        return f"the {what[self.kind]} of block {self.block}"


@dataclass(frozen=True)
class _Stored:
    """One tensor in a file.

    Its shape as it is read, whether the file has tokens before heads, and, if it is but some of the tokens that the
    file has there, the first of them and how many those are.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    token_first: bool = False
    first: int = 0
    of: int = 0

    @property
    def token_axis(self) -> int:
        return len(self.shape) - 2

    @property
    def tokens(self) -> int:
        return self.shape[self.token_axis]


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
    neighbours : int
        Features of each head of keys that are stored with rotary pairs side by side, and read halves apart.
    """

    folder: Path
    boundaries: list[int] = field(default_factory=list)
    places: dict[Place, dict[int, _Stored]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
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
        stored = next(iter(self.places[place].values()))
        axis = stored.token_axis
        return tuple(n for n in (*stored.shape[:axis], *stored.shape[axis + 1 :]))

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

    def _rows(self, stored: _Stored, start: int, stop: int) -> np.ndarray:
        if stored.path not in self._maps:
            self._maps[stored.path] = np.memmap(stored.path, dtype=np.uint8, mode="r")
        start, stop = start + stored.first, stop + stored.first
        rows_there = stored.of or stored.tokens
        size = math.prod(stored.shape) // stored.tokens * rows_there * SIZES[stored.dtype]
        raw = self._maps[stored.path][stored.begin : stored.begin + size].view(STORED[stored.dtype])
        if stored.token_first:
            heads, _, features = stored.shape
            rows = np.moveaxis(raw.reshape(rows_there, heads, features)[start:stop], 0, 1)
        else:
            rows = raw.reshape(*stored.shape[:-2], rows_there, stored.shape[-1])[..., start:stop, :]
        return decoded(np.asarray(rows), stored.dtype)


def _header(path: Path) -> Header:
    """Read a safetensors file's header."""
    try:
        return read_header(path)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except NoFileError as error:
        raise DatasetError(f"{path}: cannot be read ({error}).") from error
    except OutsideError as error:
        raise DatasetError(f"{path}: {error}. Write it again.") from error


def _checked(path: Path, name: str, entry: StoredTensor) -> _Stored:
    """Check one entry of a header."""
    if entry.dtype not in FORMATS:
        raise DatasetError(
            f"{path}: {name} is stored as {entry.dtype}; only floating-point tensors can be compared "
            f"({', '.join(FORMATS)}). Dump it before it is quantised, or after it was dequantised."
        )
    return _Stored(name, path, entry.dtype, entry.shape, entry.begin)


_TOKENS_FIRST = "If {} is [token, head, feature], say how many heads it has: --heads {}."
_FLAT = "If it is [token, head * feature], say how many heads: --heads N."


def _index(path: Path, name: str, digits: str, most: int) -> int:
    """A number in a tensor's name."""
    if len(digits) > MOST_DIGITS or int(digits) > most:
        raise DatasetError(f"{path}: {name[:80]}: {digits[:20]} is beyond what a dump may hold ({most:,} at most).")
    return int(digits)


_OF_HEADS = ("key", "value", "cache_key", "cache_value")


def _with_heads(stored: _Stored, heads: int, token_first: bool) -> _Stored:
    """Keys or values in the layout that they are read in, whatever the file's.

    Raises
    ------
    DatasetError
        If no axis is that of so many heads.
    """
    shape = stored.shape
    if len(shape) == 4 or (len(shape) == 3 and heads > 1 and heads not in shape[:2]):
        shape = shape[1:] if shape[0] == 1 else shape
    if len(shape) == 2 and shape[1] % heads == 0:
        tokens, features = shape[0], shape[1] // heads
    elif len(shape) == 3 and shape[1] == heads and (token_first or shape[0] != heads):
        tokens, features = shape[0], shape[2]
    elif len(shape) == 3 and shape[0] == heads:
        return replace(stored, shape=shape)
    else:
        raise DatasetError(
            f"{stored.path}: {stored.name} has shape {list(stored.shape)}, which is neither [head, token, feature], "
            f"[token, head, feature] nor [token, head * feature] of {heads} heads. Give the heads that keys and values "
            "have (of grouped queries, those of the cache), and dump one sequence at a time."
        )
    return replace(stored, shape=(heads, tokens, features), token_first=True)


def _squeezed(stored: _Stored, kind: str) -> _Stored:
    """Drop a batch axis of 1, and refuse shapes that do not fit the kind."""
    want = 3 if kind in _OF_HEADS else 2
    shape = stored.shape
    if len(shape) == want + 1 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != want or 0 in shape:
        axes = "[head, token, feature]" if want == 3 else "[token, feature]"
        raise DatasetError(
            f"{stored.path}: {stored.name} has shape {list(stored.shape)}; it must be {axes}, none of them 0, with at "
            "most a leading batch axis of 1. Dump one sequence at a time."
            + (f" {_FLAT}" if want == 3 and len(shape) == 2 else "")
        )
    return replace(stored, shape=shape)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DatasetError(f"{source}: there is no such folder.")
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise DatasetError(f"{source}: holds no *.safetensors file. docs/diagnose.md says how a dump is written.")
    return files


def open_dump(source: str | Path, heads: int | None = None) -> Dump:
    """Open a dump; nothing but headers is read.

    Parameters
    ----------
    source : path
        A folder of safetensors files, or one such file.
    heads : int, optional
        Heads of keys and values. With it they may be stored as [token, head, feature] or [token, head * feature], too;
        where a step has as many tokens as there are heads, the other steps tell.

    Raises
    ------
    DatasetError
        If there is none, a file is broken, a tensor is there twice, or the tensors of a step disagree about its
        number of tokens.
    """
    dump = Dump(outside_path(source, DatasetError))
    headers = {path: _header(path) for path in _files(dump.folder)}
    token_first = heads is not None and any(_token_first(header, heads) for header in headers.values())
    for path, header in headers.items():
        dump.metadata.update(header.metadata)
        for name, entry in header.tensors.items():
            match = _NAME.fullmatch(name)
            if match is None:
                dump.ignored.append(name)
                continue
            step, layer, hidden, block, cached, last = match.groups()
            kind = hidden or cached or last
            number, at = _index(path, name, layer or block or "0", MOST_BLOCKS), _index(path, name, step, MOST_STEPS)
            if kind not in ("hidden", "final", "logits") and number == 0:
                raise DatasetError(f"{path}: {name}: blocks count from 1; block 0 does not exist.")
            stored = _checked(path, name, entry)
            if heads is not None and kind in _OF_HEADS and 0 not in stored.shape:
                stored = _with_heads(stored, heads, token_first)
            stored = _squeezed(stored, kind)
            before = dump.places.setdefault(Place(kind, number), {}).setdefault(at, stored)
            if before is not stored:
                raise DatasetError(f"{name} is there twice, in {before.path} and {path}. Remove one of them.")
    if not dump.places:
        example = f" It holds, for example, {dump.ignored[0]!r}." if dump.ignored else ""
        raise DatasetError(
            f"{dump.folder}: no tensor is named as expected (step.0.layer.0.hidden, step.0.block.1.key, ...)."
            f"{example} docs/diagnose.md has the naming scheme."
        )
    dump.boundaries = _boundaries(dump)
    for place, steps in dump.places.items():
        if place.kind not in ("cache_key", "cache_value"):
            _same_shape(dump.folder, place, steps.values())
    return dump


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
                part = _part(steps[step], (start, n), total, (index, len(here))) if step in steps else None
                if part is not None and not place.kind.startswith("cache"):
                    lane.places.setdefault(place, {})[own] = part
            lane.boundaries.append(lane.boundaries[-1] + n)
            start += n
    for lane in lanes.values():
        # What the files say of their text they say of the pack.
        lane.metadata = {key: value for key, value in dump.metadata.items() if not key.startswith("tokens")}
    return lanes


def _part(stored: _Stored, tokens: tuple[int, int], total: int, which: tuple[int, int]) -> _Stored | None:
    """One sequence's rows of a packed tensor; None where the pack has rows of others only."""
    if stored.tokens == total:
        first, count = tokens
    elif stored.tokens == which[1]:
        first, count = which[0], 1
    else:
        return None
    shape = (*stored.shape[:-2], count, stored.shape[-1])
    return replace(stored, shape=shape, first=stored.first + first, of=stored.of or stored.tokens)


def _token_first(header: Header, heads: int) -> bool:
    """Whether any keys or values of a file are [token, head, feature] without doubt."""
    for name, entry in header.tensors.items():
        match = _NAME.fullmatch(name)
        shape = entry.shape[-3:]
        if match is not None and match[5] and len(shape) == 3 and shape[1] == heads != shape[0]:
            return True
    return False


def _same_shape(folder: Path, place: Place, tensors: Iterable[_Stored]) -> None:
    shapes: dict[tuple[int, ...], str] = {}
    for stored in tensors:
        axis = stored.token_axis
        shapes.setdefault((*stored.shape[:axis], *stored.shape[axis + 1 :]), stored.name)
    if len(shapes) > 1:
        (one, first), (two, second) = list(shapes.items())[:2]
        raise DatasetError(
            f"{folder}: {first} and {second} differ in more than their tokens ({list(one)} and {list(two)} without "
            "the token axis): they cannot be one model's."
            + (f" {_TOKENS_FIRST.format(first, 'N')}" if len(one) == len(two) == 2 and one[1] == two[1] else "")
        )


def _boundaries(dump: Dump) -> list[int]:
    """Token index at which each step begins, and the end."""
    counts: dict[int, _Stored] = {}
    rows: dict[int, _Stored] = {}
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


def _hint(*pair: _Stored) -> str:
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
