"""Cells that fail: the others go on, and every failure is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sweep_fixtures
from sweep_fixtures import Said
from sweep_tools import cells, tiny_checkpoint, write_config

from drift import dataset

tiny, here, say = sweep_fixtures.tiny, sweep_fixtures.here, sweep_fixtures.say


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
