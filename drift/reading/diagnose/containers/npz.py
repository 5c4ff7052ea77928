"""NumPy's `.npz`: a zip archive of arrays, which are mapped where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from drift._outside import OutsideError, regular
from drift.reading.diagnose.containers.archives import Member
from drift.reading.diagnose.containers.held import Held
from drift.reading.diagnose.containers.npy import stored
from drift.reading.diagnose.stored import Stored

__all__ = ["arrays"]


def arrays(path: Path, found: Mapping[str, Member]) -> Held:
    """Say what arrays an archive holds.

    Raises
    ------
    OSError, OutsideError
        If it cannot be read, or an array is compressed or broken.
    """
    held: dict[str, Stored] = {}
    with regular(path) as (stream, _):
        for name, member in found.items():
            label = name.removesuffix(".npy")
            if not member.plain:
                raise OutsideError(f"{label[:80]!r} is compressed: save it with numpy.savez, so that it can be mapped")
            stream.seek(member.begin)
            try:
                held[label] = stored(label, path, stream, member.begin + member.size)
            except ValueError as error:
                raise OutsideError(f"{label[:80]!r}: {error}") from error
    return Held(held)
