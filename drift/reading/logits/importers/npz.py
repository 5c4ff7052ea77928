"""NumPy's `.npz`: the array `logits` (or the only one), and `tokens` or `targets`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from numpy.typing import NDArray

from drift._outside import OutsideError, regular
from drift.reading.logits.importers.arrays import LOGITS, TARGETS, TOKENS, sequences
from drift.reading.logits.importers.base import Importer, Source, refused
from drift.reading.logits.importers.npy import loaded
from drift.reading.logits.lanes import Sequence

__all__ = ["NPZ"]

_MAGIC = b"PK\x03\x04"


def _arrays(path: Path) -> dict[str, NDArray]:
    found: dict[str, NDArray] = {}
    with regular(path) as (stream, _), zipfile.ZipFile(stream) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        wanted = [name for name in members if name in (LOGITS, TOKENS, TARGETS)]
        if LOGITS not in wanted:
            others = [name for name in members if name not in wanted]
            if len(others) != 1:
                raise ValueError(f"it has {len(members)} arrays, none of them called {LOGITS!r}")
            wanted += others
        for name in wanted:
            with archive.open(members[name]) as member:
                found[name if name in (TOKENS, TARGETS) else LOGITS] = loaded(member, members[name].file_size)
    return found


def _read(source: Source) -> tuple[list[Sequence], list[str]]:
    try:
        held = _arrays(source.path)
        logits = held[LOGITS]
        if logits.dtype.kind != "f":
            raise ValueError(f"its logits are {logits.dtype}, not floating-point numbers")
        return sequences(logits, held.get(TOKENS), held.get(TARGETS)), []
    except (OutsideError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise refused(source.path, error) from error
    except (zipfile.BadZipFile, zlib.error, OSError) as error:  # OSError: it names places before its beginning
        raise refused(source.path, f"it is damaged ({error})") from error


def _knows(source: Source) -> bool:
    return source.head.startswith(_MAGIC)


NPZ = Importer("logits (.npz)", _knows, _read)
