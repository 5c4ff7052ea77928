"""Nothing is vouched for that one lane lacks, and nobody is accused on arithmetic that nobody measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diagnose_numbers import CHUNK, TOKENS, Whole, cut, diagnosed, drawn
from diagnose_tools import Tensors, rounded, save
from safetensors.torch import load_file, save_file

from drift.diagnose import _unit_roundoff, main
from drift.reading.diagnose.model import Cause, Verdict
from drift.reading.diagnose.showing import as_dict, page
from drift.reading.diagnose.tensors import Dump, Place, open_dump
from drift.reading.diagnose.verdict import diagnose


# ------------------------------------------------------------------------------------------------ lanes that end early
def after_the_embeddings(b: Tensors) -> Tensors:
    return {name: tensor for name, tensor in b.items() if name.endswith("layer.0.hidden")}


def after_two_steps(b: Tensors) -> Tensors:
    return {name: tensor for name, tensor in b.items() if name.startswith(("step.0.", "step.1."))}


def inside_the_last_step(b: Tensors) -> Tensors:
    lost = ("layer.2.hidden", "layer.3.hidden", "block.3.key", "block.3.value", "final", "logits")
    return {name: tensor for name, tensor in b.items() if name not in {f"step.5.{end}" for end in lost}}


def before_the_last_logits(b: Tensors) -> Tensors:
    return {name: tensor for name, tensor in b.items() if name != "step.5.logits"}


ENDS = [
    (after_the_embeddings, "ends early: from step 0 (token 0) on it lacks the hidden state after block 1 and all of"),
    (after_two_steps, "ends early: it has 16 tokens, its last step is 1, and A goes on to 48 tokens"),
    (inside_the_last_step, "ends early: from step 5 (token 40) on it lacks the hidden state after block 2 and all of"),
    (before_the_last_logits, "ends early: from step 5 (token 40) on it lacks the logits, which A has"),
]


@pytest.mark.parametrize(("crash", "words"), ENDS)
@pytest.mark.parametrize("clean", [lambda x: x, rounded])
@pytest.mark.parametrize("chunk", [CHUNK, TOKENS])
def test_a_lane_that_ends_early_is_not_vouched_for(
    tmp_path: Path, crash: object, words: str, clean: object, chunk: int
) -> None:
    a = drawn()
    b = crash(clean(cut(a)))  # type: ignore[operator]
    found = diagnosed(tmp_path, cut(a, chunk), b)
    assert (found.verdict, found.exit_code) == (Verdict.UNDETERMINED, 3)
    assert f"B {words}" in found.missing[0]
    assert f"B {words}" in found.reason
    lines = page(found).splitlines()
    assert lines[3].startswith("Missing: B ends early")
    assert as_dict(found)["missing"] == found.missing
    # The reference may have ended, too.
    other = diagnose(open_dump(tmp_path / "b"), open_dump(tmp_path / "a"))
    assert (other.verdict, other.missing[0][0]) == (Verdict.UNDETERMINED, "A")


def test_what_differs_before_the_end_is_still_told(tmp_path: Path) -> None:
    a = drawn()
    b = after_two_steps(cut(a | {"block.2.value": 1.5 * a["block.2.value"]}))
    found = diagnosed(tmp_path, cut(a), b)
    assert found.verdict is Verdict.STRUCTURAL
    assert page(found).splitlines()[3].startswith("Missing: B ends early")


def test_a_finer_pair_that_is_whole_does_not_vouch_for_a_coarser_that_is_not(tmp_path: Path) -> None:
    fine = cut(drawn())
    other = (open_dump(save(fine, tmp_path / "fa")), open_dump(save(rounded(fine), tmp_path / "fb")))
    assert diagnose(*other).verdict is Verdict.ROUNDING
    coarse = {name: tensor.bfloat16() for name, tensor in fine.items()}
    found = diagnosed(tmp_path, coarse, after_two_steps(rounded(coarse)), other=other)
    assert found.verdict is Verdict.UNDETERMINED


def test_kinds_that_one_lane_was_not_asked_for_are_a_choice(tmp_path: Path) -> None:
    a = cut(drawn())
    for kind, words in (("logits", "logits"), ("key", "keys"), ("final", "final states")):
        b = {name: tensor for name, tensor in a.items() if not name.endswith(kind)}
        found = diagnosed(tmp_path / kind, a, b)
        assert (found.verdict, found.exit_code) == (Verdict.SAME, 0)
        assert found.missing == [f"B holds no {words} at all; they were not compared"]
        assert page(found).splitlines()[3] == f"Missing: {found.missing[0]}."
    last = {n: t[-1:] if n.endswith("logits") else t for n, t in a.items()}
    assert diagnosed(tmp_path / "last", a, last).verdict is Verdict.SAME


def test_the_exit_code_of_a_crashed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = cut(drawn())
    folders = [str(save(x, tmp_path / name)) for name, x in (("a", a), ("b", after_the_embeddings(a)))]
    assert main(folders) == 3
    assert "UNDETERMINED" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- rounding of which size
def coarse_outputs(size: float = 2.0**-9) -> tuple[Whole, Whole]:
    """Lanes of an engine that adds up in 16 bits what attention reads, and hands out fp32: from chunk 2 on, unlike."""
    a, other = drawn(), drawn(seed=1)
    b = dict(a)
    for block in (1, 2, 3):
        for name in (f"layer.{block}.hidden", *(f"block.{block}.{k}" for k in ("key", "value") if block > 1)):
            b[name] = b[name].clone()
            b[name][..., 2 * CHUNK :, :] *= 1 + size * other[name][..., 2 * CHUNK :, :]
    return a, b


def test_a_format_alone_accuses_nobody(tmp_path: Path) -> None:
    a, b = coarse_outputs()
    found = diagnosed(tmp_path, cut(a, TOKENS), cut(b))
    assert (found.verdict, found.cause, found.exit_code) == (Verdict.UNDETERMINED, Cause.NONE, 3)
    assert found.reason.startswith("rounding of which size?")
    assert "--unit-roundoff" in found.reason
    assert "--floor" in found.reason
    assert "Cause:" not in page(found)
    assert found.entry is not None
    assert (found.entry.place, found.entry.start) == (Place("hidden", 1), 2 * CHUNK)
    assert as_dict(found)["envelope"]["arithmetic"] == "format"


def said(folder: Path, tensors: Tensors, dtype: str) -> Dump:
    """A dump whose metadata say what was computed in."""
    save(tensors, folder)
    save_file(load_file(folder / "lane.safetensors"), folder / "lane.safetensors", {"dtype": dtype})
    return open_dump(folder)


@pytest.mark.parametrize(("one", "two"), [("fp32", "fp32"), ("float32", "torch.float32"), ("fp64", "fp32")])
def test_what_is_known_of_the_arithmetic_accuses(tmp_path: Path, one: str, two: str) -> None:
    a, b = coarse_outputs()
    found = diagnose(said(tmp_path / "a", cut(a, TOKENS), one), said(tmp_path / "b", cut(b), two))
    assert (found.verdict, found.roundoff.value) == (Verdict.STRUCTURAL, 2.0**-24)
    # One lane's word is not the other's.
    found = diagnose(said(tmp_path / "c", cut(a, TOKENS), one), said(tmp_path / "d", cut(b), "unheard of"))
    assert found.verdict is Verdict.UNDETERMINED


def test_metadata_of_a_coarser_arithmetic_widen_the_envelope(tmp_path: Path) -> None:
    a, b = coarse_outputs()
    found = diagnose(said(tmp_path / "a", cut(a, TOKENS), "fp16"), said(tmp_path / "b", cut(b), "fp16"))
    assert (found.verdict, found.roundoff.value) == (Verdict.ROUNDING, 2.0**-11)


def test_what_lanes_differ_by_before_the_bug_measures_their_arithmetic(tmp_path: Path) -> None:
    a, b = coarse_outputs()
    found = diagnosed(tmp_path, cut(a, TOKENS), cut(rounded({**b})))
    assert found.verdict is Verdict.STRUCTURAL
    assert found.entry is not None
    assert found.entry.start == 2 * CHUNK


def test_a_floor_measures_the_arithmetic_unless_it_is_the_same_bits(tmp_path: Path) -> None:
    a, b = coarse_outputs()
    verdicts = {}
    for name, c in (("same", a), ("fine", rounded(dict(a))), ("coarse", coarse_outputs()[1])):
        floor = open_dump(save(cut(c, TOKENS), tmp_path / name))
        verdicts[name] = diagnosed(tmp_path / f"of {name}", cut(a, TOKENS), cut(b), floor=floor)
    assert verdicts["same"].verdict is Verdict.UNDETERMINED
    assert "--floor" not in verdicts["same"].reason
    assert "measures nothing" in verdicts["same"].reason
    assert verdicts["fine"].verdict is Verdict.STRUCTURAL
    assert verdicts["coarse"].verdict is Verdict.ROUNDING


def test_what_no_arithmetic_explains_is_structural_whatever_it_was(tmp_path: Path) -> None:
    a, b = coarse_outputs(size=0.5)
    assert diagnosed(tmp_path, cut(a, TOKENS), cut(b)).verdict is Verdict.STRUCTURAL


def test_the_unit_roundoff_is_taken_by_torch_s_names() -> None:
    assert _unit_roundoff("bfloat16") == _unit_roundoff("bf16") == _unit_roundoff("torch.bfloat16") == 2.0**-8
    assert _unit_roundoff("float32") == 2.0**-24


def test_even_noise_is_structural_where_both_lanes_say_what_they_computed_in(tmp_path: Path) -> None:
    a, other = drawn(), drawn(seed=1)
    noisy = {k: v if k == "layer.0.hidden" else v * (1 + 2.0**-11 * other[k]) for k, v in a.items()}
    assert diagnosed(tmp_path / "unsaid", cut(a, TOKENS), cut(noisy)).verdict is Verdict.UNDETERMINED
    lanes = said(tmp_path / "a", cut(a, TOKENS), "fp32"), said(tmp_path / "b", cut(noisy), "fp32")
    assert diagnose(*lanes).verdict is Verdict.STRUCTURAL


def test_every_option_of_the_command_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fine = cut(drawn())
    coarse = {name: tensor.bfloat16() for name, tensor in fine.items()}
    made = {"a": coarse, "b": rounded(coarse), "c": rounded(coarse, 1), "fa": fine, "fb": rounded(fine)}
    f = {name: str(save(tensors, tmp_path / name)) for name, tensors in made.items()}
    command = [f["a"], f["b"], "--floor", f["c"], "--unit-roundoff", "bfloat16", "--heads", "2"]
    assert main([*command, "--other-precision", f["fa"], f["fb"], "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["verdict"], row["envelope"]["arithmetic"]) == ("rounding", "given")
    slope = next(e["slope"] for e in row["evidence"] if "slope" in e)
    assert slope == pytest.approx(1, abs=0.1)
