"""Cells of one sweep as one object that a person can select from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd
import xarray as xr

from drift import _arguments as arguments
from drift._accessors import sweep_accessor
from drift.dataset.contract import SCALARS, SCHEMA_VERSION, VARIABLES, required, schema_of
from drift.dataset.rungs import rung_name
from drift.dataset.task_contract import TASK_SCALARS, is_task
from drift.errors import DatasetError

__all__ = ["Controls", "Sweep", "Tasks", "scalar"]

_SCHEMA = int(SCHEMA_VERSION)


class Controls(Sequence[xr.Dataset]):
    """Cells that test the instrument, sorted.

    A sweep and all that :meth:`Sweep.derive` makes of it have the same object. It cannot be changed, and is equal only
    to itself: a reader may keep beside it what it worked out of it.
    """

    def __init__(self, cells: Iterable[xr.Dataset] = ()) -> None:
        self._cells = tuple(sorted(cells, key=_order))

    def __len__(self) -> int:
        return len(self._cells)

    @overload
    def __getitem__(self, place: int) -> xr.Dataset: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[xr.Dataset]: ...
    def __getitem__(self, place: int | slice) -> xr.Dataset | Sequence[xr.Dataset]:
        return self._cells[place]

    def __repr__(self) -> str:
        return f"<{len(self)} control cells>"


class Tasks(Controls):
    """Task cells, sorted as other cells are, and then by task and length."""

    def __init__(self, cells: Iterable[xr.Dataset] = ()) -> None:
        self._cells = tuple(
            sorted(cells, key=lambda ds: (scalar(ds, "model"), scalar(ds, "task"), scalar(ds, "tokens"), _order(ds)))
        )

    def __repr__(self) -> str:
        return f"<{len(self)} task cells>"

    @property
    def table(self) -> pd.DataFrame:
        """One row per cell: its scalar coordinates, its size and its file."""
        rows = [
            {
                **{name: scalar(ds, name) for name in TASK_SCALARS},
                "documents": ds.sizes["document"],
                "questions": ds.sizes["question"],
                "path": ds.encoding.get("source", ""),
            }
            for ds in self
        ]
        return pd.DataFrame(rows, columns=[*TASK_SCALARS, "documents", "questions", "path"])


class Sweep:
    """The cells of a sweep, to select from.

    Attributes
    ----------
    cells : list of xarray.Dataset
        Sorted by model, protocol, unit roundoff (coarse first) and chunk size.
    plan : dict
        ``sweep.json``, or empty.
    failures : list of dict
        Cells that the sweep could not compute, with their ``reason``.
    problems : dict of str to str
        Files that could not be read, and why. Never silently dropped.
    left_out : list of str
        Files of the folder that ``sweep.json`` does not name.
    folder : pathlib.Path or None
    controls : Controls
        Cells that test the instrument, not the fold (they have the attribute ``control``); no part of `cells`.
    tasks : Tasks
        Cells that ask a task instead of measuring drift (:mod:`drift.dataset.task_contract`); no part of `cells`.
    """

    def __init__(
        self,
        cells: Sequence[xr.Dataset],
        *,
        controls: Sequence[xr.Dataset] = (),
        tasks: Sequence[xr.Dataset] = (),
        plan: Mapping[str, Any] | None = None,
        failures: Sequence[Mapping[str, Any]] = (),
        problems: Mapping[str, str] | None = None,
        left_out: Sequence[str] = (),
        folder: Path | None = None,
    ) -> None:
        self.cells = sorted(cells, key=_order)
        self.controls = Controls(controls)
        self.tasks = Tasks(tasks)
        self.plan = dict(plan or {})
        self.failures = [dict(f) for f in failures]
        self.problems = dict(problems or {})
        self.left_out = list(left_out)
        self.folder = folder

    @classmethod
    def of(cls, cells: Iterable[xr.Dataset], **told: Any) -> Sweep:
        """Make a sweep of cells of every kind.

        Parameters
        ----------
        cells : iterable of xarray.Dataset
        **told
            What else the sweep is told, as for the class.
        """
        listed = list(cells)
        others = [ds for ds in listed if not is_task(ds.variables)]
        return cls(
            [ds for ds in others if "control" not in ds.attrs],
            controls=[ds for ds in others if "control" in ds.attrs],
            tasks=[ds for ds in listed if is_task(ds.variables)],
            **told,
        )

    def __len__(self) -> int:
        return len(self.cells)

    def __iter__(self) -> Iterator[xr.Dataset]:
        return iter(self.cells)

    def __repr__(self) -> str:
        where = f" in {self.folder}" if self.folder else ""
        where += f" and {len(self.tasks)} task cells" if self.tasks else ""
        axes = ", ".join(f"{n} {self.values(n)}" for n in ("model", "dtype", "protocol", "chunk_size"))
        return f"<Sweep of {len(self)} cells{where}: {axes}; {len(self.problems)} unreadable files>"

    @property
    def drift(self) -> Any:
        """Verdicts on every cell: ``sweep.drift.plateau()``, as ``ds.drift.plateau()`` for one."""
        return sweep_accessor(self)

    @property
    def notes(self) -> list[str]:
        """Say in sentences which cells were written under another schema version, and what that means."""
        written: dict[int, list[xr.Dataset]] = {}
        for ds in (*self.cells, *self.controls):
            written.setdefault(schema_of(ds.attrs) or 0, []).append(ds)
        return [_schema_note(schema, cells) for schema, cells in sorted(written.items()) if schema != _SCHEMA]

    def values(self, axis: str) -> list[Any]:
        """Return the distinct values of a scalar coordinate, in the cells' order."""
        self._known(axis)
        return list(dict.fromkeys(scalar(ds, axis) for ds in self.cells))

    @property
    def table(self) -> pd.DataFrame:
        """One row per cell: its scalar coordinates, its size and its file."""
        rows = [
            {
                **_scalars(ds),
                "documents": ds.sizes["document"],
                "steps": ds.sizes["step"],
                "tokens": int(ds["token_stop"].values[-1]),
                "path": ds.encoding.get("source", ""),
            }
            for ds in self.cells
        ]
        return pd.DataFrame(rows, columns=[*SCALARS, "documents", "steps", "tokens", "path"])

    def sel(self, **axes: object) -> Sweep:
        """Keep the cells whose scalar coordinates have the given values.

        Parameters
        ----------
        **axes
            ``model="..."``, ``chunk_size=[64, 256]`` and so on: a value or a list of values.

        Raises
        ------
        DatasetError
            If there is no such axis, or no such cell.
        """
        kept = self.cells
        for axis, wanted in axes.items():
            self._known(axis)
            several = isinstance(wanted, Sequence | np.ndarray | set | frozenset) and not isinstance(wanted, str)
            values = list(wanted) if several else [wanted]  # type: ignore[call-overload]
            if axis == "dtype":
                values = [rung_name(v) if isinstance(v, str) else v for v in values]
            unknown = [v for v in values if v not in self.values(axis)]
            if unknown:
                raise DatasetError(f"no cell has {axis} = {unknown[0]!r}; there are {_listing(self.values(axis))}")
            kept = [ds for ds in kept if scalar(ds, axis) in values]
        if not kept:
            wish = ", ".join(f"{k}={v!r}" for k, v in axes.items())
            raise DatasetError(f"no cell matches {wish or 'anything: the sweep is empty'}. Cells:\n{self._listing()}")
        return self.derive(kept)

    def derive(self, cells: Iterable[xr.Dataset]) -> Sweep:
        """Return a sweep of other cells, and of everything else that this one has: the one way to make one of another.

        Parameters
        ----------
        cells : iterable of xarray.Dataset
            Some of the cells, or what was made of them; none at all is no error.
        """
        derived = copy(self)
        derived.cells = sorted(cells, key=_order)
        return derived

    def only(self) -> xr.Dataset:
        """Return the one cell there is.

        Raises
        ------
        DatasetError
            If there is none, or more than one.
        """
        if len(self) != 1:
            raise DatasetError(f"expected exactly one cell, found {len(self)}:\n{self._listing()}")
        return self.cells[0]

    def frame(self, variable: str, **selection: object) -> pd.DataFrame:
        """Return a variable of all cells as a tidy table.

        Parameters
        ----------
        variable : str
            A row of :data:`VARIABLES`.
        **selection
            Values of dimensions (``layer=3``, ``layer="last"`` for the final norm, ``block="last"``,
            ``quantile=0.5``, ``step=-1`` for the last step; lists keep several) and of scalar coordinates
            (``model="..."``), as in :meth:`sel`.

        Returns
        -------
        pandas.DataFrame
            Rows of the cells that have the variable. Columns: the scalar coordinates,
            ``document``, ``step``, ``token_start``, ``token_stop``, those of
            ``layer``, ``block`` and ``quantile`` that the variable has and that were not selected by a single value,
            and ``value``.

        Raises
        ------
        DatasetError
            If there is no such variable, axis or value.
        """
        if arguments.text("variable", variable) not in VARIABLES:
            raise DatasetError(f"there is no variable {variable!r}; known are {', '.join(VARIABLES)}")
        dims = VARIABLES[variable].dims
        chosen = {k: v for k, v in selection.items() if k in dims}
        sweep = self.sel(**{k: v for k, v in selection.items() if k not in dims}) if self.cells else self
        frames = [_tidy(ds, variable, chosen) for ds in sweep.cells if variable in ds.data_vars]
        if frames:
            return pd.concat(frames, ignore_index=True)
        free = [d for d in dims if d not in ("document", "step")]
        return pd.DataFrame(columns=[*SCALARS, "document", "step", "token_start", "token_stop", *free, "value"])

    def combine(self, variable: str) -> xr.DataArray:
        """Stack a variable of all cells along a new dimension ``cell``.

        Axes are joined by label (``join="outer"``): where a cell has no such step, layer or block, the value is NaN.
        The scalar coordinates become coordinates along ``cell``.
        """
        if arguments.text("variable", variable) not in VARIABLES:
            raise DatasetError(f"there is no variable {variable!r}; known are {', '.join(VARIABLES)}")
        if not self.cells:
            raise DatasetError("the sweep is empty: there is nothing to combine")
        # token_start, token_stop and layer_kind mean something else in every cell: they stay with the cells
        arrays = [
            ds[variable].drop_vars(["token_start", "token_stop", "layer_kind"], errors="ignore")
            for ds in self
            if variable in ds.data_vars
        ]
        if not arrays:
            raise DatasetError(f"no cell has {variable}")
        return xr.concat(
            arrays,
            dim=pd.RangeIndex(len(arrays), name="cell"),
            coords=list(SCALARS),
            compat="equals",
            join="outer",
            combine_attrs="drop_conflicts",
        )

    def _known(self, axis: str) -> None:
        if arguments.text("axis", axis) not in SCALARS:
            raise DatasetError(f"there is no axis {axis!r} to select cells by; axes are {', '.join(SCALARS)}")

    def _listing(self) -> str:
        rows = ["  {model} {dtype} {protocol} chunk {chunk_size}".format(**_scalars(ds)) for ds in self.cells]
        return "\n".join(rows[:40] + ([f"  ... and {len(rows) - 40} more"] if len(rows) > 40 else [])) or "  (none)"


def _schema_note(schema: int, cells: Sequence[xr.Dataset]) -> str:
    one = len(cells) == 1
    said = f"{len(cells)} cell{'s' * (not one)} of schema version {schema} (this drift: {_SCHEMA})"
    said += " was read" if one else " were read"
    if schema > _SCHEMA:
        names = sorted({str(name) for ds in cells for name in ds.data_vars if name not in VARIABLES})
        return f"{said} for what is known here; not known, and not shown: {_listing(names)}."
    later = [name for name in required(_SCHEMA) if any(name not in ds.data_vars for ds in cells)]
    return f"{said} for what {'it holds' if one else 'they hold'}; measured only since: {_listing(later)}."


def scalar(ds: xr.Dataset, axis: str) -> Any:
    """Value of a cell's coordinate that has no dimension: text or number."""
    return ds.variables[axis].values.item()  # `ds[axis]` brings all coordinates along: twenty times as slow


def _scalars(ds: xr.Dataset) -> dict[str, Any]:
    return {name: scalar(ds, name) for name in SCALARS}


def _order(ds: xr.Dataset) -> tuple[Any, ...]:
    s = _scalars(ds)
    return (s["model"], s["protocol"], -s["unit_roundoff"], s["dtype"], s["chunk_size"], *(str(v) for v in s.values()))


def _listing(values: Sequence[object]) -> str:
    return ", ".join(repr(v) for v in values) or "none"


def _tidy(ds: xr.Dataset, variable: str, selection: Mapping[str, object]) -> pd.DataFrame:
    array = ds[variable]
    for dim, wanted in selection.items():
        labels = ds[dim].values
        several = isinstance(wanted, Sequence | np.ndarray) and not isinstance(wanted, str)
        places = [_place(ds, dim, labels, w) for w in (wanted if several else [wanted])]  # type: ignore[attr-defined]
        array = array.isel({dim: places if several else places[0]})
    single = [d for d in selection if d not in array.dims and d in ("layer", "block", "quantile")]
    array = array.drop_vars([*SCALARS, "layer_kind", *single], errors="ignore")
    kept = [d for d in ("document", "layer", "block", "step", "quantile") if d in array.dims]
    if kept:
        frame = array.transpose(*kept).to_dataframe(name="value").reset_index()
    else:
        frame = pd.DataFrame({"value": [array.item()]})
        for name in ("document", "step", "token_start", "token_stop"):
            frame[name] = array[name].item()
    scalars = _scalars(ds)
    for name in reversed(SCALARS):
        frame.insert(0, name, scalars[name])
    free = [d for d in kept if d not in ("document", "step")]
    return frame[[*SCALARS, "document", "step", "token_start", "token_stop", *free, "value"]]


def _place(ds: xr.Dataset, dim: str, labels: np.ndarray, wanted: object) -> int:
    if isinstance(wanted, str) and wanted == "last":
        return len(labels) - 1
    if dim == "step" and isinstance(wanted, int | np.integer) and -len(labels) <= wanted < 0:
        return len(labels) + int(wanted)
    if isinstance(wanted, int | float | np.number):
        hits = np.flatnonzero(np.isclose(labels, float(wanted), rtol=0, atol=1e-12))
        if len(hits):
            return int(hits[0])
    if dim == "quantile":
        raise DatasetError(f"there is no quantile {wanted!r}; there are {labels.tolist()}")
    gaps = (np.diff(labels) > 1).any()  # in a thinned cell
    there = _listing(labels.tolist()) if gaps else f"{labels[0]} to {labels[-1]}"
    raise DatasetError(f"{scalar(ds, 'model')} has no {dim} {wanted!r}; there are {there}")
