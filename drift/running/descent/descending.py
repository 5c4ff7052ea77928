"""The way down: all lanes tapped, then taken through block after block, then through the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from drift.running.descent.blocks import Cached, DescendingLane, run_block
from drift.running.descent.decoders import blocks_of
from drift.running.descent.head import PieceStream, compare_logits, lane_pieces, open_head
from drift.running.descent.lanes import Lane, Limits, Recorder
from drift.running.model.weights import weights_of

__all__ = ["descend"]


def descend(
    model: PreTrainedModel,
    lanes: Sequence[Lane],
    recorder: Recorder,
    *,
    references: Sequence[int] = (0,),
    logit_stride: int = 1,
    limits: Limits | None = None,
    on_block: Callable[[int, int], None] | None = None,
) -> None:
    """Take all lanes down the network together.

    Parameters
    ----------
    model : PreTrainedModel
        A supported causal language model, in eval mode.
    lanes : sequence of Lane
        All hold the same text. A lane with a model of its own computes with that.
    recorder : Recorder
        Receives hidden states, keys, values and logits.
    references : sequence of int
        The lanes that others are compared with, in the order in which :meth:`Recorder.final` hears of them. The
        first one sets the stretches.
    logit_stride : int
        Logits are computed for every ``logit_stride``-th token of the text; 1 computes all.
    limits : Limits, optional
        What may be kept in memory.
    on_block : callable, optional
        Called with (blocks done, blocks) after every block.

    Raises
    ------
    UnsupportedModelError
        If the model turns out not to be one that can be driven layer by layer, or a protocol needs of it what it does
        not give.
    """
    limits = limits or Limits()
    descent = _Descent([DescendingLane(lane, lane.model or model) for lane in lanes])
    depth = len(blocks_of(model))
    descent.tap(limits.call_bytes)
    recorder.hidden(0, "embedding", descent.states())
    for index in range(depth):
        descent.block(index, recorder)
        recorder.hidden(index + 1, "block", descent.states())
        if on_block is not None:
            on_block(index + 1, depth)
    descent.head(list(references), logit_stride, limits.logit_rows, recorder)


class _Descent:
    """The lanes on their way down, each model's weights there for as long as a lane computes with them."""

    def __init__(self, lanes: Sequence[DescendingLane]) -> None:
        self._lanes = lanes
        self._models = {id(lane.model): lane.model for lane in lanes}

    def _lanes_of(self, key: int) -> Iterator[tuple[int, DescendingLane]]:
        """The lanes of one model, with their places."""
        return ((place, lane) for place, lane in enumerate(self._lanes) if id(lane.model) == key)

    def states(self) -> list[Tensor]:
        """Hidden states [token, feature] of the text, lane by lane."""
        return [lane.text(lane.states) for lane in self._lanes]

    def tap(self, allowed: float) -> None:
        """Take all lanes to their first block, and keep the calls of those that ``allowed`` bytes hold."""
        for key, model in self._models.items():
            with weights_of(model).embedding():
                for _, lane in self._lanes_of(key):
                    with lane.scope():
                        allowed -= lane.tap(allowed)

    def block(self, index: int, recorder: Recorder) -> None:
        """Take all lanes through one block, and tell the recorder what they cached."""
        cached: dict[int, Cached] = {}
        sources = {lane.lane.source for lane in self._lanes}
        for key, model in self._models.items():
            with weights_of(model).block(index):
                for place, lane in self._lanes_of(key):
                    with lane.scope():
                        cached[place] = run_block(
                            index,
                            lane,
                            partial(recorder.cached, place, index + 1),
                            None if lane.lane.source is None else cached[lane.lane.source],
                            partial(recorder.states, place, index + 1),
                            place in sources,
                        )
        found = [cached[place] for place in range(len(self._lanes))]
        pairs = [one.pair for one in found if one.pair is not None]
        recorder.cache(index + 1, [keys for keys, _ in pairs], [values for _, values in pairs])
        recorder.cache_bytes(index + 1, [one.sizes for one in found])

    def head(self, references: Sequence[int], stride: int, rows: int, recorder: Recorder) -> None:
        """Take all lanes through the final norm and the output embedding, in step."""
        for lane in self._lanes:
            lane.forget_calls()
        with ExitStack() as stack:
            heads = {key: stack.enter_context(open_head(model)) for key, model in self._models.items()}
            pieces = [PieceStream(lane_pieces(lane, heads[id(lane.model)], stride, rows)) for lane in self._lanes]
            compare_logits(pieces, references, recorder)
