"""Readings of the fold, one module each.

Every :class:`Protocol` of this package that has a name is found by itself: adding a protocol is adding a file.
"""

from __future__ import annotations

from functools import cache

from drift.dataset.labels import Label
from drift.errors import ConfigError
from drift.running.options import chosen, named_classes, read_options
from drift.running.protocols.base import Carried, Chunk, Protocol, Variation

__all__ = ["Carried", "Chunk", "Protocol", "Variation", "available", "parse"]


@cache
def _registry() -> dict[str, type[Protocol]]:
    return named_classes(__name__, __path__, Protocol, "protocol")


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
    kind, said = chosen(label, _registry(), "protocol")
    return _build(label, kind, said)


def _build(label: str, kind: type[Protocol], said: Label) -> Protocol:
    """Make a protocol of what its label says."""
    if issubclass(kind, Variation):
        if not said.inner:
            raise ConfigError(
                f"Protocol {label!r}: {kind.name} changes another protocol, which comes first: {kind.name}(append)."
            )
        inner = parse(said.inner)
        return kind(protocol=inner, **read_options(label, kind, said, "protocol", inner="protocol"))
    return kind(**read_options(label, kind, said, "protocol"))
