"""Does drift plateau in a model whose state is bounded? Tiny models with random weights, set to forget or not to.

A trained hybrid takes the hub. What can be had without is the arithmetic: the same chunked scans, states and caches
that trained models run, with the one number that decides how long a recurrence remembers set by hand, the half-life of
its states. Attention alone stands beside them. Of each: does drift of the final hidden state and of the recurrent
states grow with depth, how far is it from its rounding floor, and what becomes of a disturbance of the whole cache.

``python bench/recurrent.py`` measures, writes results/recurrent.json and prints the table of docs/recurrent.md;
``--show`` prints the table of what was measured.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "recurrent.json"
TOKENS, CHUNK, DOCUMENTS = 512, 8, 4
#: Tokens after which half of a state is gone: within a chunk, and not within the text.
SHORT, LONG = 4, 4096
#: The chain step after which the whole cache is disturbed, by how much, and the steps at which that is looked for.
STRUCK, SIZE, LOOKED = 7, 1e-3, (8, 15, 31, 63)

_COMMON: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 4, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128}
_HYBRID = ("Qwen3_5TextConfig", {
    **_HEADS, "linear_num_key_heads": 4, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "layer_types": [*["linear_attention"] * 3, "full_attention"],
})  # fmt: skip
_RECURRENT = (
    "Mamba2Config",
    {"num_heads": 8, "head_dim": 16, "expand": 2, "state_size": 16, "n_groups": 1, "chunk_size": 32},
)
#: What is measured: its name, the configuration, and the half-life of states in tokens.
MODELS: dict[str, tuple[tuple[str, Mapping[str, Any]], int | None]] = {
    "attention alone (Qwen3)": (("Qwen3Config", _HEADS), None),
    f"hybrid (Qwen3.5), half-life {SHORT}": (_HYBRID, SHORT),
    f"hybrid (Qwen3.5), half-life {LONG}": (_HYBRID, LONG),
    f"recurrence alone (Mamba-2), half-life {SHORT}": (_RECURRENT, SHORT),
    f"recurrence alone (Mamba-2), half-life {LONG}": (_RECURRENT, LONG),
}


def build(config: str, sizes: Mapping[str, Any], half_life: int | None) -> Any:
    """A model with random weights, whose states halve in so many tokens where the gate is neither open nor shut."""
    import torch
    import transformers

    made = getattr(transformers, config)(**_COMMON, **sizes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.float32).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
        elif half_life is not None and name.endswith("A_log"):
            parameter.fill_(math.log(math.log(2) / half_life / math.log(2)))  # softplus(0) is log 2
        elif name.endswith("dt_bias"):
            parameter.zero_()
    return model


def judged(cell: Any, of: str) -> dict[str, Any]:
    """How a measure's curve goes with depth, and how far it is from its rounding floor, with intervals."""
    found, rounding = cell.drift.plateau(of), cell.drift.rounding(of)
    return {
        "level": found.level, "growth": found.growth_per_doubling, "interval": list(found.growth_interval),
        "verdict": found.verdict.value, "floors": rounding.level, "floors_interval": list(rounding.level_interval),
        "rounding": rounding.verdict.value,
    }  # fmt: skip


def measure(name: str) -> dict[str, Any]:
    """All of one model."""
    import drift

    (config, sizes), half_life = MODELS[name]
    model = build(config, sizes, half_life)
    ids = np.random.default_rng(0).integers(3, _COMMON["vocab_size"], size=(DOCUMENTS, TOKENS))
    struck = f"perturbed(append,step={STRUCK},size={SIZE})"
    fold, hit = drift.trace_folds(model, ids, [(CHUNK, "append"), (CHUNK, struck, "unperturbed")])
    with np.errstate(divide="ignore"):  # what is gone to the last bit is 0 in the mean, too
        response = np.exp(np.log(hit["hidden_rel_l2"].isel(layer=-1).values[:, LOOKED]).mean(0))
    found = {"hidden": judged(fold, "hidden_rel_l2"), "response": response.tolist()}
    return found | ({"state": judged(fold, "state_rel_l2")} if "state_rel_l2" in fold else {})


def table(results: Mapping[str, Any]) -> str:
    """The tables of docs/recurrent.md."""
    lines = [
        "| model | drift of | level | growth per doubling of depth | verdict | over its floor | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        for kind, words in (("hidden", "final hidden state"), ("state", "recurrent state, last block")):
            if kind in found:
                one = found[kind]
                low, high = (f"{100 * x:+.1f}" for x in one["interval"])
                least, most = (f"{x:.2f}" for x in one["floors_interval"])
                lines.append(
                    f"| {name} | {words} | {one['level']:.1e} | {100 * one['growth']:+.1f} % ({low} to {high}) | "
                    f"{one['verdict']} | {one['floors']:.2f} ({least} to {most}) | {one['rounding']} |"
                )
    heads = " | ".join(f"step {step + 1}" for step in LOOKED)
    lines += [
        "",
        f"| disturbance of {SIZE:g} after step {STRUCK + 1}: drift at | {heads} |",
        "|---" * (len(LOOKED) + 1) + "|",
    ]
    for name, found in results.items():
        lines.append(f"| {name} | {' | '.join(f'{x:.1e}' for x in found['response'])} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print the table of what was measured")
    if not parser.parse_args(arguments).show:
        warnings.simplefilter("ignore")
        RESULTS.write_text(json.dumps({name: measure(name) for name in MODELS}, indent=1) + "\n", encoding="utf-8")
    print(table(json.loads(RESULTS.read_text(encoding="utf-8"))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
