"""What comes from outside as people write it: paths on a command line, and texts that are shown.

Both are harmless until they are believed: a path may be no path, and a text may move the cursor of a terminal.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from drift.errors import ConfigError, DriftError

__all__ = ["clipped", "outside_path", "printable", "printable_lines"]

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


def outside_path(
    given: str | os.PathLike[str], error: Callable[[str], DriftError] = ConfigError, *, said: str = ""
) -> Path:
    """Take a path from outside: a command line, an argument, a variable of the environment.

    Parameters
    ----------
    given : str or path
        A ``~`` or ``~user`` at its beginning is a home. Nothing needs to be there.
    error : callable
        Makes of a message the error that is raised.
    said : str
        What the message calls it, such as ``"--out"``; the path alone by default.

    Returns
    -------
    pathlib.Path
        One that the operating system can look up: whether something is there may be asked without an error.

    Raises
    ------
    DriftError
        Of the kind of `error`: it is no text, is empty, holds a NUL, names the home of an unknown user, is too long or
        a loop of links, or lies where nobody may look.
    """

    def refused(why: str) -> DriftError:
        shown = clipped(given) if isinstance(given, (str, os.PathLike)) else clipped(repr(given))
        return error(f"{said}{' ' * bool(said)}{shown or repr('')}: cannot be used as a path ({why}). Name another.")

    try:
        text = os.fspath(given)
    except TypeError:
        raise refused(f"a {type(given).__name__}, not a text") from None
    if not isinstance(text, str):
        raise refused(f"{type(text).__name__}, not a text")
    if not text:
        raise refused("it is empty")
    if "\0" in text:
        raise refused("it holds a NUL character")
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # no such user, or a user without a home
        raise refused("there is no such user, or no home is known; a folder of that name is written ./~...") from None
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as problem:  # ValueError: characters that the file system cannot write
        raise refused(getattr(problem, "strerror", None) or str(problem)) from None
    return path
