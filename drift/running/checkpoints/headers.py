"""What the headers of files say of a model, without loading a weight."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from drift._bounds import MOST_BLOCKS, MOST_SIZE, MOST_TOKENS, MOST_VOCABULARY
from drift._outside import Form, OutsideError, read_json
from drift._tensor_files import StoredTensor, read_header
from drift.errors import CheckpointError

__all__ = [
    "INDEX",
    "check_folder",
    "check_stored",
    "decoder_config",
    "index_shards",
    "pickle_refusal",
    "read_config",
    "read_index",
    "read_tensors",
    "size_of",
    "tensor_headers",
]

INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_ADAPTER = "adapter_config.json"
#: Largest value of each size that a configuration gives.
_MOST = {
    "num_hidden_layers": MOST_BLOCKS,
    "num_nextn_predict_layers": MOST_BLOCKS,
    "vocab_size": MOST_VOCABULARY,
    "max_position_embeddings": MOST_TOKENS,
    "hidden_size": MOST_SIZE,
    "intermediate_size": MOST_SIZE,
    "num_attention_heads": MOST_SIZE,
    "num_key_value_heads": MOST_SIZE,
    "head_dim": MOST_SIZE,
}
#: Blocks that predict further tokens, and are stored behind those of the network.
_EXTRA = "num_nextn_predict_layers"
#: Where a configuration has one of these, embeddings are narrower than hidden states.
_NARROWER = ("word_embed_proj_dim", "embedding_size")
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|blk)\.(\d{1,9})\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|embed_in|word_embeddings|token_embd)\.weight\Z")
_ELSEWHERE = re.compile(r"(?:^|[._])(?:vision|audio|visual|encoder|tower|mtp)", re.IGNORECASE)


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
        return dict(read_json(path, Form.OBJECT))
    except (OSError, OutsideError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); fetch or copy the checkpoint again.") from error


def decoder_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that describes the decoder: all of it, or its ``text_config``."""
    inner = config.get("text_config") if "num_hidden_layers" not in config else None
    return inner if isinstance(inner, Mapping) else config


def size_of(part: Mapping[str, Any], name: str, where: object) -> int | None:
    """A size that a configuration gives; None where it gives none, or one per block.

    Raises
    ------
    CheckpointError
        It is no whole number within its bounds.
    """
    value = part.get(name)
    if value is None or (isinstance(value, list) and value and all(type(n) is int and n > 0 for n in value)):
        return None
    least = 0 if name == _EXTRA else 1
    if type(value) is not int or not least <= value <= _MOST[name]:
        shown = repr(value)[:40] if isinstance(value, str | float | int) else f"a {type(value).__name__}"
        raise CheckpointError(
            f"{where}: {name} is {shown}; it must be a whole number from {least} to {_MOST[name]:,}. Fetch or copy the "
            "checkpoint again."
        )
    return value


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder, from the headers of its safetensors.

    Raises
    ------
    CheckpointError
        A file is not whole, or not what its header says.
    """
    found: dict[str, StoredTensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            found.update(read_header(path).tensors)
        except (OSError, OutsideError) as error:
            raise CheckpointError(
                f"{path}: not a whole safetensors file ({error}); fetch or copy the checkpoint again."
            ) from error
    return found


def tensor_headers(folder: Path) -> dict[str, tuple[str, int]]:
    """Dtype and number of elements of every tensor of a folder, from the headers of its safetensors."""
    return {name: (tensor.dtype, math.prod(tensor.shape)) for name, tensor in read_tensors(folder).items()}


def read_index(path: Path) -> dict[str, Any]:
    """Read an index of shards.

    Raises
    ------
    CheckpointError
        It cannot be read, is no index, or names anything but safetensors files beside it.
    """
    try:
        index: dict[str, Any] = read_json(path, Form.INDEX)
    except (OSError, OutsideError) as error:
        raise CheckpointError(f"{path}: not a readable index of shards ({error}).") from error
    for name in dict.fromkeys(index["weight_map"].values()):
        # Refused before anything is opened: what lies elsewhere is no part of the checkpoint's identity.
        if refusal := pickle_refusal(Path(name)):
            raise CheckpointError(f"{path}: names {name[:200]!r}; {refusal}.")
        if PurePosixPath(name).name != name or "\\" in name or "\0" in name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{path}: names {name[:200]!r}, which is no safetensors file of this folder. Weights that lie "
                "elsewhere are refused: save the checkpoint into one folder with save_pretrained, and name that."
            )
    return index


def index_shards(folder: Path) -> list[str]:
    """Names of the files that a folder's indexes name; none where it has no index.

    Raises
    ------
    CheckpointError
        As :func:`read_index`, of any index in the folder.
    """
    found: dict[str, None] = {}
    for path in sorted(folder.glob("*.index.json")):
        found |= dict.fromkeys(read_index(path)["weight_map"].values())
    return list(found)


def check_folder(folder: Path) -> None:
    """Refuse a folder without whole safetensors, with weights elsewhere, or with sizes that its weights do not have."""
    try:
        adapter = (folder / _ADAPTER).exists()
        shards = index_shards(folder)
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            for path in sorted(folder.iterdir()):
                if refusal := pickle_refusal(path):
                    raise CheckpointError(f"{path}: {refusal}.")
            raise CheckpointError(f"{folder}: no weights (*.safetensors) in this folder.")
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror or error}).") from error
    if adapter:
        raise CheckpointError(
            f"{folder / _ADAPTER}: an adapter, whose base model lies elsewhere. Merge it into its model, and save that."
        )
    tensors = read_tensors(folder)
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(shards)} files of weights are missing, first {missing[0]}; "
            "fetch the checkpoint again."
        )
    part = decoder_config(read_config(folder))
    sizes = {name: size_of(part, name, folder / "config.json") for name in _MOST}
    if any(name in part for name in _NARROWER):
        sizes["hidden_size"] = None
    check_stored(folder, sizes, {name: tensor.shape for name, tensor in tensors.items()})


def check_stored(
    where: object, sizes: Mapping[str, int | None], shapes: Mapping[str, tuple[int, ...]], order: int = 1
) -> None:
    """Hold the sizes of a configuration against the shapes of what is stored, as far as names tell what is what.

    Parameters
    ----------
    where : object
        What a message calls it.
    sizes : mapping
        Sizes by the names of a configuration; None where it does not say.
    shapes : mapping
        Shapes of the tensors by name.
    order : int
        1 where a shape is [row, column], -1 where it is the other way round, as in a GGUF file.

    Raises
    ------
    CheckpointError
        They contradict each other.
    """
    own = {name: shape for name, shape in shapes.items() if not _ELSEWHERE.search(name)}
    blocks = {int(found.group(1)) for name in own if (found := _BLOCK.search(name))}
    layers, extra = sizes.get("num_hidden_layers"), sizes.get(_EXTRA) or 0
    if blocks and layers is not None and blocks not in (set(range(layers)), set(range(layers + extra))):
        raise CheckpointError(
            f"{where}: num_hidden_layers is {layers}, but the weights are those of {len(blocks)} layers (the last is "
            f"number {max(blocks)}, from 0). Fetch or copy the checkpoint again."
        )
    vocabulary, hidden = sizes.get("vocab_size"), sizes.get("hidden_size")
    embeddings = {name: shape[::order] for name, shape in own.items() if _EMBEDDING.search(name) and len(shape) == 2}
    for name, (rows, columns) in embeddings.items():
        if (vocabulary is not None and rows != vocabulary) or (hidden is not None and columns != hidden):
            raise CheckpointError(
                f"{where}: vocab_size is {vocabulary} and hidden_size {hidden}, but {name} is {rows} x {columns}. "
                "Fetch or copy the checkpoint again."
            )
