"""Where curves come from: cells and sweeps of drift, and CSV files of any other tool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from drift import dataset
from drift.dataset import SCALARS, VARIABLES, Sweep
from drift.errors import DatasetError
from drift.plateau.verdict import Plateau, plateaus

__all__ = ["MEASURES", "Curve", "frame", "from_cell", "from_csv", "from_sweep", "judge", "measure_values"]

#: Signed or bounded-above variables, and the distance from "no drift" that stands for them.
_DERIVED: dict[str, str] = {
    "nll_gap": "absolute difference of the negative log-likelihood per token, fold against full attention",
    "top1_disagreement": "share of tokens with another most likely next token",
}

#: Measures that can be judged: all that are distances between the two passes, and what they are called.
MEASURES: dict[str, str] = {
    name: variable.long_name
    for name, variable in VARIABLES.items()
    if variable.dtype == "float64"
    and not variable.optional
    and name not in ("hidden_norm", "top1_agreement", "nll_full", "nll_fold")
} | _DERIVED


@dataclass(frozen=True)
class Curve:
    """One curve and where it comes from.

    Attributes
    ----------
    name : str
        What tables call it.
    labels : dict
        Scalar coordinates, measure and layer; empty for a curve from a CSV file.
    values : ndarray
        float64 [document, step].
    caveats : tuple of str
        What was done to the input.
    """

    name: str
    labels: dict[str, Any]
    values: NDArray[np.float64]
    caveats: tuple[str, ...] = ()


def measure_values(ds: xr.Dataset, measure: str, layer: int | str = "last") -> NDArray[np.float64]:
    """Take a curve that can be judged out of a cell: [document, step], at least 0.

    Raises
    ------
    DatasetError
        If there is no such measure or layer.
    """
    if measure not in MEASURES:
        raise DatasetError(f"{measure!r} is not a measure of drift that can be judged; there are {', '.join(MEASURES)}")
    if measure == "nll_gap":
        return np.abs(dataset.curve(ds, "nll_fold") - dataset.curve(ds, "nll_full"))
    if measure == "top1_disagreement":
        return 1 - dataset.curve(ds, "top1_agreement")
    # The contract lets divergences and cosine distances of equal states round to a hair below zero.
    values = dataset.curve(ds, measure, layer)
    return np.where(values < 0, 0.0, values)


def _layers(ds: xr.Dataset, measure: str, layer: int | str) -> list[int | str]:
    """Layers (or blocks) meant: one, or all that there are."""
    dims = VARIABLES[measure].dims if measure in VARIABLES else ()
    dim = next((d for d in ("layer", "block") if d in dims), None)
    if dim is None:
        return ["last"]
    return [int(k) for k in ds[dim].values] if layer == "all" else [layer]


def from_cell(
    ds: xr.Dataset, measures: Sequence[str] = ("hidden_rel_l2",), layer: int | str = "last"
) -> Iterator[Curve]:
    """Yield curves of a cell.

    Parameters
    ----------
    ds : xarray.Dataset
    measures : sequence of str
        Keys of :data:`MEASURES`; ``["all"]`` takes every one.
    layer : int, "last" or "all"
        For measures that have layers (or blocks).
    """
    for measure in MEASURES if list(measures) == ["all"] else measures:
        for one in _layers(ds, measure, layer):
            values = measure_values(ds, measure, one)
            labels = {name: ds[name].item() for name in SCALARS} | {"measure": measure, "layer": one}
            name = "{model} {dtype} {protocol}/{chunk_size} {measure}".format(**labels)
            if _layers(ds, measure, "all") != ["last"]:
                name += f" {one}"
            caveats: tuple[str, ...] = ()
            if labels["reference"] != "full":
                name += f" against {labels['reference']}"
            if labels["reference"] == "previous" and values.shape[1] > 1:
                values, caveats = values[:, 1:], ("the first step has no previous one and was left out",)
            yield Curve(name, labels, values, caveats)


def from_sweep(
    sweep: Sweep, measures: Sequence[str] = ("hidden_rel_l2",), layer: int | str = "last"
) -> Iterator[Curve]:
    """Yield the curves of every cell, in the sweep's order; arguments as for :func:`from_cell`."""
    for ds in sweep:
        yield from from_cell(ds, measures, layer)


def judge(curves: Sequence[Curve], **options: Any) -> list[Plateau]:
    """Decide for each curve; options as for :func:`drift.plateau.plateaus`."""
    found = plateaus([curve.values for curve in curves], **options)
    return [replace(p, caveats=(*c.caveats, *p.caveats)) for c, p in zip(curves, found, strict=True)]


def frame(curves: Sequence[Curve], found: Sequence[Plateau]) -> pd.DataFrame:
    """One row per curve: its name and labels, then the fields of :class:`Plateau` as plain values."""
    rows = [{"curve": c.name, **c.labels, **p.as_dict()} for c, p in zip(curves, found, strict=True)]
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------------- CSV
_COLUMNS = ("document", "step", "value")


def from_csv(path: str | Path) -> list[Curve]:
    """Read curves from a CSV file.

    Parameters
    ----------
    path : str or Path
        Columns ``document``, ``step``, ``value`` and, for several curves, ``curve``; one row per step. Steps are whole
        numbers without gaps. ``nan`` and ``inf`` are values (and findings), an empty cell is an error.

    Raises
    ------
    DatasetError
        If the file cannot be read, a column is missing, a cell does not parse, steps repeat or have gaps, or a value
        is negative. The message names the line.
    """
    path = Path(path)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, skip_blank_lines=False)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, UnicodeError) as error:  # pandas' parser errors are ValueErrors
        raise DatasetError(f"{path}: not a CSV file: {error}") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise DatasetError(f"{path}: rows have more cells than the header")
    table.columns = [str(c).strip().lower() for c in table.columns]
    twice = [c for c in ("curve", *_COLUMNS) if list(table.columns).count(c) > 1]
    if twice:
        raise DatasetError(f"{path}: two columns are called {twice[0]}")
    table = table.loc[(table != "").any(axis=1)].copy()  # blank lines go, the others keep their numbers
    missing = [c for c in _COLUMNS if c not in table.columns]
    if missing:
        raise DatasetError(
            f"{path}: no column {', '.join(missing)}; it has {', '.join(table.columns) or 'none'}. "
            "Wanted: document, step, value, and curve if there are several"
        )
    if table.empty:
        raise DatasetError(f"{path}: no rows below the header")
    if "curve" not in table:
        table["curve"] = path.stem
    for column in ("curve", "document"):
        table[column] = table[column].str.strip()
        blank = (table[column] == "").to_numpy()
        if blank.any():
            raise DatasetError(f"{path}, line {table.index[int(np.argmax(blank))] + 2}: {column} is empty")
    for column, what in (("step", "a whole number"), ("value", "a number")):
        numbers = pd.to_numeric(table[column].str.strip(), errors="coerce").to_numpy(dtype=float)
        if column == "value":
            said_nan = table[column].str.strip().str.lower().isin(("nan", "+nan", "-nan"))
            wrong = np.isnan(numbers) & ~said_nan.to_numpy()
        else:
            wrong = ~np.isfinite(numbers) | (numbers != np.round(np.where(np.isfinite(numbers), numbers, 0)))
        if wrong.any():
            row = int(np.argmax(wrong))
            line = table.index[row] + 2
            raise DatasetError(f"{path}, line {line}: {column} is {table[column].iloc[row]!r}, not {what}")
        table[column] = numbers
    negative = (table["value"] < 0).to_numpy()
    if negative.any():
        row = int(np.argmax(negative))
        line = table.index[row] + 2
        raise DatasetError(
            f"{path}, line {line}: value is {table['value'].iloc[row]:g}, but drift is a distance and cannot be "
            "negative; take the absolute value of a signed quantity first"
        )
    repeated = table.duplicated(["curve", "document", "step"]).to_numpy()
    if repeated.any():
        line = table.index[int(np.argmax(repeated))] + 2
        row = table.iloc[int(np.argmax(repeated))]
        raise DatasetError(
            f"{path}, line {line}: step {row['step']:.0f} of curve {row['curve']!r}, document "
            f"{row['document']!r} stands here for the second time"
        )
    return [_csv_curve(path, str(name), rows) for name, rows in table.groupby("curve", sort=False)]


def _csv_curve(path: Path, name: str, rows: pd.DataFrame) -> Curve:
    documents = []
    for document, part in rows.groupby("document", sort=False):
        part = part.sort_values("step")
        steps = part["step"].to_numpy()
        gaps = np.flatnonzero(np.diff(steps) != 1)
        if gaps.size:
            at = int(gaps[0])
            raise DatasetError(
                f"{path}: curve {name!r}, document {document!r}: step {steps[at]:.0f} is followed by "
                f"{steps[at + 1]:.0f}; steps must be consecutive, their noise being judged as a series"
            )
        documents.append((document, steps[0], part["value"].to_numpy(dtype=float)))
    first = {start for _, start, _ in documents}
    if len(first) > 1:
        raise DatasetError(
            f"{path}: the documents of curve {name!r} begin at different steps ({min(first):.0f} to {max(first):.0f})"
        )
    shortest, longest = min(len(v) for *_, v in documents), max(len(v) for *_, v in documents)
    caveats: tuple[str, ...] = ()
    if shortest < longest:
        caveats = (f"documents have {shortest} to {longest} steps: the first {shortest} are used",)
    return Curve(name, {}, np.stack([v[:shortest] for *_, v in documents]), caveats)
