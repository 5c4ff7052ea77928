"""NumPy's `.npy`: logits, memory-mapped; tokens in `NAME.tokens.npy` or `NAME.targets.npy` beside them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from drift._bounds import MOST_CELL_BYTES
from drift._outside import OutsideError, regular
from drift.errors import DatasetError
from drift.reading.diagnose.containers.npy import header
from drift.reading.logits.importers.arrays import TARGETS, TOKENS, sequences
from drift.reading.logits.importers.base import Importer, Source, refused
from drift.reading.logits.lanes import Sequence

__all__ = ["NPY", "loaded"]

_MAGIC = b"\x93NUMPY"
_KINDS = {"f": "floating-point numbers", "i": "whole numbers", "u": "whole numbers"}


def loaded(stream: IO[bytes], size: int) -> NDArray:
    """Read an array into memory; errors as :func:`~drift.reading.diagnose.containers.npy.header`."""
    if size > MOST_CELL_BYTES:
        raise ValueError(f"it takes {size:,} bytes; at most {MOST_CELL_BYTES:,} are read. Save it as .npy")
    shape, by_columns, dtype = header(stream, size)
    raw = stream.read(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if by_columns else "C")


def _mapped(path: Path) -> NDArray:
    with regular(path) as (stream, size):
        shape, by_columns, dtype = header(stream, size)
        place = stream.tell()
    if dtype.kind != "f":
        raise ValueError(f"it holds {_KINDS[dtype.kind]}, not logits")
    if 0 in shape:
        return np.zeros(shape, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=place, shape=shape, order="F" if by_columns else "C")


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
