"""Dumps that the packages themselves wrote: what is read is what a plain loop of transformers computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diagnose_tools import Tensors, save
from dump_makers import BLOCKS, CHUNK, HEADS, TOKENS, ids, tiny, transformers_debugger
from transformers import DynamicCache

from drift.diagnose import main
from drift.reading.diagnose.tensors import Dump, open_dump

DUMPS = Path(__file__).parent / "dumps"
# Kernels of other machines and versions round otherwise: some hundred roundings of numbers of size 1, as a bound.
CLOSE = 100 * 2.0**-24


def plain(chunk: int) -> Tensors:
    """A lane of the tiny model under names of our own."""
    model, cache, out = tiny(), DynamicCache(), {}
    last: list[torch.Tensor] = []  # transformers hands out what the norm makes of it
    model.get_decoder().layers[-1].register_forward_hook(lambda module, args, output: last.append(output))
    with torch.no_grad():
        for step, part in enumerate(ids().split(chunk, dim=1)):
            before = cache.get_seq_length()
            found = model(part, past_key_values=cache, use_cache=True, output_hidden_states=True)
            states = [*found.hidden_states[:-1], last.pop()]
            out |= {f"step.{step}.layer.{layer}.hidden": state for layer, state in enumerate(states)}
            out |= {f"step.{step}.final": found.hidden_states[-1], f"step.{step}.logits": found.logits}
            for block, layer in enumerate(cache.layers, 1):
                out[f"step.{step}.block.{block}.key"] = layer.keys[:, :, before:].clone()
                out[f"step.{step}.block.{block}.value"] = layer.values[:, :, before:].clone()
    assert len(states) == BLOCKS + 1
    return out


@pytest.fixture(scope="module")
def lanes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("plain")
    return {chunk: save(plain(chunk), folder / str(chunk)) for chunk in (CHUNK, TOKENS)}


def holds(found: Dump, truth: Dump, kinds: set[str]) -> None:
    """Every place of some kinds and no other, with the numbers that it should have."""
    assert set(found.places) == {place for place in truth.places if place.kind in kinds}
    for place in found.places:
        assert np.allclose(found.read(place, 0, TOKENS), truth.read(place, 0, TOKENS), rtol=0, atol=CLOSE), place


def test_transformers_debugger(lanes: dict[int, Path], tmp_path: Path) -> None:
    transformers_debugger(tmp_path / "trace")
    found = open_dump(tmp_path / "trace", heads=HEADS)
    assert found.boundaries == [0, CHUNK, TOKENS]
    holds(found, open_dump(lanes[CHUNK]), {"hidden", "value", "final", "logits"})
    assert main([str(lanes[CHUNK]), str(tmp_path / "trace"), "--heads", str(HEADS)]) == 0


def test_transformerlens(lanes: dict[int, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = open_dump(DUMPS / "transformerlens4.npz")
    holds(found, open_dump(lanes[TOKENS]), {"hidden", "key", "value", "final", "logits"})
    assert main([str(lanes[TOKENS]), str(DUMPS / "transformerlens4.npz")]) == 0
    assert "B was read as a cache of TransformerLens." in " ".join(capsys.readouterr().out.split())
