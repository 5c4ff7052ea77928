"""The header of a safetensors file: which tensors it holds, and where. Standard library alone, no weight is read."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from drift._bounds import MOST_HEADER_BYTES
from drift._outside import OutsideError, parse_json, regular

__all__ = ["BYTES", "Header", "StoredTensor", "read_header"]

#: Bytes of an element, by the format's own names.
BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_MOST_AXES = 16


@dataclass(frozen=True)
class StoredTensor:
    """One entry of a header.

    Attributes
    ----------
    dtype : str
        As the file names it.
    shape : tuple of int
    begin, end : int
        Bytes of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file, and hold it against the size of the file.

    Raises
    ------
    OSError
        If it cannot be read.
    OutsideError
        If it is none, is cut short, or its entries overlap, run past its end or have another size than their shape.
    """
    with regular(path) as (stream, size):
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(size - 8, MOST_HEADER_BYTES):
            raise OutsideError(
                f"is no safetensors file, or was cut off (its header would be {length} bytes of the file's {size})"
            )
        try:
            content = parse_json(stream.read(length), most=MOST_HEADER_BYTES)
        except OutsideError as error:
            raise OutsideError(f"its safetensors header is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise OutsideError("its safetensors header is not a table of tensors")
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise OutsideError("its header's __metadata__ is not an object")
    first = 8 + length
    entries = _entries(content)
    tensors = {name: StoredTensor(d, s, first + begin, first + end) for name, (d, s, begin, end) in entries.items()}
    _check(tensors, size)
    return Header(tensors, {str(k): str(v) for k, v in metadata.items()})


def _entries(content: dict[str, object]) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    found = {}
    for name, entry in content.items():
        if not isinstance(entry, dict):
            raise OutsideError(f"its header's entry {name[:80]!r} is not an object")
        dtype, shape, offsets = entry.get("dtype"), _numbers(entry.get("shape")), _numbers(entry.get("data_offsets"))
        if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
            raise OutsideError(
                f"its header's entry {name[:80]!r} needs a dtype (text), a shape and two data_offsets (whole numbers "
                "of at least 0)"
            )
        found[name] = dtype, tuple(shape), offsets[0], offsets[1]
    return found


def _numbers(value: object) -> list[int] | None:
    """A short list of whole numbers that fit 63 bits; None if it is anything else."""
    if not isinstance(value, list) or len(value) > _MOST_AXES:
        return None
    return value if all(type(n) is int and 0 <= n < 1 << 63 for n in value) else None


def _check(tensors: dict[str, StoredTensor], size: int) -> None:
    for name, tensor in tensors.items():
        if not tensor.begin <= tensor.end <= size:
            raise OutsideError(
                f"{name[:80]!r} lies in bytes {tensor.begin:,} to {tensor.end:,} of {size:,}: the file was cut "
                "short, or written wrongly"
            )
        if (
            tensor.dtype in BYTES
            and (due := math.prod(tensor.shape) * BYTES[tensor.dtype]) != tensor.end - tensor.begin
        ):
            raise OutsideError(
                f"{name[:80]!r} should take {due} bytes, but the header gives it {tensor.end - tensor.begin:,}"
            )
    order = sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end))
    for (first, a), (second, b) in pairwise(order):
        if b.begin < a.end:
            raise OutsideError(f"{first[:80]!r} and {second[:80]!r} overlap")
