"""Dumps of tensors: folders of safetensors files with one tensor per chain step, layer and kind.

The header of a safetensors file is read here and its data memory-mapped, because the NumPy loader of the safetensors
package knows no bf16 and no fp8. Only the rows that are asked for are ever turned into floating-point numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from drift._bounds import MOST_BLOCKS, MOST_DIGITS, MOST_STEPS
from drift._outside import NoFileError, OutsideError
from drift._tensor_files import Header, StoredTensor, read_header
from drift.errors import DatasetError
from drift.paths import outside_path

__all__ = ["FORMATS", "KINDS", "Dump", "Format", "Place", "fits", "open_dump", "written"]

KINDS = ("hidden", "key", "value", "cache_key", "cache_value", "final", "logits")
_NAME = re.compile(
    r"step\.(\d+)\.(?:layer\.(\d+)\.(hidden)|block\.(\d+)\.(key|value|cache_key|cache_value)|(final|logits))"
)


@dataclass(frozen=True)
class Format:
    """A floating-point format.

    Attributes
    ----------
    name : str
        As it is written on the page.
    bits : int
        Bits of the significand, the leading one included; the unit roundoff is ``2**-bits``.
    largest : float
        Largest finite number.
    quantum : float
        Smallest positive number.
    """

    name: str
    bits: int
    largest: float
    quantum: float

    @property
    def unit_roundoff(self) -> float:
        """Half the distance from 1 to the next number."""
        return 2.0**-self.bits


FORMATS: dict[str, Format] = {
    "F8_E5M2": Format("fp8_e5m2", 3, 57344.0, 2.0**-16),
    "F8_E4M3": Format("fp8_e4m3", 4, 448.0, 2.0**-9),
    "BF16": Format("bf16", 8, float.fromhex("0x1.fep127"), 2.0**-133),
    "F16": Format("fp16", 11, 65504.0, 2.0**-24),
    "F32": Format("fp32", 24, float(np.finfo(np.float32).max), 2.0**-149),
    "F64": Format("fp64", 53, float(np.finfo(np.float64).max), 2.0**-1074),
}
"""Formats that can be read, from the fewest significant bits to the most, by their names in safetensors headers."""
_SIZES = {"F8_E5M2": 1, "F8_E4M3": 1, "BF16": 2, "F16": 2, "F32": 4, "F64": 8}


def fits(values: np.ndarray, form: Format) -> bool:
    """Tell whether every finite number of an array is a number of a format.

    Parameters
    ----------
    values : ndarray of float32 or float64
        Any shape.
    form : Format
        A format.
    """
    if form.bits >= np.finfo(values.dtype).nmant + 1:
        return True
    if form.name == "bf16" and values.dtype == np.float32:
        # A NaN or Inf passes as well: what is asked is whether the lower half of the word was ever used.
        return not np.any(np.ascontiguousarray(values).view(np.uint32) & np.uint32(0xFFFF))
    numbers = values[np.isfinite(values)].astype(np.float64)
    if numbers.size and np.abs(numbers).max() > form.largest:
        return False
    mantissa, exponent = np.frexp(numbers)
    lowest = math.frexp(form.quantum)[1]
    # Below the normal numbers the quantum bounds the bits that are left.
    bits = np.minimum(exponent - lowest + 1, form.bits)
    scaled = np.ldexp(mantissa, bits)
    return bool(np.all(scaled == np.rint(scaled)))


def written(values: np.ndarray, form: Format) -> np.ndarray:
    """Round numbers to a format, to nearest, ties to even; beyond its largest number they are clipped."""
    mantissa, exponent = np.frexp(np.asarray(values, dtype=np.float64))
    lowest = math.frexp(form.quantum)[1]
    bits = np.minimum(exponent - lowest + 1, form.bits)
    rounded = np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)
    return np.clip(rounded, -form.largest, form.largest)


@lru_cache(maxsize=2)
def _fp8_table(dtype: str) -> np.ndarray:
    """All 256 numbers of an 8-bit format, as float32."""
    exponent_bits, bias = (4, 7) if dtype == "F8_E4M3" else (5, 15)
    mantissa_bits = 7 - exponent_bits
    code = np.arange(256)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    fraction = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    value = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    if dtype == "F8_E4M3":
        value[(code & 0x7F) == 0x7F] = np.nan
    else:
        top = exponent == 31
        value[top] = np.where(fraction[top] == 0, np.inf, np.nan)
    return np.where(code >= 128, -value, value).astype(np.float32)


def _decoded(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Turn stored numbers into float32, or float64 where they are."""
    if dtype == "F64":
        return np.asarray(raw, dtype=np.float64)
    if dtype == "BF16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype in ("F8_E4M3", "F8_E5M2"):
        return _fp8_table(dtype)[raw]
    return raw.astype(np.float32)


_STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1"}


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
    """One tensor in a file."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int

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
        size = math.prod(stored.shape) * _SIZES[stored.dtype]
        raw = self._maps[stored.path][stored.begin : stored.begin + size].view(_STORED[stored.dtype])
        rows = raw.reshape(stored.shape)[..., start:stop, :]
        return _decoded(np.asarray(rows), stored.dtype)


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


def _index(path: Path, name: str, digits: str, most: int) -> int:
    """A number in a tensor's name."""
    if len(digits) > MOST_DIGITS or int(digits) > most:
        raise DatasetError(f"{path}: {name[:80]}: {digits[:20]} is beyond what a dump may hold ({most:,} at most).")
    return int(digits)


def _squeezed(stored: _Stored, kind: str) -> _Stored:
    """Drop a batch axis of 1, and refuse shapes that do not fit the kind."""
    want = 3 if kind in ("key", "value", "cache_key", "cache_value") else 2
    shape = stored.shape
    if len(shape) == want + 1 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != want or 0 in shape:
        axes = "[head, token, feature]" if want == 3 else "[token, feature]"
        raise DatasetError(
            f"{stored.path}: {stored.name} has shape {list(stored.shape)}; it must be {axes}, none of them 0, with at "
            "most a leading batch axis of 1. Dump one sequence at a time."
        )
    return _Stored(stored.name, stored.path, stored.dtype, shape, stored.begin)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DatasetError(f"{source}: there is no such folder.")
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise DatasetError(f"{source}: holds no *.safetensors file. docs/diagnose.md says how a dump is written.")
    return files


def open_dump(source: str | Path) -> Dump:
    """Open a dump; nothing but headers is read.

    Parameters
    ----------
    source : path
        A folder of safetensors files, or one such file.

    Raises
    ------
    DatasetError
        If there is none, a file is broken, a tensor is there twice, or the tensors of a step disagree about its
        number of tokens.
    """
    dump = Dump(outside_path(source, DatasetError))
    for path in _files(dump.folder):
        header = _header(path)
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
            stored = _squeezed(_checked(path, name, entry), kind)
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
        )


def _boundaries(dump: Dump) -> list[int]:
    """Token index at which each step begins, and the end."""
    counts: dict[int, tuple[int, str]] = {}
    rows: dict[int, tuple[int, str]] = {}
    for place, steps in dump.places.items():
        for step, stored in steps.items():
            if place.kind in ("cache_key", "cache_value"):
                continue
            # Engines often keep the logits of a step's last token only.
            table = rows if place.kind in ("final", "logits") else counts
            known = table.setdefault(step, (stored.tokens, stored.name))
            if table is counts and known[0] != stored.tokens:
                raise DatasetError(
                    f"{dump.folder}: {known[1]} has {known[0]} tokens, but {stored.name} has {stored.tokens}. Keys and "
                    "values are what the step appended, not the whole cache (that is cache_key and cache_value)."
                )
            if table is rows and known[0] < stored.tokens:
                table[step] = (stored.tokens, stored.name)
    for step, (tokens, name) in rows.items():
        if counts.setdefault(step, (tokens, name))[0] < tokens:
            raise DatasetError(
                f"{dump.folder}: {name} has {tokens} rows, but step {step} has only {counts[step][0]} tokens."
            )
    if not counts:
        raise DatasetError(f"{dump.folder}: holds caches only; the keys and values that each step appended are needed.")
    missing = sorted(set(range(max(counts) + 1)) - set(counts))
    if missing:
        raise DatasetError(
            f"{dump.folder}: steps {_listing(missing)} are missing; steps count from 0 without gaps, or the tokens "
            "of the later ones have no place in the text."
        )
    return [0, *np.cumsum([counts[step][0] for step in sorted(counts)]).tolist()]


def _listing(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(n) for n in numbers[:5])
    return shown + (", ..." if len(numbers) > 5 else "")


def merged(a: Dump, b: Dump) -> Iterator[tuple[int, int]]:
    """Yield the token ranges of the finer of two cuts, as far as both dumps reach."""
    stop = min(a.tokens, b.tokens)
    cuts = sorted({c for c in (*a.boundaries, *b.boundaries) if c < stop} | {stop})
    yield from pairwise(cuts)
