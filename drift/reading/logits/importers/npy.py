"""NumPy's `.npy`: logits, memory-mapped; tokens in `NAME.tokens.npy` or `NAME.targets.npy` beside them."""

from __future__ import annotations

import math
import tokenize
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from drift._bounds import MOST_CELL_BYTES
from drift._outside import OutsideError, regular
from drift.errors import DatasetError
from drift.reading.logits.importers.arrays import TARGETS, TOKENS, sequences
from drift.reading.logits.importers.base import Importer, Source, refused
from drift.reading.logits.lanes import Sequence

__all__ = ["NPY", "loaded", "stored"]

_MAGIC = b"\x93NUMPY"
_VERSIONS: dict[tuple[int, int], Any] = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}
_KINDS = {"f": "floating-point numbers", "i": "whole numbers", "u": "whole numbers"}


def stored(stream: IO[bytes], size: int) -> tuple[tuple[int, ...], str, np.dtype]:
    """Read the header of an array, and hold it against the bytes that there are: shape, order, type.

    Parameters
    ----------
    stream : binary stream
        At its beginning; afterwards at the numbers.
    size : int
        Bytes of header and numbers.

    Raises
    ------
    ValueError
        If it is none, in words.
    """
    version = npy_format.read_magic(stream)
    if version not in _VERSIONS:
        raise ValueError(f"its version {version} of the format is not read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            shape, by_columns, dtype = _VERSIONS[version](stream)
    except (SyntaxError, TypeError, tokenize.TokenError) as error:
        raise ValueError(f"its header cannot be read ({error})") from error
    if dtype.kind not in _KINDS:
        raise ValueError(f"it holds {dtype}, not numbers. NumPy has no bf16: save float32, or safetensors")
    due = math.prod(shape) * dtype.itemsize
    if any(n < 0 for n in shape) or due > size - stream.tell():
        raise ValueError(f"its header names the shape {list(shape)}, but only {size:,} bytes are there")
    return shape, "F" if by_columns else "C", dtype


def loaded(stream: IO[bytes], size: int) -> NDArray:
    """Read an array into memory; errors as :func:`stored`."""
    if size > MOST_CELL_BYTES:
        raise ValueError(f"it takes {size:,} bytes; at most {MOST_CELL_BYTES:,} are read. Save it as .npy")
    shape, order, dtype = stored(stream, size)
    raw = stream.read(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


def _mapped(path: Path) -> NDArray:
    with regular(path) as (stream, size):
        shape, order, dtype = stored(stream, size)
        place = stream.tell()
    if dtype.kind != "f":
        raise ValueError(f"it holds {_KINDS[dtype.kind]}, not logits")
    if 0 in shape:
        return np.zeros(shape, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=place, shape=shape, order="F" if order == "F" else "C")


def _beside(path: Path, what: str) -> NDArray | None:
    place = path.with_name(f"{path.name.removesuffix('.npy')}.{what}.npy")
    try:
        with regular(place) as (stream, size):
            return loaded(stream, size)
    except FileNotFoundError:
        return None
    except (OutsideError, ValueError) as error:
        raise refused(place, error) from error


def _read(source: Source) -> tuple[list[Sequence], list[str]]:
    try:
        tokens, targets = (_beside(source.path, what) for what in (TOKENS, TARGETS))
        return sequences(_mapped(source.path), tokens, targets), []
    except DatasetError:
        raise
    except (OutsideError, ValueError) as error:
        raise refused(source.path, error) from error


def _knows(source: Source) -> bool:
    return source.head.startswith(_MAGIC)


NPY = Importer("logits (.npy)", _knows, _read)
