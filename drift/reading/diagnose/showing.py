"""A diagnosis as one page of text, and as JSON."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np

from drift.reading.diagnose.envelope import ALLOWANCE
from drift.reading.diagnose.floors import MARGIN, Excess
from drift.reading.diagnose.model import Diagnosis, Verdict
from drift.reading.diagnose.tensors import FORMATS, Place
from drift.shown import printable

__all__ = ["as_dict", "page"]

WIDTH = 110
_ROWS = 14


def _finite(value: Any) -> Any:
    """Replace what JSON cannot say by None."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def _rows(found: Diagnosis) -> list[dict[str, Any]]:
    """One row per place: how far apart, in what terms, against which envelope."""
    rows = []
    compared = found.comparison
    whole = {one.place: one for one in found.excess if one.start == 0}
    for place, profile in compared.profiles.items():
        envelope = found.envelopes[place]
        ratio = envelope.ratio[np.isfinite(envelope.ratio)]
        rows.append(
            {
                "kind": place.kind,
                "block": place.block,
                "rel_l2": profile.rel_l2(0, compared.tokens),
                "share_differing": profile.differing / profile.elements,
                "largest_in_roundoffs": profile.largest / found.roundoff.value,
                "median_envelope": float(np.nanmedian(envelope.bound)),
                "ratio_75": float(np.quantile(ratio, 0.75)) if ratio.size else None,
                "ratio_max": float(ratio.max()) if ratio.size else None,
                "excess": _excess(whole.get(place)),
                "nonfinite": sum(n for pair in profile.nonfinite.values() for n in pair),
            }
        )
    return rows


def _excess(one: Excess | None) -> dict[str, Any] | None:
    """What a place is against the floor."""
    if one is None:
        return None
    return {
        "ratio": one.ratio, "lower_limit": one.low, "upper_limit": one.high, "over_texts": [one.least, one.most],
        "floor": one.floor, "counts": one.trusted, "smallest_bug": one.smallest,
    }  # fmt: skip


def as_dict(found: Diagnosis) -> dict[str, Any]:
    """The diagnosis as plain data, ready for JSON.

    Keys
    ----
    verdict, cause, cause_text, reason
        Names of :class:`~drift.reading.diagnose.model.Verdict` and
        :class:`~drift.reading.diagnose.model.Cause`, and words.
    missing
        Sentences on where one lane ends early.
    could_hide
        Relative size of a bug that would read as rounding; null where that was not asked.
    step, step_a, step_b, kind, block, tokens
        Where the difference enters (null where there is none); `step` is that of the lane with more steps, and `tokens`
        a half-open range.
    evidence
        Sentences with their numbers.
    envelope
        Unit roundoff, what told it (:class:`~drift.reading.diagnose.envelope.Source`), allowance, formula.
    compared, notes, places
        Counts, what was not compared, and one row per place: `rel_l2`, `share_differing`, `largest_in_roundoffs` (the
        largest difference of an element in unit roundoffs of itself or, for small elements, of its row's root mean
        square), `median_envelope`, `ratio_75` and `ratio_max` (difference over envelope); with a floor `excess`: the
        difference over it, `ratio`, with limits, the least and the largest of a text, the floor itself, whether it
        counts (measures all rounding there), and the relative size of a bug that would have been seen.
    """
    compared, entry = found.comparison, found.entry
    finer = "b" if compared.b.steps >= compared.a.steps else "a"
    return _finite(
        {
            "verdict": found.verdict.value,
            "cause": found.cause.value,
            "cause_text": found.cause_text,
            "reason": found.reason,
            "missing": found.missing,
            "could_hide": found.could_hide,
            "step": None if entry is None else (entry.step_b if finer == "b" else entry.step_a),
            "step_a": None if entry is None else entry.step_a,
            "step_b": None if entry is None else entry.step_b,
            "kind": None if entry is None else entry.place.kind,
            "block": None if entry is None else entry.place.block,
            "tokens": None if entry is None else [entry.start, entry.stop],
            "evidence": [{"text": e.text, **e.numbers} for e in found.evidence],
            "envelope": {
                "unit_roundoff": found.roundoff.value,
                "unit_roundoff_from": found.roundoff.why,
                "arithmetic": found.roundoff.source.value,
                "kappa": ALLOWANCE,
                "formula": "kappa * (incoming difference + local rounding)",
            },
            "compared": {
                "places": len(compared.profiles),
                "numbers": sum(p.elements for p in compared.profiles.values()),
                "numbers_differing": sum(p.differing for p in compared.profiles.values()),
                "tokens": compared.tokens,
                "steps_a": compared.a.steps,
                "steps_b": compared.b.steps,
                "only_in_a": len(compared.only["A"]),
                "only_in_b": len(compared.only["B"]),
                "mismatched": len(compared.mismatched),
            },
            "notes": found.notes,
            "places": _rows(found),
        }
    )


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=" " * max(2, len(indent)))


def _lane(found: Diagnosis, lane: str) -> str:
    dump = found.comparison.a if lane == "A" else found.comparison.b
    formats = sorted({FORMATS[d].name for place in dump.places for d in dump.dtypes(place)})
    steps = "1 step" if dump.steps == 1 else f"{dump.steps} steps"
    return f"{lane}  {dump.folder}: {dump.tokens} tokens in {steps}, {', '.join(formats)}"


def _name(place: Place) -> str:
    if place.kind == "hidden":
        return "embeddings" if place.block == 0 else f"hidden {place.block}"
    return place.kind if place.kind in ("final", "logits") else f"{place.kind} {place.block}"


def _shown(found: Diagnosis) -> list[int]:
    """Which places the table shows: around the entry, and the ends."""
    places = list(found.comparison.profiles)
    if len(places) <= _ROWS:
        return list(range(len(places)))
    entry = found.entry.place if found.entry is not None else None
    lookup = {"cache_key": "key", "cache_value": "value"}
    if entry is not None and entry.kind in lookup:
        entry = Place(lookup[entry.kind], entry.block)
    middle = places.index(entry) if entry in places else 0
    around = range(max(0, middle - 3), min(len(places), middle + 6))
    return sorted({0, *around, len(places) - 2, len(places) - 1})


def _table(found: Diagnosis) -> list[str]:
    head: tuple[str, ...] = ("place", "relative L2", "differing", "largest", "envelope", "of envelope")
    head += ("of floor",) if found.excess else ()
    cells = [head]
    rows, places, last = _rows(found), list(found.comparison.profiles), -1
    for index in _shown(found):
        if index != last + 1:
            cells.append(("...",) + ("",) * (len(head) - 1))
        last, row = index, rows[index]
        mark = " <-" if found.entry is not None and found.entry.place == places[index] and found.exit_code else ""
        cells.append(
            (
                _name(places[index]),
                f"{row['rel_l2']:.2g}",
                f"{100 * row['share_differing']:.3g} %",
                f"{row['largest_in_roundoffs']:.2g} u",
                f"{row['median_envelope']:.2g}",
                ("n/a" if row["ratio_75"] is None else f"{row['ratio_75']:.2g}") + mark,
                *([_of_floor(row["excess"])] if found.excess else []),
            )
        )
    widths = [max(len(row[k]) for row in cells) for k in range(len(head))]
    lines = []
    for cell in cells:
        line = "  ".join(
            c.ljust(w) if k in (0, 5, 6) else c.rjust(w) for k, (c, w) in enumerate(zip(cell, widths, strict=True))
        )
        lines.append("  " + line.rstrip())
    return lines


def _of_floor(excess: dict[str, Any] | None) -> str:
    if excess is None:
        return "n/a"
    least, most = excess["over_texts"]
    spread = f" ({least:.3g} to {most:.3g})" if least < most else ""
    return f"{excess['ratio']:.3g}{spread}" + ("" if excess["counts"] else " *")


def page(found: Diagnosis) -> str:
    """Lay a diagnosis out as one page: verdict, entry, evidence, table, and what was not compared."""
    lines = [_lane(found, "A"), _lane(found, "B"), ""]
    for text in found.missing:
        lines += _wrapped(f"Missing: {text}.", "")
    lines.append(f"{found.verdict.value.upper().replace('_', ' ')}. {found.verdict.sentence}")
    if found.cause_text:
        lines += _wrapped(f"Cause: {found.cause_text}.")
    if found.reason:
        lines += _wrapped(f"Why: {found.reason}.")
    entry = found.entry
    if entry is not None and found.verdict is not Verdict.ROUNDING:
        tokens = (
            f"token {entry.start}" if entry.stop - entry.start == 1 else f"tokens {entry.start} to {entry.stop - 1}"
        )
        suspected = found.verdict is Verdict.UNDETERMINED and found.could_hide is not None
        where = "Look first at" if suspected else "Enters at"
        lines += _wrapped(f"{where}: {entry.place}; step {entry.step_a} of A, step {entry.step_b} of B; {tokens}.")
    lines += ["", "Evidence"]
    for index, evidence in enumerate(found.evidence, 1):
        lines += _wrapped(evidence.text, f"  {index}. ")
    if found.verdict is not Verdict.SAME:
        lines += ["", *_table(found), ""]
        lines += _wrapped(
            f"Envelope: {ALLOWANCE:.3g} x (difference of the inputs + rounding of the place itself), for a "
            "unit roundoff u "
            f"of {found.roundoff.value:.3g} ({found.roundoff.why}). Envelopes are medians over tokens; the last "
            "column is "
            "difference over envelope, at the 75th percentile of tokens. From the entry on, what was wrong "
            "before is input, "
            "and accuses nobody."
        )
        if found.excess:
            lines += _wrapped(
                "Of floor: the difference over that of equally right ways to compute A, geometric mean over stretches "
                "of "
                f"the text, and its range over texts; {MARGIN:g} are granted. Places with a * have bits in common with "
                "repeats of A that other kernels would not have, and do not count."
            )
    if found.notes:
        lines += ["", "Notes"]
        for note in found.notes:
            lines += _wrapped(note, "  - ")
    return "\n".join(map(printable, lines))
