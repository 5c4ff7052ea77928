"""The controls that every sweep runs: what must not fire, how high the floor is, what must fire.

A comparison that shows nothing may be a comparison that cannot show anything. So every sweep puts a short text through
the same model, precision, device and attention implementation as its cells, and compares what is known in advance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["CHUNK_SIZE", "LOGIT_STRIDE", "SIZES", "TOKENS", "Control", "controls"]

TOKENS = 256
CHUNK_SIZE = 32
LOGIT_STRIDE = 5
#: Relative sizes of the perturbations, six decades from the first to the last; each precision gets what it resolves.
SIZES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
PERTURBED_AFTER = 2
SHIFTED_FROM = 4


@dataclass(frozen=True)
class Control:
    """One control.

    Attributes
    ----------
    kind : {"quiet", "floor", "fires"}
        Must read exactly 0; says how far two accepted ways to compute the same thing are apart; must be seen.
    protocol, reference : str
        As in a configuration.
    """

    kind: str
    protocol: str
    reference: str = "full"


def controls(unit_roundoff: float, attn_implementation: str) -> Iterator[Control]:
    """The controls of one model at one precision.

    Noise below twice the unit roundoff would be rounded away in part, so it is not put in.
    """
    yield Control("quiet", "full")
    other = "sdpa" if attn_implementation == "eager" else "eager"
    yield Control("floor", f"full(attention={other})")
    yield Control("floor", "full(batch=2)")
    for size in SIZES:
        if size >= 2 * unit_roundoff:
            yield Control("fires", f"perturbed(append,step={PERTURBED_AFTER},size={size!r})", "unperturbed")
    yield Control("fires", f"shifted(append,step={SHIFTED_FROM})")
