"""Levels, curves and profiles of cells as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import xarray as xr

from drift import dataset
from drift.dataset.contract import SCALARS
from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.reading import controls
from drift.reading.amplitudes import holding
from drift.reading.cells import cell_identity
from drift.reading.plateau.deciding import plateau
from drift.reading.statistics.intervals import ALPHA
from drift.reading.statistics.levels import collapse_documents, geometric_mean, level
from drift.reading.statistics.slope import log_log
from drift.reading.statistics.windows import late_part

__all__ = [
    "EXTRA_COLUMNS",
    "Figures",
    "curves",
    "depth",
    "figures",
    "late_mean",
    "late_nonfinite",
    "slopes",
    "table",
    "tokens",
]

_GROUP = ("model", "protocol")
EXTRA_COLUMNS = ("attn_implementation", "device", "tokens", "documents")


# ---------------------------------------------------------------------------------------------- one curve
@dataclass(frozen=True)
class Figures:
    """What one cell's curve looks like. NaN where there is nothing to say.

    Attributes
    ----------
    documents, steps : int
    first : float
        Geometric mean over documents of the first step.
    level : float
        Geometric mean past the first quarter of the chain, first within, then over documents.
    level_low, level_high : float
        Smallest and largest document.
    ratio : float
        `level` / `first`.
    growth, growth_low, growth_high : float
        Per doubling of chain depth, as a fraction, and its interval: see :class:`drift.reading.plateau.model.Plateau`.
    verdict, reason : str
        Whether the curve is a plateau, and why that is undetermined.
    zeros, nonfinite : int
        Values of the whole curve that are not positive, and that are NaN or Inf: counted, left out of the above.
    points : int
        All values.
    """

    documents: int
    steps: int
    first: float
    level: float
    level_low: float
    level_high: float
    ratio: float
    growth: float
    growth_low: float
    growth_high: float
    verdict: str
    reason: str
    zeros: int
    nonfinite: int
    points: int

    def without_verdict(self, failed: Sequence[str]) -> Figures:
        """Return the description alone, controls of the instrument having failed."""
        return replace(self, verdict="not drawn", reason="controls failed")


def figures(values: np.ndarray) -> Figures:
    """Describe one curve.

    Parameters
    ----------
    values : ndarray [document, step]
        Non-negative; zeros, NaN and Inf are counted.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or not values.size:
        raise DatasetError(f"a curve is an array [document, step], not one of shape {values.shape}")
    by_document = level(values)
    usable = by_document[np.isfinite(by_document)]
    first, late = geometric_mean(values[:, 0]), geometric_mean(by_document)
    # The contract lets divergences and cosine distances of equal states round to a hair below zero.
    judged = plateau(np.where(values < 0, 0.0, values), alpha=ALPHA)
    finite = np.isfinite(values)
    return Figures(
        documents=values.shape[0],
        steps=values.shape[1],
        first=first,
        level=late,
        level_low=float(usable.min()) if usable.size else math.nan,
        level_high=float(usable.max()) if usable.size else math.nan,
        ratio=late / first if first > 0 and math.isfinite(late) else math.nan,
        growth=judged.growth_per_doubling,
        growth_low=judged.growth_interval[0],
        growth_high=judged.growth_interval[1],
        verdict=judged.verdict.value,
        reason=judged.reason.value if judged.reason else "",
        zeros=int((finite & (values <= 0)).sum()),
        nonfinite=int((~finite).sum()),
        points=int(values.size),
    )


# ---------------------------------------------------------------------------------------------- from cells
def table(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> pd.DataFrame:
    """Describe the curve of every cell, one row each.

    Returns
    -------
    pandas.DataFrame
        The scalar coordinates, ``tokens``, the fields of :class:`Figures`, and ``roundoffs``: the level in units of
        the unit roundoff.
    """
    rows = []
    gate = controls.gate(sweep)
    for ds in holding(sweep, measure):
        found = gate.let(figures(dataset.curve(ds, measure, layer)))
        rows.append({**cell_identity(ds), **asdict(found), "roundoffs": found.level / ds["unit_roundoff"].item()})
    columns = [*SCALARS, "tokens", *Figures.__dataclass_fields__, "roundoffs"]
    return pd.DataFrame(rows, columns=columns)


def slopes(levels: pd.DataFrame) -> pd.DataFrame:
    """Slope of level against unit roundoff, per model, protocol and chunk size.

    These are slopes of points, without an interval: no verdict. :mod:`drift.reading.ladder` judges.

    Parameters
    ----------
    levels : pandas.DataFrame
        From :func:`table`.

    Returns
    -------
    pandas.DataFrame
        ``slope`` (log-log, least squares; NaN with fewer than two unit roundoffs at which the level is positive), the
        ``coarsest`` and ``finest`` precision, their ``level_coarsest`` and ``level_finest``, the ``dtypes`` that went
        into the slope, and how many were left out because their level is zero or not finite.
    """
    keys = [*_GROUP, "chunk_size", *EXTRA_COLUMNS]
    rows = []
    for key, group in levels.groupby(keys, sort=False):
        group = group.sort_values("unit_roundoff", ascending=False)
        good = group[np.isfinite(group["level"]) & (group["level"] > 0)]
        slope = math.nan
        if good["unit_roundoff"].nunique() >= 2:
            slope = log_log(good["unit_roundoff"], good[["level"]]).value
        rows.append(
            {
                **dict(zip(keys, key, strict=True)),
                "slope": slope,
                "coarsest": group["dtype"].iloc[0],
                "finest": group["dtype"].iloc[-1],
                "level_coarsest": group["level"].iloc[0],
                "level_finest": group["level"].iloc[-1],
                "fold_roundoff": group["unit_roundoff"].iloc[0] / group["unit_roundoff"].iloc[-1],
                "dtypes": ", ".join(good["dtype"]),
                "left_out": len(group) - len(good),
            }
        )
    columns = [*keys, "slope", "coarsest", "finest", "level_coarsest", "level_finest", "fold_roundoff", "dtypes"]
    return pd.DataFrame(rows, columns=[*columns, "left_out"])


def curves(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> pd.DataFrame:
    """Collapse documents: per cell and step the geometric mean and the range, for drawing.

    Returns
    -------
    pandas.DataFrame
        Scalar coordinates, ``step``, ``token`` (end of the chunk), ``value``, ``low``, ``high`` (over documents, of
        what is positive and finite), ``zeros``, ``nonfinite``.
    """
    frames = []
    for ds in holding(sweep, measure):
        frame = collapse_documents(dataset.curve(ds, measure, layer))
        frame.insert(0, "step", ds["step"].values)
        frame.insert(1, "token", ds["token_stop"].values)
        frames.append(frame.assign(**cell_identity(ds)))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def depth(sweep: Sweep, measure: str = "hidden_rel_l2") -> pd.DataFrame:
    """Late level per layer (or block), collapsed over documents.

    Parameters
    ----------
    measure : str
        A variable on layers or blocks, without quantiles.

    Returns
    -------
    pandas.DataFrame
        Scalar coordinates, ``layer`` (block numbers for what a block caches), ``layers`` (how many blocks there are),
        ``value``, ``low``, ``high``, ``zeros``, ``nonfinite``.
    """
    frames = []
    for ds in sweep:
        array = ds[measure]
        dim = "layer" if "layer" in array.dims else "block"
        values = array.transpose("document", dim, "step").values
        late = np.stack([level(values[:, k, :]) for k in range(values.shape[1])], axis=1)
        frame = collapse_documents(late)
        late_values = late_part(values)
        frame["zeros"] = (late_values == 0).sum(axis=(0, 2))
        frame["nonfinite"] = (~np.isfinite(late_values)).sum(axis=(0, 2))
        frame.insert(0, "layer", ds[dim].values)
        frames.append(frame.assign(layers=int(ds["block"].values[-1]), **cell_identity(ds)))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def tokens(sweep: Sweep, by: str = "step") -> pd.DataFrame:
    """Quantiles over tokens of the drift of the hidden state.

    Parameters
    ----------
    by : "step" or "layer"
        Per step after the final norm, or per layer past the first quarter of the chain.

    Returns
    -------
    pandas.DataFrame
        Scalar coordinates, ``quantile``, `by`, ``value`` and counts; geometric mean over documents (and late steps).
    """
    if by not in ("step", "layer"):
        raise DatasetError(f"tokens are shown by 'step' or by 'layer', not by {by!r}")
    frames = []
    for ds in sweep:
        array = ds["hidden_rel_l2_token"].transpose("document", "layer", "step", "quantile").values
        for k, q in enumerate(ds["quantile"].values):
            if by == "step":
                frame = collapse_documents(array[:, -1, :, k])
            else:
                late = late_part(array[..., k])
                frame = collapse_documents(late.transpose(0, 2, 1).reshape(-1, late.shape[1]))
            frame.insert(0, by, ds[by].values)
            frames.append(frame.assign(quantile=q, **cell_identity(ds)))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def late_mean(ds: xr.Dataset, measure: str) -> float:
    """Mean of the finite late values of a measure without layers; NaN if there are none."""
    late = late_part(dataset.curve(ds, measure))
    late = late[np.isfinite(late)]
    return float(late.mean()) if late.size else math.nan


def late_nonfinite(ds: xr.Dataset, *measures: str) -> int:
    """Count the late values of measures of logits that are NaN or Inf although tokens were compared."""
    count = 0
    for measure in measures:
        tokens = dataset.curve(ds, "target_count" if measure.startswith("nll_") else "logit_count")
        bad = ~np.isfinite(dataset.curve(ds, measure)) & (tokens > 0)
        count += int(late_part(bad).sum())
    return count
