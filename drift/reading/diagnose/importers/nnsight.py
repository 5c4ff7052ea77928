"""nnsight: what modules gave (``tracer.cache()``), saved by their paths as `.npz`, safetensors or `.pt`.

Names are ``model.model.layers.0.output`` or without the last word; outputs that are tuples end in their number. Where a
module was visited several times a visit is a step: ``[K]`` behind the path, or ``step.K.`` before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from drift._bounds import MOST_STEPS
from drift.reading.diagnose.importers.base import Found, Importer, Options, Source, bounded, numbered, steps_of
from drift.reading.diagnose.importers.modules import Call, Role, place_calls, role_of
from drift.reading.diagnose.stored import Stored

__all__ = ["NNSIGHT"]

_BEGIN = re.compile(r"(?:_cache\.entries\.)?(?:step\.(\d+)\.)?")
_VISIT = re.compile(r"\[(\d+)\]")
_SIDES = ("output", "inputs", "input")


@dataclass(frozen=True)
class _Named:
    """What a name says: the module, its visit, whether it took or gave the tensor, and which of several it is."""

    module: str
    visit: str
    side: str
    what: str


def _named(name: str) -> _Named:
    """Take a name apart."""
    begin = _BEGIN.match(name)
    rest = name if begin is None else name[begin.end() :]
    step = None if begin is None else begin[1]
    visit = _VISIT.search(rest)
    path, tail = (rest, "") if visit is None else (rest[: visit.start()], rest[visit.end() :])
    words = (path if visit is None else tail.removeprefix(".")).split(".")
    number = step or ("0" if visit is None else visit[1])
    at = next((at for at in reversed(range(len(words))) if words[at] in _SIDES), None)
    if at is not None:
        before = path if visit is not None else ".".join(words[:at])
        return _Named(before, number, words[at], ".".join(words[at + 1 :]))
    if visit is not None:
        return _Named(path, number, "output", ".".join(words))
    shorter, _, last = path.rpartition(".")
    if role_of(path)[0] is Role.OTHER and last.isdecimal() and role_of(shorter)[0] is not Role.OTHER:
        return _Named(shorter, number, "output", last)
    return _Named(path, number, "output", "")


def _knows(source: Source) -> bool:
    named = (_named(name) for path in source.containers[:1] for name in source.held(path).tensors)
    return any(role_of(one.module)[0] not in (Role.OTHER, Role.LOGITS) for one in named)


def _read(source: Source, options: Options) -> Found:
    found = Found(
        said="a cache of nnsight.",
        wanted="no tensor has the name of a module that is known (model.model.layers.0.output, ...)",
    )
    files = numbered(source.containers, source.path) if source.containers else {}
    several = len(files) > 1
    steps: dict[int, dict[str, Call]] = {}
    for path, number in files.items():
        held = source.held(path)
        found.metadata.update(held.metadata)
        for name, stored in held.tensors.items():
            named = _named(name)
            own = bounded(path, name, named.visit, MOST_STEPS)
            call = steps.setdefault(number if several else own, {}).setdefault(named.module, Call())
            _put(call, named, stored)
    order = steps_of(source.path, [(step,) for step in steps])
    place_calls([steps[step] for (step,) in order], options, found)
    return found


def _put(call: Call, named: _Named, stored: Stored) -> None:
    if named.side == "output":
        call.outputs[named.what] = stored
    else:  # positional inputs are "0.K" there, named ones "1.NAME"
        call.inputs[named.what.removeprefix("0.").removeprefix("1.")] = stored


NNSIGHT = Importer("nnsight", "nnsight", _knows, _read)
