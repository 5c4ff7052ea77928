"""A sweep: a grid of cells, planned, computed, resumed (``python -m drift.sweep``).

``config``
    what was asked for: axes, grids, presets, overrides.
``cells``, ``groups``, ``resolving``, ``planning``, ``cost``, ``memory``
    which cells that makes, which of them share a descent, what they will cost. No torch.
``state``
    the folder: what it holds, the lock, ``sweep.json``.
``running``, ``ledger``, ``progress``, ``outcome``
    carrying it out, what is done and what failed, what a person sees meanwhile, and how it ended.
``computing``
    one group in this process. Torch.
``engines``
    groups in this process, in others of this machine, and as tasks of Dask.
``checking``
    is a folder what it should be (``--check``). No torch.
"""

from __future__ import annotations

from drift.running.sweep.cells import Cell
from drift.running.sweep.config import Config, Grid, load_config, presets
from drift.running.sweep.groups import Group
from drift.running.sweep.outcome import Exit, Interrupted, Summary
from drift.running.sweep.planning import Plan, plan
from drift.running.sweep.running import run
from drift.running.sweep.selecting import select

__all__ = [
    "Cell",
    "Config",
    "Exit",
    "Grid",
    "Group",
    "Interrupted",
    "Plan",
    "Summary",
    "load_config",
    "plan",
    "presets",
    "run",
    "select",
]
