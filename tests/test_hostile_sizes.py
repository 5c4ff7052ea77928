"""Sizes and values that a file, a flag or an argument names: a line, before anything is built from them."""

from __future__ import annotations

import os
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic

from drift._bounds import MOST_CELLS, MOST_LABEL, MOST_LABEL_DEPTH, MOST_OPTION, MOST_STEPS, MOST_TOKENS
from drift._outside import OutsideError
from drift.dataset.labels import parse_label
from drift.errors import ArgumentError, ConfigError, CorpusError, DatasetError
from drift.reading.plateau import plateau, plateaus
from drift.reading.plateau.csv_files import from_csv
from drift.reading.statistics import noise
from drift.reading.statistics.slope import slope
from drift.running import corpus, protocols
from drift.running.sweep.config import load_config
from drift.running.sweep.planning import plan
from drift.running.sweep.yaml_files import parse_yaml

NAME = "smollm2-135m-instruct"
SECONDS = 20  # far more than a line takes on a busy machine, far less than building would


def bomb(levels: int = 9) -> str:
    """A thousand bytes that stand for a thousand million values."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for level in range(levels):
        before, own = chr(97 + level), chr(98 + level)
        lines.append(f"{own}: &{own} [{', '.join([f'*{before}'] * 9)}]")
    return "\n".join(lines)


# ---------------------------------------------------------------- YAML (class 8)
@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("model: m\ntokens: 2021-99-99", "line 2, column 9: tokens", "timestamp"),
        ('model: m\ngrids:\n  - tokens: !!int "abc"', "line 3, column 13: grids[0].tokens", "YAML's int"),
        ("tokens: " + "9" * 5000, "line 1, column 9: tokens", "5,000 characters"),
        ("tokens: " + "1:" * 5000 + "1", "line 1, column 9: tokens", "characters"),
        ("model: m\n[1, 2]: 3", "line 2, column 1", "cannot be a key"),
        ("? {a: 1}\n: 3", "line 1, column 3", "cannot be a key"),
        ("a: &x [1]\nb: *x", "line 2, column 4", "alias"),
        ("a: &x [*x]", "line 1", "alias"),
        ("<<: {a: 1}", "line 1, column 1", "merge key"),
        ("model: !!timestamp abc", "line 1, column 8: model", "timestamp"),
        ("model: !!float abc", "line 1, column 8: model", "float"),
        ("model: !!bool abc", "line 1, column 8: model", "bool"),
        ("model: !!binary 'x'", "line 1, column 8: model", "base64"),
        ("model: !!python/name:os.system", "line 1, column 8: model", "could not determine a constructor"),
        ("model: !!set {a}", "line 1, column 8: model", "not taken"),
        ("model: " + "[" * 10_000, "line 1", "nested too deep"),
        ("model: " + "{a: " * 10_000, "line 1", "nested too deep"),
        ("model: a\nmodel: b", "line 2, column 1", "twice"),
        ("a: b: c", "line 1", "not valid YAML"),
        (bomb(), "line 2", "alias"),
    ],
)
def test_yaml_of_its_own_is_an_error_with_a_place(tmp_path: Path, text: str, where: str, what: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert f"c.yaml: {where}" in str(caught.value)
    assert what in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("payload", [b"\xff\xfe", b"a: \x00", b"a: \x1b[31m", b"%YAML 9.9\n---\na", b"--- a\n--- b"])
def test_bytes_that_are_no_yaml_are_refused(payload: bytes) -> None:
    with pytest.raises(OutsideError):
        parse_yaml(payload)


def test_what_people_write_is_read_as_before() -> None:
    text = "\ufeffname: x\ntokens: [64, 0x10, 1_000]\nok: yes\nnone: ~\ntext: '2021-99-99'\ng:\n  - {a: [b, c]}\n"
    assert parse_yaml(text.encode()) == {
        "name": "x", "tokens": [64, 16, 1000], "ok": True, "none": None, "text": "2021-99-99",
        "g": [{"a": ["b", "c"]}],
    }  # fmt: skip
    assert parse_yaml(b"") is None


@pytest.mark.parametrize("place", ["/dev/zero", "pipe.yaml", "folder.yaml"])
def test_what_is_no_file_is_not_read_as_one(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    if place == "pipe.yaml":
        os.mkfifo(path)
    elif place == "folder.yaml":
        path.mkdir()
    with pytest.raises(ConfigError, match=r"device|pipe|folder"):
        load_config(path)
    if place != "folder.yaml":
        with pytest.raises(CorpusError, match="device or pipe"):
            corpus.text(f"file:{path}")


# ---------------------------------------------------------------- plans (class 5)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"tokens": 10**30}, f"at most {MOST_TOKENS}"),
        ({"tokens": 10**5000}, "too long to show"),
        ({"documents": 10**9}, "documents: must be at most"),
        ({"chunk_size": 2**40}, f"at most {MOST_TOKENS}"),
        ({"tokens": MOST_TOKENS, "chunk_size": 1}, "chain steps"),
        ({"protocol": "decode(append,tokens=99999999999999999999)"}, f"at most {MOST_OPTION}"),
        ({"protocol": f"decode(append,tokens={MOST_STEPS + 1})"}, f"tokens must be at most {MOST_STEPS}"),
        ({"protocol": "full(batch=1000000000)"}, "batch must be at most"),
        ({"protocol": "perturbed(append,step=1,size=1e999)"}, "too large"),
        ({"protocol": "shifted(" * 500}, "is no label"),
        ({"tokens": list(range(64, 1064)), "documents": list(range(1, 1001))}, f"at most {MOST_CELLS:,} are planned"),
    ],
)
def test_a_plan_beyond_all_bounds_is_a_line(content: dict[str, Any], said: str, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match=said):
        plan(load_config({"model": NAME, **content}), tmp_path / "out", dry_run=True)
    assert time.monotonic() - started < SECONDS


def test_numbers_in_overrides_have_as_many_digits_as_numbers_have() -> None:
    with pytest.raises(ConfigError, match="whole numbers"):
        load_config({"model": NAME}, ["tokens=" + "9" * 5000])


def test_many_problems_are_told_in_a_few_lines(tmp_path: Path) -> None:
    config = load_config({"model": NAME, "tokens": list(range(2, 42)), "chunk_size": list(range(100, 140))})
    with pytest.raises(ConfigError, match="more problems") as caught:
        plan(config, tmp_path / "out", dry_run=True)
    assert str(caught.value).count("\n") < 60


# ---------------------------------------------------------------- labels
@pytest.mark.parametrize("label", ["a(" * 490, "a" * 5000, "(" * MOST_LABEL, "x(" * (MOST_LABEL_DEPTH + 1) + "y"])
def test_labels_of_any_length_and_depth_are_refused(label: str) -> None:
    with pytest.raises(DatasetError, match="no label"):
        parse_label(label)
    with pytest.raises(ConfigError, match="Unknown protocol"):
        protocols.parse(label)


@pytest.mark.parametrize("label", [None, 5, b"append", ["append"], float("nan")])
def test_what_is_no_text_is_no_label(label: Any) -> None:
    with pytest.raises(ConfigError, match="A protocol is a label"):
        protocols.parse(label)


def test_a_text_is_cut_into_a_bounded_number_of_chunks() -> None:
    with pytest.raises(ConfigError, match="too long"):
        protocols.parse("append").chunks(MOST_STEPS + 1, 1)
    with pytest.raises(ConfigError, match="too long"):
        protocols.parse("append").chunks(10**18, 10**17)


# ---------------------------------------------------------------- long curves (class 5)
def recurrence(vectors: np.ndarray, rho: float) -> np.ndarray:
    """The product of rho^|i-j| with [step, vector] as it is defined: both ways, less what was counted twice."""
    forward, backward = np.empty_like(vectors), np.empty_like(vectors)
    n = len(vectors)
    forward[0], backward[-1] = vectors[0], vectors[-1]
    for i in range(1, n):
        forward[i] = vectors[i] + rho * forward[i - 1]
        backward[n - 1 - i] = vectors[n - 1 - i] + rho * backward[n - i]
    return forward + backward - vectors


@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_the_filter_is_the_recurrence(n: int) -> None:
    vectors = np.random.default_rng(n).standard_normal((n, 6))
    for rho, product in zip(noise._RHO, noise._correlate(vectors), strict=True):
        # At most one rounding more or less per step, where a compiler fuses the product with the sum.
        bound = 4 * n * np.finfo(float).eps * recurrence(abs(vectors), rho)
        assert (abs(product - recurrence(vectors, rho)) <= bound).all()


def test_the_noise_of_a_long_window_takes_memory_of_its_own_order() -> None:
    steps = 20_000
    noise.noise_of.cache_clear()
    tracemalloc.start()
    try:
        noise.noise_of(3, steps, 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        noise.noise_of.cache_clear()
    assert peak < 100 * 8 * steps  # a hundred numbers a step; all autocorrelations at once took 900


def test_a_curve_has_a_bounded_number_of_steps() -> None:
    with pytest.raises(ArgumentError, match=f"at most {MOST_STEPS:,} are judged"):
        plateau(np.ones(MOST_STEPS + 1))


# ---------------------------------------------------------------- arguments of the statistics (class 12)
@pytest.mark.parametrize("value", [float("nan"), "5%", None, True, -1, 0, 2, float("inf"), [0.05], 10**400, -(10**400)])
@pytest.mark.parametrize("name", ["margin", "alpha"])
def test_levels_and_margins_that_are_none_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"{name} is "):
        plateau(np.ones(64), **{name: value})
    cell = synthetic.cell(model="tiny", layers=3, tokens=64, chunk_size=16)
    with pytest.raises(ArgumentError, match=f"{name} is "):
        cell.drift.plateau(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("floor", 0), ("floor", "x"), ("floor", 10**400), ("rise_min", 1), ("rise_min", None)]
)
def test_other_options_that_are_none_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"{name} is "):
        plateau(np.ones(64), **{name: value})


@pytest.mark.parametrize("values", [[[1, 2], [3]], ["a"], {}, object(), None, [[[[1.0]]]], [], [1, None, "x"]])
def test_values_that_are_no_curve_are_refused(values: Any) -> None:
    with pytest.raises(ArgumentError, match="curve"):
        plateau(values)
    with pytest.raises(ArgumentError, match="curve"):
        plateaus([values])
    with pytest.raises(ArgumentError):
        slope([0.1, 0.2], np.ones((3, 2, 2)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"measure": 5}, "measure"),
        ({"measure": [5]}, "measure"),
        ({"measure": None}, "measure"),
        ({"layer": 2.5}, "layer"),
        ({"layer": True}, "layer"),
        ({"layer": None}, "layer"),
        ({"layer": []}, "layer"),
        ({"of": 3}, "quantity"),
        ({"of": []}, "quantity"),
    ],
)
def test_what_a_cell_is_asked_for_is_refused_by_name(options: dict[str, Any], said: str) -> None:
    cell = synthetic.cell(model="tiny", layers=3, tokens=64, chunk_size=16)
    with pytest.raises((ArgumentError, DatasetError), match=said):
        cell.drift.plateau(**options)


# ---------------------------------------------------------------- tables and names
@pytest.mark.parametrize("kind", ["pipe", "device", "link", "long"])
def test_a_table_of_curves_is_a_file_of_a_bounded_size(tmp_path: Path, kind: str, monkeypatch: Any) -> None:
    place = tmp_path / "a.csv"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        place = Path("/dev/zero")
    elif kind == "link":
        place.symlink_to("/dev/zero")
    else:
        monkeypatch.setattr("drift.reading.plateau.csv_files.MOST_CSV_BYTES", 40)
        place.write_text("document,step,value\n" + "a,0,1\n" * 9)
    said = "at most 40 are read" if kind == "long" else "a device or pipe, not a file"
    with pytest.raises(DatasetError, match=said):
        from_csv(place)


def test_a_model_with_a_name_as_long_as_names_may_be_gets_files_with_room_to_be_written(tmp_path: Path) -> None:
    config = {"model": NAME, "tokens": 64, "chunk_size": 16, "corpus": "random", "protocol": ["append", "restart"]}
    made = plan(load_config(config), tmp_path / "out", dry_run=True)
    short = made.cells[0]
    long, other = (replace(short, label="a" * 250, checkpoint=c) for c in ("1" * 64, "2" * 64))
    assert short.file.startswith(f"{NAME}_bf16_append_c16_")
    assert long.file != other.file
    # Written beside its place first, under a longer name.
    assert len(long.file.encode()) + 64 < 255
    assert long.file.endswith(f"_{long.hash[:16]}.nc")
