"""Read ``sweep.json``: what a folder says of its cells. A broken entry takes no other along."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drift._outside import Form, OutsideError, read_json, shaped

__all__ = ["PLAN", "PlanFile", "read_plan"]

PLAN = "sweep.json"
_SINGLE = {"name": Form.TEXT, "description": Form.TEXT, "at_work_on": Form.TEXT, "config": Form.GRIDS}


@dataclass
class PlanFile:
    """What could be read of a ``sweep.json``.

    Attributes
    ----------
    record : dict
        The file's object; of ``name``, ``description``, ``at_work_on`` and ``config`` those that are what they should
        be, and none of its lists.
    cells : list of dict
        Sound entries, of each cell at most one file.
    failures : list of dict or None
        Sound entries; None where the file has no such list.
    groups : list of dict
    problems : list of str
        What is not sound, by its place.
    """

    record: dict[str, Any] = field(default_factory=dict)
    cells: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] | None = None
    groups: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def grids(self) -> list[dict[str, Any]]:
        """Grids of the configuration; none where there is no sound one."""
        return list(self.record.get("config", {}).get("grids", ()))


def read_plan(path: Path) -> PlanFile:
    """Read a ``sweep.json``.

    Raises
    ------
    OSError
        If it cannot be read; :class:`FileNotFoundError` if it is not there.
    OutsideError
        If it is no JSON object.
    """
    raw = read_json(path, Form.OBJECT)
    made = PlanFile({k: v for k, v in raw.items() if k not in ("cells", "failures", "groups")})
    for name, form in _SINGLE.items():
        if raw.get(name) is None:
            made.record.pop(name, None)
        elif problem := _problem(name, raw[name], form):
            made.problems.append(problem)
            del made.record[name]
    cells = raw.get("cells", [])
    if isinstance(cells, dict):
        cells = [{"file": name, **entry} if isinstance(entry, dict) else entry for name, entry in cells.items()]
    made.cells = list(_sound("cells", cells, Form.PLAN_CELL, made.problems))
    if "failures" in raw:
        told = raw["failures"]
        if isinstance(told, list):  # what failed may be told by a text alone
            told = [{"reason": entry} if isinstance(entry, str) else entry for entry in told]
        made.failures = list(_sound("failures", told, Form.PLAN_FAILURE, made.problems))
    made.groups = list(_sound("groups", raw.get("groups", []), Form.PLAN_GROUP, made.problems))
    return made


def _sound(name: str, entries: Any, form: Form, problems: list[str]) -> Iterator[dict[str, Any]]:
    if not isinstance(entries, list):
        problems.append(f"{name} is no list")
        return
    for place, entry in enumerate(entries):
        if problem := _problem(f"{name}[{place}]", entry, form):
            problems.append(problem)
        else:
            yield entry


def _problem(name: str, value: Any, form: Form) -> str:
    try:
        shaped(value, form)
    except OutsideError as error:
        return f"{name}: {error}"
    return ""
