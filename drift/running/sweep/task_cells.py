"""Cells that ask a task: what they have of their own. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from drift._version import TASKS_VERSION
from drift.dataset.task_contract import TASK_SCHEMA_VERSION
from drift.running import corpus
from drift.running.sweep.cells import Cell
from drift.running.tasks import haystacks
from drift.running.tasks.base import Task

__all__ = ["TASK_VERSIONS", "task_cells", "text_identity"]

#: What the numbers of a task cell depend on, beside the versions of packages and of numbers.
TASK_VERSIONS = {"task_schema": TASK_SCHEMA_VERSION, "tasks": TASKS_VERSION}


def task_cells(cell: Cell, tasks: Mapping[Task, str], questions: int) -> Iterator[Cell]:
    """Cells that ask tasks where `cell` would have measured drift.

    They bring their controls along, compare with full attention alone, and have haystacks in place of a text.

    Parameters
    ----------
    cell : Cell
    tasks : mapping of Task to str
        Tasks, and what identifies their haystacks.
    questions : int
        Most questions of a text.
    """
    versions = {name: version for name, version in cell.versions if name != "schema"} | TASK_VERSIONS
    for task, text in tasks.items():
        yield replace(
            cell,
            task=task.label,
            questions=questions,
            corpus=task.haystack,
            text=text,
            reference="full",
            logit_stride=1,
            floor_draws=0,
            versions=tuple(sorted(versions.items())),
        )


def text_identity(cell: Any) -> str:
    """What identifies the text of a cell on this machine, or its haystack.

    Raises
    ------
    CorpusError
        If it is not here.
    """
    return haystacks.identity(cell.corpus) if cell.task else corpus.identity(cell.corpus, cell.seed)
