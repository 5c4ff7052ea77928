"""Compare lanes: files that were opened, or arrays."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Several
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drift.errors import ArgumentError, DatasetError
from drift.reading.logits.deciding import decide, excess, growth, near_ties
from drift.reading.logits.importers.arrays import sequences
from drift.reading.logits.lanes import Lane, Sequence
from drift.reading.logits.model import Decision, LogitComparison, Units
from drift.reading.logits.numbers import numbers
from drift.reading.logits.pairing import Pairs, pairs

__all__ = ["compare_lanes", "compare_logits", "compare_logprobs", "decide_lanes"]

_ARRAY = "array"
#: Rounding takes a log-probability above 0 by less than this; of text, some token's negative one is larger.
_MOST = 1.0


def compare_lanes(
    a: Lane,
    b: Lane,
    floor: Several[Lane] = (),
    *,
    units: Units | str = Units.TOKEN,
    clip: tuple[float, float] | None = None,
) -> LogitComparison:
    """Compare two lanes, and hold them against repeats.

    Parameters
    ----------
    a, b : Lane
        The reference, and what is compared with it: ratios are B / A.
    floor : sequence of Lane
        Repeats of A, computed in other ways that are accepted as well.
    units : Units or str
        What ratios, k1 to k3 and the effective sample size are of.
    clip : (float, float), optional
        Ratios outside of these are counted.

    Raises
    ------
    DatasetError
        If the lanes do not fit each other; the message says where.
    ArgumentError
        If `units` or `clip` is none.
    """
    asked = _units(units)
    if clip is not None and not (0 < clip[0] < clip[1] < float("inf")):
        raise ArgumentError(f"clip is {clip}; two ratios above 0 are wanted, the lower one first (0.8, 1.2)")
    # A number near the largest that there is has no square; it is shown as none.
    with np.errstate(over="ignore", invalid="ignore"):
        return _compared(a, b, floor, asked, clip)


def decide_lanes(a: Lane, b: Lane, floor: Several[Lane] = ()) -> Decision:
    """Decide on two lanes as :func:`compare_lanes` does, without the numbers that people are shown.

    Raises
    ------
    DatasetError
        If the lanes do not fit each other; the message says where.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _decided(a, b, floor)[0]


def _log_probabilities(lane: Lane) -> None:
    """Refuse what is none."""
    for number, one in enumerate(lane.sequences):
        if one.chosen is None:
            continue
        above = one.chosen[(one.chosen > _MOST) & np.isfinite(one.chosen)]
        if above.size:
            raise DatasetError(
                f"{lane.name}, sequence {number}: a log-probability is {above[0]:.3g}, which no probability has. "
                "Negative log-likelihoods change their sign first; logits of chosen tokens alone cannot be compared."
            )


def _compared(
    a: Lane, b: Lane, floor: Several[Lane], asked: Units, clip: tuple[float, float] | None
) -> LogitComparison:
    decision, floors = _decided(a, b, floor)
    found = decision.pairs
    grown, of = growth(found, floors)
    return LogitComparison(
        verdict=decision.verdict,
        reason=decision.reason,
        pairs=found,
        numbers=numbers(found, floors, asked, clip),
        excess=decision.excess,
        near_ties=near_ties(found, floors),
        growth=grown,
        growth_of=of,
        units=asked,
        clip=clip,
        lanes=tuple(one.name for one in (a, b, *floor)),
        forms=tuple(one.form for one in (a, b, *floor)),
        notes=tuple(f"{one.name}: {note}" for one in (a, b, *floor) for note in one.notes),
    )


def _decided(a: Lane, b: Lane, floor: Several[Lane]) -> tuple[Decision, list[Pairs]]:
    """Decide, and hand on the repeats position by position."""
    for lane in (a, b, *floor):
        _log_probabilities(lane)
    found = pairs(a, b)
    if not found.whole and np.isnan(found.change).all() and not (found.bad_a | found.bad_b).any():
        raise DatasetError(f"{a.name} and {b.name} have no log-probability at the same position.")
    floors = [pairs(a, one) for one in floor]
    over = excess(found, floors) if floors else None
    verdict, reason = decide(found, floors, over)
    return Decision(verdict, reason, found, over), floors


def _units(units: Units | str) -> Units:
    try:
        return Units(units)
    except ValueError:
        raise ArgumentError(f"units is {units!r}; it is one of {', '.join(one.value for one in Units)}") from None


def _array(values: ArrayLike, name: str, whole: bool = False) -> NDArray:
    try:
        found = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor on another device, in bf16, or with a gradient
        raise ArgumentError(f"{name} cannot be made a NumPy array ({error}); hand it on as float32") from error
    if found.dtype.kind not in ("iu" if whole else "fiu"):
        raise ArgumentError(f"{name} holds {found.dtype}, not {'whole ' * whole}numbers")
    return found


def compare_logits(
    a: ArrayLike,
    b: ArrayLike,
    tokens: ArrayLike | None = None,
    *,
    targets: ArrayLike | None = None,
    floor: Several[ArrayLike] = (),
    units: Units | str = Units.TOKEN,
    clip: tuple[float, float] | None = None,
) -> LogitComparison:
    """Compare whole logits, or whole log-probabilities.

    Parameters
    ----------
    a, b : array_like [position, token] or [sequence, position, token]
        The reference, and what is compared with it.
    tokens : array_like of int [position] or [sequence, position], optional
        The tokens that went in: a position predicts the next one. Without, there are no ratios.
    targets : array_like of int, optional
        Instead: what each position predicts; below 0 nothing.
    floor : sequence of array_like
        Repeats of A.
    units, clip
        As for :func:`compare_lanes`.

    Returns
    -------
    LogitComparison

    Raises
    ------
    ArgumentError
        If an array has another shape, or holds no numbers.
    DatasetError
        If the lanes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.random.default_rng(0).normal(size=(4, 32, 50))
    >>> compare_logits(a, a).verdict.value
    'same_bits'
    """
    of = None if tokens is None else _array(tokens, "tokens", whole=True)
    to = None if targets is None else _array(targets, "targets", whole=True)

    def lane(values: ArrayLike, name: str) -> Lane:
        try:
            return Lane(name, _ARRAY, tuple(sequences(_array(values, name), of, to)))
        except ValueError as error:
            if isinstance(error, ArgumentError):
                raise
            raise ArgumentError(f"{name}: {error}") from error

    return _of_arrays(lane, a, b, floor, units, clip)


def compare_logprobs(
    a: ArrayLike | Several[ArrayLike],
    b: ArrayLike | Several[ArrayLike],
    mask: ArrayLike | Several[ArrayLike] | None = None,
    *,
    floor: Several[Any] = (),
    units: Units | str = Units.TOKEN,
    clip: tuple[float, float] | None = None,
) -> LogitComparison:
    """Compare log-probabilities of chosen tokens: those of a trainer and of its rollouts, say.

    Parameters
    ----------
    a, b : array_like [position] or [sequence, position], or a sequence of array_like [position]
        Log-probabilities in nats, of the same tokens.
    mask : like `a`, optional
        Where it is 0, a position does not count (prompts, padding).
    floor : sequence of such
        Repeats of A.
    units, clip
        As for :func:`compare_lanes`.

    Returns
    -------
    LogitComparison

    Raises
    ------
    ArgumentError
        If an array has another shape, or holds no numbers.
    DatasetError
        If the lanes do not fit each other.

    Examples
    --------
    >>> found = compare_logprobs([[-1.0, -2.0]], [[-1.0, -2.0]])
    >>> found.numbers["ratio_mean"].value
    1.0
    """
    masks = None if mask is None else _texts(mask, "mask", "biuf")

    def lane(values: Any, name: str) -> Lane:
        texts = _texts(values, name, "fiu")
        shapes = [len(one) for one in texts]
        if masks is not None and shapes != [len(one) for one in masks]:
            raise ArgumentError(f"mask and {name} have other numbers of positions")
        given = [np.ones(n, dtype=bool) for n in shapes] if masks is None else [one != 0 for one in masks]
        found = (Sequence(None, x.astype(np.float64), g) for x, g in zip(texts, given, strict=True))
        return Lane(name, _ARRAY, tuple(found))

    return _of_arrays(lane, a, b, floor, units, clip)


def _of_arrays(
    lane: Callable[[Any, str], Lane],
    a: Any,
    b: Any,
    floor: Several[Any],
    units: Units | str,
    clip: tuple[float, float] | None,
) -> LogitComparison:
    """Compare what `lane` makes lanes of, each under the name of its argument."""
    repeats = [lane(one, f"floor[{n}]") for n, one in enumerate(floor)]
    return compare_lanes(lane(a, "a"), lane(b, "b"), repeats, units=units, clip=clip)


def _texts(values: Any, name: str, kinds: str) -> list[NDArray]:
    """One array [position] per sequence."""
    try:
        listed = [np.asarray(one) for one in values]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"{name} cannot be made NumPy arrays ({error}); hand it on as float32") from error
    if listed and all(one.ndim == 0 for one in listed):
        listed = [np.array(listed)]
    if not listed or any(one.ndim != 1 or one.dtype.kind not in kinds for one in listed):
        raise ArgumentError(f"{name} must be [position], [sequence, position] or a list of [position], of numbers")
    return listed
