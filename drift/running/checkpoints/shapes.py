"""The shape of a model, from its headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from drift.running.checkpoints.gguf_headers import gguf_config, read_gguf
from drift.running.checkpoints.headers import decoder_config, read_config, read_index, size_of, tensor_headers
from drift.running.checkpoints.hub_cache import hub_config, hub_file
from drift.running.checkpoints.identity import cache_home
from drift.running.checkpoints.names import Shape
from drift.running.checkpoints.resolving import resolve

__all__ = ["shape"]

#: Names of a configuration's sizes, and of ours.
_SIZES = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_attention_heads": "heads",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_positions",
}


def _shape_of(config: Mapping[str, Any], parameters: int, where: object) -> Shape | None:
    part = decoder_config(config)
    sizes = {name: size_of(part, name, where) for name in _SIZES}
    heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
    head_dim = size_of(part, "head_dim", where) or (hidden // heads if heads and hidden else None)
    kv_heads = size_of(part, "num_key_value_heads", where) or heads
    if not all(sizes.values()) or not head_dim:
        return None  # a model that does not say: its cost cannot be estimated, which is no reason not to run it
    return Shape(
        **{field: sizes[name] or 0 for name, field in _SIZES.items()},
        kv_heads=kv_heads or 0,
        head_dim=head_dim,
        parameters=parameters,
        tied=bool(part.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
    )


def shape(name: str) -> Shape | None:
    """Sizes of a checkpoint, without torch and without network; None where they are not known yet."""
    checkpoint = resolve(name)
    if checkpoint.source == "embedded":
        return Shape(**{f.name: checkpoint.entry["shape"][f.name] for f in fields(Shape)})
    if checkpoint.source == "folder":
        assert checkpoint.path is not None
        return _of_folder(checkpoint.path)
    if checkpoint.source == "gguf":
        assert checkpoint.path is not None
        folder = cache_home(checkpoint)
        if (folder / "config.json").is_file():
            return _of_folder(folder)
        config = gguf_config(read_gguf(checkpoint.path))
        sizes = _shape_of(config, 0, checkpoint.path)
        if sizes is None:
            return None
        h, i = sizes.hidden_size, sizes.intermediate_size
        block = h * sizes.head_dim * 2 * (sizes.heads + sizes.kv_heads) + 3 * h * i
        return _shape_of(config, sizes.vocab_size * h + sizes.layers * block, checkpoint.path)
    cached = hub_config(name)
    index = hub_file(name, "model.safetensors.index.json")
    single = hub_file(name, "model.safetensors")
    parameters = 0
    if index:
        parameters = int((read_index(Path(index)).get("metadata") or {}).get("total_size") or 0) // 2
    elif single:
        parameters = sum(count for _, count in tensor_headers(Path(single).parent).values())
    return _shape_of(cached, parameters, name) if cached and parameters else None


def _of_folder(folder: Path) -> Shape | None:
    parameters = sum(count for _, count in tensor_headers(folder).values())
    return _shape_of(read_config(folder), parameters, folder / "config.json")
