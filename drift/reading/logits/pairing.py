"""Two lanes, position by position: what is compared with what, and how far apart it is."""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from drift.errors import DatasetError
from drift.reading.logits.distances import Distances, distances
from drift.reading.logits.lanes import NO_TOKEN, Lane, Sequence, Top
from drift.reading.statistics.arrays import Bool

__all__ = ["Pairs", "pairs"]


@dataclass
class Pairs(Distances):
    """All positions that two lanes have in common, sequence after sequence.

    Attributes
    ----------
    sequence, position : int64
        Which one; both from 0.
    cut : tuple of int
        Sequences of which one lane has more, or other tokens from some position on: what comes before is compared.
    whole : bool
        Whether distributions were compared.
    tokens_known : bool
        Whether both lanes tell their tokens in the same way, so that these were compared, too.
    """

    sequence: NDArray[np.int64]
    position: NDArray[np.int64]
    cut: tuple[int, ...]
    whole: bool
    tokens_known: bool

    def __len__(self) -> int:
        """Number of positions."""
        return len(self.sequence)

    @property
    def odd(self) -> Bool:
        """Where one lane alone has what is no number of a distribution."""
        return self.bad_a ^ self.bad_b

    @property
    def change(self) -> NDArray[np.float64]:
        """Change of the chosen token's log-probability, B less A; NaN where it is not known in both, or not finite."""
        finite = np.isfinite(self.chosen_a) & np.isfinite(self.chosen_b)
        with np.errstate(invalid="ignore"):
            return np.where(finite, self.chosen_b - self.chosen_a, np.nan)


def _comparable(a: Sequence, b: Sequence) -> bool:
    return a.tokens is not None and b.tokens is not None and a.tokens.dtype == b.tokens.dtype


def _common(a: Sequence, b: Sequence) -> int:
    """Number of positions up to which two sequences are of the same text."""
    length = min(a.positions, b.positions)
    if not _comparable(a, b):
        return length
    assert a.tokens is not None and b.tokens is not None
    mine, other = a.tokens[:length], b.tokens[:length]
    # What one lane does not tell differs from nothing.
    differ = (mine != other) & (mine != NO_TOKEN) & (other != NO_TOKEN)
    return int(np.argmax(differ)) if differ.any() else length


def _listed(found: Distances, a: Sequence, b: Sequence, length: int) -> None:
    """Fill in what lists of log-probabilities tell."""
    for mine, of, bad in ((a, found.chosen_a, found.bad_a), (b, found.chosen_b, found.bad_b)):
        if mine.chosen is not None and mine.given is not None:
            given = mine.given[:length]
            of[:] = np.where(given, mine.chosen[:length], np.nan)
            bad |= given & ~np.isfinite(mine.chosen[:length])
    if a.rows is None or b.rows is None or (a.chosen is not None and b.chosen is not None):
        equal = (found.chosen_a == found.chosen_b) | (np.isnan(found.chosen_a) & np.isnan(found.chosen_b))
        found.same &= equal
    if a.tops is not None and b.tops is not None and np.isnan(found.flip).all():
        for place, (one, two) in enumerate(zip(a.tops[:length], b.tops[:length], strict=True)):
            _tops(found, place, one, two)


def _tops(found: Distances, place: int, a: Top, b: Top) -> None:
    found.same[place] &= dict(a) == dict(b)
    good_a, good_b = ({k: v for k, v in top.items() if np.isfinite(v)} for top in (a, b))
    if not good_a or not good_b:
        return
    order = sorted(good_a, key=lambda token: -good_a[token])
    top_b = max(good_b, key=lambda token: good_b[token])
    found.flip[place] = float(order[0] != top_b)
    rival = top_b if order[0] != top_b else order[1] if len(order) > 1 else None
    if rival in good_a:
        found.margin[place] = good_a[order[0]] - good_a[rival]
    if len(order) > 1 and {order[0], order[1]} <= good_b.keys():
        gaps = (top[order[0]] - top[order[1]] for top in (good_a, good_b))
        found.margin_change[place] = abs(next(gaps) - next(gaps))


def _paired(a: Sequence, b: Sequence, length: int) -> Distances:
    if a.rows is None or b.rows is None:
        found = Distances.unknown(length)
        for mine, of in ((a, found.chosen_a), (b, found.chosen_b)):
            if mine.rows is not None and mine.chosen is None:
                of[:] = _chosen(mine, length)
    else:
        tokens = next((one.tokens for one in (a, b) if one.tokens is not None and one.tokens.dtype.kind == "i"), None)
        found = distances(a.rows, b.rows, length, None if tokens is None else tokens[:length])
    _listed(found, a, b, length)
    return found


def _chosen(one: Sequence, length: int) -> NDArray[np.float64]:
    """Log-probabilities of what follows, where whole distributions meet a list."""
    assert one.rows is not None
    found = distances(one.rows, one.rows, length, None if one.tokens is None else one.tokens[:length])
    return found.chosen_a


def _checked(a: Lane, b: Lane) -> None:
    if len(a.sequences) != len(b.sequences):
        raise DatasetError(
            f"{a.name} has {len(a.sequences):,} sequences, {b.name} has {len(b.sequences):,}; both lanes must have the "
            "same texts in the same order."
        )
    for number, (one, two) in enumerate(zip(a.sequences, b.sequences, strict=True)):
        if one.rows is not None and two.rows is not None and one.rows.vocabulary != two.rows.vocabulary:
            raise DatasetError(
                f"sequence {number}: {a.name} has a vocabulary of {one.rows.vocabulary:,} tokens, {b.name} one of "
                f"{two.rows.vocabulary:,}; cut what pads either of them."
            )


def pairs(a: Lane, b: Lane) -> Pairs:
    """Compare two lanes.

    Raises
    ------
    DatasetError
        If they have other numbers of sequences, other vocabularies, or no position in common.
    """
    _checked(a, b)
    parts: list[Distances] = []
    cut: list[int] = []
    for number, (one, two) in enumerate(zip(a.sequences, b.sequences, strict=True)):
        length = _common(one, two)
        if not _comparable(one, two) and one.positions != two.positions:
            raise DatasetError(
                f"sequence {number} has {one.positions:,} positions in {a.name} and {two.positions:,} in {b.name}, and "
                "their tokens do not tell which belong together; give the tokens of both as numbers."
            )
        if length < max(one.positions, two.positions):
            cut.append(number)
        parts.append(_paired(one, two, length))
    if not any(len(part.same) for part in parts):
        raise DatasetError(f"{a.name} and {b.name} have no token in common: they are of other texts.")
    return _joined(parts, tuple(cut), a, b)


def _joined(parts: Several[Distances], cut: tuple[int, ...], a: Lane, b: Lane) -> Pairs:
    lengths = [len(part.same) for part in parts]
    values = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Distances)}
    return Pairs(
        **values,
        sequence=np.repeat(np.arange(len(parts)), lengths),
        position=np.concatenate([np.arange(length) for length in lengths]),
        cut=cut,
        whole=a.whole and b.whole,
        tokens_known=all(_comparable(x, y) for x, y in zip(a.sequences, b.sequences, strict=True)),
    )
