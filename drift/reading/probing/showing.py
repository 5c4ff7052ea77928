"""A probe as one page of text, as JSON, and as the body of an HTML page."""

from __future__ import annotations

import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from drift.reading.logits.model import Verdict
from drift.reading.probing import wording
from drift.reading.probing.model import Found, Pair
from drift.reading.wording.numbers import plain
from drift.shown import printable

__all__ = ["as_dict", "body", "page"]

WIDTH = 110
_HEAD = (
    "compared with cold",
    "verdict",
    "tokens",
    "cached",
    "differing",
    "mean, nats",
    "largest",
    "over floor",
    "floor",
)
#: Classes of a page's style sheet.
_CLASSES = {
    Verdict.SAME: "supported",
    Verdict.WITHIN: "supported",
    Verdict.BEYOND: "refuted",
    Verdict.UNDETERMINED: "undetermined",
}


def as_dict(found: Found) -> dict[str, Any]:
    """The probe as plain data, ready for JSON.

    Keys
    ----
    verdict, exit_code, headline
        Of all pairs together.
    endpoint, engine, model, nonce, prompts, requests, seconds
        What was asked.
    pairs
        Of each lane against the cold one: `view`, `lane`, `kind`, `verdict`, `why` (a
        :class:`~drift.reading.probing.model.Why`), `explanation`, `floor` (the lane that it was held against),
        `positions`, `differing` and `cached` (shares), `mean` and `largest` (changes of log-probabilities, nats),
        `excess` (as in :func:`drift.reading.logits.as_dict`), `partings`, `moved` (nats).
    left_out, notes
        Sentences.
    """
    probe = found.probe
    return plain(
        {
            "verdict": found.verdict,
            "exit_code": found.exit_code,
            "headline": wording.headline(found),
            "endpoint": probe.endpoint,
            "engine": probe.engine,
            "model": probe.model,
            "nonce": probe.nonce,
            "prompts": len(probe.lanes[0].answers) if probe.lanes else 0,
            "requests": probe.requests,
            "seconds": probe.seconds,
            "pairs": [_pair(pair) for pair in found.pairs],
            "left_out": probe.left_out,
            "notes": list(wording.notes(found)),
        }
    )


def _pair(pair: Pair) -> dict[str, Any]:
    sizes, over = pair.sizes, None if pair.comparison is None else pair.comparison.excess
    return {
        "view": pair.view,
        "lane": pair.lane,
        "kind": pair.kind,
        "verdict": pair.verdict,
        "why": pair.why,
        "explanation": list(wording.why(pair)),
        "floor": pair.floor or None,
        "positions": pair.positions,
        "differing": pair.differing,
        "cached": pair.cached,
        "mean": float(sizes.mean()) if sizes.size else None,
        "largest": float(sizes.max()) if sizes.size else None,
        "excess": None if over is None else vars(over),
        "partings": [vars(one) for one in pair.partings],
        "moved": pair.moved,
    }


def _about(found: Found) -> list[str]:
    probe = found.probe
    count = len(probe.lanes[0].answers) if probe.lanes else 0
    return [
        f"{probe.endpoint}: {probe.engine}, model {probe.model}",
        f"{count} prompts, {probe.requests:,} requests, {probe.seconds:.0f} s, nonce {probe.nonce}",
    ]


def _rows(found: Found) -> list[tuple[str, ...]]:
    return [(f"{pair.lane}, {pair.view.value}", wording.short(pair), *wording.numbers(pair)) for pair in found.pairs]


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=" " * max(2, len(indent)))


def page(found: Found) -> str:
    """Lay a probe out as one page: verdict, the pairs, what each rests on, notes."""
    rows = [_HEAD, *_rows(found)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(_HEAD))]
    lines = [wording.headline(found), *(f"  {line}" for line in _about(found)), ""]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append("")
    for pair in found.pairs:
        said = " ".join(wording.why(pair))
        lines += _wrapped(f"{pair.lane}, {pair.view.value}: {wording.short(pair)}. {said}", "")
    said_of = list(wording.notes(found))
    if said_of:
        lines += ["", "Notes"]
        for note in said_of:
            lines += _wrapped(note, "  - ")
    return "\n".join(map(printable, lines))


@cache
def _template() -> jinja2.Template:
    text = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(text)


def body(found: Found) -> str:
    """Lay a probe out as the body of an HTML page; texts of the server are escaped."""
    rows = [
        {"cells": row, "kind": _CLASSES[pair.verdict], "why": list(map(printable, wording.why(pair)))}
        for row, pair in zip(_rows(found), found.pairs, strict=True)
    ]
    return _template().render(
        headline=printable(wording.headline(found)),
        about=list(map(printable, _about(found))),
        head=_HEAD,
        rows=rows,
        notes=list(map(printable, wording.notes(found))),
    )
