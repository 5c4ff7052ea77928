"""Which models and readings a descent takes on: no model that its own forward does not bear out.

The classes of :data:`drift.running.descent.decoders.TESTED` are held against a plain loop by this project's tests. Any
other model is held against its own forward before its first descent: a short text, whole, in chunks, and in chunks that
begin at position 0, must give the same hidden states, keys, values and logits.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from drift.errors import UnsupportedModelError
from drift.running.descent.caches import keeps_slots, keeps_states
from drift.running.descent.decoders import (
    Driving,
    decoder_of,
    driving_of,
    keeps_more,
    new_cache,
    own_cache,
    remember,
    remembered,
    structural_fault,
    takes,
    tested,
    text_config,
)
from drift.running.descent.descending import descend
from drift.running.descent.lanes import Lane, Limits, Recorder
from drift.running.descent.taps import Taps, attention_as, attention_of
from drift.running.descent.trials import (
    Chunked,
    Seen,
    Verdict,
    apart,
    chunked_inference,
    goes_on_singly,
    logits_in_chunks,
    named_states,
    own_pass,
    parting,
    trial_chunk,
    trial_text,
)
from drift.running.model.numerics import default_half_matmul, numerics, rung_of
from drift.running.model.weights import weights_of
from drift.running.noise import EmbeddingNoise
from drift.running.protocols import parse
from drift.running.protocols.base import Chunk, Protocol
from drift.shown import clipped

__all__ = ["admit", "check_reading", "check_supported"]

#: On a GPU, kernels may round differently where a cache lies differently in memory. What that leaves may be this many
#: times the rounding floor at the same place, and no more.
_FLOORS = 4.0


def check_supported(model: object) -> None:
    """Refuse a model that the descent cannot drive, as far as that can be told without running it.

    Raises
    ------
    UnsupportedModelError
        Saying what is wrong with it, whether chunked inference is possible with it at all, and what would work.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{name} is not a transformers model (PreTrainedModel). Load one with drift.load_model or "
            "AutoModelForCausalLM; what other engines compute is compared by drift.diagnose and drift.logits."
        )
    if model.get_output_embeddings() is None:
        raise UnsupportedModelError(
            f"{name} has no language-model head: load it with AutoModelForCausalLM. A model of several modalities is "
            "taken whole, not its language model alone."
        )
    fault = structural_fault(model)
    if fault is not None:
        with _computing(model):
            verdict = chunked_inference(model)
        raise _refused(model, fault, verdict)


def admit(model: object) -> None:
    """Refuse a model that the descent cannot drive, and one that it would drive wrongly.

    A model whose class is not on the tested list is run on a short text, once for each precision that it is in.

    Raises
    ------
    UnsupportedModelError
        Saying what is wrong with it or where the descent and its own forward parted, whether chunked inference is
        possible with it at all, and what would work.
    """
    check_supported(model)
    assert isinstance(model, PreTrainedModel)
    if driving_of(model).dtype is None and not tested(model):
        with _computing(model):
            remember(model, _looked_at(model))


def check_reading(model: PreTrainedModel, protocol: Protocol, chunks: Sequence[Chunk]) -> None:
    """Refuse a protocol that would not do to a model's cache what it says, or that the model would not listen to.

    Parameters
    ----------
    model : PreTrainedModel
        A model that was admitted.
    protocol : Protocol
        Bound to its tokenizer.
    chunks : sequence of Chunk
        Its passes.

    Raises
    ------
    UnsupportedModelError
        Saying what is wrong, and which protocols would work.
    """
    name = type(model).__name__
    _check_states(model, protocol, chunks)
    edits = protocol.carries or protocol.takes_full_cache or any(c.alone or not c.kept for c in chunks)
    for index, layer in enumerate(DynamicCache(config=text_config(model)).layers if edits else ()):
        if keeps_more(layer):
            raise UnsupportedModelError(
                f"{name}: layer {index} keeps more than keys and values ({type(layer).__name__}), such as the keys of "
                f"a sparse index or of compressed stretches, which {protocol.label} would leave as they are. Chunked "
                "inference is possible with it: protocols that only append work (append, restart, reprime)."
            )
    if not driving_of(model).positions:
        _check_positions(name, protocol, chunks)
    asked = attention_of(protocol)
    if driving_of(model).dtype is not None and asked not in (None, text_config(model)._attn_implementation):
        with attention_as(model, asked), _computing(model):
            _looked_at(model)


def _check_states(model: PreTrainedModel, protocol: Protocol, chunks: Sequence[Chunk]) -> None:
    """Refuse what cannot be done with states of convolutions and recurrences, and edits of a cache without slots."""
    layers = DynamicCache(config=text_config(model)).layers
    index = next((index for index, layer in enumerate(layers) if keeps_states(layer)), None)
    if index is None:
        return
    name, kind = type(model).__name__, type(layers[index]).__name__
    if any(chunk.alone for chunk in chunks):
        raise UnsupportedModelError(
            f"{name}: layer {index} carries states ({kind}), and those of chunks that were prefilled alone cannot be "
            f"put together as keys and values can: {protocol.label} has no cache to go on from. Chunked inference is "
            "possible with it: protocols that go on from chunk to chunk work (append, restart, reprime)."
        )
    if protocol.carries and not protocol.carries_states and not any(keeps_slots(layer) for layer in layers):
        raise UnsupportedModelError(
            f"{name} keeps no keys and values, which are what {protocol.label} changes; its states are not. Chunked "
            "inference is possible with it: protocols that only go on work (append, reprime)."
        )


def _check_positions(name: str, protocol: Protocol, chunks: Sequence[Chunk]) -> None:
    """Refuse passes at other positions than those that a model counts by itself, from what its cache holds."""
    held = 0
    for chunk in chunks:
        counted = 0 if chunk.alone else held
        if chunk.first_position != counted:
            raise UnsupportedModelError(
                f"{name} does not listen to position ids: it counts from what its cache holds, or not at all. "
                f"{protocol.label} would have the chunk of step {chunk.step} begin at position {chunk.first_position}, "
                f"and it would go on from {counted} all the same. Chunked inference is possible with it: protocols "
                "whose positions run on as the cache grows work (append, reprime)."
            )
        if chunk.kept:
            held = protocol.slots(chunk.step, held + len(chunk), len(chunk))


@contextmanager
def _computing(model: PreTrainedModel) -> Iterator[None]:
    """Switches as a descent has them, the model in evaluation mode, and quiet."""
    device, computed = str(weights_of(model).device), rung_of(model.dtype)
    half = computed.torch_dtype in ("bfloat16", "float16")
    matmul = default_half_matmul(device, computed.name) if half else "native"
    training = model.training
    model.eval()
    try:
        with warnings.catch_warnings(), numerics(computed, device, matmul):
            warnings.simplefilter("ignore")
            yield
    finally:
        model.train(training)


def _refused(model: PreTrainedModel, fault: str, verdict: Verdict) -> UnsupportedModelError:
    """The refusal: the fact, whether chunked inference is possible at all, and what would work."""
    version = importlib.metadata.version("transformers")
    # What fails in one precision may work in another: torch has not every operation in all of them.
    precision = "" if model.dtype is torch.float32 else f" in {rung_of(model.dtype).name}"
    if verdict.chunked is Chunked.AGREES:
        possible = (
            "Chunked inference is possible with it: its own forward, chunk after chunk, gives what it gives in one "
            "pass."
        )
    elif verdict.chunked is Chunked.PARTS:
        possible = (
            f"Chunked inference is not possible with it in transformers {version}: chunk after chunk, its own forward "
            f"parts from its own single pass ({verdict.detail})."
        )
    elif verdict.chunked is Chunked.SINGLE:
        possible = (
            f"Chunked inference is not possible with it in transformers {version}: its code goes on from what it "
            "carries by single tokens only. Token by token its own forward gives what it gives in one pass; given a "
            f"chunk, it does not go on from the chunk before ({clipped(verdict.detail)})."
        )
    elif verdict.chunked is Chunked.FAILS:
        possible = (
            f"Chunked inference is not possible with it{precision} in transformers {version}: its own forward does not "
            f"go on from a chunk to the next ({clipped(verdict.detail)})."
        )
    elif verdict.chunked is Chunked.BROKEN:
        possible = (
            f"Chunked inference is not possible with it{precision} in transformers {version}: with a cache, its own "
            f"forward fails on one pass over a text ({clipped(verdict.detail)})."
        )
    else:
        possible = "Whether chunked inference is possible with it was not tried: its weights are not there."
    instead = (
        "Run both passes yourself: their logits are compared by python -m drift.logits, dumps of them by python -m "
        "drift.diagnose."
        if verdict.chunked is Chunked.AGREES
        else "There is no fold of it to measure; docs/models.md lists the architectures that have one."
    )
    return UnsupportedModelError(f"{fault} {possible} {instead}")


class _Everything(Recorder):
    """Keeps all that a descent shows, lane by lane, under the names of :data:`trials.Seen`."""

    def __init__(self, lanes: int) -> None:
        self.lanes: list[Seen] = [{} for _ in range(lanes)]

    def hidden(self, layer: int, kind: str, states: Sequence[Tensor]) -> None:
        for seen, state in zip(self.lanes, states, strict=True):
            seen[f"block {layer}" if layer else "the embeddings"] = state.clone()

    def cache(self, block: int, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        for seen, key, value in zip(self.lanes if keys else (), keys, values, strict=True):
            seen[f"the keys of block {block}"] = key.clone()
            seen[f"the values of block {block}"] = value.clone()

    def states(
        self, lane: int, block: int, tokens: int, convolved: Sequence[Tensor], recurrent: Sequence[Tensor]
    ) -> None:
        self.lanes[lane] |= named_states(block, [*convolved, *recurrent])

    def logits(self, lane: int, rows: Tensor, logits: Tensor) -> None:
        before = self.lanes[lane].get("the logits", logits[:0])
        self.lanes[lane]["the logits"] = torch.cat([before, logits])


def _descended(model: PreTrainedModel, lanes: Sequence[Lane], limits: Limits | None = None) -> list[Seen]:
    everything = _Everything(len(lanes))
    descend(model, lanes, everything, limits=limits)
    return everything.lanes


def _looked_at(model: PreTrainedModel) -> Driving:
    """Hold the descent of a model against its own forward, and return what was found out of it."""
    name = type(model).__name__
    verdict = Verdict(Chunked.UNTRIED)
    before = remembered(model)
    try:
        ids = trial_text(model)
        chunks = [parse(reading).chunks(len(ids), size) for reading, size in _readings(len(ids))]
        whole, shapes = own_pass(model, ids, [len(ids)])
        folded, _ = own_pass(model, ids, [len(chunk) for chunk in chunks[1]])
        verdict = parting(folded, whole, rung_of(model.dtype).unit_roundoff)
        if verdict.chunked is not Chunked.AGREES:
            if goes_on_singly(model, ids, whole):
                verdict = replace(verdict, chunked=Chunked.SINGLE)
            raise UnsupportedModelError(f"{name} computes another function in chunks than in one pass.")
        sizes = [len(chunk) for chunk in chunks[1]]
        if own_cache(model) is not None and apart(folded["the logits"], logits_in_chunks(model, ids, sizes)):
            raise UnsupportedModelError(f"{name} keeps a cache of its own, of which drift's is not the like.")
        if len(shapes.outputs) != 1 or len(shapes.streams) != 1:
            raise UnsupportedModelError(
                f"{name}: its blocks put out different numbers of things ({sorted(shapes.outputs)}), or states of "
                "different shapes."
            )
        positions = takes(model, "position_ids") and takes(decoder_of(model), "position_ids")
        driving = Driving(
            plain=False,
            outputs=shapes.outputs.pop(),
            streams=shapes.streams.pop(),
            attentions=max(1, *shapes.attentions),
            positions=positions,
            token=int(ids[0]),
            outcome="bitwise",
            dtype=model.dtype,
        )
        remember(model, driving)
        driving = replace(driving, origin=_origin(model, ids))
        remember(model, driving)
        return _borne_out(model, ids, chunks, [whole, folded], driving)
    except Exception as error:  # whatever the code of some architecture raises is a reason not to take it on
        if verdict.chunked is Chunked.UNTRIED:
            verdict = chunked_inference(model)
        fault = (
            str(error)
            if isinstance(error, UnsupportedModelError)
            else (f"{name} cannot be driven layer by layer ({type(error).__name__}: {clipped(str(error))}).")
        )
        raise _refused(model, fault, verdict) from error
    finally:
        remember(model, before)


def _readings(tokens: int) -> list[tuple[str, int]]:
    """The passes that are tried: whole, in chunks, and in chunks that begin at position 0."""
    size = trial_chunk(tokens)
    return [("append", tokens), ("append", size), ("restart", size)]


def _origin(model: PreTrainedModel, ids: Tensor) -> int:
    """Position id that a model gives the first token where it counts by itself."""
    if not driving_of(model).positions:
        return 0
    taps, config = Taps(model), text_config(model)
    with weights_of(model).embedding():
        own, _ = taps.run(new_cache(model), ids[None], None)
        # Models of the RoBERTa kind begin to count behind the padding token's id.
        for origin in dict.fromkeys((0, (getattr(config, "pad_token_id", None) or 0) + 1)):
            said, _ = taps.run(new_cache(model), ids[None], origin)
            if torch.equal(own, said):
                return origin
    return 0


def _borne_out(
    model: PreTrainedModel, ids: Tensor, chunks: Sequence[tuple[Chunk, ...]], own: list[Seen], driving: Driving
) -> Driving:
    """Refuse a model whose descent parts from its own passes: whole, in chunks, and in chunks begun at position 0."""
    name = type(model).__name__
    if driving.positions:
        first = [chunk.first_position + driving.origin for chunk in chunks[2]]
        own = [*own, own_pass(model, ids, [len(chunk) for chunk in chunks[2]], first)[0]]
    lanes = [Lane(ids, cut) for cut in chunks[: len(own)]]
    got = _descended(model, lanes)
    ways = ("in one pass", "in chunks", "in chunks that begin at position 0")
    allowed = dict.fromkeys(own[0], 0.0)
    if ids.is_cuda and any(apart(g.get(place), s[place]) for g, s in zip(got, own, strict=True) for place in s):
        driving, allowed = replace(driving, outcome="floor"), _floors(model, ids, got[0])
    for way, seen, want in zip(ways, got, own, strict=False):
        for place, value in want.items():
            if not apart(seen.get(place), value) <= allowed[place]:
                raise UnsupportedModelError(
                    f"{name}: driven layer by layer, it parts from its own forward {way} at {place}, by "
                    f"{apart(seen.get(place), value):.2g} of its norm."
                )
    # Arguments of blocks that are made anew for every block must be those that were kept.
    again = _descended(model, lanes[1:2], Limits(call_bytes=0))[0]
    if any(apart(again.get(place), value) for place, value in got[1].items()):
        raise UnsupportedModelError(f"{name}: its blocks hand each other more than what they put out.")
    if driving.positions and not any(apart(got[2][place], got[1][place]) for place in got[1]):
        driving = replace(driving, positions=False)
    return driving


def _floors(model: PreTrainedModel, ids: Tensor, whole: Seen) -> dict[str, float]:
    """How far from the descent's own pass each place may be: some rounding floors there."""
    noise = EmbeddingNoise(rung_of(model.dtype).unit_roundoff, (1,))
    (disturbed,) = _descended(model, [Lane(ids, (Chunk(0, len(ids)),), noise=noise)])
    return {place: _FLOORS * apart(disturbed[place], value) for place, value in whole.items()}
