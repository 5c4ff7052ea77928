"""TensorRT Edge-LLM's layer debugger: one file with what caches hold after every round, and the last logits.

``round_R.layer_L.kv`` is [sequence, key or value, head, slot, feature], of which ``round_R.context_lengths`` slots are
filled; its PyTorch golden has ``round_R.layer_L.key`` and ``.value`` [sequence, head, token, feature] instead. What a
round appended is what came to the cache since the one before.
"""

from __future__ import annotations

import re

import numpy as np

from drift._bounds import MOST_BLOCKS, MOST_STEPS, MOST_TOKENS
from drift._outside import OutsideError, regular
from drift.errors import DatasetError
from drift.reading.diagnose.importers.base import Found, Importer, Options, Piece, Source, bounded
from drift.reading.diagnose.stored import Place, Stored

__all__ = ["EDGE_LLM"]

_NAME = re.compile(r"round_(\d+)\.(?:layer_(\d+)\.(kv|key|value)|(logits|context_lengths))")
_WHOLE = {"I32": "<i4", "I64": "<i8"}


def _knows(source: Source) -> bool:
    return any(
        (match := _NAME.fullmatch(name)) is not None and match[3] is not None
        for path in source.containers[:1]
        for name in source.held(path).tensors
    )


def _length(stored: Stored) -> int:
    """The one number of a tensor of lengths."""
    try:
        with regular(stored.path) as (stream, _):
            stream.seek(stored.begin)
            (length,) = np.frombuffer(stream.read(np.dtype(_WHOLE[stored.dtype]).itemsize), _WHOLE[stored.dtype])
    except (OSError, OutsideError, KeyError, ValueError) as error:
        raise DatasetError(f"{stored.path}: {stored.name} holds no length.") from error
    if not 0 < length <= MOST_TOKENS:
        raise DatasetError(f"{stored.path}: {stored.name} is {length}, which is no number of tokens.")
    return int(length)


def _alone(stored: Stored) -> Stored:
    """Drop the axis of sequences."""
    if not stored.shape or stored.shape[0] != 1:
        raise DatasetError(
            f"{stored.path}: {stored.name} has shape {list(stored.shape)}: {stored.shape[0] if stored.shape else 'no'} "
            "sequences. Dump one at a time (batch_size 1)."
        )
    return stored.axis(0, 0, 0)


def _caches(rounds: dict[int, dict[Place, Stored]], lengths: dict[int, int], found: Found) -> None:
    """What a cache held after each round, and what came to it."""
    before = 0
    for step, label in enumerate(sorted(rounds)):
        caches = {place: one for place, one in rounds[label].items() if place.kind != "logits"}
        length = lengths.get(label)
        for place, stored in caches.items():
            if len(stored.shape) != 3:
                raise DatasetError(f"{stored.path}: {stored.name} has shape {list(stored.shape)}, no cache's.")
            length = stored.shape[1] if length is None else length
            if not before < length <= stored.shape[1]:
                raise DatasetError(
                    f"{stored.path}: {stored.name} has {stored.shape[1]} slots; its round has {length} tokens, the one "
                    f"before {before}."
                )
            held = stored.axis(1, 0, length)
            found.pieces.append(Piece(Place(f"cache_{place.kind}", place.block), step, held))
            found.pieces.append(Piece(place, step, held.axis(1, before, length - before)))
        if (logits := rounds[label].get(Place("logits", 0))) is not None:
            found.pieces.append(Piece(Place("logits", 0), step, logits))
        before = length or before


def _read(source: Source, options: Options) -> Found:
    path = source.only("the layer debugger")
    held = source.held(path)
    found = Found(
        metadata=held.metadata,
        said="a dump of TensorRT Edge-LLM's layer debugger.",
        wanted="no round_0.layer_0.kv is there",
    )
    rounds: dict[int, dict[Place, Stored]] = {}
    lengths: dict[int, int] = {}
    for name, stored in held.tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            found.ignored.append(name)
            continue
        label = bounded(path, name, match[1], MOST_STEPS)
        one, places = _alone(stored), rounds.setdefault(label, {})
        if match[4] == "context_lengths":
            lengths[label] = _length(stored)
        elif match[4] == "logits":
            places[Place("logits", 0)] = one if len(one.shape) == 2 else _row(one)
        else:
            block = bounded(path, name, match[2], MOST_BLOCKS) + 1
            kinds = ("key", "value") if match[3] == "kv" else (match[3],)
            if match[3] == "kv" and (len(one.shape) != 4 or one.shape[0] != len(kinds)):
                raise DatasetError(
                    f"{path}: {name} has shape {list(stored.shape)}; its second axis is keys and values."
                )
            for at, kind in enumerate(kinds):
                places[Place(kind, block)] = one.axis(0, at, 0) if match[3] == "kv" else one
    _caches(rounds, lengths, found)
    return found


def _row(stored: Stored) -> Stored:
    """A lone row as a table of one."""
    if len(stored.shape) != 1:
        raise DatasetError(f"{stored.path}: {stored.name} has shape {list(stored.shape)} for one sequence, no logits'.")
    return Stored(stored.name, stored.path, stored.dtype, (1, *stored.shape), stored.begin)


EDGE_LLM = Importer("edge-llm", "TensorRT Edge-LLM's layer debugger", _knows, _read)
