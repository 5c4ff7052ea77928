"""``python -m drift.sweep``: what it imports, lists and shows while it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sweep_fixtures
import yaml
from sweep_fixtures import Said, small
from sweep_tools import REPOSITORY, write_config

from drift.dataset.rungs import RUNGS
from drift.errors import ConfigError
from drift.running.sweep.config import Config, load_config, presets
from drift.running.sweep.planning import plan
from drift.running.sweep.progress import Bar, Lines, reporter

tiny, here, say = sweep_fixtures.tiny, sweep_fixtures.here, sweep_fixtures.say


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
