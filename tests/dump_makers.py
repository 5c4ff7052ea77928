"""Makes the dumps in ``tests/dumps`` with the packages whose formats they are: ``dump_makers.py NAME ... FOLDER``.

Each package in an environment of its own, with the torch of the project; docs/importers.md says which versions. What
they hold is computed again in ``tests/test_importers_real.py``, by a plain loop of transformers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file
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


def transformerlens2(folder: Path) -> None:
    """Version 2: a cache of one pass, as `.pt`."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights

    model = tiny()
    given = model.config
    config = HookedTransformerConfig(
        n_layers=BLOCKS, d_model=16, n_ctx=64, d_head=4, n_heads=4, n_key_value_heads=HEADS, d_vocab=24, d_mlp=24,
        act_fn="silu", normalization_type="RMS", positional_embedding_type="rotary", rotary_dim=4,
        rotary_adjacent_pairs=False, final_rms=True, gated_mlp=True, eps=given.rms_norm_eps,
        original_architecture="LlamaForCausalLM", rotary_base=10000, default_prepend_bos=False, device="cpu",
        dtype=torch.float32,
    )  # fmt: skip
    hooked = HookedTransformer(config)
    hooked.load_and_process_state_dict(
        convert_llama_weights(model, config), fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False,
    )  # fmt: skip
    logits, cache = hooked.run_with_cache(ids(), names_filter=lambda name: name.endswith(HOOKS))
    torch.save({**cache.cache_dict, "logits": logits.detach()}, folder / "transformerlens2.pt")


def nnsight(folder: Path) -> None:
    """A trace per chunk: the whole cache of the second as `.pt`, and both as safetensors with steps in the names."""
    from nnsight import NNsight

    wanted = re.compile(r"(lm_head|model\.norm|embed_tokens|[kv]_proj|layers\.\d+)$")
    wrapped, cache, held = NNsight(tiny()), DynamicCache(), {}
    for step, chunk in enumerate(ids().split(CHUNK, dim=1)):
        with wrapped.trace(chunk, past_key_values=cache, use_cache=True) as tracer:
            seen = tracer.cache()
        for path in seen.keys():  # noqa: SIM118
            output = seen[path].output
            if isinstance(output, torch.Tensor) and wanted.search(path):
                held[f"step.{step}.{path}.output"] = output.contiguous().clone()
    save_file(held, folder / "nnsight.safetensors")
    some = [path for path in seen.keys() if wanted.search(path)]  # noqa: SIM118
    with wrapped.trace(ids()) as tracer:
        seen = tracer.cache(modules=some)
    torch.save(seen, folder / "nnsight.pt")


def sglang(folder: Path) -> None:
    """A step per chunk by SGLang's dumper: the file of an unpacked wheel, without the server that it belongs to.

    ``SGLANG`` is the folder that the wheel was unpacked into.
    """
    for name in ("sglang", "sglang.srt", "sglang.srt.managers"):
        sys.modules[name] = types.ModuleType(name)
    for name in ("managers.io_struct", "runtime_context", "utils"):
        sys.modules[f"sglang.srt.{name}"] = mock.MagicMock()
    source = Path(os.environ["SGLANG"], "sglang", "srt", "debug_utils", "dumper.py")
    spec = importlib.util.spec_from_file_location("dumper", source)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["dumper"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    wanted = r"search(r'layers\.\d+\.(inputs\.0|output)$|v_proj\.output|norm\.output$|lm_head\.output', name)"
    given = {"enable": True, "non_intrusive_mode": "all", "dir": str(folder), "exp_name": "sglang", "filter": wanted}
    dumper = module._Dumper(config=module.DumperConfig(**given))
    model, cache = tiny(), DynamicCache()
    dumper.register_non_intrusive_dumper(model)
    for chunk in ids().split(CHUNK, dim=1):
        with torch.no_grad():
            model(chunk, past_key_values=cache, use_cache=True)
        dumper.step()


def msprobe(folder: Path) -> None:
    """A step per chunk by msProbe; files of modules that are not read are left out."""
    from msprobe.pytorch import PrecisionDebugger

    model, cache = tiny(), DynamicCache()
    with tempfile.TemporaryDirectory() as place:
        config = Path(place, "config.json")
        given = {"task": "tensor", "dump_path": str(folder / "msprobe"), "rank": [], "step": [], "level": "L0"}
        config.write_text(json.dumps(given | {"tensor": {"scope": [], "list": [], "data_mode": ["forward"]}}))
        debugger = PrecisionDebugger(config_path=str(config))
        for chunk in ids().split(CHUNK, dim=1):
            debugger.start(model=model)
            with torch.no_grad():
                model(chunk, past_key_values=cache, use_cache=True)
            debugger.stop()
            debugger.step()
    wanted = re.compile(r".*(layers\.\d\.\w+|norm\.\w+|lm_head\.\w+|v_proj\.\w+)\.forward\.\d+\.(input|output)\.0\.pt")
    for file in folder.rglob("*"):
        if file.is_file() and not wanted.fullmatch(file.name) and file.name != "construct.json":
            file.unlink()


MAKERS = {
    "transformers": transformers_debugger,
    "transformerlens": transformerlens,
    "transformerlens2": transformerlens2,
    "nnsight": nnsight,
    "sglang": sglang,
    "msprobe": msprobe,
}

if __name__ == "__main__":
    *names, target = sys.argv[1:]
    Path(target).mkdir(parents=True, exist_ok=True)
    for name in names:
        MAKERS[name](Path(target))
