"""What a dump of a network's tensors may hold: for who writes one and for who asks for one."""

from __future__ import annotations

__all__ = ["LOGITS"]

#: Of which tokens the logits are written.
LOGITS = ("all", "last", "none")
