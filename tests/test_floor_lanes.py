"""The rounding floor of full attention, and the error of one step, against plain transformers loops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import make_model
from rounding import WIDE
from sweep_tools import text_file, tiny_checkpoint, write_config
from test_descent import IMPLEMENTATIONS, Everything, KeepAll
from transformers import DynamicCache

import drift
from drift import dataset
from drift.dataset.contract import FLOORS, VARIABLES
from drift.dataset.curves import floor_curves
from drift.dataset.rungs import rung
from drift.errors import ConfigError
from drift.running.descent.descending import descend
from drift.running.lanes import FoldRequest, LaneTable
from drift.running.model.numerics import numerics, rung_of
from drift.running.model.widening import widen
from drift.running.noise import EmbeddingNoise, disturbed
from drift.running.protocols import parse
from drift.running.protocols.full import FLOOR_DRAWS, FLOOR_SCALE, floor_draw, floor_record
from drift.running.sweep.config import MOST_DRAWS, load_config
from drift.running.sweep.planning import plan
from drift.running.sweep.running import run

pytestmark = pytest.mark.numerical

TOKENS = 37


def descended(model: Any, text: torch.Tensor, size: int, label: str) -> Everything:
    """Full attention in lane 0, and a protocol in the last lane, with all that the descent shows of them."""
    dtype = rung_of(model.dtype)
    table = LaneTable(text, model, model, dtype)
    table.comparison(FoldRequest.of((size, label), lambda: 1))
    recorder = Everything(len(table.lanes))
    with numerics(dtype):
        descend(model, table.lanes, recorder)
    return recorder


def filled(model: Any, held: KeepAll, count: int) -> DynamicCache:
    """A cache that holds what full attention computed for the first tokens."""
    cache = DynamicCache(config=model.config)
    if count:
        for layer, ((keys, values),) in sorted(held.seen.items()):
            cache.update(keys[:, :, :count], values[:, :, :count], layer)
    return cache


# ---------------------------------------------------------------------------------------------- one step
@pytest.mark.parametrize(("family", "attn"), IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_step_is_a_plain_loop_on_full_attentions_cache_bitwise(family: str, dtype: str, attn: str) -> None:
    model = make_model(family, dtype, attn)
    text = torch.from_numpy(np.random.default_rng(5).integers(3, model.config.vocab_size, size=TOKENS))
    for size in (8, 1, 20):
        recorder = descended(model, text, size, "one_step(append)")
        layers, logits, kept = [], [], []
        with numerics(rung_of(model.dtype)):
            held = KeepAll(model.config)
            model(input_ids=text[None], past_key_values=held, use_cache=True)
            for start in range(0, TOKENS, size):
                cache = KeepAll(model.config)
                for own, full in zip(cache.layers, filled(model, held, start).layers, strict=True):
                    vars(own).update(vars(full))
                positions = torch.arange(start, min(start + size, TOKENS))
                out = model(
                    input_ids=text[positions][None],
                    position_ids=positions[None],
                    past_key_values=cache,
                    use_cache=True,
                    output_hidden_states=True,
                )
                layers.append([h[0] for h in out.hidden_states])
                logits.append(out.logits[0])
                kept.append([pairs[0] for _, pairs in sorted(cache.seen.items())])
        blocks = len(held.seen)
        got = [*recorder.layers[-1][:blocks], torch.cat(recorder.normed[-1])]
        for layer, parts in enumerate(zip(*layers, strict=True)):
            assert torch.equal(got[layer], torch.cat(parts)), f"chunks of {size}, layer {layer}"
        for block, pairs in enumerate(zip(*kept, strict=True)):
            for side in (0, 1):
                want = torch.cat([pair[side][0] for pair in pairs], dim=-2)
                assert torch.equal(recorder.kept[-1][block][side], want), f"chunks of {size}, block {block + 1}"
        assert torch.equal(torch.cat(recorder.scores[-1]), torch.cat(logits)), f"chunks of {size}, logits"


def test_one_step_inherits_nothing_and_the_fold_does() -> None:
    model = make_model("llama")
    text = torch.arange(3, 3 + TOKENS)
    full, one = (descended(model, text, 8, label) for label in ("append", "one_step(quantized(format=int4))"))
    fold = descended(model, text, 8, "quantized(format=int4)")
    first = [torch.equal(fold.layers[-1][k][:16], one.layers[-1][k][:16]) for k in range(4)]
    later = [torch.equal(fold.layers[-1][k][16:], one.layers[-1][k][16:]) for k in range(4)]
    # In the first block nothing but the rule has touched the cache of the second chunk; deeper, the states have moved.
    assert first[:2] == [True, True]
    assert later[0]
    assert not any(later[2:])
    assert not torch.equal(full.layers[0][-1], one.layers[-1][-1])


def rotated(model: Any, keys: torch.Tensor, shift: int) -> torch.Tensor:
    """Keys [head, token, feature] turned as complex numbers by the model's own table of angles."""
    half = keys.shape[-1] // 2
    cos, sin = (x[0, 0, :half] for x in model.model.rotary_emb(keys[None, :1, :1], torch.tensor([[abs(shift)]])))
    turned = torch.complex(keys[..., :half], keys[..., half:]) * torch.complex(cos, sin * (1 if shift > 0 else -1))
    return torch.cat([turned.real, turned.imag], dim=-1)


@pytest.mark.parametrize("label", ["restart", "reprime(token=7)"])
def test_one_step_puts_full_attentions_keys_where_the_protocol_has_them(label: str) -> None:
    model = make_model("llama")
    widen(model, rung("fp64"))
    text = torch.from_numpy(np.random.default_rng(5).integers(3, 97, size=TOKENS))
    size = 8
    recorder = descended(model, text, size, f"one_step({label})")
    chunks = parse(label).chunks(TOKENS, size)
    with numerics(rung("fp64")):
        held = KeepAll(model.config)
        model(input_ids=text[None], past_key_values=held, use_cache=True)
        parts: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {layer: [] for layer in held.seen}
        for chunk in chunks:
            cache = KeepAll(model.config)
            for layer, slots in parts.items():
                if slots:
                    keys, values = (torch.cat([pair[side] for pair in slots], dim=-2)[None] for side in (0, 1))
                    DynamicCache.update(cache, keys, values, layer)
            ids = torch.tensor([*chunk.prefix, *text[chunk.start : chunk.stop].tolist()])
            positions = chunk.first_position + torch.arange(len(ids))
            out = model(
                input_ids=ids[None], position_ids=positions[None], past_key_values=cache, use_cache=True,
                output_hidden_states=True,
            )  # fmt: skip
            skip = len(chunk.prefix)
            want = out.hidden_states[-1][0, skip:]
            got = torch.cat(recorder.normed[-1])[chunk.start : chunk.stop]
            assert (torch.linalg.norm(got - want) / torch.linalg.norm(want)).item() < WIDE
            moved = chunk.first_position + skip - chunk.start
            for layer, ((keys, values),) in held.seen.items():
                own = cache.seen[layer][0]
                text_part = (
                    rotated(model, keys[0, :, chunk.start : chunk.stop], moved),
                    values[0, :, chunk.start : chunk.stop],
                )
                parts[layer].append(
                    tuple(torch.cat([mine[0, :, :skip], its], dim=-2) for mine, its in zip(own, text_part, strict=True))  # type: ignore[arg-type]
                )


def test_one_step_is_measured_like_any_fold_against_any_reference(token_ids: Callable[..., Any]) -> None:
    model, ids = make_model("gemma3-short-window", "bfloat16"), token_ids(2, 32)
    fold, one, gold = drift.trace_folds(
        model, ids, [(8, "append"), (8, "one_step(append)"), (8, "one_step(append)", "gold")]
    )
    assert one["protocol"].item() == "one_step(append)"
    # The first two chunks of the first block inherit nothing that is not full attention's own.
    assert np.array_equal(one["hidden_rel_l2"][:, :2], fold["hidden_rel_l2"][:, :2])
    # Later ones do, where the fold rounds at all: under some kernels it has full attention's own bits.
    assert (one["hidden_rel_l2"].values != fold["hidden_rel_l2"].values).any() or not fold["hidden_rel_l2"].any()
    # In exact arithmetic full attention's cache is the fold's: what is left in float64 is its rounding.
    assert float(gold["hidden_rel_l2_structural"].max()) < WIDE


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("one_step(one_step(append))", "takes full attention's cache already"),
        ("one_step(full(batch=2))", "computes several texts at once"),
        ("one_step", "comes first: one_step(append)"),
        ("one_step(decode(append))", "must stand outside"),
        ("full(seed=1)", "a seed needs noise"),
        ("full(noise=-1)", "must be a number"),
    ],
)
def test_what_cannot_be_is_refused(label: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace(")", r"\)")):
        parse(label)


# ---------------------------------------------------------------------------------------------- noise
@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32", "fp64"])
def test_noise_is_relative_gaussian_and_rounded_once(name: str) -> None:
    r = rung(name)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal(20000)).to(getattr(torch, r.torch_dtype))
    noise = np.random.default_rng(2).standard_normal(20000)
    got = disturbed(x, r.unit_roundoff, noise)
    assert got.dtype == x.dtype
    # In extended precision: at most half an ulp of the result from the exact product, where one rounding leaves it.
    exact = x.double().numpy().astype(np.longdouble) * (1 + np.longdouble(r.unit_roundoff) * noise)
    error = np.abs(got.double().numpy() - exact) / np.abs(exact)
    assert float(error.max()) <= r.unit_roundoff * (1 + 2.0**-8)
    moved = (got != x).numpy()
    # Noise of one unit roundoff moves a number to a neighbour where |g| is above the distance to it, half to one ulp.
    at_least, at_most = (2 * scipy.stats.norm.sf(edge) for edge in (1, 0.5))
    slack = 5 * 0.5 / np.sqrt(20000)  # five standard errors of a share, at most
    assert at_least - slack < moved.mean() < at_most + slack


def test_a_long_text_has_the_noise_of_its_stretches() -> None:
    x = torch.ones(2500, 3, dtype=torch.float64)
    whole = EmbeddingNoise(1e-3, (1, 2)).stream()(x)
    stream = EmbeddingNoise(1e-3, (1, 2)).stream()
    parts = torch.cat([stream(x[:700]), stream(x[700:1900]), stream(x[1900:])])
    assert torch.equal(whole, parts)
    g = np.random.default_rng((1, 2)).standard_normal((2500, 3))
    assert np.array_equal(whole.numpy(), 1 + 1e-3 * g)
    assert not torch.equal(whole, EmbeddingNoise(1e-3, (2, 2)).stream()(x))


def test_the_noise_of_a_text_depends_on_its_tokens_and_seed_alone() -> None:
    model = make_model("llama")
    text, other = torch.arange(3, 35), torch.arange(4, 36)

    def noise(tokens: torch.Tensor, size: int, seed: int) -> EmbeddingNoise | None:
        table = LaneTable(tokens, model, model, rung("fp32"))
        table.floor(FoldRequest.of((size, "append"), lambda: 1), seed)
        return table.lanes[-1].noise

    assert noise(text, 8, 1) == noise(text, 16, 1)
    assert noise(text, 8, 1) != noise(text, 8, 2)
    assert noise(text, 8, 1) != noise(other, 8, 1)
    assert noise(text, 8, 1).size == FLOOR_SCALE * 2.0**-24  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_noise_on_embeddings_is_a_plain_pass_on_disturbed_embeddings_bitwise(dtype: str) -> None:
    model = make_model("gemma3-short-window", dtype)
    text = torch.from_numpy(np.random.default_rng(5).integers(3, 97, size=TOKENS))
    recorder = descended(model, text, 8, "full(noise=3,seed=2)")
    dtype_rung = rung_of(model.dtype)
    table = LaneTable(text, model, model, dtype_rung)
    table.comparison(FoldRequest.of((8, "full(noise=3,seed=2)"), lambda: 1))
    noise = table.lanes[-1].noise
    assert noise is not None
    with numerics(dtype_rung):
        plain = model.get_input_embeddings()(text)
        g = np.random.default_rng(noise.seed).standard_normal(plain.shape)
        embeddings = disturbed(plain, 3 * dtype_rung.unit_roundoff, g)
        out = model(inputs_embeds=embeddings[None], use_cache=False, output_hidden_states=True)
    assert torch.equal(recorder.layers[-1][0], embeddings)
    assert not torch.equal(embeddings, plain)
    assert torch.equal(torch.cat(recorder.normed[-1]), out.hidden_states[-1][0])
    assert torch.equal(torch.cat(recorder.scores[-1]), out.logits[0])


# ---------------------------------------------------------------------------------------------- cells
def test_every_cell_carries_the_floor_over_its_own_steps(token_ids: Callable[..., Any]) -> None:
    model, ids = make_model("llama", "bfloat16"), token_ids(2, 33)
    asked = [(8, "append"), (8, "restart", "gold"), (11, "append"), (8, "append", "previous"), (8, "decode(append)")]
    cells = drift.trace_folds(model, ids, [*asked, *((size, floor_draw(k)) for size in (8, 11) for k in (1, 2))])
    alone = dict(zip([(8, 1), (8, 2), (11, 1), (11, 2)], cells[5:], strict=True))
    for cell in cells[:4]:
        assert cell["draw"].values.tolist() == [1, 2]
        for name, floor in FLOORS.items():
            if name == "state_rel_l2":  # there are no states
                continue
            assert cell[floor].dims == (*VARIABLES[name].dims, "draw")
            for place, seed in enumerate((1, 2)):
                want = alone[cell["chunk_size"].item(), seed]
                # The floor is what the sweepable protocol measures, whatever the fold is compared with.
                if cell.sizes["step"] == want.sizes["step"]:
                    assert np.array_equal(cell[floor][..., place], want[name], equal_nan=True), (floor, seed)
    decode = cells[4]
    assert decode["hidden_rel_l2_floor"].shape == (*decode["hidden_rel_l2"].shape, FLOOR_DRAWS)
    assert (decode["hidden_rel_l2_floor"] > 0).all()
    levels = floor_curves(cells[0])
    assert (levels > 0).all()
    assert not np.array_equal(levels[0], levels[1])


def test_floors_change_nothing_else_and_can_be_left_out(token_ids: Callable[..., Any]) -> None:
    model, ids = make_model("qwen2"), token_ids(1, 32)
    (with_them,) = drift.trace_folds(model, ids, [(8, "append")], floor_draws=3)
    (without,) = drift.trace_folds(model, ids, [(8, "append")], floor_draws=0)
    assert with_them["draw"].values.tolist() == [1, 2, 3]
    assert '"seeds":[1,2,3]' in with_them.attrs["floor_json"]
    assert "draw" not in without.coords
    assert "floor_json" not in without.attrs
    for name in without.data_vars:
        assert np.array_equal(with_them[name], without[name], equal_nan=True), name
    with pytest.raises(ConfigError, match="floor_draws is -1; it must be a whole number of at least 0"):
        drift.trace_folds(model, ids, [(8, "append")], floor_draws=-1)


def test_the_floor_of_float64_is_computed_in_float64(token_ids: Callable[..., Any]) -> None:
    """Where norms or rotary tables were computed in float32, a disturbed bit would come out as 2**-24 or as nothing."""
    (cell,) = drift.trace_folds(make_model("gemma3-long-window", "float64"), token_ids(1, 32), [(8, "append")])
    levels = floor_curves(cell)
    assert (levels > 0).all()
    assert (levels < WIDE).all()


def test_response_to_noise_is_in_proportion_where_nothing_rounds(token_ids: Callable[..., Any]) -> None:
    sizes = (1e3, 1e4, 1e5)
    cells = drift.trace_folds(
        make_model("llama", "float64"), token_ids(1, 32), [(8, f"full(noise={s:g})") for s in sizes], floor_draws=0
    )
    levels = np.array([cell["hidden_rel_l2"].values[0, -1] for cell in cells])
    # Linear up to noise x curvature, 1e-11, and rounding of one unit roundoff beside the noise: 1e-3 of the smallest.
    assert levels[1] / levels[0] == pytest.approx(10.0, rel=1e-2)
    assert levels[2] / levels[1] == pytest.approx(10.0, rel=1e-3)


def test_a_random_walk_accumulates(token_ids: Callable[..., Any]) -> None:
    model, ids = make_model("llama"), token_ids(2, 240)
    still, walk, once = drift.trace_folds(
        model,
        ids,
        [(4, "append"), (4, "random_walk(append,noise=10)"), (4, "perturbed(append,step=0,size=6e-7)")],
    )
    keys = [cell["key_rel_l2"].isel(block=-1).mean("document").values for cell in (still, walk, once)]
    early, late = slice(1, 9), slice(-8, None)
    grown = [k[late].mean() / k[early].mean() for k in keys]
    # A walk is the root of its steps away from where it began: nearer to that than to no growth, in logarithms.
    walked = np.sqrt(np.arange(len(keys[0])))
    between = np.sqrt(walked[late].mean() / walked[early].mean())
    assert grown[1] > between > max(grown[0], grown[2])
    assert (walk["hidden_rel_l2"].isel(step=0) == still["hidden_rel_l2"].isel(step=0)).all()


def test_noise_that_would_not_be_kept_is_refused(token_ids: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="makes its keys anew at every step, so noise on them would not be kept"):
        drift.trace(
            make_model("llama"), token_ids(1, 32), 8, "random_walk(streaming(window=8,positions=cache),noise=1)"
        )


def test_the_draws_of_a_sweep_are_recorded_and_part_of_a_cells_identity(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "tiny")
    text_file(tmp_path / "text.txt")
    given = {"model": str(tmp_path / "tiny"), "dtype": "fp32", "chunk_size": 8, "tokens": 48, "device": "cpu"}
    names = {}
    for draws in (0, 1, 2):
        config = write_config(
            tmp_path / "c.yaml", name="c", floor_draws=draws, corpus=f"file:{tmp_path / 'text.txt'}", **given
        )
        (cell,) = plan(config, tmp_path / f"out{draws}").cells
        names[draws] = cell.file
        assert (cell.record.get("floor") == floor_record(draws)) == bool(draws)
    assert len(set(names.values())) == 3
    assert run(config, tmp_path / "out2").done == 1
    made = dataset.read(tmp_path / "out2" / names[2])
    assert made["draw"].values.tolist() == json.loads(made.attrs["floor_json"])["seeds"] == [1, 2]
    assert json.loads(made.attrs["config_json"])["floor"] == floor_record(2)
    with pytest.raises(ConfigError, match=f"floor_draws: must be at most {MOST_DRAWS}, but is 10000"):
        load_config({"model": "m", "floor_draws": 10000})
