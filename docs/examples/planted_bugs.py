"""Dump a small model's full attention and four chunked lanes, three of them with a planted bug.

    python docs/examples/planted_bugs.py dumps
    python -m drift.diagnose dumps/full dumps/shifted

`dump` is how any engine's tensors are written: hooks on its blocks, and what it appends to its cache.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

TOKENS, CHUNK = 256, 32


class NotedCache(DynamicCache):
    """A cache that keeps what was appended, after `spoil` had its way with it."""

    def __init__(self, config, spoil=None):
        super().__init__(config=config)
        self.spoil, self.step, self.appended = spoil, 0, {}

    def update(self, keys, values, block, *args, **kwargs):
        """Note keys and values, then cache them as usual."""
        if self.spoil:
            keys, values = self.spoil(self.step, block, keys, values)
        self.appended[f"step.{self.step}.block.{block + 1}.key"] = keys.clone()
        self.appended[f"step.{self.step}.block.{block + 1}.value"] = values.clone()
        return super().update(keys, values, block, *args, **kwargs)


@torch.no_grad()
def dump(model, ids, chunk, folder, *, shift=lambda step: 0, spoil=None):
    """Run a text chunk by chunk and write what diagnose compares."""
    tensors, cache = {}, NotedCache(model.config, spoil)

    def note(layer):
        def hook(module, args, output):
            state = output[0] if isinstance(output, tuple) else output
            tensors[f"step.{cache.step}.layer.{layer}.hidden"] = state.clone()

        return hook

    modules = [model.model.embed_tokens, *model.model.layers]
    hooks = [module.register_forward_hook(note(layer)) for layer, module in enumerate(modules)]
    for step, part in enumerate(ids.split(chunk)):
        cache.step = step
        positions = torch.arange(step * chunk, step * chunk + len(part)) + shift(step)
        out = model(part[None], position_ids=positions[None], past_key_values=cache)
        tensors[f"step.{step}.logits"] = out.logits
    for hook in hooks:
        hook.remove()
    folder.mkdir(parents=True, exist_ok=True)
    every = tensors | cache.appended
    save_file({name: tensor.clone().contiguous() for name, tensor in every.items()}, folder / "lane.safetensors")
    return every


def main(out):
    """Write the folders."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.09,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids, previous = torch.randint(512, (2, TOKENS))
    dump(model, ids, TOKENS, out / "full")
    dump(model, ids, CHUNK, out / "chunked")
    old = dump(model, previous, CHUNK, out / "previous")

    def stale(step, block, keys, values):
        return (old[f"step.3.block.{block + 1}.key"], values) if step == 3 else (keys, values)

    def narrow(step, block, keys, values):
        return keys.bfloat16().float(), values

    dump(model, ids, CHUNK, out / "shifted", shift=lambda step: int(step >= 5))
    dump(model, ids, CHUNK, out / "stale", spoil=stale)
    dump(model, ids, CHUNK, out / "narrow", spoil=narrow)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
