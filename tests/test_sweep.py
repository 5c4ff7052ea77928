"""The sweep: configuration, plan, resume, failures, command line."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sweep_tools import REPOSITORY, cells, differences, text_file, tiny_checkpoint, write_config

from drift import dataset
from drift.dataset.rungs import RUNGS
from drift.errors import ConfigError
from drift.running import protocols, tracing
from drift.running.sweep.config import Config, load_config, presets
from drift.running.sweep.cost import correction, group_cost, show_bytes, show_seconds
from drift.running.sweep.gpus import cuda_problem
from drift.running.sweep.planning import plan
from drift.running.sweep.progress import Bar, Lines, reporter
from drift.running.sweep.running import run
from drift.sweep import main

no_gpu = pytest.mark.skipif(cuda_problem() is None, reason="this machine has a GPU")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint (``tiny``) and a text (``text.txt``)."""
    folder = tmp_path_factory.mktemp("sweep")
    tiny_checkpoint(folder / "tiny")
    text_file(folder / "text.txt")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def small(tiny: Path, **changes: Any) -> dict[str, Any]:
    """A configuration of four cells that takes a moment."""
    axes = {
        "name": "small",
        "model": str(tiny / "tiny"),
        "dtype": "fp32",
        "chunk_size": [4, 16],
        "protocol": ["append", "reprime"],
        "documents": 2,
        "tokens": 24,
        "corpus": str(tiny / "text.txt"),
        "device": "cpu",
        "controls": False,
    }
    return axes | changes


@pytest.fixture(scope="session")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished sweep of :func:`small`: its configuration and its folder. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder / "small.yaml", **small(tiny))
    assert run(load_config(config), folder / "out").exit == 0
    return config, folder / "out"


Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Said:
    """Run the command line; returns exit code, stdout and stderr."""

    def command(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(word) for word in argv])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return command


# ---------------------------------------------------------------- configuration


def test_the_presets_load_and_describe_themselves() -> None:
    assert list(presets()) == ["quick", "default", "readings", "deep", "paper"]
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
        "meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-7B", "google/gemma-2-9b", "allenai/OLMoE-1B-7B-0924",
    }  # fmt: skip


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
        (["quikc"], ["'quikc'", "preset", "quick, default, readings, deep, paper", "did you mean 'quick'"]),
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
        (["quick", "--set", "dtype=float32", "--set", "device=cpu"], ["--set dtype", "'fp32'", "bf16"]),
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
    "dtype under torch's name": ({"dtype": "bfloat16"}, ["dtype", "'bf16'"]),
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


# ---------------------------------------------------------------- plan


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_order_in_a_file_does_not_change_what_a_cell_is(data: st.DataObject, tiny: Path) -> None:
    base = small(tiny, dtype=["bf16", "fp32"], tokens=[16, 24])
    whole = {c.file: c.hash for c in plan(load_config(base), tiny / "nowhere").cells}
    shuffled = {k: data.draw(st.permutations(v)) if isinstance(v, list) else v for k, v in base.items()}
    axis = data.draw(st.sampled_from(["dtype", "chunk_size", "protocol", "tokens"]))
    parts = [{axis: value} for value in data.draw(st.permutations(base[axis]))]
    overlap = data.draw(st.sampled_from([[], parts[:1]]))
    grids = {k: v for k, v in shuffled.items() if k != axis} | {"grids": [*parts, *overlap]}
    for config in (shuffled, grids):
        made = plan(load_config(config), tiny / "nowhere")
        assert {c.file: c.hash for c in made.cells} == whole
        assert len(made.cells) == len(whole)
        groups = made.groups()
        assert {len(g.cells) for g in groups} == {4}
        assert len(groups) == 4
        # What shares weights is computed in one go: the model is loaded once per dtype.
        assert len({g.cells[0].weights for g in groups}) == 2 == _runs([g.cells[0].weights for g in groups])


def _runs(values: list[Any]) -> int:
    return 1 + sum(a != b for a, b in pairwise(values))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"documents": 3}, {"tokens": 25}, {"dtype": "fp64"}, {"chunk_size": [5]},
        {"protocol": ["restart"]}, {"attn_implementation": "eager"}, {"logit_stride": 2}, {"corpus": "random"},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_changes_a_number_changes_the_cell(change: dict[str, Any], tiny: Path) -> None:
    before = {c.hash for c in plan(load_config(small(tiny)), tiny / "nowhere").cells}
    after = {c.hash for c in plan(load_config(small(tiny, **change)), tiny / "nowhere").cells}
    assert not before & after


def test_other_weights_and_another_text_are_other_cells(tiny: Path, here: Path) -> None:
    shutil.copytree(tiny / "tiny", here / "tiny")
    shutil.copy(tiny / "text.txt", here / "text.txt")
    config = load_config(small(here))
    before = {c.hash for c in plan(config, here / "out").cells}
    assert {c.hash for c in plan(config, here / "out").cells} == before
    weights = here / "tiny" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed = {c.hash for c in plan(config, here / "out").cells}
    assert not changed & before
    (here / "text.txt").write_text((here / "text.txt").read_text(encoding="utf-8") + "!", encoding="utf-8")
    assert not {c.hash for c in plan(config, here / "out").cells} & (changed | before)


def test_names_of_cells_are_safe_and_carry_the_hash(tiny: Path) -> None:
    made = plan(load_config(small(tiny, protocol="reprime(token=3)")), tiny / "nowhere")
    for cell in made.cells:
        assert cell.file == f"{cell.label}_fp32_reprime-token-3_c{cell.chunk_size}_{cell.hash[:16]}.nc"
        assert dataset.content_hash(cell.record) == cell.hash


class _Shape:
    intermediate_size = 1536
    layers, hidden_size, heads, kv_heads, head_dim, vocab_size, parameters, tied = (
        30,
        576,
        9,
        3,
        64,
        49152,
        134_515_008,
        True,
    )


def _cost(**changes: Any) -> Any:
    base: dict[str, Any] = {
        "dtype": "fp32",
        "device": "cpu",
        "half_matmul": "native",
        "documents": 1,
        "tokens": 1024,
        "folds": [64],
    }
    return group_cost(_Shape(), **(base | changes))


def test_estimates_grow_with_the_work() -> None:
    base = _cost()
    assert _cost(documents=2).seconds == pytest.approx(2 * base.seconds)
    assert _cost(tokens=2048).seconds > 2 * base.seconds
    assert _cost(folds=[64, 64]).seconds > base.seconds < _cost(folds=[8]).seconds
    assert _cost(dtype="fp64").memory_bytes > base.memory_bytes > _cost(device="cuda", dtype="bf16").memory_bytes
    assert base.memory_bytes > 4 * _Shape.parameters


def test_finished_groups_correct_the_estimate() -> None:
    timings = [
        {"device": "cpu", "dtype": "fp32", "estimated_s": 10, "elapsed_s": 30},
        {"device": "cpu", "dtype": "bf16", "estimated_s": 10, "elapsed_s": 50},
        {"device": "cpu", "dtype": "bf16", "estimated_s": 0, "elapsed_s": 50},
    ]
    assert correction([], device="cpu", dtype="fp32") == 1
    assert correction(timings, device="cpu", dtype="fp32") == 3
    assert correction(timings, device="cpu", dtype="fp64") == 4
    assert correction(timings, device="cuda", dtype="fp64") == 4


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (7.3, "7 s"), (37, "35 s"), (300, "5 min"), (7200, "2.0 h"), (90000, "25 h")]
)
def test_durations_are_rounded(seconds: float, words: str) -> None:
    assert show_seconds(seconds) == words


@pytest.mark.parametrize(("count", "words"), [(81_234, "80 kB"), (1.26e6, "1.3 MB"), (1.26e10, "13 GB"), (1, "10 kB")])
def test_sizes_are_rounded(count: float, words: str) -> None:
    assert show_bytes(count) == words


def test_the_dry_run_says_what_is_done_and_what_is_left(
    finished: tuple[Path, Path], tiny: Path, here: Path, say: Said
) -> None:
    config, out = finished
    before = cells(out)
    code, text, _ = say(config, "--out", out, "--dry-run", "--set", "chunk_size=4,8,16")
    assert code == 0
    assert text.count("append") == 3
    assert "6 cells, 4 done, 0 failed, 2 left in 1 descents" in text
    assert "about" in text
    assert "memory" in text
    assert "disk" in text
    code, text, _ = say(config, "--out", out, "--dry-run", "--json", "--only", "protocol=append")
    preview = json.loads(text)
    assert preview["cells"] == {"total": 2, "done": 2, "failed": 0, "left": 0}
    assert len(preview["not_in_this_plan"]) == 0
    assert cells(out) == before
    code, text, _ = say(config, "--out", here / "new", "--dry-run")
    assert code == 0
    assert not (here / "new").exists()


# ---------------------------------------------------------------- running


def test_a_cell_says_what_it_is(finished: tuple[Path, Path], tiny: Path) -> None:
    config, out = finished
    made = plan(load_config(config), out)
    opened = dataset.open_sweep(out)
    assert len(opened) == len(made.cells) == 4
    assert not opened.problems
    assert not opened.failures
    for cell in made.cells:
        ds = dataset.read(out / cell.file)
        assert ds.attrs["config_sha256"] == cell.hash
        assert json.loads(ds.attrs["config_json"]) == json.loads(dataset.canonical_json(cell.record))
        assert ds.attrs["checkpoint_sha256"] == cell.checkpoint
        assert ds.attrs["seed"] == 0
        assert (int(ds.chunk_size), str(ds.protocol.values), str(ds.model.values)) == (
            cell.chunk_size,
            cell.protocol,
            cell.label,
        )
        assert ds.sizes["document"] == 2
    state = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    assert {c["state"] for c in state["cells"]} == {"done"}
    assert len(state["groups"]) == 1
    assert state["groups"][0]["elapsed_s"] > 0
    assert state["at_work_on"] == ""


def test_nothing_is_computed_twice(finished: tuple[Path, Path], say: Said) -> None:
    config, out = finished
    before, state = cells(out), json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    code, text, _ = say(config, "--out", out, "--json")
    summary = json.loads(text)
    assert code == 0
    assert summary["cells"] == {"total": 4, "done": 4, "failed": 0, "left": 0, "computed": 0}
    assert cells(out) == before
    assert json.loads((out / "sweep.json").read_text(encoding="utf-8"))["groups"] == state["groups"]


def test_limit_only_force_and_changed_configurations(
    finished: tuple[Path, Path], tiny: Path, here: Path, say: Said
) -> None:
    _, undisturbed = finished
    # The grids of this file are in another order than those of the undisturbed run.
    config = write_config(here / "small.yaml", **small(tiny, chunk_size=[16, 4], protocol=["reprime", "append"]))
    out = here / "data" / "sweeps" / "small"

    code, text, err = say(config, "--limit", "1", "--json")
    summary = json.loads(text)
    assert code == 3 == summary["exit_code"], err
    assert summary["cells"] == {"total": 4, "done": 1, "failed": 0, "left": 3, "computed": 1}
    first = cells(out)

    code, text, _ = say(config, "--only", "protocol=reprime", "--only", "chunk_size=16", "--json")
    assert code == 3
    assert json.loads(text)["cells"]["left"] in (2, 3)
    code, text, _ = say(config, "--only", "protocol=append", "--json")
    assert code in (0, 3)
    code, text, err = say(config)
    assert code == 0
    assert "complete" in text
    assert "small: 4 cells" in err
    done = cells(out)
    assert first.items() <= done.items()
    assert differences(out, undisturbed, list(cells(undisturbed))) == []

    code, _, err = say(config, "--only", "dtype=bf16")
    assert code == 2
    assert "fp32" in err
    code, _, err = say(config, "--only", "size=16")
    assert code == 2
    assert "chunk_size" in err

    code, _, _ = say(config, "--force", "--only", "chunk_size=4")
    again = cells(out)
    assert code == 0
    assert {f for f in done if done[f] != again[f]} == {f for f in done if "_c4_" in f}
    assert differences(out, undisturbed, list(again)) == []

    code, text, err = say(config, "--set", "seed=5", "--set", "protocol=append", "--json")
    summary = json.loads(text)
    assert code == 0
    assert summary["cells"]["computed"] == 2
    assert sorted(summary["not_in_this_plan"]) == sorted(done)
    assert "not in this plan" in err
    assert again.items() <= cells(out).items()
    assert len(dataset.open_sweep(out)) == 2


def test_a_truncated_and_a_foreign_file_among_the_cells(finished: tuple[Path, Path], here: Path, say: Said) -> None:
    config, undisturbed = finished
    out = here / "out"
    shutil.copytree(undisturbed, out)
    truncated, swapped, text, sound = sorted(cells(out))
    (out / truncated).write_bytes((out / truncated).read_bytes()[:3000])
    shutil.copy(out / sound, out / swapped)
    (out / text).write_text("not a cell", encoding="utf-8")
    (out / "mine.nc").write_text("somebody's", encoding="utf-8")
    (out / f".{sound}.123-abcdef01.tmp").write_text("left by a killed run", encoding="utf-8")
    before = cells(out)

    code, listing, _ = say(config, "--out", out, "--dry-run")
    assert code == 0
    assert listing.count("broken, will be set aside") == 3
    assert "1 done" in listing
    assert cells(out) == before

    code, summary_text, err = say(config, "--out", out, "--json")
    summary = json.loads(summary_text)
    assert code == 0
    assert summary["cells"]["computed"] == 3
    assert sorted(map(os.path.basename, summary["set_aside"])) == sorted(
        f"{f}.broken" for f in (truncated, swapped, text)
    )
    assert "holds another cell" in err
    assert summary["not_in_this_plan"] == ["mine.nc"]
    assert cells(out)[sound] == before[sound]
    assert cells(out)["mine.nc"] == before["mine.nc"]
    assert differences(out, undisturbed, [truncated, swapped, text, sound]) == []
    assert not list(out.glob(".*.tmp"))


def test_a_damaged_sweep_json_loses_no_cell(finished: tuple[Path, Path], here: Path, say: Said) -> None:
    config, undisturbed = finished
    out = here / "out"
    shutil.copytree(undisturbed, out)
    before = cells(out)
    (out / "sweep.json").write_text('{"cells": [', encoding="utf-8")
    code, _, err = say(config, "--out", out)
    assert code == 0
    assert "sweep.json" in err
    assert "unreadable" in err
    assert cells(out) == before
    json.loads((out / "sweep.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def spoiled(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint cut short, one that holds NaN, one without BOS, and the sound one."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("spoiled")
    for name in ("sound", "short", "nan"):
        shutil.copytree(tiny / "tiny", folder / name)
    weights = folder / "short" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])
    weights = folder / "nan" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    tiny_checkpoint(folder / "nobos", bos=False)
    shutil.copy(tiny / "text.txt", folder / "text.txt")
    return folder


def test_cells_that_fail_do_not_stop_the_others(spoiled: Path, here: Path, say: Said) -> None:
    config = write_config(
        here / "mixed.yaml",
        name="mixed",
        dtype="fp32",
        chunk_size=8,
        protocol=["append", "reprime"],
        tokens=24,
        corpus=str(spoiled / "text.txt"),
        device="cpu",
        grids=[
            {"model": [str(spoiled / "short"), str(spoiled / "nan"), str(spoiled / "nobos")]},
            {"model": str(spoiled / "sound"), "tokens": [24, 200], "documents": 30},
            {"model": str(spoiled / "sound")},
        ],
    )
    code, text, err = say(config, "--json")
    summary = json.loads(text)
    failed = {
        (Path(f["config"]["model"]).name, f["config"]["protocol"], f["config"]["tokens"]): f
        for f in summary["failures"]
    }
    assert code == 1 == summary["exit_code"], err
    assert set(failed) == {
        ("short", "append", 24), ("short", "reprime", 24), ("nobos", "reprime", 24),
        ("sound", "append", 200), ("sound", "reprime", 200),
    }  # fmt: skip
    assert failed["short", "append", 24]["kind"] == "checkpoint"
    assert "reprime(token=" in failed["nobos", "reprime", 24]["reason"]
    assert failed["nobos", "reprime", 24]["kind"] == "config"
    assert failed["sound", "append", 200]["kind"] == "corpus"
    assert "tokens" in failed["sound", "append", 200]["reason"]
    out = here / "data" / "sweeps" / "mixed"
    for failure in summary["failures"]:
        assert "\n" not in failure["reason"]
        assert "Traceback" in (out / failure["log"]).read_text(encoding="utf-8")
        assert failure["reason"] in err

    opened = dataset.open_sweep(out)
    assert len(opened.failures) == 5
    assert len(opened) == summary["cells"]["done"] == 7
    for ds in opened:
        broken = int(ds.nonfinite_count.sum()) + int(ds.logit_nonfinite_count.sum())
        assert (broken > 0) == ("nan" in str(ds.model.values))

    # Failed cells stay failed, and are computed again when asked for.
    before = cells(out)
    code, text, err = say(config, "--json")
    assert code == 1
    assert json.loads(text)["cells"]["computed"] == 0
    assert "5 failed" in err
    code, text, _ = say(config)
    assert code == 1
    assert "--retry-failed" in text
    code, text, _ = say(config, "--dry-run")
    assert code == 0
    assert text.count("failed:") == 5
    # The identity of a checkpoint is its content: mended weights are new cells, a mended text of the same length too,
    # so what can be retried under the same name is what failed for the machine's sake.
    # Here: logs that must be renewed.
    logs = {path: path.stat().st_mtime_ns for path in (out / "logs").iterdir()}
    code, text, _ = say(config, "--retry-failed", "--json")
    assert code == 1
    assert json.loads(text)["cells"]["failed"] == 5
    assert cells(out) == before
    assert all(path.stat().st_mtime_ns > then for path, then in logs.items())


def test_fail_fast_leaves_the_rest(spoiled: Path, here: Path, say: Said) -> None:
    config = write_config(
        here / "fast.yaml",
        dtype="fp32",
        chunk_size=8,
        tokens=24,
        corpus="random",
        model=[str(spoiled / "short"), str(spoiled / "sound")],
    )
    code, text, _ = say(config, "--fail-fast", "--json")
    summary = json.loads(text)
    assert code == 3
    assert summary["cells"]["failed"] == 1
    assert summary["cells"]["left"] == 1
    assert "--fail-fast" in summary["stopped"]
    code, text, _ = say(config, "--json")
    assert code == 1
    assert json.loads(text)["cells"]["done"] == 1


@pytest.mark.parametrize("error", ["MemoryError", "RuntimeError", "OutOfMemoryError"])
def test_out_of_memory_tries_the_folds_one_at_a_time(
    error: str, finished: tuple[Path, Path], tiny: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    raised = {
        "MemoryError": MemoryError(),
        "RuntimeError": RuntimeError(
            "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."
        ),
        "OutOfMemoryError": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    }[error]
    real = tracing.trace_folds

    def tight(model: Any, tokens: Any, folds: Any, **options: Any) -> Any:
        if len(folds) > 1 or folds[0][:2] == (4, "reprime"):
            raise raised
        return real(model, tokens, folds, **options)

    # Running a machine out of memory in earnest would take the test run with it.
    monkeypatch.setattr(tracing, "trace_folds", tight)
    config, undisturbed = finished
    summary = run(load_config(config), here / "out")
    assert summary.exit == 1
    assert summary.done == 3
    [failure] = summary.failures
    assert failure["kind"] == "out_of_memory"
    assert "out of memory" in failure["reason"]
    monkeypatch.undo()
    # --retry-failed computes the one that is missing, and nothing else.
    before = cells(here / "out")
    summary = run(load_config(config), here / "out", retry_failed=True)
    assert summary.exit == 0
    assert len(summary.files) == 1
    assert before.items() <= cells(here / "out").items()
    assert not list((here / "out" / "logs").iterdir())
    assert differences(here / "out", undisturbed, list(cells(undisturbed))) == []


def test_a_full_disk_stops_the_sweep_and_blames_no_cell(
    finished: tuple[Path, Path], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(".nc"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    config, _ = finished
    summary = run(load_config(config), here / "out")
    assert summary.exit == 3
    assert summary.failed == 0
    assert summary.left == 4
    assert "No space left" in summary.stopped
    monkeypatch.undo()
    assert run(load_config(config), here / "out").exit == 0


def test_two_sweeps_do_not_share_a_folder(finished: tuple[Path, Path], here: Path, say: Said) -> None:
    config, undisturbed = finished
    shutil.copytree(undisturbed, here / "out")
    with plan(load_config(config), here / "out").folder.lock():
        code, _, err = say(config, "--out", here / "out")
        assert code == 2
        assert "another sweep" in err
        assert str(os.getpid()) in err
    assert say(config, "--out", here / "out")[0] == 0


def test_a_sweep_from_another_thread(finished: tuple[Path, Path]) -> None:
    config, out = finished
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(run(load_config(config), out).exit))
    thread.start()
    thread.join()
    assert results == [0]


def test_merged_permissions_of_the_same_cell(tiny: Path) -> None:
    base = small(tiny, tokens=24)
    grids = [{"allow_beyond_context": False}, {"allow_beyond_context": True}]
    for order in (grids, grids[::-1]):
        made = plan(load_config(base | {"grids": order}), tiny / "nowhere")
        assert len(made.cells) == 4
        assert all(cell.beyond_context for cell in made.cells)


# ---------------------------------------------------------------- the command line


@pytest.fixture(scope="session")
def imported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[int, set[str], str]]:
    """Run the command line in a fresh interpreter; returns exit code, imported packages and stdout."""

    def command(*argv: object) -> tuple[int, set[str], str]:
        words = [sys.executable, "-X", "importtime", "-m", "drift.sweep", *map(str, argv)]
        folder = tmp_path_factory.mktemp("fresh")
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            timeout=60,
        )
        names = {
            line.rsplit("|", 1)[-1].strip().split(".")[0]
            for line in done.stderr.splitlines()
            if line.startswith("import time:")
        }
        return done.returncode, names, done.stdout

    return command


def test_help_and_dry_run_do_without_torch(
    imported: Callable[..., tuple[int, set[str], str]], tiny: Path, here: Path
) -> None:
    code, names, text = imported("--help")
    assert code == 0
    assert not names & {"torch", "transformers", "dask", "distributed"}
    assert "yaml" in names
    assert all(word in text for word in ("model", "chunk_size", "attn_implementation", *presets(), "exit codes"))
    config = write_config(here / "small.yaml", **small(tiny))
    code, names, text = imported(config, "--dry-run")
    assert code == 0
    assert "4 cells" in text
    assert not names & {"torch", "transformers"}
    assert "numpy" in names


def test_list_presets(say: Said) -> None:
    code, out, _ = say("--list-presets")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(presets())


def test_the_rungs_are_the_ladders(here: Path, say: Said, tiny: Path) -> None:
    write_config(here / "all.yaml", **small(tiny, dtype=[n for n, r in RUNGS.items() if not r.needs_gpu]))
    code, out, err = say("all.yaml", "--dry-run")
    assert code == 0, err
    assert all(name in out for name in RUNGS if name != "tf32")


def test_progress_in_lines_and_as_a_bar() -> None:
    import io

    plain = io.StringIO()
    lines = Lines(plain)
    lines.begin(10)
    lines.group("group", 10, 2)
    for share in (0.2, 0.5, 0.7, 1.0):
        lines.fraction(share)
    lines.group_done("over")
    assert plain.getvalue().splitlines() == ["group", "    document 1 of 2", "    document 2 of 2", "    over"]

    # Two at once: each is known by its place.
    both = io.StringIO()
    lines = Lines(both)
    lines.group("first", 6, 2, "[1/2]")
    lines.group("second", 4, 1, "[2/2]")
    lines.fraction(0.5, "[1/2]")
    lines.fraction(1.0, "[2/2]")
    lines.group_done("second is over", "[2/2]")
    lines.fraction(1.0, "[1/2]")
    lines.fraction(1.0, "[2/2]")
    assert both.getvalue().splitlines() == [
        "first", "second", "    [1/2] document 1 of 2", "    [2/2] document 1 of 1", "    second is over",
        "    [1/2] document 2 of 2",
    ]  # fmt: skip

    parallel = io.StringIO()
    bar = Bar(parallel)
    bar.begin(10)
    bar.group("first", 6, 2, "[1/2]")
    bar.group("second", 4, 1, "[2/2]")
    bar.fraction(0.5, "[1/2]")
    bar.fraction(0.25, "[2/2]")
    assert bar._bar.n == pytest.approx(4)
    bar.group_done("second is over", "[2/2]")
    assert bar._bar.n == pytest.approx(7)
    bar.group_done("first is over", "[1/2]")
    assert bar._bar.n == pytest.approx(10)
    bar.end()

    drawn = io.StringIO()
    bar = Bar(drawn)
    bar.begin(10)
    bar.group("first", 6, 1)
    bar.fraction(0.5)
    bar.group_done("over")
    bar.group("second", 0, 1)
    bar.group_done("over")
    bar.end()
    assert "first" in drawn.getvalue()
    assert "%" in drawn.getvalue()


def test_a_bar_is_drawn_only_where_it_has_room(tmp_path: Path) -> None:
    import fcntl
    import struct
    import termios

    for columns, kind in ((100, Bar), (0, Lines)):  # terminals of some containers have no size
        ours, theirs = os.openpty()
        with open(ours, "rb", buffering=0), open(theirs, "w") as terminal:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
            assert type(reporter(terminal)) is kind
    with open(tmp_path / "log", "w") as file:
        assert type(reporter(file)) is Lines


def test_a_configuration_can_be_written_down_and_read_back(here: Path, tiny: Path) -> None:
    config = load_config(small(tiny))
    assert isinstance(config, Config)
    (here / "again.yaml").write_text(yaml.safe_dump(config.model_dump(exclude={"source"})), encoding="utf-8")
    again = load_config("again.yaml")
    assert again.model_dump(exclude={"source"}) == config.model_dump(exclude={"source"})


def test_python_errors_are_raised_for_python(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="unknown axis"):
        load_config({"model": "m", "chunk": 3})
    with pytest.raises(ConfigError, match="chunk size"):
        plan(load_config(small(tiny, chunk_size=99)), tiny / "nowhere")
