"""Models whose blocks carry states of convolutions and recurrences: held against plain loops of transformers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import architectures
import numpy as np
import pytest
import synthetic
import torch
from bench_tools import bench
from transformers import DynamicCache
from transformers.models.minimax.modeling_minimax import MiniMaxCache

import drift
from drift.dataset.contract import CARRIES
from drift.dataset.curves import blocks_with, curve
from drift.errors import UnsupportedModelError
from drift.running import lanes as running_lanes
from drift.running import measures
from drift.running.descent import blocks
from drift.running.descent.caches import restore_snapshot, take_snapshot
from drift.running.descent.descending import descend
from drift.running.descent.guard import admit
from drift.running.descent.lanes import Lane, Recorder
from drift.running.model.numerics import numerics, rung_of
from drift.running.protocols import parse

pytestmark = pytest.mark.numerical

TOKENS, CHUNK = 40, 12
ENDS = (12, 24, 36, 40)
#: Recurrences beside attention, alone, within its blocks; convolutions beside attention; blocks that carry nothing; a
#: cache of the architecture's own.
KEYS = ("qwen3_next", "mamba2", "falcon_h1", "lfm2", "nemotron_h", "minimax")
#: Their blocks with recurrences.
RECURS = {
    "qwen3_next": [1, 3], "mamba2": [1, 2, 3], "falcon_h1": [1, 2, 3], "lfm2": [], "nemotron_h": [1],
    "minimax": [2],
}  # fmt: skip
PAGE = Path(drift.__file__).parents[1] / "docs" / "recurrent.md"


@cache
def model_of(key: str) -> Any:
    return architectures.build(key)


def text_of(tokens: int = TOKENS) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(5, 150, size=tokens))


def states_in(layer: Any) -> list[torch.Tensor]:
    """What a layer of transformers holds of states, by its own attributes: convolutions, then recurrences."""
    held = [getattr(layer, name, {}) for name in ("conv_states", "recurrent_states")]
    return [state[0].clone() for states in held for state in states.values() if state is not None]


class Plain:
    """``model(chunk, cache)``, chunk after chunk, and what the cache then holds."""

    def __init__(self, model: Any, ids: torch.Tensor, ends: Sequence[int]) -> None:
        own = type(model).__name__ == "MiniMaxForCausalLM"
        self.cache = MiniMaxCache() if own else DynamicCache(config=model.config)
        first = model.get_decoder().layers[0]
        handle = first.register_forward_hook(lambda module, args, out: self.first.append(out[0]))
        name = "cache_params" if type(model).__name__.startswith("Mamba") else "past_key_values"
        self.scores, self.first, self.states = list[torch.Tensor](), list[torch.Tensor](), {}
        with numerics(rung_of(model.dtype)):
            for start, stop in zip((0, *ends[:-1]), ends, strict=True):
                self.scores.append(model(ids[None, start:stop], **{name: self.cache}, use_cache=True).logits[0])
                self.states[stop] = self._held()
        handle.remove()

    def _held(self) -> list[list[torch.Tensor]]:
        held = [states_in(layer) for layer in self.cache.layers]
        for block, state in enumerate(getattr(self.cache, "linear_cache", [])):
            held[block] += [state[0].clone()] if len(state) else []
        return held


class Told(Recorder):
    """What a descent tells of each lane."""

    def __init__(self) -> None:
        self.scores: dict[int, list[torch.Tensor]] = {}
        self.states_of: dict[tuple[int, int, int], list[torch.Tensor]] = {}
        self.slots: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self.first: list[torch.Tensor] = []

    def hidden(self, layer: int, kind: str, states: Sequence[torch.Tensor]) -> None:
        if layer == 1:
            self.first = [state.clone() for state in states]

    def cached(self, lane: int, block: int, step: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.slots[lane, block] = keys.clone(), values.clone()

    def states(self, lane: int, block: int, tokens: int, convolved: Any, recurrent: Any) -> None:
        self.states_of[lane, block, tokens] = [state.clone() for state in (*convolved, *recurrent)]

    def logits(self, lane: int, rows: torch.Tensor, logits: torch.Tensor) -> None:
        self.scores.setdefault(lane, []).append(logits.clone())


def told(model: Any, lanes: Sequence[Lane]) -> Told:
    recorder = Told()
    admit(model)
    with numerics(rung_of(model.dtype)):
        descend(model, lanes, recorder)
    return recorder


@pytest.mark.parametrize("key", KEYS)
def test_states_keys_values_and_logits_are_a_plain_loop_s(key: str) -> None:
    model, ids = model_of(key), text_of()
    lanes = [Lane(ids, parse("append").chunks(TOKENS, size)) for size in (TOKENS, CHUNK)]
    found = told(model, lanes)
    for lane, ends in enumerate(((TOKENS,), ENDS)):
        plain = Plain(model, ids, ends)
        assert torch.equal(torch.cat(found.scores[lane]), torch.cat(plain.scores))
        for stop, held in plain.states.items():
            for block, states in enumerate(held, 1):
                mine = found.states_of.get((lane, block, stop), [])
                assert len(mine) == len(states)
                assert all(map(torch.equal, mine, states)), (block, stop)
        for block, layer in enumerate(plain.cache.layers, 1):
            if isinstance(getattr(layer, "keys", None), torch.Tensor) and layer.keys.numel():
                assert torch.equal(found.slots[lane, block][0], layer.keys[0])
                assert torch.equal(found.slots[lane, block][1], layer.values[0])
            else:
                assert (lane, block) not in found.slots


@pytest.mark.parametrize("key", KEYS)
def test_cells_say_what_blocks_carry_and_have_numbers_of_that(key: str) -> None:
    cell = drift.trace(model_of(key), text_of(), CHUNK, floor_draws=1)
    assert cell.attrs["descent"] == "bitwise"
    recurs = RECURS[key]
    slots = np.isin(cell["carries"], [words for (keys, _), words in CARRIES.items() if keys])
    for name in ("key_rel_l2", "value_rel_l2", "key_rel_l2_floor"):
        assert np.isfinite(cell[name].values[:, slots]).all()
        assert np.isnan(cell[name].values[:, ~slots]).all()
    assert ("state_rel_l2" in cell) == ("state_rel_l2_floor" in cell) == bool(recurs)
    if recurs:
        known = np.isin(cell["block"], recurs)
        for name in ("state_rel_l2", "state_rel_l2_floor"):
            assert np.isfinite(cell[name].values[:, known]).all()
            assert np.isnan(cell[name].values[:, ~known]).all()
        assert (cell["state_rel_l2_floor"].values[:, known] > 0).all()
    assert (cell["cache_bytes"] > 0).all()


@pytest.mark.parametrize("key", ["qwen3_next", "mamba2"])
def test_a_lane_that_forgot_its_states_would_be_noticed(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its states a fold is another function: the loop above tells, and the guard takes no such model on."""
    model, ids = architectures.build(key), text_of()
    admit(model)
    plain = blocks._take_chunk

    def forgetful(index: int, block: Any, lane: Any, place: int, call: Any, tape: Any) -> Any:
        pair = plain(index, block, lane, place, call, tape)
        for state in (*getattr(tape.layers[index], "recurrent_states", {}).values(),):
            state.zero_()
        return pair

    monkeypatch.setattr(blocks, "_take_chunk", forgetful)
    found = told(model, [Lane(ids, parse("append").chunks(TOKENS, CHUNK))])
    assert not torch.equal(torch.cat(found.scores[0]), torch.cat(Plain(model, ids, ENDS).scores))
    with pytest.raises(UnsupportedModelError, match=r"parts from its own forward in one pass at state"):
        drift.trace(architectures.build(key), ids, CHUNK)


def test_the_drift_of_states_is_that_of_a_loop_from_passes_over_the_text_up_to_there() -> None:
    model, ids = model_of("mamba2"), text_of()
    cell = drift.trace(model, ids, CHUNK, floor_draws=0)
    fold, whole = Plain(model, ids, ENDS), Plain(model, ids, (TOKENS,))
    for step, stop in enumerate(ENDS):
        # What the first block is given is the embeddings, in both.
        upto = Plain(model, ids[:stop], (stop,)).states[stop][0][1]
        mine = fold.states[stop][0][1]
        want = float((mine.double() - upto.double()).norm() / upto.double().norm())
        assert cell["state_rel_l2"].values[0, 0, step] == pytest.approx(want, rel=1e-12)
    for block in range(3):
        a, b = whole.states[TOKENS][block][1].double(), fold.states[TOKENS][block][1].double()
        assert cell["state_rel_l2"].values[0, block, -1] == pytest.approx(float((b - a).norm() / a.norm()), rel=1e-12)


def test_states_are_not_compared_at_more_steps_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_lanes, "STATE_STEPS", len(ENDS) - 1)
    assert "state_rel_l2" not in drift.trace(model_of("mamba2"), text_of(), CHUNK, floor_draws=0)


def test_a_distance_of_several_states_is_that_of_all_their_numbers() -> None:
    a, b = torch.randn(2, 3, generator=torch.manual_seed(0)), torch.randn(4)
    c, d = a + 0.1, b - 0.2
    want = (6 * 0.1**2 + 4 * 0.2**2) ** 0.5 / float(torch.cat([a.flatten(), b]).double().norm())
    assert measures.relative_l2([a, b], [c, d]) == pytest.approx(want, rel=1e-5)  # 0.1 in float32
    assert measures.relative_l2([a, b], [a, b]) == 0.0
    assert np.isnan(measures.relative_l2([a, b], [a, b * float("nan")]))
    with pytest.raises(ValueError, match="alike"):
        measures.relative_l2([a], [b])


def test_one_step_begins_from_the_states_that_full_attention_has_there() -> None:
    model, ids = model_of("mamba2"), text_of()
    chunks = parse("one_step(append)").chunks(TOKENS, CHUNK)
    full = Lane(ids, parse("append").chunks(TOKENS, TOKENS), marks=ENDS)
    found = told(model, [full, Lane(ids, chunks, parse("one_step(append)"), source=0)])
    for start, stop in itertools.pairwise(ENDS):
        # One pass up to the chunk, then the chunk; what comes out of the first block.
        plain = Plain(model, ids[:stop], (start, stop))
        assert torch.equal(found.first[1][start:stop], plain.first[1])
        assert not torch.equal(found.first[1][start:stop], found.first[0][start:stop])


@pytest.mark.parametrize(("key", "protocol"), [("qwen3_next", "isolated"), ("mamba2", "isolated(probe=1)")])
def test_states_of_chunks_prefilled_alone_are_not_put_together(key: str, protocol: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"carries states.*cannot be put together.*append, restart"):
        drift.trace(model_of(key), text_of(), CHUNK, protocol)


@pytest.mark.parametrize("protocol", ["quantized", "merge(budget=20)"])
def test_where_there_are_no_keys_and_values_none_are_changed(protocol: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"keeps no keys and values.*\(append, reprime\)"):
        drift.trace(model_of("mamba2"), text_of(), CHUNK, protocol)


def test_a_protocol_of_keys_and_values_leaves_states_as_the_loop_does() -> None:
    """The first block's states see nothing of what becomes of the cache of the second."""
    model, ids = model_of("qwen3_next"), text_of()
    protocol = parse("quantized(format=int4)")
    lanes = [Lane(ids, parse(each).chunks(TOKENS, CHUNK), parse(each)) for each in ("append", protocol.label)]
    found = told(model, lanes)
    for stop in ENDS:
        assert all(map(torch.equal, found.states_of[0, 1, stop], found.states_of[1, 1, stop]))
    last = [torch.cat(found.scores[lane]) for lane in (0, 1)]
    assert torch.equal(last[0][:CHUNK], last[1][:CHUNK])
    assert not torch.equal(last[0][CHUNK:], last[1][CHUNK:])


@pytest.mark.parametrize("protocol", ["perturbed(append,step=1,size=0.001)", "random_walk(append,noise=1000)"])
def test_noise_on_a_cache_is_noise_on_its_states(protocol: str) -> None:
    reference = {"reference": "unperturbed"} if protocol.startswith("perturbed") else {}
    cell = drift.trace(model_of("mamba2"), text_of(), CHUNK, protocol, floor_draws=0, **reference)
    quiet = drift.trace(model_of("mamba2"), text_of(), CHUNK, floor_draws=0)
    drifted = cell["hidden_rel_l2"].values[0, -1]
    first = 2 if reference else 1  # the first step that sees noise
    assert (drifted[first:] > 10 * quiet["hidden_rel_l2"].values[0, -1, first:]).all()
    if reference:
        assert (drifted[:first] == 0).all()


@pytest.mark.parametrize("key", ["mamba", "jamba", "zamba", "recurrent_gemma"])
def test_code_that_goes_on_by_single_tokens_only_is_refused_as_that(key: str) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"another function in chunks.*by single tokens only\. Token by token"
    ):
        drift.trace(model_of(key), text_of(), CHUNK)


@pytest.mark.parametrize("key", ["qwen3_next", "mamba2"])
def test_a_fold_and_its_branches_go_their_own_ways(key: str) -> None:
    model, ids = model_of(key), text_of(TOKENS)
    folded = drift.fold(model, ids[:24], CHUNK)
    branches = [folded.branch(), folded.branch()]
    other = ids[24:36].flip(0)
    branches[0].feed(other)
    branches[1].feed(ids[24:36])
    plain = Plain(model, ids[:36], (12, 24, 36))
    for branch, stop in ((folded, 24), (branches[1], 36)):
        for layer, states in zip(branch.cache.layers, plain.states[stop], strict=True):
            assert all(map(torch.equal, states_in(layer), states))
    assert folded.cache.bytes > 0


def test_a_snapshot_is_not_written_over() -> None:
    model, ids = model_of("qwen3_next"), text_of()
    held = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[None, :12], past_key_values=held)
        snapshot = take_snapshot(held)
        before = [states_in(layer) for layer in held.layers]
        model(ids[None, 12:24], past_key_values=held)
        assert not all(map(torch.equal, states_in(held.layers[0]), before[0]))
        restore_snapshot(held, snapshot)
        for layer, states in zip(held.layers, before, strict=True):
            assert all(map(torch.equal, states_in(layer), states))
        again = model(ids[None, 12:24], past_key_values=held).logits[0]
    assert torch.equal(again, Plain(model, ids[:24], (12, 24)).scores[1])


def test_first_and_last_are_blocks_that_carry_what_is_measured() -> None:
    cell = synthetic.cell(**synthetic.SMALL, recurrent=True)
    assert blocks_with(cell, "key_rel_l2").tolist() == [False, True]
    assert blocks_with(cell, "state_rel_l2_floor").tolist() == [True, True]
    assert np.array_equal(curve(cell, "key_rel_l2", "first"), cell["key_rel_l2"].values[:, 1])
    assert np.array_equal(curve(cell, "state_rel_l2", "first"), cell["state_rel_l2"].values[:, 0])
    assert np.isnan(curve(cell, "key_rel_l2", 1)).all()


def test_the_page_says_what_was_measured() -> None:
    with bench("recurrent") as module:
        results = json.loads(module.RESULTS.read_text(encoding="utf-8"))
        assert list(results) == list(module.MODELS)
        assert module.table(results) in PAGE.read_text(encoding="utf-8")


def test_half_lives_of_the_measured_models_are_what_they_are_called() -> None:
    """Where the gate is neither open nor shut, the state of Mamba-2 decays as exp(-exp(A_log) softplus(0))."""
    with bench("recurrent") as module:
        for half_life in (module.SHORT, module.LONG):
            model = module.build(*module._RECURRENT, half_life)
            mixer = model.get_decoder().layers[0].mixer
            decay = torch.exp(-mixer.A_log.double().exp() * torch.nn.functional.softplus(mixer.dt_bias.double()))
            assert torch.allclose(decay**half_life, torch.full_like(decay, 0.5), rtol=1e-5)
