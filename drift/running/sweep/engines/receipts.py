"""What a worker on another machine says of the files that it wrote, and whether to believe it."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift._bounds import MOST_FILE_BYTES
from drift._outside import OutsideError, read_bytes
from drift._version import NUMERICS_VERSION
from drift.dataset.contract import SCHEMA_VERSION
from drift.errors import DriftError
from drift.running.checkpoints import fetching, identity
from drift.running.sweep.outcome import Outcome
from drift.running.sweep.state import Folder
from drift.running.sweep.task_cells import TASK_VERSIONS, text_identity

if TYPE_CHECKING:
    from drift.running.sweep.cells import Cell
    from drift.running.sweep.groups import Group

__all__ = ["Receipt", "settle", "sha256_or_nothing"]

#: How long a file may take to appear here: network file systems remember what was not there.
PATIENCE_SECONDS = 60.0


@dataclass
class Receipt:
    """What a task hands back.

    Attributes
    ----------
    cells : list of (str, str)
        Path and sha256 of every file of the group that is there now.
    failures : dict
        As in :class:`~drift.running.sweep.outcome.Outcome`.
    stopped : str
        Why the run must end, or empty.
    broke : str
        What broke the task off, or empty. An exception as such would not do: the traceback of one need not survive
        the way, and Dask's client then waits for ever.
    computing : float
        Seconds spent on passes; 0 where cells were there already: it then says nothing about the group.
    """

    cells: list[tuple[str, str]] = field(default_factory=list)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    stopped: str = ""
    broke: str = ""
    computing: float = 0.0


def difference(cell: Cell) -> str:
    """Why this machine would compute another cell under that name, or nothing: its name says what it depends on."""
    from importlib.metadata import version

    where = f"the worker on {os.uname().nodename if hasattr(os, 'uname') else 'another machine'}"
    own = {"numerics": NUMERICS_VERSION, "schema": SCHEMA_VERSION, **TASK_VERSIONS}
    for name, planned in cell.versions:
        actual = own.get(name) or version(name)
        if actual != planned:
            what = f"drift ({name} version {actual}, the plan {planned})" if name in own else f"{name} {actual}"
            asked = "the plan's" if name in own else planned
            return f"{where} has {what}, not {asked}: install the same versions everywhere (constraints.txt)"
    try:
        fetching.fetch(cell.model, lambda message: None)
        if identity.identity(cell.model) != cell.checkpoint:
            return f"{where} has other weights, tokenizer or configuration under the name {cell.model} than the plan"
        if text_identity(cell) != cell.text:
            return (
                f"{where} has another text under the name {cell.corpus} than the plan: use file:PATH on a shared folder"
            )
    except DriftError:
        pass  # computing will say the same, and blame the right cells
    return ""


def sha256_or_nothing(path: Path) -> str:
    """SHA-256 of a file, in hex; empty where it cannot be read."""
    try:
        return hashlib.sha256(read_bytes(path, MOST_FILE_BYTES)).hexdigest()
    except (OSError, OutsideError):
        return ""


def settle(receipt: Receipt, folder: Folder, group: Group, patience: float = PATIENCE_SECONDS) -> Outcome:
    """Turn a receipt into an outcome, believing only what can be seen in the folder from here.

    Parameters
    ----------
    receipt : Receipt
        What the task handed back.
    folder : Folder
        The sweep's folder, as seen from here.
    group : Group
        What was asked for.
    patience : float
        Seconds to wait for a file that is not there yet.

    Returns
    -------
    Outcome
    """
    outcome = Outcome(failures=receipt.failures, stopped=receipt.stopped, computing=receipt.computing)
    if receipt.broke:
        outcome.died = f"its task broke off on the worker: {receipt.broke}"
    expected = {cell.file: cell.hash for cell in group.cells}
    until = time.monotonic() + patience
    for path, digest in receipt.cells:
        file = Path(path).name
        while sha256_or_nothing(folder.cell(file)) != digest:
            # A worker that was given up for lost may have written the same cell after this one did.
            if folder.survey({file: expected[file]}).done:
                break
            if time.monotonic() > until:
                outcome.stopped = (
                    f"a worker wrote {path}, but it does not arrive in {folder}: the folder must lie on a file system "
                    "that this machine and all workers share, under the same path. Or run a sweep on each machine "
                    "(--only) and copy the cells together"
                )
                return outcome
            time.sleep(min(0.5, patience))
        outcome.files.append(file)
        outcome.checked[file] = folder.fingerprint(file)
    return outcome
