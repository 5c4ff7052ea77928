"""What ``torch.save`` writes: a zip archive with a pickle that says what there is, and a member for each storage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drift._bounds import MOST_PICKLE_BYTES
from drift._outside import OutsideError, regular
from drift._tensor_files import BYTES
from drift.reading.diagnose.containers.archives import Member
from drift.reading.diagnose.containers.held import Held
from drift.reading.diagnose.containers.pickles import Made, Name, Persistent, leaves, said
from drift.reading.diagnose.stored import Stored

__all__ = ["PICKLE", "tensors"]

PICKLE = "data.pkl"
_MOST_AXES = 16
_REBUILD = {"torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"}
_PARAMETER = {"torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state"}
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "UntypedStorage": "",
}  # fmt: skip
_DTYPES = {
    "torch float8_e4m3fn": "F8_E4M3", "torch float8_e5m2": "F8_E5M2", "torch float8_e4m3fnuz": "F8_E4M3FNUZ",
    "torch float8_e5m2fnuz": "F8_E5M2FNUZ", "torch float8_e8m0fnu": "F8_E8M0", "torch uint16": "U16",
    "torch uint32": "U32", "torch uint64": "U64",
}  # fmt: skip


def _whole(value: Any) -> tuple[int, ...] | None:
    """Whole numbers of at least 0, not too many; None if it is anything else."""
    if isinstance(value, Made) and value.by == Name("torch Size") and value.given:
        value = value.given[0]
    if not isinstance(value, tuple | list) or len(value) > _MOST_AXES:
        return None
    return tuple(value) if all(type(n) is int and 0 <= n < 1 << 62 for n in value) else None


def _numbers(name: str, made: Made, where: Mapping[str, Member]) -> tuple[str, tuple[int, ...], int, tuple[int, ...]]:
    """Format, shape, first byte and strides of a tensor.

    Raises
    ------
    OutsideError
        If it is not what torch writes, or its numbers are not there.
    """
    storage, offset, shape, strides, *more = (*made.given, None, None, None, None)[: max(4, len(made.given))]
    size, steps, first = _whole(shape), _whole(strides), _whole((offset,))
    key = storage.key if isinstance(storage, Persistent) else None
    if size is None or steps is None or first is None or len(size) != len(steps):
        raise OutsideError(f"{name[:80]!r} has no shape")
    if not (isinstance(key, tuple) and len(key) >= 3 and key[0] == "storage" and isinstance(key[1], Name)):
        raise OutsideError(f"{name[:80]!r} has no storage that is known")
    dtype = _STORAGES.get(key[1].text.split(" ")[-1], key[1].text)
    dtype = dtype or next((_DTYPES[one.text] for one in more if isinstance(one, Name) and one.text in _DTYPES), "U8")
    member = where.get(key[2]) if isinstance(key[2], str) else None
    if member is None or not member.plain:
        raise OutsideError(f"the numbers of {name[:80]!r} are not in it, or compressed")
    last = first[0] + sum((n - 1) * step for n, step in zip(size, steps, strict=True))
    if 0 not in size and (last + 1) * BYTES.get(dtype, 1) > member.size:
        raise OutsideError(f"{name[:80]!r} has more numbers than its storage of {member.size:,} bytes")
    # Of an axis of 1 torch may say anything.
    steps = tuple(step if n > 1 else 0 for n, step in zip(size, steps, strict=True))
    return dtype, size, member.begin + first[0] * BYTES.get(dtype, 1), steps


def _tensor(made: Made) -> Made | None:
    """What makes a tensor, or a parameter of one; None if it is anything else."""
    by = made.by.text if isinstance(made.by, Name) else ""
    if by in _PARAMETER and made.given and isinstance(made.given[0], Made):
        made = made.given[0]
        by = made.by.text if isinstance(made.by, Name) else ""
    return made if by in _REBUILD else None


def tensors(path: Path, found: Mapping[str, Member]) -> Held:
    """Say what tensors a file of torch's holds. The pickle is read, not run.

    Raises
    ------
    OSError, OutsideError
        If it cannot be read, or is broken.
    """
    name, pickle = next((name, member) for name, member in found.items() if name.endswith(PICKLE))
    root = name.removesuffix(PICKLE)
    if not pickle.plain:
        raise OutsideError("its pickle is compressed, which torch.save does not do")
    if pickle.size > MOST_PICKLE_BYTES:
        raise OutsideError(f"its pickle is {pickle.size:,} bytes long; at most {MOST_PICKLE_BYTES:,} are read")
    order = found.get(f"{root}byteorder")
    with regular(path) as (stream, _):
        stream.seek(pickle.begin)
        raw = stream.read(pickle.size)
        if order is not None:
            stream.seek(order.begin)
            if stream.read(min(order.size, 8)) != b"little":
                raise OutsideError("its numbers have their last byte first")
    data = f"{root}data/"
    where = {name.removeprefix(data): member for name, member in found.items() if name.startswith(data)}
    held: dict[str, Stored] = {}
    for label, made in leaves(said(raw)):
        tensor = _tensor(made)
        if tensor is not None:
            dtype, shape, begin, strides = _numbers(label, tensor, where)
            held[label] = Stored(label, path, dtype, shape, begin, strides)
    return Held(held)
