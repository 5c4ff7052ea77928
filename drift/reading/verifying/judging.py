"""Hold a recorded cell against the same cell, computed again.

Three things are asked, in this order.

*Bits.* If every value has the same bits, that is the end of it.

*Altered?* Rounding is a property of kernels: where the states at the end of the network came out in the same bits, all
that was computed before them on the same kernels did, too. Measures that see the last layer (the final hidden state,
logits, likelihoods) are therefore witnesses of their step, as far as their last digit kept is finer than what another
rounding would move (an eighth of a unit roundoff). A step most of whose witnesses have the same bits is *reproduced*;
up to the last reproduced step of a document the states are those that were recorded, and where a document is reproduced
to its end, so are the states of the others. Numbers made of the same states can differ by how the measures themselves
are rounded (:func:`drift.reading.verifying.bounds.measuring`) and by no more. What does was altered.

*Within the floor?* Where the states are not known to be the same, numbers are held against the bounds of
:mod:`drift.reading.verifying.bounds`, step by step. And late levels at the end of the network must agree: with r the
level of the floor, the roundings of two passes move a level d by sqrt(2) r at most where they all point one way, so the
geometric mean of recomputed over recorded, with its interval, must reach into the margin 1 + sqrt(2) LEVELS r / d, d
being the lower of the two levels, and :data:`LEVELS` what the floor itself may differ by from kernel to kernel. The
margin is nearly 1 where drift is structure, and between 2 and 3 where it is all rounding: there the level is a property
of the kernels, too (a chunk that is computed by the very kernel of the full pass has no rounding of its own).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.special import stdtrit

from drift.dataset.attributes import attribute
from drift.dataset.bits import EXACT, WHOLE
from drift.dataset.comparing import unequal
from drift.dataset.contract import VARIABLES
from drift.dataset.curves import curve
from drift.dataset.thinning import thin_as
from drift.reading.statistics.levels import geometric_mean
from drift.reading.statistics.windows import LEAST_POINTS, late_part
from drift.reading.verifying.bounds import Rule, allowed, amplitudes, floor_of, in_own_units, measuring, rule_of
from drift.reading.verifying.model import Agreement, Comparison, Level, Reason, Worst

__all__ = ["LEVELS", "circumstances", "compare", "verify"]

#: Factor within which the floors of two kernels lie.
LEVELS = 1.25
#: One side of the intervals of levels.
ALPHA = 0.0005
#: Measures whose levels at the end of the network are compared.
LEVEL_MEASURES = ("hidden_rel_l2", "logit_rel_l2", "logit_kl", "delta_p_rms")
_WITNESSES = (
    "hidden_rel_l2", "hidden_rel_l2_token", "hidden_cosine_distance", "hidden_norm", "logit_kl", "logit_js",
    "logit_kl_token", "logit_rel_l2", "delta_p_rms", "nll_full", "nll_fold",
)  # fmt: skip
_FINE = 8  # a digit is fine if it is this much finer than the unit roundoff

Mask = NDArray[np.bool_]
Float = NDArray[np.float64]


def verify(
    recorded: xr.Dataset,
    documents: Sequence[int],
    recompute: Callable[[], xr.Dataset],
    roundings: Callable[[], Sequence[xr.Dataset]],
) -> Comparison:
    """Say whether a cell is what is computed here.

    Parameters
    ----------
    recorded : xarray.Dataset
        The cell; whole or thinned.
    documents : sequence of int
        Which of its documents are computed again.
    recompute : callable
        Gives the whole cell of these documents.
    roundings : callable
        Gives cells of these documents that compare two roundings of one pass; called only where bits differ.

    Returns
    -------
    Comparison
    """
    here = thin_as(recompute(), recorded)
    found = compare(recorded, here, documents)
    return compare(recorded, here, documents, roundings()) if found.reason is Reason.NO_FLOOR else found


def compare(
    recorded: xr.Dataset, here: xr.Dataset, documents: Sequence[int], floors: Sequence[xr.Dataset] = ()
) -> Comparison:
    """Compare a recorded cell with one that was computed here.

    Parameters
    ----------
    recorded : xarray.Dataset
    here : xarray.Dataset
        Of some documents of the recorded one, in their order, thinned as that was.
    documents : sequence of int
        Which these are.
    floors : sequence of xarray.Dataset
        Cells of these documents that compare two roundings of one pass. Without, and without floors in `here`, what
        differs in bits is undetermined.
    """
    there = recorded.isel(document=list(documents))
    both = [name for name in VARIABLES if name in there.data_vars and name in here.data_vars]
    found = Comparison(
        Agreement.SAME_BITS,
        Reason.BITS,
        values=sum(int(here[name].size) for name in both),
        not_compared=tuple(sorted({*map(str, there.data_vars), *map(str, here.data_vars)} - {*both})),
        circumstances=circumstances(recorded, here),
    )
    shape = _shape(there, here, both)
    if shape:
        return replace(found, agreement=Agreement.DIFFERENT, reason=Reason.SHAPE, detail=shape)
    pair = _Pair(there, here, both, documents, floors)
    found = replace(found, other=sum(int(mask.sum()) for mask in pair.other.values()))
    return pair.judge(found) if found.other else found


def circumstances(recorded: xr.Dataset, here: xr.Dataset) -> dict[str, tuple[str, str]]:
    """What two cells were computed with, where it differs: recorded, here."""

    def told(ds: xr.Dataset) -> dict[str, Any]:
        said = {name: ds.attrs.get(name, "") for name in ("device_name", "driver", "threads")}
        for name in ("numerics_json", "versions_json"):
            said |= attribute(ds.attrs, name)
        return said

    a, b = told(recorded), told(here)
    return {
        name: (str(a.get(name, "")), str(b.get(name, ""))) for name in sorted({*a, *b}) if a.get(name) != b.get(name)
    }


def _shape(there: xr.Dataset, here: xr.Dataset, both: Sequence[str]) -> str:
    """Which axis of two cells is another, or empty."""
    if there.attrs.get("tokens_sha256") != here.attrs.get("tokens_sha256"):
        return "tokens"
    for name in ("step", "token_start", "token_stop", "layer", "block", "quantile", "draw"):
        if name in there.coords and name in here.coords and not np.array_equal(there[name].values, here[name].values):
            return name
    return next((name for name in both if there[name].shape != here[name].shape), "")


@dataclass(frozen=True)
class _Excess:
    """One variable that is beyond what it may be."""

    worst: Worst
    size: float  # how many times what is allowed, or the relative difference
    beyond: int


class _Pair:
    """Two cells of the same shape, documents in the same order."""

    def __init__(
        self,
        there: xr.Dataset,
        here: xr.Dataset,
        both: Sequence[str],
        documents: Sequence[int],
        floors: Sequence[xr.Dataset],
    ) -> None:
        self._floors = floors
        self._documents = documents
        self._roundoff = float(there["unit_roundoff"])
        self._bits = attribute(there.attrs, "thinned_json").get("bits", WHOLE)
        self.there, self.here = there, here
        self._dims = {name: VARIABLES[name].dims for name in both}
        self.other: dict[str, Mask] = {
            name: unequal(self._values(there, name), self._values(here, name)) for name in both
        }

    def _values(self, ds: xr.Dataset, name: str) -> NDArray[Any]:
        return np.asarray(ds[name].transpose(*self._dims[name]).values)

    def judge(self, found: Comparison) -> Comparison:
        """Say how far apart they are, given that some bits differ."""
        different = replace(found, agreement=Agreement.DIFFERENT)
        for reason, excesses in ((Reason.COUNT, self._counts()), (Reason.ALTERED, self._altered())):
            if excesses:
                beyond = sum(excess.beyond for excess in excesses)
                return replace(different, reason=reason, worst=_worst(excesses).worst, beyond=beyond)
        if self._certified().all():
            return replace(found, agreement=Agreement.WITHIN_FLOOR, reason=Reason.MEASURED)
        undetermined = replace(found, agreement=Agreement.UNDETERMINED)
        if self._generated():
            return replace(undetermined, reason=Reason.GENERATED)
        moved = [name for name, mask in self.other.items() if mask.any() and rule_of(name) is not Rule.EXACT]
        bounds = {name: floor_of(name, self._floors, self.here) for name in moved if rule_of(name) is not Rule.NONE}
        if not self._floors or all(floor is None for floor in bounds.values()):
            return replace(undetermined, reason=Reason.NO_FLOOR)
        known = {name: floor for name, floor in bounds.items() if floor is not None}
        hidden = floor_of("hidden_rel_l2", self._floors, self.here)
        found = replace(
            found,
            floor=math.nan if hidden is None else float(hidden.max()),
            unjudged=tuple(name for name in moved if name not in known),
            levels=tuple(self._levels()),
        )
        nearest = [excess for name, floor in known.items() for excess in self._beyond(name, floor)]
        found = replace(found, worst=_worst(nearest).worst, beyond=sum(excess.beyond for excess in nearest))
        if found.beyond:
            return replace(found, agreement=Agreement.DIFFERENT, reason=Reason.BEYOND)
        if not all(level.agrees for level in found.levels):
            return replace(found, agreement=Agreement.DIFFERENT, reason=Reason.LEVEL)
        return replace(found, agreement=Agreement.WITHIN_FLOOR, reason=Reason.FLOOR)

    # -------------------------------------------------------- what had to be the same

    def _counts(self) -> list[_Excess]:
        """Numbers of tokens and bytes that differ; what overflows is a matter of rounding, too."""
        names = [name for name in self.other if rule_of(name) is Rule.EXACT and "nonfinite" not in name]
        return [excess for name in names for excess in self._relative(name, self.other[name])]

    def _altered(self) -> list[_Excess]:
        """Values that differ although what was computed from the same states did not."""
        certified = self._certified()
        found: list[_Excess] = []
        for name, mask in self.other.items():
            axes = [dim in ("document", "step") for dim in self._dims[name]]
            shape = [n if here else 1 for n, here in zip(mask.shape, axes, strict=True)]
            found += self._relative(name, mask & certified.reshape(shape) & self._coarse(name))
        return found

    def _coarse(self, name: str) -> Mask:
        """Where values are further apart than the rounding of the measures explains; NaN and a number always are."""
        a, b = (np.asarray(self._values(ds, name), dtype=float) for ds in (self.there, self.here))
        with np.errstate(invalid="ignore"):
            return ~(np.abs(a - b) <= measuring(name, self._bits) * np.fmax(np.abs(a), np.abs(b)))

    def _certified(self) -> Mask:
        """[document, step]: where every value has to have the same bits."""
        same, known = self._witnessed()
        steps = np.arange(same.shape[1])
        last = np.where(same.any(axis=1), same.shape[1] - 1 - same[:, ::-1].argmax(axis=1), -1)
        end = np.where(known.any(axis=1), known.shape[1] - 1 - known[:, ::-1].argmax(axis=1), -1)
        if ((last >= 0) & (last == end)).any():
            return np.ones(same.shape, dtype=bool)
        return np.asarray(steps[None, :] <= last[:, None])

    def _witnessed(self) -> tuple[Mask, Mask]:
        """[document, step], twice: steps that are reproduced, and steps of which that can be known."""
        count = np.zeros((self.here.sizes["document"], self.here.sizes["step"]))
        equal = count.copy()
        for name in _WITNESSES:
            if name not in self.other:
                continue
            values, same = self._values(self.here, name), ~self.other[name]
            if "layer" in self._dims[name]:
                values, same = values[:, -1], same[:, -1]
            # Relative distances move by absolute amounts, norms and likelihoods by relative ones.
            size = np.abs(amplitudes(name, values)) if VARIABLES[name].distance else np.ones(values.shape)
            digit = size * 2.0 ** -(WHOLE if name in EXACT else self._bits)
            fine = np.isfinite(values) & (values != 0) & (_FINE * digit <= self._roundoff)
            count += fine.reshape(*count.shape, -1).sum(axis=-1)
            equal += (fine & same).reshape(*count.shape, -1).sum(axis=-1)
        return 2 * equal > count, count > 0

    def _relative(self, name: str, mask: Mask) -> Iterator[_Excess]:
        """The largest relative difference among some values of a variable."""
        if not mask.any():
            return
        a, b = (np.asarray(self._values(ds, name), dtype=float) for ds in (self.there, self.here))
        with np.errstate(all="ignore"):
            apart = np.abs(a - b) / np.fmax(np.fmin(np.abs(a), np.abs(b)), np.finfo(float).tiny)
        apart = np.where(mask, np.where(np.isnan(apart), np.inf, apart), -1.0)
        place = np.unravel_index(int(apart.argmax()), apart.shape)
        yield _Excess(self._worst(name, place, 0.0), float(apart[place]), int(mask.sum()))

    # -------------------------------------------------------- what may have moved

    def _generated(self) -> bool:
        """Whether the text was continued by the model itself."""
        tokens = attribute(self.there.attrs, "config_json").get("tokens")
        return tokens is not None and int(self.there["token_stop"].values[-1]) > int(tokens)

    def _beyond(self, name: str, floor: Float) -> Iterator[_Excess]:
        """The value of a variable that is nearest to what it may move, or furthest beyond."""
        a, b = (amplitudes(name, np.asarray(self._values(ds, name), dtype=float)) for ds in (self.there, self.here))
        bound = allowed(name, a, b, floor)
        with np.errstate(all="ignore"):
            # Both were rounded to the bits that are kept.
            bound = bound + np.fmax(np.abs(a), np.abs(b)) * 2.0 ** (1 - self._bits)
            size = np.abs(a - b) / bound
        # A NaN against a number is beyond any bound, 0 against 0 within.
        size = np.where(np.isnan(size), np.where(np.isnan(a) == np.isnan(b), 0.0, np.inf), size)
        size = np.where(self.other[name], size, 0.0)
        place = np.unravel_index(int(size.argmax()), size.shape)
        reach = in_own_units(name, float(b[place]), float(bound[place]))
        yield _Excess(self._worst(name, place, reach), float(size[place]), int((size > 1).sum()))

    def _levels(self) -> Iterator[Level]:
        """Levels at the end of the network, recomputed over recorded."""
        for name in LEVEL_MEASURES:
            if name not in self.other or not self.other[name].any():
                continue
            a, b = (late_part(amplitudes(name, curve(ds, name))) for ds in (self.there, self.here))
            good = np.isfinite(a) & np.isfinite(b) & (a > 0) & (b > 0)
            if good.sum() < LEAST_POINTS:
                continue
            ratios = np.log(b[good] / a[good])
            half = float(stdtrit(len(ratios) - 1, 1 - ALPHA)) * float(ratios.std(ddof=1)) / math.sqrt(len(ratios))
            typical = [geometric_mean(late_part(amplitudes(name, curve(ds, name)))) for ds in self._floors]
            rounding = LEVELS * max(typical, default=math.inf)
            lower = min(geometric_mean(a[good]), geometric_mean(b[good]))
            middle = float(ratios.mean())
            yield Level(
                name,
                math.exp(middle),
                math.exp(middle - half),
                math.exp(middle + half),
                1 + math.sqrt(2) * rounding / lower,
                int(good.sum()),
            )

    def _worst(self, name: str, place: Sequence[Any], bound: float) -> Worst:
        named: dict[str, int | float] = {}
        for dim, index in zip(self._dims[name], place, strict=True):
            named[dim] = self._documents[index] if dim == "document" else self.here[dim].values[index].item()
        recorded, here = (float(self._values(ds, name)[tuple(place)]) for ds in (self.there, self.here))
        return Worst(name, named, recorded, here, bound)


def _worst(found: Sequence[_Excess]) -> _Excess:
    return max(found, key=lambda excess: excess.size)
