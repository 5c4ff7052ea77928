"""Values on a command line that are none: refused in a line, and at once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from drift import plateau as plateau_door
from drift.errors import CheckpointError, ConfigError
from drift.running.checkpoints import loading
from drift.running.sweep.engines.dask import Dask
from drift.sweep import main as sweep_main


@pytest.mark.parametrize(
    "device", ["quantum", "meta", "", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "CPU", "mps\n", None, 0]
)
def test_devices_that_are_none(device: object) -> None:
    with pytest.raises(ConfigError, match=r"it must be cpu, cuda, cuda:1, \.\.\. or auto"):
        loading._device("model", device)  # type: ignore[arg-type]


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [loading._device("m", name) for name in ("cpu", "cuda", "cuda:1", "auto")] == [
        "cpu",
        "cuda",
        "cuda:1",
        "cuda",
    ]
    with pytest.raises(CheckpointError, match="torch sees 2 here, counted from 0"):
        loading._device("m", "cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CheckpointError, match="sees no CUDA device"):
        loading._device("m", "cuda:0")


@pytest.mark.parametrize(
    "arguments",
    [["--floor", "inf"], ["--floor", "nan"], ["--floor", "0"], ["--rise-min", "inf"], ["--rise-min", "nan"],
     ["--rise-min", "1"]],
    ids=" ".join,
)  # fmt: skip
def test_floors_and_rises_that_are_none(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"d,{step},{1 - math.exp(-step)}" for step in range(1, 40)]
    (tmp_path / "curve.csv").write_text("\n".join(["document,step,value", *rows]))
    assert plateau_door.main([str(tmp_path / "curve.csv"), *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "drift.plateau: --rise-min must be above 1, and --floor above 0; both finite\n"


@pytest.mark.parametrize(
    "scheduler",
    ["%%%", "tcp://", "tcp://:8786", "tcp://host", "tcp://host:0", "tcp://host:65536", "host", "http://host:80",
     "a b:1", "tcp://host:8786/x", "\n", "no/such.json", "x" * 300, "~no_such_user_of_this_machine/x", "tcp://[::1:1"],
)  # fmt: skip
def test_schedulers_that_are_none(scheduler: str) -> None:
    with pytest.raises(ConfigError, match=r"^--scheduler "):
        Dask(scheduler=scheduler)


def test_schedulers_that_may_be(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text("{}")
    for address in (
        "tcp://login:8786",
        "tls://10.0.0.1:8786",
        "login:8786",
        "tcp://[::1]:8786",
        "tcp://[fe80::1%eth0]:1",
    ):
        Dask(scheduler=address)
    Dask(scheduler="inproc://172.17.0.2/123/1")
    Dask(scheduler=str(file))


def test_a_sweep_with_such_a_scheduler_makes_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert sweep_main(["quick", "--engine", "dask", "--scheduler", "%%%", "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith("drift.sweep: --scheduler %%%: is neither an address")
    assert not out.exists()
