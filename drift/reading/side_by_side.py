"""The readings of the protocol side by side: how far each drifts, whether it is flat, what it costs in NLL.

A published protocol can be read in several ways, and they differ by orders of magnitude. :func:`side_by_side` puts what
was measured of each into one table, and :func:`reproduced` says which reading reproduces which published claim, by the
audit of :mod:`drift.claims` and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from drift import dataset
from drift.dataset.sweep import Sweep
from drift.reading import cells, controls, summary
from drift.reading.claims import model
from drift.reading.statistics.intervals import finite_means
from drift.reading.statistics.windows import late_part
from drift.reading.summary import levels
from drift.reading.summary.describing import lost_words
from drift.reading.wording import numbers
from drift.reading.wording.numbers import percent

__all__ = ["by_reading", "chains", "reading_sentences", "reproduced", "shown", "side_by_side"]


def chains(sweep: Sweep) -> Sweep:
    """Keep, per protocol, model and precision, the deepest chain of a fold against full attention."""
    return _chosen(sweep, cells.deepest)


def _chosen(sweep: Sweep, choose: Callable[[Sweep], list[xr.Dataset]]) -> Sweep:
    part = dataset.folds(sweep, generating=True)
    chosen = {id(ds) for p in part.values("protocol") for ds in choose(part.sel(protocol=p))}
    return dataset.keep(part, lambda ds: id(ds) in chosen)


def _gap(ds: xr.Dataset) -> np.ndarray:
    """Change of NLL past the first quarter of the chain: [document], NaN where none was measured."""
    return finite_means(late_part(dataset.curve(ds, "nll_fold") - dataset.curve(ds, "nll_full")))


def side_by_side(sweep: Sweep, measure: str = "hidden_rel_l2", layer: int | str = "last") -> pd.DataFrame:
    """Describe the chains of every protocol that C1 is judged by, one row each.

    Those are :func:`drift.reading.cells.judged_chains`, so that verdicts here are counted as there.

    Returns
    -------
    pandas.DataFrame
        The columns of :func:`drift.reading.summary.levels.table` (levels of the measure itself), ``floors``
        (the level in units of how far full attention is from itself on other kernels, see
        :mod:`drift.reading.controls`; NaN where that was not measured), ``nll_full``, ``nll_fold``, ``nll_gap`` with
        ``gap_low`` and ``gap_high`` (smallest and largest document), ``nll_nonfinite`` (values of NLL past the first
        quarter that are NaN or Inf, which those leave out), and ``token_agreement`` where the chain is one of generated
        tokens.
    """
    part = _chosen(sweep, cells.judged_chains)
    table = summary.table(part, measure, layer)
    checked = controls.evaluate(sweep, measure, layer)
    rows: list[dict[str, Any]] = []
    for ds in part:
        gap = _gap(ds)
        known = gap[np.isfinite(gap)]
        agreement = math.nan
        if "token_agreement" in ds.data_vars:
            agreement = float(np.nanmean(dataset.curve(ds, "token_agreement")))
        rows.append(
            {
                "floors": checked.in_floors(ds, layer),
                "nll_full": levels.late_mean(ds, "nll_full"),
                "nll_fold": levels.late_mean(ds, "nll_fold"),
                "nll_gap": float(known.mean()) if known.size else math.nan,
                "gap_low": float(known.min()) if known.size else math.nan,
                "gap_high": float(known.max()) if known.size else math.nan,
                "nll_nonfinite": levels.late_nonfinite(ds, "nll_full", "nll_fold"),
                "token_agreement": agreement,
            }
        )
    table = pd.concat([table, pd.DataFrame(rows)], axis=1)
    return table.sort_values(["protocol", "model", "unit_roundoff"], ascending=[True, True, False], ignore_index=True)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Write the table for reading."""
    signed = table["nll_gap"].map(lambda v: "–" if math.isnan(v) else f"{v:+.2g}")
    columns = {
        "protocol": table["protocol"],
        "model": table["model"],
        "precision": table["dtype"],
        "chunk size": table["chunk_size"],
        "steps": table["steps"],
        "documents": table["documents"],
        "level": table["level"].map(lambda v: numbers.number(v, 3)),
        "level / other kernels": table["floors"].map(lambda v: "–" if math.isnan(v) else numbers.number(v)),
        "verdict": [v.replace("_", " ") + (f" ({r})" if r else "")
                    for v, r in zip(table["verdict"], table["reason"], strict=True)],
        "growth per doubling": table["growth"].map(lambda v: "–" if math.isnan(v) else percent(v)),
        "NLL, full": table["nll_full"].map(lambda v: "–" if math.isnan(v) else f"{v:.3f}"),
        "NLL, fold": table["nll_fold"].map(lambda v: "–" if math.isnan(v) else f"{v:.3f}"),
        "change of NLL": signed,
        "non-finite": table["nonfinite"] + table["nll_nonfinite"],
    }  # fmt: skip
    if table["token_agreement"].notna().any():
        columns["same token [%]"] = table["token_agreement"].map(lambda v: "–" if math.isnan(v) else f"{100 * v:.1f}")
    return pd.DataFrame(columns)


def by_reading(table: pd.DataFrame) -> pd.DataFrame:
    """Write a row per reading: how far it drifts, what its chains do, and what that costs."""
    rows = []
    for protocol, mine in table.groupby("protocol", sort=False):
        bad = lost_words(int(mine["nonfinite"].sum() + mine["nll_nonfinite"].sum()))
        rows.append(
            {
                "reading": protocol,
                "level": ", ".join(_levels(mine)),
                "chains": f"{_models(mine)}: {_verdicts(mine)}",
                "change of NLL [nat per token]": numbers.range_words(mine["nll_gap"], write=numbers.signed_number)
                + bad.rstrip("."),
            }
        )
    return pd.DataFrame(rows)


def _levels(rows: pd.DataFrame) -> list[str]:
    return [f"{numbers.range_words(group['level'])} in {dtype}" for dtype, group in rows.groupby("dtype", sort=False)]


def _verdicts(rows: pd.DataFrame) -> str:
    kinds = [v.replace("_", " ") for v in rows["verdict"]]
    return ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds))


def _models(rows: pd.DataFrame) -> str:
    """Count chains, and the models that they are of: a model is in it once per precision and chunk size."""
    chains, models = len(rows), rows["model"].nunique()
    return f"{chains} chain{'s' * (chains != 1)} of {models} model{'s' * (models != 1)}"


def reading_sentences(table: pd.DataFrame) -> list[str]:
    """Say per reading how far it drifts, what its chains do, and what that costs."""
    said = []
    for protocol, rows in table.groupby("protocol", sort=False):
        bad = int(rows["nonfinite"].sum() + rows["nll_nonfinite"].sum())
        said.append(
            f"{protocol}: level {', '.join(_levels(rows))}; of {_models(rows)} {_verdicts(rows)}; change of NLL "
            f"{numbers.range_words(rows['nll_gap'], write=numbers.signed_number)} nat per token." + lost_words(bad)
        )
    return said or ["There are no cells to describe."]


_TESTED = ("C1", "C2", "C3", "C4")


def reproduced(found: model.Audit) -> list[str]:
    """Say which reading reproduces which published claim, and whether any reproduces them all."""
    if found.withheld:
        return [f"No reading is said to reproduce anything: {found.controls}"]
    summaries = [s for s in found.summaries if s.claim.key in _TESTED and s.protocol and not s.claim.ours]
    said = []
    for claim in dict.fromkeys(s.claim for s in summaries):
        mine = [s for s in summaries if s.claim == claim]
        words = {
            model.Status.SUPPORTED: "reproduced under",
            model.Status.REFUTED: "contradicted under",
            model.Status.UNDETERMINED: "not decided under",
            model.Status.NOT_TESTED: "not tested under",
        }
        parts = []
        for status, word in words.items():
            names = [s.protocol for s in mine if s.status is status]
            if names:
                parts.append(f"{word} {', '.join(names)}")
        said.append(f"{claim.name}: {'; '.join(parts)}. Published: {claim.published}.")
    protocols = dict.fromkeys(s.protocol for s in summaries)
    every = [p for p in protocols if all(s.status is model.Status.SUPPORTED for s in summaries if s.protocol == p)]
    none = [p for p in protocols if any(s.status is model.Status.REFUTED for s in summaries if s.protocol == p)]
    said.append(
        (f"All of them: reproduced under {', '.join(every)}." if every else "All of them: reproduced under no reading.")
        + (f" At least one is contradicted under {', '.join(none)}." if none else " None is contradicted.")
    )
    return said
