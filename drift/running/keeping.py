"""Documents that were measured, kept on disk until the cells of their group are written.

A descent over twenty documents takes hours on a small machine: what was measured before it was interrupted is not
measured again. Documents never see each other, so a cell made of kept and of new ones has the bits of one made at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

import drift
from drift.dataset.hashing import canonical_json, content_hash
from drift.writing import subfolder, write_whole

__all__ = ["KEPT_FOLDER", "KeptDocuments", "Measured", "forget_documents"]

#: Per fold, its variables over one document, by name.
Measured = list[dict[str, NDArray[Any]]]
#: Where they lie in the folder of a sweep.
KEPT_FOLDER = ".documents"
_SUFFIX = ".safetensors"
#: What may lie there: a fingerprint and the number of a document, and the same while it is being written.
_NAME = re.compile(rf"\.?([0-9a-f]+)\.[0-9]+{re.escape(_SUFFIX)}(\..*)?")


@cache
def _code() -> str:
    """Fingerprint of the code that measures: a commit says nothing of a tree that differs from it."""
    root = Path(drift.__file__).parent
    files = sorted(path for folder in ("running", "dataset") for path in (root / folder).rglob("*.py"))
    return content_hash([[str(path.relative_to(root)), path.read_text(encoding="utf-8")] for path in files])


class KeptDocuments:
    """The measured documents of one group.

    Parameters
    ----------
    folder : pathlib.Path
        Of the sweep.
    identity : mapping
        All that decides the bits of a document, as JSON values: cells, tokens, weights, versions, processor, threads.
        The code that measures is added.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._sweep = folder
        self._key = content_hash({"identity": dict(identity), "code": _code()})

    def _path(self, index: int) -> Path:
        return self._sweep / KEPT_FOLDER / f"{self._key}.{index}{_SUFFIX}"

    def load(self, index: int, switches: Mapping[str, Any]) -> Measured | None:
        """Return what was measured of a document under the same numerical switches; None where nothing usable is kept.

        Parameters
        ----------
        index : int
            Which document of the group, from 0.
        switches : mapping
            See :func:`drift.running.model.numerics.numerics`.
        """
        found: dict[int, dict[str, NDArray[Any]]] = {}
        try:
            with safe_open(self._path(index), framework="numpy") as file:
                if (file.metadata() or {}).get("switches") != canonical_json(dict(switches)):
                    return None
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    place, _, variable = name.partition("/")
                    found.setdefault(int(place), {})[variable] = file.get_tensor(name)
        except (OSError, SafetensorError, ValueError):
            return None
        return [found[place] for place in range(len(found))] if sorted(found) == list(range(len(found))) else None

    def save(self, index: int, switches: Mapping[str, Any], measured: Sequence[Mapping[str, NDArray[Any]]]) -> None:
        """Keep what was measured of a document; where that cannot be written, it is measured again another time."""
        flat = {
            f"{place}/{name}": np.asarray(values, order="C")
            for place, variables in enumerate(measured)
            for name, values in variables.items()
        }
        with suppress(OSError):
            subfolder(self._sweep, KEPT_FOLDER)
            write_whole(self._path(index), save(flat, metadata={"switches": canonical_json(dict(switches))}))

    def forget(self) -> None:
        """Remove what is kept: the cells are written, or cannot be."""
        _remove(self._sweep / KEPT_FOLDER, self._key)


def forget_documents(folder: Path) -> None:
    """Remove all measured documents that are kept in the folder of a sweep."""
    _remove(folder / KEPT_FOLDER)


def _remove(kept: Path, key: str | None = None) -> None:
    """Remove the documents of one group, or of all, and the folder once it is empty; nothing behind a link."""
    if kept.is_symlink():
        return
    with suppress(OSError):
        for path in list(kept.iterdir()):
            found = _NAME.fullmatch(path.name)
            if found and key in (None, found[1]):
                path.unlink(missing_ok=True)
        kept.rmdir()
