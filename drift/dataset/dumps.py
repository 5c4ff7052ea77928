"""What a dump of a network's tensors may hold: for who writes one and for who asks for one."""

from __future__ import annotations

from drift.errors import ConfigError

__all__ = ["FORMS", "LOGITS", "check_logits"]

#: Of which tokens the logits are written.
LOGITS = ("all", "last", "none")
#: Programs whose dumps are read, as they are asked for; `drift` is names of our own.
FORMS = ("drift", "transformers", "transformerlens", "nnsight", "sglang", "vllm", "edge-llm", "msprobe")


def check_logits(logits: str) -> None:
    """Refuse what is none of :data:`LOGITS`.

    Raises
    ------
    ConfigError
        With those that there are.
    """
    if logits not in LOGITS:
        raise ConfigError(f"logits is {logits!r}; it must be one of {', '.join(LOGITS)}.")
