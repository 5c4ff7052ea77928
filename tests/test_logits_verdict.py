"""Verdicts of drift.logits, their exit codes, and what is printed."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logits_tools import drawn, moved, ours, tokens_of

import drift
from drift.errors import ArgumentError, DatasetError
from drift.logits import main
from drift.reading.floor.model import FACTOR
from drift.reading.logits import Reason, Verdict, as_dict, numbers, page
from drift.reading.logits.deciding import LEAST_POSITIONS, NEAR, TAIL
from drift.reading.logits.model import BAND, LogitComparison
from drift.reading.plateau.model import Verdict as Growth
from drift.reading.quantities import Of
from drift.reading.statistics.intervals import ALPHA
from drift.reading.statistics.windows import DOCUMENTS
from drift.reading.wording.numbers import coverage, number

A = drawn((6, 40, 11))
NUMBER_OF_RESAMPLES = numbers.RESAMPLES
FLOOR = [moved(A, 1e-3, 11), moved(A, 1e-3, 12)]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "RESAMPLES", 10)


def decided(b: np.ndarray, floor: Any = tuple(FLOOR), a: np.ndarray = A) -> tuple[Verdict, Reason, int]:
    found = drift.compare_logits(a, b, floor=floor)
    return found.verdict, found.reason, found.exit_code


# ------------------------------------------------------------------------------------------ verdicts
def test_same_bits_need_no_floor() -> None:
    assert decided(A.copy(), ()) == (Verdict.SAME, Reason.EQUAL, 0)
    assert decided(A.copy()) == (Verdict.SAME, Reason.EQUAL, 0)


def test_without_a_floor_nothing_is_decided() -> None:
    assert decided(moved(A, 1e-12, 1), ()) == (Verdict.UNDETERMINED, Reason.NO_FLOOR, 3)


def test_a_repeat_is_within_the_floor_and_what_is_twice_as_far_beyond() -> None:
    assert decided(moved(A, 1e-3, 1)) == (Verdict.WITHIN, Reason.LEVEL, 0)
    assert decided(moved(A, 2e-3, 1)) == (Verdict.BEYOND, Reason.LEVEL, 1)
    assert decided(moved(A, 1e-5, 1)) == (Verdict.WITHIN, Reason.LEVEL, 0)
    found = drift.compare_logits(A, moved(A, 2e-3, 1), floor=FLOOR).excess
    assert found is not None
    assert found.low < 2 < found.high
    assert found.ratio == pytest.approx(2, rel=0.1)


def test_a_level_at_the_factor_is_undetermined_and_says_how_much_would_decide() -> None:
    found = drift.compare_logits(A[:4], moved(A[:4], 1.38e-3, 1), floor=[FLOOR[0][:4]])
    assert (found.verdict, found.reason) == (Verdict.UNDETERMINED, Reason.LEVEL)
    assert found.exit_code == 3
    assert "would decide" in page(found)


def test_a_single_position_beyond_the_floor_is_not_averaged_away() -> None:
    b = moved(A, 1e-3, 1)
    b[3, 17, 2] += 20 * TAIL * 1e-3
    assert decided(b) == (Verdict.BEYOND, Reason.TAIL, 1)
    found = drift.compare_logits(A, b, floor=FLOOR)
    assert found.furthest == (3, 17)
    assert found.excess is not None
    assert found.excess.low < found.excess.factor  # the mean alone would not tell


def test_repeats_of_the_same_bits_are_no_floor() -> None:
    assert decided(moved(A, 1e-3, 1), [A, A]) == (Verdict.UNDETERMINED, Reason.FLOOR_ZERO, 3)
    assert decided(moved(A, 1e-3, 1), [A, FLOOR[0]])[1] is Reason.LEVEL


def test_few_positions_decide_nothing() -> None:
    few = np.s_[:1, : LEAST_POSITIONS - 1]
    assert decided(moved(A, 9e-3, 1)[few], [FLOOR[0][few]], A[few]) == (Verdict.UNDETERMINED, Reason.TOO_FEW, 3)


def test_within_the_floor_is_not_called_innocent() -> None:
    found = drift.compare_logits(A, moved(A, 1e-3, 1), floor=FLOOR)
    said = " ".join(page(found).split())
    floor = np.mean(found.numbers["kl_mean"].floor)  # type: ignore[index]
    assert f"no more than 1.0 floors (here a mean KL of {number(float(floor))}) reads the same" in said
    a = -np.random.default_rng(0).exponential(size=(6, 40))
    lists = drift.compare_logprobs(a, a + 1e-3, floor=[a - 1e-3])
    assert "a mean change of 1.0e-3 nats" in " ".join(page(lists).split())


def test_one_sequence_is_judged_by_its_parts() -> None:
    a = drawn((300, 11))
    found = drift.compare_logits(a, moved(a, 1e-3, 1), floor=[moved(a, 1e-3, 2)])
    assert found.verdict is Verdict.WITHIN
    assert found.excess is not None
    assert found.excess.parts
    assert found.excess.replicates == numbers.PARTS
    assert "parts of" in page(found)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_one_lane_is_a_finding(bad: float) -> None:
    b = moved(A, 1e-3, 1)
    b[2, 5, 3] = bad
    for floor in (FLOOR, ()):
        assert decided(b, floor) == (Verdict.BEYOND, Reason.NONFINITE, 1)
    found = drift.compare_logits(A, b, floor=FLOOR)
    assert found.furthest == (2, 5)
    assert all(math.isfinite(one.value) for one in found.numbers.values())
    assert as_dict(found)["nonfinite"] == {"a": 0, "b": 1, "one_alone": 1, "both": 0}
    assert "At 1 of 240 positions one lane alone" in page(found)
    both = A.copy()
    both[2, 5, 3] = bad
    # Where both lanes are so, a masked token is a token that is masked.
    found = drift.compare_logits(both, b, floor=[np.where(np.isfinite(both), x, both) for x in FLOOR])
    assert found.verdict is Verdict.WITHIN
    assert as_dict(found)["nonfinite"]["both"] == (bad != -np.inf)
    # A repeat that has it, too, makes it part of the floor, about which nothing is said.
    assert decided(b, [b, *FLOOR])[:2] == (Verdict.UNDETERMINED, Reason.NONFINITE)


def test_log_probabilities_that_are_not_finite_are_counted() -> None:
    a = -np.random.default_rng(0).exponential(size=(4, 30))
    b = a + 1e-3
    b[1, 4], b[2, 9] = -np.inf, np.nan
    found = drift.compare_logprobs(a, b, floor=[a - 1e-3])
    assert (found.verdict, found.reason) == (Verdict.BEYOND, Reason.NONFINITE)
    assert int(found.pairs.bad_b.sum()) == 2


@pytest.mark.parametrize(("sequences", "positions", "repeats"), [(8, 128, 1), (4, 64, 3), (1, 256, 2)])
def test_clean_pairs_are_not_accused(sequences: int, positions: int, repeats: int) -> None:
    """Positions differ in how sensitive they are (log-normal); all ways to compute err alike. Of 100 none is beyond."""
    generator = np.random.default_rng(3)
    accused = decided_here = 0
    for _ in range(100):
        sensitive = 1e-3 * np.exp(generator.normal(size=(sequences, positions)))
        truth = -generator.exponential(size=(sequences, positions))
        a, b, *floor = (truth + sensitive * generator.normal(size=truth.shape) for _ in range(2 + repeats))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("drift.reading.logits.comparing.numbers", lambda *_: {})
            patched.setattr("drift.reading.logits.comparing.growth", lambda *_: (None, Of.DRIFT))
            verdict = drift.compare_logprobs(a, b, floor=floor).verdict
        accused += verdict is Verdict.BEYOND
        decided_here += verdict is Verdict.WITHIN
    assert accused == 0
    assert decided_here >= 50


def test_growth_with_the_position_is_judged() -> None:
    a = drawn((6, 512, 7))
    noise = np.random.default_rng(5).normal(size=(3, *a.shape)) * 1e-3
    grown = noise[0] * np.sqrt(np.arange(1, 513))[:, None]
    alone = drift.compare_logits(a, a + grown)
    assert (alone.growth_of, alone.growth.verdict) == (Of.DRIFT, Growth.GROWING)  # type: ignore[union-attr]
    over = drift.compare_logits(a, a + grown, floor=[a + noise[1]])
    assert (over.growth_of, over.growth.verdict) == (Of.EXCESS, Growth.GROWING)  # type: ignore[union-attr]
    # Growth that the floor has as well is none over the floor.
    both = drift.compare_logits(a, a + grown, floor=[a + noise[2] * np.sqrt(np.arange(1, 513))[:, None]])
    assert both.growth is not None
    assert both.growth.verdict is not Growth.GROWING
    assert drift.compare_logits(a, a).growth is None


def test_masked_positions_do_not_count() -> None:
    a = -np.random.default_rng(0).exponential(size=(5, 30))
    b = a + 0.01
    b[:, :10] = -99.0  # prompts
    mask = np.arange(30) >= 10 + np.zeros((5, 1))
    found = drift.compare_logprobs(a, b, mask, floor=[a - 0.01])
    assert found.verdict is Verdict.WITHIN
    assert found.numbers["ratio_max"].value == pytest.approx(math.exp(0.01))  # type: ignore[index]
    texts = [list(row[10:]) for row in a]
    assert drift.compare_logprobs(texts, [row[10:] for row in b]).numbers["k1"].value == pytest.approx(-0.01)  # type: ignore[index]


def test_what_is_no_log_probability_is_refused() -> None:
    a = np.random.default_rng(0).exponential(size=(4, 20))
    with pytest.raises(DatasetError, match=r"b, sequence 0: a log-probability is .*which no probability has"):
        drift.compare_logprobs(-a, 2 * a)


def test_numbers_without_a_square_are_no_traceback() -> None:
    found = drift.compare_logprobs([[-1.0, -1e308]] * 4, [[-1.5, -9e307]] * 4)
    assert found.numbers["logprob_change_abs_max"].value == pytest.approx(1e307)  # type: ignore[index]
    json.dumps(as_dict(found), allow_nan=False)
    assert "UNDETERMINED" in page(found)


def test_the_page_of_the_docs_names_the_constants_that_decide() -> None:
    said = " ".join((Path(drift.__file__).parents[1] / "docs" / "logits.md").read_text(encoding="utf-8").split())
    assert math.sqrt(2) == FACTOR
    assert "is below √2" in said
    assert (10, re.findall("ten times as far", said)[0]) == (TAIL, "ten times as far")
    assert f"outside {BAND[0]:g} to {BAND[1]:g}" in said
    assert f"what {100 * NEAR:g} % of margins move by" in said
    assert f"over {NUMBER_OF_RESAMPLES} resamples" in said
    assert f"Intervals ({coverage(ALPHA)})" in said
    assert (4, re.findall("fewer than four sequences", said)[0]) == (DOCUMENTS, "fewer than four sequences")
    assert all(f"`{verdict.value}`" in said for verdict in Verdict)


# ------------------------------------------------------------------------------------------ from Python
def test_the_result_is_frozen_and_plots() -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    found = drift.compare_logits(A, moved(A, 1e-3, 1), tokens_of(A))
    assert isinstance(found, LogitComparison)
    with pytest.raises(AttributeError):
        found.verdict = Verdict.SAME  # type: ignore[misc]
    data = found.dataset()
    assert data["kl"].dims == ("sequence", "position")
    assert data.sizes == {"sequence": 6, "position": 40}
    np.testing.assert_array_equal(data["ratio"], np.exp(data["change"]))
    assert data["kl"].attrs["units"] == "nat"
    assert data["kl"].mean("sequence").plot()
    mpl.pyplot.close("all")


def test_sequences_of_unlike_lengths_are_padded_with_nan() -> None:
    data = drift.compare_logprobs([[-1.0], [-1.0, -2.0]], [[-1.5], [-1.0, -2.0]]).dataset()
    np.testing.assert_array_equal(data["change"], [[-0.5, np.nan], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: drift.compare_logits(A[0, 0], A[0, 0]), "a: its logits have the shape"),
        (lambda: drift.compare_logits(A, A, tokens=[1, 2]), "tokens have the shape"),
        (lambda: drift.compare_logits(A, A, tokens=tokens_of(A) / 2), "not whole numbers"),
        (lambda: drift.compare_logits(["x"], A), "a holds"),
        (lambda: drift.compare_logits(A, A, units="word"), "units is 'word'; it is one of token, sequence"),
        (lambda: drift.compare_logits(A, A, clip=(1.2, 0.8)), "clip is"),
        (lambda: drift.compare_logprobs([], []), r"a must be \[position\]"),
        (lambda: drift.compare_logprobs([[-1.0]], [[-1.0]], [[1, 1]]), "mask and a"),
        (lambda: drift.compare_logprobs(A, A), "a must be"),
    ],
)
def test_arguments_that_are_none_are_named(call: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        call()


def test_lanes_without_a_common_number_are_refused() -> None:
    with pytest.raises(DatasetError, match="no log-probability at the same position"):
        drift.compare_logprobs([[-1.0]], [[-1.0]], [[0]])


# ------------------------------------------------------------------------------------------ command line
@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    made = {"a": A, "same": A, "near": moved(A, 1e-3, 1), "far": moved(A, 0.1, 1), "c1": FLOOR[0], "c2": FLOOR[1]}
    for name, logits in made.items():
        np.save(tmp_path / f"{name}.npy", logits)
        np.save(tmp_path / f"{name}.tokens.npy", tokens_of(A))
    return {name: str(tmp_path / f"{name}.npy") for name in made}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("a same", 0, "SAME BITS."),
        ("a near --floor c1 c2", 0, "WITHIN THE FLOOR."),
        ("a far --floor c1 c2", 1, "BEYOND THE FLOOR."),
        ("a near", 3, "UNDETERMINED."),
    ],
)
def test_exit_codes(
    words: str, code: int, said: str, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    named = [files.get(word, word) for word in words.split()]
    assert main(named) == code
    out = capsys.readouterr().out
    assert f"\n{said}" in out
    assert ("python -m drift.diagnose" in out) is (code in (1, 3))
    assert not re.search(r"\b(bug|cache|position offset|rope)\b", out.split("\n\n")[1])  # it names no cause
    assert all(len(line) <= 130 for line in out.splitlines())
    assert main([*named, "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == code
    assert told["verdict"] == said.strip(".").lower().replace(" the ", "_").replace(" ", "_")
    assert set(told["numbers"]["kl_mean"]) == {"value", "low", "high", "floor"}
    assert len(told["numbers"]["kl_mean"]["floor"]) == (2 if "--floor" in words else 0)


def test_llama_cpp_s_numbers_stand_in_its_order(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    main([files["a"], files["far"]])
    block = capsys.readouterr().out.split("in llama.cpp's order")[1]
    order = ["PPL(Q) ", "PPL(base)", "Cor(", "ln(PPL(Q)/PPL(base))  ", "PPL(Q)/PPL(base)  ", "PPL(Q)-PPL(base)",
             "Mean KLD", "Maximum KLD", "99.0% KLD", "90.0% KLD", "Median KLD", "Mean Δp", "Maximum Δp", "99.0% Δp",
             "Median Δp", "1.0% Δp", "Minimum Δp", "RMS Δp", "Same top p"]  # fmt: skip
    places = [block.index(name) for name in order]
    assert places == sorted(places)


def test_ratios_of_sequences_and_a_clip_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = ours(tmp_path / "rollout.jsonl", [[1, 2]] * 5, [[-1, -1]] * 5)
    b = ours(tmp_path / "trainer.jsonl", [[1, 2]] * 5, [[-1, -0.5], *[[-1, -1]] * 4])
    assert main([str(a), str(b), "--units", "sequence", "--clip", "0.8", "1.2", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["units"], told["clip"]) == ("sequence", [0.8, 1.2])
    assert told["numbers"]["ratio_outside_clip"]["value"] == 0.2
    assert told["numbers"]["ratio_max"]["value"] == pytest.approx(math.exp(0.5))
    assert main([str(a), str(b), "--units", "sequence"]) == 3
    assert "of whole sequences" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["a nowhere", "a FOLDER", "a a --floor nowhere", "a text", "a a --clip 2 1"])
def test_bad_input_is_a_line_and_exit_code_2(
    words: str, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("no numbers")
    named = files | {"FOLDER": str(tmp_path), "text": str(tmp_path / "text"), "nowhere": str(tmp_path / "nowhere")}
    assert main([named.get(word, word) for word in words.split()]) == 2
    told = capsys.readouterr().err
    assert told.startswith("drift.logits: ")
    assert told.count("\n") == 1


@pytest.mark.parametrize("words", ["a", "a b --clip 0 1", "a b --clip x 1", "a b --units word", "a b --clip 1 inf"])
def test_arguments_that_are_none_end_it(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    assert stopped.value.code == 2


def test_it_needs_no_torch(files: dict[str, str]) -> None:
    import subprocess

    code = f"import sys; from drift.logits import main; main([{files['a']!r}, {files['near']!r}]); "
    code += "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
