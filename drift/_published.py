"""The largest fold that was published (KV-Fold, arXiv 2605.12471): what both wings hold theirs against."""

from __future__ import annotations

__all__ = ["CONTEXT", "HEADS", "HEAD_DIM", "HIDDEN", "INTERMEDIATE", "KV_HEADS", "LAYERS", "PARAMETERS", "TOKENS",
           "VOCABULARY"]  # fmt: skip

#: Tokens that were folded.
TOKENS = 131_072
#: Llama 3.1 8B, whose they were.
LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 32, 4096, 14336, 32, 8, 128
VOCABULARY, CONTEXT = 128_256, 131_072
PARAMETERS = 8_030_261_248
