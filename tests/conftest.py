"""Shared fixtures: tiny models made from configurations, seeded; and the embedded Llama checkpoint."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

from drift.running.checkpoints import fetching

# Shared machines stall now and then: a slow example is no failure. In CI the same examples are tried every time.
settings.register_profile("drift", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("drift")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

#: Files that take longest, by what a whole run measured (`pytest --durations`): begun first, so that no processor is
#: left alone with one of them at the end.
LONGEST = (
    "test_report", "test_layout", "test_real_checkpoint", "test_sweep_dask", "test_readings_page", "test_end_to_end",
    "test_one_answer", "test_models", "test_diagnose", "test_plots", "test_take_quiz", "test_memory", "test_fuzz",
    "test_gate", "test_sweep_jobs", "test_sweep_kill", "test_in_process", "test_probe_engine",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin the longest files first; within a file the order stays."""
    place = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_collection_finish() -> None:
    """Leave what was imported out of later collections of garbage: they take .3 s, and sweeps ask for them."""
    gc.collect()
    gc.freeze()


_COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

# One row per family: configuration class, and what it needs beyond the common sizes.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral-window": ("MistralConfig", {"sliding_window": 10}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "qwen3-moe": ("Qwen3MoeConfig", {"head_dim": 16, **_MOE}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "sliding_window": 10, "query_pre_attn_scalar": 16}),
    "gemma3-short-window": (
        "Gemma3TextConfig",
        {"head_dim": 16, "sliding_window": 5, "layer_types": _SLIDING, "query_pre_attn_scalar": 16},
    ),
    "gemma3-long-window": (
        "Gemma3TextConfig",
        {"head_dim": 16, "sliding_window": 24, "layer_types": _SLIDING, "query_pre_attn_scalar": 16},
    ),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "phi3": ("Phi3Config", {"pad_token_id": 0}),
}


def make_model(
    family: str, dtype: str = "float32", attn_implementation: str = "sdpa", seed: int = 0, **sizes: Any
) -> Any:
    """A tiny model of a family: random weights of a size that makes attention matter."""
    import torch
    import transformers

    config_name, options = FAMILIES[family]
    config = getattr(transformers, config_name)(**{**_COMMON, **options, **sizes})
    config._attn_implementation = attn_implementation
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, dtype), attn_implementation=attn_implementation
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return model.eval()


def half_attention(dtype: str, *, heads: int, tokens: int, features: int) -> None:
    """Skip where torch's own attention refuses a 16-bit format, with torch's reason.

    On a CPU with AMX it packs keys for AMX whatever ATEN_CPU_CAPABILITY says, and can do so with AVX-512 code only.
    """
    import torch

    try:
        for texts in (1, 2):
            x = torch.ones((texts, heads, tokens, features), dtype=getattr(torch, dtype))
            torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
    except RuntimeError as error:
        capability = torch.backends.cpu.get_cpu_capability()
        pytest.skip(f"torch's {dtype} attention refuses to run at ATEN_CPU_CAPABILITY={capability}: {error}")


@pytest.fixture
def notebooks_here() -> Iterator[None]:
    """Have reports execute their notebooks in this process; see :mod:`in_process`."""
    import in_process

    with in_process.notebooks():
        yield


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """Factory of tiny models."""
    return make_model


@pytest.fixture
def token_ids() -> Callable[..., Any]:
    """Factory of seeded token ids: int64 [document, token]."""
    import numpy as np

    def make(documents: int, tokens: int, vocabulary: int = 97, seed: int = 0) -> Any:
        return np.random.default_rng(seed).integers(3, vocabulary, size=(documents, tokens))

    return make


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The embedded Llama checkpoint, fetched once into the cache."""

    name = "smollm2-135m-instruct"
    fetching.fetch(name, report=lambda message: None)
    return name
