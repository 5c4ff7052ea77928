"""The final norm and the logits, in pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from drift.running.descent.blocks import DescendingLane
from drift.running.descent.decoders import blocks_of, decoder_of, driving_of, takes
from drift.running.descent.lanes import Recorder
from drift.running.descent.taps import replaced_forwards
from drift.running.limits import LOGIT_ROWS
from drift.running.model.weights import weights_of

__all__ = ["PieceStream", "compare_logits", "lane_pieces", "open_head"]

Head = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


@contextmanager
def open_head(model: PreTrainedModel) -> Iterator[Head]:
    """Yield a function from the last block's output to (states after the final norm, logits).

    It is the model's own ``forward`` with the blocks bypassed: the final norm, the output embedding and whatever the
    model does to logits (scaling, soft capping) are computed by transformers. Its second argument names the rows whose
    logits are wanted; None takes all.
    """
    blocks, driving, weights = blocks_of(model), driving_of(model), weights_of(model)
    handed: list[Tensor] = []
    normed: list[Tensor] = []
    selects = takes(model, "logits_to_keep")

    def bypass(*args: Any, **kwargs: Any) -> Any:
        states = driving.streams.parted(handed[0])
        return (states, *(None,) * (driving.outputs - 1)) if driving.outputs else states

    def note(module: torch.nn.Module, args: Any, output: Any) -> None:
        normed.append(output.last_hidden_state)

    def head(states: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        handed[:] = [states]
        normed.clear()
        options: dict[str, Any] = {} if keep is None or not selects else {"logits_to_keep": keep.to(states.device)}
        # States are handed in as embeddings, too: nothing need be looked up for blocks that are bypassed.
        if driving.plain:
            options["inputs_embeds"] = states
        else:
            options["input_ids"] = torch.full(states.shape[:2], driving.token, device=states.device)
        logits = model(use_cache=False, **options).logits[0]
        handed.clear()
        return normed.pop()[0], logits if keep is None or selects else logits[keep.to(states.device)]

    handle = decoder_of(model).register_forward_hook(note)
    try:
        looked_up = nullcontext() if driving.plain else weights.embedding()
        with replaced_forwards(blocks, [bypass] * len(blocks)), weights.head(), looked_up:
            yield head
    finally:
        handle.remove()


@dataclass
class _Piece:
    """States after the final norm of some tokens, and logits of those of them that are sampled."""

    rows: Tensor
    states: Tensor
    logit_rows: Tensor
    logits: Tensor

    def split(self, end: int) -> tuple[_Piece, _Piece]:
        """The piece up to and including token ``end``, and the rest."""
        i, j = int((self.rows <= end).sum()), int((self.logit_rows <= end).sum())
        return (
            _Piece(self.rows[:i], self.states[:i], self.logit_rows[:j], self.logits[:j]),
            _Piece(self.rows[i:], self.states[i:], self.logit_rows[j:], self.logits[j:]),
        )

    @classmethod
    def join(cls, pieces: Sequence[_Piece]) -> _Piece:
        """Consecutive pieces as one."""
        if len(pieces) == 1:
            return pieces[0]
        return cls(*(torch.cat([getattr(p, f.name) for p in pieces]) for f in fields(cls)))

    def record(self, lane: int, recorder: Recorder) -> None:
        """Hand what there is to the recorder."""
        if len(self.rows):
            recorder.final(lane, self.rows, self.states)
        if len(self.logit_rows):
            recorder.logits(lane, self.logit_rows, self.logits)


def lane_pieces(lane: DescendingLane, head: Head, stride: int, logit_rows: int) -> Iterator[_Piece]:
    """Yield a lane's text tokens chunk by chunk, chunks longer than `LOGIT_ROWS` in slices of ``logit_rows``.

    Where logits are only sampled, the sampled rows of several chunks share one product with the output embedding: a
    large vocabulary is then read once for all of them, and not once a chunk.
    """
    if stride > 1:
        rows, text = torch.arange(len(lane.lane.tokens)), lane.text(lane.states)[None]
        size = min(LOGIT_ROWS, logit_rows * stride)
        for part, inputs in zip(rows.split(size), text.split(size, dim=1), strict=True):
            sampled = part % stride == 0
            with lane.scope():
                final, logits = head(inputs, sampled.nonzero()[:, 0])
            yield _Piece(part, final, part[sampled], logits)
        return
    for chunk, states in zip(lane.lane.chunks, lane.states, strict=True):
        if not chunk.measured:
            continue
        rows = torch.arange(chunk.start - len(chunk.prefix), chunk.stop)
        size = LOGIT_ROWS if len(rows) <= LOGIT_ROWS else min(LOGIT_ROWS, logit_rows)
        for part, inputs in zip(rows.split(size), states.split(size, dim=1), strict=True):
            with lane.scope():
                final, logits = head(inputs, None)
            text = part >= chunk.start
            if not bool(text.all()):
                part, keep = part[text], text.to(final.device)
                final, logits = final[keep], logits[keep]
            yield _Piece(part, final, part, logits)


class PieceStream:
    """A lane's pieces, to be taken up to a token."""

    def __init__(self, pieces: Iterator[_Piece]) -> None:
        self.source = pieces
        self._waiting: deque[_Piece] = deque()

    def up_to(self, end: int) -> Iterator[_Piece]:
        """What there is up to and including token ``end``."""
        while True:
            piece = self._waiting.popleft() if self._waiting else next(self.source, None)
            if piece is None:
                return
            inside, rest = piece.split(end)
            yield inside
            if len(rest.rows):
                self._waiting.append(rest)
                return
            if int(piece.rows[-1]) == end:
                return


def compare_logits(pieces: Sequence[PieceStream], references: Sequence[int], recorder: Recorder) -> None:
    """Walk the lanes in step: a stretch of the first reference, of the others, then what the other lanes have in it."""
    leader, *others = references
    for stretch in pieces[leader].source:
        stretch.record(leader, recorder)
        end = int(stretch.rows[-1])
        for lane in others:
            _Piece.join(list(pieces[lane].up_to(end))).record(lane, recorder)
        for lane, each in enumerate(pieces):
            if lane not in references:
                for piece in each.up_to(end):
                    piece.record(lane, recorder)
