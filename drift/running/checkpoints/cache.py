"""The folder of ready checkpoints: locks, whole files, room on the disk."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from drift._outside import Form, OutsideError, read_json, shaped
from drift.errors import CheckpointError
from drift.running.checkpoints.identity import cache_home, file_sha256, identity, remember_hashes, remembered_sha256
from drift.running.checkpoints.names import RECORD, Checkpoint, Report, cache_dir
from drift.writing import open_lock, open_new

__all__ = [
    "amount_words",
    "cache_errors",
    "disk_full",
    "entry_problems",
    "finish_entry",
    "is_disk_full",
    "locked_entry",
    "open_new",
    "temporary_folder",
]

_RECORD_FORMAT = 1
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def amount_words(size: float) -> str:
    """Write a number of bytes as MB or GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):.1f} MB"


def disk_full(path: Path, needed: int) -> CheckpointError:
    """Words for a full disk: what is needed, where, and what is free."""
    place = cache_dir()
    try:
        free = amount_words(shutil.disk_usage(place if place.exists() else place.parent).free)
    except OSError:
        free = "an unknown amount"
    return CheckpointError(
        f"{path}: the disk is full. About {amount_words(needed)} are needed in {place}, {free} are free: "
        "make room, or let DRIFT_CACHE name a folder on a larger disk. Nothing half-made was kept."
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that no space is left."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    try:
        from safetensors import SafetensorError  # absent while the downloader runs before anything is installed
    except ImportError:
        return False
    # safetensors writes from Rust: what the system said is in the error's text only, as a number
    return isinstance(error, SafetensorError) and any(f"os error {code})" in str(error) for code in _FULL)


@contextlib.contextmanager
def locked_entry(key: str, report: Report) -> Iterator[None]:
    """One process at a time per entry of the cache; the kernel lets go when the holder dies, however it dies."""
    folder = cache_dir() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = open_lock(folder / f"{key}.lock")
    except OSError as error:
        raise CheckpointError(
            f"{folder}: the cache cannot be written ({error.strerror}); let DRIFT_CACHE name a folder that can."
        ) from error
    with stream:
        try:
            import fcntl
        except ImportError:  # no flock on this platform: the final rename still never shows a half-made folder
            yield
            return
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"{key}: another process is at work on it, waiting")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def temporary_folder(key: str) -> Iterator[Path]:
    """A temporary folder in the cache, gone afterwards. Leftovers of killed runs go too: the lock is ours."""
    place = cache_dir() / "making"
    place.mkdir(parents=True, exist_ok=True)
    for leftover in place.glob(f"{key}@*"):
        shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=place, prefix=f"{key}@"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _problems(folder: Path, gguf_sha256: str | None, digest: Callable[[Path], str]) -> list[str]:
    """What keeps a folder of the cache from being trusted; empty if nothing does."""
    record_path = folder / RECORD
    if not record_path.is_file():
        return [f"{folder}: no record {RECORD}, so it was never finished"]
    try:
        record = read_json(record_path, Form.OBJECT)
        if record.get("format") != _RECORD_FORMAT:
            return [f"{record_path}: written by another version of drift (format {str(record.get('format'))[:20]})"]
        files: dict[str, dict[str, Any]] = shaped(record, Form.RECORD)["files"]
        if gguf_sha256 is not None and record["gguf_sha256"] != gguf_sha256:
            return [f"{record_path}: made from another GGUF file ({record['gguf_sha256'][:16]}...)"]
        if not any(name.endswith(".safetensors") for name in files):
            return [f"{record_path}: lists no weights"]
        problems = []
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                problems.append(f"{path}: missing")
            elif path.stat().st_size != expected["bytes"]:
                problems.append(f"{path}: {path.stat().st_size} bytes instead of {expected['bytes']}")
            elif digest(path) != expected["sha256"]:
                problems.append(f"{path}: its content changed since it was made (sha256 differs)")
        strangers = {path.name for path in folder.iterdir()} - set(files) - {RECORD}
        problems.extend(f"{folder / name}: not part of the checkpoint" for name in sorted(strangers))
    except (OSError, OutsideError) as error:
        return [f"{record_path}: not readable as a record ({error})"]
    return problems


def finish_entry(folder: Path, home: Path, source: Mapping[str, Any], gguf_sha256: str) -> None:
    """Record what was made, bring it to disk, and rename it into place."""
    files = {}
    for path in sorted(folder.iterdir()):
        path.chmod(0o644)
        files[path.name] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        _sync(path)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "gguf", "safetensors")}
    record = {
        "format": _RECORD_FORMAT,
        "gguf_sha256": gguf_sha256,
        "source": dict(source),
        "dtype": "bfloat16",
        "files": files,
        "versions": {**versions, "python": sys.version.split()[0]},
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = folder / RECORD
    with open_new(path) as stream:
        stream.write(json.dumps(record, indent=2).encode())
        stream.flush()
        os.fsync(stream.fileno())
    _sync(folder)
    home.parent.mkdir(parents=True, exist_ok=True)
    if home.exists():  # not trusted, or we would not be here
        discarded = folder.parent / "discarded"
        os.replace(home, discarded)
    os.replace(folder, home)
    _sync(home.parent)
    remember_hashes({home / name: str(entry["sha256"]) for name, entry in files.items()})


def entry_problems(checkpoint: Checkpoint, digest: Callable[[Path], str] = remembered_sha256) -> list[str]:
    """What is wrong with the cache's entry of a checkpoint; nothing where it can be trusted."""
    return _problems(cache_home(checkpoint, digest), identity(checkpoint.name, digest), digest)


@contextlib.contextmanager
def cache_errors() -> Iterator[None]:
    """Words for what the operating system says about the cache folder."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(Path(error.filename or cache_dir()), 0) from error
        raise CheckpointError(
            f"{error.filename or cache_dir()}: the cache cannot be used ({error.strerror or error}); "
            "let DRIFT_CACHE name a folder that can be written."
        ) from error
