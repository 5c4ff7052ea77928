"""Execute the notebooks of a report, one after the other or several at once."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from drift.reading.report.notebooks import NotebookFailure, comes_with_drift, execute_notebook, own_kernel
from drift.reading.report.pages import page_title

__all__ = ["Job", "execute"]


@dataclass(frozen=True)
class Job:
    """A notebook to run on a sweep.

    Attributes
    ----------
    name : str
        Of its page, without suffix.
    notebook : pathlib.Path
    source : pathlib.Path
        The sweep.
    parameters : mapping
        For the notebook, beside the sweep.
    about : str
        Name of the evidence that it is run on; empty for the report's own sweep.
    """

    name: str
    notebook: Path
    source: Path
    parameters: Mapping[str, Any]
    about: str = ""

    def title(self, executed: Any) -> str:
        """Title of the page."""
        text = page_title(executed, self.notebook.stem)
        return f"{text} (evidence: {self.about})" if self.about else text


@dataclass(frozen=True)
class _Outcome:
    """What became of a job: the executed notebook, or why there is none; and the seconds it took."""

    seconds: float
    notebook: Any = None
    failure: str = ""


def execute(
    jobs: Sequence[Job], room: Path, target: Path, report: Callable[[str], None], at_once: int = 1
) -> tuple[list[tuple[Job, Any]], list[NotebookFailure]]:
    """Run notebooks with their parameters; one that stops does not stop the others.

    Parameters
    ----------
    jobs : sequence of Job
    room : pathlib.Path
        Where what a notebook had got to is left when it stops.
    target : pathlib.Path
        Where that will be moved to.
    report : callable
        Gets a line of progress at a time.
    at_once : int
        Notebooks that are run at once.

    Returns
    -------
    executed : list of (Job, notebook)
        In the order of ``jobs``.
    failed : list of NotebookFailure
    """
    outcomes: dict[int, _Outcome] = {}
    with own_kernel() as kernel:
        run = partial(_run, room=room, target=target, kernel=kernel)
        for job in jobs:
            if not comes_with_drift(job.notebook):
                report(
                    f"{job.notebook}: not one of drift's own; a notebook is code, and is run with all that you may do"
                )
        at_once = min(at_once, len(jobs))
        for place, outcome in _together(run, jobs, at_once, report) if at_once > 1 else _in_turn(run, jobs, report):
            outcomes[place] = outcome
            became = "FAILED after" if outcome.failure else "done in"
            report(f"{jobs[place].name}: {became} {outcome.seconds:.0f} s")
    ended = [(job, outcomes[place]) for place, job in enumerate(jobs)]
    failed = [NotebookFailure(outcome.failure) for _, outcome in ended if outcome.failure]
    return [(job, outcome.notebook) for job, outcome in ended if not outcome.failure], failed


_Numbered = tuple[int, Job]


def _run(numbered: _Numbered, *, room: Path, target: Path, kernel: str) -> tuple[int, _Outcome]:
    place, job = numbered
    started, name = time.monotonic(), f"{job.name}.partial.ipynb"
    given = {**job.parameters, "sweep": str(job.source.resolve())}
    try:
        notebook = execute_notebook(job.notebook, given, room / name, kernel, target / name)
    except NotebookFailure as error:
        return place, _Outcome(time.monotonic() - started, failure=str(error))
    return place, _Outcome(time.monotonic() - started, notebook)


def _in_turn(
    run: Callable[[_Numbered], tuple[int, _Outcome]], jobs: Sequence[Job], report: Callable[[str], None]
) -> Iterator[tuple[int, _Outcome]]:
    for place, job in enumerate(jobs):
        report(f"{job.name}: running on {job.source} ...")
        yield run((place, job))


def _together(
    run: Callable[[_Numbered], tuple[int, _Outcome]], jobs: Sequence[Job], at_once: int, report: Callable[[str], None]
) -> Iterator[tuple[int, _Outcome]]:
    """Run jobs in processes of their own: papermill and what it stands on were not made for threads."""
    report(f"{', '.join(job.name for job in jobs)}: running, {at_once} at once ...")
    # A kernel ends by itself when the process that started it has.
    with multiprocessing.get_context("spawn").Pool(at_once, _left_alone) as pool:
        yield from pool.imap_unordered(run, list(enumerate(jobs)))


def _left_alone() -> None:
    """Leave Ctrl-C to the process that waits: it ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
