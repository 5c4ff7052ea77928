"""The one way out of every command: a line and an exit code, or a traceback in a file and a request to report it."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import pytest
import synthetic

from drift.boundary import DEFECT, FAILED, INTERRUPTED, command
from drift.errors import CheckpointError, ConfigError, DriftError
from drift.paths import outside_path
from drift.shown import clipped, printable, printable_lines
from drift.streams import Errors, Output

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
DOORS = sorted(target.split(":")[0].split(".")[1] for target in SCRIPTS.values())
needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def raising(error: BaseException) -> Callable[[Sequence[str] | None], int]:
    def main(argv: Sequence[str] | None = None) -> int:
        raise error

    return main


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    synthetic.sweep(folder, ["alpha", "beta"], ["bf16", "fp32"], ["append"], [16], layers=2, tokens=256)
    return folder


# ---------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DriftError("a sentence"), FAILED, "it: a sentence\n"),
        (ConfigError("one\ntwo"), FAILED, "it: one\nit: two\n"),
        (CheckpointError("weights"), 7, "it: weights\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), FAILED, "it: /x: No space left on device. "),
        (PermissionError(errno.EACCES, "Permission denied"), FAILED, "it: Permission denied. "),
        (RecursionError("maximum recursion depth"), FAILED, "nested too deeply"),
        (MemoryError(), FAILED, "not enough memory"),
        (KeyboardInterrupt(), INTERRUPTED, "it: stopped\n"),
        (DriftError("\x1b[2Jgone\rover"), FAILED, "it: \\x1b[2Jgone\nit: over\n"),
    ],
)
def test_what_can_be_expected_is_a_line_and_a_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    guarded = command("it", codes={CheckpointError: 7}, interrupted="stopped")(raising(error))
    assert guarded([]) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert "Traceback" not in told.err


def test_anything_else_is_to_be_reported_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    guarded = command("it")(raising(ZeroDivisionError("by \x1b[31mnought")))
    assert guarded([]) == DEFECT
    told = capsys.readouterr().err
    (kept,) = tmp_path.iterdir()
    assert "defect in drift (ZeroDivisionError: by \\x1b[31mnought)" in told
    assert "report it" in told
    assert str(kept) in told
    assert told.count("\n") == 1
    assert "Traceback (most recent call last)" in kept.read_text()
    assert "in raising" not in told


def test_where_the_traceback_cannot_be_kept_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert command("it")(raising(KeyError("x")))([]) == DEFECT
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("error", "code"),
    [(OSError(errno.EIO, "Input/output error"), (1, 2)), (MemoryError(), (1, 2)), (RecursionError(), (1, 2)),
     (TypeError("from the depths"), (DEFECT,)), (KeyboardInterrupt(), (INTERRUPTED,))],
)  # fmt: skip
def test_every_door_goes_through_the_boundary(
    door: str, error: BaseException, code: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Whatever a door calls first raises; the door's own words decide how it ends."""
    module = import_module(f"drift.{door}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def parser(*_: object) -> object:
        raise error

    monkeypatch.setattr(module, "_parser", parser)
    assert module.main([]) in code
    assert "Traceback" not in capsys.readouterr().err


def test_console_scripts_and_modules_have_the_same_function() -> None:
    for target in SCRIPTS.values():
        module, _, function = target.partition(":")
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        assert function == "main"
        assert source.count("\n@command(") == 1, module
        assert "except DriftError" not in source, module
        assert "except KeyboardInterrupt" not in source, module


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs POSIX signals")
def test_a_request_to_end_is_an_interruption_and_nohup_means_it(capsys: pytest.CaptureFixture[str]) -> None:
    @command("it")
    def main(argv: Sequence[str] | None = None) -> int:
        signal.raise_signal(signal.SIGHUP)
        return 5

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started under
    try:
        assert main([]) == INTERRUPTED
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert main([]) == 5
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    codes: list[int] = []
    other = threading.Thread(target=lambda: codes.append(command("it")(lambda argv=None: 3)([])))
    other.start()
    other.join()
    assert codes == [3]


# ---------------------------------------------------------------------------------------------- output
class Refusing(io.StringIO):
    """A stream that takes so many characters."""

    def __init__(self, error: OSError, room: int = 0) -> None:
        super().__init__()
        self.error, self.room = error, room

    def write(self, text: str) -> int:
        if self.tell() + len(text) > self.room:
            raise self.error
        return super().write(text)


def test_a_closed_pipe_ends_the_output_and_not_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, done = Refusing(BrokenPipeError(errno.EPIPE, "Broken pipe"), room=8), []
    monkeypatch.setattr(sys, "stdout", stream)

    @command("it")
    def main(argv: Sequence[str] | None = None) -> int:
        for n in range(10):
            print(f"row {n}")
            done.append(n)
        return 3

    assert main([]) == 3
    assert done == list(range(10))
    assert stream.getvalue() == "row 0\n"


def test_output_that_cannot_be_written_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Refusing(OSError(errno.ENOSPC, "No space left on device")))
    assert command("it")(lambda argv=None: print("row") or 0)([]) == FAILED
    told = capsys.readouterr().err
    assert told.startswith("it: standard output cannot be written (No space left on device)")
    assert told.count("\n") == 1


def test_errors_that_cannot_be_written_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Refusing(OSError(errno.ENOSPC, "No space left on device")))
    assert command("it")(raising(ConfigError("unheard")))([]) == FAILED


def test_a_closed_standard_output_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert command("it")(lambda argv=None: print("row") or 0)([]) == 0
    assert sys.stdout is None


def run(code: str, **how: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHON": sys.executable}, **how,  # type: ignore[call-overload]
    )  # fmt: skip


@needs_dev_full
def test_real_streams_that_refuse(tmp_path: Path) -> None:
    """What the interpreter does with its buffers when it ends shows in a process of its own only."""
    listing = '"$PYTHON" -m drift.checkpoints list'
    full = run(f"{listing} > /dev/full")
    assert full.returncode == 1
    assert full.stderr.count("\n") == 1, full.stderr
    assert "standard output cannot be written (No space left on device)" in full.stderr
    for reader in ("head -n 1 > /dev/null", "true"):
        head = run(f"{listing} | {reader}")
        assert (head.returncode, head.stderr) == (0, ""), reader
    assert (run(f"{listing} >&-").stderr, run(f"{listing} x 2>&-").stderr) == ("", "")


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_tables_that_cannot_be_written(
    form: list[str], sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, code in ((OSError(errno.ENOSPC, "No space left on device"), FAILED), (BrokenPipeError(), 0)):
        monkeypatch.setattr(sys, "stdout", Refusing(error, room=20))
        assert import_module("drift.plateau").main([str(sweep), *form]) == code
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("door", DOORS)
def test_every_door_says_that_its_output_cannot_be_written(
    door: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Refusing(OSError(errno.ENOSPC, "No space left on device")))
    assert import_module(f"drift.{door}").main(["--help"]) in (1, 2)
    assert "standard output cannot be written" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- terminals
def test_control_characters_are_written_as_what_they_are_called() -> None:
    text = "a\x1b]0;title\x07b\nc\rd\x9be\u202ef\u2028g\ud800h\x00i\x7f"
    assert printable(text) == "a\\x1b]0;title\\x07b\\nc\\rd\\x9be\\u202ef\\u2028g\\ud800h\\x00i\\x7f"
    assert printable_lines("a\tb\nc\x1b") == "a\tb\nc\\x1b"
    assert printable("gemma – 3 × 270 м, 模型") == "gemma – 3 × 270 м, 模型"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_streams_write_what_a_terminal_may_show(encoding: str) -> None:
    raw = io.BytesIO()
    text = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    print("x\x1b[31m\udcff – é", file=Output(text))  # type: ignore[call-overload]
    shown = raw.getvalue().decode(encoding)
    assert "\x1b" not in shown
    assert shown.startswith("x\\x1b[31m\\udcff ")
    bar = io.StringIO()
    Errors(bar).write("\r 10%|##\x1b[A\x1b[31mred")
    assert bar.getvalue() == "\r 10%|##\x1b[A\\x1b[31mred"


def test_names_of_cells_reach_no_terminal_as_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "al\x1b[2Jpha\nbeta: supported"
    synthetic.sweep(tmp_path, [evil], ["bf16", "fp32"], ["append"], [16], layers=2, tokens=256)
    (tmp_path / "bad\x1b[31m.nc").write_text("no cell")
    for door in ("claims", "plateau", "ladder"):
        assert import_module(f"drift.{door}").main([str(tmp_path)]) == 0
        told = capsys.readouterr()
        assert "\x1b" not in told.out + told.err, door
        assert not any(line.startswith("beta: supported") for line in told.out.splitlines()), door
        assert "al\\x1b[2Jpha\\nbeta" in told.out, door


# ---------------------------------------------------------------------------------------------- paths
@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        ("x" * 256, "too long"),
        ("/".join(["folder"] * 800), "too long"),
        ("~no_such_user_of_this_machine/x", "no such user"),
        (None, "a NoneType"),
        (3, "a int"),
        (b"bytes", "bytes"),
    ],
)
def test_paths_that_are_none_are_refused_in_a_line(given: object, why: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used as a path") as refused:
        outside_path(given)  # type: ignore[arg-type]
    assert why in str(refused.value)
    assert len(str(refused.value)) < 400
    assert "\0" not in str(refused.value)


def test_loops_of_links_are_refused_and_homes_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    for given in (tmp_path / "one", tmp_path / "one" / "inner"):
        with pytest.raises(CheckpointError, match="symbolic links"):
            outside_path(given, CheckpointError)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert outside_path("~/x") == tmp_path / "x"
    assert outside_path(tmp_path / "nothing" / "there") == tmp_path / "nothing" / "there"
    assert len(clipped("y" * 5000)) < 200
