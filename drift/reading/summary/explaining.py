"""What words and columns mean, in sentences made of the constants that decide."""

from __future__ import annotations

from html import escape

from drift.dataset.labels import parse_label
from drift.dataset.sweep import Sweep
from drift.reading.cells import axis_value
from drift.reading.statistics import intervals
from drift.reading.wording.numbers import coverage
from drift.reading.wording.verdicts import STORAGE_WORDS, is_stored_coarsely
from drift.reading.wording.windows import judged_words, late_rule

__all__ = ["table_legend", "words"]

_WORDS = {
    "reading": "a <i>reading</i> is one way to carry out the published fold, append the literal one",
    "cell": "a <i>cell</i> is what one reading gave with one model, precision and chunk size, over some documents",
    "chain": "a <i>chain</i> is the row of steps of a cell, one per chunk; a <i>transition</i> leads to the next step",
    "level": f"the <i>level</i> is the geometric mean of drift {late_rule()}",
    "slope": "the <i>slope</i> is that of the logarithm of drift on that of the unit roundoff: 1 where drift is "
    "proportional to it, 0 where it does not depend on it",
    "floor": "the <i>floor</i> is how far full attention is from itself, over the same tokens, when its embeddings are "
    "disturbed by one unit roundoff",
    "growth": f"<i>growth</i> is per doubling of the chain, over {judged_words()}; where a longer part certifies a "
    "plateau, the step that it begins at is named, and its interval is wider for having had the choice",
    "gold": "<i>gold</i> is full attention in float64",
}


def words(sweep: Sweep, *names: str) -> str:
    """Explain words of a page in a paragraph of HTML, and the options of the readings that this sweep has.

    Parameters
    ----------
    sweep : Sweep
    *names : str
        Keys of the words that the page uses.
    """
    labels = [parse_label(str(label)) for label in sweep.values("protocol")]
    said = [_WORDS[name] for name in names]
    if "slope" in names:
        there = {str(axis_value(ds, "dtype")): float(axis_value(ds, "unit_roundoff")) for ds in sweep}
        coarse_first = sorted(there.items(), key=lambda pair: -pair[1])
        sizes = ", ".join(f"{u:.2g} in {escape(name)}" for name, u in coarse_first)
        said.append(f"the <i>unit roundoff</i> is the largest relative error of one rounding, {sizes}")
    if any(label.name == "isolated" and label.number("probe") for label in labels if "probe" in label.text):
        said.append("<i>probe=1</i> measures each chunk as a question put to the caches before it")
    text = f"Words: {'; '.join(said)}."
    text += f" {STORAGE_WORDS}" if any(is_stored_coarsely(label.text) for label in labels) else ""
    return f'<p class="words">{text}</p>'


def table_legend() -> str:
    """Explain the table of :func:`drift.reading.summary.levels.table`, in Markdown."""
    return (
        f"Level: geometric mean {late_rule()}, then over documents; `low` and `high` are the smallest and the largest "
        "document. Verdict and growth per doubling of chain depth, with its "
        f"{coverage(intervals.ALPHA)} interval: two one-sided tests, see the page on the claims. Zeros and non-finite "
        "values are counted, not averaged."
    )
