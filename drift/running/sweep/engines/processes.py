"""Groups in processes of their own: several at once, and a worker that dies costs its own cells only."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from drift._cores import cores
from drift.running.sweep.engines.engine import Sparingly, Turns, computer
from drift.running.sweep.gpus import cuda_devices
from drift.running.sweep.memory import free
from drift.running.sweep.outcome import Outcome

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from drift.running.sweep.groups import Group
    from drift.running.sweep.planning import Plan

__all__ = ["automatic_jobs", "in_processes"]


def automatic_jobs(device: str, groups: int, peak_bytes: float, memory: int | None = None) -> int:
    """How many groups to compute at once: one a core on a CPU, as far as memory goes; one a GPU.

    Small chunks leave a second thread of the same pass little to do, so one thread a group is the better use of a core.
    """
    if device != "cpu":
        return max(1, min(len(cuda_devices()), groups))
    available = memory or free("cpu") or 0
    fitting = int(0.8 * available // peak_bytes) if available and peak_bytes else 1
    return max(1, min(cores(), groups, fitting))


def _watch_parent(parent: int) -> None:
    """End with the parent, however it ends: a killed sweep must not leave workers behind."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(todo: Plan, fail_fast: bool, threads: int, gpu: str, parent: int, pipe: Connection) -> None:
    """Compute the groups that come through the pipe, on the GPU named if any, until it is closed.

    Of each it sends how far it is, then what became of it.
    """
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before torch asks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends its workers
    _watch_parent(parent)
    made = computer(threads)
    gc.freeze()  # what was imported: to look through it takes a third of a second at the end of each group
    with suppress(EOFError):
        while True:
            group = pipe.recv()
            try:
                outcome = made.compute(todo, group, fail_fast=fail_fast, fraction=Sparingly(pipe.send))
            except Exception as error:
                outcome = Outcome(died=f"its process broke off: {type(error).__name__}: {error}")
            pipe.send(outcome)
    pipe.close()


@dataclass
class _Worker:
    """A process that lives from group to group, and what it is at."""

    process: SpawnProcess
    pipe: Connection
    gpu: str
    group: Group | None = None
    began: float = 0.0

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``, of the group that it is at."""
        return self.group.cells[0].device if self.group else ""

    def heard(self) -> float | Outcome:
        """What it has to say: how far it is, or what became of its group."""
        try:
            message: float | Outcome = self.pipe.recv()
        except (EOFError, OSError):  # it closed its end without a last word, or in the middle of one
            self.process.join()
            message = Outcome(died=_cause(self.process.exitcode))
        if isinstance(message, Outcome):
            message.seconds = time.monotonic() - self.began
        return message


class _Pool:
    """Processes that compute one group at a time each, and live on until nothing is left for them.

    A process in which anything failed is ended, and the next group gets a new one: a CUDA device that faulted, or
    memory in pieces, must not cost the cells that come after.
    """

    def __init__(self, todo: Plan, jobs: int, fail_fast: bool) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._given = (todo, fail_fast, max(1, cores() // jobs))
        self._jobs = jobs
        self._gpus = Turns(cuda_devices())
        self._idle: list[_Worker] = []
        self._ended: list[_Worker] = []
        self.at_work: dict[Connection, _Worker] = {}

    def give(self, group: Group) -> None:
        """Have a group computed, by a process that is idle or a new one."""
        gpu = self._gpus.take() if group.cells[0].device == "cuda" else ""
        worker = self._idle_on(gpu)
        if worker is not None:
            with suppress(OSError):  # it died while it had nothing to do; nobody has missed it
                worker.pipe.send(group)
                self._begin(worker, group)
                return
            self._end(worker)
        while self._idle and len(self._idle) + len(self.at_work) >= self._jobs:
            self._end(self._idle.pop(0))
        worker = self._start(gpu)
        with suppress(OSError):  # it died at once: waiting for it finds out why
            worker.pipe.send(group)
        self._begin(worker, group)

    def _idle_on(self, gpu: str) -> _Worker | None:
        found = next((worker for worker in self._idle if worker.gpu == gpu), None)
        if found is not None:
            self._idle.remove(found)
        return found

    def _start(self, gpu: str) -> _Worker:
        todo, fail_fast, threads = self._given
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(todo, fail_fast, threads, gpu, os.getpid(), theirs), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours, gpu)

    def _begin(self, worker: _Worker, group: Group) -> None:
        worker.group, worker.began = group, time.monotonic()
        self.at_work[worker.pipe] = worker

    def done(self, worker: _Worker, outcome: Outcome) -> None:
        """Take a process back that has ended a group."""
        del self.at_work[worker.pipe]
        if worker.device == "cuda":
            self._gpus.leave(worker.gpu)
        worker.group = None
        if outcome.died or outcome.failures:
            self._end(worker)
        else:
            self._idle.append(worker)

    def dismiss(self) -> None:
        """Let the processes go that have nothing to do."""
        while self._idle:
            self._end(self._idle.pop())

    def _end(self, worker: _Worker) -> None:
        """Close its pipe: that is how a process is told that no more will come."""
        worker.pipe.close()
        self._ended.append(worker)

    def kill(self) -> None:
        """End all of them, whatever they are at."""
        for worker in (*self.at_work.values(), *self._idle, *self._ended):
            with suppress(OSError):
                worker.process.kill()
            worker.process.join()
            worker.pipe.close()


def in_processes(
    todo: Plan,
    groups: Sequence[Group],
    *,
    jobs: int,
    fail_fast: bool,
    begin: Callable[[Group], None],
    fraction: Callable[[Group, float], None],
    go_on: Callable[[], bool],
) -> Generator[tuple[Group, Outcome], None, None]:
    """Compute groups in at most `jobs` processes at once: the :class:`Engine` of one machine.

    Parameters
    ----------
    todo, groups, fail_fast, begin, fraction, go_on
        See :class:`Engine`.
    jobs : int
        Processes at once; they share the cores evenly.
    """
    pool = _Pool(todo, jobs, fail_fast)
    waiting = list(groups)
    try:
        while pool.at_work or (waiting and go_on()):
            while waiting and len(pool.at_work) < jobs and go_on():
                group = waiting.pop(0)
                pool.give(group)
                begin(group)
            if not (waiting and go_on()):
                pool.dismiss()
            for ready in wait(list(pool.at_work)):
                assert isinstance(ready, Connection)
                worker = pool.at_work[ready]
                assert worker.group is not None
                group, message = worker.group, worker.heard()
                if isinstance(message, Outcome):
                    pool.done(worker, message)
                    yield group, message
                else:
                    fraction(group, message)
    finally:
        pool.kill()


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ": often the system, for lack of memory" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}"
    return f"its process ended with exit code {code}"
