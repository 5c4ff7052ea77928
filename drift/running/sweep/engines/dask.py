"""Groups as tasks of Dask: a cluster of this machine's processes, or one that a scheduler elsewhere holds together.

A task computes one group and writes its cells into the sweep's folder, which all machines share; what travels back is
paths and hashes. A task finds out for itself what is there already, so running it twice (Dask does, when a worker is
lost) costs time and changes nothing. Imported only when asked for: ``distributed`` is an extra.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from drift._cores import cores
from drift.errors import ConfigError
from drift.paths import outside_path
from drift.running.sweep.engines.engine import Sparingly, computer
from drift.running.sweep.engines.receipts import Receipt, difference, settle, sha256_or_nothing
from drift.running.sweep.outcome import Outcome
from drift.running.sweep.state import Folder, Survey
from drift.shown import clipped

if TYPE_CHECKING:
    from distributed import Client, Future

    from drift.running.sweep.groups import Group
    from drift.running.sweep.planning import Plan

__all__ = ["Dask", "compute", "resources"]

_CONNECT_SECONDS = 20.0
_ADDRESS = re.compile(
    r"((tcp|tls|ws|wss|ucx|ucxx)://)?([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+(%\w+)?\]):(?P<port>[0-9]{1,5})|inproc://[\w./:-]+",
    re.ASCII,
)
_PORTS = range(1, 1 << 16)
_WONDER_SECONDS = 15.0
# The switches that decide a pass's numbers belong to the process: threads of a worker must not mix two passes.
_ALONE = threading.Lock()


# ---------------------------------------------------------------- on the worker


def compute(
    todo: Plan,
    group: Group,
    *,
    stale: Mapping[str, str],
    fail_fast: bool,
    threads: int | None,
    here: str,
    begun: Callable[[], None],
    fraction: Callable[[float], None] = lambda done: None,
) -> Receipt:
    """Compute what is missing of a group, in this process.

    Parameters
    ----------
    todo : Plan
        The plan, its folder an absolute path.
    group : Group
        What to compute.
    stale : mapping of str to str
        sha256 of files that are there, sound, and to be computed again all the same.
    fail_fast : bool
        Whether to stop at the first failure.
    threads : int, optional
        Threads for torch; its own choice by default.
    here : str
        Where names of files begin that are not absolute; the worker's own place is kept where there is no such folder.
    begun : callable
        Told when the turn of this group has come.
    fraction : callable
        Told how much of it is done, 0 to 1.

    Returns
    -------
    Receipt
    """
    with _ALONE, contextlib.ExitStack() as stack:
        if os.path.isdir(here):
            stack.enter_context(contextlib.chdir(here))
        begun()
        folder = todo.folder
        found = folder.survey({cell.file: cell.hash for cell in group.cells})
        there = {file for file in found.done if sha256_or_nothing(folder.cell(file)) != stale.get(file)}
        receipt = Receipt()
        missing = tuple(cell for cell in group.cells if cell.file not in there)
        written: list[str] = []
        if missing:
            receipt.stopped = difference(missing[0])
            if not receipt.stopped:
                left = replace(group, cells=missing)
                outcome = computer(threads).compute(todo, left, fail_fast=fail_fast, fraction=fraction)
                written, receipt.failures, receipt.stopped = outcome.files, outcome.failures, outcome.stopped
                receipt.computing = 0.0 if there else outcome.computing
        receipt.cells = [
            (str(folder.cell(file)), sha256_or_nothing(folder.cell(file))) for file in (*sorted(there), *written)
        ]
        return receipt


def _task(todo: Plan, group: Group, topic: str, number: int, threads: int | None, **given: Any) -> Receipt:
    import dask
    from distributed import get_worker

    worker = get_worker()
    # In a task xarray would guard the writing of a cell with a lock of the cluster, which files in memory cannot have.
    try:
        with dask.config.set(scheduler="synchronous"):
            return compute(
                todo,
                group,
                threads=threads or worker.state.nthreads,
                begun=lambda: worker.log_event(topic, (number, 0.0)),
                fraction=Sparingly(lambda done: worker.log_event(topic, (number, done))),
                **given,
            )
    except Exception as error:
        return Receipt(broke=f"{type(error).__name__}: {error}")


def dask_setup(worker: Any) -> None:
    """Leave Ctrl-C, which reaches the whole process group, to the parent; Dask calls this in a local worker."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


# ---------------------------------------------------------------- at home


def resources(group: Group) -> dict[str, float]:
    """What a worker must offer to be given a group."""
    return {"GPU": 1} if group.cells[0].device == "cuda" else {}


class _What(Enum):
    """What can be heard of a task."""

    BEGUN = auto()
    UNDER_WAY = auto()
    ENDED = auto()


class _Event(NamedTuple):
    what: _What
    number: int
    done: float


class _Tasks:
    """The tasks of one run, by the number of their group, and what is heard of them.

    Attributes
    ----------
    left : dict of int to Future
        Those that have not ended.
    began : dict of int to float
        When each was begun, the last time that it was.
    """

    def __init__(self, client: Client, folder: Folder, groups: Sequence[Group]) -> None:
        self.folder = folder
        self.left: dict[int, Future] = {}
        self.began: dict[int, float] = {}
        self._client = client
        self._groups = groups
        self._topic = f"drift-{secrets.token_hex(8)}"
        self._events: SimpleQueue[_Event] = SimpleQueue()
        client.subscribe_topic(self._topic, self._heard)

    def _heard(self, event: tuple[float, tuple[int, float]]) -> None:
        number, done = event[1]
        self._events.put(_Event(_What.UNDER_WAY if done else _What.BEGUN, number, done))

    def submit(self, todo: Plan, fail_fast: bool, threads: int | None) -> None:
        """Have all groups computed, the first of them first."""
        # What is there already, sound, and to be computed all the same.
        there = todo.survey.done | todo.survey.again.keys()
        # Only what a task needs travels: a plan of a thousand cells would, a thousand times.
        slim = replace(todo, folder=self.folder, cells=(), survey=Survey())
        for number, group in enumerate(self._groups):
            stale = {
                cell.file: sha256_or_nothing(self.folder.cell(cell.file)) for cell in group.cells if cell.file in there
            }
            self.left[number] = self._client.submit(
                _task,
                slim,
                group,
                self._topic,
                number,
                threads=threads,
                stale=stale,
                fail_fast=fail_fast,
                here=os.getcwd(),
                key=(self._topic, number),
                resources=resources(group) or None,
                priority=-number,
                pure=False,
            )
            self.left[number].add_done_callback(
                lambda _, number=number: self._events.put(_Event(_What.ENDED, number, 1.0))
            )

    def next_event(self) -> _Event | None:
        """What is heard next of a task that is left; None where nothing is for a second."""
        while True:
            try:
                event = self._events.get(timeout=1.0)
            except Empty:
                return None
            if event.number in self.left:
                return event

    def noted(self, event: _Event) -> float:
        """Take note of when a task was begun; returns the seconds since then."""
        if event.what is _What.BEGUN or event.number not in self.began:
            self.began[event.number] = time.monotonic()
        return time.monotonic() - self.began[event.number]

    def cancel(self, *, idle_only: bool = False) -> None:
        """Give up what is left, or what of it has not begun."""
        numbers = [number for number in self.left if not (idle_only and number in self.began)]
        self._client.cancel([self.left.pop(number) for number in numbers], force=True)


def _is_address(text: str) -> bool:
    found = _ADDRESS.fullmatch(text)
    return found is not None and (found["port"] is None or int(found["port"]) in _PORTS)


@dataclass
class Dask:
    """The engine: computes groups as Dask tasks.

    Attributes
    ----------
    jobs : int
        Workers of the local cluster; they share the cores evenly. Without meaning where there is a scheduler.
    scheduler : str
        Address of an existing scheduler (``tcp://host:8786``), or of its scheduler file; empty for a local cluster.
    say : callable
        Told in one line each what a person should know.
    """

    jobs: int = 1
    scheduler: str = ""
    say: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        try:
            import distributed  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "the engine dask needs the package `distributed`: pip install 'drift[dask]'. "
                "Several processes of one machine need nothing: --jobs N"
            ) from error
        # Looked at before anything is connected to: what is no address is sought for as long as what is one.
        if self.scheduler and not _is_address(self.scheduler) and not self._file().is_file():
            raise ConfigError(
                f"--scheduler {clipped(self.scheduler)}: is neither an address (tcp://HOST:8786) nor a scheduler file. "
                "Start one with `dask scheduler`, and name the address that it prints"
            )

    def _file(self) -> Path:
        return outside_path(self.scheduler, said="--scheduler")

    def __call__(
        self,
        todo: Plan,
        groups: Sequence[Group],
        *,
        fail_fast: bool,
        begin: Callable[[Group], None],
        fraction: Callable[[Group, float], None],
        go_on: Callable[[], bool],
    ) -> Generator[tuple[Group, Outcome], None, None]:
        """See :class:`~drift.running.sweep.engines.engine.Engine`."""
        gpu = any(resources(group) for group in groups)
        if gpu and not self.scheduler and self.jobs > 1:
            raise ConfigError(
                "--engine dask without --scheduler does not spread jobs over GPUs: use --jobs N alone, which does, or "
                "start one worker for each GPU (docs/many_machines.md)"
            )
        with self._client(gpu) as client:
            tasks = _Tasks(client, Folder(todo.folder.path.absolute()), groups)
            try:
                tasks.submit(todo, fail_fast, None if self.scheduler else max(1, cores() // self.jobs))
                asked, wondered = time.monotonic(), False
                while tasks.left:
                    event = tasks.next_event()
                    if event is None:
                        if not (tasks.began or wondered) and time.monotonic() > asked + _WONDER_SECONDS:
                            wondered = True
                            self._wonder(client, gpu)
                        continue
                    group = groups[event.number]
                    if event.number not in tasks.began:
                        begin(group)
                    elif event.what is _What.BEGUN:
                        self.say(f"    {group.subject}: begun again: its worker was lost")
                    seconds = tasks.noted(event)
                    if event.what is _What.UNDER_WAY:
                        fraction(group, event.done)
                    elif event.what is _What.ENDED:
                        outcome = self._outcome(tasks.left.pop(event.number), tasks.folder, group)
                        outcome.seconds = seconds
                        yield group, outcome
                        if not go_on():
                            tasks.cancel(idle_only=True)
            finally:
                # Nobody answers once the scheduler is gone; the folder says what was done.
                with contextlib.suppress(Exception):
                    tasks.cancel()

    def _outcome(self, future: Future, folder: Folder, group: Group) -> Outcome:
        from distributed import KilledWorker

        if future.status == "finished":
            return settle(future.result(), folder, group)
        if future.status == "error":
            error = future.exception()
            if isinstance(error, KilledWorker):
                count = error.allowed_failures + 1
                return Outcome(
                    died=f"{count} workers died of it, one after the other: often the system, for lack of memory"
                )
            if isinstance(error, ImportError):
                return Outcome(
                    stopped=f"a worker cannot import what it needs ({error}): install the same drift on every machine"
                )
            return Outcome(died=f"its task failed on the worker: {type(error).__name__}: {error}")
        return Outcome(stopped=f"the Dask scheduler {self.scheduler or 'of this machine'} is gone, or dropped the task")

    @contextlib.contextmanager
    def _client(self, gpu: bool) -> Iterator[Client]:
        import dask
        from distributed import Client, LocalCluster

        if self.scheduler:
            where: dict[str, Any] = {"address": self.scheduler}
            if not _is_address(self.scheduler):
                where = {"scheduler_file": str(self._file())}
            try:
                client = Client(**where, timeout=_CONNECT_SECONDS, set_as_default=False)
            except (OSError, ValueError, TypeError, ImportError) as error:
                raise ConfigError(
                    f"--scheduler {self.scheduler}: cannot be reached ({error or type(error).__name__}). Start one "
                    "with `dask scheduler`, and name the address that it prints (tcp://HOST:8786)"
                ) from error
            with client:
                several = sum(threads > 1 for threads in client.nthreads().values())
                if several:
                    self.say(
                        f"note: {several} workers have several threads. A worker computes one group at a time with all "
                        "its threads, and may keep others waiting: `dask worker --nthreads 1 --nworkers N` is better"
                    )
                yield client
            return
        settings = {
            # Left alone, it would set the number of threads in the environment of this very process.
            "distributed.nanny.pre-spawn-environ": {},
            "distributed.worker.profile.enabled": False,
        }
        with (
            dask.config.set(settings),
            LocalCluster(
                n_workers=self.jobs,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
                resources={"GPU": 1} if gpu else None,
                preload=[__name__],
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client

    def _wonder(self, client: Client, gpu: bool) -> None:
        """Say what may be wrong where nothing begins; more workers may come, so it is no error."""
        workers = len(client.nthreads())
        hint = "" if workers else ": start some with `dask worker ADDRESS --nthreads 1`"
        if workers and gpu:
            hint = ": cells on cuda wait for a worker with the resource GPU (`dask worker ADDRESS --resources GPU=1`)"
        self.say(f"note: {workers or 'no'} worker{'s' * (workers != 1)} connected, and nothing has begun yet{hint}")
