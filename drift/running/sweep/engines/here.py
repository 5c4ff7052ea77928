"""Groups one after the other in this very process."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from drift.running.sweep.engines.engine import computer
from drift.running.sweep.outcome import Outcome

if TYPE_CHECKING:
    from drift.running.sweep.groups import Group
    from drift.running.sweep.planning import Plan

__all__ = ["in_this_process"]


def in_this_process(
    todo: Plan,
    groups: Sequence[Group],
    *,
    say: Callable[[str], None],
    fail_fast: bool,
    begin: Callable[[Group], None],
    fraction: Callable[[Group, float], None],
    go_on: Callable[[], bool],
) -> Generator[tuple[Group, Outcome], None, None]:
    """Compute groups in this process: the :class:`~drift.running.sweep.engines.engine.Engine` of one job.

    Parameters
    ----------
    todo, groups, fail_fast, begin, fraction, go_on
        See :class:`~drift.running.sweep.engines.engine.Engine`.
    say : callable
        Told in one line each what a person should know meanwhile.
    """
    made = None
    for group in groups:
        if not go_on():
            return
        begin(group)
        began = time.monotonic()
        made = made or computer()
        outcome = made.compute(todo, group, fail_fast=fail_fast, fraction=partial(fraction, group), say=say)
        outcome.seconds = time.monotonic() - began
        yield group, outcome
