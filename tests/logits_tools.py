"""Files of logits and log-probabilities for the tests of drift.logits, written from the formats' documentation."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 11


def drawn(shape: tuple[int, ...] = (4, 20, VOCABULARY), seed: int = 0) -> np.ndarray:
    """Logits, float64."""
    return np.random.default_rng(seed).normal(size=shape) * 2


def moved(logits: np.ndarray, size: float, seed: int) -> np.ndarray:
    """Logits, each disturbed a little."""
    return logits + np.random.default_rng(seed).normal(size=logits.shape) * size


def tokens_of(logits: np.ndarray, seed: int = 9) -> np.ndarray:
    """Tokens that went in."""
    return np.random.default_rng(seed).integers(0, logits.shape[-1], size=logits.shape[:-1])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def followed(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Log-probability of every token but the first, [sequence, position]."""
    return np.take_along_axis(softmax(logits)[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]


def save_lines(path: Path, records: Sequence[Any]) -> Path:
    """One object a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def ours(path: Path, tokens: Any, values: Any, tops: Any = None) -> Path:
    """Our own format."""
    records = [
        {"tokens": list(map(int, t)), "logprobs": list(map(float, v))} for t, v in zip(tokens, values, strict=True)
    ]
    for record, top in zip(records, tops or (), strict=False):
        record["top_logprobs"] = top
    return save_lines(path, records)


def llama_base(path: Path, logits: np.ndarray, tokens: np.ndarray) -> Path:
    """What llama-perplexity saves of chunks [chunk, position, token]: in float32, as its source does it."""
    chunks, context, vocabulary = logits.shape
    width = 2 * ((vocabulary + 1) // 2) + 4
    with open(path, "wb") as file:
        file.write(b"_logits_" + struct.pack("<3i", context, vocabulary, chunks) + tokens.astype("<i4").tobytes())
        for chunk in logits.astype(np.float32):
            for row in chunk[context // 2 : context - 1]:
                largest, least = row.max(), max(row.min(), row.max() - np.float32(16))
                total = np.log(np.exp((row - largest).astype(np.float64)).sum())
                scale = np.float32((largest - least) / np.float32(65535))
                codes = np.zeros(width, dtype="<u2")
                codes[:4] = np.array([scale, least - largest - total], dtype="<f4").view("<u2")
                codes[4 : 4 + vocabulary] = np.where(row > least, np.rint((row - least) / scale), 0)
                file.write(codes.tobytes())
    return path


def tensors(path: Path, held: dict[str, tuple[str, np.ndarray]]) -> Path:
    """A safetensors file, by the description of its format."""
    header, place, body = {}, 0, b""
    for name, (dtype, array) in held.items():
        raw = array.tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [place, place + len(raw)]}
        place, body = place + len(raw), body + raw
    written = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(written)) + written + body)
    return path
