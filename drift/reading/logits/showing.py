"""A comparison of logits as one page of text, and as JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from drift.reading.logits import wording
from drift.reading.logits.model import LogitComparison, Quantity
from drift.reading.logits.pairing import Pairs
from drift.reading.statistics.intervals import ALPHA
from drift.reading.wording.numbers import coverage, plain
from drift.shown import printable

__all__ = ["as_dict", "page"]

WIDTH = 110


def as_dict(found: LogitComparison) -> dict[str, Any]:
    """The comparison as plain data, ready for JSON.

    Keys
    ----
    verdict, reason, exit_code, explanation
        The first two are names of :class:`~drift.reading.logits.model.Verdict` and
        :class:`~drift.reading.logits.model.Reason`; the last is a list of sentences.
    next
        Sentences on what to dump next.
    lanes, forms
        Names of A, B and the repeats, and what these files are.
    units, clip, positions, sequences
        What was asked, and how much was compared.
    numbers
        By name (:class:`~drift.reading.logits.model.Quantity`): `value`, `low` and `high` (interval over sequences),
        and `floor`, one value per repeat. Shares are fractions, divergences nats.
    excess
        Distance over floor as a ratio of amplitudes: `ratio`, `low`, `high`, `replicates`, `tail` and more; null
        without a floor.
    flips, near_ties
        Numbers of positions; near-ties are null without a floor.
    nonfinite
        Positions at which A, B, one of them alone and both have NaN or infinities.
    furthest
        Sequence and position, or null.
    growth, growth_of
        Verdict on the curve over positions, or null, and what it is a curve of.

    Notes
    -----
        Sentences.
    """
    pairs = found.pairs
    return plain(
        {
            "verdict": found.verdict,
            "reason": found.reason,
            "exit_code": found.exit_code,
            "explanation": list(wording.why(found)),
            "next": list(wording.next_steps(found)),
            "lanes": found.lanes,
            "forms": found.forms,
            "units": found.units,
            "clip": found.clip,
            "positions": len(pairs),
            "sequences": len(set(pairs.sequence.tolist())),
            "numbers": {name.value: vars(one) for name, one in found.numbers.items()},
            "excess": None if found.excess is None else vars(found.excess),
            "flips": int((pairs.flip == 1).sum()),
            "near_ties": found.near_ties,
            "nonfinite": _nonfinite(pairs),
            "furthest": found.furthest,
            "growth": None if found.growth is None else found.growth.as_dict(),
            "growth_of": found.growth_of,
            "notes": list(wording.notes(found)),
        }
    )


def _nonfinite(pairs: Pairs) -> dict[str, int]:
    places = {"a": pairs.bad_a, "b": pairs.bad_b, "one_alone": pairs.odd, "both": pairs.bad_a & pairs.bad_b}
    return {name: int(where.sum()) for name, where in places.items()}


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=" " * max(2, len(indent)))


_Row = tuple[str, str, str, str]


def _row(found: LogitComparison, name: Quantity, label: str, share: bool) -> _Row | None:
    one = found.numbers.get(name)
    if one is None:
        return None
    interval = ""
    if math.isfinite(one.low):
        interval = f"{wording.written(one.low, share)} to {wording.written(one.high, share)}"
    known = sorted(value for value in one.floor if not math.isnan(value))
    ends = [wording.written(value, share) for value in known[:1] + known[-1:]]
    floor = ends[0] if len(set(ends)) == 1 else " to ".join(ends)
    return f"  {label}", wording.written(one.value, share), interval, floor


def _tables(found: LogitComparison) -> list[str]:
    interval = f"{coverage(ALPHA)} interval"
    blocks: list[tuple[str, list[_Row]]] = []
    for title, rows in (*wording.SECTIONS, ("in llama.cpp's order (Q is B, base is A)", wording.LLAMA)):
        shown = [row for each in rows if (row := _row(found, *each)) is not None]
        if shown:
            blocks.append((title, shown))
    repeats = "repeats" if len(found.lanes) > 2 else ""
    head: _Row = ("", "B", interval, repeats)
    every: Sequence[_Row] = [head, *(row for _, rows in blocks for row in rows)]
    widths = [max(len(row[k]) for row in every) for k in range(len(head))]

    def line(row: _Row) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    lines = [line(head)]
    for title, shown in blocks:
        lines += [title, *map(line, shown)]
    return lines


def page(found: LogitComparison) -> str:
    """Lay a comparison out as one page: verdict, what it rests on, numbers, growth, notes."""
    pairs = found.pairs
    names = ["A", "B", *(f"C{n}" for n in range(1, len(found.lanes) - 1))]
    lines = [f"{name:<3}{lane}: {form}" for name, lane, form in zip(names, found.lanes, found.forms, strict=True)]
    sequences = len(set(pairs.sequence.tolist()))
    lines += [f"   compared: {len(pairs):,} positions of {sequences:,} sequence{'s' * (sequences != 1)}", ""]
    lines.append(wording.headline(found))
    for text in wording.why(found):
        lines += _wrapped(text)
    for text in wording.next_steps(found):
        lines += _wrapped(f"Next: {text}")
    if found.numbers:
        lines += ["", *_tables(found)]
    if found.growth is not None:
        what = (
            f"growth of {found.growth_of.words} with the position, in steps of equal length (documents are sequences)"
        )
        lines += ["", what, *_wrapped(found.growth.explanation)]
    said = list(wording.notes(found))
    if said:
        lines += ["", "Notes"]
        for note in said:
            lines += _wrapped(note, "  - ")
    return "\n".join(map(printable, lines))
