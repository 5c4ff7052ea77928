"""Which protocols an engine could run. No torch: a plan asks it."""

from __future__ import annotations

from drift.errors import ConfigError
from drift.running.protocols.base import Protocol
from drift.running.protocols.decode import Decode

__all__ = ["check_runnable"]


def check_runnable(protocol: Protocol) -> None:
    """Refuse a protocol that no engine could run: what it needs is only there when passes are compared.

    Raises
    ------
    ConfigError
        With the reason, and what to name instead.
    """
    label = protocol.label
    if isinstance(protocol, Decode):
        raise ConfigError(
            f"{label} compares tokens that full attention generates. To fold a text and generate from it, name the "
            f"protocol whose cache is generated from: {protocol.protocol.label}."
        )
    if protocol.takes_full_cache:
        raise ConfigError(
            f"{label} continues every chunk from full attention's own keys and values, which only a pass beside it "
            "has: it can be measured (drift.trace), not run."
        )
    if protocol.texts_at_once > 1:
        raise ConfigError(
            f"{label} disturbs full attention by other texts in the batch, to see what that changes: it can be "
            "measured (drift.trace), and there is nothing to run but full."
        )
    if not protocol.measures_what_it_carries:
        raise ConfigError(
            f"{label} computes every chunk twice and carries on what it does not measure: its cache is that of "
            f"{protocol.name}, which can be run."
        )
