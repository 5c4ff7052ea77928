"""What the header of a GGUF file says, read in one pass without torch or gguf."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from drift._bounds import MOST_GGUF_ITEMS
from drift._outside import OutsideError, regular
from drift.errors import CheckpointError
from drift.running.checkpoints.headers import check_stored, size_of

__all__ = ["GgufHeader", "check_gguf", "gguf_architecture", "gguf_config", "read_gguf"]

_FORMATS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9
_MOST_TEXT = 1 << 24
_MOST_AXES = 8


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself.

    Attributes
    ----------
    metadata : dict
        By key; of an array its length.
    tensors : dict
        Shapes by name, the fastest axis first.
    """

    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)


class _Reader:
    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._size = stream, size

    def take(self, layout: str) -> Any:
        return struct.unpack("<" + layout, self._exactly(struct.calcsize("<" + layout)))[0]

    def _exactly(self, length: int) -> bytes:
        found = self._stream.read(length)
        if len(found) < length:
            raise OutsideError("it ends in the middle of its header")
        return found

    def count(self, what: str) -> int:
        """A number of things that follow, each of a byte at least."""
        found = int(self.take("Q"))
        if found > min(MOST_GGUF_ITEMS, self._size):
            raise OutsideError(f"{found:,} {what}, in a file of {self._size:,} bytes")
        return found

    def text(self) -> str:
        length = int(self.take("Q"))
        if length > min(_MOST_TEXT, self._size):
            raise OutsideError(f"a text of {length:,} bytes")
        return self._exactly(length).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.take(_format(kind))
        inner, count = int(self.take("I")), self.count("entries of an array")
        if inner == _ARRAY:
            raise OutsideError("an array of arrays")
        if inner == _STRING:
            for _ in range(count):
                self.text()
        else:
            self._stream.seek(struct.calcsize("<" + _format(inner)) * count, os.SEEK_CUR)
        return count


def _format(kind: int) -> str:
    if kind not in _FORMATS:
        raise OutsideError(f"a value of the unknown type {kind}")
    return _FORMATS[kind]


def read_gguf(path: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises
    ------
    CheckpointError
        It cannot be read, or is none.
    """
    try:
        with regular(path) as (stream, size):
            reader = _Reader(stream, size)
            if stream.read(4) != b"GGUF":
                raise OutsideError("it does not begin with GGUF")
            reader.take("I")
            tensors, entries = reader.count("tensors"), reader.count("entries of metadata")
            found = GgufHeader()
            for _ in range(entries):
                key = reader.text()
                found.metadata[key] = reader.value(int(reader.take("I")))
            for _ in range(tensors):
                name, axes = reader.text(), int(reader.take("I"))
                if axes > _MOST_AXES:
                    raise OutsideError(f"a tensor of {axes:,} axes")
                found.tensors[name] = tuple(int(reader.take("Q")) for _ in range(axes))
                reader.take("I"), reader.take("Q")
            return found
    except (OSError, OutsideError, struct.error) as error:
        raise CheckpointError(f"{path}: not a readable GGUF file ({error}); fetch or copy it again.") from error


def gguf_architecture(path: Path) -> str:
    """Architecture that a GGUF file names."""
    return str(read_gguf(path).metadata.get("general.architecture", "unknown"))


def gguf_config(header: GgufHeader) -> dict[str, Any]:
    """The sizes of a GGUF file, by the names of a config.json; what it does not say is None."""
    found = header.metadata
    start = str(found.get("general.architecture"))
    return {
        "num_hidden_layers": found.get(f"{start}.block_count"),
        "hidden_size": found.get(f"{start}.embedding_length"),
        "intermediate_size": found.get(f"{start}.feed_forward_length"),
        "num_attention_heads": found.get(f"{start}.attention.head_count"),
        "num_key_value_heads": found.get(f"{start}.attention.head_count_kv"),
        "head_dim": found.get(f"{start}.attention.key_length"),
        "vocab_size": found.get("tokenizer.ggml.tokens"),
        "max_position_embeddings": found.get(f"{start}.context_length"),
    }


def check_gguf(path: Path) -> None:
    """Refuse a GGUF file whose sizes are none, or not those of its tensors, before anything is built from it.

    Raises
    ------
    CheckpointError
    """
    header = read_gguf(path)
    config = gguf_config(header)
    sizes = {name: size_of(config, name, path) for name in config}
    check_stored(path, {**sizes, "vocab_size": None}, header.tensors, -1)
