"""A short text through a model's own forward, whole and chunk after chunk: what a descent is held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from drift.errors import UnsupportedModelError
from drift.running.descent.caches import TapeCache, joined_heads, states_of
from drift.running.descent.decoders import blocks_of, cache_argument, new_cache, takes, text_config
from drift.running.descent.streams import Streams
from drift.running.model.numerics import rung_of
from drift.running.model.weights import weights_of

__all__ = [
    "Chunked",
    "Seen",
    "Shapes",
    "Verdict",
    "apart",
    "chunked_inference",
    "goes_on_singly",
    "logits_in_chunks",
    "named_states",
    "own_pass",
    "parting",
    "trial_chunk",
    "trial_text",
]

#: Tokens of the short text, and of its chunks: two whole ones, and one that is not.
TEXT, CHUNK = 40, 16
_FEW = 8  # tokens before those that are tried one by one
_SPARE = 8  # positions of a short context that are left to models that do not begin to count at 0
#: A token has parted where it is off by more than this many square roots of the unit roundoff, relative to its norm:
#: many times what rounding leaves, and far less than another function does.
_PARTED = 4.0
#: Share of the tokens that may: where experts are chosen, rounding can choose another one.
_CHOSEN_OTHERWISE = 1 / 16

#: What architectures call that which they hand on from a text to its continuation.
_CACHES = ("past_key_values", "cache_params", "mems", "past_buckets_states", "state", "cache")

Seen = dict[str, Tensor]
"""What a pass showed, by the name of its place: tensors [..., token, feature], and of states [1, number]."""


class Chunked(Enum):
    """What a model's own forward makes of a text in chunks that share a cache.

    SINGLE where it goes on from what it carries by single tokens, and parts or fails in chunks of more; BROKEN where
    one pass fails already.
    """

    AGREES = "agrees"
    PARTS = "parts"
    SINGLE = "single"
    FAILS = "fails"
    BROKEN = "broken"
    UNTRIED = "untried"


@dataclass(frozen=True)
class Verdict:
    """What became of chunked inference by the model's own forward, and where and by how much it parted, or failed."""

    chunked: Chunked
    detail: str = ""


def trial_text(model: PreTrainedModel) -> Tensor:
    """Token ids [token] that stand for text and nothing else, the same for every model of a vocabulary."""
    config = text_config(model)
    table = getattr(model.get_input_embeddings(), "weight", None)  # there are models with several tables
    sizes = (getattr(config, "vocab_size", None), None if table is None else table.shape[0])
    vocabulary = min((int(size) for size in sizes if size is not None), default=TEXT)
    special = {token for each in (model.config, config) for token in _special(each.to_dict())}
    drawn = np.random.default_rng(0).integers(0, vocabulary, size=64 * TEXT).tolist()
    context = getattr(config, "max_position_embeddings", None) or 0
    context = TEXT + _SPARE if int(context) <= 0 else context
    ids = [token for token in drawn if token not in special][: max(1, min(TEXT, int(context) - _SPARE))]
    return torch.tensor(ids, dtype=torch.int64, device=weights_of(model).device)


def trial_chunk(tokens: int) -> int:
    """Tokens of the chunks of a short text of some tokens: more than two chunks, wherever it has three tokens."""
    return max(1, min(CHUNK, tokens * CHUNK // TEXT))


def _special(config: Mapping[str, Any]) -> Iterator[int]:
    """Token ids that a configuration gives a meaning of their own."""
    for name, value in config.items():
        if "token" in name and name.endswith(("_id", "_ids", "_index")):
            yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int))


@dataclass
class Shapes:
    """What was seen of how blocks are called.

    Attributes
    ----------
    outputs, attentions : set of int
        Lengths of the tuples that blocks put out, 0 where that is no tuple, and how often they attend.
    streams : set of Streams
        How their states lie in memory.
    """

    outputs: set[int] = field(default_factory=set)
    attentions: set[int] = field(default_factory=set)
    streams: set[Streams] = field(default_factory=set)


@dataclass
class _Eyes:
    """Hooks that note what the blocks of one pass over a text are given, put out and cache.

    ``tokens`` are those of the chunk that is on its way.
    """

    cache: TapeCache
    seen: dict[str, list[Tensor]] = field(default_factory=dict)
    held: Seen = field(default_factory=dict)
    shapes: Shapes = field(default_factory=Shapes)
    tokens: int = 0
    _streams: Streams = field(default_factory=Streams)

    @contextmanager
    def open(self, model: PreTrainedModel) -> Iterator[None]:
        blocks = blocks_of(model)
        with ExitStack() as stack:
            for handle in (
                blocks[0].register_forward_pre_hook(self._before, with_kwargs=True),
                *(block.register_forward_hook(self._after(i + 1)) for i, block in enumerate(blocks)),
            ):
                stack.callback(handle.remove)
            yield

    def note(self, place: str, value: Any) -> None:
        if isinstance(value, Tensor):
            self.seen.setdefault(place, []).append(value[0].clone())

    def _before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs.get("hidden_states")
        self._streams = Streams.of(type(module).__name__, states, self.tokens)
        self.shapes.streams.add(self._streams)
        self.note("the embeddings", self._streams.joined(states))

    def _after(self, block: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            appended, self.cache.appended = self.cache.appended, []
            self.shapes.attentions.add(len(appended))
            if appended:
                keys, values = joined_heads(appended)
                self.note(f"the keys of block {block}", keys)
                self.note(f"the values of block {block}", values)
            self.held |= named_states(block, [state[0] for state in states_of(self.cache.layers[block - 1])])
            self.shapes.outputs.add(len(output) if isinstance(output, tuple) else 0)
            states = output[0] if isinstance(output, tuple) else output
            self.note(f"block {block}", self._streams.joined(states) if self._streams.fits(states) else states)

        return hook


def named_states(block: int, states: Sequence[Tensor]) -> Seen:
    """What a block, from 1, holds of convolutions and recurrences [...], under its name: [1, number]."""
    return {f"state {i} of block {block}": state.reshape(1, -1).clone() for i, state in enumerate(states, 1)}


def own_pass(
    model: PreTrainedModel, ids: Tensor, sizes: Sequence[int], first: Sequence[int] | None = None
) -> tuple[Seen, Shapes]:
    """Run ids [token] through a model's own forward, in chunks of some sizes that share a cache.

    Parameters
    ----------
    model, ids
        A model whose blocks can be found, and the text.
    sizes : sequence of int
        Tokens of each chunk.
    first : sequence of int, optional
        Position id of each chunk's first token; without, the model counts by itself.

    Returns
    -------
    seen : dict of Tensor
        Hidden states, keys, values and logits, chunks joined; states of convolutions and recurrences after the last.
    shapes : Shapes
        How blocks were called.
    """
    eyes = _Eyes(new_cache(model, TapeCache))
    with weights_of(model).whole(), eyes.open(model):
        for place, part in enumerate(ids.split(list(sizes))):
            options: dict[str, Any] = {}
            eyes.tokens = len(part)
            if first is not None:
                options["position_ids"] = torch.arange(first[place], first[place] + len(part), device=ids.device)[None]
            options[cache_argument(model)] = eyes.cache
            out = model(input_ids=part[None], use_cache=True, **options)
            eyes.note("the logits", out.logits)
    return {place: torch.cat(parts, dim=-2) for place, parts in eyes.seen.items()} | eyes.held, eyes.shapes


def chunked_inference(model: PreTrainedModel) -> Verdict:
    """Try a model's own forward on a short text, whole and in chunks, with whatever cache it makes for itself."""
    weights = weights_of(model)
    if not weights.streamed and any(p.is_meta for p in model.parameters()):
        return Verdict(Chunked.UNTRIED)
    cache = next((name for name in _CACHES if takes(model, name)), None)
    if cache is None:
        return Verdict(Chunked.FAILS, "its forward takes no cache")
    ids, roundoff = trial_text(model), rung_of(model.dtype).unit_roundoff
    size = trial_chunk(len(ids))
    failing = Chunked.BROKEN
    with weights.whole():
        try:
            whole = {"the logits": model(input_ids=ids[None], use_cache=True).logits[0]}
            failing = Chunked.FAILS
            return parting(_in_parts(model, cache, ids.split(size)), whole, roundoff)
        except Exception as error:  # whatever the code of some architecture raises is an answer
            told = str(error) if isinstance(error, UnsupportedModelError) else f"{type(error).__name__}: {error}"
            verdict = Verdict(failing, told)
        if failing is Chunked.FAILS:
            with suppress(Exception):
                singly = parting(_in_parts(model, cache, [ids[:size], *ids[size:].split(1)]), whole, roundoff)
                return Verdict(Chunked.SINGLE, verdict.detail) if singly.chunked is Chunked.AGREES else verdict
    return verdict


def _in_parts(model: PreTrainedModel, cache: str, parts: Sequence[Tensor]) -> Seen:
    """Logits of parts [token] of a text, each of which goes on from what the one before left in ``cache``."""
    logits, given = [], dict[str, Any]()
    for part in parts:
        out = model(input_ids=part[None], use_cache=True, **given)
        logits.append(out.logits[0])
        if getattr(out, cache, None) is None:
            raise UnsupportedModelError(f"it takes {cache} and puts out none")
        given = {cache: getattr(out, cache)}
    return {"the logits": torch.cat(logits)}


def logits_in_chunks(model: PreTrainedModel, ids: Tensor, sizes: Sequence[int]) -> Tensor:
    """Logits of ids [token] in chunks of some sizes, with whatever cache the model's own forward makes for itself."""
    with weights_of(model).whole():
        return _in_parts(model, cache_argument(model), ids.split(list(sizes)))["the logits"]


def goes_on_singly(model: PreTrainedModel, ids: Tensor, whole: Seen) -> bool:
    """Whether a model's own forward goes on token by token as in its one pass ``whole`` over ids [token].

    It begins with a few at once: states that architectures keep in their modules are only then begun anew.
    """
    first = min(_FEW, len(ids))
    try:
        seen, _ = own_pass(model, ids, [first, *[1] * (len(ids) - first)])
    except Exception:  # whatever the code of some architecture raises is an answer
        return False
    place = "the logits"
    verdict = parting({place: seen[place]}, {place: whole[place]}, rung_of(model.dtype).unit_roundoff)
    return verdict.chunked is Chunked.AGREES


def parting(chunked: Seen, whole: Seen, unit_roundoff: float) -> Verdict:
    """Say whether what a model makes of a text in chunks is, to within rounding, what it makes of it as a whole."""
    allowed = _PARTED * unit_roundoff**0.5
    for place, want in whole.items():
        got = chunked.get(place)
        if got is None or got.shape != want.shape:
            return Verdict(Chunked.PARTS, f"{place} have another shape in chunks")
        error = (got.to(torch.float64) - want.to(torch.float64)).movedim(-2, 0).flatten(1).norm(dim=-1)
        relative = error / want.to(torch.float64).movedim(-2, 0).flatten(1).norm(dim=-1).clamp_min(1e-300)
        # What is no number has parted, too.
        if float((~(relative <= allowed)).double().mean()) > _CHOSEN_OTHERWISE:
            return Verdict(Chunked.PARTS, f"at {place}, by {float(relative.max()):.2g} of its norm")
    return Verdict(Chunked.AGREES)


def apart(got: Tensor | None, want: Tensor) -> float:
    """Relative L2 distance of two tensors; 0 only if they are the same bits, infinite if they cannot be compared."""
    if got is None or got.shape != want.shape or got.dtype is not want.dtype:
        return float("inf")
    if torch.equal(got, want):
        return 0.0
    wide = want.to(torch.float64)
    distance = float((got.to(torch.float64) - wide).norm() / wide.norm().clamp_min(1e-300))
    return distance if distance > 0 else float("inf")  # NaN, or bits that differ by the sign of a zero
