"""Files of logits and log-probabilities, recognised by their content. One file per importer, and one row here."""

from __future__ import annotations

from pathlib import Path

from drift._outside import OutsideError, regular
from drift.errors import DatasetError
from drift.paths import outside_path
from drift.reading.logits.importers.base import Importer, Source, refused
from drift.reading.logits.importers.jsonl import JSONL
from drift.reading.logits.importers.llamacpp import LLAMA_CPP
from drift.reading.logits.importers.npy import NPY
from drift.reading.logits.importers.npz import NPZ
from drift.reading.logits.importers.openai import OPENAI
from drift.reading.logits.importers.sglang import SGLANG
from drift.reading.logits.importers.tensors import TENSORS
from drift.reading.logits.importers.vllm import VLLM
from drift.reading.logits.lanes import Lane
from drift.shown import clipped

__all__ = ["IMPORTERS", "open_lane"]

#: In the order in which they are asked: vLLM's responses hold OpenAI's field, too.
IMPORTERS: tuple[Importer, ...] = (NPY, NPZ, LLAMA_CPP, TENSORS, JSONL, SGLANG, VLLM, OPENAI)
_HEAD = 64  # bytes that are enough to recognise a file


def open_lane(source: str | Path) -> Lane:
    """Open a file of logits or log-probabilities; logits are mapped, not read.

    Parameters
    ----------
    source : path

    Raises
    ------
    DatasetError
        If it cannot be read, is no such file, or is broken.
    """
    path = outside_path(source, DatasetError)
    try:
        with regular(path) as (stream, _):
            found = Source(path, stream.read(_HEAD))
    except OutsideError as error:
        raise refused(path, error) from error
    except OSError as error:
        raise refused(path, f"cannot be read: {error.strerror or error}") from error
    importer = next((one for one in IMPORTERS if one.knows(found)), None)
    if importer is None:
        raise refused(path, f"it is none of {', '.join(one.name for one in IMPORTERS)}")
    sequences, notes = importer.read(found)
    if not sum(one.positions for one in sequences):
        raise refused(path, "it holds no position at all")
    return Lane(clipped(path), importer.name, tuple(sequences), tuple(notes))
