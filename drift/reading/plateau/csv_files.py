"""Curves from CSV files that any tool may have written."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd

from drift._bounds import MOST_CSV_BYTES
from drift._outside import OutsideError, read_bytes
from drift.errors import DatasetError
from drift.paths import outside_path
from drift.reading.plateau.curves import Curve

__all__ = ["from_csv"]

# ---------------------------------------------------------------------------------------------- CSV
_COLUMNS = ("document", "step", "value")


def _table(path: Path) -> pd.DataFrame:
    """The rows that are not blank, as text, under the number that each has in the file."""
    try:
        table = pd.read_csv(
            BytesIO(read_bytes(path, MOST_CSV_BYTES)),
            dtype=str, keep_default_na=False, skipinitialspace=True, skip_blank_lines=False,
        )  # fmt: skip
    except OutsideError as error:
        raise DatasetError(f"{path}: cannot be read: {error}") from error
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
    return table.loc[(table != "").any(axis=1)].copy()


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
    path = outside_path(path, DatasetError)
    table = _table(path)
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
