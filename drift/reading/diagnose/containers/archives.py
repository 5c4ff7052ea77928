"""Zip archives: where the bytes of each member lie. Nothing is unpacked."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from drift._bounds import MOST_DIRECTORY_BYTES
from drift._outside import OutsideError, regular

__all__ = ["Member", "members"]

_LOCAL = b"PK\x03\x04"
_LOCAL_BYTES = 30


@dataclass(frozen=True)
class Member:
    """Where a member lies: its first byte and its size; whether that is the member itself, not compressed."""

    begin: int
    size: int
    plain: bool


class _Bounded:
    """A stream that hands out so many bytes at once, and no more: a table of contents says itself how long it is."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, count: int = -1) -> bytes:
        if count < 0:
            count = MOST_DIRECTORY_BYTES + 1
        if count > MOST_DIRECTORY_BYTES + 1:
            raise OutsideError(f"its table of contents would take {count:,} bytes; {MOST_DIRECTORY_BYTES:,} are read")
        return self._stream.read(count)


def members(path: Path) -> dict[str, Member]:
    """Find the members of an archive.

    Raises
    ------
    OSError
        If it cannot be read.
    OutsideError, ValueError, ArithmeticError, struct.error, NotImplementedError, zipfile.BadZipFile
        If it is none, or broken.
    """
    found = {}
    with regular(path) as (stream, size):
        bounded: Any = _Bounded(stream)
        try:
            archive = zipfile.ZipFile(bounded)
        except OSError as error:  # it names places before its beginning
            raise OutsideError(f"its table of contents is damaged ({error})") from error
        for info in archive.infolist():
            if not 0 <= info.header_offset <= size - _LOCAL_BYTES:
                raise OutsideError(f"{info.filename[:80]!r} lies beyond its end")
            stream.seek(info.header_offset)
            local = stream.read(_LOCAL_BYTES)
            name, extra = struct.unpack_from("<HH", local, 26)
            begin = info.header_offset + _LOCAL_BYTES + name + extra
            if local[:4] != _LOCAL or begin + info.compress_size > size:
                raise OutsideError(f"{info.filename[:80]!r} is cut short, or was written wrongly")
            plain = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
            found[info.filename] = Member(begin, info.compress_size, plain and not info.flag_bits & 1)
    return found
