"""The claims table and everything around it, for people: Markdown, HTML, sentences, tables, commands."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

import pandas as pd

from drift.dataset.sweep import Sweep
from drift.reading.amplitudes import BOUNDED, NEAR, SHORT, UNRELATED, amplitude_power
from drift.reading.claims.model import PUBLISHED_DEPTH, SIGNS, Audit, Claim, ClaimSummary, Finding, Setting, Status
from drift.reading.claims.published import CLAIMS
from drift.reading.claims.wording import span, writer
from drift.reading.statistics.intervals import holm
from drift.reading.statistics.windows import DOCUMENTS, LATE_STEP, WINDOWS
from drift.reading.wording.numbers import coverage
from drift.reading.wording.tables import marked
from drift.reading.wording.windows import share_name

__all__ = [
    "by_protocol",
    "changes",
    "commands",
    "contradiction_lines",
    "differing",
    "estimate",
    "evidence",
    "files",
    "html",
    "limits",
    "markdown",
    "matrix",
    "meaning",
    "method",
    "pair_words",
    "probability",
    "share_words",
    "task_meaning",
    "verdict_sentences",
]


def contradiction_lines(found: Audit) -> list[str]:
    """Say where the precision ladder and the rounding floor contradict each other: the first lines of any table."""
    return [f"Contradiction: {words}" for words in found.contradictions]


def differing(summary: ClaimSummary) -> str:
    """Say which measures have another verdict than the headline measure; a dash if none has."""
    by: dict[Status, list[str]] = {}
    for measure, status in summary.differing.items():
        by.setdefault(status, []).append(SHORT.get(measure, measure))
    return "; ".join(f"{status.value}: {', '.join(names)}" for status, names in by.items()) or "–"


def markdown(found: Audit) -> str:
    """Lay the claims table out as Markdown."""
    lines = [text for one in contradiction_lines(found) for text in (f"**{marked(one)}**", "")]
    lines += ["| claim | published | protocol | verdict | finding | other measures |", "|---|---|---|---|---|---|"]
    for claim, summaries in _parts(found).items():
        for protocols, s in _rows(summaries):
            cells = [claim.name, claim.published, protocols, f"**{s.status.value}**", s.words, differing(s)]
            lines.append("| " + " | ".join(map(marked, cells)) + " |")
    return "\n".join(lines)


def _rows(summaries: Sequence[ClaimSummary]) -> list[tuple[str, ClaimSummary]]:
    """A claim's summaries, each with its protocol; those not tested for the same reason share a row, the last."""
    rows = [(s.protocol or "–", s) for s in summaries if s.status is not Status.NOT_TESTED]
    untested: dict[str, list[ClaimSummary]] = {}
    for s in summaries:
        if s.status is Status.NOT_TESTED:
            untested.setdefault(s.words, []).append(s)
    return rows + [(", ".join(s.protocol or "–" for s in same), same[0]) for same in untested.values()]


def _join(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))


def share_words(x: float) -> str:
    """Write a share as a percentage."""
    return f"{100 * x:.3g} %"


def _parts(found: Audit, key: str = "") -> dict[Claim, list[ClaimSummary]]:
    """Summaries by claim; of one published claim, or of all."""
    parts: dict[Claim, list[ClaimSummary]] = {}
    for s in found.summaries:
        if key in ("", s.claim.key, s.claim.name):
            parts.setdefault(s.claim, []).append(s)
    return parts


def by_protocol(summaries: Sequence[ClaimSummary]) -> str:
    """Say the verdicts on one claim: ``"refuted under append; supported under reprime and restart"``."""
    names: dict[Status, list[str]] = {}
    for s in summaries:
        names.setdefault(s.status, []).extend([s.protocol] if s.protocol else [])
    return "; ".join(f"{v.value} under {_join(n)}" if n else v.value for v, n in names.items())


def matrix(found: Audit) -> pd.DataFrame:
    """Verdicts side by side: one row per protocol, one column per claim that was tested under any.

    Rows that nobody published have none where no cell could test them.
    """
    claims = [
        c
        for c, group in _parts(found).items()
        if any(s.protocol and not (c.ours and s.status is Status.NOT_TESTED) for s in group)
    ]
    protocols = dict.fromkeys(s.protocol for s in found.summaries if s.protocol)
    status = {(s.claim.name, s.protocol): s.status for s in found.summaries}
    rows = []
    for protocol in protocols:
        verdicts = {c.name: status.get((c.name, protocol), Status.NOT_TESTED) for c in claims}
        rows.append({"protocol": protocol, **{name: f"{SIGNS[v]} {v.value}" for name, v in verdicts.items()}})
    return pd.DataFrame(rows)


def html(found: Audit) -> str:
    """Write the claims table as HTML; the class of a verdict is its name."""
    names = ("claim", "what was published", "protocol", "verdict", "finding", "other measures that disagree")
    rows = []
    for claim, summaries in _parts(found).items():
        lines = _rows(summaries)
        span = f' rowspan="{len(lines)}"'
        first = f"<th scope='row'{span}>{escape(claim.name)}</th><td{span}>{escape(claim.published)}</td>"
        for protocols, s in lines:
            name = s.status.value
            verdict = f'<span class="{name.replace(" ", "-")}">{SIGNS[s.status]} {name}</span>'
            rest = f"<td>{escape(s.words)}</td><td data-label='other measures'>{escape(differing(s))}</td>"
            under = f"<td data-label='under'>{escape(protocols)}</td>"
            rows.append(f'<tr>{first}{under}<td class="verdict">{verdict}</td>{rest}</tr>')
            first = ""
    head = "".join(f"<th>{name}</th>" for name in names)
    alarms = [f'<p class="contradiction" role="alert">{escape(line)}</p>' for line in contradiction_lines(found)]
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'{"".join(alarms)}<div class="claims">{table}</div>'


def meaning(found: Audit) -> str:
    """Say what the words of the verdicts mean, with the margins that were used."""
    s = found.setting
    return (
        f"**{SIGNS[Status.SUPPORTED]} Supported**: every cell passes two one-sided tests at level {s.alpha:g} of lying "
        f"within the margin set in advance (growth per doubling of depth {share_words(s.growth)}, change with the "
        f"precision {share_words(s.precision)}, change per doubling of the chunk size {share_words(s.chunk)}, models "
        f"within a factor {s.family:g}); a claim about all cells needs all of them (intersection-union). "
        f"**{SIGNS[Status.REFUTED]} Refuted**: at least one cell passes the test of lying beyond it, after Holm's "
        f"correction over the cells. **{SIGNS[Status.UNDETERMINED]} Undetermined**: neither; a test that fails to find "
        f"a difference supports nothing. The claims are those of arXiv 2605.12471; the "
        f"verdicts are by the drift of the {SHORT.get(found.measure, found.measure)}."
        + "".join(f" {marked(text)}" for text in (found.scope, found.controls) if text)
    )


def task_meaning(found: Audit) -> str:
    """Say what the verdicts on tasks mean, with the margins that were used."""
    s, signs = found.setting, SIGNS
    return (
        f"**{signs[Status.SUPPORTED]} Supported**: a test at level {s.alpha:g} shows that it lies within the margin "
        f"set in advance ({s.retrieval * 100:g} points of a share of exact answers, {s.likelihood:.2g} nats of an "
        "answer's log-likelihood), for every model, precision and chunk size. "
        f"**{signs[Status.REFUTED]} Refuted**: one of them is shown to lie beyond it, after Holm's correction. "
        f"**{signs[Status.UNDETERMINED]} Undetermined**: neither; a few trials decide nothing. "
        f"**{signs[Status.NOT_TESTED]} Not tested**: nothing was asked, or full attention itself fails more than half "
        "of it, which says nothing of the fold. All texts of a cell share one haystack: what is said holds for that."
    )


def verdict_sentences(found: Audit, key: str) -> list[str]:
    """Say of each part of a claim what was published, what counts as that, and the verdicts."""
    return [
        f"{claim.name}: {by_protocol(group)}. {_published(claim)}. Margin: "
        f"{claim.margin_text(found.setting)}." + _untested(group) + _unestimated(group)
        for claim, group in _parts(found, key).items()
    ]


def _published(claim: Claim) -> str:
    return claim.published[0].upper() + claim.published[1:] if claim.ours else f"Published: {claim.published}"


def _untested(summaries: Sequence[ClaimSummary]) -> str:
    """Say why a claim was not tested; of protocols that lack the same, what would measure it for the first."""
    untested = [s for s in summaries if s.status is Status.NOT_TESTED]
    said = dict.fromkeys(s.words for s in untested if s.findings or not s.protocol)
    absent = [s for s in untested if s.protocol and not s.findings]
    if absent:
        said[f"under {_join([s.protocol for s in absent])} {absent[0].words}"] = None
    return f" Not tested means: {' '.join(said)}" if said else ""


def _unestimated(summaries: Sequence[ClaimSummary]) -> str:
    """Say why, where no row of a protocol has an estimate of what it is about."""
    said = ""
    for s in summaries:
        tested = s.status is not Status.NOT_TESTED and s.claim.name != "C4 plateau"
        if tested and s.findings and all(math.isnan(f.estimate) for f in s.findings):
            said += f" No estimate under {s.protocol}: {' '.join(dict.fromkeys(f.words for f in s.findings))}"
    return said


def changes(found: Audit) -> list[str]:
    """Say what would change the verdict on each claim."""
    return [
        f"{claim.name}: now {by_protocol(group)}; {claim.changes_text(found.setting)}."
        for claim, group in _parts(found).items()
    ]


def evidence(found: Audit) -> pd.DataFrame:
    """Every finding by every measure, with p-values; Holm's correction is over the cells of one claim and protocol."""
    claims = {(c.key, c.part): c for c in CLAIMS}
    groups: dict[tuple[str, str, str, str], list[Finding]] = {}
    for f in found.findings:
        groups.setdefault((f.claim, f.part, f.protocol, f.measure), []).append(f)
    rows = []
    for findings in groups.values():
        for f, adjusted in zip(findings, holm([f.p_refute for f in findings]), strict=True):
            write = writer(claims[f.claim, f.part])
            rows.append(
                {
                    "claim": f"{f.claim} {f.part}",
                    "protocol": f.protocol,
                    "measure": SHORT.get(f.measure, f.measure),
                    "cells": f.scope,
                    "verdict": f"{SIGNS[f.status]} {f.status.value}",
                    "estimated": f.effect,
                    "estimate": "–" if math.isnan(f.estimate) else write(f.estimate),
                    f"{coverage(found.setting.alpha)} interval": pair_words(f.interval, write),
                    "margin": pair_words(f.margin, write),
                    "p (support)": probability(f.p_support),
                    "p (refute)": probability(f.p_refute),
                    "p (refute, Holm)": probability(adjusted),
                    "finding": f.words,
                    "files": ", ".join(f.cells),
                }
            )
    return pd.DataFrame(rows)


def pair_words(pair: tuple[float, float], write: Callable[[float], str]) -> str:
    """Write both ends of an interval; a dash where it cannot be formed."""
    return "–" if any(map(math.isnan, pair)) else " to ".join(write(x) for x in pair)


def estimate(finding: Finding) -> str:
    """Write an estimate with its interval."""
    write = writer(next(c for c in CLAIMS if (c.key, c.part) == (finding.claim, finding.part)))
    return f"{write(finding.estimate)} ({pair_words(finding.interval, write)})"


def probability(p: float) -> str:
    """Write a p-value; a dash where nothing was tested."""
    return "–" if math.isnan(p) else f"{p:.2g}" if p >= 1e-6 else "< 1e-6"


def files(found: Audit) -> pd.DataFrame:
    """Which files which rows of the claims table rest on."""
    used: dict[str, list[str]] = {}
    for s in found.summaries:
        for f in s.findings:
            for name in f.cells:
                used.setdefault(name, []).append(s.claim.name)
    rows = [(name, ", ".join(dict.fromkeys(claims))) for name, claims in sorted(used.items())]
    return pd.DataFrame(rows, columns=["file", "rows of the table that rest on it"])


def commands(found: Audit, sweep: Sweep, models: Sequence[str] | str | None = None) -> str:
    """Write the commands that give the numbers of the page again, once the cells are there."""
    folder, s, default = shlex.quote(sweep.folder.name if sweep.folder else "SWEEP"), found.setting, Setting()
    margins = {n: v for n, v in vars(s).items() if n != "alpha" and v != getattr(default, n)}
    what = [f"--measure {found.measure}"] + [f"--layer {found.layer}"] * (found.layer != "last")
    level = [f"--alpha {s.alpha:g}"] * (s.alpha != default.alpha)
    table = [*what, *(f"--margin {n}={v:g}" for n, v in margins.items()), *level]
    # drift.plateau judges what was measured; where that is the square of an amplitude, so are its margins.
    power = 1 / amplitude_power(found.measure)
    chain = [f"--margin {(1 + s.growth) ** power - 1:.6g}"] * (power != 1 or s.growth != default.growth)
    chain += [f"--rise-min {s.rise**power:.6g}"] * (power != 1 or s.rise != default.rise)
    page = {"measure": found.measure, "layer": found.layer, "alpha": s.alpha, "margins": margins or None}
    given: dict[str, Any] = {n: v for n, v in page.items() if v not in ("hidden_rel_l2", "last", default.alpha, None)}
    if models is not None:
        given["models"] = list(models) if not isinstance(models, str) else models
    written = (v if isinstance(v, str) else json.dumps(v) for v in given.values())
    lines = [
        "# the claims table and every finding" + ("; of all models, not only those of this page" if models else ""),
        " ".join([f"python -m drift.claims {folder} --details", *table]),
        "# C1, every chain by itself" + (" (the measure is the square of an amplitude: so are margin and factor)"
                                         if power != 1 else ""),
        " ".join([f"python -m drift.plateau {folder}", *what, *chain, *level]),
        *_ratios(found, folder, [*what, *_plain_margins(s), *level]),
        "# this page",
        " ".join([f"python -m drift.report {folder} --notebook claims",
                  *(f"-p {shlex.quote(f'{n}={v}')}" for n, v in zip(given, written, strict=True))]),
    ]  # fmt: skip
    return "\n".join(lines)


def _plain_margins(s: Setting) -> list[str]:
    """Margins of a ratio, which is one of amplitudes whatever the measure."""
    default = Setting()
    growth = [f"--margin {s.growth:g}"] * (s.growth != default.growth)
    return growth + [f"--rise-min {s.rise:g}"] * (s.rise != default.rise)


def _ratios(found: Audit, folder: str, options: Sequence[str]) -> Iterator[str]:
    """Commands of those rows of C1 that hold drift against something, where they were tested."""
    for claim, group in _parts(found, "C1").items():
        if claim.ours and any(s.status is not Status.NOT_TESTED for s in group):
            yield f"# {claim.name}, every chain by itself"
            yield " ".join([f"python -m drift.plateau {folder} --of {claim.part}", *options])


def method(found: Audit) -> str:
    """Say in a paragraph how the decision is made."""
    shares = _join([f"1/{1 / w:g}" for w in WINDOWS])
    return (
        "Drift enters as an amplitude (a divergence as its square root) and is judged in logarithms. Growth is its "
        f"slope per doubling of chain depth, on windows fixed in advance that leave out the first {shares} of the "
        "steps; a plateau may be certified on any of them, at the price of a Bonferroni factor, and growth is judged "
        "on the last. Levels are means over that window. The standard error is the least favourable of up to three: "
        "autocorrelated noise around the trend, means of batches, and, from "
        f"{DOCUMENTS} documents on, their spread. A change late in the chain, or a model that still changes at its end "
        "and fits better, can only take a plateau away. Precisions, chunk sizes and models are compared over the same "
        "text, by the same tests."
    )


def limits(found: Audit) -> list[str]:
    """Say what the verdicts do not cover, with the sizes of this sweep."""
    chains = [f for s in found.summaries if s.claim.name == "C1 plateau" for f in s.findings]
    depths = sorted({f.detail["transitions"] for f in chains})
    documents = sorted({f.detail["documents"] for f in chains})
    few = sum(f.detail["documents"] < DOCUMENTS for f in chains)
    bounded = found.measure in BOUNDED
    late = LATE_STEP * (1 - WINDOWS[-1])  # the share of the chain whose level is held against the rest
    near = sum(f.detail["level"] > NEAR * UNRELATED for f in chains) if bounded else 0
    return [
        f"Depth: nothing is said of a chain beyond its last step; those judged here have {span(depths)} transitions, "
        f"the published plateau {PUBLISHED_DEPTH}.",
        f"Documents: fewer than {DOCUMENTS} support no claim about other documents; the chains here have "
        f"{span(documents)} ({few} of {len(chains)} chains have fewer than {DOCUMENTS}).",
        f"Late growth: growth of a small size that begins in the last {share_words(late)} of a chain is weakly "
        "covered.",
        "Bounds: a measure at its bound is trivially flat, and insensitive to everything."
        + (f" Unrelated states are {UNRELATED:.2g} apart; {near} of {len(chains)} chains come to "
           f"{share_name(NEAR)} of that or more." if bounded else ""),
    ]  # fmt: skip
