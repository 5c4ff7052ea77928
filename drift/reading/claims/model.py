"""What a claim, a finding and an audit are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import xarray as xr

from drift.dataset.sweep import Sweep
from drift.errors import ConfigError
from drift.reading.wording.numbers import count, number, plain

__all__ = [
    "PUBLISHED_BITS",
    "PUBLISHED_CHUNKS",
    "PUBLISHED_DEPTH",
    "PUBLISHED_EFFECT",
    "PUBLISHED_SLOPE",
    "SIGNS",
    "Audit",
    "Claim",
    "ClaimSummary",
    "Finding",
    "Setting",
    "Status",
    "check_setting",
    "parse_margins",
    "settings",
]


class Status(Enum):
    """What the data say about a claim. The value is what tables and JSON show."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    UNDETERMINED = "undetermined"
    NOT_TESTED = "not tested"
    WITHHELD = "not drawn"


#: A sign for each verdict, so that colour is not needed to tell them apart.
SIGNS = {Status.SUPPORTED: "●", Status.REFUTED: "✖", Status.UNDETERMINED: "○", Status.NOT_TESTED: "–",
         Status.WITHHELD: "!"}  # fmt: skip
#: Chain depth to which the published plateau is claimed to persist.
PUBLISHED_DEPTH = 511
#: Chunk sizes over which it is claimed not to move.
PUBLISHED_CHUNKS = (64, 1024)
#: Published change of the plateau from bf16 to fp32, whose unit roundoffs are this many factors of two apart ...
PUBLISHED_EFFECT, PUBLISHED_BITS = 0.028, 16
#: ... as a log-log slope.
PUBLISHED_SLOPE = -math.log(1 - PUBLISHED_EFFECT) / (PUBLISHED_BITS * math.log(2))


@dataclass(frozen=True)
class Setting:
    """What an audit asks of the data.

    Attributes
    ----------
    growth : float
        Margin of C1: growth per doubling of depth that still counts as flat.
    precision : float
        Margin of C2: change over the tested range of precisions that still counts as none.
    chunk : float
        Margin of C3: change per doubling of the chunk size that still counts as none.
    family : float
        Margin of C4: ratio of two models' levels that still counts as the same.
    proportional : float
        How far from 1 the log-log slope may lie where drift is called proportional to the unit roundoff.
    retrieval : float
        Margin of C5: difference of two shares of exact answers that still counts as none.
    likelihood : float
        Margin of C5: change of an answer's log-likelihood that still counts as none, nats.
    rise : float
        Factor from the first step to the level from which on a curve is said to have risen.
    alpha : float
        Level of every test.
    """

    growth: float = 0.05
    precision: float = 0.10
    chunk: float = 0.05
    family: float = 2.0
    proportional: float = 0.2
    retrieval: float = 0.05
    likelihood: float = math.log(2)
    rise: float = 1.5
    alpha: float = 0.05


@dataclass(frozen=True)
class Claim:
    """One published claim, or one part of it.

    Attributes
    ----------
    key, part : str
        ``"C1"`` and what of it; unique together.
    published : str
        What the paper says.
    margin : str
        The margin of equivalence and its justification; a format string over the fields of :class:`Setting` and what
        follows from them.
    audit : callable or None
        Yields findings for one protocol and measure; None where drift does not measure what the claim is about.
    not_tested : str
        Why, where there is nothing to test.
    changes : str
        What would change a verdict; a format string, too.
    absent : str
        Why a protocol is not tested where nothing is found to test; a format string over ``protocol``.
    one_step : bool
        Whether the audit also needs the cells of the protocol's one-step error.
    ours : bool
        Whether nobody published it: it says what a published claim comes from, and is none.
    asked : callable or None
        Yields findings on the task cells of one protocol, where that is what the claim is about.
    of_depth : bool
        Whether the verdict is about what a chain comes to, so that of several sweeps the one of the deepest answers.
    """

    key: str
    part: str
    published: str
    margin: str
    audit: Callable[[Sweep, str, int | str, Setting], Iterator[Finding]] | None
    not_tested: str
    changes: str
    absent: str = "no cells to compare."
    one_step: bool = False
    ours: bool = False
    of_depth: bool = False
    asked: Callable[[Sequence[xr.Dataset], Setting], Iterator[Finding]] | None = None

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.key} {self.part}"

    def margin_text(self, setting: Setting) -> str:
        """The margin with its numbers."""
        return self.margin.format(**_words(setting))

    def changes_text(self, setting: Setting) -> str:
        """What would change a verdict, with its numbers."""
        return self.changes.format(**_words(setting))


def _words(setting: Setting) -> dict[str, Any]:
    """Numbers of a setting, and what follows from them, as the texts of claims have them."""
    doublings = math.log2(PUBLISHED_DEPTH)
    chunk_doublings = math.log2(PUBLISHED_CHUNKS[-1] / PUBLISHED_CHUNKS[0])
    bits = math.log2(setting.family)
    return {
        **vars(setting),
        **{n: f"{100 * getattr(setting, n):g} %" for n in ("growth", "precision", "chunk")},
        "depth": PUBLISHED_DEPTH,
        "doublings": count(doublings),
        "growth_reach": f"{(1 + setting.growth) ** doublings:.3g}",
        "retrieval": f"{100 * setting.retrieval:g} points",
        "likelihood": f"{setting.likelihood:.2g} nats",
        "root": f"{100 * (math.sqrt(2) - 1):.0f} %",
        "logarithm": f"{100 * (doublings / (doublings - 1) - 1):.0f} %",  # over the last doubling
        "effects": f"{setting.precision / PUBLISHED_EFFECT:.2g}",
        "chunk_doublings": count(chunk_doublings),
        "chunk_reach": f"{number(100 * ((1 + setting.chunk) ** chunk_doublings - 1))} %",
        "bits": PUBLISHED_BITS,
        "family_bits": f"{count(bits)} bit{'s' * (round(bits, 2) != 1)}",
        # the fewest of which a sign test with two sides can say anything at this level: 2 / 2^n
        "families": count(math.ceil(math.log2(2 / setting.alpha))),
    }


@dataclass(frozen=True)
class Finding:
    """What one set of cells says about one claim, by one measure.

    Attributes
    ----------
    claim, part, protocol, measure : str
    scope : str
        The cells in words.
    status : Status
    effect : str
        Name of what was estimated.
    estimate, interval : float, tuple of float
        In the units of `effect`; coverage 1 - 2 alpha.
    margin : tuple of float
        Of equivalence, in the same units.
    p_support, p_refute : float
        Of the test that supports, and of the test that refutes. NaN where there was nothing to test.
    words : str
        The finding in a sentence.
    needed : str
        What more data it would take, where undetermined.
    cells : tuple of str
        Files that it rests on.
    """

    claim: str
    part: str
    protocol: str
    measure: str
    scope: str
    status: Status
    effect: str
    estimate: float
    interval: tuple[float, float]
    margin: tuple[float, float]
    p_support: float
    p_refute: float
    words: str
    needed: str = ""
    cells: tuple[str, ...] = ()
    detail: dict[str, Any] = field(default_factory=dict)

    def without_verdict(self, failed: Sequence[str]) -> Finding:
        """Return the estimate alone, controls of the instrument having failed."""
        if self.status is Status.NOT_TESTED:
            return self
        words = f"no verdict: controls failed. Estimated all the same: {self.words}"
        return replace(self, status=Status.WITHHELD, words=words)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return plain(dict(vars(self)))


@dataclass(frozen=True)
class ClaimSummary:
    """A claim under one protocol by the headline measure, over all cells.

    Attributes
    ----------
    claim : Claim
    protocol : str
        Empty where nothing was tested.
    status : Status
    words : str
    findings : tuple of Finding
        By the headline measure.
    others : dict of str to Status
        Verdict by each further measure.
    """

    claim: Claim
    protocol: str
    status: Status
    words: str
    findings: tuple[Finding, ...] = ()
    others: dict[str, Status] = field(default_factory=dict)

    def without_verdict(self, failed: Sequence[str]) -> ClaimSummary:
        """Take the verdict back, where one was drawn."""
        if self.status is Status.NOT_TESTED:
            return self
        return replace(
            self,
            status=Status.WITHHELD,
            words="no verdict is drawn: controls of the instrument failed.",
            findings=tuple(f.without_verdict(failed) for f in self.findings),
            others={},
        )

    @property
    def differing(self) -> dict[str, Status]:
        """Measures whose verdict is not that of the headline measure."""
        return {m: s for m, s in self.others.items() if s is not self.status}


@dataclass(frozen=True)
class Audit:
    """The claims table of a sweep.

    Attributes
    ----------
    summaries : tuple of ClaimSummary
    measure, layer, setting
        What was asked.
    findings : tuple of Finding
        By every measure.
    withheld : str
        Why no verdict is drawn; empty where verdicts are.
    scope : str
        Cells of the sweep that the claims are not about, in words.
    controls : str
        What the controls of the instrument say.
    contradictions : tuple of str
        Where the precision ladder and the rounding floor exclude each other, in sentences.
    """

    summaries: tuple[ClaimSummary, ...]
    measure: str
    layer: int | str
    setting: Setting
    findings: tuple[Finding, ...]
    withheld: str = ""
    scope: str = ""
    controls: str = ""
    contradictions: tuple[str, ...] = ()

    def without_verdict(self, failed: Sequence[str]) -> Audit:
        """Take every verdict back that was drawn, and keep the estimates."""
        return replace(
            self,
            summaries=tuple(s.without_verdict(failed) for s in self.summaries),
            findings=tuple(f.without_verdict(failed) for f in self.findings),
            withheld="; ".join(failed),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: ``claims`` (the table) and ``findings`` (every row of evidence)."""
        rows = [
            {
                "claim": s.claim.key,
                "part": s.claim.part,
                "protocol": s.protocol or None,
                "verdict": s.status,
                "finding": s.words,
                "measure": self.measure,
                "other_measures": s.others,
                "published": s.claim.published,
                "margin": s.claim.margin_text(self.setting),
                "cells": sorted({c for f in s.findings for c in f.cells}),
            }
            for s in self.summaries
        ]
        body = {
            "setting": vars(self.setting), "controls": self.controls, "withheld": self.withheld or None,
            "contradictions": list(self.contradictions),
        }  # fmt: skip
        return plain({**body, "claims": rows, "findings": [f.as_dict() for f in self.findings]})


def check_setting(setting: Setting) -> None:
    """Refuse margins and levels that no test could have.

    Raises
    ------
    ConfigError
        A margin or the level lies outside its range.
    """
    for name in ("growth", "precision", "chunk", "proportional", "retrieval"):
        if not 0 < getattr(setting, name) < 1:
            raise ConfigError(f"the margin {name!r} is {getattr(setting, name)}; it must lie between 0 and 1")
    if not 1 < setting.family < math.inf or not 1 < setting.rise < math.inf:
        raise ConfigError(f"'family' ({setting.family}) and 'rise' ({setting.rise}) are finite ratios above 1")
    if not 0 < setting.likelihood < math.inf:
        raise ConfigError(f"'likelihood' is {setting.likelihood}; it must be a number of nats above 0")
    if not 0 < setting.alpha < 0.5:
        raise ConfigError(f"'alpha' is {setting.alpha}; it must lie between 0 and 0.5")


def parse_margins(margins: Sequence[str], alpha: float) -> Setting:
    """Read margins written NAME=NUMBER or NAME=NUMBER%.

    Raises
    ------
    ConfigError
        If one is written otherwise, or there is no such margin.
    """
    values: dict[str, float] = {"alpha": alpha}
    names = [n for n in Setting.__dataclass_fields__ if n != "alpha"]
    for text in margins:
        name, equals, number = text.partition("=")
        try:
            value = float(number.rstrip("%")) / (100 if number.endswith("%") else 1)
        except ValueError:
            value = math.nan
        if not equals or name not in names or math.isnan(value):
            raise ConfigError(f"--margin {text}: write NAME=NUMBER, with NAME one of {', '.join(names)}")
        values[name] = value
    return Setting(**values)


def settings(margins: Mapping[str, float | str] | None = None, alpha: float = 0.05) -> Setting:
    """Margins by name, as ``{"growth": 0.1}``, and the level; what is not named keeps its default."""
    return parse_margins([f"{name}={value}" for name, value in (margins or {}).items()], alpha)
