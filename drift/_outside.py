"""The one way in which files and JSON from outside are read: size, depth, and what the format asks for.

Whatever lies on a disk or stands on a command line may be of any size, depth and kind. What comes through here is at
most as large as :mod:`drift._bounds` says, nested at most so deep, and of the form that :mod:`drift._formats` gives it.

Needs the standard library alone: ``make`` downloads checkpoints while it installs. Where pydantic is not there yet, the
form is not asked for; size and depth are.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from drift._bounds import MOST_DEPTH, MOST_JSON_BYTES

__all__ = ["Form", "NoFileError", "OutsideError", "parse_json", "read_bytes", "read_json", "regular", "shaped"]


class OutsideError(ValueError):
    """What came from outside is not what it should be; the message says what is wrong, without the name of the file."""


class NoFileError(OutsideError):
    """A name that is that of a folder, a device or a pipe, or none at all."""


class Form(Enum):
    """What a piece of JSON must be: the name of a type in :mod:`drift._formats`."""

    ANYTHING = ""
    OBJECT = "Object"
    MANIFEST = "Manifest"
    RECORD = "Record"
    INDEX = "Index"
    SIZES = "Sizes"
    TENSORS = "Tensors"
    PLAN_CELL = "PlanCell"
    PLAN_FAILURE = "PlanFailure"
    PLAN_GROUP = "PlanGroup"
    CELL_CONFIG = "CellConfig"
    VERSIONS = "Versions"
    THINNED = "Thinned"
    SWEEP_CELL = "SweepCell"
    FLOOR = "Floor"
    RECKONED = "Reckoned"
    GRIDS = "Grids"
    TEXT = "Text"
    LOGPROBS = "Logprobs"
    VLLM = "VllmRecord"
    SGLANG = "SglangRecord"
    OPENAI = "OpenAiRecord"
    SERVED_MODELS = "ServedModels"
    COMPLETION = "ServedCompletion"


# Possessive: what was taken is never given back, which costs memory for every escape.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_PIECE = 1 << 20
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))


def _unmatched(payload: bytes) -> int:
    """Brackets that are left when pairs are taken out level by level: none unless too deep, or no JSON."""
    left = _STRING.sub(b"", payload).translate(None, _NOT_BRACKETS)
    for _ in range(MOST_DEPTH):  # each time the innermost go
        shorter = left.replace(b"[]", b"").replace(b"{}", b"")
        if len(shorter) == len(left):
            break
        left = shorter
    return len(left)


def parse_json(payload: bytes | str, form: Form = Form.ANYTHING, most: int = MOST_JSON_BYTES) -> Any:
    """Read JSON.

    Parameters
    ----------
    payload : bytes or str
        UTF-8 where it is bytes.
    form : Form
        What it must be.
    most : int
        Bytes that are taken.

    Returns
    -------
    object
        As the JSON says: dict, list, str, int, float, bool or None.

    Raises
    ------
    OutsideError
        If it is too long, nested too deep, no JSON, or of another form.
    """
    try:
        data = payload.encode("utf-8") if isinstance(payload, str) else bytes(payload)
    except UnicodeEncodeError as error:
        raise OutsideError(f"no text that UTF-8 can hold ({error.reason})") from error
    if len(data) > most:
        raise OutsideError(f"{len(data):,} bytes long; at most {most:,} are read")
    if (left := _unmatched(data)) > MOST_DEPTH:
        raise OutsideError(f"not JSON of at most {MOST_DEPTH} levels (brackets are nested deeper, or do not match)")
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise OutsideError(f"not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise OutsideError(f"not JSON ({error})") from error
    if left:
        raise OutsideError(f"nested too deep; at most {MOST_DEPTH} levels are read")
    return shaped(value, form)


def shaped(value: Any, form: Form) -> Any:
    """Return a value that was read, where it is of a form.

    Raises
    ------
    OutsideError
        If it is not: with the place of each fault, the first few of them.
    """
    if form is Form.ANYTHING:
        return value
    if form is Form.OBJECT:
        if not isinstance(value, dict):
            raise OutsideError(f"not an object, but {_kind(value)}")
        return value
    if (formats := _formats()) is not None and (faults := formats.faults(value, form.value)):
        raise OutsideError(f"not what it should be: {'; '.join(faults)}")
    return value


@lru_cache(maxsize=1)
def _formats() -> Any:
    try:
        return import_module("drift._formats")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "drift":
            raise
        return None  # before anything is installed


def _kind(value: object) -> str:
    names: Mapping[type, str] = {
        type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list",
    }  # fmt: skip
    return names.get(type(value), type(value).__name__)


@contextmanager
def regular(path: str | os.PathLike[str]) -> Iterator[tuple[IO[bytes], int]]:
    """Open a file that is one, no device and no pipe, for reading: the stream, and its size in bytes.

    Raises
    ------
    OSError
        If it cannot be opened; :class:`FileNotFoundError` if it is not there.
    OutsideError
        If it is no plain file, or its name no name.
    """
    try:
        # A pipe that nobody writes to would block for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a NUL in the name, or half a surrogate pair
        raise NoFileError(f"no name of a file ({error})") from error
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise NoFileError("a folder, not a file" if stat.S_ISDIR(state.st_mode) else "a device or pipe, not a file")
        with open(handle, "rb", closefd=False) as stream:
            yield stream, state.st_size
    finally:
        os.close(handle)


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """Read a file of at most so many bytes; what it refuses, and errors, as :func:`regular`."""
    with regular(path) as (stream, size):
        if size > most:
            raise OutsideError(f"{size:,} bytes long; at most {most:,} are read")
        # A byte more than there should be: what grew meanwhile, or lies in /proc, is read on up to the bound.
        pieces = [stream.read(size + 1)]
        while size < sum(map(len, pieces)) <= most and (piece := stream.read(_PIECE)):
            pieces.append(piece)
    payload = b"".join(pieces)
    if len(payload) > most:
        raise OutsideError(f"more than {most:,} bytes long, which is the most that is read")
    return payload


def read_json(path: str | os.PathLike[str], form: Form = Form.ANYTHING, most: int = MOST_JSON_BYTES) -> Any:
    """Read a JSON file; as :func:`read_bytes` and :func:`parse_json`."""
    return parse_json(read_bytes(Path(path), most), form, most)
