"""The room where both wings meet: what a cell is, how it is written and read, and what a folder of cells is. No torch.

The names below are loaded when they are first used: who only needs the rungs or a hash does not wait for xarray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drift.dataset.building import build
    from drift.dataset.choosing import DISTURBED, ONE_STEP, folds, is_fold, keep, left_out
    from drift.dataset.comparing import VOLATILE_ATTRS, VOLATILE_VARIABLES, same_data
    from drift.dataset.contract import (
        QUANTILES,
        REFERENCES,
        REQUIRED_ATTRS,
        SCALARS,
        SCHEMA_VERSION,
        VARIABLES,
        Variable,
    )
    from drift.dataset.curves import curve, floor_curves
    from drift.dataset.files import TEMPORARY_SUFFIX, read, read_attributes, write
    from drift.dataset.hashing import canonical_json, content_hash
    from drift.dataset.labels import Label
    from drift.dataset.opening import open_sweep
    from drift.dataset.rungs import RUNGS, Rung, rung
    from drift.dataset.sweep import Sweep
    from drift.dataset.task_building import build_task
    from drift.dataset.task_contract import TASK_SCALARS, TASK_SCHEMA_VERSION, TASK_VARIABLES, is_task
    from drift.dataset.thinning import thin, thin_sweep
    from drift.dataset.validating import validate

_HOMES = {
    "building": ("build",),
    "comparing": ("VOLATILE_ATTRS", "VOLATILE_VARIABLES", "same_data"),
    "contract": (
        "QUANTILES", "REFERENCES", "REQUIRED_ATTRS", "SCALARS", "SCHEMA_VERSION", "VARIABLES", "Variable",
    ),
    "curves": ("curve", "floor_curves"),
    "files": ("TEMPORARY_SUFFIX", "read", "read_attributes", "write"),
    "choosing": ("DISTURBED", "ONE_STEP", "folds", "is_fold", "keep", "left_out"),
    "hashing": ("canonical_json", "content_hash"),
    "labels": ("Label",),
    "opening": ("open_sweep",),
    "rungs": ("RUNGS", "Rung", "rung"),
    "sweep": ("Sweep",),
    "task_building": ("build_task",),
    "task_contract": ("TASK_SCALARS", "TASK_SCHEMA_VERSION", "TASK_VARIABLES", "is_task"),
    "thinning": ("thin", "thin_sweep"),
    "validating": ("validate",),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "DISTURBED",
    "ONE_STEP",
    "QUANTILES",
    "REFERENCES",
    "REQUIRED_ATTRS",
    "RUNGS",
    "SCALARS",
    "SCHEMA_VERSION",
    "TASK_SCALARS",
    "TASK_SCHEMA_VERSION",
    "TASK_VARIABLES",
    "TEMPORARY_SUFFIX",
    "VARIABLES",
    "VOLATILE_ATTRS",
    "VOLATILE_VARIABLES",
    "Label",
    "Rung",
    "Sweep",
    "Variable",
    "build",
    "build_task",
    "canonical_json",
    "content_hash",
    "curve",
    "floor_curves",
    "folds",
    "is_fold",
    "is_task",
    "keep",
    "left_out",
    "open_sweep",
    "read",
    "read_attributes",
    "rung",
    "same_data",
    "thin",
    "thin_sweep",
    "validate",
    "write",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
