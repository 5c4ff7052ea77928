"""What the hub's own cache holds already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drift.running.checkpoints.headers import read_config

__all__ = ["hub_commit", "hub_config", "hub_file"]


def hub_file(name: str, file: str) -> str | None:
    """Path of a file of a hub model in the local hub cache, if it is there."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, file)
    except ValueError:  # no name that the hub could know
        return None
    return found if isinstance(found, str) else None


def hub_config(name: str) -> dict[str, Any]:
    """The config.json of a hub model that is in the hub's cache; empty where it is not."""
    path = hub_file(name, "config.json")
    return read_config(Path(path).parent) if path else {}


def hub_commit(name: str) -> str | None:
    """Commit of a hub model that is in the hub's cache."""
    path = hub_file(name, "config.json")
    return Path(path).parent.name if path else None
