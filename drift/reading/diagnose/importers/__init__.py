"""Dumps by other programs, recognised by their content or asked for by name. One file per format, and one row here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drift.errors import DatasetError
from drift.reading.diagnose.importers.base import Found, Importer, Options, Piece, Source
from drift.reading.diagnose.importers.debugger import TRANSFORMERS
from drift.reading.diagnose.importers.edgellm import EDGE_LLM
from drift.reading.diagnose.importers.msprobe import MSPROBE
from drift.reading.diagnose.importers.nnsight import NNSIGHT
from drift.reading.diagnose.importers.ours import OURS
from drift.reading.diagnose.importers.sglang import SGLANG
from drift.reading.diagnose.importers.transformerlens import TRANSFORMERLENS
from drift.reading.diagnose.importers.vllm import VLLM

__all__ = ["IMPORTERS", "Found", "Piece", "found_in"]

#: In the order in which they are asked: what is known by the names of its files first.
IMPORTERS: tuple[Importer, ...] = (
    SGLANG, MSPROBE, TRANSFORMERS, OURS, VLLM, EDGE_LLM, TRANSFORMERLENS, NNSIGHT,
)  # fmt: skip


def found_in(path: Path, form: str | None = None, heads: int | None = None, layers: Sequence[int] = ()) -> Found:
    """Read a dump of whatever format.

    Parameters
    ----------
    path : Path
        A folder or a file.
    form : str, optional
        Name of the importer; by default the content tells.
    heads : int, optional
        Heads of keys and values.
    layers : sequence of int, optional
        After how many blocks hidden states were taken, where the files do not tell.

    Raises
    ------
    DatasetError
        If there is none, or it is none of that format, or broken.
    """
    source, options = Source(path), Options(heads, tuple(layers))
    if form is not None:
        chosen = next((one for one in IMPORTERS if one.name == form), None)
        if chosen is None:
            raise DatasetError(f"{form!r} is no format of dumps; there are {', '.join(one.name for one in IMPORTERS)}.")
    elif not path.exists():
        chosen = OURS
    else:
        chosen = next((one for one in IMPORTERS if one.knows(source)), OURS)
    return chosen.read(source, options)
