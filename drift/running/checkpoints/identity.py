"""The hash of a checkpoint's weights, worked out once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drift.running.checkpoints.hub_cache import hub_commit
from drift.running.checkpoints.names import RECORD, Checkpoint, cache_dir
from drift.running.checkpoints.resolving import resolve
from drift.writing import write_whole

__all__ = ["HASH_BYTES", "cache_home", "file_sha256", "identity", "remember_hashes", "remembered_sha256"]

HASH_BYTES = 1 << 20


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """Hash of a file, remembered in the cache by path, size and time of change (hashing gigabytes takes seconds)."""
    path = path.resolve()
    state = path.stat()
    stamp = [state.st_size, state.st_mtime_ns]
    memory = cache_dir() / "hashes.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known[str(path)][:2] == stamp:
            return str(known[str(path)][2])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        pass
    digest = file_sha256(path)
    remember_hashes({str(path): [*stamp, digest]})
    return digest


def remember_hashes(hashes: Mapping[str, list[Any]]) -> None:
    """Add hashes of files to the cache's memory of them; without it they are only worked out again."""
    memory = cache_dir() / "hashes.json"
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        try:
            known = json.loads(memory.read_text(encoding="utf-8"))
            known = {path: entry for path, entry in known.items() if os.path.exists(path)}
        except (OSError, ValueError, AttributeError):
            known = {}
        write_whole(memory, json.dumps({**known, **hashes}).encode())
    except OSError:
        pass  # a cache that cannot be written only costs the time to hash again


def identity(name: str) -> str:
    """Sha256 that identifies weights, tokenizer and configuration together.

    Returns
    -------
    str
        Embedded: the pinned hash of the GGUF file (known before anything is downloaded). GGUF file: the hash of its
        content. Folder: a hash over the names and hashes of its files. Hub: the commit in the local hub cache, or
        ``"unfetched"``.
    """
    checkpoint = resolve(name)
    if checkpoint.source == "embedded":
        return str(checkpoint.entry["gguf"]["sha256"])
    if checkpoint.source == "hub":
        return hub_commit(name) or "unfetched"
    assert checkpoint.path is not None
    if checkpoint.source == "gguf":
        return remembered_sha256(checkpoint.path)
    suffixes = {".safetensors", ".json", ".model", ".txt", ".jinja"}
    files = sorted(
        path
        for path in checkpoint.path.iterdir()
        if path.is_file() and path.suffix in suffixes and path.name != RECORD and not path.name.startswith(".")
    )
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name}\0{remembered_sha256(path)}\n".encode())
    return total.hexdigest()


def cache_home(checkpoint: Checkpoint) -> Path:
    """Folder of the cache in which a checkpoint lies once it is ready."""
    if checkpoint.source == "embedded":
        return cache_dir() / "checkpoints" / checkpoint.label
    return cache_dir() / "gguf" / identity(checkpoint.name)
