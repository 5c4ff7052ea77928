"""What became of a group, how a sweep ends and how a cell fails."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from drift.errors import (
    CheckpointError,
    ConfigError,
    CorpusError,
    DatasetError,
    DriftError,
    PrecisionError,
    UnsupportedModelError,
)
from drift.running.sweep.cost import show_seconds

if TYPE_CHECKING:
    from drift.running.sweep.cells import Cell
    from drift.running.sweep.state import Folder

__all__ = ["Exit", "Failure", "Interrupted", "Outcome", "Summary", "is_refusal", "now"]


class Exit(IntEnum):
    """How a sweep ended: the command line's exit code."""

    COMPLETE = 0
    FAILED = 1
    USAGE = 2
    STOPPED = 3
    INTERRUPTED = 130


_EXIT_WORDS = {
    Exit.COMPLETE: "complete",
    Exit.FAILED: "some cells failed",
    Exit.USAGE: "bad configuration or usage",
    Exit.STOPPED: "stopped with cells left",
    Exit.INTERRUPTED: "interrupted",
}


@dataclass
class Summary:
    """How a run ended.

    Attributes
    ----------
    total, done, failed, left : int
        Cells of the plan, and how they stand now: complete, failed, not computed.
    again : int
        How many of those left have a file of before, which ``--force`` was to replace and did not get to.
    files : list of str
        Cells computed by this run.
    failures : list of dict
        ``file``, ``cell``, ``kind``, ``reason``, ``log``, ``at`` of every failed cell.
    set_aside : list of str
        Files that were not what they should be, under their new names.
    not_in_this_plan : list of str
        Cells of the folder that belong to another configuration.
    stopped : str
        Why the run ended early, or empty.
    seconds : float
    """

    name: str
    folder: str
    total: int = 0
    done: int = 0
    failed: int = 0
    left: int = 0
    again: int = 0
    files: list[str] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    not_in_this_plan: list[str] = field(default_factory=list)
    stopped: str = ""
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def exit(self) -> Exit:
        """The exit code: cells that are left outweigh cells that failed."""
        if self.interrupted:
            return Exit.INTERRUPTED
        if self.left:
            return Exit.STOPPED
        return Exit.FAILED if self.failed else Exit.COMPLETE

    def as_dict(self) -> dict[str, Any]:
        """The summary as a JSON object."""
        cells = {"total": self.total, "done": self.done, "failed": self.failed, "left": self.left}
        return {
            "name": self.name,
            "folder": self.folder,
            "exit_code": int(self.exit),
            "status": _EXIT_WORDS[self.exit],
            "stopped": self.stopped,
            "cells": {**cells, "computed": len(self.files)},
            "to_compute_again": self.again,
            "files": self.files,
            "failures": self.failures,
            "set_aside": self.set_aside,
            "not_in_this_plan": self.not_in_this_plan,
            "seconds": round(self.seconds, 3),
        }

    def lines(self) -> list[str]:
        """The summary in words."""
        lines = [
            (
                f"{self.name}: {_EXIT_WORDS[self.exit]}. Of {self.total} cells {self.done} are done "
                f"({len(self.files)} computed now, {show_seconds(self.seconds)}), "
                f"{self.failed} failed, {self.left} left. Folder: {self.folder}"
            )
        ]
        lines += [f"  failed: {f['cell']}: {f['reason']}" for f in self.failures[:20]]
        if len(self.failures) > 20:
            lines.append(f"  ... and {len(self.failures) - 20} more, in {self.folder}/sweep.json")
        if self.failed:
            lines.append("  Failed cells stay failed until --retry-failed is given.")
        if self.stopped:
            lines.append(f"  Stopped: {self.stopped}")
        if self.left:
            without = "--only, --limit" + (", --force" if self.again else "")
            lines.append(f"  Running the same command again (without {without}) computes what is left.")
        if self.again:
            lines.append(f"  {self._of_before()}")
        return lines

    def _of_before(self) -> str:
        one = self.again == 1
        return (
            f"{self.again} of those left {'is' if one else 'are'} there as computed before: --force was to compute "
            f"{'it' if one else 'them'} again and did not get to {'it' if one else 'them'}."
        )

    def interruption(self) -> str:
        """What a person is told who interrupted the run."""
        said = f"interrupted: {self.done} of {self.total} cells are done; running the same command "
        if not self.again:
            return f"{said}resumes"
        return f"{said}without --force resumes. {self._of_before()}"


@dataclass
class Outcome:
    """What became of one group.

    Attributes
    ----------
    files : list of str
        Cells that were written.
    checked : dict
        Their fingerprints.
    failures : dict
        File to failure record, of the cells that could not be computed.
    stopped : str
        Why the run must end, or empty.
    computing, seconds : float
        Seconds spent on passes, and in all.
    died : str
        What killed the worker, or empty.
    """

    files: list[str] = field(default_factory=list)
    checked: dict[str, list[int]] = field(default_factory=dict)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    stopped: str = ""
    computing: float = 0.0
    seconds: float = 0.0
    died: str = ""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after the state was saved; carries the summary."""

    def __init__(self, summary: Summary) -> None:
        super().__init__("interrupted")
        self.summary = summary


def now() -> str:
    """The time, as it is written into records."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# ---------------------------------------------------------------- failures


def _is_out_of_memory(error: BaseException | None) -> bool:
    if error is None:
        return False
    if isinstance(error, DriftError):  # another error in words for people
        return _is_out_of_memory(error.__cause__)
    # An error of torch's can only be there where torch is; this module does not need it otherwise.
    exhausted = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    if isinstance(error, (MemoryError, exhausted)):
        return True
    # What the allocator of a CPU says is a plain RuntimeError: there is nothing but its text to know it by.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("not enough memory", "out of memory", "can't allocate memory", "failed to allocate")
    )


# What torch's own 16-bit attention says where ATEN_CPU_CAPABILITY takes from it what the processor has. It is a plain
# RuntimeError: there is nothing but its text to tell it from others, and this is the one place that looks at it.
_HELD_BACK = "pack_vnni2 is only supported when avx512 is supported"


def _is_held_back(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and _HELD_BACK in str(error)


def _what_holds_back() -> str:
    setting = os.environ.get("ATEN_CPU_CAPABILITY")
    unset = "unset ATEN_CPU_CAPABILITY, set ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16, too, or " if setting else ""
    under = f" under ATEN_CPU_CAPABILITY={setting}" if setting else ""
    return (
        f"torch's own 16-bit attention cannot be computed{under} on this processor ({_HELD_BACK}); {unset}have 16-bit "
        "products computed in float32 (--set half_matmul=float32); with --set attn_implementation=eager all but the "
        "control that compares with torch's attention is computed"
    )


def is_refusal(error: BaseException) -> bool:
    """Whether an error means that the disk takes nothing more, or not from us: no cell's fault."""
    cause = error.__cause__
    gone = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
    return isinstance(error, DatasetError) and isinstance(cause, OSError) and cause.errno in gone


_KINDS: tuple[tuple[type[DriftError], str], ...] = (
    (CheckpointError, "checkpoint"),
    (CorpusError, "corpus"),
    (PrecisionError, "precision"),
    (UnsupportedModelError, "model"),
    (ConfigError, "config"),
    (DatasetError, "dataset"),
)


@dataclass(frozen=True)
class Failure:
    """An exception, without the frames that keep tensors alive."""

    kind: str
    reason: str
    text: str

    @classmethod
    def of(cls, error: BaseException, kind: str = "defect") -> Failure:
        """Put an error into a line; `kind` is what it is called if its class does not say."""
        if _is_out_of_memory(error):
            kind = "out_of_memory"
        elif _is_held_back(error):
            kind = "processor"
        elif isinstance(error, DriftError):
            kind = next((name for cls_, name in _KINDS if isinstance(error, cls_)), kind)
        message = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, DriftError):
            message = f"{type(error).__name__}: {message}"
        if kind == "out_of_memory":
            message = f"out of memory ({message[:200]}); use fewer tokens, a smaller model or a narrower dtype"
        if kind == "processor":
            message = _what_holds_back()
        return cls(kind, message[:600], "".join(traceback.format_exception(error)))

    def recorded(self, cell: Cell, folder: Folder) -> dict[str, Any]:
        """The record of the cell that failed so; the traceback is kept among the folder's logs."""
        return {
            "file": cell.file,
            "cell": str(cell),
            "config": cell.axes,
            "kind": self.kind,
            "reason": self.reason,
            "log": folder.log(cell.file, self.text),
            "at": now(),
        }

    @property
    def may_be_one_folds(self) -> bool:
        """Whether the same descent may go well without one of its folds."""
        return self.kind in ("out_of_memory", "processor", "config", "dataset", "defect")
