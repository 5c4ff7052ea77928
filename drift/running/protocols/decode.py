"""`decode`: the text is folded, then tokens are generated one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from drift._bounds import MOST_STEPS
from drift.running.protocols.base import Chunk, Variation

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Decode(Variation):
    """A continuation is generated after the fold; every generated token is a chain step.

    Full attention prefills the text in one pass and generates the continuation, token by token. The fold prefills the
    text in chunks and is then given the same tokens, so drift compares like with like at every token. The variable
    ``token_agreement`` says where the fold would have generated the same token, given the same random numbers: up to
    the first step where it would not, a fold that generates by itself has the same text, so that step is where the
    two continuations part.

    Attributes
    ----------
    tokens : int
        Generated tokens.
    temperature : float
        0 takes the most likely token; above, tokens are sampled (by the Gumbel-max trick, with the same noise in both
        lanes).
    seed : int
        Which random numbers.
    """

    name: ClassVar[str] = "decode"
    summary: ClassVar[str] = "tokens are then generated after the text, and compared one by one"

    tokens: int = 32
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.tokens >= 1, "tokens must be at least 1")
        self._require(self.tokens <= MOST_STEPS, f"tokens must be at most {MOST_STEPS}")
        self._require(
            self.protocol.measures_what_it_carries,
            f"{self.protocol.label} does not carry on what it measures; name the protocol whose cache is decoded from",
        )

    def continuation(self) -> int:
        """All generated tokens but the last, which is never fed back."""
        return self.tokens - 1

    def starts(self, tokens: int, chunk_size: int) -> tuple[int, ...]:
        """The last token of the text, which decides the first generated one, and all generated tokens but the last."""
        self._check_size(tokens - self.continuation(), chunk_size)
        return tuple(range(tokens - self.tokens, tokens))

    def chunks(self, tokens: int, chunk_size: int) -> tuple[Chunk, ...]:
        """The text as the protocol inside cuts it, then one token at a time."""
        text = tokens - self.continuation()
        chunks = list(self.protocol.chunks(text, chunk_size))
        seen = sum(len(c) for c in chunks)
        slots = 0
        for chunk in chunks:
            slots = self.slots(chunk.step, slots + len(chunk), len(chunk))
        for start in range(text, tokens):
            step = chunks[-1].step + 1
            chunks.append(self.following(start, start + 1, step, seen, slots))
            seen, slots = seen + 1, self.slots(step, slots + 1, 1)
        return tuple(chunks)

    def reference_chunks(self, tokens: int) -> tuple[Chunk, ...]:
        """The text in one pass, then one token at a time."""
        text = tokens - self.continuation()
        return (Chunk(0, text), *(Chunk(i, i + 1, (), i, 1 + i - text) for i in range(text, tokens)))

    def choose(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The tokens that these logits generate: int64 [row].

        Parameters
        ----------
        logits : Tensor
            [row, vocabulary].
        rows : Tensor
            int64 [row]: their places in the text, which with the seed say which random numbers.
        """
        import numpy as np
        import torch

        if self.temperature == 0:
            return logits.argmax(-1)
        scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
        for row, place in enumerate(rows.tolist()):
            gumbel = np.random.default_rng([self.seed, place]).gumbel(size=scaled.shape[-1])
            scaled[row] += torch.from_numpy(gumbel).to(device=scaled.device, dtype=scaled.dtype)
        return scaled.argmax(-1)
