"""A short text through a model's own forward, whole and chunk after chunk: what a descent is held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from drift.running.descent.caches import TapeCache, states_of
from drift.running.descent.decoders import blocks_of, cache_argument, new_cache, takes, text_config
from drift.running.model.numerics import rung_of
from drift.running.model.weights import weights_of

__all__ = ["CHUNK", "Chunked", "Seen", "Verdict", "apart", "chunked_inference", "own_pass", "parting", "trial_text"]

#: Tokens of the short text, and of its chunks: two whole ones, and one that is not.
TEXT, CHUNK = 40, 16
_FEW = 8  # tokens that are tried one by one, and as many before them
_SPARE = 8  # positions of a short context that are left to models that do not begin to count at 0
#: A token has parted where it is off by more than this many square roots of the unit roundoff, relative to its norm:
#: many times what rounding leaves, and far less than another function does.
_PARTED = 4.0
#: Share of the tokens that may: where experts are chosen, rounding can choose another one.
_CHOSEN_OTHERWISE = 1 / 16

#: What architectures call that which they hand on from a text to its continuation.
_CACHES = ("past_key_values", "cache_params", "mems", "past_buckets_states", "state")

Seen = dict[str, Tensor]
"""What a pass showed, by the name of its place: tensors [..., token, feature], and of states [1, number]."""


class Chunked(Enum):
    """What a model's own forward makes of a text in chunks that share a cache.

    SINGLE where it goes on from what it carries by single tokens, and parts in chunks of more; BROKEN where one pass
    fails already.
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
    vocabulary = min(int(model.get_input_embeddings().weight.shape[0]), int(getattr(config, "vocab_size", 1 << 62)))
    special = {token for each in (model.config, config) for token in _special(each.to_dict())}
    drawn = np.random.default_rng(0).integers(0, vocabulary, size=64 * TEXT).tolist()
    context = getattr(config, "max_position_embeddings", None) or TEXT + _SPARE
    ids = [token for token in drawn if token not in special][: max(1, min(TEXT, int(context) - _SPARE))]
    return torch.tensor(ids, dtype=torch.int64, device=weights_of(model).device)


def _special(config: Mapping[str, Any]) -> Iterator[int]:
    """Token ids that a configuration gives a meaning of their own."""
    for name, value in config.items():
        if "token" in name and name.endswith(("_id", "_ids", "_index")):
            yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int))


@dataclass
class _Eyes:
    """Hooks that note what the blocks of one pass are given, put out and cache."""

    cache: TapeCache
    seen: dict[str, list[Tensor]] = field(default_factory=dict)
    held: Seen = field(default_factory=dict)
    outputs: set[int] = field(default_factory=set)

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
        self.note("the embeddings", args[0] if args else kwargs.get("hidden_states"))

    def _after(self, block: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            appended, self.cache.appended = self.cache.appended, []
            if len(appended) == 1:
                self.note(f"the keys of block {block}", appended[0][0])
                self.note(f"the values of block {block}", appended[0][1])
            self.held |= named_states(block, [state[0] for state in states_of(self.cache.layers[block - 1])])
            self.outputs.add(len(output) if isinstance(output, tuple) else 0)
            self.note(f"block {block}", output[0] if isinstance(output, tuple) else output)

        return hook


def named_states(block: int, states: Sequence[Tensor]) -> Seen:
    """What a block, from 1, holds of convolutions and recurrences [...], under its name: [1, number]."""
    return {f"state {i} of block {block}": state.reshape(1, -1).clone() for i, state in enumerate(states, 1)}


def own_pass(
    model: PreTrainedModel, ids: Tensor, sizes: Sequence[int], first: Sequence[int] | None = None
) -> tuple[Seen, set[int]]:
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
    outputs : set of int
        Lengths of the tuples that blocks put out; 0 where it is a tensor.
    """
    eyes = _Eyes(new_cache(model, TapeCache))
    with weights_of(model).whole(), eyes.open(model):
        for place, part in enumerate(ids.split(list(sizes))):
            options: dict[str, Any] = {}
            if first is not None:
                options["position_ids"] = torch.arange(first[place], first[place] + len(part), device=ids.device)[None]
            options[cache_argument(model)] = eyes.cache
            out = model(input_ids=part[None], use_cache=True, **options)
            eyes.note("the logits", out.logits)
    return {place: torch.cat(parts, dim=-2) for place, parts in eyes.seen.items()} | eyes.held, eyes.outputs


def chunked_inference(model: PreTrainedModel) -> Verdict:
    """Try a model's own forward on a short text, whole and in chunks, with whatever cache it makes for itself."""
    weights = weights_of(model)
    if not weights.streamed and any(p.is_meta for p in model.parameters()):
        return Verdict(Chunked.UNTRIED)
    cache = next((name for name in _CACHES if takes(model, name)), None)
    if cache is None:
        return Verdict(Chunked.FAILS, "its forward takes no cache")
    failing = Chunked.BROKEN
    try:
        ids = trial_text(model)
        with weights.whole():
            whole = model(input_ids=ids[None], use_cache=True).logits[0]
            failing, parts, given = Chunked.FAILS, [], dict[str, Any]()
            for part in ids.split(CHUNK):
                out = model(input_ids=part[None], use_cache=True, **given)
                parts.append(out.logits[0])
                given = {cache: getattr(out, cache)}
    except Exception as error:  # whatever the code of some architecture raises is an answer
        return Verdict(failing, f"{type(error).__name__}: {error}")
    return parting({"the logits": torch.cat(parts)}, {"the logits": whole}, rung_of(model.dtype).unit_roundoff)


def logits_in_chunks(model: PreTrainedModel, ids: Tensor, sizes: Sequence[int]) -> Tensor:
    """Logits of ids [token] in chunks of some sizes, with whatever cache the model's own forward makes for itself."""
    name, given, parts = cache_argument(model), dict[str, Any](), []
    with weights_of(model).whole():
        for part in ids.split(list(sizes)):
            out = model(input_ids=part[None], use_cache=True, **given)
            parts.append(out.logits[0])
            given = {name: getattr(out, name)}
    return torch.cat(parts)


def goes_on_singly(model: PreTrainedModel, ids: Tensor, whole: Seen) -> bool:
    """Whether a model's own forward goes on token by token as in its one pass ``whole`` over ids [token].

    It begins with a few at once: states that architectures keep in their modules are only then begun anew.
    """
    few = ids[: 2 * _FEW]
    first = min(_FEW, len(few))
    try:
        seen, _ = own_pass(model, few, [first, *[1] * (len(few) - first)])
    except Exception:  # whatever the code of some architecture raises is an answer
        return False
    place = "the logits"
    verdict = parting({place: seen[place]}, {place: whole[place][: len(few)]}, rung_of(model.dtype).unit_roundoff)
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
