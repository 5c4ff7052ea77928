"""msProbe: ``dump_path/stepK/rankR/dump_tensor_data``, a `.pt` (PyTorch) or `.npy` (MindSpore) per tensor of a module.

``Module.PATH.CLASS.forward.N.output.0.pt``: levels L0 and mix have modules, and ``"task": "tensor"`` has tensors. N
counts the calls of a module within a step of msProbe; a step of ours is one such call.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from drift._bounds import MOST_STEPS
from drift.errors import DatasetError
from drift.reading.diagnose.importers.base import Found, Importer, Options, Source, bounded, ranks_said, steps_of
from drift.reading.diagnose.importers.modules import Call, Role, place_calls, role_of
from drift.reading.diagnose.stored import Stored
from drift.shown import clipped

__all__ = ["MSPROBE"]

_DATA, _SAID = "dump_tensor_data", "dump.json"
_FILE = re.compile(
    r"(?:Module|Cell)\.(?:\d+\.)?(?P<path>[\w.]+)\.(?P<kind>\w+)\.forward\.(?P<call>\d+)"
    r"\.(?P<side>input|kwargs|output)(?:\.(?P<what>[\w.]+))?\.(?:pt|npy)"
)
_STEP = re.compile(r"step(\d+)")
_RANK = re.compile(r"rank\d*|proc\d+")


def _knows(source: Source) -> bool:
    return any(path.parent.name == _DATA and _FILE.fullmatch(path.name) for path in source.files) or any(
        path.name == _SAID and (path.parent / "construct.json").is_file() for path in source.files
    )


def _folder(parts: tuple[str, ...], form: re.Pattern[str]) -> str | None:
    return next((part for part in parts if form.fullmatch(part)), None)


def _read(source: Source, options: Options) -> Found:
    found = Found(said="a dump of msProbe.", wanted="no tensor is of a module that is known: dump with level L0 or mix")
    files = [(path, match) for path in source.files if (match := _FILE.fullmatch(path.name)) is not None]
    if not files:
        raise DatasetError(
            f'{clipped(source.path)}: holds no tensor of a module, as msProbe writes them with "task": "tensor" and '
            '"level": "L0" or "mix".'
        )
    ranks = Counter(_folder(source.parts(path), _RANK) or "" for path, _ in files)
    rank = min(ranks, key=lambda one: (len(one), one))
    found.said += ranks_said(rank, ranks)
    labelled: list[tuple[Path, re.Match[str], tuple[int, int]]] = []
    for path, match in files:
        if (_folder(source.parts(path), _RANK) or "") != rank:
            continue
        if role_of(match["path"])[0] is Role.OTHER:
            found.ignored.append(path.stem)
            continue
        step = (_folder(source.parts(path), _STEP) or "step0").removeprefix("step")
        label = tuple(bounded(source.path, path.name, digits, MOST_STEPS) for digits in (step, match["call"]))
        labelled.append((path, match, (label[0], label[1])))
    steps = steps_of(source.path, [label for _, _, label in labelled])
    calls: list[dict[str, Call]] = [{} for _ in steps]
    for path, match, label in labelled:
        call = calls[steps[label]].setdefault(match["path"], Call())
        (call.outputs if match["side"] == "output" else call.inputs)[match["what"] or ""] = _tensor(source, path)
    place_calls(calls, options, found)
    return found


def _tensor(source: Source, path: Path) -> Stored:
    """The one tensor of a file."""
    held = source.held(path).tensors
    if list(held) != [""]:
        raise DatasetError(f"{path}: holds {len(held)} tensors with names, and not just one, as msProbe writes them.")
    stored = held[""]
    return Stored(path.stem, path, stored.dtype, stored.shape, stored.begin, stored.strides)


MSPROBE = Importer("msprobe", "msProbe", _knows, _read)
