"""The shape of a model, from its headers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from drift.running.checkpoints.headers import gguf_metadata, read_config, tensor_headers
from drift.running.checkpoints.hub_cache import hub_config, hub_file
from drift.running.checkpoints.identity import cache_home
from drift.running.checkpoints.names import Shape
from drift.running.checkpoints.resolving import resolve

__all__ = ["shape"]


def _shape_of(config: Mapping[str, Any], parameters: int) -> Shape | None:
    inner = config.get("text_config") if "num_hidden_layers" not in config else None
    part = inner if isinstance(inner, Mapping) else config
    try:
        heads, hidden = int(part["num_attention_heads"]), int(part["hidden_size"])
        return Shape(
            layers=int(part["num_hidden_layers"]),
            hidden_size=hidden,
            intermediate_size=int(part["intermediate_size"]),
            heads=heads,
            kv_heads=int(part.get("num_key_value_heads") or heads),
            head_dim=int(part.get("head_dim") or hidden // heads),
            vocab_size=int(part["vocab_size"]),
            parameters=parameters,
            max_positions=int(part["max_position_embeddings"]),
            tied=bool(part.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        )
    except (KeyError, TypeError, ValueError):
        return None  # a model that does not say: its cost cannot be estimated, which is no reason not to run it


def shape(name: str) -> Shape | None:
    """Sizes of a checkpoint, without torch and without network; None where they are not known yet."""
    checkpoint = resolve(name)
    if checkpoint.source == "embedded":
        return Shape(**{f.name: checkpoint.entry["shape"][f.name] for f in fields(Shape)})
    if checkpoint.source == "folder":
        assert checkpoint.path is not None
        return _shape_of(
            read_config(checkpoint.path), sum(count for _, count in tensor_headers(checkpoint.path).values())
        )
    if checkpoint.source == "gguf":
        assert checkpoint.path is not None
        folder = cache_home(checkpoint)
        if (folder / "config.json").is_file():
            return _shape_of(read_config(folder), sum(count for _, count in tensor_headers(folder).values()))
        found = gguf_metadata(checkpoint.path)
        start = str(found.get("general.architecture"))
        heads, hidden = found.get(f"{start}.attention.head_count"), found.get(f"{start}.embedding_length")
        config = {
            "num_hidden_layers": found.get(f"{start}.block_count"),
            "hidden_size": hidden,
            "intermediate_size": found.get(f"{start}.feed_forward_length"),
            "num_attention_heads": heads,
            "num_key_value_heads": found.get(f"{start}.attention.head_count_kv"),
            "head_dim": found.get(f"{start}.attention.key_length"),
            "vocab_size": found.get("tokenizer.ggml.tokens"),
            "max_position_embeddings": found.get(f"{start}.context_length"),
        }
        sizes = _shape_of(config, 0)
        if sizes is None:
            return None
        h, i = sizes.hidden_size, sizes.intermediate_size
        block = h * sizes.head_dim * 2 * (sizes.heads + sizes.kv_heads) + 3 * h * i
        return _shape_of(config, sizes.vocab_size * h + sizes.layers * block)
    cached = hub_config(name)
    index = hub_file(name, "model.safetensors.index.json")
    single = hub_file(name, "model.safetensors")
    parameters = 0
    if index:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            parameters = int(json.loads(Path(index).read_text(encoding="utf-8"))["metadata"]["total_size"]) // 2
    elif single:
        parameters = sum(count for _, count in tensor_headers(Path(single).parent).values())
    return _shape_of(cached, parameters) if cached and parameters else None
