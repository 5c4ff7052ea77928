"""Arrays of NumPy: what the header of a `.npy` says."""

from __future__ import annotations

import math
import sys
import tokenize
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from drift._outside import OutsideError, regular
from drift.reading.diagnose.stored import Stored

__all__ = ["array", "header", "stored"]

_VERSIONS: dict[tuple[int, int], Any] = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}
_LETTERS = {"f": "F", "i": "I", "u": "U"}
_MOST_HEADER = 1 << 16  # bytes: NumPy itself reads 10,000 characters


class _Part:
    """A stream that ends where an array does, and whose header is as long as headers are."""

    def __init__(self, stream: IO[bytes], end: int) -> None:
        self._stream, self._end = stream, end
        self.tell = stream.tell

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= _MOST_HEADER:
            raise ValueError(f"its header would take {count:,} bytes")
        return self._stream.read(min(count, max(0, self._end - self._stream.tell())))


def header(stream: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an array, and hold it against the bytes that there are.

    Parameters
    ----------
    stream : binary stream
        At its beginning; afterwards at the numbers.
    size : int
        Where its numbers end, in bytes.

    Returns
    -------
    shape : tuple of int
    by_columns : bool
        Whether the first axis is the fastest.
    dtype : dtype
        Of floating-point or whole numbers.

    Raises
    ------
    ValueError
        If it is none, in words.
    """
    part: Any = _Part(stream, size)
    version = npy_format.read_magic(part)
    if version not in _VERSIONS:
        raise ValueError(f"its version {version} of the format is not read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            shape, by_columns, dtype = _VERSIONS[version](part)
    except (SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise ValueError(f"its header cannot be read ({error})") from error
    if dtype.kind not in _LETTERS:
        raise ValueError(f"it holds {dtype}, not numbers. NumPy has no bf16: save float32, or safetensors")
    due = math.prod(shape) * dtype.itemsize
    if any(n < 0 for n in shape) or due > size - stream.tell():
        raise ValueError(f"its header names the shape {list(shape)}, but only {size:,} bytes are there")
    return shape, by_columns, dtype


def stored(name: str, path: Path, stream: IO[bytes], size: int) -> Stored:
    """Find an array that begins where a stream stands; errors as :func:`header`.

    Raises
    ------
    OutsideError
        If its numbers are of a format that is not read.
    """
    shape, by_columns, dtype = header(stream, size)
    if dtype.byteorder == ">" or (dtype.byteorder == "=" and sys.byteorder == "big"):
        raise OutsideError(f"{name or 'it'} holds {dtype.str}, numbers with their last byte first")
    strides = tuple(math.prod(shape[:axis]) for axis in range(len(shape))) if by_columns else ()
    return Stored(name, path, f"{_LETTERS[dtype.kind]}{8 * dtype.itemsize}", shape, stream.tell(), strides)


def array(path: Path) -> Stored:
    """Find the array of a `.npy` file.

    Raises
    ------
    OSError, OutsideError
        If it cannot be read, or is none.
    """
    with regular(path) as (stream, size):
        try:
            return stored("", path, stream, size)
        except ValueError as error:
            raise OutsideError(str(error)) from error
