"""How much is held at once: what decides the memory of a descent, and what predicts it. No torch here."""

from __future__ import annotations

__all__ = ["COMPARED_AT_ONCE", "LOGIT_ROWS", "STATE_STEPS", "WIDENED_WEIGHTS"]

#: Most rows of logits that are ever computed at once in one lane (for Gemma, one row in fp32 is 1 MB). Up to this many
#: rows a chunk's logits are bitwise those of a plain forward; a longer chunk's are computed in several products with
#: the output embedding, which may round differently from one.
LOGIT_ROWS = 1024
#: Elements that measures handle at once: 1 MB in float64, so that what a comparison touches stays in the caches.
COMPARED_AT_ONCE = 1 << 17
#: Most 16-bit weights that are kept widened to float32: one layer's and the output embedding, enough for every chunk
#: of every lane to find its weights widened.
WIDENED_WEIGHTS = 16
#: Most chain steps whose recurrent states are compared with those of full attention, which one pass over the text up to
#: the end of each step leaves: their time grows with the square of the steps.
STATE_STEPS = 64
