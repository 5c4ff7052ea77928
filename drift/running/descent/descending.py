"""Lanes that go down the network together, one layer at a time.

A lane is one way of running one text through the model: full attention, or a fold. All lanes descend together, so one
pass over the layers serves every fold, and only one layer's hidden states and one layer's cache are ever held.

This is the only module that touches the layer and cache interfaces of transformers. It re-implements no architecture:
the model's own ``forward`` is run with its layers tapped, which yields the arguments (masks, rotary tables, positions)
of every layer; the real layers are then called with them. The hidden states, keys, values and logits are bitwise those
of a plain ``model(chunk, past_key_values=cache)`` loop over the same chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from drift.running.descent.blocks import DescendingLane, run_block
from drift.running.descent.head import PieceStream, compare_logits, lane_pieces, open_head
from drift.running.descent.lanes import Lane, Limits, Recorder
from drift.running.descent.taps import blocks_of
from drift.running.model.weights import weights_of

__all__ = ["descend"]

"""Most rows of logits that are ever computed at once in one lane (for Gemma, one row in fp32 is 1 MB).

Up to this many rows a chunk's logits are bitwise those of a plain forward; a longer chunk's are computed in several
products with the output embedding, which may round differently from one.
"""


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
    depth = len(blocks_of(model))
    descending = [DescendingLane(lane, lane.model or model) for lane in lanes]
    models = {id(d.model): d.model for d in descending}
    allowed = limits.call_bytes
    for key, each in models.items():
        with weights_of(each).embedding():
            for d in descending:
                if id(d.model) == key:
                    with d.scope():
                        allowed -= d.tap(allowed)
    recorder.hidden(0, "embedding", [d.text(d.states) for d in descending])
    for index in range(depth):
        cached: dict[int, tuple[Tensor, Tensor, list[int]]] = {}
        for key, each in models.items():
            with weights_of(each).block(index):
                for lane, d in enumerate(descending):
                    if id(d.model) == key:
                        with d.scope():
                            cached[lane] = run_block(index, d, partial(recorder.cached, lane, index + 1))
        in_order = [cached[lane] for lane in range(len(descending))]
        recorder.cache(index + 1, [keys for keys, _, _ in in_order], [values for _, values, _ in in_order])
        recorder.cache_bytes(index + 1, [sizes for _, _, sizes in in_order])
        del in_order
        del cached
        recorder.hidden(index + 1, "block", [d.text(d.states) for d in descending])
        if on_block is not None:
            on_block(index + 1, depth)
    for d in descending:
        d.calls = None
    with ExitStack() as stack:
        heads = {key: stack.enter_context(open_head(each)) for key, each in models.items()}
        pieces = [PieceStream(lane_pieces(d, heads[id(d.model)], logit_stride, limits.logit_rows)) for d in descending]
        compare_logits(pieces, list(references), recorder)
