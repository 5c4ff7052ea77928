"""Readings of the fold, one module each.

Every :class:`Protocol` of this package that has a name is found by itself: adding a protocol is adding a file.
"""

from __future__ import annotations

import math
import re
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from drift._bounds import MOST_DIGITS, MOST_OPTION
from drift.dataset.labels import Label, parse_label
from drift.errors import ConfigError, DatasetError
from drift.running.protocols.base import Carried, Chunk, Protocol, Variation

__all__ = ["Carried", "Chunk", "Protocol", "Variation", "available", "parse"]


@cache
def _registry() -> dict[str, type[Protocol]]:
    """Every class of this package that gives itself a name; one without is there to be derived from."""
    found: dict[str, type[Protocol]] = {}
    for module in sorted(info.name for info in iter_modules(__path__)):
        for value in vars(import_module(f"{__name__}.{module}")).values():
            if not (isinstance(value, type) and issubclass(value, Protocol) and "name" in vars(value)):
                continue
            first = found.setdefault(value.name, value)
            if first is not value:
                raise ConfigError(
                    f"Two protocols are named {value.name!r}: {first.__module__}.{first.__qualname__} and "
                    f"{value.__module__}.{value.__qualname__}. Rename one of them."
                )
    return found


def available() -> tuple[str, ...]:
    """Names of all protocols, sorted."""
    return tuple(sorted(_registry()))


def parse(label: str | Protocol) -> Protocol:
    """Read a protocol from its label.

    Parameters
    ----------
    label : str or Protocol
        A name, with options in parentheses where there are any: ``append``, ``reprime``, ``reprime(token=1)``. A
        protocol that changes another one takes that one first: ``shifted(append,step=4)``.

    Raises
    ------
    ConfigError
        If the name or an option is unknown, or an option's value will not do.
    """
    if isinstance(label, Protocol):
        return label
    if not isinstance(label, str):
        raise ConfigError(f"A protocol is a label such as 'append', or a Protocol, not {type(label).__name__}.")
    registry = _registry()
    try:
        said = parse_label(label)
    except DatasetError as error:
        known = f"Known protocols: {', '.join(available())}"
        raise ConfigError(f"Unknown protocol {label[:80]!r}: {error}. {known}.") from None
    if said.name not in registry:
        near = get_close_matches(said.name, registry, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"Unknown protocol {label!r}.{hint} Known protocols: {', '.join(available())}.")
    return _build(label, registry[said.name], said)


def _build(label: str, kind: type[Protocol], said: Label) -> Protocol:
    """Make a protocol of what its label says, each option read as its field is declared."""
    known = {f.name: f for f in fields(kind)}
    written = dict(said.options)
    options: dict[str, Any] = {}
    if issubclass(kind, Variation):
        del known["protocol"]
        if not said.inner:
            raise ConfigError(
                f"Protocol {label!r}: {kind.name} changes another protocol, which comes first: {kind.name}(append)."
            )
        options["protocol"] = parse(said.inner)
    elif said.inner:
        written = {said.inner: "", **written}
    for key, value in written.items():
        if key not in known:
            takes = f"it takes: {', '.join(known)}" if known else "it takes none"
            raise ConfigError(f"Protocol {label!r}: unknown option {key!r}; {takes}.")
        options[key] = _value(label, kind, known[key], value)
    missing = [key for key, f in known.items() if f.default is MISSING and key not in options]
    if missing:
        raise ConfigError(f"Protocol {label!r}: needs the option {missing[0]}, such as {missing[0]}=1.")
    return kind(**options)


def _value(label: str, kind: type[Protocol], option: Field[Any], text: str) -> Any:
    """Read an option: one of a few words, a number, or a whole number, as the field is declared."""
    key = option.name
    if key in kind.choices:
        if text not in kind.choices[key]:
            raise ConfigError(f"Protocol {label!r}: option {key!r} must be one of {', '.join(kind.choices[key])}.")
        return text
    if str(option.type).startswith("float"):
        if not re.fullmatch(r"[0-9]+\.?[0-9]*(e[+-]?[0-9]+)?", text, re.IGNORECASE):
            raise ConfigError(f"Protocol {label!r}: option {key!r} must be a number such as {key}=0.001.")
        if not math.isfinite(float(text)):
            raise ConfigError(f"Protocol {label!r}: option {key!r} is too large to be a number.")
        return float(text)
    if not re.fullmatch(r"[0-9]+", text):
        raise ConfigError(f"Protocol {label!r}: option {key!r} must be a whole number such as {key}=1.")
    if len(text) > MOST_DIGITS or int(text) > MOST_OPTION:
        raise ConfigError(f"Protocol {label!r}: option {key!r} must be at most {MOST_OPTION}.")
    return int(text)
