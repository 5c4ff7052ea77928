"""Dumps as other programs write them, made of drawn numbers: one writer per format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diagnose_numbers import CHUNK, TOKENS, cut, drawn, with_caches
from diagnose_tools import Tensors
from safetensors.torch import save_file

BLOCKS, HEADS = 2, 2
HIDDEN = {f"layer.{layer}.hidden" for layer in range(BLOCKS + 1)}
VALUES = {f"block.{block}.value" for block in range(1, BLOCKS + 1)}
KEYS = {f"block.{block}.key" for block in range(1, BLOCKS + 1)}
CACHES = {f"block.{block}.cache_{kind}" for block in range(1, BLOCKS + 1) for kind in ("key", "value")}
ENDS = {"final", "logits"}


def lane(tokens: int = TOKENS, chunk: int = CHUNK) -> Tensors:
    """A lane under names of our own, caches and all."""
    return with_caches(cut(drawn(BLOCKS, tokens), chunk), BLOCKS, chunk, tokens)


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """[head, token, feature] as [token, head * feature]."""
    return tensor.transpose(0, 1).reshape(tensor.shape[1], -1).contiguous()


def half(tensor: torch.Tensor) -> torch.Tensor:
    """Half of it, which is exact."""
    return (tensor / 2).contiguous()


def torch_save(value: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)


def modules(step: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What modules of a transformer gave, by their path below the class."""
    out = {"model.embed_tokens": step["layer.0.hidden"], "model.norm": step["final"], "lm_head": step["logits"]}
    for block in range(BLOCKS):
        out[f"model.layers.{block}"] = step[f"layer.{block + 1}.hidden"]
        out[f"model.layers.{block}.self_attn.v_proj"] = flat(step[f"block.{block + 1}.value"])
        out[f"model.layers.{block}.self_attn.k_proj"] = flat(step[f"block.{block + 1}.key"])
    return out


def by_step(tensors: Tensors) -> list[dict[str, torch.Tensor]]:
    """The tensors of each step, by what follows ``step.K.``."""
    steps: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        _, step, rest = name.split(".", 2)
        steps.setdefault(int(step), {})[rest] = tensor
    return list(steps.values())


def length(step: Mapping[str, torch.Tensor]) -> int:
    """Tokens of a step."""
    return len(step["final"])


# ---------------------------------------------------------------- writers: a folder or file, of a lane
def transformers(tensors: Tensors, folder: Path) -> Path:
    for number, step in enumerate(by_step(tensors)):
        place = folder / f"pass{number}"
        place.mkdir(parents=True)
        (place / "LlamaForCausalLM_debug_tree_FULL_TENSORS.json").write_text("{}")
        given = {f"model.layers.{layer}_inputs_args_0": step[f"layer.{layer}.hidden"] for layer in range(BLOCKS)}
        given["model.norm_inputs_args_0"] = step[f"layer.{BLOCKS}.hidden"]
        given["model.layers.0_inputs_kwargs_attention_mask"] = torch.zeros(1, length(step), length(step))
        gave = {f"{path}_outputs": tensor for path, tensor in modules(step).items() if not path[-1].isdecimal()}
        for name, tensor in (given | gave).items():
            save_file({"data": tensor[None].clone()}, place / f"LlamaForCausalLM.{name}.safetensors")
    return folder


def transformerlens(tensors: Tensors, folder: Path) -> Path:
    folder.mkdir()
    for number, step in enumerate(by_step(tensors)):
        out = {"blocks.0.hook_resid_pre": step["layer.0.hidden"], "ln_final.hook_out": step["final"]}
        out["logits"] = step["logits"]
        for block in range(BLOCKS):
            keys, values = (step[f"block.{block + 1}.{kind}"].transpose(0, 1) for kind in ("key", "value"))
            out[f"blocks.{block}.attn.hook_rot_k"], out[f"blocks.{block}.attn.hook_v"] = keys, values
            out[f"blocks.{block}.attn.hook_k"] = keys + 1
            out[f"blocks.{block}.hook_resid_post"] = step[f"layer.{block + 1}.hidden"]
        np.savez(folder / f"{number}.npz", **{name: tensor[None].numpy() for name, tensor in out.items()})
    return folder


def nnsight(tensors: Tensors, folder: Path) -> Path:
    folder.mkdir()
    held = {
        f"step.{number}.model.{path}.output": tensor[None].clone()
        for number, step in enumerate(by_step(tensors))
        for path, tensor in modules(step).items()
    }
    save_file(held, folder / "lane.safetensors")
    return folder / "lane.safetensors"


def vllm(tensors: Tensors, folder: Path) -> Path:
    folder.mkdir()
    whole = [torch.cat([step[f"layer.{layer}.hidden"] for step in by_step(tensors)]) for layer in range(BLOCKS + 1)]
    held = {"hidden_states": torch.stack(whole, dim=1), "token_ids": torch.arange(sum(map(length, by_step(tensors))))}
    save_file(held, folder / "request.safetensors")
    (folder / "request.safetensors.lock").touch()
    return folder


def edge_llm(tensors: Tensors, folder: Path) -> Path:
    folder.mkdir()
    held, steps = {}, by_step(tensors)
    for number, step in enumerate(steps):
        filled = sum(map(length, steps[: number + 1]))
        held[f"round_{number}.logits"] = step["logits"][-1:].clone()
        held[f"round_{number}.context_lengths"] = torch.tensor([filled], dtype=torch.int32)
        held[f"round_{number}.layer_9.recurrent_state"] = torch.zeros(1, 2, 2)
        for block in range(BLOCKS):
            both = torch.full((1, 2, HEADS, sum(map(length, steps)) + 5, 16), torch.nan)
            for at, kind in enumerate(("key", "value")):
                both[0, at, :, :filled] = step[f"block.{block + 1}.cache_{kind}"]
            held[f"round_{number}.layer_{block}.kv"] = both
    save_file(held, folder / "edgellm_dump.safetensors")
    return folder


def engine(step: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What modules of vLLM and SGLang took and gave: hidden states are pairs, keys and values flat."""
    out = {
        "model.embed_tokens.output": step["layer.0.hidden"] + 1,  # some models scale embeddings afterwards
        "model.layers.0.inputs.0": torch.arange(length(step)),
        "model.layers.0.inputs.1": step["layer.0.hidden"],
        "model.norm.output.0": step["final"],
        "model.norm.output.1": step["final"],
        "logits_processor.output.next_token_logits": step["logits"],
        "output.next_token_logits": step["logits"],
    }
    for block in range(BLOCKS):
        path, state = f"model.layers.{block}", half(step[f"layer.{block + 1}.hidden"])
        out |= {f"{path}.output.0": state, f"{path}.output.1": state.clone()}
        keys, values = (flat(step[f"block.{block + 1}.{kind}"]) for kind in ("key", "value"))
        given = (torch.zeros(length(step), 64), keys, values)
        out |= {f"{path}.self_attn.attn.inputs.{at}": tensor for at, tensor in enumerate(given)}
        out[f"{path}.mlp.output"] = torch.zeros(length(step), 32)
    return out


def sglang(tensors: Tensors, folder: Path) -> Path:
    index = 0
    for number, step in enumerate(by_step(tensors)):
        for name, tensor in engine(step).items():
            for rank in (0, 1):
                index += 1
                tags = f"step={number + 3}___rank={rank}___dump_index={index}___name=non_intrusive__{name}"
                value = {"value": tensor if rank == 0 else tensor + 1, "meta": {"name": name, "sizes": [1, 2]}}
                torch_save(value, folder / f"{tags}___recompute_status=disabled___layer_id=None.pt")
    return folder


def sglang_passes(tensors: Tensors, folder: Path) -> Path:
    steps = by_step(tensors)
    for number, step in enumerate(steps):
        norms = {
            f"model.layers.{block}.input_layernorm": [
                torch.ones(length(step), 32),
                step[f"layer.{block}.hidden"],
            ]
            for block in range(1, BLOCKS)
        }
        held: dict[str, Any] = {"model.embed_tokens": step["layer.0.hidden"], **norms}
        held["model.norm"] = [step["final"], step[f"layer.{BLOCKS}.hidden"]]
        if number:
            held["logits_processor"] = steps[number - 1]["logits"]
        torch_save(held, folder / "TP0_PP0_Rank0_pid7" / f"Pass{number:05d}.pt")
    return folder


def msprobe(tensors: Tensors, folder: Path) -> Path:
    for number, step in enumerate(by_step(tensors)):
        place = folder / f"step{number // 2}" / "rank0"
        for name, tensor in engine(step).items():
            path = name.rpartition(".inputs")[0] or name.rpartition(".output")[0]
            side = "input" if ".inputs" in name else "output"
            if not path or "next_token" in name:
                continue
            at = name.rsplit(".", 1)[-1] if name[-1].isdecimal() else "0"
            file = f"Module.{path}.SomeClass.forward.{number % 2}.{side}.{at}.pt"
            torch_save(tensor.clone(), place / "dump_tensor_data" / file)
        file = f"Module.lm_head.Linear.forward.{number % 2}.output.0.pt"
        torch_save(step["logits"].clone(), place / "dump_tensor_data" / file)
        (place / "dump.json").write_text("{}")
        (place / "construct.json").write_text("{}")
    return folder


@dataclass(frozen=True)
class Written:
    """A format: who writes it, what of a lane it can hold, and how it is asked for."""

    name: str
    write: Callable[[Tensors, Path], Path]
    holds: frozenset[str]
    flags: tuple[str, ...] = ()
    whole: bool = False


def _of(*kinds: set[str]) -> frozenset[str]:
    return frozenset().union(*kinds)


HEADED = ("--heads", str(HEADS))
FORMATS = (
    Written("transformers", transformers, _of(HIDDEN, VALUES, ENDS), HEADED),
    Written("transformerlens", transformerlens, _of(HIDDEN, KEYS, VALUES, ENDS)),
    Written("nnsight", nnsight, _of(HIDDEN, VALUES, ENDS), HEADED),
    Written("sglang", sglang, _of(HIDDEN, KEYS, VALUES, ENDS), HEADED),
    Written("sglang", sglang_passes, _of(HIDDEN, {"final"})),
    Written("vllm", vllm, _of(HIDDEN), ("--layers", ",".join(map(str, range(BLOCKS + 1)))), whole=True),
    Written("edge-llm", edge_llm, _of(KEYS, VALUES, CACHES, {"logits"})),
    Written("msprobe", msprobe, _of(HIDDEN, KEYS, VALUES, ENDS), HEADED),
)
