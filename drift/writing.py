"""Every file that drift writes is opened here: whole or not at all, and never through a link.

A folder that somebody hands on may hold links where drift expects its own files. What is written takes the place of
such a link or is refused; it never reaches what the link names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

__all__ = [
    "TEMPORARY_SUFFIX",
    "making_room",
    "move_in",
    "open_lock",
    "open_new",
    "own",
    "owner",
    "remove_leftovers",
    "subfolder",
    "sync_folder",
    "temporary_name",
    "write_whole",
]

#: Suffix of what is written beside its place; a killed process may leave one behind.
TEMPORARY_SUFFIX = ".tmp"
_NO_FOLLOWING = getattr(os, "O_NOFOLLOW", 0)
_OWNER = re.compile(rb"\s*[0-9]{0,20}\s*")  # what a lock may hold for drift to write into it
_TEMPORARY = re.compile(rf"\..*\.([0-9]+)-[0-9a-f]+{re.escape(TEMPORARY_SUFFIX)}")


def temporary_name(target: Path) -> Path:
    """Name beside `target`, for what is written before it takes that name: of this process, and of nobody else."""
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def open_new(path: Path) -> IO[bytes]:
    """Open a file to be written from its beginning; a link of that name is an ``OSError``."""
    return open(path, "wb", opener=lambda name, flags: os.open(name, flags | _NO_FOLLOWING, 0o666))


def write_whole(target: Path, payload: bytes) -> None:
    """Write a file, whole or not at all.

    The bytes go to a temporary file beside the target, are flushed to the disk, and only then take the target's name;
    the folder is flushed last. A link of that name is replaced, not followed.

    Parameters
    ----------
    target : pathlib.Path
        Its folder must be there.
    payload : bytes

    Raises
    ------
    OSError
        The disk refuses; an existing file is then as it was.
    """
    temporary = temporary_name(target)
    try:
        with open(temporary, "xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder to the disk."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def subfolder(folder: Path, name: str) -> Path:
    """Make a folder inside a folder, unless it is there.

    Raises
    ------
    OSError
        It cannot be made, or is a link: what is written into it would land elsewhere.
    """
    inner = folder / name
    _refuse_link(inner)
    inner.mkdir(exist_ok=True)
    return inner


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "is a link, and what is written would land elsewhere", str(folder))


# ---------------------------------------------------------------------------------------------- locks
def open_lock(path: Path) -> IO[bytes]:
    """Open the file of a lock without following a link, without waiting and without changing what it holds.

    Raises
    ------
    OSError
        It is a link or anything else but a plain file, or cannot be made.
    """
    flags = os.O_RDWR | os.O_CREAT | _NO_FOLLOWING | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, f"{path.name} is a link, which a lock never is: remove it", str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{path.name} is no plain file, which a lock always is: remove it", str(path))
    return os.fdopen(descriptor, "r+b", buffering=0)


def owner(lock: IO[bytes]) -> str:
    """Number of the process that wrote itself into a lock; empty if none did."""
    held = os.pread(lock.fileno(), 64, 0)
    return held.strip().decode("ascii") if _OWNER.fullmatch(held) else ""


def own(lock: IO[bytes]) -> None:
    """Write this process's number into a lock that is held, unless the file holds anything but such a number."""
    state = os.fstat(lock.fileno())
    if state.st_nlink == 1 and _OWNER.fullmatch(os.pread(lock.fileno(), 64, 0)):
        lock.truncate(0)
        os.pwrite(lock.fileno(), f"{os.getpid()}\n".encode("ascii"), 0)


# ---------------------------------------------------------------------------------------------- several at once
@contextlib.contextmanager
def making_room(target: Path) -> Iterator[Path]:
    """A temporary folder inside `target`, gone afterwards; where there was no `target` and it stays empty, it goes too.

    What is made there is on the disk of its place, so that :func:`move_in` only renames.

    Raises
    ------
    OSError
        It cannot be made.
    """
    made = [place for place in (target, *target.parents) if not place.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        room = temporary_name(target / "making")
        room.mkdir()
        try:
            yield room
        finally:
            shutil.rmtree(room, ignore_errors=True)
    finally:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()  # only where it is empty


def move_in(room: Path, target: Path, gone: Sequence[Path] = ()) -> None:
    """Move all files of a folder into another, all or none; sub-folders file by file.

    Parameters
    ----------
    room : pathlib.Path
        On the same file system; made by :func:`making_room`.
    target : pathlib.Path
        A folder. What has the name of a file that comes is replaced; what has another name stays.
    gone : sequence of pathlib.Path
        Files of `target` that must not be there afterwards.

    Raises
    ------
    OSError
        One cannot be moved; all is then as it was.
    """
    files = sorted(path.relative_to(room) for path in room.rglob("*") if not path.is_dir())
    places = list(dict.fromkeys([*gone, *(target / file for file in files)]))
    for place in places:
        for inner in place.parents[: len(place.relative_to(target).parts) - 1]:
            _refuse_link(inner)
        if place.is_dir() and not place.is_symlink():
            raise OSError(errno.EISDIR, "is a folder, where a file is to be written", str(place))
    back: list[tuple[Path, Path]] = []  # where a thing is now, and where it was
    backup = room / f"before{TEMPORARY_SUFFIX}"
    backup.mkdir()

    def move(here: Path, there: Path) -> None:
        os.rename(here, there)
        back.append((there, here))

    try:
        for place in places:
            if os.path.lexists(place):
                move(place, backup / str(len(back)))
        for file in files:
            inner = target
            for name in file.parent.parts:
                inner = subfolder(inner, name)
            move(room / file, target / file)
    except BaseException:
        for now, before in reversed(back):
            os.rename(now, before)
        raise
    sync_folder(target)


# ---------------------------------------------------------------------------------------------- leftovers
def remove_leftovers(folder: Path, names: re.Pattern[str] = _TEMPORARY) -> None:
    """Remove the temporary folders that killed processes of this user left in a folder.

    Parameters
    ----------
    folder : pathlib.Path
    names : pattern
        Of the whole name; its first group is the number of the process that made it.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            found = names.fullmatch(entry.name)
            if found and entry.is_dir(follow_symlinks=False) and _is_ours(entry) and not _is_alive(int(found[1])):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_ours(entry: os.DirEntry[str]) -> bool:
    return not hasattr(os, "getuid") or entry.stat(follow_symlinks=False).st_uid == os.getuid()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
