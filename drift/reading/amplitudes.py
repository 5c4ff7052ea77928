"""What is judged: measures as curves, and the power that makes an amplitude of each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from drift import dataset
from drift.dataset.contract import VARIABLES
from drift.errors import DatasetError
from drift.reading.statistics.arrays import Float

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "AMPLITUDE_POWERS",
    "BOUNDED",
    "DISTANCES",
    "LADDER_MEASURES",
    "NEAR",
    "SHORT",
    "UNRELATED",
    "amplitude",
    "amplitude_power",
    "measure_name",
    "measure_values",
]


def measure_name(measure: str, layer: int | str = "last") -> str:
    """Name a measure in a sentence."""
    row = VARIABLES[measure]
    name = row.long_name
    if "layer" in row.dims:
        place = (
            "after the final norm" if layer == "last" else "of the embeddings" if layer == 0 else f"after block {layer}"
        )
        name = name.replace("hidden state", f"hidden state {place}")
        if measure == "hidden_rel_l2" and layer == "last":
            name = "relative drift of the final hidden state"
    if "block" in row.dims:
        name += " in the last block" if layer == "last" else f" in block {layer}"
    return name


#: Measures that are held against the claims, the headline first, and the power that makes an amplitude of each.
AMPLITUDE_POWERS: dict[str, float] = {
    "hidden_rel_l2": 1.0,
    "key_rel_l2": 1.0,
    "value_rel_l2": 1.0,
    "logit_kl": 0.5,
    "delta_p_rms": 1.0,
    "nll_gap": 1.0,
}
SHORT = {
    "hidden_rel_l2": "hidden state",
    "key_rel_l2": "keys",
    "value_rel_l2": "values",
    "logit_kl": "logits (KL)",
    "delta_p_rms": "probability of the right token",
    "nll_gap": "NLL",
}
UNRELATED = math.sqrt(2)  # relative L2 distance of unrelated states of equal norm
NEAR = 0.5  # the share of that number from which on a level is near to it
BOUNDED = ("hidden_rel_l2", "key_rel_l2", "value_rel_l2")  # which that number is a bound of
# ---------------------------------------------------------------------------------------------- cells
_QUADRATIC = ("logit_js", "logit_kl_token", "hidden_cosine_distance")  # beside those of MEASURES


def amplitude_power(measure: str) -> float:
    """Power that makes an amplitude of a measure: divergences are quadratic in a small disturbance."""
    return AMPLITUDE_POWERS.get(measure, 0.5 if measure in _QUADRATIC else 1.0)


def amplitude(ds: xr.Dataset, measure: str, layer: int | str) -> Float:
    """Values of a measure as amplitudes: [document, step]."""
    return measure_values(ds, measure, layer) ** amplitude_power(measure)


#: Signed or bounded-above variables, and the distance from "no drift" that stands for them.
_DERIVED: dict[str, str] = {
    "nll_gap": "absolute difference of the negative log-likelihood per token, fold against full attention",
    "top1_disagreement": "share of tokens with another most likely next token",
}
#: Measures that can be judged: all that are distances between the two passes, and what they are called.
#: What the precision ladder judges where all measures are asked for.
LADDER_MEASURES = ("hidden_rel_l2", "key_rel_l2", "value_rel_l2", "logit_kl")

DISTANCES: dict[str, str] = {
    name: variable.long_name
    for name, variable in VARIABLES.items()
    if variable.dtype == "float64"
    and not variable.optional
    and name not in ("hidden_norm", "top1_agreement", "nll_full", "nll_fold")
} | _DERIVED


def measure_values(ds: xr.Dataset, measure: str, layer: int | str = "last") -> NDArray[np.float64]:
    """Take a curve that can be judged out of a cell: [document, step], at least 0.

    Raises
    ------
    DatasetError
        If there is no such measure or layer.
    """
    if measure not in DISTANCES:
        raise DatasetError(
            f"{measure!r} is not a measure of drift that can be judged; there are {', '.join(DISTANCES)}"
        )
    if measure == "nll_gap":
        return np.abs(dataset.curve(ds, "nll_fold") - dataset.curve(ds, "nll_full"))
    if measure == "top1_disagreement":
        return 1 - dataset.curve(ds, "top1_agreement")
    # The contract lets divergences and cosine distances of equal states round to a hair below zero.
    values = dataset.curve(ds, measure, layer)
    return np.where(values < 0, 0.0, values)
