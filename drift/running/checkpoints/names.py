"""What a checkpoint is called, what is known of it, and where it lies."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drift._outside import Form, OutsideError, read_json, shaped
from drift._resources import resource
from drift.errors import CheckpointError
from drift.paths import outside_path

__all__ = [
    "HUB_ID",
    "RECORD",
    "Checkpoint",
    "Report",
    "Shape",
    "cache_dir",
    "embedded",
    "named_path",
    "safe_name",
    "say",
]

RECORD = "drift.json"
"""The file that is written last into a folder of the cache: without it, what lies there is not trusted."""
_MANIFEST_SCHEMA = 1
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
Report = Callable[[str], None]
"""Told, a line at a time, what is being done."""


def say(message: str) -> None:
    """Print a line at once."""
    print(message, flush=True)


@dataclass(frozen=True)
class Shape:
    """The sizes that decide what a model costs to run.

    Attributes
    ----------
    layers, hidden_size, intermediate_size, heads, kv_heads, head_dim, vocab_size : int
        As in the model's configuration.
    parameters : int
        Number of weights stored (a tied output matrix counts once).
    max_positions : int
        Longest text the model was made for, in tokens.
    tied : bool
        Whether the output matrix is the embedding matrix.
    """

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    parameters: int
    max_positions: int
    tied: bool


@dataclass(frozen=True)
class Checkpoint:
    """What a name stands for.

    Attributes
    ----------
    name : str
        As given.
    source : str
        ``"embedded"``, ``"folder"``, ``"gguf"`` or ``"hub"``.
    family : str
        ``"Llama"``, ``"Qwen"``, ``"Gemma"``, ...; the model type where there is no common name; ``"unknown"`` for a hub
        model that was never fetched.
    label : str
        Short and safe in file names.
    path : Path or None
        The folder or GGUF file, for those sources.
    entry : Mapping
        The manifest's entry, for embedded checkpoints; else empty.
    """

    name: str
    source: str
    family: str
    label: str
    path: Path | None = None
    entry: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def cache_dir() -> Path:
    """Folder of the cache: ``$DRIFT_CACHE``, else ``$XDG_CACHE_HOME/drift``, else ``~/.cache/drift``."""
    if own := named_path("DRIFT_CACHE"):
        return own.absolute()
    if xdg := named_path("XDG_CACHE_HOME"):
        return xdg.absolute() / "drift"
    return outside_path("~/.cache/drift", CheckpointError, said="the cache")


def named_path(variable: str) -> Path | None:
    """The path that a variable of the environment names, or nothing.

    Raises
    ------
    CheckpointError
        It is no path.
    """
    given = os.environ.get(variable)
    return outside_path(given, CheckpointError, said=variable) if given else None


def embedded() -> dict[str, dict[str, Any]]:
    """Entries of the manifest by name, in the manifest's order.

    Raises
    ------
    CheckpointError
        The manifest cannot be read.
    """
    own = named_path("DRIFT_CHECKPOINTS")
    path = Path(own) if own else resource("data/checkpoints.json")
    remedy = "correct DRIFT_CHECKPOINTS" if own else "install drift again"
    try:
        manifest = read_json(path, Form.OBJECT)
        if manifest.get("schema") != _MANIFEST_SCHEMA:
            raise CheckpointError(
                f"{path}: written for another version of drift (schema {str(manifest.get('schema'))[:20]}, not "
                f"{_MANIFEST_SCHEMA}); {remedy}."
            )
        return dict(shaped(manifest, Form.MANIFEST)["checkpoints"])
    except (OSError, OutsideError) as error:
        raise CheckpointError(f"{path}: not a manifest of checkpoints ({error}); {remedy}.") from error


def safe_name(text: str) -> str:
    """Turn a text into a name that any file system takes."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-.") or "model"
