"""Streamed weights: the same bits as resident ones, and never more than two blocks in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES, make_model
from safetensors.torch import load_file, save_file

import drift
from drift.dataset.comparing import same_data
from drift.dataset.rungs import rung
from drift.errors import ConfigError, PrecisionError
from drift.running.descent.decoders import blocks_of
from drift.running.model.weights import Streamed, UnfitForStreamingError, skeleton, weights_of
from drift.running.model.widening import widen

pytestmark = pytest.mark.numerical

FOLDS: list[tuple[int, str]] = [(8, "append"), (5, "reprime"), (12, "restart")]


def save(family: str, folder: Path, published: str = "bfloat16", shard: str = "20KB", **options: Any) -> Any:
    """A tiny checkpoint in several files; returns the model."""
    model = make_model(family, published, "eager" if family == "gemma2" else "sdpa", **options)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def streamed(model: Any, folder: Path, dtype: str = "fp32") -> Any:
    """The same checkpoint, streamed."""
    made = skeleton(type(model.config).from_pretrained(folder), model.dtype, model.config._attn_implementation)
    Streamed(folder, made, blocks_of, "cpu", rung(dtype))
    return made


def alike(lazy: Any, whole: Any, folds: Sequence[Any], **options: Any) -> None:
    """Assert that two models give the same cells."""
    labels = {"model": "tiny"}
    lazy, whole = (drift.trace_folds(m, ids(), folds, labels=labels, **options) for m in (lazy, whole))
    for cell, want in zip(lazy, whole, strict=True):
        assert same_data(cell, want) == []


def ids(tokens: int = 37) -> Any:
    return np.random.default_rng(1).integers(3, 97, size=(1, tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_cells_are_bitwise_those_of_resident_weights(family: str, tmp_path: Path) -> None:
    model = save(family, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    lazy = streamed(model, tmp_path)
    # from_pretrained and not the model that was saved: the comparison is with how a checkpoint is loaded.
    whole = type(model).from_pretrained(
        tmp_path, dtype=model.dtype, attn_implementation=model.config._attn_implementation
    )
    widen(whole.eval(), rung("fp32"))
    for own, other in zip(lazy.named_buffers(), whole.named_buffers(), strict=True):
        assert own[0] == other[0]
        assert own[1].dtype is other[1].dtype
        assert torch.equal(own[1], other[1]), own[0]
    alike(lazy, whole, FOLDS)


@pytest.mark.parametrize("published", ["bfloat16", "float32"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
@pytest.mark.parametrize("family", ["llama", "gemma3-short-window"])
def test_every_rung(family: str, dtype: str, published: str, tmp_path: Path) -> None:
    model = save(family, tmp_path, published)
    if published == "float32" and dtype in ("bf16", "fp16"):
        with pytest.raises(PrecisionError, match="would narrow"):
            streamed(model, tmp_path, dtype)
        return
    lazy = streamed(model, tmp_path, dtype)
    record = widen(model, rung(dtype))
    assert weights_of(lazy).record == record  # type: ignore[attr-defined]
    assert lazy.dtype is model.dtype is getattr(torch, rung(dtype).torch_dtype)
    alike(lazy, model, [(8, "append")], half_matmul="float32")


def test_numbers_that_overflow_are_refused_as_when_resident(tmp_path: Path) -> None:
    model = save("llama", tmp_path)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path)
    with pytest.raises(PrecisionError, match=r"layers\.2\.mlp\.down_proj.*overflows"):
        streamed(model, tmp_path, "fp16")


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_references_in_float64_are_streamed_as_well(dtype: str, tmp_path: Path) -> None:
    model = save("qwen2", tmp_path)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 2.0**-30  # it becomes zero in float16, and must stay so
    model.save_pretrained(tmp_path)
    lazy = streamed(model, tmp_path, dtype)
    widen(model, rung(dtype))
    folds = [(8, "append", reference) for reference in ("gold", "fold64")]
    alike(lazy, model, folds, half_matmul="float32")


def test_generation_and_rotation_work_on_streamed_weights(tmp_path: Path) -> None:
    model = save("llama", tmp_path)
    lazy = streamed(model, tmp_path)
    widen(model, rung("fp32"))
    alike(lazy, model, [(8, "decode(append,tokens=4)"), (8, "streaming(sinks=2,window=9,positions=cache)")])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lazy.modules())


def in_memory(model: Any) -> list[str]:
    return sorted(name for name, p in model.named_parameters() if p.device.type != "meta")


class Watch(torch.nn.Module):
    """Notes what is in memory whenever a module is called."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[str]]] = []
        self.handles = [
            module.register_forward_pre_hook(lambda *_, name=name: self.seen.append((name, in_memory(model))))
            for name, module in model.named_modules()
            if name.endswith(("self_attn", "embed_tokens", "lm_head"))
        ]


def test_nothing_is_ever_loaded_whole(tmp_path: Path) -> None:
    lazy = streamed(save("llama", tmp_path), tmp_path)
    assert in_memory(lazy) == ["model.norm.weight"]
    watch = Watch(lazy)
    drift.trace(lazy, ids(), 8)
    for name, there in watch.seen:
        if "self_attn" in name:
            block = name.removesuffix("self_attn")
            assert all(n.startswith(block) for n in there if n != "model.norm.weight")
        else:
            assert there == sorted([f"{name}.weight", "model.norm.weight"])
    assert in_memory(lazy) == ["model.norm.weight"]


def test_nothing_stays_in_memory_after_an_error(tmp_path: Path) -> None:
    lazy = streamed(save("llama", tmp_path), tmp_path)
    down = lazy.model.layers[1].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        drift.trace(lazy, ids(), 8)
    handle.remove()
    assert in_memory(lazy) == ["model.norm.weight"]
    assert weights_of(lazy)._ahead is None  # type: ignore[attr-defined]
    drift.trace(lazy, ids(), 8)


def change(folder: Path, edit: Any) -> None:
    """Save the weights again in one file, changed."""
    tensors: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"layers\.1\.mlp\.up_proj\.weight is not in the files"),
        (
            lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}),
            "is stored twice, though it is tied",
        ),
    ],
)
def test_a_checkpoint_that_does_not_name_its_weights_is_refused(edit: Any, message: str, tmp_path: Path) -> None:
    model = save("gemma3-short-window", tmp_path)
    change(tmp_path, edit)
    with pytest.raises(UnfitForStreamingError, match=message):
        streamed(model, tmp_path)


def test_a_few_weights_in_another_dtype_are_rounded_as_when_resident(tmp_path: Path) -> None:
    model = save("llama", tmp_path)

    def edit(tensors: dict[str, Any]) -> None:
        for name in ("model.norm.weight", "model.layers.0.input_layernorm.weight"):
            tensors[name] = torch.rand(32) + 0.5

    change(tmp_path, edit)
    lazy = streamed(model, tmp_path)
    whole = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    widen(whole.eval(), rung("fp32"))
    alike(lazy, whole, [(8, "append")])


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    model = save("llama", tmp_path)
    for path in [*tmp_path.glob("*.safetensors"), tmp_path / "model.safetensors.index.json"]:
        path.unlink()
    with pytest.raises(UnfitForStreamingError, match=r"neither model\.safetensors nor"):
        streamed(model, tmp_path)


def test_an_index_decides_which_files_are_read(tmp_path: Path) -> None:
    model = save("llama", tmp_path)
    save_file({"model.norm.weight": torch.zeros(32)}, tmp_path / "stray.safetensors")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert "stray.safetensors" not in index["weight_map"].values()
    assert float(streamed(model, tmp_path).model.norm.weight.sum()) == 32


def test_a_checkpoint_by_name(smollm2: str) -> None:
    lazy, tokenizer = drift.load_model(smollm2, "bf16", weights="streamed")
    whole, _ = drift.load_model(smollm2, "bf16")
    text = np.asarray([tokenizer("The cache of a chunk is carried on to the next. " * 4).input_ids])
    cells = [drift.trace(m, text, 16, half_matmul="float32", logit_stride=8) for m in (lazy, whole)]
    assert same_data(*cells) == []
    with pytest.raises(ConfigError, match="weights is 'floating'"):
        drift.load_model(smollm2, weights="floating")
