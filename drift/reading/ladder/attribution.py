"""The parts of an error against float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from drift import dataset
from drift.dataset.attributes import attribute
from drift.dataset.choosing import DISTURBED
from drift.dataset.contract import SCALARS
from drift.dataset.labels import parse_label
from drift.errors import DatasetError
from drift.reading import controls
from drift.reading.statistics import levels
from drift.reading.statistics.intervals import Interval, finite_means, mean_interval
from drift.reading.statistics.windows import late_part

if TYPE_CHECKING:
    from drift.dataset.sweep import Sweep

__all__ = ["PARTS", "PARTS_COMMAND", "Attribution", "attributions", "check_shares"]

#: The three parts of an error against float64, and what they are called.
PARTS = {
    "structural": "structural: the fold is another computation",
    "full_rounding": "rounding of full attention",
    "fold_rounding": "rounding that folding adds",
}
#: What would measure the parts.
PARTS_COMMAND = "python -m drift.sweep SWEEP.yaml --set reference=full,gold"


# ---------------------------------------------------------------------------------------------- attribution
@dataclass(frozen=True)
class Attribution:
    """The three parts of a fold's error against float64, past the first quarter of the chain.

    Attributes
    ----------
    labels : dict
        Scalar coordinates of the cell, and ``layer``.
    documents : int
    total : float
        Relative L2 of the whole error; geometric mean over late steps, then documents.
    parts : dict of str to float
        The same of each part. Parts are vectors: their lengths need not add up to that of the sum.
    shares : dict of str to Interval
        Share of the squared error along each part, mean over late steps, interval over documents. Shares add to 1;
        one is negative where a part points against the sum.
    believed : bool
        Whether no control of the sweep failed.
    """

    labels: dict[str, Any]
    documents: int
    total: float
    parts: dict[str, float]
    shares: dict[str, Interval] = field(default_factory=dict)
    believed: bool = True

    def without_verdict(self, failed: Sequence[str]) -> Attribution:
        """Return the shares alone: which is the largest is then not said."""
        return replace(self, believed=False)

    @property
    def largest(self) -> str:
        """The part with the largest share."""
        return max(self.shares, key=lambda name: self.shares[name].value)


def check_shares(ds: xr.Dataset) -> float:
    """Check that the three shares of a cell add to 1; returns the largest departure.

    Raises
    ------
    DatasetError
        If they do not, anywhere: then the parts are not those of one sum. The message names the cell and the place.
    """
    names = [f"hidden_share_{part}" for part in PARTS]
    shares = np.stack([ds[n].transpose("document", "layer", "step").values for n in names])
    known = np.isfinite(shares)
    size = np.where(known, np.abs(shares), 0.0).sum(axis=0)
    # Cancelling parts have large shares of either sign, and a thinned cell keeps few bits of each.
    bits = attribute(ds.attrs, "thinned_json").get("bits", 40)
    allowed = (1e-6 + 2.0 ** (1 - bits)) * (1 + size)
    off = np.where(known.all(axis=0), np.abs(shares.sum(axis=0) - 1), 0.0)
    wrong = (off > allowed) | (known.any(axis=0) & ~known.all(axis=0))
    if wrong.any():
        document, layer, step = (int(i) for i in np.argwhere(wrong)[0])
        total = shares[:, document, layer, step].sum()
        cell = " ".join(str(ds[n].item()) for n in ("model", "dtype", "protocol", "chunk_size"))
        raise DatasetError(
            f"{cell} ({ds.encoding.get('source') or 'in memory'}): the shares of the error do not add to 1 but to "
            f"{total:.6g} (document {document}, layer {ds['layer'].values[layer]}, step {step}; "
            f"{int(wrong.sum())} places in all). Run this cell again."
        )
    return float(off.max()) if off.size else 0.0


_ENDS = ("", *(f"_{part}" for part in PARTS))


def attributions(sweep: Sweep, layer: int | str = "last") -> list[Attribution]:
    """Summarise the three parts of the error, for every cell that has them.

    Raises
    ------
    DatasetError
        If the shares of a cell do not add to 1.
    """
    found, gate = [], controls.gate(sweep)
    for ds in sweep:
        if any(f"hidden_{kind}_{part}" not in ds.data_vars for part in PARTS for kind in ("rel_l2", "share")):
            continue
        if ds["reference"].item() != "gold" or parse_label(ds["protocol"].item()).name in DISTURBED:
            continue
        check_shares(ds)
        shares = {}
        errors = [late_part(dataset.curve(ds, f"hidden_rel_l2{end}", layer)) for end in _ENDS]
        unknown = not np.isfinite(errors).all()
        for part in PARTS:
            means = finite_means(late_part(dataset.curve(ds, f"hidden_share_{part}", layer)))
            shares[part] = mean_interval([] if unknown else means)

        def level(name: str, ds: xr.Dataset = ds, unknown: bool = unknown) -> float:
            return math.nan if unknown else levels.geometric_mean(levels.level(dataset.curve(ds, name, layer)))

        one = Attribution(
            {n: ds[n].item() for n in SCALARS} | {"layer": layer},
            ds.sizes["document"],
            level("hidden_rel_l2"),
            {part: level(f"hidden_rel_l2_{part}") for part in PARTS},
            shares,
        )
        found.append(gate.let(one))
    return found
