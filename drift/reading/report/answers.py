"""What the first page of a report says: the answers, from the cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import xarray as xr

from drift import dataset
from drift.dataset.choosing import keep
from drift.dataset.sweep import Sweep
from drift.reading import claims, floor, summary
from drift.reading.cells import cell_identity
from drift.reading.claims.model import SIGNS, Audit, ClaimSummary, Status
from drift.reading.controls.gating import gate
from drift.reading.excess import missing
from drift.reading.quantities import Of
from drift.reading.summary.levels import late_mean
from drift.reading.wording.numbers import number, percent, range_words

__all__ = ["READINGS", "Answer", "Answers", "answers"]

#: The readings of the fold that the first page decides on, the literal one first.
READINGS = ("append", "reprime", "restart", "isolated")
MEASURE = "hidden_rel_l2"


@dataclass(frozen=True)
class Answer:
    """One field of the table: what the data say about a claim under a reading.

    Attributes
    ----------
    sign, word, kind : str
        Of the verdict; `kind` is the class of its style.
    why : str
        The finding in a sentence, and what would decide it.
    link : str
        Where its evidence stands.
    """

    sign: str
    word: str
    kind: str
    why: str
    link: str


@dataclass(frozen=True)
class Answers:
    """The first page.

    Attributes
    ----------
    sentences : list of str
        The answers in words.
    readings : list of str
        Columns of the table.
    rows : list of (str, str, list of Answer)
        Name of the claim, what was published, and an answer per reading.
    practice : list of str
        What it means for someone who serves at 16 bits.
    contradictions : list of str
        Where two answers to one question exclude each other.
    ran, not_run : list of str
        What the sweep holds, and what it does not.
    """

    sentences: list[str]
    readings: list[str]
    rows: list[tuple[str, str, list[Answer]]]
    practice: list[str]
    contradictions: list[str]
    ran: list[str]
    not_run: list[str]


def answers(sweep: Sweep, evidence: str = "claims.html") -> Answers:
    """Answer from a sweep.

    Parameters
    ----------
    sweep : Sweep
    evidence : str
        The page that the table links to.
    """
    cells = keep(sweep, dataset.is_fold)
    if not len(cells):
        nothing = "No cell compares a fold with full attention at the same precision."
        return Answers([nothing], [], [], [], [], summary.contents(sweep), [])
    readings = [name for name in READINGS if name in cells.values("protocol")]
    audit = claims.audit(sweep, MEASURE, "last")
    return Answers(
        sentences=_sentences(sweep, cells),
        readings=readings,
        rows=_rows(audit, readings, evidence),
        practice=_practice(sweep, cells),
        contradictions=list(audit.contradictions),
        ran=[line.replace("**", "") for line in summary.contents(sweep)],
        not_run=[
            f"{s.claim.key} ({s.claim.part}): {s.claim.published} Not tested: {s.words}"
            for s in audit.summaries
            if s.status is Status.NOT_TESTED and not s.protocol
        ],
    )


# ---------------------------------------------------------------------------------------------- sentences
def _sentences(sweep: Sweep, cells: Sweep) -> list[str]:
    """What drift is, what the chain does to it, and what the other readings are."""
    asked = gate(sweep)
    with_floor = keep(cells, lambda ds: missing(ds, MEASURE, Of.EXCESS) is None)
    if not len(with_floor):
        return list(summary.headline(cells, MEASURE).values())
    said = []
    standing = {
        name: [floor.rounding(ds, MEASURE, asked=asked) for ds in with_floor if ds["protocol"].item() == name]
        for name in READINGS
        if name in with_floor.values("protocol")
    }
    literal = standing.pop("append", [])
    if literal:
        said.append(f"{floor.headline('append', literal)}.")
        growth = [one.growth.growth_per_doubling for one in literal if math.isfinite(one.growth.growth_per_doubling)]
        changes = range_words(growth, write=percent)
        said.append(
            f"Against the floor it changes by {changes} per doubling of the chain: whatever growth drift itself shows, "
            "full attention's own rounding shows over the same tokens."
            if growth and all(one.growth.verdict.is_plateau for one in literal)
            else f"Against the floor it changes by {changes} per doubling of the chain."
        )
    said += [f"{floor.headline(name, found)}." for name, found in standing.items()]
    return said


# ---------------------------------------------------------------------------------------------- table
def _rows(audit: Audit, readings: Sequence[str], evidence: str) -> list[tuple[str, str, list[Answer]]]:
    """The claims that drift can test, one row each."""
    by_claim: dict[str, dict[str, ClaimSummary]] = {}
    about = {s.claim.name: s.claim for s in audit.summaries if s.claim.audit is not None}
    for s in audit.summaries:
        by_claim.setdefault(s.claim.name, {})[s.protocol] = s
    return [
        (name, claim.published, [_answer(by_claim[name].get(reading), evidence, claim.key) for reading in readings])
        for name, claim in about.items()
    ]


def _answer(found: ClaimSummary | None, evidence: str, key: str) -> Answer:
    status = Status.NOT_TESTED if found is None else found.status
    why = "there is no such cell." if found is None else found.words
    if status is Status.UNDETERMINED and found is not None:
        needed = [f.needed for f in found.findings if f.needed and f.status is Status.UNDETERMINED]
        why = " ".join([why, *needed[:1]])
    name = status.value
    return Answer(SIGNS[status], name, name.replace(" ", "-"), why, f"{evidence}#{key}")


# ---------------------------------------------------------------------------------------------- practice
def _practice(sweep: Sweep, cells: Sweep) -> list[str]:
    """What the literal fold does to the next token at the coarsest precision, beside other accepted ways to compute."""
    coarse = max(ds["unit_roundoff"].item() for ds in cells)
    said = []
    for ds in cells:
        if ds["protocol"].item() != "append" or ds["unit_roundoff"].item() != coarse:
            continue
        said.append(f"{_named(ds)}: {_token_words(ds)}.")
        for other in sweep:
            label = str(other["protocol"].item())
            alike = all(other[axis].item() == ds[axis].item() for axis in ("model", "dtype", "device"))
            if alike and label.startswith("full(") and other.attrs.get("control") == "floor":
                said.append(f"For comparison, {_named(other)}, a short text: {_token_words(other)}.")
    return list(dict.fromkeys(said))


def _named(ds: xr.Dataset) -> str:
    return "{protocol}, {model}, {dtype}, chunk {chunk_size}".format(**cell_identity(ds))


def _token_words(ds: xr.Dataset) -> str:
    changed = 1 - late_mean(ds, "top1_agreement")
    nll = late_mean(ds, "nll_fold") - late_mean(ds, "nll_full")
    return (
        f"{number(100 * changed)} % of the most likely next tokens are others, the negative log-likelihood changes by "
        f"{number(nll) if nll >= 0 else '−' + number(-nll)} nat per token"
    )
