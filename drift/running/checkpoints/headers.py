"""What the headers of files say of a model, without loading a weight."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import IO, Any

from drift.errors import CheckpointError

__all__ = ["check_folder", "gguf_architecture", "gguf_metadata", "pickle_refusal", "read_config", "tensor_headers"]

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def pickle_refusal(path: Path) -> str:
    """Why a file of weights is not loaded, if it is a pickle; else an empty string."""
    if path.suffix.lower() not in _PICKLES:
        return ""
    return (
        "pickled weights are refused, because loading a pickle runs whatever code is in it. Convert them once, on a "
        "machine where you trust them, with AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER), "
        "which writes safetensors, and name NEW_FOLDER"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's config.json.

    Raises
    ------
    CheckpointError
        It cannot be read, or is no JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); fetch or copy the checkpoint again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not a model configuration (a JSON {type(config).__name__}).")
    return config


def gguf_metadata(path: Path) -> dict[str, Any]:
    """Scalar metadata of a GGUF file (arrays as their length), read in one pass without torch or gguf."""
    formats = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))

    def take(stream: IO[bytes], layout: str) -> Any:
        return struct.unpack("<" + layout, stream.read(struct.calcsize("<" + layout)))[0]

    def text(stream: IO[bytes]) -> bytes:
        length = take(stream, "Q")
        if length > 1 << 24:
            raise ValueError(f"a string of {length} bytes")
        return stream.read(length)

    def value(stream: IO[bytes], kind: int) -> Any:
        if kind == 8:
            return text(stream).decode("utf-8", "replace")
        if kind == 9:
            inner, count = take(stream, "I"), take(stream, "Q")
            if inner in formats:
                stream.seek(struct.calcsize("<" + formats[inner]) * count, os.SEEK_CUR)
            else:
                for _ in range(count):
                    value(stream, inner)
            return count
        return take(stream, formats[kind])

    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            take(stream, "I"), take(stream, "Q")
            found = {}
            for _ in range(take(stream, "Q")):
                key = text(stream).decode("utf-8", "replace")
                found[key] = value(stream, take(stream, "I"))
            return found
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise CheckpointError(f"{path}: not a readable GGUF file ({error}); fetch or copy it again.") from error


def gguf_architecture(path: Path) -> str:
    """Architecture that a GGUF file names."""
    return str(gguf_metadata(path).get("general.architecture", "unknown"))


def tensor_headers(folder: Path) -> dict[str, tuple[str, int]]:
    """Dtype and number of elements of every tensor of a folder, from the headers of its safetensors."""
    found: dict[str, tuple[str, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > 1 << 28:
                    raise ValueError(f"a header of {length} bytes")
                header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            if path.stat().st_size < 8 + length + end:
                raise ValueError(f"{path.stat().st_size} bytes instead of {8 + length + end}: cut short")
            found.update({name: (entry["dtype"], math.prod(entry["shape"])) for name, entry in header.items()})
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise CheckpointError(
                f"{path}: not a whole safetensors file ({error}); fetch or copy the checkpoint again."
            ) from error
    return found


def check_folder(folder: Path) -> None:
    """Refuse a folder without whole safetensors."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        for path in sorted(folder.iterdir()):
            if refusal := pickle_refusal(path):
                raise CheckpointError(f"{path}: {refusal}.")
        raise CheckpointError(f"{folder}: no weights (*.safetensors) in this folder.")
    tensor_headers(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: not a readable index of shards ({error!r}).") from error
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise CheckpointError(
                f"{folder}: {len(missing)} of {len(shards)} files of weights are missing, first {missing[0]}; "
                "fetch the checkpoint again."
            )
