"""Carry a plan out: descend, write, remember; survive whatever happens on the way."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drift import dataset
from drift._version import __version__
from drift.errors import CheckpointError, ConfigError, DatasetError
from drift.running import corpus, protocols
from drift.running.checkpoints import fetching
from drift.running.sweep.cells import Cell
from drift.running.sweep.config import Config, closest
from drift.running.sweep.cost import correction, show_bytes, show_seconds
from drift.running.sweep.engines.engine import Engine, Outcome
from drift.running.sweep.engines.processes import automatic_jobs, in_processes
from drift.running.sweep.groups import Group
from drift.running.sweep.memory import Footprint, give_back, resident_bytes
from drift.running.sweep.outcome import Failure, Interrupted, Summary, is_refusal
from drift.running.sweep.planning import Plan, plan
from drift.running.sweep.progress import Silent
from drift.running.sweep.selecting import select

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["ENGINES", "run"]

ENGINES = ("local", "dask")
# What a cell keeps of the record of its weights: nothing that differs from machine to machine.
_KEPT = (
    "source", "family", "label", "original", "license", "weights", "published_dtype", "underflow_share",
    "weights_in_another_dtype",
)  # fmt: skip
_NEARLY = 0.7  # of a descent's predicted peak: a block adds more before anybody looks again


class _CannotWrite(Exception):
    """Nothing more can be written: no cell's fault."""


# ---------------------------------------------------------------- the run


class _Run:
    """One run over one locked folder."""

    def __init__(self, todo: Plan, report: Silent, *, fail_fast: bool) -> None:
        self.plan = todo
        self.report = report
        self.fail_fast = fail_fast
        self.folder = todo.folder
        self.done = set(todo.survey.done)
        self.checked = dict(todo.survey.checked)
        self.failures = dict(todo.survey.failures)
        self.timings = list(todo.survey.timings)
        self.files: list[str] = []
        self.set_aside: list[str] = []
        self.stopped = ""
        self.at_work_on = ""
        self.started = time.monotonic()
        self._weights: tuple[object, ...] = ()
        self._loaded: Any = None
        self._load_failure: Failure | None = None
        self._way: Footprint | None = None

    # -------------------------------------------------------- state

    def save(self) -> None:
        """Write ``sweep.json``; a disk that refuses does not end the sweep, for the cells speak for themselves."""
        config = self.plan.config
        cells = [
            {
                "file": cell.file,
                "hash": cell.hash,
                "state": self._state(cell),
                **({"checked": self.checked[cell.file]} if cell.file in self.checked else {}),
                **({"reason": self.failures[cell.file]["reason"]} if self._state(cell) == "failed" else {}),
                "config": cell.axes,
            }
            for cell in self.plan.cells
        ]
        record = {
            "schema": 1,
            "name": config.name,
            "description": config.description,
            "seed": config.seed,
            "drift_version": __version__,
            "updated_at": _now(),
            "at_work_on": self.at_work_on,
            "config": config.model_dump(exclude={"source"}),
            "cells": cells,
            "failures": [self.failures[c.file] for c in self.plan.cells if self._state(c) == "failed"],
            "groups": self.folder.recent(self.timings),
        }
        try:
            self.folder.save(record)
        except OSError as error:
            self.report.line(f"warning: {self.folder}/sweep.json cannot be written: {error.strerror or error}")

    def _state(self, cell: Cell) -> str:
        if cell.file in self.done:
            return "done"
        return "failed" if cell.file in self.failures else "pending"

    def look_again(self) -> None:
        """Believe the folder: an interruption may fall between the writing of a cell and the remembering of it."""
        found = self.plan.surveyed().survey
        self.done, self.checked = set(found.done), dict(found.checked)
        for file in found.done:
            self.failures.pop(file, None)

    def summary(self, *, interrupted: bool = False) -> Summary:
        states = [self._state(cell) for cell in self.plan.cells]
        return Summary(
            name=self.plan.config.name,
            folder=str(self.folder),
            total=len(states),
            done=states.count("done"),
            failed=states.count("failed"),
            left=states.count("pending"),
            files=[str(self.folder.cell(file)) for file in self.files],
            failures=[self.failures[c.file] for c in self.plan.cells if self._state(c) == "failed"],
            set_aside=self.set_aside,
            not_in_this_plan=self.plan.survey.strangers,
            stopped=self.stopped,
            interrupted=interrupted,
            seconds=time.monotonic() - self.started,
        )

    def fail(self, cell: Cell, failure: Failure) -> None:
        """Remember why a cell could not be computed."""
        self.failures[cell.file] = {
            "file": cell.file,
            "cell": str(cell),
            "config": cell.axes,
            "kind": failure.kind,
            "reason": failure.reason,
            "log": self.folder.log(cell.file, failure.text),
            "at": _now(),
        }
        self.done.discard(cell.file)
        self.checked.pop(cell.file, None)
        self.report.line(f"    failed: {cell}: {failure.reason}")
        if self.fail_fast and not self.stopped:
            self.stopped = f"--fail-fast, after {cell} failed"

    def keep(self, cell: Cell, ds: xr.Dataset) -> None:
        """Write a computed cell."""
        if cell.control:
            ds.attrs["control"] = cell.control
        ds.attrs.update(
            title=f"Drift of the folded pass: {cell}",
            config_json=dataset.canonical_json(cell.record),
            config_sha256=cell.hash,
        )
        try:
            dataset.write(ds, self.folder.cell(cell.file))
        except DatasetError as error:
            if is_refusal(error):
                raise _CannotWrite(str(error)) from error
            self.fail(cell, Failure.of(error))
            return
        self.done.add(cell.file)
        self.checked[cell.file] = self.folder.fingerprint(cell.file)
        self.files.append(cell.file)
        self.failures.pop(cell.file, None)
        self.folder.forget_log(cell.file)

    # -------------------------------------------------------- computing

    def groups(self, groups: Sequence[Group], engine: Engine | None = None) -> None:
        """Compute groups until something stops the run: by an engine, or one after the other in this process."""
        if engine is not None:
            self._elsewhere(groups, engine)
            return
        for number, group in enumerate(groups, 1):
            if self.stopped:
                return
            self._begin(group, f"[{number}/{len(groups)}]")
            before, began = len(self.files), time.monotonic()
            failed_before = set(self.failures)
            computing = 0.0
            try:
                computing = self._group(group)
            except _CannotWrite as error:
                self.stopped = str(error)
                return
            finally:
                self.at_work_on = ""
            computed, failed = len(self.files) - before, len(set(self.failures) - failed_before)
            self._end(group, computed, failed, computing, time.monotonic() - began)

    def _elsewhere(self, groups: Sequence[Group], engine: Engine) -> None:
        """Have groups computed elsewhere, the longest first, so that none is left over at the end."""
        order = sorted(groups, key=lambda group: -self._expected(group))
        places = {group.cells[0].file: f"[{number}/{len(order)}]" for number, group in enumerate(order, 1)}

        def place(group: Group) -> str:
            return places[group.cells[0].file]

        outcomes = engine(
            self.plan,
            order,
            fail_fast=self.fail_fast,
            begin=lambda group: self._begin(group, place(group), place(group)),
            fraction=lambda group, done: self.report.fraction(done, place(group)),
            go_on=lambda: not self.stopped,
        )
        # Workers must have ended before anybody looks into the folder, also when this is interrupted.
        with closing(outcomes) as ended:
            for group, outcome in ended:
                self._take(group, outcome, place(group))

    def _take(self, group: Group, outcome: Outcome, place: str) -> None:
        """Take note of what became of a group elsewhere."""
        self.files += outcome.files
        self.done |= set(outcome.files)
        self.checked |= outcome.checked
        for file in outcome.files:
            self.failures.pop(file, None)
        written: set[str] = set()
        if outcome.died:
            # What it had written before it died is good: cells are written whole or not at all. What was there before,
            # and was to be computed again, does not count.
            found = self.folder.survey({cell.file: cell.hash for cell in group.cells})
            written = {file for file in found.done if found.checked.get(file) != self.checked.get(file)}
            self.done |= written
            self.checked |= {file: found.checked[file] for file in written if file in found.checked}
            for file in written:
                self.failures.pop(file, None)
        for cell in group.cells:
            if outcome.died:
                if cell.file not in written:
                    self.fail(cell, Failure.of(RuntimeError(outcome.died), "died"))
            elif cell.file in outcome.failures:
                self.failures[cell.file] = outcome.failures[cell.file]
                self.report.line(f"    failed: {cell}: {self.failures[cell.file]['reason']}")
        self.stopped = self.stopped or outcome.stopped
        if self.at_work_on == group.title:
            self.at_work_on = ""
        computed = len(outcome.files) + len(written)
        self._end(group, computed, len(outcome.failures), outcome.computing, outcome.seconds, place)

    def _expected(self, group: Group) -> float:
        """Estimated seconds of a group, refined by what groups took here before."""
        cost, first = group.cost(), group.cells[0]
        return cost.seconds * correction(self.timings, device=first.device, dtype=first.dtype) if cost else 0.0

    def _begin(self, group: Group, number: str, place: str = "") -> None:
        expected = self._expected(group)
        self.at_work_on = group.title
        self.save()
        hint = f" (about {show_seconds(expected)})" if expected else ""
        self.report.group(f"{number} {group.title}{hint}", expected, group.cells[0].documents, place)

    def _end(self, group: Group, computed: int, failed: int, computing: float, seconds: float, place: str = "") -> None:
        cost, first = group.cost(), group.cells[0]
        if computed == len(group.cells) and computing:
            self.timings.append(
                {
                    "title": group.title,
                    "device": first.device,
                    "dtype": first.dtype,
                    "cells": [cell.file for cell in group.cells],
                    "estimated_s": round(cost.seconds if cost else 0.0, 3),
                    "elapsed_s": round(computing, 3),
                    "load_s": round(seconds - computing, 3),
                    "finished_at": _now(),
                }
            )
        self.save()
        self.report.group_done(
            f"{group.title.split(',')[0]}: {computed} of {len(group.cells)} cells done in {show_seconds(seconds)}"
            + (f", {failed} failed" if failed > 0 else ""),
            place,
        )

    def _group(self, group: Group) -> float:
        """Compute one group; returns the seconds spent after loading."""
        first = group.cells[0]
        budget = self.plan.budget(first.device)
        way, fits = group.way(budget) or (None, True)
        failure = None if fits or way is None else _too_large(way, budget or 0, first.device)
        failure = failure or self._load(first, way.weights if way else "resident")
        if failure is not None:
            for cell in group.cells:
                self.fail(cell, failure)
            return 0.0
        self._way = way
        began = time.monotonic()
        tokenizer = self._loaded.tokenizer
        try:
            tokens = corpus.documents(first.corpus, tokenizer, first.documents, first.tokens, first.seed)
        except Exception as error:
            failure = Failure.of(error, "corpus")
            for cell in group.cells:
                self.fail(cell, failure)
            return 0.0
        cells = []
        for cell in group.cells:
            # A reading that needs a token the tokenizer lacks must not take the others with it.
            try:
                protocols.parse(cell.protocol).bind(lambda: tokenizer.bos_token_id)
                cells.append(cell)
            except ConfigError as error:
                self.fail(cell, Failure.of(error))
        self._descend(cells, tokens)
        return time.monotonic() - began

    def _descend(self, cells: Sequence[Cell], tokens: Any) -> None:
        """Compute cells in one descent, or, where that fails for reasons that may lie in one of them, one by one."""
        if not cells or self.stopped:
            return
        failure: Failure | None = None
        datasets: list[xr.Dataset] = []
        try:
            datasets = self._trace(cells, tokens)
        except Exception as error:
            failure = Failure.of(error)
        if failure is None:
            for cell, ds in zip(cells, datasets, strict=True):
                self.keep(cell, ds)
            return
        _free(cells[0].device)
        if len(cells) == 1 or not failure.may_be_one_folds:
            for cell in cells:
                self.fail(cell, failure)
            return
        self.report.line(f"    {failure.reason}; trying the {len(cells)} folds one at a time")
        for cell in cells:
            self._descend([cell], tokens)

    def _trace(self, cells: Sequence[Cell], tokens: Any) -> list[xr.Dataset]:
        from drift.running.descent.lanes import Limits
        from drift.running.tracing import trace_folds

        way = self._way
        first = cells[0]
        return trace_folds(
            self._loaded.model,
            tokens,
            [(cell.chunk_size, cell.protocol, cell.reference) for cell in cells],
            bos_token_id=self._loaded.tokenizer.bos_token_id,
            logit_stride=first.logit_stride,
            half_matmul=first.half_matmul,
            labels={"model": first.label, "family": first.family, "dtype": first.dtype},
            attrs={
                "checkpoint_sha256": first.checkpoint,
                "checkpoint_json": {key: self._loaded.record[key] for key in _KEPT if key in self._loaded.record},
                "corpus": first.corpus,
                "corpus_sha256": first.text,
                "seed": first.seed,
            },
            on_progress=self._progress,
            allow_beyond_context=any(cell.beyond_context for cell in cells),
            limits=Limits(float("inf") if way.keeps_calls else 0, way.logit_rows) if way else None,
        )

    def _progress(self, share: float) -> None:
        # Only where it matters: memory that is given back must be asked for again, page by page.
        if self._way and resident_bytes() > _NEARLY * self._way.bytes:
            give_back()
        self.report.fraction(share)

    def _load(self, cell: Cell, kept: str) -> Failure | None:
        """Have the weights of a cell where they are to be kept; the ones before are let go first."""
        weights = (*cell.weights, kept)
        if weights == self._weights:
            return self._load_failure
        self._loaded, self._load_failure, self._weights = None, None, weights
        _free(cell.device)
        from drift.running.checkpoints import loading

        given = (cell.model, cell.dtype, cell.device, cell.attn_implementation)
        try:
            try:
                self._loaded = loading.load(*given, weights=kept)
            except CheckpointError as error:
                if type(error).__name__ != "UnfitForStreamingError" or cell.kept == "streamed":
                    raise
                self.report.line(f"    {error} Its weights are loaded whole.")
                self._loaded = loading.load(*given)
        except Exception as error:
            self._load_failure = Failure.of(error, "checkpoint")
            _free(cell.device)
        return self._load_failure


def _too_large(way: Footprint, budget: float, device: str) -> Failure:
    """Why a descent is not begun."""
    where = "device" if device == "cuda" else "machine"
    return Failure(
        "memory",
        f"needs about {show_bytes(way.bytes)} of memory even with {way.weights} weights, and {show_bytes(budget)} are "
        f"allowed or free; use fewer tokens or folds, a narrower dtype, or a {where} with more, and say "
        f"--memory {way.bytes / 1e9 * 1.05:.1f}GB if it has that much",
        "refused before anything was computed: " + ", ".join(f"{k} {show_bytes(v)}" for k, v in way.parts.items()),
    )


class _Relay(Silent):
    """Passes on how much is done, and nothing else."""

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._tell = tell

    def fraction(self, done: float, place: str = "") -> None:
        """Pass it on."""
        self._tell(done)


def compute_group(
    todo: Plan, group: Group, *, fail_fast: bool, fraction: Callable[[float], None] = lambda done: None
) -> Outcome:
    """Compute one group in this process; the sweep's state is left to the caller.

    Parameters
    ----------
    todo : Plan
        The plan that the group belongs to.
    group : Group
        What to compute.
    fail_fast : bool
        Whether to stop at the first failure.
    fraction : callable
        Told how much of it is done, 0 to 1.

    Returns
    -------
    Outcome
    """
    run_ = _Run(todo, _Relay(fraction), fail_fast=fail_fast)
    outcome = Outcome()
    try:
        outcome.computing = run_._group(group)
    except _CannotWrite as error:
        run_.stopped = str(error)
    outcome.files, outcome.stopped = run_.files, run_.stopped
    outcome.checked = {file: run_.checked[file] for file in run_.files if file in run_.checked}
    files = {cell.file for cell in group.cells} - set(run_.files)
    outcome.failures = {file: record for file, record in run_.failures.items() if file in files}
    return outcome


def _free(device: str) -> None:
    """Give memory back before more is taken."""
    gc.collect()
    give_back()
    if device == "cuda":
        import torch

        with suppress(RuntimeError):  # a device that is lost must not keep its failure from being recorded
            torch.cuda.empty_cache()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


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


def _fetch_hub(
    todo: Plan, cells: Sequence[Cell], runner: Callable[[Plan], _Run], report: Silent, elsewhere: bool
) -> tuple[Plan, _Run]:
    """Fetch hub models that are not here yet: only then is known what their cells are called."""
    failures: dict[str, Failure] = {}
    fetched = False
    for name in dict.fromkeys(cell.model for cell in cells if cell.checkpoint == "unfetched"):
        try:
            fetching.fetch(name, report.line)
            fetched = True
        except Exception as error:
            failures[name] = Failure.of(error, "checkpoint")
    if fetched:
        todo = plan(todo.config, todo.folder.path, dry_run=elsewhere, memory=todo.memory)
    run_ = runner(todo)
    for cell in todo.cells:
        if cell.model in failures and cell.checkpoint == "unfetched":
            run_.fail(cell, failures[cell.model])
    return todo, run_


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
        Compute cells again that are done or have failed.
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
    with todo.folder.lock():
        # Whatever was seen before, another sweep may have ended since: look under the lock.
        todo = todo.surveyed()
        cells = select(todo, only)

        def runner(made: Plan) -> _Run:
            return _Run(made, report, fail_fast=fail_fast)

        run_ = runner(todo)
        try:
            _tell(todo, report)
            wanted = _to_compute(todo, cells, force=force, retry_failed=retry_failed)
            if any(cell.checkpoint == "unfetched" for cell in wanted):
                todo, run_ = _fetch_hub(todo, wanted, runner, report, elsewhere)
                cells = select(todo, only)
                wanted = _to_compute(todo, cells, force=force, retry_failed=retry_failed)
                wanted = [cell for cell in wanted if cell.checkpoint != "unfetched"]
            for file, reason in todo.survey.broken.items():
                aside = run_.folder.set_aside(file)
                run_.set_aside.append(str(aside))
                report.line(f"warning: {reason}\n    renamed to {aside.name}; the cell is computed again")
            if limit is not None and len(wanted) > limit:
                wanted = wanted[:limit]
            for cell in wanted:
                run_.failures.pop(cell.file, None)
            if wanted:
                estimate = todo.estimate(wanted)
                report.begin(float(estimate["seconds"]))
            groups = todo.groups(wanted)
            if jobs is None and wanted:
                peak = float(todo.estimate(wanted).get("memory_bytes", 0))
                jobs = automatic_jobs(wanted[0].device, len(groups), peak, todo.memory)
            if groups:
                at_once = 1 if elsewhere else min(jobs or 1, len(groups))
                # On GPUs each job measures its own, unless something was said.
                allowed = memory if memory is not None or wanted[0].device != "cpu" else todo.budget("cpu")
                if at_once > 1 and allowed is not None:
                    run_.plan = replace(run_.plan, memory=max(1, allowed // at_once))
                run_.groups(groups, make(jobs or 1, len(groups)))
        except KeyboardInterrupt:
            with _deaf():
                report.end()
                run_.look_again()
                run_.save()
            raise Interrupted(run_.summary(interrupted=True)) from None
        report.end()
        run_.save()
        if limit is not None and not run_.stopped and run_.summary().left:
            run_.stopped = f"--limit {limit}"
        return run_.summary()


def _engine(engine: str | Engine, scheduler: str, report: Silent) -> Callable[[int, int], Engine | None]:
    """What makes the engine once the number of jobs and of groups is known; None is this very process."""
    if scheduler and engine != "dask":
        raise ConfigError(f"--scheduler {scheduler}: goes with --engine dask")
    if callable(engine):
        return lambda jobs, groups: engine
    if engine == "dask":
        from drift.running.sweep.engines.dask import Dask

        made = Dask(scheduler=scheduler, say=report.line)
        return lambda jobs, groups: replace(made, jobs=min(jobs, groups))
    if engine != "local":
        raise ConfigError(f"unknown engine {engine!r}{closest(engine, ENGINES)} Known: {', '.join(ENGINES)}")
    return lambda jobs, groups: partial(in_processes, jobs=jobs) if min(jobs, groups) > 1 else None


def _to_compute(todo: Plan, cells: Sequence[Cell], *, force: bool, retry_failed: bool) -> list[Cell]:
    def wanted(cell: Cell) -> bool:
        state = todo.state(cell)
        return force or state == "pending" or (retry_failed and state == "failed")

    return [cell for cell in cells if wanted(cell)]


def _tell(todo: Plan, report: Silent) -> None:
    """What a person should know before the first cell."""
    for note in todo.survey.notes:
        report.line(f"warning: {note}")
    if todo.survey.cut_off:
        report.line(
            f"note: an earlier run was killed while computing {todo.survey.cut_off}. If it was for lack of memory, "
            "use fewer tokens or a smaller model."
        )
    if todo.survey.strangers:
        count = len(todo.survey.strangers)
        report.line(f"note: {count} cell{'s' * (count > 1)} in {todo.folder} not in this plan: left alone")
    states = [todo.state(cell) for cell in todo.cells]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("done", "failed", "pending"))
    report.line(f"{todo.config.name}: {len(states)} cells in {todo.folder}: {counts}")
