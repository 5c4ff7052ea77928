"""How protocols are written: ``reprime(token=1)``, ``perturbed(quantized(format=int4),step=4,size=0.001)``."""

from __future__ import annotations

__all__ = ["number", "split_outside_parentheses"]


def split_outside_parentheses(text: str) -> list[str]:
    """Split ``a,b(c,d(e)),f`` at the commas that stand outside all parentheses; parts are stripped."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    return [*parts, text[start:].strip()]


def number(value: float) -> str:
    """Write a number in its shortest exact form, whole numbers without a point: ``0.001``, ``1e-06``, ``2``."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
