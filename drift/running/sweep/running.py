"""Carry a plan out: choose what to compute, have an engine do it; survive whatever happens on the way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from drift.errors import ConfigError
from drift.running.checkpoints import fetching
from drift.running.keeping import forget_documents
from drift.running.sweep.cells import Cell
from drift.running.sweep.config import Config, closest
from drift.running.sweep.cost import correction, show_seconds
from drift.running.sweep.engines.dask import Dask
from drift.running.sweep.engines.engine import Engine
from drift.running.sweep.engines.here import in_this_process
from drift.running.sweep.engines.processes import automatic_jobs, in_processes
from drift.running.sweep.groups import Group
from drift.running.sweep.ledger import Ledger
from drift.running.sweep.outcome import Failure, Interrupted, Outcome, Summary
from drift.running.sweep.planning import Plan, plan
from drift.running.sweep.progress import Silent
from drift.running.sweep.selecting import select

__all__ = ["ENGINES", "run"]

ENGINES = ("local", "dask")


def run(
    todo: Plan | Config | str | Path | None = None,
    out: str | Path | None = None,
    *,
    only: Sequence[str] = (),
    limit: int | None = None,
    force: bool = False,
    retry_failed: bool = False,
    fail_fast: bool = False,
    jobs: int | None = 1,
    memory: int | None = None,
    engine: str | Engine = "local",
    scheduler: str = "",
    report: Silent | None = None,
) -> Summary:
    """Compute the cells of a plan that are not there yet.

    Parameters
    ----------
    todo : Plan, Config, str, Path, optional
        A plan, or what :func:`drift.running.sweep.planning.plan` takes.
    out : path, optional
        The folder, where `todo` is not a plan already.
    only : sequence of str
        ``"axis=value,value"`` each: compute matching cells only.
    limit : int, optional
        Compute this many cells at most.
    force : bool
        Compute cells again that are done or have failed. Those that the run does not get to count as pending from then
        on, though their files of before are there.
    retry_failed : bool
        Compute cells again that have failed.
    fail_fast : bool
        Stop at the first failure.
    jobs : int, optional
        Groups computed at once, each in a process of its own that gets its share of the cores; None chooses.
    memory : int, optional
        Bytes that a descent may take; by default what its device has free. It decides whether weights are kept in
        memory, and descents that cannot fit are failures. Of several jobs each gets its share.
    engine : str or Engine
        ``local`` (processes of this machine), ``dask``, or one of your own.
    scheduler : str
        For ``dask``: address of an existing scheduler; a local cluster of `jobs` workers by default.
    report : Silent, optional
        Told about progress (see :mod:`drift.running.sweep.progress`); nothing is said by default.

    Returns
    -------
    Summary
        Failures of cells are in it; they are not raised.

    Raises
    ------
    ConfigError
        If the plan cannot be carried out at all, or another sweep is at work in the folder.
    Interrupted
        On Ctrl-C, after the state was saved. Running the same again resumes.
    """
    report = report or Silent()
    make = _engine(engine, scheduler, report)
    # Whether there is a GPU is for the workers to say, where these are on other machines.
    elsewhere = bool(scheduler) or callable(engine)
    if not isinstance(todo, Plan):
        todo = plan(todo, out, look=False, dry_run=elsewhere)
    if memory is not None:
        todo = replace(todo, memory=memory)
    asked = _Asked(tuple(only), limit, force, retry_failed, fail_fast, jobs, memory)
    with todo.folder.lock():
        # Whatever was seen before, another sweep may have ended since: look under the lock.
        return _Run(todo.surveyed(), asked, make, elsewhere, report).carry_out()


@dataclass(frozen=True)
class _Asked:
    """What was asked of a run; see :func:`run`."""

    only: tuple[str, ...]
    limit: int | None
    force: bool
    retry_failed: bool
    fail_fast: bool
    jobs: int | None
    memory: int | None


class _Run:
    """One run over one locked folder: which cells, in which order, by which engine."""

    def __init__(
        self, todo: Plan, asked: _Asked, make: Callable[[int, int], Engine | None], elsewhere: bool, report: Silent
    ) -> None:
        self._plan = todo
        self._asked = asked
        self._make = make
        self._elsewhere = elsewhere
        self._report = report
        self._ledger = Ledger(todo, report.line, fail_fast=asked.fail_fast)

    def carry_out(self) -> Summary:
        """Compute what is wanted; failures of cells are in the summary."""
        asked, report = self._asked, self._report
        try:
            _tell(self._plan, report)
            wanted = self._wanted()
            self._ledger.set_aside()
            wanted = wanted[: asked.limit]
            self._ledger.expect(wanted)
            if asked.force:
                forget_documents(self._plan.folder.path)
            if wanted:
                self._compute(wanted)
        except KeyboardInterrupt:
            with _deaf():
                report.end()
                self._ledger.look_again()
                self._ledger.save()
            raise Interrupted(self._ledger.summary(interrupted=True)) from None
        report.end()
        self._ledger.save()
        if asked.limit is not None and not self._ledger.stopped and self._ledger.summary().left:
            self._ledger.stopped = f"--limit {asked.limit}"
        return self._ledger.summary()

    # -------------------------------------------------------- which cells

    def _wanted(self) -> list[Cell]:
        """The cells to compute; models of the hub that they need are fetched first."""
        wanted = self._to_compute()
        if not any(cell.checkpoint == "unfetched" for cell in wanted):
            return wanted
        self._fetch_hub(wanted)
        return [cell for cell in self._to_compute() if cell.checkpoint != "unfetched"]

    def _to_compute(self) -> list[Cell]:
        def wanted(cell: Cell) -> bool:
            state = self._plan.state(cell)
            return self._asked.force or state == "pending" or (self._asked.retry_failed and state == "failed")

        return [cell for cell in select(self._plan, self._asked.only) if wanted(cell)]

    def _fetch_hub(self, cells: Sequence[Cell]) -> None:
        """Fetch hub models that are not here yet: only then is known what their cells are called."""
        failures: dict[str, Failure] = {}
        fetched = False
        for name in dict.fromkeys(cell.model for cell in cells if cell.checkpoint == "unfetched"):
            try:
                fetching.fetch(name, self._report.line)
                fetched = True
            except Exception as error:
                failures[name] = Failure.of(error, "checkpoint")
        if fetched:
            before = self._plan
            self._plan = plan(before.config, before.folder.path, dry_run=self._elsewhere, memory=before.memory)
        self._ledger = Ledger(self._plan, self._report.line, fail_fast=self._asked.fail_fast)
        for cell in self._plan.cells:
            if cell.model in failures and cell.checkpoint == "unfetched":
                self._ledger.fail(cell, failures[cell.model])

    # -------------------------------------------------------- by which engine, in which order

    def _compute(self, wanted: Sequence[Cell]) -> None:
        """Have cells computed until all are, or something stops the run."""
        estimate, device = self._plan.estimate(wanted), wanted[0].device
        self._report.begin(float(estimate["seconds"]))
        groups = self._plan.groups(wanted)
        jobs = self._asked.jobs
        if jobs is None:
            jobs = automatic_jobs(device, len(groups), float(estimate["memory_bytes"]), self._plan.memory)
        at_once = 1 if self._elsewhere else min(jobs, len(groups))
        # On GPUs each job measures its own, unless something was said.
        allowed = self._asked.memory if self._asked.memory is not None or device != "cpu" else self._plan.budget("cpu")
        todo = self._plan
        if at_once > 1 and allowed is not None:
            todo = replace(todo, memory=max(1, allowed // at_once))
        engine = self._make(jobs, len(groups))
        if engine is None:
            self._groups(todo, groups, partial(in_this_process, say=self._report.line), alone=True)
        else:
            # The longest first, so that none is left over at the end.
            self._groups(todo, sorted(groups, key=lambda group: -self._expected(group)), engine)

    def _groups(self, todo: Plan, order: Sequence[Group], engine: Engine, *, alone: bool = False) -> None:
        numbers = {group.cells[0].file: f"[{number}/{len(order)}]" for number, group in enumerate(order, 1)}

        def number(group: Group) -> str:
            return numbers[group.cells[0].file]

        def place(group: Group) -> str:
            return "" if alone else number(group)

        outcomes = engine(
            todo,
            order,
            fail_fast=self._asked.fail_fast,
            begin=lambda group: self._begin(group, number(group), place(group)),
            fraction=lambda group, done: self._report.fraction(done, place(group)),
            go_on=lambda: not self._ledger.stopped,
        )
        # Workers must have ended before anybody looks into the folder, also when this is interrupted.
        with closing(outcomes) as ended:
            for group, outcome in ended:
                self._end(group, outcome, place(group))

    def _expected(self, group: Group) -> float:
        """Estimated seconds of a group, refined by what groups took here before."""
        cost, first = group.cost(), group.cells[0]
        known = self._ledger.timings
        return cost.seconds * correction(known, device=first.device, dtype=first.dtype) if cost else 0.0

    def _begin(self, group: Group, number: str, place: str) -> None:
        expected = self._expected(group)
        self._ledger.at_work_on = group.title
        self._ledger.save()
        hint = f" (about {show_seconds(expected)})" if expected else ""
        self._report.group(f"{number} {group.title}{hint}", expected, group.cells[0].documents, place)

    def _end(self, group: Group, outcome: Outcome, place: str) -> None:
        computed, failed = self._ledger.take(group, outcome)
        self._report.group_done(
            f"{group.subject}: {computed} of {len(group.cells)} cells done "
            f"in {show_seconds(outcome.seconds)}" + (f", {failed} failed" if failed else ""),
            place,
        )


def _engine(engine: str | Engine, scheduler: str, report: Silent) -> Callable[[int, int], Engine | None]:
    """What makes the engine once the number of jobs and of groups is known; None is this very process."""
    if scheduler and engine != "dask":
        raise ConfigError(f"--scheduler {scheduler}: goes with --engine dask")
    if callable(engine):
        return lambda jobs, groups: engine
    if engine == "dask":
        made = Dask(scheduler=scheduler, say=report.line)
        return lambda jobs, groups: replace(made, jobs=min(jobs, groups))
    if engine != "local":
        raise ConfigError(f"unknown engine {engine!r}{closest(engine, ENGINES)} Known: {', '.join(ENGINES)}")
    return lambda jobs, groups: partial(in_processes, jobs=jobs) if min(jobs, groups) > 1 else None


def _tell(todo: Plan, report: Silent) -> None:
    """What a person should know before the first cell."""
    for note in todo.survey.notes:
        report.line(f"warning: {note}")
    if todo.survey.cut_off:
        report.line(
            f"note: an earlier run was killed while computing {todo.survey.cut_off}. If it was for lack of memory, "
            "use fewer tokens or a smaller model."
        )
    if todo.survey.again:
        count = len(todo.survey.again)
        report.line(
            f"note: {count} cell{'s' * (count > 1)} that an earlier --force was to compute again and did not get to "
            "count as pending, though there are files of before"
        )
    if todo.survey.strangers:
        count = len(todo.survey.strangers)
        report.line(f"note: {count} cell{'s' * (count > 1)} in {todo.folder} not in this plan: left alone")
    states = [todo.state(cell) for cell in todo.cells]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("done", "failed", "pending"))
    report.line(f"{todo.config.name}: {len(states)} cells in {todo.folder}: {counts}")


@contextmanager
def _deaf() -> Iterator[None]:
    """Let nothing interrupt the saving of the state."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
