"""The audit for a page: what it answers, and its findings without saying anything twice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

import pandas as pd

from drift.dataset.sweep import Sweep
from drift.reading.amplitudes import SHORT
from drift.reading.cells import deepest, judged_chains
from drift.reading.claims.model import SIGNS, Audit, Claim, ClaimSummary, Finding, Status
from drift.reading.claims.page import pair_words, probability
from drift.reading.claims.published import CLAIMS
from drift.reading.claims.wording import writer
from drift.reading.statistics.intervals import holm
from drift.reading.wording.numbers import coverage, number, percent, range_words

__all__ = [
    "answer",
    "by_chunk",
    "by_measure",
    "chain_answer",
    "chain_table",
    "findings",
    "measures_legend",
    "verdict_table",
]

_SAYS = {
    Status.SUPPORTED: "bears out",
    Status.REFUTED: "contradicts",
    Status.UNDETERMINED: "leaves open",
    Status.NOT_TESTED: "does not test",
}


def answer(found: Audit) -> list[str]:
    """Say in a sentence per reading of the fold what becomes of the published claims under it."""
    if found.withheld:
        return ["No verdict is drawn: controls of the instrument failed."]
    said = []
    for protocol in dict.fromkeys(s.protocol for s in found.summaries if s.protocol):
        mine = [s for s in found.summaries if s.protocol == protocol]
        published = [s for s in mine if not s.claim.ours]
        parts = [
            f"{word} {', '.join(s.claim.name for s in published if s.status is status)}"
            for status, word in _SAYS.items()
            if any(s.status is status for s in published)
        ]
        ours = [f"{s.claim.part} {s.status.value}" for s in mine if s.claim.ours and s.status is not Status.NOT_TESTED]
        beside = f"; beside the published claims: {', '.join(ours)}" if ours else ""
        said.append(f"{protocol}: {'; '.join(parts)}{beside}.")
    return said or ["No claim was tested under any reading."]


def _by_claim(found: Audit) -> dict[Claim, list[ClaimSummary]]:
    rows: dict[Claim, list[ClaimSummary]] = {}
    for s in found.summaries:
        rows.setdefault(s.claim, []).append(s)
    return rows


def verdict_table(found: Audit) -> str:
    """Write the verdicts as HTML: a row per claim and verdict, with the readings that have it.

    It needs no sideways scrolling on a telephone, however many readings there are.
    """
    rows = []
    for claim, summaries in _by_claim(found).items():
        groups = {status: [s.protocol for s in summaries if s.status is status] for status in Status}
        there = [(status, names) for status, names in groups.items() if names]
        head = f"<b>{escape(claim.name)}</b><br><span class='soft'>{escape(claim.published)}</span>"
        first = f"<th scope='row' rowspan='{len(there)}'>{head}</th>"
        for status, names in there:
            name = status.value
            badge = f'<span class="{name.replace(" ", "-")}">{SIGNS[status]} {name}</span>'
            under = ", ".join(names).strip(", ") or "–"
            rows.append(f'<tr>{first}<td class="verdict">{badge}</td><td>{escape(under)}</td></tr>')
            first = ""
    head = "".join(f"<th>{name}</th>" for name in ("claim", "verdict", "under"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll short">{table}</div>'


def findings(found: Audit, key: str) -> pd.DataFrame:
    """Every finding on one published claim by the headline measure, with p-values; Holm's correction as the summary's.

    Parameters
    ----------
    found : Audit
    key : str
        Such as ``"C1"``.
    """
    rows = []
    for s in found.summaries:
        if s.claim.key != key:
            continue
        for f, adjusted in zip(s.findings, holm([f.p_refute for f in s.findings]), strict=True):
            rows.append(
                {
                    "claim": s.claim.name,
                    "reading": s.protocol,
                    "chain or chains": f.scope,
                    "verdict": f"{SIGNS[f.status]} {f.status.value}",
                    "p (support)": probability(f.p_support),
                    "p (refute, Holm)": probability(adjusted),
                    "finding": f.words,
                }
            )
    return pd.DataFrame(rows)


def by_measure(found: Audit) -> pd.DataFrame:
    """Verdict and estimate of every finding by every measure: a row per finding, a column per measure."""
    claims = {(c.key, c.part): c for c in CLAIMS}
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for f in found.findings:
        if claims[f.claim, f.part].asked is not None:
            continue
        name = claims[f.claim, f.part].name
        row = rows.setdefault(
            (name, f.protocol, f.scope), {"claim": name, "reading": f.protocol, "chain or chains": f.scope}
        )
        row[SHORT.get(f.measure, f.measure)] = f"{SIGNS[f.status]} {_number(f)}"
    return pd.DataFrame(list(rows.values()))


def _number(finding: Finding) -> str:
    if math.isnan(finding.estimate):
        return finding.status.value
    write = writer(next(c for c in CLAIMS if (c.key, c.part) == (finding.claim, finding.part)))
    known = not any(map(math.isnan, finding.interval))
    return f"{write(finding.estimate)} ({pair_words(finding.interval, write)})" if known else write(finding.estimate)


def measures_legend(found: Audit) -> str:
    """Say once what the numbers of :func:`by_measure` are."""
    of_drift = {(c.key, c.part) for c in CLAIMS if c.asked is None}
    drift = [f for f in found.findings if (f.claim, f.part) in of_drift]
    said = dict.fromkeys(f"{f.claim} {f.part}, {f.effect}" for f in drift)
    there = {f.status for f in drift}
    signs = ", ".join(f"{sign} {status.value}" for status, sign in SIGNS.items() if status in there)
    return (
        f"{signs}. In parentheses {coverage(found.setting.alpha)} intervals. Estimated are: {'; '.join(said)}. "
        "A divergence enters as its square root."
    )


def by_chunk(sweep: Sweep) -> Iterator[tuple[str, int, Sweep]]:
    """Yield the chains that C1 judges, per protocol in pictures that hold one chunk size per model and precision.

    Yields
    ------
    str
        The protocol.
    int
        0 for the deepest chains; of the others their chunk size.
    Sweep
    """
    for protocol in map(str, sweep.values("protocol")):
        part = sweep.sel(protocol=protocol)
        first = deepest(part)
        yield protocol, 0, sweep.derive(first)
        others = [ds for ds in judged_chains(part) if all(ds is not one for one in first)]
        for size in sorted({ds["chunk_size"].item() for ds in others}):
            yield protocol, size, sweep.derive(ds for ds in others if ds["chunk_size"].item() == size)


def chain_table(found: Audit) -> pd.DataFrame:
    """What every judged chain does: a row per chain, with its growth, and where it stands to its rounding floor."""
    by_chain: dict[tuple[str, str], dict[str, str]] = {}
    for s in found.summaries:
        for f in s.findings if s.claim.name in ("C1 plateau", "C1 excess") else ():
            row = by_chain.setdefault((f.protocol, f.scope), {"reading": f.protocol, "chain": f.scope})
            verdict = f.detail["verdict"].replace("_", " ")
            known = f", {percent(f.estimate)}" if math.isfinite(f.estimate) else ""
            if s.claim.name == "C1 plateau":
                row |= {"drift, growth per doubling": verdict + known, "transitions": str(f.detail["transitions"])}
            else:
                standing = f.detail["standing"].replace("_", " ")
                row |= {"drift over floor, growth": verdict + known,
                        "against the floor": f"{standing}, {number(f.detail['level'], 3)} floors"}  # fmt: skip
    return pd.DataFrame(list(by_chain.values()))


def chain_answer(found: Audit) -> list[str]:
    """Say per reading what its chains do, by themselves and over their rounding floor."""
    said = []
    for protocol in dict.fromkeys(s.protocol for s in found.summaries if s.protocol):
        parts = []
        for name, what in (("C1 plateau", "drift along the chain"), ("C1 excess", "drift over its floor")):
            findings = [
                f for s in found.summaries if (s.claim.name, s.protocol) == (name, protocol) for f in s.findings
            ]
            kinds = [f.detail["verdict"].replace("_", " ") for f in findings]
            counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
            growth = range_words((f.estimate for f in findings), write=percent)
            parts += [f"{what}: {counted} of {len(kinds)} chains ({growth} per doubling)"] if findings else []
        said += [f"{protocol}: {'; '.join(parts)}."] if parts else []
    return said
