"""Names of our own, ``step.K.layer.L.hidden`` and so on, in safetensors files: docs/diagnose.md has the scheme."""

from __future__ import annotations

import re
from pathlib import Path

from drift._bounds import MOST_STEPS
from drift.errors import DatasetError
from drift.reading.diagnose.importers.base import PLACES, Found, Importer, Options, Piece, Source, bounded, wanted

__all__ = ["OURS"]

_NAME = re.compile(rf"step\.(?P<step>\d+)\.(?:{PLACES.pattern})")


def _files(source: Source) -> tuple[Path, ...]:
    if source.path.is_file():
        return (source.path,)
    if not source.path.is_dir():
        raise DatasetError(f"{source.path}: there is no such folder.")
    return tuple(sorted(source.path.glob("*.safetensors")))


def _knows(source: Source) -> bool:
    return any(_NAME.fullmatch(name) for path in _files(source) for name in source.held(path).tensors)


def _read(source: Source, options: Options) -> Found:
    files = _files(source)
    if not files:
        raise DatasetError(
            f"{source.path}: holds no *.safetensors file. docs/diagnose.md says how a dump is written, and which of "
            "other programs are read."
        )
    found = Found(wanted="no tensor is named as expected (step.0.layer.0.hidden, step.0.block.1.key, ...)")
    for path in files:
        held = source.held(path)
        found.metadata.update(held.metadata)
        for name, stored in held.tensors.items():
            match = _NAME.fullmatch(name)
            if match is None:
                found.ignored.append(name)
                continue
            step = bounded(path, name, match["step"], MOST_STEPS)
            found.pieces.append(Piece(wanted(match, path, name), step, stored))
    return found


OURS = Importer("drift", "names of drift", _knows, _read)
