"""Readings of the fold, one module each.

Every module of this package that defines a :class:`Protocol` is found by itself: adding a protocol is adding a file.
"""

from __future__ import annotations

import re
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from drift.errors import ConfigError
from drift.protocols.base import Chunk, Protocol

__all__ = ["Chunk", "Protocol", "available", "parse"]


@cache
def _registry() -> dict[str, type[Protocol]]:
    found: dict[str, type[Protocol]] = {}
    for module in sorted(info.name for info in iter_modules(__path__) if info.name != "base"):
        for value in vars(import_module(f"{__name__}.{module}")).values():
            if isinstance(value, type) and issubclass(value, Protocol) and value is not Protocol:
                found[value.name] = value
    return found


def available() -> tuple[str, ...]:
    """Names of all protocols, sorted."""
    return tuple(sorted(_registry()))


def parse(label: str | Protocol) -> Protocol:
    """Read a protocol from its label.

    Parameters
    ----------
    label : str or Protocol
        A name, with options in parentheses where there are any: ``append``, ``reprime``, ``reprime(token=1)``.

    Raises
    ------
    ConfigError
        If the name or an option is unknown, or an option's value is not a whole number.
    """
    if isinstance(label, Protocol):
        return label
    match = re.fullmatch(r"\s*([a-z][a-z0-9_]*)\s*(?:\(\s*(.*?)\s*\))?\s*", label)
    registry = _registry()
    if not match or match[1] not in registry:
        name = match[1] if match else label
        near = get_close_matches(name, registry, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"Unknown protocol {label!r}.{hint} Known protocols: {', '.join(available())}.")
    kind = registry[match[1]]
    known = [f.name for f in fields(kind)]
    options: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in (match[2] or "").split(","))):
        key, _, value = (s.strip() for s in part.partition("="))
        if key not in known:
            takes = f"it takes: {', '.join(known)}" if known else "it takes none"
            raise ConfigError(f"Protocol {label!r}: unknown option {key!r}; {takes}.")
        if not re.fullmatch(r"\d+", value):
            raise ConfigError(f"Protocol {label!r}: option {key!r} must be a whole number such as {key}=1.")
        options[key] = int(value)
    return kind(**options)
