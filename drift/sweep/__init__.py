"""A sweep: a grid of cells, planned, computed, resumed (``python -m drift.sweep``).

``config``
    what was asked for: axes, grids, presets, overrides.
``planning``, ``cost``
    which cells that makes, which of them share a descent, what they will cost. No torch.
``state``
    the folder: what it holds, the lock, ``sweep.json``.
``running``, ``progress``, ``outcome``
    carrying it out, what a person sees meanwhile, and how it ended.
``workers``, ``dask_engine``
    the engines: groups in processes of this machine, and as tasks of Dask.
``checking``
    is a folder what it should be (``--check``). No torch.
``__main__``
    the command line.
"""

from drift.sweep.config import Config, Grid, load_config, presets
from drift.sweep.outcome import Exit, Interrupted, Summary
from drift.sweep.planning import Cell, Group, Plan, plan
from drift.sweep.running import run, select

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
