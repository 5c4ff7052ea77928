"""Paths that come from outside: a command line, an argument, the environment. A path may be none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from drift.errors import ConfigError, DriftError
from drift.shown import clipped

__all__ = ["outside_path"]


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
