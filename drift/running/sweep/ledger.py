"""What is done of a plan, what failed and why: kept while a run goes on, and written to ``sweep.json``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from drift._version import __version__
from drift.running.sweep.cells import Cell
from drift.running.sweep.groups import Group
from drift.running.sweep.outcome import Failure, Outcome, Summary, now
from drift.running.sweep.planning import Plan
from drift.running.sweep.state import Survey

__all__ = ["Ledger"]


class Ledger:
    """The books of one run over one locked folder; they begin with what the plan's survey found there.

    Parameters
    ----------
    todo : Plan
        The plan, surveyed.
    say : callable
        Told in one line each what a person should know.
    fail_fast : bool
        Whether the run ends at the first cell that fails.

    Attributes
    ----------
    files : list of str
        Cells that this run computed.
    failures : dict of str to dict
        The record of every cell that could not be computed, by file.
    timings : list of dict
        As in :class:`~drift.running.sweep.state.Survey`, the groups of this run added.
    stopped : str
        Why the run must end, or empty.
    at_work_on : str
        Title of the group that was begun last, while it is under way.
    """

    def __init__(self, todo: Plan, say: Callable[[str], None], *, fail_fast: bool = False) -> None:
        self.plan = todo
        self.folder = todo.folder
        self.files: list[str] = []
        self.failures = dict(todo.survey.failures)
        self.timings = list(todo.survey.timings)
        self.stopped = ""
        self.at_work_on = ""
        self._say = say
        self._fail_fast = fail_fast
        self._done = set(todo.survey.done)
        self._checked = dict(todo.survey.checked)
        self._again = dict(todo.survey.again)
        self._set_aside: list[str] = []
        self._started = time.monotonic()

    def state(self, cell: Cell) -> str:
        """``done``, ``failed`` or ``pending``."""
        if cell.file in self._done:
            return "done"
        return "failed" if cell.file in self.failures else "pending"

    # -------------------------------------------------------- what happens

    def set_aside(self) -> None:
        """Rename the files that are not what their names say."""
        for file, reason in self.plan.survey.broken.items():
            aside = self.folder.set_aside(file)
            self._set_aside.append(str(aside))
            self._say(f"warning: {reason}")
            self._say(f"    renamed to {aside.name}; the cell is computed again")

    def expect(self, cells: Sequence[Cell]) -> None:
        """Take note that these cells are to be computed, whatever is known of them.

        A file that is there already does not count any more, also not for a later run, until it is another.
        """
        for cell in cells:
            self.failures.pop(cell.file, None)
            if cell.file in self._done:
                self._done.discard(cell.file)
                self._again[cell.file] = self._checked.pop(cell.file)

    def fail(self, cell: Cell, failure: Failure) -> None:
        """Take note of why a cell cannot be computed."""
        self._failed(cell, failure.recorded(cell, self.folder))

    def take(self, group: Group, outcome: Outcome) -> tuple[int, int]:
        """Take note of what became of a group; returns how many of its cells were written, and how many failed."""
        written, failed = dict.fromkeys(outcome.files), dict(outcome.failures)
        self._checked |= outcome.checked
        if outcome.died:
            # What it had written before it died is good: cells are written whole or not at all.
            new = self._sound(self.folder.survey({cell.file: cell.hash for cell in group.cells}))
            written |= dict.fromkeys(new)
            self._checked |= new
            why = Failure.of(RuntimeError(outcome.died), "died")
            failed |= {cell.file: why.recorded(cell, self.folder) for cell in group.cells if cell.file not in written}
        self.files += written
        self._done |= written.keys()
        for file in written:
            self.failures.pop(file, None)
            self._again.pop(file, None)
        for cell in group.cells:
            if cell.file in failed:
                self._failed(cell, failed[cell.file])
        self.stopped = self.stopped or outcome.stopped
        if self.at_work_on == group.title:
            self.at_work_on = ""
        if len(written) == len(group.cells) and outcome.computing:
            self._time(group, outcome)
        self.save()
        return len(written), len(failed)

    def _failed(self, cell: Cell, record: dict[str, Any]) -> None:
        self.failures[cell.file] = record
        self._done.discard(cell.file)
        self._checked.pop(cell.file, None)
        self._say(f"    failed: {cell}: {record['reason']}")
        if self._fail_fast and not self.stopped:
            self.stopped = f"--fail-fast, after {cell} failed"

    def _time(self, group: Group, outcome: Outcome) -> None:
        cost, first = group.cost(), group.cells[0]
        self.timings.append(
            {
                "title": group.title,
                "device": first.device,
                "dtype": first.dtype,
                "cells": [cell.file for cell in group.cells],
                "estimated_s": round(cost.seconds if cost else 0.0, 3),
                "elapsed_s": round(outcome.computing, 3),
                "load_s": round(outcome.seconds - outcome.computing, 3),
                "finished_at": now(),
            }
        )

    def look_again(self) -> None:
        """Believe the folder: an interruption may fall between the writing of a cell and the remembering of it."""
        self._checked = self._sound(self.plan.surveyed().survey)
        self._done = set(self._checked)
        for file in self._done:
            self.failures.pop(file, None)
            self._again.pop(file, None)
        self.at_work_on = ""

    def _sound(self, found: Survey) -> dict[str, list[int]]:
        """Fingerprints of the files that count: what was there before, and was to be computed again, does not."""
        return {file: mark for file, mark in found.checked.items() if mark != self._again.get(file)}

    # -------------------------------------------------------- what is handed on

    def save(self) -> None:
        """Write ``sweep.json``; a disk that refuses does not end the sweep, for the cells speak for themselves."""
        config = self.plan.config
        record = {
            "schema": 1,
            "name": config.name,
            "description": config.description,
            "seed": config.seed,
            "drift_version": __version__,
            "updated_at": now(),
            "at_work_on": self.at_work_on,
            "config": config.model_dump(exclude={"source"}),
            "cells": [self._entry(cell) for cell in self.plan.cells],
            "failures": self._failures(),
            "groups": self.folder.recent(self.timings),
        }
        try:
            self.folder.save(record)
        except OSError as error:
            self._say(f"warning: {self.folder}/sweep.json cannot be written: {error.strerror or error}")

    def _entry(self, cell: Cell) -> dict[str, Any]:
        state = self.state(cell)
        return {
            "file": cell.file,
            "hash": cell.hash,
            "state": state,
            **({"checked": self._checked[cell.file]} if cell.file in self._checked else {}),
            **({"again": self._again[cell.file]} if cell.file in self._again else {}),
            **({"reason": self.failures[cell.file]["reason"]} if state == "failed" else {}),
            "config": cell.axes,
        }

    def _failures(self) -> list[dict[str, Any]]:
        return [self.failures[cell.file] for cell in self.plan.cells if self.state(cell) == "failed"]

    def summary(self, *, interrupted: bool = False) -> Summary:
        """How things stand."""
        states = [self.state(cell) for cell in self.plan.cells]
        return Summary(
            name=self.plan.config.name,
            folder=str(self.folder),
            total=len(states),
            done=states.count("done"),
            failed=states.count("failed"),
            left=states.count("pending"),
            files=[str(self.folder.cell(file)) for file in self.files],
            again=sum(cell.file in self._again for cell in self.plan.cells if self.state(cell) == "pending"),
            failures=self._failures(),
            set_aside=self._set_aside,
            not_in_this_plan=self.plan.survey.strangers,
            stopped=self.stopped,
            interrupted=interrupted,
            seconds=time.monotonic() - self._started,
        )
