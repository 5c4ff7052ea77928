"""What the first page of a report says: the answers, from the cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from shlex import quote

from drift.dataset.sweep import scalar
from drift.reading import floor, summary
from drift.reading.cells import deepest, file_name
from drift.reading.claims.model import SIGNS, Claim, ClaimSummary, Status
from drift.reading.claims.published import CLAIMS
from drift.reading.controls.gating import gate
from drift.reading.floor.model import Rounding
from drift.reading.report.exhibits import MEASURE, Exhibit, deepest_exhibit, deepest_with_floor
from drift.reading.report.practice import advice, advice_words, practice
from drift.reading.wording.numbers import percent, range_words

__all__ = ["READINGS", "Answer", "Answers", "Question", "Row", "answers"]

#: The readings of the fold that the first page decides on, the literal one first.
READINGS = ("append", "reprime", "restart", "isolated")
_LITERAL = "append"


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
    source : str
        Name of the evidence that answers; empty where it is the report's own sweep.
    """

    sign: str
    word: str
    kind: str
    why: str
    link: str
    source: str = ""


@dataclass(frozen=True)
class Row:
    """One claim, with an answer per reading."""

    name: str
    published: str
    fields: list[Answer]


@dataclass(frozen=True)
class Question:
    """What a reader asks, with its answer line by line, and the page that goes on."""

    asked: str
    lines: list[str]
    page: str = ""


@dataclass(frozen=True)
class Answers:
    """The first page.

    Attributes
    ----------
    sentences : list of str
        The answers in words.
    readings : list of str
        Columns of the table.
    rows : list of Row
    sources : list of str
        What was answered from other evidence than the report's own sweep, in words.
    questions : list of Question
    ran, not_run : list of str
        What the sweep holds, and what it does not.
    """

    sentences: list[str]
    readings: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)

    @property
    def undetermined(self) -> list[tuple[str, str, Answer]]:
        """Name of the claim, reading and answer of every field that is undetermined."""
        return [
            (row.name, reading, one)
            for row in self.rows
            for reading, one in zip(self.readings, row.fields, strict=True)
            if one.kind == _kind(Status.UNDETERMINED)
        ]


def answers(exhibits: Sequence[Exhibit]) -> Answers:
    """Answer from a sweep, and from evidence that was computed before.

    A verdict on what a chain comes to is taken from the exhibit whose chains are the deepest among those that test it,
    every other from the first exhibit that tests it.

    Parameters
    ----------
    exhibits : sequence of Exhibit
        The report's own sweep first.
    """
    own, asking = exhibits[0], [one for one in exhibits if one.sweep.tasks]
    ran = _plain(summary.contents(own.sweep)) if len(own.sweep) else []
    if not len(own.folds):
        said = [] if asking else ["No cell compares a fold with full attention at the same precision."]
        readings = list(dict.fromkeys(s.protocol for one in asking for s in one.audit.summaries if s.protocol))
        ran += _asked_words(asking)
        return Answers(said, readings, _task_rows(asking, readings), questions=_found_again(asking), ran=ran)
    exhibits = [one for one in exhibits if len(one.folds)]
    readings = [name for name in READINGS if name in own.folds.values("protocol")]
    rows = [*_rows(exhibits, readings), *_task_rows(asking, readings)]
    used = {one.source for row in rows for one in row.fields if one.source}
    standing = {name: _standing(exhibits, name) for name in readings}
    return Answers(
        sentences=_sentences(own, standing),
        readings=readings,
        rows=rows,
        sources=[
            *(_source_words(one, readings) for one in exhibits if one.name in used),
            *(_asked_source(one) for one in asking if one.name in used and one not in exhibits),
        ],
        questions=[*_questions(exhibits, readings, rows, standing), *_found_again(asking)],
        ran=[*ran, *(line for one in exhibits[1:] for line in _ran_before(one)), *_asked_words(asking)],
        not_run=[
            f"{s.claim.key} ({s.claim.part}): {s.claim.published}. Not tested: {s.words}"
            for s in own.audit.summaries
            if s.status is Status.NOT_TESTED and not s.protocol and s.claim.name not in {row.name for row in rows}
        ],
    )  # fmt: skip


def _ran_before(one: Exhibit) -> list[str]:
    return [f"Evidence {one.name}, computed before: {line}" for line in _plain(summary.contents(one.sweep))]


def _asked_words(asking: Sequence[Exhibit]) -> list[str]:
    """Say what was asked, and of which sweep."""
    return [
        f"{f'Evidence {one.name}: ' if one.name else ''}{len(one.sweep.tasks)} task cells: "
        f"{', '.join(dict.fromkeys(str(ds['task'].item()) for ds in one.sweep.tasks))}"
        for one in asking
    ]


def _plain(lines: Sequence[str]) -> list[str]:
    """Take Markdown's emphasis out."""
    return [line.replace("**", "") for line in lines]


def _source_words(one: Exhibit, readings: Sequence[str]) -> str:
    deep = ", ".join(f"{name} {n}" for name in readings if (n := one.transitions(name)))
    return (
        f"from the evidence {one.name}, which was computed before and not by this run: its chains are deeper "
        f"(transitions: {deep}), and a verdict on what a chain comes to is taken from the deepest chains that test it"
    )


def _asked_source(one: Exhibit) -> str:
    return f"from {one.name}, a sweep of its own that asks tasks"


# ---------------------------------------------------------------------------------------------- sentences
def _standing(exhibits: Sequence[Exhibit], protocol: str) -> tuple[int, list[Rounding]]:
    """Say where the deepest chains of a reading stand to their floors, and how many transitions they have."""
    one = deepest_with_floor(exhibits, protocol)
    if one is None:
        return 0, []
    asked = gate(one.sweep)
    return one.transitions(protocol), [floor.rounding(ds, MEASURE, asked=asked) for ds in one.with_floor(protocol)]


def _sentences(own: Exhibit, standing: dict[str, tuple[int, list[Rounding]]]) -> list[str]:
    """What drift is under each reading, and what the chain does to it under the literal one."""
    if not any(found for _, found in standing.values()):
        return list(summary.headline(own.folds, MEASURE).values())
    said = []
    for name, (transitions, found) in standing.items():
        if not found:
            continue
        line = f"{floor.headline(name, found)}, over up to {transitions} transitions"
        said.append(f"{line}; {_trend_words(found)}." if name == _LITERAL else f"{line}.")
    return said


def _trend_words(found: Sequence[Rounding]) -> str:
    changes = range_words([one.growth.growth_per_doubling for one in found], write=percent)
    words = f"against the floor it changes by {changes} per doubling of the chain"
    if all(one.growth.verdict.is_plateau for one in found):
        words += ": whatever growth drift itself shows, full attention's own rounding shows over the same tokens"
    return words


# ---------------------------------------------------------------------------------------------- table
def _rows(exhibits: Sequence[Exhibit], readings: Sequence[str]) -> list[Row]:
    """The claims that drift can test, one row each."""
    tested = {s.claim.name: s.claim for s in exhibits[0].audit.summaries if s.claim.audit is not None}
    return [
        Row(
            claim.name, claim.published, [_answer(*_found(exhibits, claim, reading), claim.key) for reading in readings]
        )
        for claim in tested.values()
    ]


def _task_rows(asking: Sequence[Exhibit], readings: Sequence[str]) -> list[Row]:
    """The claims that tasks can test, one row each; of several exhibits that test it the one that asked most."""
    rows = []
    for claim in dict.fromkeys(s.claim for one in asking for s in one.audit.summaries if s.claim.asked is not None):
        found = [_asked(asking, claim, reading) for reading in readings]
        if any(summary is not None and summary.findings for _, summary in found):
            rows.append(Row(claim.name, claim.published, [_answer(*pair, claim.key) for pair in found]))
    return rows


def _asked(asking: Sequence[Exhibit], claim: Claim, reading: str) -> tuple[Exhibit, ClaimSummary | None]:
    """Choose the exhibit that answers by tasks, and what it says."""
    wanted = (claim.name, reading)
    pairs = [(one, s) for one in asking for s in one.audit.summaries if (s.claim.name, s.protocol) == wanted]
    # A finding that a model cannot do a task says more than that nothing was asked.
    pairs.sort(key=lambda pair: (pair[1].status is Status.NOT_TESTED, not pair[1].findings, -_count(pair[0], reading)))
    return pairs[0] if pairs else (asking[0], None)


def _count(one: Exhibit, reading: str) -> int:
    """Questions that were asked of a reading."""
    return sum(ds["exact_fold"].size for ds in one.sweep.tasks if scalar(ds, "protocol") == reading)


def _summary(exhibit: Exhibit, claim: Claim, reading: str) -> ClaimSummary | None:
    """What an exhibit says of a claim under a reading, where it tests it."""
    wanted = (claim.name, reading)
    found = (s for s in exhibit.audit.summaries if (s.claim.name, s.protocol) == wanted)
    return next((s for s in found if s.status is not Status.NOT_TESTED), None)


def _found(exhibits: Sequence[Exhibit], claim: Claim, reading: str) -> tuple[Exhibit, ClaimSummary | None]:
    """Choose the exhibit that answers, and what it says."""
    if claim.of_depth:
        one = deepest_exhibit(exhibits, reading, lambda exhibit: _summary(exhibit, claim, reading) is not None)
    else:
        one = next((exhibit for exhibit in exhibits if _summary(exhibit, claim, reading) is not None), None)
    return (exhibits[0], None) if one is None else (one, _summary(one, claim, reading))


def _kind(status: Status) -> str:
    return status.value.replace(" ", "-")


def _answer(exhibit: Exhibit, found: ClaimSummary | None, key: str) -> Answer:
    status = Status.NOT_TESTED if found is None else found.status
    why = "there are no cells that test it." if found is None else found.words
    if status is Status.UNDETERMINED and found is not None:
        needed = [f.needed for f in found.findings if f.needed and f.status is Status.UNDETERMINED]
        why = " ".join([why, *(f"It would take {words}." for words in needed[:1])])
    return Answer(SIGNS[status], status.value, _kind(status), why, f"{exhibit.page}#{key}", exhibit.name)


# ---------------------------------------------------------------------------------------------- questions
def _questions(
    exhibits: Sequence[Exhibit],
    readings: Sequence[str],
    rows: Sequence[Row],
    standing: dict[str, tuple[int, list[Rounding]]],
) -> list[Question]:
    """What a reader asks after the table."""
    own = exhibits[0]

    def by_reading(row: Row) -> list[str]:
        return [f"{name}: {one.word}. {one.why}" for name, one in zip(readings, row.fields, strict=True)]

    claims = {claim.name: claim for claim in CLAIMS}
    about = {row.name: row for row in rows}
    literal = standing.get(_LITERAL, (0, []))[1]
    serving = practice(own.sweep, own.folds, _LITERAL)
    families, precisions = about.get("C4 plateau"), about.get("C2 precision")
    asked = [
        Question("Does the plateau hold, in every family?", by_reading(families) if families else [], own.page),
        Question("Does precision matter?", by_reading(precisions) if precisions else [], own.page),
        Question(
            "Which reading of the protocol gives what was published?",
            [_published_words(name, at, rows, claims) for at, name in enumerate(readings)],
            "readings.html",
        ),
        Question(
            "What does it mean for somebody who serves a model?",
            [advice_words(advice(literal)) if literal else "", *serving] if literal or serving else [],
        ),
        Question("How do I check one of these numbers again?", _checking(exhibits)),
    ]
    return [
        Question(one.asked, [line for line in one.lines if line], one.page) for one in asked if any(one.lines)
    ]  # fmt: skip


def _found_again(asking: Sequence[Exhibit]) -> list[Question]:
    """What was asked of the fold, reading by reading: those with a window, too, which have no column."""
    return [
        Question(
            f"Is what was folded found again, and at what cost{f' ({one.name})' if one.name else ''}?",
            [
                f"{s.protocol}, {s.claim.name}: {s.status.value}. {s.words}"
                for s in one.audit.summaries
                if s.claim.asked is not None and s.findings
            ],
            one.page,
        )
        for one in asking
    ]


def _published_words(reading: str, at: int, rows: Sequence[Row], claims: dict[str, Claim]) -> str:
    """Count what a reading does to the published claims."""
    kinds: dict[str, list[str]] = {}
    for row in rows:
        if not claims[row.name].ours:
            kinds.setdefault(row.fields[at].word, []).append(row.name)
    return f"{reading}: " + "; ".join(f"{word} {', '.join(names)}" for word, names in kinds.items()) + "."


def _checking(exhibits: Sequence[Exhibit]) -> list[str]:
    """Commands that compute a cell again and compare: of each exhibit, one of its deepest chains."""
    return [
        f"python -m drift.verify {quote(one.folder)} --cell {quote(file_name(deepest(one.folds)[0]))}"
        for one in exhibits
    ]
