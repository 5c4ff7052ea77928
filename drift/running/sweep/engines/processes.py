"""Groups in processes of their own: several at once, and a worker that dies costs its own cells only."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from drift.running.sweep.cost import cores
from drift.running.sweep.engines.engine import Outcome, Sparingly, Turns
from drift.running.sweep.gpus import cuda_devices
from drift.running.sweep.memory import free

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


def _work(todo: Plan, group: Group, fail_fast: bool, threads: int, gpu: str, parent: int, pipe: Connection) -> None:
    """Compute one group in this process, on the GPU named if any; send how far it is, then what became of it."""
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before torch asks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends its workers
    _watch_parent(parent)
    import torch

    from drift.running.sweep.running import compute_group

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
