"""Dumps for the tests of drift.diagnose: plain transformers loops, with and without a planted bug."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, DynamicCache, Gemma3TextConfig, LlamaConfig, Qwen2Config, Qwen3MoeConfig

from drift.reading.diagnose.model import Diagnosis, Verdict
from drift.reading.diagnose.tensors import open_dump
from drift.reading.diagnose.verdict import diagnose

CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "gemma3": (
        Gemma3TextConfig,
        {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 16},
    ),
    "moe": (
        Qwen3MoeConfig,
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1},
    ),
}

Tensors = dict[str, torch.Tensor]
Touch = Callable[[int, int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def random_model(
    family: str,
    dtype: torch.dtype = torch.float32,
    attn: str = "sdpa",
    seed: int = 0,
    *,
    width: int = 32,
    depth: int = 3,
    head_dim: int = 16,
    scale: float = 1.0,
) -> Any:
    """A seeded model; ``scale`` multiplies weights of standard deviation 1/sqrt(fan in)."""
    kind, options = CONFIGS[family]
    options = dict(options)
    if "layer_types" in options:
        options["layer_types"] = (options["layer_types"] * depth)[:depth]
    config = kind(
        vocab_size=97,
        hidden_size=width,
        intermediate_size=width * 3 // 2,
        num_hidden_layers=depth,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **options,
    )
    config._attn_implementation = attn
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attn)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(draw * scale / parameter.shape[-1] ** 0.5)
            elif name.endswith("bias"):
                parameter.copy_(draw)
    return model.to(dtype).eval()


class TapedCache(DynamicCache):
    """A cache that keeps what was appended, and lets a bug touch it on the way in."""

    def __init__(self, config: Any, touch: Touch | None = None) -> None:
        super().__init__(config=config)
        self.touch, self.step = touch, 0
        self.appended: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if self.touch is not None:
            key_states, value_states = self.touch(self.step, layer_idx + 1, key_states, value_states)
        self.appended[self.step, layer_idx + 1] = (key_states.clone(), value_states.clone())
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def lane(
    model: Any,
    ids: torch.Tensor,
    sizes: Sequence[int] | int = 0,
    *,
    position: Callable[[int, int], int] = lambda step, start: start,
    touch: Touch | None = None,
    after: Callable[[int, DynamicCache], None] | None = None,
    cache: bool = False,
) -> Tensors:
    """Run a text chunk by chunk; a size of 0 is full attention.

    `position` gives a chunk's first position, `touch` changes keys and values on their way into the cache, and `after`
    may spoil the cache when a chunk is through.
    """
    n = len(ids)
    if isinstance(sizes, int):
        size = sizes or n
        sizes = [min(size, n - start) for start in range(0, n, size)]
    out: Tensors = {}
    taped = TapedCache(model.config, touch)
    blocks = model.get_decoder().layers
    handles = [
        block.register_forward_hook(
            lambda module, args, output, i=i: out.__setitem__(
                f"step.{taped.step}.layer.{i + 1}.hidden", (output[0] if isinstance(output, tuple) else output).clone()
            )
        )
        for i, block in enumerate(blocks)
    ]
    start = 0
    try:
        with torch.no_grad():
            for step, size in enumerate(sizes):
                taped.step = step
                first = position(step, start)
                positions = torch.arange(first, first + size)[None]
                result = model(
                    ids[start : start + size][None],
                    position_ids=positions,
                    past_key_values=taped,
                    use_cache=True,
                    output_hidden_states=True,
                )
                out[f"step.{step}.layer.0.hidden"] = result.hidden_states[0].clone()
                out[f"step.{step}.final"] = result.hidden_states[-1].clone()
                out[f"step.{step}.logits"] = result.logits.clone()
                if after is not None:
                    after(step, taped)
                if cache:
                    for i, layer in enumerate(taped.layers):
                        out[f"step.{step}.block.{i + 1}.cache_key"] = layer.keys.clone()
                        out[f"step.{step}.block.{i + 1}.cache_value"] = layer.values.clone()
                start += size
    finally:
        for handle in handles:
            handle.remove()
    for (step, block), (keys, values) in taped.appended.items():
        out[f"step.{step}.block.{block}.key"] = keys
        out[f"step.{step}.block.{block}.value"] = values
    return out


def rounded(tensors: Tensors, seed: int = 0) -> Tensors:
    """The same lane with every other number, on average, moved to the next one of its format: rounding, on any machine.

    Whether computing in chunks rounds otherwise depends on kernels; there are processors where it gives the same bits.
    Embeddings are looked up and stay, and so do caches, which hold what was appended.
    """
    generator = torch.Generator().manual_seed(seed)
    out = dict(tensors)
    for name, tensor in tensors.items():
        if ".layer.0." not in name and "cache" not in name:
            up = torch.rand(tensor.shape, generator=generator) < 0.5
            out[name] = torch.where(up, torch.nextafter(tensor, torch.full_like(tensor, torch.inf)), tensor)
    return out


def save(tensors: Tensors, folder: Path, **metadata: str) -> Path:
    """Write a dump, and what it says of itself."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, folder / "lane.safetensors", metadata
    )
    return folder


def text(tokens: int, seed: int = 0) -> torch.Tensor:
    """Seeded token ids."""
    return torch.randint(3, 97, (tokens,), generator=torch.Generator().manual_seed(1000 + seed))


# ------------------------------------------------------------------------------------------------ judging
TOKENS, CHUNK = 48, 8
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., Diagnosis]:
    """Write two lanes and diagnose them."""

    def make(a: Tensors, b: Tensors, **options: Any) -> Diagnosis:
        floor = options.pop("floor", None)
        if floor is not None:
            options["floor"] = open_dump(save(floor, tmp_path / "c"))
        return diagnose(open_dump(save(a, tmp_path / "a")), open_dump(save(b, tmp_path / "b")), **options)

    return make


def unaccused(found: Diagnosis) -> bool:
    """Whether a pair is rounding, or would be if no bug could hide in that."""
    hides = found.verdict is Verdict.UNDETERMINED and found.could_hide is not None
    return hides or found.verdict in (Verdict.ROUNDING, Verdict.SAME)


def pair(family: str = "llama", dtype: str = "fp32", seed: int = 0) -> tuple[Any, torch.Tensor, Tensors]:
    model, ids = random_model(family, DTYPES[dtype], seed=seed), text(TOKENS, seed)
    return model, ids, lane(model, ids)
