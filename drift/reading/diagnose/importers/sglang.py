"""SGLang: its dumper (``DUMPER_ENABLE=1``, a `.pt` per tensor) and its older hook (a `.pt` per pass).

The dumper's file names say all: ``step=K___rank=R___dump_index=I___name=N___....pt``. With
``DUMPER_NON_INTRUSIVE_MODE=all`` a name is ``non_intrusive__`` and what a module took or gave; what is dumped by hand
is read if it has a name of ours: ``dumper.dump("layer.3.hidden", x)``.

The hook (``--debug-tensor-dump-output-folder``) writes ``Pass00000.pt`` with what modules without modules of their own
gave; a norm gave (normed, residual), and the residual is the hidden state.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from drift._bounds import MOST_STEPS
from drift.errors import DatasetError
from drift.reading.diagnose.importers.base import (
    PLACES,
    Found,
    Importer,
    Options,
    Piece,
    Source,
    bounded,
    numbered,
    ranks_said,
    steps_of,
    wanted,
)
from drift.reading.diagnose.importers.modules import Call, place_calls
from drift.reading.diagnose.stored import Stored
from drift.shown import clipped

__all__ = ["SGLANG"]

_TAG = "___"
_STEPS = ("step", "forward_pass_id")
_MODULE = re.compile(r"non_intrusive__(?:(?P<path>.*)\.)?(?P<side>inputs|output)(?:\.(?P<what>[\w.]+))?")
_PASS = re.compile(r"Pass\d+\.pt")
_NORM = re.compile(r"(?P<before>(?:.*\.)?layers\.\d+)\.input_layernorm|(?P<last>(?:.*\.)?norm)")
_VALUE = "value"
_LATE = ("lm_head", "logits_processor")  # written with the pass that follows, and of the last one not at all


def _tags(path: Path) -> dict[str, str]:
    """What a file's name says; nothing if it is none of the dumper's."""
    if path.suffix != ".pt" or _TAG not in path.name:
        return {}
    return dict(part.partition("=")[::2] for part in path.name.removesuffix(".pt").split(_TAG))


def _step_of(tags: dict[str, str]) -> str | None:
    found = next((tags[one] for one in _STEPS if one in tags), None)
    whole = found is not None and found.isdecimal() and found.isascii()
    return found if whole and {"name", "rank", "dump_index"} <= tags.keys() else None


def _knows(source: Source) -> bool:
    return any(_step_of(_tags(path)) is not None or _PASS.fullmatch(path.name) for path in source.files)


def _dumped(source: Source, options: Options, found: Found) -> None:
    files = [(path, tags, step) for path in source.files if (step := _step_of(tags := _tags(path))) is not None]
    ranks = Counter(tags["rank"] for _, tags, _ in files)
    rank = min(ranks, key=lambda one: (len(one), one))
    if len({path.parent for path, _, _ in files}) > 1:
        raise DatasetError(f"{clipped(source.path)}: holds several dumps: name the folder of one.")
    found.said += ranks_said(rank, ranks)
    labels = [(bounded(source.path, path.name, step, MOST_STEPS),) for path, _, step in files]
    steps = steps_of(source.path, labels)
    calls: list[dict[str, Call]] = [{} for _ in steps]
    for (path, tags, _), label in zip(files, labels, strict=True):
        match = _MODULE.fullmatch(tags["name"])
        own = PLACES.fullmatch(tags["name"])
        stored = source.held(path).tensors.get(_VALUE) if tags["rank"] == rank and (match or own) else None
        if stored is None:
            found.ignored += [tags["name"]] if tags["rank"] == rank else []
            continue
        stored = Stored(tags["name"], path, stored.dtype, stored.shape, stored.begin, stored.strides)
        if own is not None:
            found.pieces.append(Piece(wanted(own, path, tags["name"]), steps[label], stored))
        elif match is not None:
            call = calls[steps[label]].setdefault(match["path"] or "", Call())
            _once(call.inputs if match["side"] == "inputs" else call.outputs, match["what"] or "", stored)
    place_calls(calls, options, found)


def _once(tensors: dict[str, Stored], what: str, stored: Stored) -> None:
    before = tensors.setdefault(what, stored)
    if before is not stored:
        raise DatasetError(
            f"{stored.name} is there twice in one step, in {before.path} and {stored.path}. A step is one pass: call "
            "dumper.step() after each, and dump one pass at a time."
        )


def _hooked(source: Source, options: Options, found: Found) -> None:
    files = [path for path in source.files if _PASS.fullmatch(path.name)]
    if len({path.parent for path in files}) > 1:
        raise DatasetError(f"{clipped(source.path)}: holds several ranks or runs: name the folder of one.")
    steps = numbered(files, source.path)
    calls: list[dict[str, Call]] = [{} for _ in files]
    for path, step in steps.items():
        for name, stored in source.held(path).tensors.items():
            module, _, what = name.removesuffix("]").partition("[")
            norm = _NORM.fullmatch(module)
            if module.endswith(_LATE):
                found.ignored.append(name)
            elif norm is None or not what:
                calls[step].setdefault(module, Call()).outputs[what] = stored
            elif what == "1" and norm["before"]:
                calls[step].setdefault(norm["before"], Call()).inputs[what] = stored
            else:
                call = calls[step].setdefault(module, Call())
                (call.inputs if what == "1" else call.outputs)[what] = stored
    place_calls(calls, options, found)


def _read(source: Source, options: Options) -> Found:
    found = Found(
        said="a dump of SGLang.",
        wanted="no tensor is of a module that is known (dump with DUMPER_NON_INTRUSIVE_MODE=all), or named as ours are",
    )
    if any(_step_of(_tags(path)) is not None for path in source.files):
        _dumped(source, options, found)
    elif any(_PASS.fullmatch(path.name) for path in source.files):
        _hooked(source, options, found)
    else:
        raise DatasetError(
            f"{clipped(source.path)}: holds no file of SGLang's (step=0___rank=0___... .pt, Pass00000.pt)."
        )
    return found


SGLANG = Importer("sglang", "SGLang's dumper", _knows, _read)
