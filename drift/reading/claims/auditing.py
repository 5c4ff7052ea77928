"""The published claims as data, and the audit that holds a sweep against them.

Every claim of arXiv 2605.12471 is a hypothesis with an effect, a margin of equivalence stated in advance and a test.
*Supported* means that equivalence was shown (two one-sided tests), *refuted* that its contrary was, *undetermined* that
neither was; a difference that failed to be significant supports nothing. Claims speak of every model and setting, so a
summary over cells is supported only if every cell supports it (an intersection-union test: each at level alpha, no
correction) and refuted if at least one cell refutes it after Holm's correction. What the cells say one by one is kept
beside it.

Divergences are quadratic in a small disturbance, so they enter as their square roots: all measures are then amplitudes,
and one margin means the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from drift import dataset
from drift.dataset.labels import Label, parse_label
from drift.dataset.sweep import Sweep, scalar
from drift.errors import DatasetError
from drift.reading import controls, floor
from drift.reading.amplitudes import AMPLITUDE_POWERS, has_measure, holding
from drift.reading.claims.model import Audit, Claim, ClaimSummary, Finding, Setting, Status, check_setting
from drift.reading.claims.published import CLAIMS
from drift.reading.claims.wording import claim_sentence
from drift.reading.statistics.intervals import holm
from drift.reading.tasks import is_folded

__all__ = ["audit"]


def _combine(findings: Sequence[Finding], alpha: float) -> Status:
    """Summarise a claim about every cell: intersection-union for support, Holm for refutation.

    What could not be tested of a cell neither supports nor refutes.
    """
    findings = [f for f in findings if f.status is not Status.NOT_TESTED]
    if not findings:
        return Status.NOT_TESTED
    if all(f.status is Status.SUPPORTED for f in findings):
        return Status.SUPPORTED
    adjusted = holm([f.p_refute for f in findings])
    refuted = any(
        f.status is Status.REFUTED and (math.isnan(p) or p < alpha) for f, p in zip(findings, adjusted, strict=True)
    )
    return Status.REFUTED if refuted else Status.UNDETERMINED


def _one_step_of(sweep: Sweep, protocol: str) -> Sweep:
    """Keep the cells of a protocol's one-step error."""
    wanted = Label(dataset.ONE_STEP, parse_label(protocol).text).text
    return dataset.keep(sweep, lambda ds: parse_label(str(ds["protocol"].item())).text == wanted)


def _asked(claim: Claim, sweep: Sweep, setting: Setting) -> Iterator[ClaimSummary]:
    """Hold the task cells of a sweep against a claim, protocol by protocol."""
    protocols = dict.fromkeys(str(scalar(ds, "protocol")) for ds in sweep.tasks if is_folded(ds))
    if claim.asked is None or not protocols:
        if claim.not_tested:
            yield ClaimSummary(claim, "", Status.NOT_TESTED, claim.not_tested)
        return
    for protocol in protocols:
        mine = list(claim.asked([ds for ds in sweep.tasks if scalar(ds, "protocol") == protocol], setting))
        withheld = any(finding.status is Status.WITHHELD for finding in mine)
        status = Status.WITHHELD if withheld else _combine(mine, setting.alpha)
        words = claim_sentence(claim, mine, status) if mine else claim.absent.format(protocol=protocol)
        yield ClaimSummary(claim, protocol, status, words, tuple(mine))


def audit(
    sweep: Sweep,
    measure: str = "hidden_rel_l2",
    layer: int | str = "last",
    *,
    others: Sequence[str] | None = None,
    setting: Setting | None = None,
) -> Audit:
    """Hold a sweep against the published claims.

    Parameters
    ----------
    sweep : Sweep
        Its folds against full attention at the same precision; other cells are named in ``scope`` and left alone.
        Where controls of the sweep failed, every verdict is withheld; estimates remain.
    measure : str
        The headline measure, by which the table is filled in.
    layer : int or "last"
        For measures that have layers.
    others : sequence of str, optional
        Further measures, whose verdicts are shown where they differ; all of
        :data:`~drift.reading.amplitudes.AMPLITUDE_POWERS` by default.
    setting : Setting, optional
        Margins and level.

    Raises
    ------
    DatasetError
        If the sweep is empty or there is no such measure.
    ConfigError
        If a margin makes no sense.
    """
    setting = setting or Setting()
    check_setting(setting)
    if not len(sweep) and not sweep.tasks:
        raise DatasetError("the sweep holds no cell that can be read: there is nothing to hold against the claims")

    checked = controls.evaluate(sweep)
    everything, sweep = sweep, holding(dataset.folds(sweep), measure) if len(sweep) else sweep
    rest = [m for m in (AMPLITUDE_POWERS if others is None else others) if m != measure]
    for named in others or ():
        holding(sweep, named)  # what somebody asked for by name is not left out in silence
    summaries: list[ClaimSummary] = []
    findings: list[Finding] = []
    for claim in CLAIMS:
        if claim.audit is None:
            asked = list(_asked(claim, everything, setting))
            summaries += asked
            findings += [finding for summary in asked for finding in summary.findings]
            continue
        for protocol in sweep.values("protocol"):
            part = sweep.sel(protocol=protocol)
            if claim.one_step:
                part = part.derive([*part, *_one_step_of(everything, protocol)])
            mine = list(claim.audit(dataset.keep(part, lambda ds: has_measure(ds, measure)), measure, layer, setting))
            others_found = {
                m: list(claim.audit(dataset.keep(part, lambda ds, m=m: has_measure(ds, m)), m, "last", setting))  # type: ignore[misc]
                for m in rest
            }
            findings += [*mine, *(f for found in others_found.values() for f in found)]
            if not mine:
                why = claim.absent.format(protocol=protocol)
                summaries.append(ClaimSummary(claim, protocol, Status.NOT_TESTED, why))
                continue
            verdicts = {m: _combine(found, setting.alpha) for m, found in others_found.items() if found}
            status = _combine(mine, setting.alpha)
            summaries.append(
                ClaimSummary(claim, protocol, status, claim_sentence(claim, mine, status), tuple(mine), verdicts)
            )
    found = Audit(
        tuple(summaries), measure, layer, setting, tuple(findings), scope=dataset.left_out(everything, sweep),
        controls=checked.banner, contradictions=tuple(one.words for one in floor.contradictions(sweep, measure, layer)),
    )  # fmt: skip
    return controls.gate(everything).let(found)
