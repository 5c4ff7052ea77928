"""drift: is a chunked KV cache's difference from full attention rounding, or is it a bug?

The names below are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from drift._accessors import attach
from drift._version import __version__

if TYPE_CHECKING:
    from drift.dataset.opening import open_sweep
    from drift.reading.logits.comparing import compare_logits, compare_logprobs
    from drift.running.checkpoints.loading import load_model
    from drift.running.folding.folded import fold
    from drift.running.folding.generating import generate
    from drift.running.tasks.quizzes import quiz
    from drift.running.tasks.taking import take_quiz
    from drift.running.tracing import trace, trace_folds

__all__ = [
    "__version__",
    "compare_logits",
    "compare_logprobs",
    "fold",
    "generate",
    "load_model",
    "open_sweep",
    "quiz",
    "take_quiz",
    "trace",
    "trace_folds",
]

_HOMES = {
    "compare_logits": "drift.reading.logits.comparing",
    "compare_logprobs": "drift.reading.logits.comparing",
    "fold": "drift.running.folding.folded",
    "load_model": "drift.running.checkpoints.loading",
    "open_sweep": "drift.dataset.opening",
    "quiz": "drift.running.tasks.quizzes",
    "take_quiz": "drift.running.tasks.taking",
    "trace": "drift.running.tracing",
    "trace_folds": "drift.running.tracing",
}

attach()


def __getattr__(name: str) -> Any:
    if name == "generate":  # the door, which is also the function: whoever imports the one finds the other in its place
        return import_module("drift.generate")
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'drift' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, "generate"])
