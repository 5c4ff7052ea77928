"""Dumps for the tests of drift.diagnose that need no model: drawn numbers, cut into steps, with what is planted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diagnose_tools import Tensors, save

from drift.reading.diagnose.compare import Comparison, compare
from drift.reading.diagnose.envelope import Envelope
from drift.reading.diagnose.model import Diagnosis
from drift.reading.diagnose.tensors import Place, open_dump
from drift.reading.diagnose.verdict import diagnose

TOKENS, CHUNK, WIDTH = 48, 8, 16
"""Tokens of a text, of a chunk, and features of a head."""

Whole = dict[str, torch.Tensor]
"""Tensors of a whole text by what follows ``step.K.`` in a dump's names."""


def drawn(blocks: int = 3, tokens: int = TOKENS, dtype: torch.dtype = torch.float32, seed: int = 0) -> Whole:
    """A lane of independent Gaussian numbers: embeddings, keys, values and output of every block, final, logits."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    out = {"layer.0.hidden": draw(tokens, 32)}
    for block in range(1, blocks + 1):
        out[f"block.{block}.key"] = draw(2, tokens, WIDTH)
        out[f"block.{block}.value"] = draw(2, tokens, WIDTH)
        out[f"layer.{block}.hidden"] = draw(tokens, 32)
    return out | {"final": draw(tokens, 32), "logits": draw(tokens, 97)}


def cut(whole: Whole, chunk: int = CHUNK) -> Tensors:
    """The dump of a lane that took the text in chunks."""
    return {
        f"step.{step}.{name}": tensor[..., start : start + chunk, :]
        for name, tensor in whole.items()
        for step, start in enumerate(range(0, tensor.shape[-2], chunk))
    }


def with_caches(tensors: Tensors, blocks: int = 3, chunk: int = CHUNK, tokens: int = TOKENS) -> Tensors:
    """The same dump with caches that hold what was appended."""
    out = dict(tensors)
    for block in range(1, blocks + 1):
        for kind in ("key", "value"):
            parts = [tensors[f"step.{step}.block.{block}.{kind}"] for step in range(tokens // chunk)]
            for step in range(tokens // chunk):
                out[f"step.{step}.block.{block}.cache_{kind}"] = torch.cat(parts[: step + 1], dim=-2)
    return out


def changed(whole: Whole, name: str, tokens: slice, values: torch.Tensor) -> Whole:
    """The same lane with other numbers at one place for some tokens."""
    tensor = whole[name].clone()
    tensor[..., tokens, :] = values.to(tensor.dtype)
    return whole | {name: tensor}


def turned(
    keys: torch.Tensor, angles: torch.Tensor, layout: str = "half-split", width: int | None = None
) -> torch.Tensor:
    """Keys [head, token, feature] with their pairs rotated by angles [token, pair] or [pair], worked out in float64."""
    width = keys.shape[-1] if width is None else width
    out = keys.double().clone()
    half = width // 2
    one, two = (
        (slice(0, half), slice(half, width)) if layout == "half-split" else (slice(0, width, 2), slice(1, width, 2))
    )
    x, y, cos, sin = out[..., one].clone(), out[..., two].clone(), angles.double().cos(), angles.double().sin()
    out[..., one], out[..., two] = x * cos - y * sin, x * sin + y * cos
    return out.to(keys.dtype)


def frequencies(width: int = WIDTH, base: float = 1e4) -> torch.Tensor:
    """Radians by which each pair of features turns from one position to the next: [pair]."""
    return base ** -(torch.arange(width // 2, dtype=torch.float64) * 2 / width)


def diagnosed(folder: Path, a: Tensors, b: Tensors, **options: Any) -> Diagnosis:
    """Write two lanes and diagnose them."""
    return diagnose(open_dump(save(a, folder / "a")), open_dump(save(b, folder / "b")), **options)


def compared(folder: Path, a: Tensors, b: Tensors) -> Comparison:
    """Write two lanes and compare them."""
    return compare(open_dump(save(a, folder / "a")), open_dump(save(b, folder / "b")))


def envelope_of(found: Comparison, place: Place, bound: float) -> Envelope:
    """An envelope that is the same for all tokens, without inputs."""
    nothing = np.zeros(found.tokens)
    envelope = Envelope(place, [], 0, True, nothing, nothing, np.full(found.tokens, bound))
    return dataclasses.replace(envelope, ratio=found.profiles[place].felt / bound)


def sentences(found: Diagnosis) -> list[str]:
    """What the evidence says."""
    return [evidence.text for evidence in found.evidence]


def numbers_of(found: Diagnosis) -> dict[str, Any]:
    """All numbers of the evidence together."""
    return {key: value for evidence in found.evidence for key, value in evidence.numbers.items()}
