"""safetensors: the tensor `logits` (or the only one of floating-point numbers), and `tokens` or `targets`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drift._bounds import MOST_HEADER_BYTES
from drift._outside import OutsideError
from drift._tensor_files import StoredTensor, read_header
from drift.reading.diagnose.formats import STORED, decoded
from drift.reading.logits.importers.arrays import LOGITS, TARGETS, TOKENS, sequences
from drift.reading.logits.importers.base import Importer, Source, refused
from drift.reading.logits.lanes import Sequence

__all__ = ["TENSORS"]

_WHOLE = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "U8": "u1", "I8": "i1"}


def _mapped(path: Path, entry: StoredTensor, stored: str) -> NDArray:
    if 0 in entry.shape:
        return np.zeros(entry.shape, dtype=stored)
    return np.memmap(path, dtype=stored, mode="r", offset=entry.begin, shape=entry.shape)


def _read(source: Source) -> tuple[list[Sequence], list[str]]:
    try:
        tensors = read_header(source.path).tensors
        floats = [name for name, entry in tensors.items() if entry.dtype in STORED]
        name = LOGITS if LOGITS in floats else floats[0] if len(floats) == 1 else ""
        if not name:
            raise ValueError(
                f"{len(floats)} of its {len(tensors)} tensors hold floating-point numbers, none of them called "
                f"{LOGITS!r}. Dumps of hidden states and caches go to python -m drift.diagnose"
            )
        beside = {
            what: _mapped(source.path, tensors[what], _WHOLE[tensors[what].dtype])
            for what in (TOKENS, TARGETS)
            if what in tensors and tensors[what].dtype in _WHOLE
        }
        dtype = tensors[name].dtype
        logits = _mapped(source.path, tensors[name], STORED[dtype])
        return sequences(logits, beside.get(TOKENS), beside.get(TARGETS), partial(decoded, dtype=dtype)), []
    except (OutsideError, ValueError) as error:
        raise refused(source.path, error) from error


def _knows(source: Source) -> bool:
    length = int.from_bytes(source.head[:8], "little")
    return 2 <= length <= MOST_HEADER_BYTES and source.head[8:9] == b"{"


TENSORS = Importer("logits (safetensors)", _knows, _read)
