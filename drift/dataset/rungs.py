"""The rungs of the precision ladder and their unit roundoffs."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from drift.errors import ConfigError

__all__ = ["RUNGS", "Rung", "known_rung", "rung", "rung_name"]


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder.

    Attributes
    ----------
    name : str
        The name used in configurations and in the `dtype` coordinate.
    torch_dtype : str
        Attribute of :mod:`torch` that tensors are stored in.
    unit_roundoff : float
        Largest relative error of rounding a real number to the nearest one of this format: half the distance from 1
        to the next larger number, that is 2**-p for p bits of significand (Higham, Accuracy and Stability of
        Numerical Algorithms, 2nd ed., section 2.1).
    needs_gpu : bool
        Whether only a CUDA device has this arithmetic.
    """

    name: str
    torch_dtype: str
    unit_roundoff: float
    needs_gpu: bool = False


RUNGS: dict[str, Rung] = {
    r.name: r
    for r in (
        Rung("bf16", "bfloat16", 2.0**-8),
        Rung("fp16", "float16", 2.0**-11),
        Rung("tf32", "float32", 2.0**-11, needs_gpu=True),
        Rung("fp32", "float32", 2.0**-24),
        Rung("fp64", "float64", 2.0**-53),
    )
}


#: Torch's names of the formats; float32 is true float32, and not TF32.
_OF_TORCH = {r.torch_dtype: r for r in RUNGS.values() if r.name != "tf32"} | {
    "half": RUNGS["fp16"], "float": RUNGS["fp32"], "double": RUNGS["fp64"],
}  # fmt: skip


def known_rung(name: object) -> Rung | None:
    """Return the rung of that name, which may be torch's (`bfloat16`, `torch.float32`); None if there is none."""
    if not isinstance(name, str):
        return None
    return RUNGS.get(name) or _OF_TORCH.get(name.removeprefix("torch."))


def rung_name(name: str) -> str:
    """Return what a rung is called here, by that name or by torch's; any other name as it is, for others to refuse."""
    found = known_rung(name)
    return name if found is None else found.name


def rung(name: str) -> Rung:
    """Return the rung of that name, which may be torch's.

    Raises
    ------
    ConfigError
        If there is none; the message lists the names.
    """
    found = known_rung(name)
    if found is None:
        near = get_close_matches(str(name), RUNGS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"Unknown dtype {name!r}.{hint} Known dtypes: {', '.join(RUNGS)}.")
    return found
