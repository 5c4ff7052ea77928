"""transformers' ``model_addition_debugger_context(model, debug_path, use_repr=False)``: a file per tensor.

Every module's inputs are written, and outputs where it has no modules of its own: the state after a block is what the
next one took. A pass writes over the one before, so a step is a folder of its own.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from drift.errors import DatasetError
from drift.reading.diagnose.importers.base import Found, Importer, Options, Source, numbered
from drift.reading.diagnose.importers.modules import Call, place_calls

__all__ = ["TRANSFORMERS"]

_TREE = "_debug_tree_FULL_TENSORS.json"
_FILE = re.compile(r"\w+?(?:\.(?P<path>.+?))?_(?P<side>inputs|outputs)(?:_(?P<what>.+))?\.safetensors")
_TENSOR = "data"


def _knows(source: Source) -> bool:
    return any(path.name.endswith(_TREE) for path in source.files if len(source.parts(path)) <= 2)


def _calls(source: Source, folder: Path) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    for path in source.files:
        match = _FILE.fullmatch(path.name) if path.parent == folder else None
        if match is None:
            continue
        stored = source.held(path).tensors.get(_TENSOR)
        if stored is None:
            raise DatasetError(f"{path}: holds no tensor called {_TENSOR!r}, as transformers writes them.")
        call = calls.setdefault(match["path"] or "", Call())
        (call.inputs if match["side"] == "inputs" else call.outputs)[match["what"] or ""] = replace(
            stored, name=path.stem
        )
    return calls


def _read(source: Source, options: Options) -> Found:
    folders = list(dict.fromkeys(path.parent for path in source.files if path.name.endswith(_TREE)))
    if not folders:
        raise DatasetError(f"{source.path}: holds no *{_TREE}, as transformers' debugger writes it.")
    found = Found(
        said="a trace of transformers' model_addition_debugger_context.",
        wanted="no tensor was written, or of no module that is known: trace with use_repr=False",
    )
    steps = numbered(folders, source.path)
    place_calls([_calls(source, folder) for folder in sorted(steps, key=lambda one: steps[one])], options, found)
    return found


TRANSFORMERS = Importer("transformers", "transformers' model debugger", _knows, _read)
