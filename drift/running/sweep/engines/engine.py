"""What an engine is: groups in, outcomes out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Protocol

from drift.running.sweep.outcome import Outcome

if TYPE_CHECKING:
    from drift.running.sweep.computing import Computer
    from drift.running.sweep.groups import Group
    from drift.running.sweep.planning import Plan

__all__ = ["Engine", "Sparingly", "Turns", "computer"]


def computer(threads: int | None = None) -> Computer:
    """What computes groups in this process.

    Torch is imported here and no earlier: the process that only hands groups out, or shows a plan, does without.

    Parameters
    ----------
    threads : int, optional
        Threads for torch; its own choice by default.
    """
    from drift.running.sweep.computing import Computer

    return Computer(threads)


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
