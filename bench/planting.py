"""Bugs to plant into a transformers loop, one row each: what is wrong, how it is planted, and where it first shows.

A lane is a plain loop of ``model(chunk, past_key_values=cache)``. A bug changes what attention is handed, what is
cached, what a step is given, or a weight; everything is as it was when the lane is through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from drift.running.descent.taps import blocks_of

__all__ = ["BUGS", "Bug", "Loop", "Tensors", "lane"]

Tensors = dict[str, Tensor]
LOGIT_ROWS = 8
"""Logits of so many last tokens of a step are dumped: those of all would be most of a dump."""


@dataclass
class Attended:
    """What attention is handed: [1, head, token, feature] each, a mask [1, 1, query, key] or none, and the scale."""

    step: int
    block: int
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float

    def seen(self, shift: int = 0) -> Tensor:
        """Which key each query sees: bool [1, 1, query, key]; ``shift`` is how many later ones, too."""
        queries, keys = self.query.shape[2], self.key.shape[2]
        rows = torch.arange(queries)[:, None] + keys - queries + shift
        return (torch.arange(keys)[None] <= rows)[None, None]


@dataclass
class Loop:
    """What a lane does otherwise than it should; every field's default is nothing."""

    attention: Callable[[Attended], Tensor | None] | None = None
    position: Callable[[int, int], int] = lambda step, start: start
    appended: Callable[[int, int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    stored: Callable[[Tensor], Tensor] | None = None
    after: Callable[[int, DynamicCache], None] | None = None
    ids: Callable[[Tensor, int], Tensor] = lambda ids, chunk: ids
    model: Callable[[Any], AbstractContextManager[None]] = lambda model: nullcontext()


class _Cache(DynamicCache):
    """A cache that tells what was appended, and lets a bug have its way with it before or after."""

    def __init__(self, config: Any, loop: Loop) -> None:
        super().__init__(config=config)
        self.loop, self.step = loop, 0
        self.noted: Tensors = {}

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if self.loop.appended is not None:
            key_states, value_states = self.loop.appended(self.step, layer_idx + 1, key_states, value_states)
        self.noted[f"step.{self.step}.block.{layer_idx + 1}.key"] = key_states[0].clone()
        self.noted[f"step.{self.step}.block.{layer_idx + 1}.value"] = value_states[0].clone()
        if self.loop.stored is not None:
            key_states, value_states = self.loop.stored(key_states), self.loop.stored(value_states)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


@contextmanager
def _attention(loop: Loop, cache: _Cache) -> Iterator[None]:
    """Have a bug in front of transformers' own scaled dot product attention."""
    if loop.attention is None:
        yield
        return
    bug = loop.attention

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        given = Attended(cache.step, module.layer_idx + 1, query, key, value, mask, kwargs.pop("scaling"))
        out = bug(given)
        if out is not None:
            return out.transpose(1, 2).contiguous(), None
        return sdpa_attention_forward(
            module, given.query, given.key, given.value, given.mask, scaling=given.scaling, **kwargs
        )

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


def lane(
    model: Any,
    ids: Tensor,
    chunk: int = 0,
    loop: Loop | None = None,
    *,
    cache: bool = False,
    noise: tuple[float, int] | None = None,
    batch: int = 1,
) -> Tensors:
    """Run a text chunk by chunk and return what a dump holds.

    Parameters
    ----------
    model : PreTrainedModel
    ids : Tensor
        int64 [token].
    chunk : int
        Tokens of a step; 0 is full attention.
    loop : Loop, optional
        What is planted.
    cache : bool
        Whether what the caches hold after each step is dumped, too.
    noise : (float, int), optional
        Relative Gaussian noise on the embeddings, and its seed.
    batch : int
        Texts at once; the others are the same one, begun elsewhere.
    """
    loop = loop or Loop()
    chunk = chunk or len(ids)
    taped, out, blocks = _Cache(model.config.get_text_config(), loop), Tensors(), blocks_of(model)
    generator = torch.Generator().manual_seed(noise[1] if noise else 0)

    def note(layer: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            state = output[0] if isinstance(output, tuple) else output
            out[f"step.{taped.step}.layer.{layer}.hidden"] = state[0].clone()

        return hook

    def embeddings(module: Any, args: Any, kwargs: Any) -> Any:
        state = args[0] if args else kwargs["hidden_states"]
        if noise is not None:
            draw = torch.randn(state.shape, generator=generator, dtype=torch.float64)
            state = (state.double() * (1 + noise[0] * draw)).to(state.dtype)
        out[f"step.{taped.step}.layer.0.hidden"] = state[0].clone()
        return ((state, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": state})

    def final(module: Any, args: Any) -> None:
        out[f"step.{taped.step}.final"] = args[0][0].clone()

    text = loop.ids(ids, chunk)
    texts = torch.stack([text.roll(-(len(text) * i // batch)) for i in range(batch)])
    with ExitStack() as stack:
        for handle in (
            blocks[0].register_forward_pre_hook(embeddings, with_kwargs=True),
            *(block.register_forward_hook(note(i)) for i, block in enumerate(blocks, 1)),
            model.get_output_embeddings().register_forward_pre_hook(final),
        ):
            stack.callback(handle.remove)
        stack.enter_context(loop.model(model))
        stack.enter_context(_attention(loop, taped))
        stack.enter_context(torch.inference_mode())
        for step, start in enumerate(range(0, len(text), chunk)):
            taped.step, part = step, texts[:, start : start + chunk]
            first = loop.position(step, start)
            positions = torch.arange(first, first + part.shape[1])[None]
            result = model(part, position_ids=positions, past_key_values=taped, use_cache=True)
            out[f"step.{step}.logits"] = result.logits[0, -LOGIT_ROWS:].clone()
            if loop.after is not None:
                loop.after(step, taped)
            if cache:
                for i, layer in enumerate(taped.layers, 1):
                    out[f"step.{step}.block.{i}.cache_key"] = layer.keys[0].clone()
                    out[f"step.{step}.block.{i}.cache_value"] = layer.values[0].clone()
    return out | taped.noted


# ------------------------------------------------------------------------------------------------ what can be wrong
@dataclass(frozen=True)
class Bug:
    """A planted bug.

    Attributes
    ----------
    name : str
    how : str
        How it is planted, in words.
    loop : callable
        Makes the loop of a model; None where this model has no place for it (heads to permute).
    kinds : tuple of str
        Kinds of tensors that it may first show in.
    block : str
        ``first``, ``middle`` (of the network) or ``none``.
    step : int
        The chain step in which it begins.
    names : tuple of str
        Causes that name it; empty where it can only be located.
    """

    name: str
    how: str
    loop: Callable[[Any], Loop | None]
    kinds: tuple[str, ...] = ("hidden",)
    block: str = "first"
    step: int = 0
    names: tuple[str, ...] = ()

    def at(self, model: Any) -> int:
        """The block that it shows in."""
        return {"first": 1, "middle": middle(model), "none": 0}[self.block]


def middle(model: Any) -> int:
    """A block in the middle of the network, counted from 1."""
    return len(blocks_of(model)) // 2


def _attending(change: Callable[[Attended], Tensor | None]) -> Callable[[Any], Loop]:
    return lambda model: Loop(attention=change)


def _masked(hide: Callable[[Attended, Tensor], None], from_step: int = 0, shift: int = 0) -> Callable[[Any], Loop]:
    """A mask that hides something more, or less, from a step on."""

    def change(given: Attended) -> None:
        if given.step >= from_step:
            seen = given.seen(shift)
            hide(given, seen)
            given.mask = seen

    return _attending(change)


def _last_cached(given: Attended, seen: Tensor) -> None:
    cached = given.key.shape[2] - given.query.shape[2]
    if cached:
        seen[..., cached - 1] = False


def _own(given: Attended, seen: Tensor) -> None:
    cached = given.key.shape[2] - given.query.shape[2]
    if cached:
        seen[..., 0, cached] = False


def _one(token: int, given: Attended, seen: Tensor) -> None:
    seen[..., token] = False


def _window(given: Attended, seen: Tensor) -> None:
    queries, keys = given.query.shape[2], given.key.shape[2]
    rows = torch.arange(queries)[:, None] + keys - queries
    seen &= (torch.arange(keys)[None] > rows - queries * 3 // 2)[None, None]


def _scaled(factor: float) -> Callable[[Any], Loop]:
    def change(given: Attended) -> None:
        given.scaling *= factor

    return _attending(change)


def _heads(only: bool) -> Callable[[Any], Loop | None]:
    def make(model: Any) -> Loop | None:
        def change(given: Attended) -> None:
            if not only or given.block == middle(model):
                given.value = given.value.roll(1, dims=1)

        several = model.config.get_text_config().num_key_value_heads > 1
        return Loop(attention=change) if several else None

    return make


def _grouped(model: Any) -> Loop | None:
    config = model.config.get_text_config()
    groups = config.num_attention_heads // config.num_key_value_heads

    def change(given: Attended) -> None:
        # Query head i reads head i modulo the heads of the cache, instead of i over the size of a group.
        order = torch.arange(config.num_attention_heads) % config.num_key_value_heads
        wanted = order.reshape(config.num_key_value_heads, groups)
        given.query = given.query[:, torch.argsort(wanted.flatten(), stable=True)]

    return Loop(attention=change) if groups > 1 and config.num_key_value_heads > 1 else None


def _coarse_softmax(given: Attended) -> Tensor:
    groups = given.query.shape[1] // given.key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (given.key, given.value))
    scores = (given.query @ key.transpose(-1, -2) * given.scaling).bfloat16()
    scores = scores.masked_fill(~(given.seen() if given.mask is None else given.mask.bool()), -torch.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return (weights / weights.sum(-1, keepdim=True)).to(value.dtype) @ value


def _dropped_head(model: Any) -> Loop:
    def change(given: Attended) -> None:
        if given.block == middle(model):
            given.value = given.value.clone()
            given.value[:, 0] = 0

    return Loop(attention=change)


def _empty_slot(given: Attended) -> None:
    if given.step:
        seen = given.seen()
        given.mask = torch.cat([torch.ones_like(seen[..., :1]), seen], dim=-1)
        given.key, given.value = (torch.cat([x.new_zeros(x[:, :, :1].shape), x], 2) for x in (given.key, given.value))


def _fp8(x: Tensor) -> Tensor:
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype)


def _int8(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(dim=-1, keepdim=True).double() / 127
    return ((weight / scale).round() * scale).to(weight.dtype)


@contextmanager
def _replaced(parameters: Sequence[Tensor], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    before = [x.detach().clone() for x in parameters]
    with torch.no_grad():
        for x in parameters:
            x.copy_(change(x))
    try:
        yield
    finally:
        with torch.no_grad():
            for x, old in zip(parameters, before, strict=True):
                x.copy_(old)


@contextmanager
def _set(owners: Sequence[Any], names: Sequence[str], change: Callable[[Any], Any]) -> Iterator[None]:
    found = [(owner, name) for owner in owners for name in names if hasattr(owner, name)]
    before = [getattr(owner, name) for owner, name in found]
    for (owner, name), old in zip(found, before, strict=True):
        setattr(owner, name, change(old))
    try:
        yield
    finally:
        for (owner, name), old in zip(found, before, strict=True):
            setattr(owner, name, old)


def _linears(block: torch.nn.Module) -> list[Tensor]:
    return [x.weight for x in block.modules() if isinstance(x, torch.nn.Linear)]


def _norm_epsilon(model: Any) -> AbstractContextManager[None]:
    return _set(list(model.modules()), ("variance_epsilon", "eps"), lambda eps: eps * 1000)


def _rotary_base(model: Any) -> AbstractContextManager[None]:
    tables = [x for name, x in model.named_buffers() if name.endswith("inv_freq") and "original" not in name]
    return _replaced(tables, lambda x: x * 1.05 ** (-torch.arange(len(x), dtype=torch.float64) / len(x)).to(x.dtype))


@contextmanager
def _activation(model: Any) -> Iterator[None]:
    act = blocks_of(model)[middle(model) - 1].mlp.act_fn
    other = torch.nn.functional.gelu if "silu" in type(act).__name__.lower() else torch.nn.functional.silu
    handle = act.register_forward_hook(lambda module, args, output: other(args[0]))
    try:
        yield
    finally:
        handle.remove()


def _shard(weight: Tensor) -> Tensor:
    return torch.cat([weight[:, : -(weight.shape[1] // 8)], torch.zeros_like(weight[:, -(weight.shape[1] // 8) :])], 1)


def _in_model(change: Callable[[Any], AbstractContextManager[None]]) -> Callable[[Any], Loop]:
    return lambda model: Loop(model=change)


def _middle_weights(change: Callable[[Tensor], Tensor]) -> Callable[[Any], Loop]:
    return _in_model(lambda model: _replaced(_linears(blocks_of(model)[middle(model) - 1]), change))


@contextmanager
def _head_hook(model: Any, change: Callable[[Tensor], Tensor], before: bool) -> Iterator[None]:
    head = model.get_output_embeddings()
    if before:
        handle = head.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]), prepend=True)
    else:
        handle = head.register_forward_hook(lambda module, args, output: change(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _embedded(model: Any) -> Iterator[None]:
    handle = model.get_input_embeddings().register_forward_hook(lambda module, args, output: output * 1.01)
    try:
        yield
    finally:
        handle.remove()


def _wrong_token(ids: Tensor, chunk: int) -> Tensor:
    out = ids.clone()
    place = min(3 * chunk + chunk // 2, len(ids) - 1)
    out[place] = ids[ids != ids[place]][0]
    return out


def _swapped(ids: Tensor, chunk: int) -> Tensor:
    return torch.cat([ids[: 2 * chunk], ids[3 * chunk : 4 * chunk], ids[2 * chunk : 3 * chunk], ids[4 * chunk :]])


def _shuffled(x: Tensor, block: int) -> Tensor:
    """Keys that have nothing to do with the text, and look like those that do: the same rows, features mirrored."""
    return x.flip(-1).roll(block, dims=2)


def _stale(step: int, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return (_shuffled(keys, block), _shuffled(values, block)) if step == 2 else (keys, values)


def _overwritten(step: int, cache: DynamicCache) -> None:
    if step == 2:
        for layer in cache.layers:
            chunk = layer.keys.shape[2] // 3
            keys = layer.keys.clone()
            keys[:, :, chunk : 2 * chunk] = keys[:, :, :chunk]
            layer.keys = keys


BUGS = (
    Bug("mask_future", "every query sees the next token of its chunk", _masked(lambda g, s: None, shift=1)),
    Bug("last_cached_hidden", "a mask hides the last cached token from chunk 3 on", _masked(_last_cached, 3), step=3),
    Bug("first_blind", "the first token of a chunk does not see itself", _masked(_own, 1), step=1),
    Bug("scale_1", "attention scale 1 % off", _scaled(1.01)),
    Bug("scale_5", "attention scale 5 % off", _scaled(1.05)),
    Bug("rotary_base", "rotary base times 1.05", _in_model(_rotary_base), ("key", "hidden"), names=("rotation",)),
    Bug("value_heads_all", "value heads permuted in all blocks", _heads(False)),
    Bug("value_heads_one", "value heads permuted in the middle block", _heads(True), block="middle"),
    Bug("grouped_heads", "query heads grouped the wrong way", _grouped),
    Bug("norm_epsilon", "epsilon of all norms times 1000", _in_model(_norm_epsilon), ("key", "value", "hidden")),
    Bug("softmax_bf16", "scores and softmax in bf16, sums too", _attending(_coarse_softmax)),
    Bug("cache_fp8", "cache in fp8 without scales", lambda model: Loop(stored=_fp8),
        ("hidden", "cache_key", "cache_value"), names=("narrower_storage",)),
    Bug("one_dropped", "one cached token hidden from chunk 3 on", _masked(partial(_one, 9), 3), step=3),
    Bug("int8_layer", "weights of the middle block in int8", _middle_weights(_int8), ("key", "value", "hidden"),
        "middle"),
    Bug("fp8_weights", "weights of all blocks in fp8 without scales",
        _in_model(lambda model: _replaced(_linears(model.get_decoder().layers), _fp8)), ("key", "value", "hidden")),
    Bug("wrong_token", "one wrong token in chunk 3", lambda model: Loop(ids=_wrong_token), step=3, block="none",
        names=("other_tokens",)),
    Bug("position_1", "positions one too large from chunk 4 on", lambda model: Loop(position=lambda k, t: t + (k >= 4)),
        ("key",), step=4, names=("position_offset",)),
    Bug("restart", "positions begin at 0 in every chunk", lambda model: Loop(position=lambda k, t: 0), ("key",), step=1,
        names=("position_offset",)),
    Bug("stale_chunk", "keys and values of chunk 2 unrelated to the text", lambda model: Loop(appended=_stale),
        ("key", "value"), step=2, names=("stale_cache",)),
    Bug("overwritten", "cached keys of chunk 1 overwritten after chunk 2", lambda model: Loop(after=_overwritten),
        ("hidden", "cache_key"), step=3, names=("stale_cache",)),
    Bug("window", "a sliding window of one and a half chunks", _masked(_window), step=1),
    Bug("sink_lost", "token 0 hidden from chunk 2 on", _masked(partial(_one, 0), 2), step=2),
    Bug("empty_slot", "an empty slot is attended from chunk 1 on", _attending(_empty_slot), step=1),
    Bug("activation", "another activation in the middle block", _in_model(_activation), block="middle"),
    Bug("shard_lost", "an eighth of the middle block's down projection lost",
        _in_model(lambda m: _replaced([blocks_of(m)[middle(m) - 1].mlp.down_proj.weight], _shard)), block="middle"),
    Bug("head_dropped", "one head of the cache's values lost in the middle block", _dropped_head, block="middle"),
    Bug("final_fp8", "the final state in fp8", _in_model(lambda m: _head_hook(m, _fp8, True)), ("final", "logits"),
        "none", names=("narrower_storage",)),
    Bug("logits_1", "logits 1 % too large", _in_model(lambda m: _head_hook(m, lambda x: x * 1.01, False)), ("logits",),
        "none"),
    Bug("embeddings_1", "embeddings 1 % too large", _in_model(_embedded), block="none"),
    Bug("swapped", "chunks 2 and 3 exchanged", lambda model: Loop(ids=_swapped), step=2, block="none",
        names=("swapped_chunk",)),
)  # fmt: skip
