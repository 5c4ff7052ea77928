"""Time and peak memory of one descent at the size of Llama-3.1-8B: full attention and a fold of 131,072 tokens.

The weights are random: neither time nor memory depends on what they are. Both lanes go through all layers, with hidden
states, keys, values and logits compared. ``--dtype fp32`` streams the weights from disk, and so does
``--scale 70b``, of which only a few layers are timed and the rest is extrapolated, which the output says.
``--scale tiny`` runs the same path end to end on a CPU in seconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import drift
from drift.dataset.rungs import rung
from drift.running.descent.decoders import blocks_of
from drift.running.descent.lanes import Limits
from drift.running.model.weights import Streamed, skeleton
from drift.running.model.widening import widen
from drift.running.sweep.memory import footprint


@dataclass(frozen=True)
class Scale:
    """Sizes of a model and a text; `timed` layers are run where there are more."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tokens: int
    chunk: int
    timed: int


SCALES = {
    "tiny": Scale(64, 128, 4, 4, 2, 512, 512, 64, 4),
    "8b": Scale(4096, 14336, 32, 32, 8, 128256, 131072, 256, 32),
    "70b": Scale(8192, 28672, 80, 64, 8, 128256, 131072, 256, 4),
}


def checkpoint(folder: Path, scale: Scale) -> LlamaConfig:
    """Write random bf16 weights of `timed` layers, a file for each layer: nothing is ever held whole."""
    config = LlamaConfig(
        vocab_size=scale.vocabulary,
        hidden_size=scale.hidden,
        intermediate_size=scale.intermediate,
        num_hidden_layers=scale.timed,
        num_attention_heads=scale.heads,
        num_key_value_heads=scale.kv_heads,
        max_position_embeddings=scale.tokens,
        rope_theta=500000.0,
    )
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    shapes = {n: p.shape for n, p in skeleton(config, torch.bfloat16, "sdpa").named_parameters()}
    files: dict[str, list[str]] = {}
    for name in shapes:
        part = name.split(".")[2] if ".layers." in name else name.replace(".", "-")
        files.setdefault(f"part-{part}.safetensors", []).append(name)
    for file, names in files.items():
        tensors = {}
        for name in names:
            one_dimensional = len(shapes[name]) == 1
            tensors[name] = torch.ones(shapes[name], dtype=torch.bfloat16)
            if not one_dimensional:
                tensors[name].normal_(0, shapes[name][-1] ** -0.5, generator=generator)
        save_file(tensors, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, names in files.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return config


def peak(device: str) -> float:
    """Most bytes that were taken so far: on a GPU of its memory, else of the machine's by this process."""
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def predicted(
    scale: Scale, config: LlamaConfig, dtype: str, device: str, weights: str, stride: int, keep_calls: bool
) -> float:
    """What ``--dry-run`` would say of the same descent, in bytes."""
    width = scale.hidden // scale.heads
    block = scale.hidden * (2 * scale.hidden + 2 * scale.kv_heads * width + 3 * scale.intermediate)
    shape = SimpleNamespace(
        layers=scale.timed,
        hidden_size=scale.hidden,
        intermediate_size=scale.intermediate,
        heads=scale.heads,
        kv_heads=scale.kv_heads,
        head_dim=width,
        vocab_size=scale.vocabulary,
        parameters=scale.timed * block + 2 * scale.vocabulary * scale.hidden,
        tied=bool(config.tie_word_embeddings),
    )
    return footprint(
        shape,
        dtype=dtype,
        device=device,
        half_matmul="float32" if device == "cpu" else "native",
        attn_implementation="sdpa",
        tokens=scale.tokens,
        folds=[scale.chunk],
        logit_stride=stride,
        weights=weights,
        keeps_calls=keep_calls,
    ).bytes


def run(name: str, dtype: str, device: str, weights: str, stride: int, keep_calls: bool) -> dict[str, Any]:
    scale = SCALES[name]
    tokens = np.random.default_rng(0).integers(3, scale.vocabulary, size=(1, scale.tokens))
    half = "float32" if device == "cpu" else "native"
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        config = checkpoint(folder, scale)
        began = time.perf_counter()
        if weights == "resident":
            model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
            widen(model, rung(dtype))
            model.to(device).requires_grad_(False)
        else:
            model = skeleton(config, torch.bfloat16, "sdpa")
            Streamed(folder, model, blocks_of, device, rung(dtype))
        loaded = time.perf_counter()
        marks: list[float] = []
        drift.trace(
            model,
            tokens,
            scale.chunk,
            logit_stride=stride,
            half_matmul=half,
            limits=None if keep_calls else Limits(call_bytes=0),
            labels={"model": name, "dtype": dtype},
            on_progress=lambda share: marks.append(time.perf_counter()),
        )
        done = time.perf_counter()
    # One mark behind every block, and one behind the document; the first block also waits for the tap.
    layer = float(np.median(np.diff(marks[: scale.timed]))) if scale.timed > 2 else float("nan")
    found = {
        "scale": name,
        "dtype": dtype,
        "weights": weights,
        "tokens": scale.tokens,
        "chunk_size": scale.chunk,
        "logit_stride": stride,
        "layers_run": scale.timed,
        "layers": scale.layers,
        "load_s": round(loaded - began, 2),
        "descent_s": round(done - loaded, 2),
        "layer_s": round(layer, 3),
        "peak_gb": round(peak(device) / 1e9, 3),
        "predicted_peak_gb": round(predicted(scale, config, dtype, device, weights, stride, keep_calls) / 1e9, 3),
    }
    if scale.timed < scale.layers:
        # Layers are alike, so time adds up, and streamed memory does not depend on how many there are.
        found["extrapolated_descent_s"] = round(done - loaded + layer * (scale.layers - scale.timed), 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=list(SCALES), default="8b")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--weights", choices=("auto", "resident", "streamed"), default="auto")
    parser.add_argument("--logit-stride", type=int, default=16)
    parser.add_argument("--keep-masks", action="store_true", help="keep the masks of all chunks (8.6 GB at 8b)")
    parser.add_argument("--out", type=Path, help="a JSON file (default: print only)")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and arguments.scale != "tiny":
        raise SystemExit("gpu_8b.py: this size needs a CUDA device; --scale tiny runs on a CPU")
    weights = arguments.weights
    if weights == "auto":
        weights = "resident" if (arguments.scale, arguments.dtype) in (("8b", "bf16"), ("tiny", "bf16")) else "streamed"
    found = run(arguments.scale, arguments.dtype, device, weights, arguments.logit_stride, arguments.keep_masks)
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})"
    record = {"date": datetime.now(UTC).date().isoformat(), "device": name, **found}
    print(json.dumps(record, indent=1))
    if "extrapolated_descent_s" in found:
        print(
            f"{found['layers_run']} of {found['layers']} layers were run; the time of all is extrapolated from their "
            "median, and logits were computed once."
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
