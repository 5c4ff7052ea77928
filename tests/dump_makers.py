"""Makes the dumps in ``tests/dumps`` with the packages whose formats they are: ``dump_makers.py NAME ... FOLDER``.

Each package in an environment of its own, with the torch of the project; docs/importers.md says which versions. What
they hold is computed again in ``tests/test_importers_real.py``, by a plain loop of transformers.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

TOKENS, CHUNK, BLOCKS, HEADS = 12, 6, 2, 2


def tiny() -> Any:
    """A seeded Llama of a few kB."""
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=HEADS,
        head_dim=4,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return model


def ids() -> torch.Tensor:
    """Token ids [1, token]."""
    return torch.randint(3, 24, (1, TOKENS), generator=torch.Generator().manual_seed(1))


def transformers_debugger(folder: Path) -> None:
    """A forward pass per chunk, each into a folder of its own."""
    from transformers.model_debugging_utils import model_addition_debugger_context

    model, cache = tiny(), DynamicCache()
    for step, chunk in enumerate(ids().split(CHUNK, dim=1)):
        with model_addition_debugger_context(model, debug_path=str(folder / str(step)), use_repr=False):
            model.forward(chunk, past_key_values=cache, use_cache=True)


def tokenizer(folder: Path) -> Any:
    """A tokenizer of words, which TransformerLens wants to see."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(21))])}
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")), **marks)
    made.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


HOOKS = ("hook_resid_pre", "hook_resid_post", "hook_rot_k", "hook_k", "hook_v", "ln_final.hook_out", "hook_normalized")


def transformerlens(folder: Path) -> None:
    """Version 4: a cache of one pass, as `.npz`."""
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as place:
        words = tokenizer(Path(place))
        tiny().save_pretrained(place)
        bridge = TransformerBridge.boot_transformers(place, hf_model=tiny(), tokenizer=words)
    logits, cache = bridge.run_with_cache(ids(), names_filter=lambda name: name.endswith(HOOKS))
    held = {name: value.detach().numpy() for name, value in cache.items()}
    np.savez(folder / "transformerlens4.npz", logits=logits.detach().numpy(), **held)


MAKERS = {
    "transformers": transformers_debugger,
    "transformerlens": transformerlens,
}

if __name__ == "__main__":
    *names, target = sys.argv[1:]
    Path(target).mkdir(parents=True, exist_ok=True)
    for name in names:
        MAKERS[name](Path(target))
