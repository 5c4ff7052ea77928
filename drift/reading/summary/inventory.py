"""What a sweep holds: settings, provenance, what is not finite, what failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from drift import dataset
from drift.dataset.attributes import attribute
from drift.dataset.choosing import REFERENCES
from drift.dataset.contract import VARIABLES
from drift.dataset.sweep import Sweep
from drift.reading.cells import layer_words

__all__ = ["contents", "failures", "nonfinite", "problems", "provenance"]


# ---------------------------------------------------------------------------------------------- tables
def _settings(sweep: Sweep) -> pd.DataFrame:
    rows = []
    for ds in sweep:
        attrs, versions = ds.attrs, attribute(ds.attrs, "versions_json")
        rows.append(
            {
                "model": ds["model"].item(),
                "family": ds["family"].item(),
                "checkpoint sha256": str(attrs["checkpoint_sha256"])[:12],
                "text sha256": str(attrs["tokens_sha256"])[:12],
                "documents": ds.sizes["document"],
                "tokens": int(ds["token_stop"].values[-1]),
                "precisions": ds["dtype"].item(),
                "protocols": ds["protocol"].item(),
                "chunk sizes": ds["chunk_size"].item(),
                "device": f"{ds['device'].item()} ({attrs['device_name']})",
                "attention": ds["attn_implementation"].item(),
                "threads": attrs["threads"],
                "seed": attrs["seed"],
                "torch": versions.get("torch", ""),
                "transformers": versions.get("transformers", ""),
                "drift": attrs["drift_version"],
                "commit": (str(attrs["git_commit"])[:10] or "unknown") + ("+" if attrs["git_dirty"] else ""),
            }
        )
    return pd.DataFrame(rows)


def provenance(sweep: Sweep) -> pd.DataFrame:
    """Say what was run on what: one row per model and setting, cells that differ in the swept axes only are merged."""
    settings = _settings(sweep)
    if settings.empty:
        return settings
    swept = ["precisions", "protocols", "chunk sizes", "text sha256"]
    fixed = [c for c in settings.columns if c not in swept]
    merged = settings.groupby(fixed, sort=False, as_index=False)[swept].agg(
        lambda column: ", ".join(str(v) for v in dict.fromkeys(column))
    )
    return merged[[c for c in settings.columns if c in merged.columns]]


def contents(sweep: Sweep, everything: Sweep | None = None) -> list[str]:
    """Say how many cells there are, how many failed and which files are unusable.

    Parameters
    ----------
    sweep : Sweep
    everything : Sweep, optional
        What `sweep` was selected from (see :func:`drift.dataset.choosing.folds`): the cells that were not are named.
    """
    axes = []
    for name, words in (
        ("model", "models"),
        ("dtype", "precisions"),
        ("protocol", "protocols"),
        ("chunk_size", "chunk sizes"),
        ("reference", "references"),
    ):
        values = sweep.values(name)
        if name == "reference" and set(values) <= {"full"}:
            continue
        if name == "reference":
            values = [REFERENCES.get(str(value), value) for value in values]
        axes.append(f"{words}: {', '.join(map(str, sorted(values) if name == 'chunk_size' else values))}")
    said = [f"{len(sweep)} cells read ({'; '.join(axes)})."]
    if everything is not None and (text := dataset.left_out(everything, sweep)):
        said.append(text)
    if sweep.failures:
        said.append(f"**{len(sweep.failures)} cells failed** and are missing from every picture; see “Failures”.")
    if sweep.problems:
        said.append(f"**{len(sweep.problems)} files could not be used**; see “Unusable files”.")
    count = nonfinite(sweep)["non-finite"].sum()
    if count:
        said.append(f"**{count:,} values are NaN or Inf**; see “Values that are not finite”.")
    thinned = [attribute(ds.attrs, "thinned_json") for ds in sweep if "thinned_json" in ds.attrs]
    if thinned:
        layers = sorted({f"{len(t['layers'])} of {t['layers_of']}" for t in thinned})
        bits = sorted({t["bits"] for t in thinned})
        said.append(
            f"{len(thinned)} cells are thinned: they keep {', '.join(layers)} layers, and values are rounded to "
            f"{', '.join(map(str, bits))} significant bits."
        )
    said += sweep.notes
    if sweep.left_out:
        said.append(f"{len(sweep.left_out)} files in the folder belong to another plan and were not read.")
    return said


def _figures_of(ds: xr.Dataset) -> Iterable[np.ndarray]:
    """Yield what a cell measured; not what the contract leaves NaN, such as the first step against the previous one."""
    previous = ds["reference"].item() == "previous"
    for name, row in VARIABLES.items():
        if row.optional or row.dtype != "float64" or name not in ds.data_vars:
            continue
        if not previous:
            yield ds[name].values
        elif row.dims[1] in ("layer", "block"):
            yield ds[name].isel(step=slice(1, None)).values


def nonfinite(sweep: Sweep) -> pd.DataFrame:
    """Count NaN and Inf: one row per cell that has any.

    Returns
    -------
    pandas.DataFrame
        ``non-finite`` (elements of hidden states and logits), the first layer and chain step with any, and
        ``figures not finite``: values of the dataset itself that are NaN or Inf.
    """
    rows = []
    for ds in sweep:
        hidden, logits = ds["nonfinite_count"], ds["logit_nonfinite_count"]
        bad = sum(int((~np.isfinite(values)).sum()) for values in _figures_of(ds))
        total = int(hidden.sum()) + int(logits.sum())
        if not total and not bad:
            continue
        where = np.argwhere(hidden.transpose("step", "layer", "document").values > 0)
        rows.append(
            {
                **{k: ds[k].item() for k in ("model", "dtype", "protocol", "chunk_size")},
                "non-finite": total,
                "hidden states": int(hidden.sum()),
                "logits": int(logits.sum()),
                "first chain step": int(where[0][0]) + 1 if len(where) else None,
                "first layer": layer_words(ds, int(ds["layer"].values[where[0][1]])) if len(where) else None,
                "figures not finite": bad,
            }
        )
    columns = ["model", "dtype", "protocol", "chunk_size", "non-finite", "hidden states", "logits", "first chain step"]
    return pd.DataFrame(rows, columns=[*columns, "first layer", "figures not finite"])


def failures(sweep: Sweep) -> pd.DataFrame:
    """List the cells that the sweep could not compute, with the reason."""
    rows = []
    for failure in sweep.failures:
        cell = next((told for k in ("config", "cell") if isinstance(told := failure.get(k), Mapping)), failure)
        axes = {str(k): cell[k] for k in ("model", "dtype", "protocol", "chunk_size") if k in cell}
        reason = next((failure[k] for k in ("reason", "error", "message") if failure.get(k)), "unknown")
        rows.append({"file": str(failure.get("file", "")), **axes, "reason": str(reason)})
    return pd.DataFrame(rows)


def problems(sweep: Sweep) -> pd.DataFrame:
    """List the files that could not be used, with the reason."""
    rows = [
        {"file": Path(p).name, "reason": reason.removeprefix(f"{p}: ")} for p, reason in sorted(sweep.problems.items())
    ]
    return pd.DataFrame(rows, columns=["file", "reason"])
