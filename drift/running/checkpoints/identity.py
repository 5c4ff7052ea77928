"""The hash of a checkpoint's weights, worked out once."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from drift._outside import Form, OutsideError, read_json
from drift.running.checkpoints.headers import index_shards
from drift.running.checkpoints.hub_cache import hub_commit
from drift.running.checkpoints.names import RECORD, Checkpoint, cache_dir
from drift.running.checkpoints.resolving import resolve
from drift.writing import write_whole

__all__ = [
    "HASH_BYTES",
    "cache_home",
    "changed_unseen",
    "file_sha256",
    "identity",
    "own_files",
    "remember_hashes",
    "remembered_sha256",
]

HASH_BYTES = 1 << 20
_HASHES = "hashes.json"
_STAMP = 4
_CHANGED = 2
_TICKS = 100_000_000  # nanoseconds; clocks of file systems tick every 1 to 20 ms
_SUFFIXES = {".safetensors", ".json", ".model", ".txt", ".jinja"}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _stamp(path: Path) -> list[int]:
    """What changes with a file's content: size, both times of change (the second cannot be set), and inode."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def _memory() -> dict[str, list[Any]]:
    """Hashes of files that were worked out before, with the stamps that they had then."""
    try:
        known = read_json(cache_dir() / _HASHES, Form.OBJECT)
    except (OSError, OutsideError):
        return {}
    return {
        path: entry
        for path, entry in known.items()
        if isinstance(entry, list) and len(entry) == _STAMP + 1 and isinstance(entry[-1], str)
    }


def remembered_sha256(path: Path) -> str:
    """Hash of a file, remembered by path, size, times and inode (hashing gigabytes takes seconds)."""
    path = path.resolve()
    entry = _memory().get(str(path))
    if entry and entry[:_STAMP] == _stamp(path):
        return str(entry[-1])
    return _hashed(path)


def _hashed(path: Path) -> str:
    """Hash a file, and remember that unless it changed meanwhile."""
    before = _stamp(path)
    digest = file_sha256(path)
    if _stamp(path) == before:
        remember_hashes({path: digest})
    return digest


def changed_unseen(path: Path) -> bool:
    """Read a file's bytes, and say whether they are not those that its remembered hash, size and times stand for."""
    path = path.resolve()
    entry, stamp = _memory().get(str(path)), _stamp(path)
    digest = _hashed(path)
    return bool(entry) and entry is not None and entry[:_STAMP] == stamp and entry[-1] != digest


def remember_hashes(hashes: Mapping[Path, str]) -> None:
    """Add hashes of files to the cache's memory of them; without it they are only worked out again."""
    memory = cache_dir() / _HASHES
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        known = {path: entry for path, entry in _memory().items() if os.path.exists(path)}
        made: dict[str, list[Any]] = {str(path.resolve()): [*_stamp(path), digest] for path, digest in hashes.items()}
        # What changed a moment ago may change again within the same tick of the file system's clock.
        now = time.time_ns()
        made = {path: entry for path, entry in made.items() if now - entry[_CHANGED] > _TICKS}
        write_whole(memory, json.dumps({**known, **made}).encode())
    except (OSError, ValueError):
        pass  # a cache that cannot be written only costs the time to hash again


def identity(name: str, digest: Callable[[Path], str] = remembered_sha256) -> str:
    """Sha256 that identifies weights, tokenizer and configuration together.

    Parameters
    ----------
    name : str
        See :func:`resolve`.
    digest : callable
        Hashes a file.

    Returns
    -------
    str
        Embedded: the pinned hash of the GGUF file (known before anything is downloaded). GGUF file: the hash of its
        content. Folder: a hash over the names and hashes of its files. Hub: the commit in the local hub cache, or
        ``"unfetched"``.

    Raises
    ------
    CheckpointError
        The name stands for nothing, or the folder's index names weights that are no safetensors files of the folder:
        its identity would say nothing of them.
    """
    checkpoint = resolve(name)
    if checkpoint.source == "embedded":
        return str(checkpoint.entry["gguf"]["sha256"])
    if checkpoint.source == "hub":
        return hub_commit(name) or "unfetched"
    assert checkpoint.path is not None
    if checkpoint.source == "gguf":
        return digest(checkpoint.path)
    index_shards(checkpoint.path)
    total = hashlib.sha256()
    for path in own_files(checkpoint.path):
        total.update(f"{path.name}\0{digest(path)}\n".encode())
    return total.hexdigest()


def own_files(folder: Path) -> list[Path]:
    """Files of a folder that its identity is made of: weights, tokenizer, configuration."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix in _SUFFIXES and path.name != RECORD and not path.name.startswith(".")
    )


def cache_home(checkpoint: Checkpoint, digest: Callable[[Path], str] = remembered_sha256) -> Path:
    """Folder of the cache in which a checkpoint lies once it is ready."""
    if checkpoint.source == "embedded":
        return cache_dir() / "checkpoints" / checkpoint.label
    return cache_dir() / "gguf" / identity(checkpoint.name, digest)
