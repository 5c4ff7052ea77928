"""What has a label and options in it: classes that are found by their name, and dataclass fields read from text.

Protocols are written so, and tasks: ``NAME(option=value,...)``. The grammar is that of :mod:`drift.dataset.labels`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

from drift._bounds import MOST_DIGITS, MOST_OPTION
from drift.dataset.labels import Label, number, parse_label
from drift.errors import ConfigError, DatasetError

__all__ = ["chosen", "named_classes", "read_options", "written"]

_Kind = TypeVar("_Kind")


def named_classes(package: str, path: Iterable[str], base: type[_Kind], what: str) -> dict[str, type[_Kind]]:
    """Every class of a package that gives itself a name; one without is there to be derived from.

    Parameters
    ----------
    package : str
        Its name; `path` is its ``__path__``.
    base : type
        What they derive from.
    what : str
        What such a class is called: ``protocol``.

    Raises
    ------
    ConfigError
        If two have the same name.
    """
    found: dict[str, type[_Kind]] = {}
    for module in sorted(info.name for info in iter_modules(path)):
        for value in vars(import_module(f"{package}.{module}")).values():
            if not (isinstance(value, type) and issubclass(value, base) and "name" in vars(value)):
                continue
            name: str = vars(value)["name"]
            first = found.setdefault(name, value)
            if first is not value:
                raise ConfigError(
                    f"Two {what}s are named {name!r}: {first.__module__}.{first.__qualname__} and "
                    f"{value.__module__}.{value.__qualname__}. Rename one of them."
                )
    return found


def chosen(label: str, registry: Mapping[str, type[_Kind]], what: str) -> tuple[type[_Kind], Label]:
    """The class that a label names, and the label taken apart.

    Raises
    ------
    ConfigError
        If it is no label, or there is none of that name.
    """
    known = f"Known {what}s: {', '.join(sorted(registry))}"
    try:
        said = parse_label(label, what)
    except DatasetError as error:
        raise ConfigError(f"Unknown {what} {label[:80]!r}: {error}. {known}.") from None
    if said.name not in registry:
        near = get_close_matches(said.name, registry, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"Unknown {what} {label!r}.{hint} {known}.")
    return registry[said.name], said


def read_options(
    label: str,
    kind: type[Any],
    said: Label,
    what: str,
    inner: str = "",
) -> dict[str, Any]:
    """Read options, each as the dataclass field of its name is declared.

    Parameters
    ----------
    label : str
        As it was written, for messages.
    kind : type
        The dataclass; its ``choices`` are the options that take one of a few words.
    said : Label
        The label, taken apart.
    what : str
        What `kind` is called: ``protocol``.
    inner : str
        The field, no option, that holds what the label is applied to. Without, a label inside is an option of that
        name, which there is none of.

    Raises
    ------
    ConfigError
        If an option is unknown or missing, or its value will not do.
    """
    known = {f.name: f for f in fields(kind) if f.name != inner}
    given = said.options if inner or not said.inner else {said.inner: "", **said.options}
    options: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            takes = f"it takes: {', '.join(known)}" if known else "it takes none"
            raise ConfigError(f"{what.capitalize()} {label!r}: unknown option {key!r}; {takes}.")
        options[key] = _value(f"{what.capitalize()} {label!r}", kind.choices, known[key], value)
    missing = [key for key, f in known.items() if f.default is MISSING and key not in options]
    if missing:
        raise ConfigError(f"{what.capitalize()} {label!r}: needs the option {missing[0]}, such as {missing[0]}=1.")
    return options


def _value(where: str, choices: Mapping[str, tuple[str, ...]], option: Field[Any], text: str) -> Any:
    """Read an option: one of a few words, a text, a number, or a whole number, as the field is declared."""
    key = option.name
    if key in choices:
        if text not in choices[key]:
            raise ConfigError(f"{where}: option {key!r} must be one of {', '.join(choices[key])}.")
        return text
    if str(option.type) == "str":
        return text
    if str(option.type).startswith("float"):
        if not re.fullmatch(r"[0-9]+\.?[0-9]*(e[+-]?[0-9]+)?", text, re.IGNORECASE):
            raise ConfigError(f"{where}: option {key!r} must be a number such as {key}=0.001.")
        if not math.isfinite(float(text)):
            raise ConfigError(f"{where}: option {key!r} is too large to be a number.")
        return float(text)
    if not re.fullmatch(r"[0-9]+", text):
        raise ConfigError(f"{where}: option {key!r} must be a whole number such as {key}=1.")
    if len(text) > MOST_DIGITS or int(text) > MOST_OPTION:
        raise ConfigError(f"{where}: option {key!r} must be at most {MOST_OPTION}.")
    return int(text)


def written(thing: Any, besides: str = "", always: tuple[str, ...] = ()) -> dict[str, str]:
    """Options of a dataclass, as a label has them: those that are not what they are by default, and some always.

    The field that is named in `besides` is no option.
    """
    return {
        f.name: number(value) if isinstance(value, int | float) else str(value)
        for f in fields(thing)
        if f.name != besides and ((value := getattr(thing, f.name)) != f.default or f.name in always)
    }
