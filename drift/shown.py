"""Texts that come from files, as a terminal or a message may show them: a text may move a cursor, or be endless."""

from __future__ import annotations

import re

__all__ = ["clipped", "printable", "printable_lines"]

#: What moves a cursor, rings, colours, ends a line or turns the order of writing round: the controls of ASCII and of
#: Latin-1, the separators of lines and paragraphs, the marks of direction, and halves of surrogate pairs.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHOWN = 120  # characters of a path that a message repeats


def printable(text: object) -> str:
    r"""Write a text on one line, with control characters as what they are called.

    Parameters
    ----------
    text : object
        Its ``str`` is taken.

    Returns
    -------
    str
        Without line breaks, escape sequences, or marks that turn the direction of writing round: each is written as
        in Python's source, such as ``\n`` or ``\x1b``.

    Examples
    --------
    >>> printable("one\ntwo\x1b[2J")
    'one\\ntwo\\x1b[2J'
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), str(text))


def printable_lines(text: str, keep: str = "\n\t") -> str:
    """Write a text of several lines as :func:`printable` writes one; the characters of `keep` stay."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else printable(found[0]), text)


def clipped(text: object, most: int = _SHOWN) -> str:
    """Write a text on one line, and of a long one its two ends."""
    line = printable(text)
    return line if len(line) <= most else f"{line[: most - 30]}[{len(line) - most + 6} more]{line[-24:]}"
