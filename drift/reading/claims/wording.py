"""Findings in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from drift import _published as largest
from drift.reading.claims.model import Claim, Finding, Status
from drift.reading.wording.numbers import fixed_number, percent, rise_words
from drift.reading.wording.tasks import unmeasured_words
from drift.reading.wording.verdicts import STORAGE_WORDS, is_stored_coarsely

__all__ = ["GROWTH_CLAIMS", "claim_sentence", "span", "writer"]

#: Rows whose estimate is growth per doubling of depth.
GROWTH_CLAIMS = ("C1 plateau", "C1 excess", "C1 accumulation")


def _count(findings: Sequence[Finding]) -> str:
    counts = [(s.value, sum(f.status is s for f in findings)) for s in Status]
    said = [f"{n} {name}" for name, n in counts if n]
    return ", ".join(said) + f" of {len(findings)}"


def _counted(kinds: Sequence[str]) -> str:
    said = ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds))
    return f" ({said})" if said else ""


def claim_sentence(claim: Claim, findings: Sequence[Finding], status: Status) -> str:
    """One sentence on a summary, from the findings."""
    note = f" {STORAGE_WORDS}" if claim.key == "C2" and is_stored_coarsely(findings[0].protocol) else ""
    if claim.key == "C5" and not claim.ours:
        note += _unmeasured(findings)
    if len(findings) == 1:
        return f"{findings[0].scope}: {findings[0].words}{note}"
    good = [f for f in findings if math.isfinite(f.estimate)]
    text = _count(findings)
    if status is not Status.REFUTED and any(f.status is Status.REFUTED for f in findings):
        text += ", none after Holm's correction"
    if claim.key == "C4" and claim.part == "plateau":
        return "; ".join(f"{f.scope}: {f.words.rstrip('.')}" for f in findings) + "."
    write = writer(claim)
    if good:
        low, high = write(min(f.estimate for f in good)), write(max(f.estimate for f in good))
        text += f"; {good[0].effect} {low}" + (f" to {high}" if high != low else "")
    zero = sum(math.isinf(f.estimate) for f in findings)
    if zero:
        text += f"; from exactly zero (the same bits at first) in {zero}"
    if not good and not zero:
        text += f"; no estimate of the {findings[0].effect}"
    if claim.name in GROWTH_CLAIMS:
        depths = sorted({f.detail["transitions"] for f in findings})
        text += f"; chains of {span(depths)} transitions"
        kinds = [f.detail["verdict"].replace("_", " ") for f in findings if f.status is not Status.NOT_TESTED]
        text += _counted(kinds)
        needed = [f.detail["documents_needed"] for f in findings if f.status is Status.UNDETERMINED]
        if needed and all(math.isfinite(n) for n in needed):
            text += f"; to decide all, about {max(needed):.0f} documents of this depth"
        standings = [f.detail["standing"].replace("_", " ") for f in findings if "standing" in f.detail]
        if standings:
            text += "; against the floor: " + ", ".join(f"{standings.count(k)} {k}" for k in dict.fromkeys(standings))
        inherited = sum(f.status is Status.NOT_TESTED for f in findings)
        if inherited:
            text += f"; in {inherited} the one-step error is exactly zero too often for a ratio: drift is inherited"
    if claim.key == "C6":
        text += f"; {findings[-1].detail['beyond']}"
    if claim.key == "C2":
        text += _counted([f.detail["kind"] for f in findings if f.detail])
    return f"{text}.{note}"


def _unmeasured(findings: Sequence[Finding]) -> str:
    """Say what was published and not measured: larger models and longer texts; empty where they were."""
    if any(f.detail["published_size"] for f in findings):
        return ""
    longest = max(f.detail["tokens"] for f in findings)
    return f" {unmeasured_words(longest, largest.TOKENS, largest.PARAMETERS)}"


def span(values: Sequence[int]) -> str:
    """Write the smallest and the largest of sorted numbers."""
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def writer(claim: Claim) -> Callable[[float], str]:
    """How an estimate of a claim is written."""
    if claim.name in (*GROWTH_CLAIMS, "C3 chunk size"):
        return percent
    if claim.key == "C2":
        return fixed_number
    if claim.name == "C1 rise":
        return rise_words
    return lambda v: f"{v:.3g}" if abs(v) >= 0.0005 else f"{v:z.4f}"
