"""nnsight: what modules gave (``tracer.cache()``), saved by their paths as `.npz`, safetensors or `.pt`.

Names are ``model.model.layers.0.output`` or without the last word; outputs that are tuples end in their number. Where a
module was visited several times a visit is a step: ``[K]`` behind the path, or ``step.K.`` before it.
"""

from __future__ import annotations

import re

from drift._bounds import MOST_STEPS
from drift.reading.diagnose.importers.base import Found, Importer, Options, Source, bounded, numbered, steps_of
from drift.reading.diagnose.importers.modules import Call, Role, place_calls, role_of
from drift.reading.diagnose.stored import Stored

__all__ = ["NNSIGHT"]

_NAME = re.compile(
    r"(?:_cache\.entries\.)?(?:step\.(?P<step>\d+)\.)?(?P<path>[A-Za-z_][\w.]*?)(?:\[(?P<visit>\d+)\])?"
    r"(?:\.(?P<side>output|inputs?))?(?P<what>(?:\.\w+)*)"
)


def _module(name: str) -> tuple[re.Match[str], str, str] | None:
    """A name's parts, the module, and which of its tensors it is; None if it names none."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    if match["side"] is not None or match["visit"] is not None:
        return match, match["path"], match["what"].strip(".")
    path = f"{match['path']}{match['what']}"
    shorter, _, last = path.rpartition(".")
    if role_of(path)[0] is Role.OTHER and last.isdecimal() and role_of(shorter)[0] is not Role.OTHER:
        return match, shorter, last
    return match, path, ""


def _knows(source: Source) -> bool:
    named = (_module(name) for path in source.containers[:1] for name in source.held(path).tensors if name)
    return any(one is not None and role_of(one[1])[0] not in (Role.OTHER, Role.LOGITS) for one in named)


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
            parts = _module(name)
            if parts is None:
                found.ignored.append(name)
                continue
            match, module, what = parts
            own = bounded(path, name, match["visit"] or match["step"] or "0", MOST_STEPS)
            call = steps.setdefault(number if several else own, {}).setdefault(module, Call())
            _put(call, match["side"] or "output", what, stored)
    order = steps_of(source.path, [(step,) for step in steps])
    place_calls([steps[step] for (step,) in order], options, found)
    return found


def _put(call: Call, side: str, what: str, stored: Stored) -> None:
    tensors = call.outputs if side == "output" else call.inputs
    # Positional inputs are "0.K" there, named ones "1.NAME".
    tensors[what if side == "output" else what.removeprefix("0.").removeprefix("1.")] = stored


NNSIGHT = Importer("nnsight", "nnsight", _knows, _read)
