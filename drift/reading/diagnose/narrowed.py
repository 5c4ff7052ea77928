"""Lanes that store numbers in fewer bits, in words; and lanes that only seem to."""

from __future__ import annotations

from drift.dataset.rungs import known_rung
from drift.reading.diagnose.grids import SCALED
from drift.reading.diagnose.model import Cause, Diagnosis, Entry, Evidence, Verdict
from drift.reading.diagnose.naming import entry_of, step_words
from drift.reading.diagnose.storage import CacheFault, Narrowing
from drift.reading.diagnose.tensors import Place

__all__ = ["KIND_NAMES", "computed_narrower", "narrow_verdict"]

KIND_NAMES = {
    "hidden": "hidden states", "key": "keys", "value": "values", "final": "final states", "logits": "logits",
}  # fmt: skip
"""What kinds of tensors are called, in words."""


def computed_narrower(diagnosis: Diagnosis, item: Narrowing) -> bool:
    """Whether a lane's numbers are narrower throughout, and nothing says that the other computed in more bits.

    Engines that multiply in 16 bits differ in what they hand on between the products: numbers of fp32 do not say that
    a lane is the more precise one.
    """
    if not item.throughout:
        return False
    found, wide = diagnosis.comparison, "A" if item.lane == "B" else "B"
    said = known_rung((found.a if wide == "A" else found.b).metadata.get("dtype", ""))
    if said is not None and said.unit_roundoff < item.narrow.unit_roundoff:
        return False
    diagnosis.notes.insert(
        0,
        f"{item.lane}'s numbers are {item.narrow.name} throughout, and {wide}'s {item.wide.name}. An engine that "
        f"multiplies in {item.narrow.name} may keep {item.wide.name} between its products, so this is called no "
        f"narrower storage. If {wide} was computed in {item.wide.name}, its files' metadata should say so (dtype).",
    )
    return True


def narrow_verdict(diagnosis: Diagnosis, narrow: list[Narrowing], caches: list[CacheFault]) -> None:
    """Give the verdict on a pair in which one lane stores less, and that explains all."""
    found = diagnosis.comparison
    diagnosis.verdict, diagnosis.cause = Verdict.NARROWER, Cause.NARROWER_STORAGE
    texts = []
    for item in narrow:
        token = found.segments[item.segment][0]
        kinds = sorted({p.kind for p in item.places}, key=list(KIND_NAMES).index)
        blocks = sorted({p.block for p in item.places})
        wide = "A" if item.lane == "B" else "B"
        what = " and ".join(KIND_NAMES[k] for k in kinds)
        text = (
            f"{item.lane}'s {what} from {_level(item.places[0])} on hold numbers of {item.narrow.name} only, while "
            f"{wide}'s are {item.wide.name}"
        )
        texts.append(text)
        share = f"{100 * item.exact:.4g} % of {item.lane}'s {str(item.places[0]).removeprefix('the ')}"
        at = f"{share} at step {step_words(found, token)} are exactly {wide}'s, rounded to {item.narrow.name}."
        if item.narrow in SCALED.values():
            at = (
                f"The larger of them are a few numbers times a scale; {share} at step {step_words(found, token)} are "
                f"{wide}'s to within one rounding to {item.narrow.bits} bits."
            )
        diagnosis.evidence.append(
            Evidence(
                f"{text} ({len(item.places)} places). {at}",
                {
                    "lane": item.lane, "format": item.narrow.name, "other_format": item.wide.name,
                    "blocks": blocks, "kinds": kinds, "exactly_rounded": item.exact,
                },
            )
        )  # fmt: skip
    for fault in caches:
        assert fault.narrow is not None
        text = f"{fault.lane} keeps {fault.place!s} in {fault.narrow.name}, narrower than what it appends"
        texts.append(text)
        diagnosis.evidence.append(Evidence(f"{text}.", {"lane": fault.lane, "format": fault.narrow.name}))
    diagnosis.cause_text = texts[0]
    if narrow:
        first = narrow[0]
        diagnosis.entry = entry_of(found, first.places[0], found.segments[first.segment])
    else:
        step = caches[0].step
        diagnosis.entry = Entry(caches[0].place, step, step, caches[0].start, caches[0].stop)
    diagnosis.evidence.append(
        Evidence(f"Everything else is within what rounding to unit roundoff {diagnosis.roundoff.value:.3g} explains.")
    )


def _level(place: Place) -> str:
    if place.kind == "hidden" and place.block == 0:
        return "the embeddings"
    return f"block {place.block}" if place.block else str(place)
