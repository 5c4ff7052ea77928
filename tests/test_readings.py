"""Every protocol that changes the carried cache, against a plain transformers loop that does the same by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import make_model
from rounding import U32, gamma, norms, times
from test_descent import Everything
from transformers import DynamicCache

import drift
from drift.errors import ProtocolError, UnsupportedModelError
from drift.running import protocols
from drift.running.descent.blocks import DescendingLane
from drift.running.descent.descending import descend
from drift.running.descent.lanes import Lane
from drift.running.model.numerics import numerics, rung_of
from drift.running.protocols import Carried, Protocol, Variation, parse

pytestmark = pytest.mark.numerical
TOKENS, SIZE = 37, 8
Loop = Callable[[Any, torch.Tensor], tuple[list[torch.Tensor], torch.Tensor]]


def forward(model: Any, ids: torch.Tensor, cache: DynamicCache, position: int, **options: Any) -> Any:
    positions = position + torch.arange(len(ids))[None]
    return model(
        ids[None], position_ids=positions, past_key_values=cache, use_cache=True, output_hidden_states=True, **options
    )


def fold(
    model: Any,
    text: torch.Tensor,
    after: Callable[[DynamicCache, int, Any], None],
    position: Callable[[int, DynamicCache], int] = lambda start, cache: start,
    size: int = SIZE,
    **options: Any,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Hidden states [layer][token, feature] and logits of a plain loop; `after` changes the cache between chunks."""
    cache = DynamicCache(config=model.config)
    states, logits = [], []
    for step, start in enumerate(range(0, len(text), size)):
        out = forward(model, text[start : start + size], cache, position(start, cache), **options)
        states.append([h[0] for h in out.hidden_states])
        logits.append(out.logits[0])
        after(cache, step, out)
    return [torch.cat(parts) for parts in zip(*states, strict=True)], torch.cat(logits)


def full_layers(cache: DynamicCache) -> list[Any]:
    return [layer for layer in cache.layers if not layer.is_sliding]


def keep(layer: Any, slots: Any) -> None:
    layer.keys, layer.values = layer.keys[:, :, slots], layer.values[:, :, slots]


def streaming(model: Any, text: torch.Tensor) -> Any:
    def after(cache: DynamicCache, step: int, out: Any) -> None:
        for layer in full_layers(cache):
            n = layer.keys.shape[2]
            if n > 12:
                keep(layer, [0, 1, *range(n - 10, n)])

    return fold(model, text, after)


def evict(model: Any, text: torch.Tensor) -> Any:
    scores: dict[int, torch.Tensor] = {}
    heads = model.config.num_key_value_heads

    def after(cache: DynamicCache, step: int, out: Any) -> None:
        for index, layer in enumerate(cache.layers):
            if layer.is_sliding:
                continue
            probability = out.attentions[index][0].float()  # [query head, query, slot]
            received = torch.stack([group.sum((0, 1)) for group in probability.chunk(heads)])
            if index in scores:
                received[:, : scores[index].shape[1]] += scores[index]
            n = layer.keys.shape[2]
            scores[index] = received
            if n <= 12:
                continue
            keys, values, kept = [], [], []
            for head in range(heads):
                heavy = sorted(received[head, : n - 6].argsort(descending=True, stable=True)[:6].tolist())
                slots = [*heavy, *range(n - 6, n)]
                keys.append(layer.keys[:, head, slots])
                values.append(layer.values[:, head, slots])
                kept.append(received[head, slots])
            layer.keys, layer.values, scores[index] = torch.stack(keys, 1), torch.stack(values, 1), torch.stack(kept)

    model.set_attn_implementation("eager")
    try:
        return fold(model, text, after, output_attentions=True)
    finally:
        model.set_attn_implementation("sdpa")


def quantise(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Asymmetric int4 in plain NumPy."""
    wide = x.double().numpy() if x.dtype == torch.float64 else x.float().numpy()
    low, high = wide.min(dim, keepdims=True), wide.max(dim, keepdims=True)
    scale = (high - low) / wide.dtype.type(15)
    return torch.from_numpy(np.clip(np.round((wide - low) / scale), 0, 15) * scale + low).to(x.dtype)


def quantized(model: Any, text: torch.Tensor) -> Any:
    def after(cache: DynamicCache, step: int, out: Any) -> None:
        new = len(text[step * SIZE : (step + 1) * SIZE])
        for layer in cache.layers:
            n = min(new, layer.keys.shape[2])
            layer.keys = torch.cat([layer.keys[:, :, :-n], quantise(layer.keys[:, :, -n:], -2)], 2)
            layer.values = torch.cat([layer.values[:, :, :-n], quantise(layer.values[:, :, -n:], -2)], 2)

    return fold(model, text, after)


def merge(model: Any, text: torch.Tensor) -> Any:
    def after(cache: DynamicCache, step: int, out: Any) -> None:
        for layer in full_layers(cache):
            n = layer.keys.shape[2]
            if n > 12:
                cuts = [i * n // 12 for i in range(13)]
                for name in ("keys", "values"):
                    old = getattr(layer, name).double()
                    new = [old[:, :, a:b].mean(2) for a, b in itertools.pairwise(cuts)]
                    setattr(layer, name, torch.stack(new, 2).to(getattr(layer, name).dtype))

    return fold(model, text, after)


def shifted(model: Any, text: torch.Tensor) -> Any:
    return fold(model, text, lambda *_: None, lambda start, cache: start + 2 * (start >= 2 * SIZE))


def isolated(model: Any, text: torch.Tensor) -> Any:
    states, logits = [], []
    for start in range(0, len(text), SIZE):
        cache = DynamicCache(config=model.config)
        out = forward(model, text[start : start + SIZE], cache, start)
        states.append([h[0] for h in out.hidden_states])
        logits.append(out.logits[0])
    return [torch.cat(parts) for parts in zip(*states, strict=True)], torch.cat(logits)


def isolated_probe(model: Any, text: torch.Tensor) -> Any:
    """Caches of passages prefilled alone, concatenated anew for each probe."""
    states, logits = [], []
    for start in range(0, len(text), SIZE):
        together = DynamicCache(config=model.config)
        for passage in range(0, start, SIZE):
            alone = DynamicCache(config=model.config)
            forward(model, text[passage : passage + SIZE], alone, passage)
            # A sliding layer of the cache of a passage shorter than the window still holds all of it.
            for index, layer in enumerate(alone.layers):
                together.update(layer.keys, layer.values, index)
        out = forward(model, text[start : start + SIZE], together, start)
        states.append([h[0] for h in out.hidden_states])
        logits.append(out.logits[0])
    return [torch.cat(parts) for parts in zip(*states, strict=True)], torch.cat(logits)


LOOPS: dict[str, Loop] = {
    "streaming(sinks=2,window=10,positions=text)": streaming,
    "evict(budget=12)": evict,
    "quantized(format=int4,axis=channel)": quantized,
    "merge(budget=12)": merge,
    "shifted(append,step=2,by=2)": shifted,
    "isolated": isolated,
    "isolated(probe=1)": isolated_probe,
}


def descent(
    model: Any, text: torch.Tensor, label: str | Protocol
) -> tuple[list[torch.Tensor], torch.Tensor, Everything]:
    protocol = parse(label).bind(lambda: 1)
    recorder = Everything(2)
    lanes = [Lane(text, parse("append").chunks(len(text), len(text)))]
    lanes.append(Lane(text, protocol.chunks(len(text), SIZE), protocol))
    with numerics(rung_of(model.dtype)):
        descend(model, lanes, recorder)
    layers = [*recorder.layers[1][:-1], torch.cat(recorder.normed[1])]
    return layers, torch.cat(recorder.scores[1]), recorder


def text_of(model: Any, tokens: int = TOKENS) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(3, model.config.vocab_size, size=tokens))


@pytest.mark.parametrize("label", LOOPS)
@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", "float32"), ("llama", "bfloat16"), ("qwen2", "float32"), ("gemma3-long-window", "float32")],
)
def test_equals_a_plain_loop_bitwise(family: str, dtype: str, label: str) -> None:
    model = make_model(family, dtype)
    text = text_of(model)
    with numerics(rung_of(model.dtype)):
        states, logits = LOOPS[label](model, text)
    layers, scores, _ = descent(model, text, label)
    for number, (got, want) in enumerate(zip(layers, states, strict=True)):
        assert torch.equal(got, want), f"layer {number}"
    assert torch.equal(scores, logits)
    append = descent(model, text, "append")[0][-1]
    assert not torch.equal(layers[-1], append), "the protocol does nothing that append does not"
    # Attention probabilities are only to be had from another attention implementation, which rounds otherwise.
    same = torch.equal(layers[-1][:SIZE], append[:SIZE])
    assert same or parse(label).wants_attention, "the first chunk sees no cache"


def test_every_protocol_that_carries_has_a_loop() -> None:
    """A variation carries what the protocol inside does; what it adds to that has a test of its own below."""
    carrying = {
        kind.name
        for kind in protocols._registry().values()
        if kind.carry is not Protocol.carry and not issubclass(kind, Variation)
    }
    assert carrying
    assert carrying <= {parse(label).name for label in LOOPS}


@dataclass(frozen=True)
class Doubling(Protocol):
    """After the second step the oldest slot is there twice: a cache may grow as well."""

    name: ClassVar[str] = "doubling"

    off_by: int = 0

    def slots(self, step: int, held: int, new: int) -> int:
        return held + (step == 1) + self.off_by

    def carry(self, cache: Carried) -> None:
        if cache.step == 1 and not cache.sliding:
            cache.select([0, *range(cache.keys.shape[-2])])


def test_a_cache_that_grows_equals_a_plain_loop_bitwise() -> None:
    def after(cache: DynamicCache, step: int, out: Any) -> None:
        for layer in cache.layers:
            if step == 1:
                keep(layer, [0, *range(layer.keys.shape[2])])

    model = make_model("llama")
    text = text_of(model)
    with numerics(rung_of(model.dtype)):
        states, logits = fold(model, text, after)
    layers, scores, _ = descent(model, text, Doubling())
    assert all(torch.equal(got, want) for got, want in zip(layers, states, strict=True))
    assert torch.equal(scores, logits)


@pytest.mark.parametrize("off_by", [-40, -1, 1])
def test_a_protocol_that_miscounts_is_told_so_before_a_shape_breaks(off_by: int) -> None:
    model = make_model("llama")
    with pytest.raises(ProtocolError) as refused:
        descent(model, text_of(model), Doubling(off_by))
    assert str(refused.value).startswith(
        f"Protocol doubling(off_by={off_by}): after chain step 0, carry left {SIZE} slots in block 1, but "
        f"slots(step=0, held={SIZE}, new={SIZE}) says {SIZE + off_by}. Override slots in {__name__}"
    )


def test_streaming_by_cache_positions_is_a_new_text_for_a_model_of_one_block() -> None:
    """With one block, keys depend on token and position alone: the chunk sees sinks, window and itself as a text."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).double().eval()
    text = text_of(model)
    layers, _, recorder = descent(model, text, "streaming(sinks=2,window=9,positions=cache)")
    with numerics(rung_of(model.dtype)):
        whole = [
            model(text[None], position_ids=first + torch.arange(TOKENS)[None], output_hidden_states=True)
            for first in (0, 1, 5, 11, 20)
        ]
        # The tables of rotation are float32 in transformers. Only distances between positions count, so whatever moving
        # a whole text changes is the rounding of these tables; a key that is moved is turned by two of them.
        states = torch.stack([out.hidden_states[-1][0] for out in whole])
        bound = times(SIZE) * (states[1:] - states[0]).abs().max().item()
        assert 0 < bound < 1e-3, "the tables are not float32, or a bound that says nothing"
        for start in range(0, TOKENS, SIZE):
            seen = list(range(start))
            seen = seen if start <= 11 else [*seen[:2], *seen[-9:]]
            visible = torch.cat([text[seen], text[start : start + SIZE]])
            want = model(visible[None], output_hidden_states=True).hidden_states[-1][0, len(seen) :]
            torch.testing.assert_close(layers[-1][start : start + SIZE], want, rtol=0, atol=bound)
    assert (layers[-1][-SIZE:] - states[0, -SIZE:]).abs().max() > 10 * bound, "the window shows nothing"
    assert recorder.bytes[0][1][-1] == 11 * 2 * 2 * 8 * 8


@pytest.mark.parametrize("family", ["llama", "gemma3-long-window", "gemma3-short-window", "phi3"])
def test_a_window_that_holds_everything_is_append(family: str) -> None:
    model = make_model(family)
    text = text_of(model)
    want = descent(model, text, "append")
    for label in (
        "streaming",
        "streaming(positions=text)",
        "merge",
        "shifted(append,step=9)",
        "perturbed(append,step=9,size=1)",
    ):
        got = descent(model, text, label)
        assert all(torch.equal(a, b) for a, b in zip(got[0], want[0], strict=True)), label
        assert torch.equal(got[1], want[1]), label


def test_moved_keys_are_keys_computed_there() -> None:
    """Rotating from one position to another is what the model would have done, up to rounding."""

    model = make_model("llama", "float64")
    text = text_of(model)
    lane = Lane(text, parse("append").chunks(TOKENS, TOKENS))
    with numerics(rung_of(model.dtype)):
        caches = []
        for first in (0, 20):
            cache = DynamicCache(config=model.config)
            forward(model, text, cache, first)
            caches.append(cache.layers[0].keys)
        d = DescendingLane(lane, model)
        there = d.rotate(0, caches[0], torch.full((TOKENS,), 20))
        back = d.rotate(0, caches[1], torch.full((TOKENS,), -20))
    # Tables are float32: an angle in radians, which is the position at most, is rounded, its cosine and sine are within
    # an ulp, and so is the frequency, which is the same one everywhere. Three tables meet: of 20, of p and of 20 + p.
    pairs = torch.stack(caches[0].chunk(2, -1)).norm(dim=0).max().item()
    bound = (2 * (20 + TOKENS) + 3 * 2 * 2**0.5) * U32 * pairs
    torch.testing.assert_close(there, caches[1], rtol=0, atol=bound)
    torch.testing.assert_close(back, caches[0], rtol=0, atol=bound)
    assert (caches[0] - caches[1]).abs().max() > 0.1


@pytest.mark.parametrize("label", ["quantized", "quantized(axis=channel)", "quantized(format=fp8)"])
def test_what_is_read_back_is_within_half_a_level(label: str) -> None:
    protocol = parse(label)
    x = torch.randn(1, 2, 16, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 8)
    got = protocol.read_back(x)  # type: ignore[attr-defined]
    dim = -2 if "channel" in label else -1
    high, low = x.amax(dim, keepdim=True), x.amin(dim, keepdim=True)
    if "fp8" in label:
        # e4m3: three bits of fraction, and below 2**-6 of the scaled range a fixed step of 2**-9. The scale, quotient
        # and product are rounded to float32.
        half = torch.maximum(x.abs() * 2.0**-4, x.abs().amax(dim, keepdim=True) / 448 * 2.0**-10)
        rounded = gamma(4, U32) * (x.abs() + half)
    else:
        # Rounded to float32 are the range, the level and the quotient, and on the way back the product, all of them no
        # more than the range; and the sums with the lowest number.
        half = (high - low) / 255 / 2
        rounded = gamma(6, U32) * (high - low) + gamma(2, U32) * (x.abs() + low.abs())
    assert ((got - x).abs() <= half + rounded).all()
    assert (got != x).any()
    again = protocol.read_back(got)  # type: ignore[attr-defined]
    assert ((again - got).abs() <= 2 * rounded).all(), "what was read back is a level already"


def test_a_constant_group_survives_quantisation() -> None:
    for label in ("quantized(format=int4)", "quantized(format=fp8)"):
        x = torch.full((1, 1, 4, 8), 0.7)
        # One level, or the largest one of fp8: a quotient and a product of float32.
        torch.testing.assert_close(parse(label).read_back(x), x, rtol=gamma(2, U32), atol=0)  # type: ignore[attr-defined]
        zero = torch.zeros(1, 1, 4, 8)
        assert torch.equal(parse(label).read_back(zero), zero)  # type: ignore[attr-defined]


def test_a_perturbation_shows_after_its_step_and_in_proportion_to_its_size(
    tiny: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    model, ids = tiny("llama", "float64"), token_ids(2, 64)
    sizes = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    folds = [(8, f"perturbed(append,step=2,size={size})", "unperturbed") for size in sizes]
    cells = drift.trace_folds(model, ids, folds)
    drifts = np.stack([cell.hidden_rel_l2.isel(layer=-1).values for cell in cells])
    assert not drifts[:, :, :3].any(), "noise before it was put in"
    assert (drifts[:, :, 3] > 0).all()
    slopes = np.polyfit(np.log10(sizes), np.log10(drifts[:, :, 3:].reshape(len(sizes), -1)), 1)[0]
    # Noise of size s bends the response by a part of order s. Three times that at the largest size, which is the only
    # one where it shows, moves a slope over six sizes by this:
    x = np.log10(sizes) - np.mean(np.log10(sizes))
    np.testing.assert_allclose(slopes, 1, rtol=0, atol=x[-1] / (x @ x) * np.log10(1 + 3 * sizes[-1]))
    one = drift.trace(model, ids, 8, "perturbed(append,step=2,size=0.001,block=2)", reference="unperturbed")
    assert not one.hidden_rel_l2.sel(layer=[0, 1]).values.any(), "block 2 was hit, but block 1 shows it"
    assert (one.hidden_rel_l2.sel(layer=2, step=3) > 0).all()


def test_full_attention_again_is_the_same_bits_and_other_ways_are_near(
    tiny: Callable[..., Any], token_ids: Callable[..., Any]
) -> None:
    model, ids = tiny("llama", "float32"), token_ids(1, 40)
    again, eager, batch = drift.trace_folds(
        model, ids, [(8, "full"), (8, "full(attention=eager)"), (8, "full(batch=2)")]
    )
    for name in ("hidden_rel_l2", "key_rel_l2", "value_rel_l2", "logit_kl", "logit_max_abs"):
        assert not again[name].values.any(), name
    gold = drift.trace(model, ids, 8, "full", reference="gold")
    # Another order of sums has roundings of its own, of the size that those of this order have on this machine.
    bound = (1 + times(8)) * gold.hidden_rel_l2.max().item()
    assert bound < U32**0.5, "a bound that says nothing"
    assert eager.hidden_rel_l2.max() <= bound
    assert batch.hidden_rel_l2.max() <= bound
    assert model.config._attn_implementation == "sdpa"
    with numerics(rung_of(model.dtype)):
        model.set_attn_implementation("eager")
        want = model(torch.from_numpy(ids), output_hidden_states=True).hidden_states[-1]
        model.set_attn_implementation("sdpa")
        base = model(torch.from_numpy(ids), output_hidden_states=True).hidden_states[-1]
    want, base = want[0].double(), base[0].double()
    assert bool((want != base).any()) == bool(eager.hidden_rel_l2.isel(layer=-1).max() > 0)
    rel = ((want - base)[:8].norm() / base[:8].norm()).item()
    got = eager.hidden_rel_l2.isel(layer=-1, step=0).item()
    assert got == pytest.approx(rel, rel=norms(base[:8].numel()), abs=0)


def test_a_model_whose_keys_cannot_be_moved_is_refused() -> None:
    import transformers

    config = transformers.CohereConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    model = transformers.CohereForCausalLM(config).eval()
    with pytest.raises(UnsupportedModelError, match="does not rotate its keys in the layout of two halves"):
        descent(model, text_of(model), "streaming(sinks=1,window=8,positions=cache)")
    descent(model, text_of(model), "streaming(sinks=1,window=8,positions=text)")
