"""Memory: what a descent is reckoned to take, how it is made to fit, and what is said where it cannot."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench_tools import bench
from sweep_tools import REPOSITORY, text_file, tiny_checkpoint, write_config

from drift import dataset
from drift.dataset.comparing import same_data
from drift.errors import ConfigError
from drift.running import limits
from drift.running.checkpoints import loading
from drift.running.checkpoints.names import Shape
from drift.running.model import weights
from drift.running.sweep import config as sweep_config
from drift.running.sweep import groups, memory
from drift.running.sweep.engines.processes import automatic_jobs
from drift.running.sweep.memory import _control_group, choose, footprint, free, parse_size
from drift.running.sweep.planning import plan
from drift.running.sweep.running import run
from drift.sweep import main

LLAMA_8B = Shape(32, 4096, 14336, 32, 8, 128, 128256, 8_030_261_248, 131072, False)
LLAMA_70B = Shape(80, 8192, 28672, 64, 8, 128, 128256, 70_553_706_496, 131072, False)
LONG: dict[str, Any] = {
    "dtype": "bf16",
    "device": "cuda",
    "half_matmul": "native",
    "attn_implementation": "sdpa",
    "tokens": 131072,
    "folds": [256],
    "logit_stride": 16,
}


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * 2**30), ("500MB", 500_000_000), ("500 mb", 500_000_000), ("8e9", 8_000_000_000), ("1.5kB", 1500)],
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "24 apples", "0", "-3GB", "1.2.3GB", "1e999"])
def test_no_amounts_of_memory(text: str) -> None:
    with pytest.raises(ConfigError, match="is no amount of memory; write 24GiB"):
        parse_size(text)


def test_what_is_held_at_once_is_said_in_one_place() -> None:
    """What predicts the memory of a descent must not copy what decides it."""
    said = re.compile(rf"^\s*_?({'|'.join(limits.__all__)}) *=", re.MULTILINE)
    homes = {p.name for p in (REPOSITORY / "drift").rglob("*.py") if said.search(p.read_text(encoding="utf-8"))}
    assert homes == {"limits.py"}


def test_the_machine_says_what_is_free() -> None:
    available = free("cpu")
    assert available is None or available > 0


def test_weights_and_masks_of_an_8b_model_are_what_they_are() -> None:
    way = footprint(LLAMA_8B, **LONG)
    assert way.parts["weights"] == pytest.approx(2 * 8.03e9, abs=2 * 0.005e9)  # published with three digits
    # 512 chunks of 256 queries against all keys so far, one byte each; positions and rotations add some per cent
    assert way.parts["calls"] == pytest.approx(131072**2 / 2, rel=0.03)
    assert footprint(LLAMA_8B, keeps_calls=False, **LONG).parts["calls"] < 0.05e9
    streamed = footprint(LLAMA_8B, weights="streamed", **LONG)
    # two blocks of 218 million weights, and what is being read: less than half a block, two bytes a weight
    assert streamed.parts["weights"] == pytest.approx(4 * 218.1e6, rel=0.2)
    assert footprint(LLAMA_70B, weights="streamed", **LONG).parts["weights"] < 4e9


def test_the_quickest_way_that_fits_is_taken() -> None:
    roomy, fits = choose(LLAMA_8B, budget=None, **LONG)
    assert (roomy.weights, roomy.keeps_calls, roomy.logit_rows, fits) == ("resident", True, 1024, True)
    seen = []
    for budget in (60e9, 36e9, 24e9):
        way, fits = choose(LLAMA_8B, budget=budget, **LONG)
        assert fits
        assert way.bytes <= budget
        seen.append((way.weights, way.keeps_calls))
    assert seen == [("resident", True), ("resident", False), ("streamed", False)]
    least, fits = choose(LLAMA_8B, budget=1e9, **LONG)
    assert not fits
    assert least.bytes == choose(LLAMA_8B, budget=least.bytes, **LONG)[0].bytes
    assert choose(LLAMA_8B, budget=1e12, weights="streamed", **LONG)[0].weights == "streamed"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of a tiny checkpoint: two folds of one text."""
    folder = tmp_path_factory.mktemp("memory")
    tiny_checkpoint(folder / "tiny")
    return write_config(
        folder / "small.yaml",
        model=str(folder / "tiny"),
        dtype="fp32",
        chunk_size=[8, 16],
        tokens=64,
        device="cpu",
        corpus=f"file:{text_file(folder / 'text.txt')}",
    )


def budget_between(config: Path) -> int:
    """A budget that streamed weights fit into and resident ones do not."""
    group = plan(config).groups()[0]
    tight = group.way(1)
    roomy = group.way(None)
    assert tight is not None
    assert roomy is not None
    assert tight[0].bytes < roomy[0].bytes
    return int(tight[0].bytes) + 1


def test_cells_are_the_same_within_any_budget(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    kept = []
    plain = loading.load

    def load(*args: Any, **options: Any) -> Any:
        loaded = plain(*args, **options)
        kept.append(loaded.record["weights_kept"])
        return loaded

    monkeypatch.setattr(loading, "load", load)
    folders = [tmp_path / name for name in ("roomy", "tight", "forced")]
    assert run(config, folders[0], memory=10**12).failed == 0
    assert run(config, folders[1], memory=budget_between(config)).failed == 0
    assert main([str(config), "--out", str(folders[2]), "--set", "weights=streamed"]) == 0
    assert kept == ["resident", "streamed", "streamed"]
    names = [sorted(path.name for path in folder.glob("*.nc")) for folder in folders]
    assert names[0] == names[1] == names[2]
    for cells in zip(*(sorted(folder.glob("*.nc")) for folder in folders), strict=True):
        first, *others = map(dataset.read, cells)
        for other in others:
            assert same_data(first, other) == []


def test_what_cannot_fit_is_refused_with_what_it_would_need(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(config), "--out", str(out), "--memory", "1MB"]) == 1
    record = json.loads((out / "sweep.json").read_text())
    assert len(record["failures"]) == 2
    for failure in record["failures"]:
        assert failure["kind"] == "memory"
        assert "of memory even with" in failure["reason"]
        assert "--memory 0." in failure["reason"]
    assert "1.0 MB are allowed or free" in capsys.readouterr().out
    # Failed cells are tried again with more.
    assert main([str(config), "--out", str(out), "--memory", "100GB", "--retry-failed"]) == 0


def test_bad_amounts_are_errors_in_words(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(config), "--memory", "plenty", "--dry-run"]) == 2
    assert "no amount of memory" in capsys.readouterr().err
    assert main([str(config), "--set", "weights=floating", "--dry-run"]) == 2
    assert "is not one of auto, resident, streamed" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_streamed_is_loaded_whole_unless_that_was_asked_for(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def unfit(*args: Any) -> Any:
        raise weights.UnfitForStreamingError("It has no safetensors.")

    monkeypatch.setattr(loading, "Streamed", unfit)
    assert run(config, tmp_path / "auto", memory=budget_between(config)).done == 2
    asked = sweep_config.load_config(config, ["weights=streamed"])
    summary = run(asked, tmp_path / "asked")
    assert summary.failed == 2
    assert "It has no safetensors" in summary.failures[0]["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        {"dtype": "fp32", "tokens": 256, "chunk_size": 64, "weights": "streamed"},
        {"dtype": "bf16", "tokens": 256, "chunk_size": 64, "half_matmul": "float32"},
    ],
)
def test_the_predicted_peak_is_within_fifteen_percent(case: dict[str, Any], smollm2: str, tmp_path: Path) -> None:
    with bench("memory") as script:
        found = script.measure({"model": smollm2, **case}, tmp_path)
    # No rounding: what the allocator keeps and libraries take differs from machine to machine (bench/README.md).
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.15)


@pytest.mark.parametrize(
    ("line", "more"),
    [
        ("cuda: Optional[str] = '13.0'", True),
        ('cuda = "12.8"', True),
        ("cuda: Optional[str] = None", False),
        ("hip = '6.4'\n__all__ = ['cuda', 'hip']", False),
    ],
)
def test_a_torch_that_was_built_for_cuda_takes_more(
    line: str, more: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = memory.runtime_bytes.__wrapped__
    monkeypatch.setattr(memory.importlib.util, "find_spec", lambda name: None)
    least = fresh()
    (tmp_path / "version.py").write_text(f"debug = False\n{line}\n")
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(memory.importlib.util, "find_spec", lambda name: spec)
    assert (fresh() > least) is more


def test_what_is_said_of_the_build_is_what_torch_says() -> None:
    bare = memory.runtime_bytes.__wrapped__() == memory._RUNTIME
    assert bare is (torch.version.cuda is None)


def test_a_control_group_limits_what_is_free(tmp_path: Path) -> None:
    assert _control_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert _control_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert _control_group(tmp_path) == 700


def test_jobs_fit_into_the_memory_that_is_allowed() -> None:
    assert automatic_jobs("cpu", 100, 1e9, memory=2_000_000_000) == 1
    assert automatic_jobs("cpu", 100, 1e9, memory=10**15) == automatic_jobs("cpu", 100, 1.0)


def test_a_copy_in_float64_is_reckoned_as_it_is_run(tmp_path: Path) -> None:
    tiny = tiny_checkpoint(tmp_path / "model")
    given = {
        "model": str(tiny),
        "corpus": f"file:{text_file(tmp_path / 'text.txt')}",
        "tokens": 64,
        "chunk_size": 8,
        "dtype": "fp32",
    }
    one = plan(write_config(tmp_path / "one.yaml", **given, reference="full"), tmp_path / "a").groups()[0]
    both = plan(write_config(tmp_path / "two.yaml", **given, reference=["full", "gold"]), tmp_path / "b").groups()[0]
    alone, beside = one.way(), both.way()
    assert alone is not None
    assert beside is not None
    way = beside[0]
    cell = one.cells[0]
    shape = groups.shape_of(cell.model, cell.checkpoint)
    wide = footprint(
        shape, dtype="fp64", device="cpu", half_matmul="native", attn_implementation="sdpa", tokens=64, folds=[8],
        logit_stride=cell.logit_stride, weights=way.weights, keeps_calls=way.keeps_calls, logit_rows=way.logit_rows,
    )  # fmt: skip
    assert way.keeps_calls
    assert way.bytes - alone[0].bytes == pytest.approx(wide.bytes - wide.parts["runtime"])
