"""Labels of protocols and tasks as text: the one grammar of them, read and written."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from drift._bounds import MOST_LABEL, MOST_LABEL_DEPTH
from drift.errors import DatasetError

__all__ = ["Label", "number", "parse_label", "split_outside_parentheses"]

_LABEL = re.compile(r"([a-z][a-z0-9_]*)\s*(?:\((.*)\))?", re.DOTALL)
_OPTION = re.compile(r"([A-Za-z0-9_]+)\s*=\s*([^(),=]*)")


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

    @property
    def text(self) -> str:
        """The label as it is written, without spaces: :func:`parse_label` reads it back."""
        inside = [self.inner] if self.inner else []
        inside += [f"{name}={value}" for name, value in self.options.items()]
        return f"{self.name}({','.join(inside)})" if inside else self.name

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


def parse_label(text: str, what: str = "protocol") -> Label:
    """Take a label apart: ``name``, ``name(option=value,...)`` or ``name(label,option=value,...)``.

    A name begins with a lower-case letter, and goes on with these, digits and underscores. Spaces around names,
    values and commas mean nothing, and neither does an empty place between commas. Whether a protocol of that name
    exists, and what its options may be, is not asked here.

    Parameters
    ----------
    text : str
    what : str
        What it is the label of, for messages.

    Raises
    ------
    DatasetError
        If the text is no label: it says which part of it.

    Examples
    --------
    >>> parse_label("perturbed(quantized(format=int8,axis=token),step=4,size=0.001)").inner
    'quantized(format=int8,axis=token)'
    """
    if len(text) > MOST_LABEL or _depth(text) > MOST_LABEL_DEPTH:
        raise DatasetError(
            f"{text[:80]!r}... is no label of a {what}: at most {MOST_LABEL} characters, and {MOST_LABEL_DEPTH} "
            "parentheses inside one another"
        )
    found = _LABEL.fullmatch(text.strip())
    if found is None:
        raise DatasetError(f"{text!r} is no label of a {what}: write NAME, NAME(OPTION=VALUE) or NAME(LABEL)")
    inner, options = "", {}
    for place, part in enumerate(part for part in split_outside_parentheses(found[2] or "") if part):
        option = _OPTION.fullmatch(part)
        if option is not None and option[1] in options:
            raise DatasetError(f"{text!r} is no label of a {what}: it sets {option[1]!r} twice")
        if option is not None:
            options[option[1]] = option[2].strip()
        elif place == 0:
            inner = parse_label(part, what).text
        else:
            raise DatasetError(f"{text!r} is no label of a {what}: {part!r} is no OPTION=VALUE, and not the first")
    return Label(found[1], inner, options)


def _depth(text: str) -> int:
    """How deep parentheses stand inside one another."""
    steps = ((character == "(") - (character == ")") for character in text)
    return max(itertools.accumulate(steps), default=0)


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
