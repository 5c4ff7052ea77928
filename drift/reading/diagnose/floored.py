"""The verdict against a measured floor, in words."""

from __future__ import annotations

from collections.abc import Sequence

from drift.reading.diagnose.contrasts import RATE, first_to_grow
from drift.reading.diagnose.floors import MARGIN, Excess, Text, excesses, first_beyond, pieces, visible
from drift.reading.diagnose.hiding import HIDES, structural
from drift.reading.diagnose.model import Diagnosis, Evidence, Verdict
from drift.reading.diagnose.naming import step_words

__all__ = ["against_floor"]


def against_floor(diagnosis: Diagnosis, texts: Sequence[Text]) -> None:
    """Judge a pair that its envelopes do not accuse by its excess over the floor.

    Parameters
    ----------
    diagnosis : Diagnosis
        Of the first text.
    texts : sequence of Text
        All of them, the first one first.
    """
    diagnosis.excess = excesses(texts, diagnosis.roundoff.value)
    if diagnosis.verdict not in (Verdict.ROUNDING, Verdict.UNDETERMINED):
        return
    beyond = first_beyond(texts, diagnosis.excess, diagnosis.roundoff.value)
    if beyond is not None:
        _beyond(diagnosis, texts, *beyond)
        return
    sizes = visible(diagnosis.excess)
    hides = diagnosis.could_hide is not None and diagnosis.could_hide > HIDES
    if sizes is None:
        if hides:
            diagnosis.reason = _NOTHING
        return
    counted = [one for one in diagnosis.excess if one.trusted]
    diagnosis.evidence.insert(0, _measured(texts, counted, sizes))
    if not hides:
        return
    diagnosis.could_hide = sizes[1]
    if all(one.within for one in counted) and sizes[1] <= HIDES:
        diagnosis.verdict, diagnosis.reason = Verdict.ROUNDING, ""
        return
    widest = max(counted, key=lambda one: one.high)
    diagnosis.reason = (
        f"against the floor the pair is not decided: at {widest.place} it is {widest.ratio:.3g} floors (limits "
        f"{widest.low:.3g} and {widest.high:.3g}; {MARGIN:g} are granted), and a bug of {sizes[1]:.2g} of a place's "
        "norm would hide. More texts decide (--text A2 B2 C2), or longer ones, and more lanes of the floor, or fp32"
    )


_NOTHING = (
    "the lanes of --floor hold A's bits, or too few tokens, wherever the pair differs: they measure nothing. Run A "
    "again in a way that rounds otherwise: with noise of one unit roundoff on its embeddings (drift.capture --protocol "
    "'full(noise=1,seed=1)'), another batch size or another chunk size"
)


def _lanes(texts: Sequence[Text]) -> str:
    lanes, count = sum(len(text.floors) for text in texts), len(texts)
    return f"{lanes} {'lane' if lanes == 1 else 'lanes'} of the floor, {count} {'text' if count == 1 else 'texts'}"


def _spread(one: Excess, texts: Sequence[Text]) -> str:
    return f", {one.least:.3g} to {one.most:.3g} over texts" if len(texts) > 1 else ""


def _measured(texts: Sequence[Text], counted: Sequence[Excess], sizes: tuple[float, float]) -> Evidence:
    whole = [one for one in counted if one.start == 0]
    top, last = max(whole, key=lambda one: one.ratio), whole[-1]
    return Evidence(
        f"Against {_lanes(texts)}: B is {last.ratio:.3g} floors from A at {last.place}{_spread(last, texts)}, and at "
        f"most "
        f"{top.ratio:.3g} ({top.place}{_spread(top, texts)}). A bug would have been seen that changes the tokens of a "
        f"place by {sizes[0]:.2g} of their norm, or at the least sensitive place by {sizes[1]:.2g}.",
        {"excess": last.ratio, "largest_excess": top.ratio, "visible": list(sizes)},
    )


def _beyond(diagnosis: Diagnosis, texts: Sequence[Text], here: Excess, piece: int) -> None:
    found, place = texts[0].found, here.place
    cuts = pieces(found)
    token = cuts[piece][0]
    if piece:
        place, _ = first_to_grow(found, cuts, piece, place)
    end = [one for one in diagnosis.excess if one.start == here.start and one.trusted][-1]
    structural(diagnosis, place, token, _words(diagnosis, here, piece, token))
    diagnosis.reason, diagnosis.could_hide = "", None
    diagnosis.evidence.insert(
        0,
        Evidence(
            f"Against {_lanes(texts)}: from token {cuts[here.start][0]} on B is {here.ratio:.3g} floors from A at "
            f"{here.place}{_spread(here, texts)}, with a lower limit of {here.low:.3g}; {MARGIN:g} are granted, and "
            f"fewer "
            f"than 1 of {1 / RATE:.0f} clean pairs go beyond. At {end.place} it is {end.ratio:.3g} floors.",
            {"excess": here.ratio, "lower_limit": here.low, "floor": here.floor, "excess_at_end": end.ratio},
        ),
    )


def _words(diagnosis: Diagnosis, here: Excess, piece: int, token: int) -> str:
    when = f"from step {step_words(diagnosis.comparison, token)} on" if piece else "from the first token on"
    return (
        f"the lanes are further apart than equally right ways to compute A are: {here.ratio:.3g} floors at "
        f"{here.place}, "
        f"{when}. It begins there or in the blocks below, where the floor hides it"
    )
