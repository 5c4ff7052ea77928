"""Labels of protocols as text: how they are split, and what one of them says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from drift.errors import DatasetError

__all__ = ["Label", "number", "parse", "split_outside_parentheses"]


@dataclass(frozen=True)
class Label:
    """A protocol's label, taken apart.

    Attributes
    ----------
    name : str
        ``perturbed`` of ``perturbed(append,step=4,size=0.001)``.
    inner : str
        Label of the protocol that it is applied to (``append``), or empty.
    options : dict of str to str
        What was set, as written.
    """

    name: str
    inner: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    def number(self, option: str) -> float:
        """Value of an option that is a number.

        Raises
        ------
        DatasetError
            If it was not set, or is no number.
        """
        try:
            return float(self.options[option])
        except (KeyError, ValueError) as error:
            raise DatasetError(f"the protocol {self.name!r} of a cell has no number {option!r}: {error}") from error


def parse(label: str) -> Label:
    """Take a label apart: ``name``, ``name(option=value,...)`` or ``name(protocol,option=value,...)``.

    Examples
    --------
    >>> parse("perturbed(quantized(format=int8,axis=token),step=4,size=0.001)").inner
    'quantized(format=int8,axis=token)'
    """
    name, bracket, rest = label.partition("(")
    if not bracket:
        return Label(label)
    inner, options = "", {}
    for part in _split(rest.removesuffix(")")):
        key, equals, value = part.partition("=")
        if equals and "(" not in key:
            options[key.strip()] = value.strip()
        else:
            inner = part.strip()
    return Label(name, inner, options)


def _split(text: str) -> list[str]:
    """Split at commas that stand in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


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
