"""Blocks computed again from each lane's own inputs: against a plain pass in float64, and against planted bugs."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model
from diagnose_tools import CHUNK, Tensors, lane, random_model, save, text, unaccused

from drift.diagnose import main
from drift.errors import DatasetError, DriftError
from drift.reading.diagnose import Diagnosis, Verdict, diagnose, open_dump
from drift.reading.diagnose.confirming import computed_in, confirm, local_errors
from drift.reading.diagnose.hiding import HIDES
from drift.reading.diagnose.tensors import Place
from drift.running.checkpoints import loading
from drift.running.confirming import Recomputer

TOKENS = 64


@pytest.mark.parametrize("family", ["llama", "gemma3-long-window", "qwen3-moe"])
def test_a_block_is_what_a_plain_pass_in_float64_makes(family: str) -> None:
    model, ids = make_model(family), text(40)
    wide = copy.deepcopy(model).double()
    wide.config._experts_implementation = "eager"
    states: dict[int, torch.Tensor] = {}
    for i, block in enumerate(wide.get_decoder().layers):
        block.register_forward_hook(
            lambda module, args, out, i=i: states.update({i: out[0] if isinstance(out, tuple) else out})
        )
    with torch.no_grad():
        plain = wide(ids[None], output_hidden_states=True)
    again = Recomputer(model)
    assert again.depth == len(states)
    for block in range(1, again.depth + 1):
        before = plain.hidden_states[block - 1][0].numpy()
        found = again.block(block, before, True)
        # Norms and rotary tables are computed in fp32 there, and in float64 here.
        assert found["hidden"] == pytest.approx(states[block - 1][0].numpy(), rel=1e-4, abs=1e-4)
    final, logits = again.head(states[again.depth - 1][0].numpy(), np.array([3, 39]), True)
    assert final == pytest.approx(plain.hidden_states[-1][0].numpy(), rel=1e-4, abs=1e-4)
    assert logits == pytest.approx(plain.logits[0, [3, 39]].numpy(), rel=1e-4, abs=1e-4)


def pair(folder: Path, change: Any = None, *, of_a: bool = False) -> tuple[Any, list[Any]]:
    """The model, and dumps of full attention and of a chunked lane, one of them by a model that was changed."""
    model, other = (random_model("llama", torch.bfloat16) for _ in range(2))
    ids = text(TOKENS)
    if change is not None:
        with torch.no_grad():
            change(other)
    lanes: list[Tensors] = [lane(other if of_a else model, ids), lane(model if of_a else other, ids, CHUNK)]
    return model, [open_dump(save(x, folder / name)) for x, name in zip(lanes, "ab", strict=True)]


def off(model: Any) -> None:
    """Five per cent too much of a block's down projection."""
    model.model.layers[1].mlp.down_proj.weight.mul_(1.05)


def confirmed(folder: Path, change: Any = None, **options: Any) -> Diagnosis:
    model, lanes = pair(folder, change, **options)
    found = diagnose(*lanes)
    confirm(found, Recomputer(model))
    return found


def test_a_clean_pair_is_rounding_where_it_was_undetermined(tmp_path: Path) -> None:
    model, lanes = pair(tmp_path)
    found = diagnose(*lanes)
    assert unaccused(found)
    before = found.verdict
    confirm(found, Recomputer(model))
    assert found.verdict is (Verdict.SAME if before is Verdict.SAME else Verdict.ROUNDING)
    if found.could_hide is not None:
        assert found.could_hide <= HIDES


@pytest.mark.parametrize("of_a", [False, True])
def test_a_block_that_is_off_is_found_in_the_lane_that_it_is_in(tmp_path: Path, of_a: bool) -> None:
    found = confirmed(tmp_path, off, of_a=of_a)
    assert found.verdict is Verdict.STRUCTURAL
    assert found.entry is not None
    assert (found.entry.place, found.entry.step_b) == (Place("hidden", 2), 0)
    assert found.evidence[0].numbers["lane"] == ("A" if of_a else "B")
    assert "still there" in found.evidence[0].text


def test_an_accusation_is_taken_back_where_every_block_is_as_it_should_be(tmp_path: Path) -> None:
    model = random_model("llama", torch.bfloat16)
    eager = lane(random_model("llama", torch.bfloat16, "eager"), text(TOKENS), CHUNK)
    lanes = [open_dump(save(x, tmp_path / name)) for x, name in ((lane(model, text(TOKENS)), "a"), (eager, "b"))]
    found = diagnose(*lanes, unit_roundoff=2.0**-24)
    assert found.verdict is Verdict.STRUCTURAL
    confirm(found, Recomputer(model))
    assert found.verdict is Verdict.UNDETERMINED
    assert "not there" in found.reason


def test_local_errors_do_not_inherit(tmp_path: Path) -> None:
    model, lanes = pair(tmp_path, off)
    errors = local_errors(diagnose(*lanes), Recomputer(model))
    odd = {one.place for one in errors if one.odd}
    assert odd == {Place("hidden", 2)}
    assert {one.place for one in errors} >= {Place("final", 0), Place("logits", 0), Place("key", 3)}


def test_what_cannot_be_computed_again_is_refused(tmp_path: Path) -> None:
    model, lanes = pair(tmp_path)
    other = random_model("llama", torch.bfloat16, seed=5)
    if (found := diagnose(*lanes)).verdict is not Verdict.SAME:
        with pytest.raises(DatasetError, match="another model's"):
            confirm(found, Recomputer(other))
    with pytest.raises(DriftError, match="features"):
        Recomputer(model).block(1, np.zeros((4, 7), dtype=np.float32), True)
    with pytest.raises(DriftError, match="block 9"):
        Recomputer(model).block(9, np.zeros((4, 32), dtype=np.float32), True)
    bare = {name: x for name, x in lane(model, text(TOKENS)).items() if "hidden" not in name}
    noisy = {name: x * 1.01 for name, x in bare.items()}
    found = diagnose(*(open_dump(save(x, tmp_path / n)) for x, n in ((bare, "bare"), (noisy, "noisy"))))
    with pytest.raises(DatasetError, match="hidden states"):
        confirm(found, Recomputer(model))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model, lanes = pair(tmp_path, off)
    asked: list[Any] = []
    monkeypatch.setattr(loading, "load", lambda *given: asked.append(given) or SimpleNamespace(model=model))
    assert computed_in(lanes[0]) == "bf16"
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--confirm", "tiny"]) == 1
    assert asked == [("tiny", "bf16", "cpu", "sdpa")]
    words = " ".join(capsys.readouterr().out.split())
    assert "the difference is still there, and it is B" in words
