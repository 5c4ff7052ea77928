"""Every causal language model of transformers, tiny, with random weights: is its descent a plain loop's, bit for bit?

``python tests/architectures.py --out docs/models.md`` walks the whole mapping, a process for each, and writes the
table; it ends with 1 where one is wrong or crashes. ``make test-models`` does that. With keys, it walks these alone.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

TOKENS, CHUNK = 100, 24
#: Readings beside `append`, each of which must be measured or refused for a reason.
READINGS = (
    "restart", "isolated", "isolated(probe=1)", "quantized", "streaming(sinks=2,window=30)",
    "streaming(sinks=2,window=30,positions=text)", "evict(budget=40)", "merge(budget=40)", "one_step(append)",
)  # fmt: skip
BITWISE, REFUSED, WRONG, CRASHES, UNBUILT = "bitwise", "refused", "WRONG", "CRASHES", "not built"
SECONDS = 300  # that one architecture may take

_LAYERS, _HEADS, _WIDTH, _VOCABULARY = 3, 4, 32, 160
#: Sizes by the names that configurations give them; one that a configuration does not have is left out.
TINY: dict[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers",
                     "num_decoder_layers", "num_encoder_layers"), _LAYERS),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim",
                     "hidden_size_per_layer_input", "hidden_size_global", "lru_width", "attention_hidden_size",
                     "dim_model"), _WIDTH),
    **dict.fromkeys(("intermediate_size", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim", "dff", "d_inner",
                     "ffn_hidden_size", "dim_ff", "intermediate_size_mlp", "ffn_size"), 48),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "encoder_attention_heads",
                     "num_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"), _HEADS),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads", "num_global_key_value_heads"), 2),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "pad_vocab_size_multiple"), _VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"), 256),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts",
                     "num_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size",
                     "shared_intermediate_size", "block_ffn_dim"), 24),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "moe_num_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim", "index_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("index_n_heads", "index_heads"), 2), "index_topk": 64, "head_dim": 16, "global_head_dim": 16,
    "qk_head_dim": 24, "first_k_dense_replace": 1, "sliding_window": 16, "query_pre_attn_scalar": 16,
    "attention_chunk_size": 32, "num_kv_shared_layers": 1, "laurel_rank": 8,
    # convolutions and recurrences
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_d_ssm": 64, "mamba_num_heads": 4,
    "mamba_head_dim": 16, "ssm_state_size": 8, "state_size": 8, "time_step_rank": 4, "mamba_dt_rank": 4,
    "mamba_n_groups": 1, "n_groups": 1, "chunk_size": 16, "mamba_chunk_size": 16,
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id"), 1), "eos_token_id": 2, "pad_token_id": 0,
    "tie_word_embeddings": False, "is_decoder": True, "dropout": 0.0,
}  # fmt: skip
_ASSISTANT = {
    "num_hidden_layers": _LAYERS, "num_kv_shared_layers": _LAYERS, "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
}  # fmt: skip
_INDEXED = {
    "layer_types": ["linear_attention", "indexed_attention", "linear_attention"], "indexer_budget": 64,
    "indexer_compress_ratio": 4, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16,
}  # fmt: skip
#: The part of a configuration that the class of the mapping takes, where it does not take the whole.
PARTS = {"musicgen": "decoder", "musicgen_melody": "decoder"}
#: Those that take other things than one text: they are built, and what is said of them is true.
NO_TEXT = frozenset({"musicgen", "musicgen_melody"})
_MOST_WEIGHTS = 100_000_000
#: What single architectures need beyond that.
OWN: dict[str, dict[str, Any]] = {  # a dictionary is for the configuration of that name within
    "bamba": {"attn_layer_indices": [1]},
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "blt": {f"{part}_config": {"head_dim": _WIDTH // _HEADS} for part in ("patcher", "encoder", "decoder", "global")},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots3_note": {
        "text_config": {"num_key_value_heads": _HEADS},
        "vision_config": {"adapter_in_dim": _WIDTH, "adapter_out_dim": _WIDTH, "mlp_layer_types": ["dense"] * _LAYERS},
        "audio_config": {"adapter_input_size": _WIDTH, "adapter_out_dim": _WIDTH},
    },
    "dots3_note_text": {"num_key_value_heads": _HEADS},
    "gemma4_assistant": {"text_config": _ASSISTANT},
    "gemma4_text": {"hidden_size_per_layer_input": 8},
    "gemma4_unified_assistant": {"text_config": _ASSISTANT},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "helium": {"head_dim": _WIDTH // _HEADS},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2},
    "qwen4_exp": {"text_config": _INDEXED},
    "qwen4_exp_text": _INDEXED,
    "recurrent_gemma": {"attention_window_size": 32},
    "reformer": {"axial_pos_embds": False},
    # Its code rounds widths of keys up to 64 in one place and not in the other.
    "xlstm": {"hidden_size": 128, "head_dim": None, "chunk_size": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 2 * _WIDTH, "attention_head_dim": 16},
    "zamba2": {"attention_hidden_size": 2 * _WIDTH, "attention_head_dim": 16, "mamba_headdim": 8},
    "zaya": {"num_experts_per_tok": 1},
}


@dataclasses.dataclass
class Row:
    """What became of one architecture."""

    key: str
    model: str
    outcome: str
    carries: str = ""
    said: str = ""
    refuses: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> Row:
        """A row from the JSON of one."""
        told = json.loads(text)
        return cls(**{**told, "refuses": tuple(told["refuses"])})


def mapping() -> list[str]:
    """All architectures of the mapping, sorted."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _shrunk(kind: Any, own: dict[str, Any], unset: bool, lists: bool) -> dict[str, Any]:
    """Arguments that make a configuration of a class tiny, and the configurations within it.

    ``unset`` says whether sizes are given that the class leaves unset, ``lists`` whether what there is one of for every
    layer is cut.
    """
    from transformers import PreTrainedConfig

    try:
        full = kind()
    except Exception:
        full = kind(**{name: value for name, value in own.items() if isinstance(value, dict)})
    said = full.to_dict()
    names = {*said, *(getattr(full, "attribute_map", None) or {})}
    sizes = {name: value for name, value in TINY.items() if name in names and (unset or said.get(name, 0) is not None)}
    if "kv_lora_rank" in sizes and "num_key_value_heads" in sizes:  # latents are no keys that heads could share
        sizes["num_key_value_heads"] = _HEADS
    if "qk_rope_head_dim" in sizes and "head_dim" in sizes:  # there, it is the part of a head that is rotated
        sizes["head_dim"] = sizes["qk_rope_head_dim"]
    depth = getattr(full, "num_hidden_layers", None)
    for name, value in said.items():
        if lists and isinstance(value, list) and value and len(value) == depth:
            kinds = dict.fromkeys(map(str, value))
            picked = [next(v for v in value if str(v) == kind) for kind in kinds]
            sizes[name] = (picked * _LAYERS)[:_LAYERS]
    within = {name: inner for name, inner in vars(full).items() if isinstance(inner, PreTrainedConfig)}
    shrunk = {
        name: type(inner)(**_shrunk(type(inner), own.get(name, {}), unset, lists)) for name, inner in within.items()
    }
    return sizes | own | shrunk


def _tiny(key: str) -> Any:
    """A tiny model of an architecture, in the first way that its configuration takes."""
    import torch
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    kind, problem = CONFIG_MAPPING[key], Exception()
    for unset, lists in ((False, True), (True, True), (False, False), (True, False)):
        try:
            config = kind(**_shrunk(kind, OWN.get(key, {}), unset, lists))
            if key in PARTS:
                return MODEL_FOR_CAUSAL_LM_MAPPING[kind](getattr(config, PARTS[key]))
            with torch.device("meta"):
                weights = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
            if weights > _MOST_WEIGHTS:
                raise ValueError(f"it has {weights:,} weights all the same")
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except Exception as error:
            problem = problem if problem.args else error
    raise problem


def build(key: str) -> Any:
    """A tiny model of an architecture: random weights of a size that makes attention matter."""
    import torch

    model = _tiny(key).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return model


def _carries(model: Any) -> str:
    """What a cache of transformers keeps for a model, in words."""
    from transformers import DynamicCache

    from drift.errors import UnsupportedModelError
    from drift.running.descent.decoders import decoder_of, foreign_cache

    words = {
        "DynamicLayer": "keys and values", "DynamicSlidingWindowLayer": "keys and values of a window",
        "DynamicIndexedLayer": "keys, values, keys of an index",
        "MiniMaxM3VLSparseCacheLayer": "keys, values, keys of an index",
        "DeepseekV4HCACache": "keys and values of a window, compressed ones",
        "DeepseekV4CSACache": "keys and values of a window, compressed ones, keys of an index",
        "LinearAttentionLayer": "recurrent state", "DummyLayer": "nothing of its own",
        "LinearAttentionAndFullAttentionLayer": "recurrent state, keys and values",
        "LinearAttentionAndSlidingWindowAttentionLayer": "recurrent state, keys and values of a window",
    }  # fmt: skip
    with contextlib.suppress(UnsupportedModelError):
        foreign = foreign_cache(decoder_of(model))
        if foreign is not None:
            return f"what its own {foreign.__name__} holds"
    kinds = dict.fromkeys(type(layer).__name__ for layer in DynamicCache(config=model.config).layers)
    return "; ".join(words.get(kind, kind) for kind in kinds)


def _bitwise(model: Any, ids: Any) -> str:
    """Where logits or carried keys and values of the descent are not those of a plain loop; empty if nowhere."""
    import torch
    from transformers import DynamicCache

    from drift.running.descent.decoders import blocks_of, cache_argument, own_cache
    from drift.running.descent.descending import descend
    from drift.running.descent.lanes import Lane, Recorder
    from drift.running.model.numerics import numerics, rung_of
    from drift.running.protocols import parse

    class Last(Recorder):
        def __init__(self) -> None:
            self.scores: list[Any] = []
            self.held: dict[int, tuple[Any, Any]] = {}
            self.left: dict[int, list[Any]] = {}

        def logits(self, lane: int, rows: Any, logits: Any) -> None:
            self.scores.append(logits.clone())

        def cached(self, lane: int, block: int, step: int, keys: Any, values: Any) -> None:
            self.held[block - 1] = keys.clone(), values.clone()

        def states(self, lane: int, block: int, tokens: int, convolved: Any, recurrent: Any) -> None:
            self.left[block - 1] = [state.clone() for state in (*convolved, *recurrent)]

    for size in (TOKENS, CHUNK):
        last = Last()
        with numerics(rung_of(model.dtype)):
            descend(model, [Lane(ids, parse("append").chunks(TOKENS, size))], last)
            own: Any = own_cache(model)
            cache = DynamicCache(config=model.config) if own is None else own()
            given = {cache_argument(model): cache, "use_cache": True}
            scores = [model(part[None], **given).logits[0] for part in ids.split(size)]
        if not torch.equal(torch.cat(last.scores), torch.cat(scores)):
            return f"logits, chunks of {size}"
        each = len(cache.layers) // len(blocks_of(model))  # layers of a block that attends more than once
        for index, held in last.held.items():
            layers = cache.layers[index * each : (index + 1) * each]
            keys, values = (torch.cat([getattr(layer, x)[0] for layer in layers]) for x in ("keys", "values"))
            if not (torch.equal(held[0], keys) and torch.equal(held[1], values)):
                return f"cache of block {index + 1}, chunks of {size}"
        for index, layer in enumerate(cache.layers):
            plain = [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
            plain += [state for state in getattr(cache, "linear_cache", [])[index : index + 1] if len(state)]
            plain = [state[0] for state in plain if state is not None]
            left = last.left.get(index, [])
            if len(left) != len(plain) or not all(map(torch.equal, left, plain)):
                return f"states of block {index + 1}, chunks of {size}"
    return ""


def look(key: str, readings: Sequence[str] = READINGS) -> Row:
    """Find out what becomes of one architecture."""
    import numpy as np
    import torch

    import drift
    from drift.errors import DriftError
    from drift.running.descent.trials import trial_text

    torch.set_num_threads(1)
    try:
        model = build(key)
    except Exception as error:
        return Row(key, "", UNBUILT, said=f"{type(error).__name__}: {error}"[:300])
    row = Row(key, type(model).__name__, BITWISE)
    try:
        row.carries = _carries(model)
    except Exception:
        row.carries = "not known"  # transformers cannot make a cache for it either
    try:
        short = trial_text(model).numpy()
    except Exception:
        short = np.arange(3, 40)
    ids = short[np.random.default_rng(1).integers(0, len(short), size=TOKENS)]
    try:
        if key not in NO_TEXT:
            model(torch.from_numpy(ids)[None], use_cache=False)
    except Exception as error:
        row.outcome, row.said = UNBUILT, f"its own forward fails: {type(error).__name__}: {error}"[:300]
        return row
    try:
        drift.trace(model, ids, CHUNK, floor_draws=0)
        wrong = _bitwise(model, torch.from_numpy(ids))
        if wrong:
            row.outcome, row.said = WRONG, wrong
            return row
    except DriftError as error:
        row.outcome, row.said = REFUSED, str(error)
        return row
    except Exception as error:
        row.outcome, row.said = CRASHES, f"{type(error).__name__}: {error}"[:300]
        return row
    for reading in readings:
        try:
            drift.trace(model, ids, CHUNK, reading, floor_draws=0)
        except DriftError:
            row.refuses += (reading,)
        except Exception as error:
            row.outcome, row.said = CRASHES, f"{reading}: {type(error).__name__}: {error}"[:300]
    return row


def _child(key: str, readings: Sequence[str], end: Any) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        end.send(json.dumps(dataclasses.asdict(look(key, readings))))


def walk(
    wanted: Iterable[str], jobs: int, readings: Sequence[str] = READINGS, tell: Callable[[Row], None] = lambda row: None
) -> list[Row]:
    """A process for each architecture, `jobs` at a time; torch is imported once. ``tell`` hears of each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "dask.array", "pydantic", "drift.running.tracing"])

    def one(key: str) -> Row:
        mine, its = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(key, readings, its))
        process.start()
        its.close()
        try:
            row = Row.read(mine.recv()) if mine.poll(SECONDS) else Row(key, "", CRASHES, said=f"{SECONDS} s were over")
        except EOFError:
            row = Row(key, "", CRASHES, said="its process died")
        process.kill()
        process.join()
        tell(row)
        return row

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, wanted))


def table(rows: Sequence[Row], version: str) -> str:
    """The page that docs/models.md is."""
    counts = {
        outcome: sum(row.outcome == outcome for row in rows) for outcome in dict.fromkeys(r.outcome for r in rows)
    }
    head = "\n".join(
        [
            "# Which models",
            "",
            f"{len(rows)} of the {len(mapping())} causal language models of transformers {version}, each as a tiny one "
            f"with random weights in fp32, {TOKENS} tokens in chunks of {CHUNK}:",
            ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) + ".",
            "`make test-models` writes this table anew.",
            "",
            "*bitwise*: logits and carried keys and values are, bit for bit, those of a plain transformers loop over "
            "the same chunks. *refused*: with what drift says.",
            "What a model's readings besides `append` need of it and do not get is refused, too; they stand in the "
            "fourth column.",
            "",
            "Models that are not on the tested list (`TESTED` in `drift/running/descent/decoders.py`) are held against "
            "their own forward before their first descent; the",
            "attribute `descent` of every cell says how: `tested`, `bitwise`, or `floor` (on a GPU, where kernels "
            "differ by shape).",
            "",
            "| architecture | carries | outcome | refused beside that, or why |",
            "|---|---|---|---|",
        ]
    )
    return head + "\n" + "\n".join(_line(row) for row in rows) + "\n"


def _line(row: Row) -> str:
    why = row.said if row.outcome != BITWISE else ", ".join(f"`{reading}`" for reading in row.refuses)
    cells = (f"`{row.key}` {row.model}", row.carries, row.outcome, " ".join(why.split()).replace("|", "\\|"))
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Walk, print what is not bitwise, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("keys", nargs="*", help="architectures; all of them by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="where the table is written")
    asked = parser.parse_args(arguments)
    import transformers

    done: list[Row] = []

    def tell(row: Row) -> None:
        print(f"{row.key}: {row.outcome} {row.said or ' '.join(row.refuses)}"[:600], flush=True)
        done.append(row)
        if asked.out:  # anew after each: what was walked is not lost
            page = table(sorted(done, key=lambda each: each.key), transformers.__version__)
            asked.out.write_text(page, encoding="utf-8")

    rows = walk(asked.keys or mapping(), asked.jobs, tell=tell)
    return int(any(row.outcome in (WRONG, CRASHES) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
