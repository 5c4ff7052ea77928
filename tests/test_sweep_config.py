"""The configuration of a sweep: presets, files, axes, and how mistakes in them are told."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import sweep_fixtures
from sweep_fixtures import Said, small
from sweep_tools import write_config

from drift.reading.claims.model import Setting
from drift.running import protocols
from drift.running.sweep.config import load_config, presets
from drift.running.sweep.gpus import cuda_problem
from drift.running.sweep.planning import plan

tiny, here, say = sweep_fixtures.tiny, sweep_fixtures.here, sweep_fixtures.say

no_gpu = pytest.mark.skipif(cuda_problem() is None, reason="this machine has a GPU")


def test_the_presets_load_and_describe_themselves() -> None:
    assert list(presets()) == ["quick", "default", "retrieval", "readings", "deep", "retrieval-deep", "paper"]
    assert all(presets().values())
    default = load_config()
    assert default.name == "default"
    dtypes = {dtype for grid in default.grids for dtype in grid.dtype}
    sizes = {size for grid in default.grids for size in grid.chunk_size}
    assert {"bf16", "fp32"} <= dtypes
    assert len(sizes) >= 2
    chain = [max(grid.tokens) // min(grid.chunk_size) for grid in default.grids]
    assert max(chain) == 32
    # Fewer than four documents support no claim beyond themselves, and without a floor little is decided.
    assert all(min(grid.documents) >= 4 and grid.floor_draws >= 2 for grid in default.grids)
    readings = load_config("readings").grids
    assert max(max(grid.tokens) // min(grid.chunk_size) for grid in readings) == 512
    deep = load_config("deep").grids
    assert max(deep[0].tokens) // min(deep[0].chunk_size) == 512
    # a position in a chunk that is never sampled would go unseen
    assert all(
        math.gcd(grid.logit_stride, size) == 1
        for grid in (*deep, *default.grids, *readings)
        for size in grid.chunk_size
    )
    paper = load_config("paper")
    assert {m for g in paper.grids for m in g.model} == {
        "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B", "google/gemma-2-9b",
        "allenai/OLMoE-1B-7B-0924",
    }  # fmt: skip


@pytest.mark.parametrize(("preset", "window"), [("retrieval-deep", 512), ("paper", 1024)])
def test_as_many_numbers_are_hidden_as_were_published(preset: str, window: int) -> None:
    grids = [grid for grid in load_config(preset).grids if grid.task == ["needle"] and "append" in grid.protocol]
    trials = {tokens: grid.documents[0] for grid in grids for tokens in grid.tokens}
    assert sum(trials.values()) >= 152
    assert 508 <= max(-(-max(grid.tokens) // min(grid.chunk_size)) for grid in grids) <= 512
    windowed = [grid for grid in grids if f"streaming(window={window})" in grid.protocol]
    # What is found out of the window is bounded by what left it: at least so many texts, where none is found.
    left = sum((1 - window / tokens) * grid.documents[0] for grid in windowed for tokens in grid.tokens)
    assert left > math.log(Setting().alpha) / math.log(1 - Setting().retrieval)


def test_the_deep_sweep_of_tasks_takes_the_hours_that_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four, of two cores with instructions for 16 bits, by the estimate: what texts share is not taken off."""
    monkeypatch.setattr("drift.running.sweep.cost.cores", lambda: 2)
    made = plan(load_config("retrieval-deep", ["device=cpu", "half_matmul=native"]), dry_run=True, look=False)
    assert "four hours" in made.config.description
    assert made.estimate(made.cells)["seconds"] == pytest.approx(4 * 3600, rel=0.1)


def test_axes_at_the_top_level_hold_for_grids_that_do_not_name_them() -> None:
    config = load_config({"tokens": 64, "dtype": "fp32", "grids": [{"model": "a"}, {"model": "b", "tokens": [32, 48]}]})
    assert [(g.model, g.tokens, g.dtype) for g in config.grids] == [
        (["a"], [64], ["fp32"]),
        (["b"], [32, 48], ["fp32"]),
    ]


def test_set_replaces_an_axis_in_every_grid() -> None:
    config = load_config(
        {"grids": [{"model": "a"}, {"model": "b", "protocol": "append"}]},
        ["chunk-size=8,16", "protocol=append,reprime(token=1),restart", "seed=7", "allow_beyond_context=true"],
    )
    assert all(g.chunk_size == [8, 16] and g.allow_beyond_context for g in config.grids)
    assert all(g.protocol == ["append", "reprime(token=1)", "restart"] for g in config.grids)
    assert config.seed == 7


BAD_FILES = {
    "unknown axis": (
        "model: m\nchunksize: 4\n",
        ["chunksize", "unknown axis", "did you mean 'chunk_size'", "documents"],
    ),
    "unknown axis in a grid": ("grids:\n - model: m\n   dtypes: bf16\n", ["grids[0].dtypes", "did you mean 'dtype'"]),
    "no model": ("dtype: bf16\n", ["no `model:`"]),
    "a number that YAML reads as text": ("model: m\ntokens: 1e3\n", ["tokens", "'1e3'", "whole number", "write 1000"]),
    "a fraction": ("model: m\ntokens: 10.5\n", ["tokens", "whole number", "10.5"]),
    "true for a number": ("model: m\ntokens: yes\n", ["tokens", "whole number", "True", "yes, no, on and off"]),
    "no for a text": ("model: m\ncorpus: no\n", ["corpus", "must be text", "False", "quotes"]),
    "a number for a text": ("model: [m, 7]\n", ["model[1]", "must be text", "7"]),
    "text for true": ("model: m\nallow_beyond_context: 'yes'\n", ["allow_beyond_context", "true or false", "'yes'"]),
    "chunk size 0": ("model: m\nchunk_size: [8, 0]\n", ["chunk_size[1]", "at least 1", "0"]),
    "negative chunk size": ("model: m\nchunk_size: -8\n", ["chunk_size", "at least 1", "-8"]),
    "no documents": ("model: m\ndocuments: 0\n", ["documents", "at least 1"]),
    "logit stride 0": ("model: m\nlogit_stride: 0\n", ["logit_stride", "at least 1"]),
    "an empty list": ("model: m\ndtype: []\n", ["dtype", "must not be empty"]),
    "mps": ("model: m\ndevice: mps\n", ["device", "'mps'", "auto, cpu, cuda", "not supported"]),
    "unknown attention": ("model: m\nattn_implementation: spda\n", ["sdpa, eager", "did you mean 'sdpa'"]),
    "unknown matmul": ("model: m\nhalf_matmul: float16\n", ["half_matmul", "native", "float32"]),
    "a name with a slash": ("model: m\nname: a/b\n", ["name", "'a/b'"]),
    "a negative seed": ("model: m\nseed: -1\n", ["seed", "at least 0"]),
    "the same key twice": ("model: m\ndtype: bf16\ndtype: fp32\n", ["line 3", "'dtype'", "twice"]),
    "not YAML": ("model: [m\n", ["line", "not valid YAML"]),
    "empty": ("", ["empty", "model"]),
    "a list": ("- model\n", ["axis: values", "list"]),
    "grids that are no list": ("grids: {model: m}\n", ["grids", "must be a list"]),
    "a grid that is no mapping": ("grids: [m]\n", ["grids[0]", "axis: values"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_explained(case: str, here: Path, say: Said) -> None:
    text, expected = BAD_FILES[case]
    (here / "bad.yaml").write_text(text, encoding="utf-8")
    code, out, err = say("bad.yaml", "--dry-run")
    assert code == 2
    assert not out
    assert "bad.yaml" in err
    assert "Traceback" not in err
    assert "pydantic" not in err
    assert "input_value" not in err
    assert [words for words in expected if words not in err] == []


def test_every_problem_is_told_at_once(here: Path, say: Said) -> None:
    (here / "bad.yaml").write_text("model: 3\ntokens: x\nfoo: 1\n", encoding="utf-8")
    code, _, err = say("bad.yaml")
    assert code == 2
    assert len(err.splitlines()) == 3


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["quikc"],
            [
                "'quikc'",
                "preset",
                "quick, default, retrieval, readings, deep, retrieval-deep, paper",
                "did you mean 'quick'",
            ],
        ),
        (["none.yaml"], ["none.yaml", "no such file", "quick"]),
        (["."], ["a folder"]),
        (["binary.yaml"], ["binary.yaml", "not a text file"]),
        (["quick", "--set", "chunks=4"], ["--set chunks=4", "unknown axis 'chunks'", "chunk_size"]),
        (["quick", "--set", "tokens"], ["axis=value"]),
        (["quick", "--set", "tokens=many"], ["whole numbers", "'many'"]),
        (["quick", "--set", "tokens=0"], ["--set", "tokens", "at least 1"]),
        (["quick", "--set", "tokens=8,,9"], ["empty value"]),
        (["quick", "--set", "logit_stride=1,2"], ["one value"]),
        (["quick", "--set", "allow_beyond_context=1"], ["true or false"]),
        (["quick", "--set", "dtype=float23", "--set", "device=cpu"], ["--set dtype", "'float23'", "bf16"]),
        (["quick", "--limit", "0"], ["--limit", "at least 1"]),
        (["quick", "--unknown"], ["--unknown"]),
    ],
)
def test_bad_usage_is_explained(argv: list[str], expected: list[str], here: Path, say: Said) -> None:
    (here / "binary.yaml").write_bytes(b"\xff\xfe\x00model")
    code, out, err = say(*argv)
    assert code == 2
    assert not out
    assert "Traceback" not in err
    assert [words for words in expected if words not in err] == []


BAD_VALUES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "model": ({"model": "smolm2-135m-instruct"}, ["model", "smolm2-135m-instruct", "smollm2-135m-instruct"]),
    "dtype": ({"dtype": ["fp32", "fp23"]}, ["dtype[1]", "'fp23'", "bf16", "fp64"]),
    "protocol": ({"protocol": "apend"}, ["protocol", "'apend'", *protocols.available()]),
    "an option of a protocol": ({"protocol": "append(token=1)"}, ["protocol", "token"]),
    "corpus": ({"corpus": "pydok"}, ["corpus", "pydok", "pydoc"]),
    "a text file that is not there": ({"corpus": "file:none.txt"}, ["corpus", "none.txt"]),
    "chunk size larger than the text": ({"chunk_size": [8, 32]}, ["chunk_size[1]", "32", "larger than the text of 24"]),
    "text beyond the context": ({"tokens": 300}, ["tokens", "300", "256", "allow_beyond_context"]),
    "text beyond the context for reprime only": (
        {"tokens": 250},
        ["tokens", "250", "256", "reprime", "allow_beyond_context"],
    ),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_value_that_stands_for_nothing_is_explained(case: str, tiny: Path, here: Path, say: Said) -> None:
    change, expected = BAD_VALUES[case]
    write_config(here / "bad.yaml", **small(tiny, **change))
    for flags in (["--dry-run"], []):
        code, out, err = say("bad.yaml", *flags)
        assert code == 2
        assert not out
        assert "Traceback" not in err
        assert [words for words in ["bad.yaml", *expected] if words not in err] == []
    assert not (here / "data").exists()


def test_beyond_the_context_on_purpose(tiny: Path, here: Path, say: Said) -> None:
    write_config(here / "far.yaml", **small(tiny, tokens=260, chunk_size=130, documents=1, allow_beyond_context=True))
    code, _, err = say("far.yaml")
    assert code == 0, err


@no_gpu
@pytest.mark.parametrize(
    ("change", "expected"),
    [({"device": "cuda"}, ["device", "cuda"]), ({"dtype": "tf32"}, ["dtype", "tf32", "GPU", "bf16"])],
)
def test_without_a_gpu(change: dict[str, Any], expected: list[str], tiny: Path, here: Path, say: Said) -> None:
    write_config(here / "gpu.yaml", **small(tiny, **change))
    code, _, err = say("gpu.yaml")
    assert code == 2
    assert [words for words in expected if words not in err] == []


@no_gpu
def test_a_dry_run_may_be_made_for_another_machine(tiny: Path, here: Path, say: Said) -> None:
    write_config(here / "gpu.yaml", **small(tiny, device="cuda"))
    code, out, err = say("gpu.yaml", "--dry-run")
    assert code == 0, err
    assert "cuda" in out


def test_an_empty_text(tiny: Path, here: Path, say: Said) -> None:
    (here / "empty.txt").write_text("", encoding="utf-8")
    write_config(here / "empty.yaml", **small(tiny, corpus="empty.txt"))
    code, out, err = say("empty.yaml", "--json")
    # Either the plan sees it (2), or its cells fail (1); never silence, never a traceback.
    assert code in (1, 2)
    assert "Traceback" not in err
    assert "empty" in (err + out) or "0 tokens" in (err + out)


def test_an_output_folder_that_cannot_be(tiny: Path, here: Path, say: Said) -> None:
    config = write_config(here / "small.yaml", **small(tiny))
    (here / "file").write_text("", encoding="utf-8")
    places = [here / "file", here / "file" / "below", Path("/proc/drift")]
    if os.geteuid() != 0:
        (here / "closed").mkdir(mode=0o500)
        places.append(here / "closed" / "out")
    for place in places:
        code, _, err = say(config, "--out", place)
        assert code == 2
        assert str(place) in err
        assert "--out" in err
        assert "Traceback" not in err
