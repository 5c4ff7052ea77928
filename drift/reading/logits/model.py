"""What a comparison of logits or log-probabilities consists of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import xarray as xr

from drift.reading.logits.pairing import Pairs
from drift.reading.plateau.model import Plateau
from drift.reading.quantities import Of

__all__ = [
    "BAND",
    "KIND_OF",
    "Decision",
    "Excess",
    "LogitComparison",
    "Number",
    "Quantity",
    "Reason",
    "Units",
    "Verdict",
]

#: Probability ratios between these are called near 1.
BAND = (0.9, 1.1)


class Verdict(StrEnum):
    """How two lanes stand to the floor. The value is the name used in JSON."""

    SAME = "same_bits"
    WITHIN = "within_floor"
    BEYOND = "beyond_floor"
    UNDETERMINED = "undetermined"


class Reason(StrEnum):
    """Why a verdict is what it is."""

    EQUAL = "all numbers are equal"
    LEVEL = "distance over floor"
    TAIL = "single positions beyond the floor"
    NONFINITE = "NaN or infinities in one lane"
    NO_FLOOR = "no floor"
    FLOOR_ZERO = "the repeats are the same bits"
    TOO_FEW = "too few positions"
    CUT = "one lane lacks positions"


class Units(StrEnum):
    """What one ratio of probabilities is of."""

    TOKEN = "token"
    SEQUENCE = "sequence"


class Quantity(StrEnum):
    """A number; the value is its key in JSON."""

    KL_MEAN = "kl_mean"
    KL_MEDIAN = "kl_median"
    KL_90 = "kl_90"
    KL_99 = "kl_99"
    KL_MAX = "kl_max"
    JS_MEAN = "js_mean"
    JS_MEDIAN = "js_median"
    JS_99 = "js_99"
    JS_MAX = "js_max"
    CHANGE_MEAN = "logprob_change_mean"
    CHANGE_ABS = "logprob_change_abs_mean"
    CHANGE_RMS = "logprob_change_rms"
    CHANGE_99 = "logprob_change_abs_99"
    CHANGE_MAX = "logprob_change_abs_max"
    RATIO_MEAN = "ratio_mean"
    RATIO_01 = "ratio_01"
    RATIO_MEDIAN = "ratio_median"
    RATIO_99 = "ratio_99"
    RATIO_MIN = "ratio_min"
    RATIO_MAX = "ratio_max"
    RATIO_OUTSIDE = "ratio_outside_band"
    RATIO_CLIPPED = "ratio_outside_clip"
    K1 = "k1"
    K2 = "k2"
    K3 = "k3"
    ESS = "effective_sample_share"
    FLIPS = "top1_flips"
    PPL_B = "ppl_b"
    PPL_A = "ppl_a"
    PPL_CORRELATION = "ln_ppl_correlation"
    PPL_LOG_RATIO = "ln_ppl_ratio"
    PPL_RATIO = "ppl_ratio"
    PPL_DIFFERENCE = "ppl_difference"
    P_MEAN = "p_change_mean"
    P_MAX = "p_change_max"
    P_99 = "p_change_99"
    P_MEDIAN = "p_change_median"
    P_01 = "p_change_01"
    P_MIN = "p_change_min"
    P_RMS = "p_change_rms"
    SAME_TOP = "same_top"


@dataclass(frozen=True)
class Number:
    """One number, with its interval over sequences and what it is among the repeats.

    Attributes
    ----------
    value : float
        NaN where it cannot be formed.
    low, high : float
        Interval; NaN where there are too few sequences for one.
    floor : tuple of float
        The same number of A against each repeat.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    floor: tuple[float, ...] = ()


@dataclass(frozen=True)
class Excess:
    """Distance over floor, as a ratio of amplitudes (square roots of divergences, or changes of log-probabilities).

    Attributes
    ----------
    ratio, low, high : float
        Geometric mean over replicates, and its interval; NaN without a floor.
    replicates : int
        Sequences, or parts of sequences.
    parts : bool
        Whether they are parts, because there are too few sequences.
    factor : float
        Within this of the floor is within it.
    tail : int
        Single positions beyond anything that the floor shows.
    tail_factor : float
        How much further than the floor's furthest they must be.
    needed : float
        Replicates that would decide; NaN where more would not, or where it is decided.
    """

    ratio: float
    low: float
    high: float
    replicates: int
    parts: bool
    factor: float
    tail: int
    tail_factor: float
    needed: float


#: Fields of a comparison's dataset: long name, unit.
KIND_OF: Mapping[str, tuple[str, str]] = {
    "kl": ("KL divergence KL(A||B)", "nat"),
    "js": ("Jensen-Shannon divergence", "nat"),
    "change": ("change of the token's log-probability, B less A", "nat"),
    "flip": ("likeliest tokens differ", "1"),
    "margin": ("margin of A's likeliest token", "nat"),
}


@dataclass(frozen=True)
class Decision:
    """A verdict on two lanes, and what it rests on.

    Attributes
    ----------
    verdict : Verdict
    reason : Reason
    pairs : Pairs
        Everything by position.
    excess : Excess or None
        None without a floor.
    """

    verdict: Verdict
    reason: Reason
    pairs: Pairs
    excess: Excess | None


@dataclass(frozen=True)
class LogitComparison:
    """Two lanes' logits or log-probabilities, compared.

    Attributes
    ----------
    verdict : Verdict
    reason : Reason
    pairs : Pairs
        Everything by position.
    numbers : mapping of Quantity to Number
        What could be formed.
    excess : Excess or None
        None without a floor.
    near_ties : int or None
        Flips that the floor's own movement of margins explains; None without a floor, or where margins are not known.
    growth : Plateau or None
        Whether the distance (an amplitude) grows with the position.
    growth_of : Of
        What `growth` is of: the distance, or the distance over the floor.
    units : Units
    clip : (float, float) or None
    lanes : tuple of str
        Names of A, B and the repeats.
    forms : tuple of str
        What each of these files is.
    notes : tuple of str
    """

    verdict: Verdict
    reason: Reason
    pairs: Pairs
    numbers: Mapping[Quantity, Number]
    excess: Excess | None
    near_ties: int | None
    growth: Plateau | None
    growth_of: Of
    units: Units
    clip: tuple[float, float] | None
    lanes: tuple[str, ...]
    forms: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 same bits or within the floor, 1 beyond the floor, 3 undetermined."""
        return {Verdict.SAME: 0, Verdict.WITHIN: 0, Verdict.BEYOND: 1, Verdict.UNDETERMINED: 3}[self.verdict]

    @property
    def furthest(self) -> tuple[int, int] | None:
        """Sequence and position of the largest distance; None where nothing differs."""
        pairs = self.pairs
        if pairs.odd.any():
            at = int(np.argmax(pairs.odd))
        else:
            far = pairs.kl if pairs.whole else np.abs(pairs.change)
            if not np.isfinite(far).any() or not np.nanmax(far) > 0:
                return None
            at = int(np.nanargmax(far))
        return int(pairs.sequence[at]), int(pairs.position[at])

    def named(self, *names: str) -> LogitComparison:
        """Return the same of lanes that are called so."""
        return replace(self, lanes=names)

    def dataset(self) -> xr.Dataset:
        """Return everything by sequence and position, to be plotted; what is not known is NaN.

        Returns
        -------
        xarray.Dataset
            Variables `kl`, `js`, `change`, `ratio`, `flip`, `margin` [sequence, position], float64.
        """
        pairs = self.pairs
        shape = int(pairs.sequence.max()) + 1, int(pairs.position.max()) + 1
        data = xr.Dataset(
            coords={
                "sequence": ("sequence", np.arange(shape[0]), {"long_name": "sequence"}),
                "position": ("position", np.arange(shape[1]), {"long_name": "position"}),
            },
            attrs={"verdict": self.verdict.value, "reason": self.reason.value, "lanes": list(self.lanes)},
        )
        for name, (long_name, units) in KIND_OF.items():
            values = np.full(shape, np.nan)
            values[pairs.sequence, pairs.position] = getattr(pairs, name)
            data[name] = ("sequence", "position"), values, {"long_name": long_name, "units": units}
        with np.errstate(over="ignore"):
            data["ratio"] = np.exp(data["change"])
        data["ratio"].attrs = {"long_name": "probability ratio B / A", "units": "1"}
        return data
