"""Groups in processes of their own: several at once, and a worker that dies costs its own cells only."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Protocol

from drift.sweep.cost import cores
from drift.sweep.gpus import cuda_devices
from drift.sweep.memory import free

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from drift.sweep.planning import Group, Plan

__all__ = ["Engine", "Outcome", "automatic_jobs", "in_processes"]


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


class Engine(Protocol):
    """What computes groups somewhere else than in the sweep's own process."""

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
        """Compute groups; yield each with its outcome as it ends, each of them once.

        Parameters
        ----------
        todo : Plan
            The plan that the groups belong to.
        groups : sequence of Group
            In the order in which they are to be begun.
        fail_fast : bool
            Whether a group ends at its first failure.
        begin : callable
            Told of each group as it is begun.
        fraction : callable
            Told, from time to time, how much of a group that is under way is done, 0 to 1.
        go_on : callable
            Once it says no, only what is under way is finished.
        """
        ...


def automatic_jobs(device: str, groups: int, peak_bytes: float, memory: int | None = None) -> int:
    """How many groups to compute at once: one a core on a CPU, as far as memory goes; one a GPU.

    Small chunks leave a second thread of the same pass little to do, so one thread a group is the better use of a core.
    """
    if device != "cpu":
        return max(1, min(len(cuda_devices()), groups))
    available = memory or free("cpu") or 0
    fitting = int(0.8 * available // peak_bytes) if available and peak_bytes else 1
    return max(1, min(cores(), groups, fitting))


class Turns:
    """Who uses which of several devices: each taker gets one that fewest others use.

    Parameters
    ----------
    names : sequence of str
        The devices; without any, what is taken is the empty string.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._users = dict.fromkeys(names, 0)

    def take(self) -> str:
        """Take a device."""
        if not self._users:
            return ""
        name = min(self._users, key=lambda each: self._users[each])
        self._users[name] += 1
        return name

    def leave(self, name: str) -> None:
        """Give a device back."""
        if name in self._users:
            self._users[name] -= 1


def _watch_parent(parent: int) -> None:
    """End with the parent, however it ends: a killed sweep must not leave workers behind."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Sparingly:
    """Pass on how much is done, but only what a person would notice: a hundred times at most.

    Parameters
    ----------
    tell : callable
        Told the part that is done, 0 to 1.
    """

    def __init__(self, tell: Callable[[float], object]) -> None:
        self._tell = tell
        self._told = 0.0

    def __call__(self, done: float) -> None:
        """Pass it on, or not."""
        if done >= self._told + 0.01 or (done >= 1 and done > self._told):
            self._told = done
            self._tell(done)


def _work(todo: Plan, group: Group, fail_fast: bool, threads: int, gpu: str, parent: int, pipe: Connection) -> None:
    """Compute one group in this process, on the GPU named if any; send how far it is, then what became of it."""
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before torch asks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends its workers
    _watch_parent(parent)
    import torch

    from drift.sweep.running import compute_group

    torch.set_num_threads(threads)
    try:
        outcome = compute_group(todo, group, fail_fast=fail_fast, fraction=Sparingly(pipe.send))
    except Exception as error:
        outcome = Outcome(died=f"its process broke off: {type(error).__name__}: {error}")
    pipe.send(outcome)
    pipe.close()


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
    context = multiprocessing.get_context("spawn")
    threads = max(1, cores() // jobs)
    gpus = Turns(cuda_devices())
    waiting = list(groups)
    running: dict[Connection, tuple[Group, SpawnProcess, float, str]] = {}
    try:
        while running or (waiting and go_on()):
            while waiting and len(running) < jobs and go_on():
                group = waiting.pop(0)
                receive, send = context.Pipe(duplex=False)
                gpu = gpus.take() if group.cells[0].device == "cuda" else ""
                process = context.Process(
                    target=_work, args=(todo, group, fail_fast, threads, gpu, os.getpid(), send), daemon=True
                )
                process.start()
                send.close()
                running[receive] = (group, process, time.monotonic(), gpu)
                begin(group)
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                group, process, began, gpu = running[ready]
                try:
                    message: float | Outcome = ready.recv()
                except (EOFError, OSError):  # it closed its end without a last word, or in the middle of one
                    process.join()
                    message = Outcome(died=_cause(process.exitcode))
                if not isinstance(message, Outcome):
                    fraction(group, message)
                    continue
                outcome = message
                del running[ready]
                process.join()
                ready.close()
                gpus.leave(gpu)
                outcome.seconds = time.monotonic() - began
                yield group, outcome
    finally:
        for _, process, *_ in running.values():
            with suppress(OSError):
                process.kill()
            process.join()


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ": often the system, for lack of memory" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}"
    return f"its process ended with exit code {code}"
