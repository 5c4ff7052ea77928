"""Tasks, one module each.

Every :class:`~drift.running.tasks.base.Task` of this package that has a name is found by itself: adding a task is
adding a file.
"""

from __future__ import annotations

from functools import cache

from drift.errors import ConfigError
from drift.running.options import chosen, named_classes, read_options
from drift.running.tasks.base import Task

__all__ = ["available", "parse"]


@cache
def _registry() -> dict[str, type[Task]]:
    return named_classes(__name__, __path__, Task, "task")  # type: ignore[type-abstract]


def available() -> tuple[str, ...]:
    """Names of all tasks, sorted."""
    return tuple(sorted(_registry()))


def parse(label: str | Task) -> Task:
    """Read a task from its label.

    Parameters
    ----------
    label : str or Task
        A name, with options in parentheses where there are any: ``needle``, ``tracking(chains=2,hops=3)``.

    Raises
    ------
    ConfigError
        If the name or an option is unknown, or an option's value will not do.
    """
    if isinstance(label, Task):
        return label
    if not isinstance(label, str):
        raise ConfigError(f"A task is a label such as 'needle', or a Task, not {type(label).__name__}.")
    kind, said = chosen(label, _registry(), "task")
    return kind(**read_options(label, kind, said, "task"))
