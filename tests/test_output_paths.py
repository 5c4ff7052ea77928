"""What drift writes stays where it was told to write, whole or not at all; every path from outside may be none."""

from __future__ import annotations

import ast
import errno
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import pytest
import synthetic
import xarray as xr
from notebook_tools import own_notebook

import drift
from drift import dataset, writing
from drift import report as drift_report
from drift.errors import CheckpointError, ConfigError, CorpusError, DatasetError, DriftError, ReportError
from drift.reading.diagnose.tensors import open_dump
from drift.reading.plateau.csv_files import from_csv
from drift.reading.report import executing, notebooks, rendering
from drift.running import capturing, corpus
from drift.running.checkpoints import cache, names
from drift.running.checkpoints.resolving import resolve
from drift.running.sweep import recomputing
from drift.running.sweep.checking import check
from drift.running.sweep.config import load_config
from drift.running.sweep.planning import plan
from drift.running.sweep.state import Folder

PACKAGE = Path(drift.__file__).parent
PRECIOUS = "not to be touched\n"


@pytest.fixture
def precious(tmp_path: Path) -> Iterator[Path]:
    """A file outside of the folder that is written to; nobody may change it."""
    path = tmp_path / "precious"
    path.write_text(PRECIOUS)
    yield path
    assert path.read_text() == PRECIOUS
    assert not path.is_symlink()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sweep").mkdir()
    return tmp_path / "sweep"


@pytest.fixture(scope="module")
def small() -> xr.Dataset:
    return synthetic.cell(tokens=64, layers=1)


# ---------------------------------------------------------------------------------------------- links
def test_the_lock_of_a_sweep_follows_no_link(folder: Path, precious: Path) -> None:
    (folder / ".lock").symlink_to(precious)
    with pytest.raises(ConfigError, match=r"\.lock is a link"), Folder(folder).lock():
        pass
    (folder / ".lock").unlink()
    (folder / ".lock").symlink_to(folder / "nowhere")
    with pytest.raises(ConfigError, match=r"\.lock is a link"), Folder(folder).lock():
        pass
    assert not (folder / "nowhere").exists()


def test_the_lock_of_a_sweep_changes_nothing_that_is_none_of_its_own(folder: Path, precious: Path) -> None:
    os.link(precious, folder / ".lock")
    with Folder(folder).lock():
        assert precious.read_text() == PRECIOUS
        with pytest.raises(ConfigError, match="process unknown"), Folder(folder).lock():
            pass
    (folder / ".lock").unlink()
    (folder / ".lock").write_text(PRECIOUS)
    with Folder(folder).lock():
        pass
    assert (folder / ".lock").read_text() == PRECIOUS


def test_a_lock_says_who_holds_it(folder: Path) -> None:
    (folder / ".lock").write_text("99999999\n")
    with Folder(folder).lock():
        assert (folder / ".lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"), Folder(folder).lock():
            pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_a_lock_that_is_no_file_is_refused_at_once(folder: Path) -> None:
    os.mkfifo(folder / ".lock")
    with pytest.raises(ConfigError, match="no plain file"), Folder(folder).lock():
        pass
    (folder / ".lock").unlink()
    (folder / ".lock").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be written to"), Folder(folder).lock():
        pass


def test_the_lock_of_the_cache_follows_no_link(tmp_path: Path, precious: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "locks").mkdir(parents=True)
    (tmp_path / "cache" / "locks" / "key.lock").symlink_to(precious)
    with pytest.raises(CheckpointError, match="is a link"), cache.locked_entry("key", print):
        pass


def test_logs_sweep_json_and_cells_follow_no_link(
    folder: Path, tmp_path: Path, precious: Path, small: xr.Dataset
) -> None:
    place = Folder(folder)
    (folder / "sweep.json").symlink_to(precious)
    place.save({"schema": 1})
    assert not (folder / "sweep.json").is_symlink()
    (folder / "a.nc").symlink_to(precious)
    dataset.write(small, folder / "a.nc")
    assert not (folder / "a.nc").is_symlink()
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / "logs").symlink_to(outside)
    assert place.log("a.nc", "a traceback") == ""
    (outside / "a.log").write_text(PRECIOUS)
    place.forget_log("a.nc")
    assert [p.name for p in outside.iterdir()] == ["a.log"]
    (folder / "logs").unlink()
    (folder / "logs").mkdir()
    (folder / "logs" / "a.log").symlink_to(precious)
    assert place.log("a.nc", "half a \ud800 traceback") == "logs/a.log"
    assert (folder / "logs" / "a.log").read_text() == "half a \\ud800 traceback"
    (folder / "b.nc.broken").symlink_to(tmp_path / "nowhere")
    (folder / "b.nc").write_text("broken")
    assert place.set_aside("b.nc").name == "b.nc.broken1"


def test_a_tmp_that_is_a_folder_is_left_alone(folder: Path) -> None:
    strange = folder / ".cell.nc.12-abcdef01.tmp"
    strange.mkdir()
    (folder / ".cell.nc.13-abcdef01.tmp").write_text("half")
    with Folder(folder).lock():
        pass
    assert sorted(p.name for p in folder.iterdir()) == [strange.name, ".lock"]
    assert check(folder).files == 0


def test_write_whole_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = folder / "x"
    writing.write_whole(target, b"one")
    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, _full)
            with pytest.raises(OSError, match="No space"):
                writing.write_whole(target, b"two")
        assert target.read_bytes() == b"one"
        assert [p.name for p in folder.iterdir()] == ["x"]


def _full(*args: object, **given: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _writers(source: str) -> Iterator[str]:
    """Calls that open a file for writing, or make a link."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        modes = [a.value for a in (*node.args, *(k.value for k in node.keywords)) if isinstance(a, ast.Constant)]
        opens = name == "open" and any(
            isinstance(m, str) and re.fullmatch(r"[rwxabt+]*[wxa+][rwxabt+]*", m) for m in modes
        )
        made = ("write_text", "write_bytes", "copyfile", "copy", "copy2", "NamedTemporaryFile", "touch", "symlink_to")
        module = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "")
        if opens or (name in made and not (name.startswith("copy") and module != "shutil")):
            yield f"{name}:{node.lineno}"


def test_files_are_opened_for_writing_in_one_place() -> None:
    assert list(_writers("open(x, 'wb'); p.open('a'); p.write_text('x'); shutil.copy(a, b); open(y, 'rb'); ds.copy()"))
    assert len(list(_writers("open(x, mode='r+'); open(z); np.copy(a)"))) == 1
    found = {
        str(path.relative_to(PACKAGE)): writers
        for path in PACKAGE.rglob("*.py")
        if (writers := list(_writers(path.read_text(encoding="utf-8"))))
    }
    # The traceback of a defect goes to a file that `mkstemp` has just made; the null device takes what nobody wants.
    assert set(found) == {"writing.py", "boundary.py", "streams.py"}


# ---------------------------------------------------------------------------------------------- reports
@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cells")
    return synthetic.sweep(root, ["alpha"], ["bf16", "fp32"], ["append"], [16], layers=1, tokens=64)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Notebooks that are run by nobody, with a picture each."""
    said = {"text": "the good page"}
    dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="

    def execute(path: Path, *rest: object) -> Any:
        v4 = nbformat.v4
        cell = v4.new_code_cell("", outputs=[v4.new_output("display_data", {"image/png": dot, "text/plain": "x"})])
        return v4.new_notebook(cells=[v4.new_markdown_cell(f"# {path.stem}\n\n{said['text']}"), cell])

    monkeypatch.setattr(executing, "execute_notebook", execute)
    return said


def _held(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_report_that_cannot_be_written_leaves_the_good_pages(
    cells: Path, tmp_path: Path, quick: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    command = [str(cells), "--notebook", "plateau", "layers", "--out", str(out)]
    assert drift_report.main(command) == 0
    good = _held(out)
    assert {"index.html", "plateau.html", "layers.html", "figures/front.png", "figures/plateau-figure-1.png"} <= set(
        good
    )
    assert "the good page" in good["plateau.html"].decode()
    quick["text"] = "another page"
    for call, stop in (("fsync", 2), ("replace", 1), ("rename", 3), ("rename", 12)):
        counted, real = [0], getattr(os, call)

        def refuse(*args: Any, _stop: int = stop, _real: Callable[..., Any] = real, _n: list[int] = counted) -> Any:
            _n[0] += 1
            return _full() if _n[0] == _stop else _real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            assert drift_report.main([*command, "--force"]) == 2, (call, stop)
        assert counted[0] >= stop
        assert _held(out) == good, (call, stop)
        told = capsys.readouterr().err
        assert "No space left on device" in told
        assert "as it was" in told
        assert "Traceback" not in told
    assert drift_report.main([*command, "--force"]) == 0
    assert "another page" in (out / "plateau.html").read_text()
    assert set(_held(out)) == set(good)


def test_where_a_report_cannot_go_it_says_so(
    cells: Path, tmp_path: Path, quick: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("a file")
    (tmp_path / "taken" / "index.html").mkdir(parents=True)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for out, said in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "inner", "cannot be written"),
        (tmp_path / "taken", "is a folder, where a file is to be written"),
        (tmp_path / "loop", "cannot be used as a path"),
        ("/".join([str(tmp_path), *["folder"] * 700]), "cannot be used as a path (File name too long)"),
        ("x" * 300, "cannot be used as a path"),
        ("~no_such_user_of_this_machine/x", "no such user"),
        ("/dev/null", "is a file"),
        ("/proc/nothing/here", "cannot be written"),
    ):
        assert drift_report.main([str(cells), "--notebook", "plateau", "--out", str(out)]) == 2, out
        told = capsys.readouterr().err
        assert said in told, (out, told)
        assert told.count("\n") == 1
        assert len(told) < 900
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "loop", "taken"]
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["index.html"]
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system"))
        )
        assert drift_report.main([str(cells), "--notebook", "plateau", "--out", str(tmp_path / "new")]) == 2
    assert "Read-only file system" in capsys.readouterr().err


def test_pages_and_figures_follow_no_link_out_of_the_folder(
    cells: Path, tmp_path: Path, precious: Path, quick: dict[str, str]
) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    outside.mkdir()
    (outside / "plateau-figure-1.png").write_text(PRECIOUS)
    (out / "plateau.html").symlink_to(precious)
    (out / rendering.INPUTS).symlink_to(precious)
    (out / "figures").symlink_to(outside)
    with pytest.raises(ReportError, match="is a link"):
        rendering.render(cells, ["plateau"], out, report=lambda line: None)
    assert (outside / "plateau-figure-1.png").read_text() == PRECIOUS
    assert sorted(p.name for p in out.iterdir()) == ["figures", rendering.INPUTS, "plateau.html"]
    (out / "figures").unlink()
    rendering.render(cells, ["plateau"], out, report=lambda line: None)
    assert not (out / "plateau.html").is_symlink()
    assert not (out / rendering.INPUTS).is_symlink()


def test_a_notebook_of_ones_own_is_said_to_be_code(cells: Path, tmp_path: Path, quick: dict[str, str]) -> None:
    own_notebook(tmp_path / "plateau.ipynb")
    said: list[str] = []
    rendering.render(cells, [str(tmp_path / "plateau.ipynb"), "layers"], tmp_path / "out", report=said.append)
    warned = [line for line in said if "a notebook is code" in line]
    assert len(warned) == 1
    assert warned[0].startswith(str(tmp_path / "plateau.ipynb"))
    assert said.index(warned[0]) < said.index(next(line for line in said if "plateau: running" in line))


def test_what_killed_reports_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: dict) -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    dead, alive = f"drift-kernel-{gone.stdout.strip()}-abc", f"drift-kernel-{os.getpid()}-abc"
    for name in (dead, alive, "drift-kernel-mine", "another"):
        (tmp_path / name / "kernels").mkdir(parents=True)
    (tmp_path / f"drift-kernel-{gone.stdout.strip()}-link").symlink_to(tmp_path / "another")
    monkeypatch.setattr(notebooks.tempfile, "tempdir", str(tmp_path))
    with notebooks.own_kernel():
        assert not (tmp_path / dead).exists()
    left = {p.name for p in tmp_path.iterdir()}
    assert {alive, "drift-kernel-mine", "another"} <= left
    assert (tmp_path / "another" / "kernels").is_dir()


# ---------------------------------------------------------------------------------------------- paths from outside
NO_PATHS = ("a\0b", "x" * 256, "/".join(["folder"] * 700), "~no_such_user_of_this_machine/x", "LOOP", "LOOP/inner")
TAKERS: dict[str, tuple[Callable[[str], object], type[DriftError]]] = {
    "open_sweep": (dataset.open_sweep, DatasetError),
    "read": (dataset.read, DatasetError),
    "read_attributes": (dataset.read_attributes, DatasetError),
    "write": (lambda path: dataset.write(synthetic.cell(tokens=64, layers=1), path), DatasetError),
    "thin_sweep from": (lambda path: dataset.thin_sweep(path, "nowhere"), DatasetError),
    "thin_sweep to": (lambda path: dataset.thin_sweep("nowhere", path), ConfigError),
    "render": (lambda path: rendering.render(path, []), ReportError),
    "find_notebook": (lambda path: notebooks.find_notebook(f"{path}.ipynb" if path[-1] == "b" else path), ReportError),
    "open_dump": (open_dump, DatasetError),
    "from_csv": (from_csv, DatasetError),
    "resolve": (resolve, CheckpointError),
    "corpus": (lambda path: corpus.text(f"file:{path}"), CorpusError),
    "load_config": (load_config, ConfigError),
    "plan": (lambda path: plan(load_config("quick"), path, look=False), ConfigError),
    "check": (check, ConfigError),
    "requests": (recomputing.requests, ConfigError),
    "free_target": (capturing.free_target, ConfigError),
}


@pytest.mark.parametrize("given", NO_PATHS, ids=lambda text: text[:8].replace("\0", "0"))
@pytest.mark.parametrize("taker", TAKERS)
def test_every_entry_point_refuses_what_is_no_path(
    taker: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "LOOP").symlink_to(tmp_path / "LOOP")
    take, error = TAKERS[taker]
    with pytest.raises(error) as refused:
        take(given)
    assert len(str(refused.value)) < 1000
    assert "\0" not in str(refused.value)


@pytest.mark.parametrize("variable", ["DRIFT_CACHE", "DRIFT_CHECKPOINTS", "DRIFT_WHEELHOUSE", "XDG_CACHE_HOME"])
def test_variables_that_are_no_path_are_named(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in ("~no_such_user_of_this_machine/x", "x" * 300):
        monkeypatch.delenv("DRIFT_CACHE", raising=False)
        monkeypatch.setenv(variable, given)
        with pytest.raises(CheckpointError, match=f"^{variable} "):
            names.named_path(variable)
        if variable != "DRIFT_WHEELHOUSE":
            assert import_module("drift.checkpoints").main(["list"]) == 1
            assert capsys.readouterr().err.startswith(f"drift: {variable} ")


COMMANDS = [
    *("claims PATH", "ladder PATH", "plateau PATH", "report PATH", "verify PATH", "thin PATH new", "thin nowhere PATH"),
    *("diagnose PATH PATH", "logits PATH PATH", "sweep PATH", "sweep --check PATH", "sweep quick --dry-run --out PATH"),
    *("capture PATH --out new", "capture x --out PATH", "checkpoints verify PATH", "report nowhere --out PATH"),
]


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_refuses_what_is_no_path(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "LOOP").symlink_to(tmp_path / "LOOP")
    door, *arguments = words.split()
    for given in NO_PATHS:
        command = [given if word == "PATH" else word for word in arguments]
        assert import_module(f"drift.{door}").main(command) in (1, 2), given
        told = capsys.readouterr().err
        assert "Traceback" not in told
        assert "defect" not in told
        assert told.count("\n") == 1
        assert len(told) < 1200
    assert [p.name for p in tmp_path.iterdir()] == ["LOOP"]


def test_modes_of_new_files_are_those_of_the_user(folder: Path) -> None:
    before = os.umask(0o027)
    try:
        writing.write_whole(folder / "x", b"x")
        with Folder(folder).lock():
            pass
    finally:
        os.umask(before)
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in ("x", ".lock")} == {0o640}
