"""What the README and the pages of docs/ tell people to type and to believe."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import drift
from drift.dataset.opening import open_sweep
from drift.reading.wording.numbers import percent

ROOT = Path(drift.__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
EVIDENCE = "data/evidence/deep"


class Parsed(BaseException):
    """Carries what a command line came to, past everything that turns exceptions into messages."""


def commands(page: str) -> Iterator[str]:
    """Yield the commands of the code blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL):
        for line in block.splitlines():
            found = re.match(r"(?:\$ )?(python -m drift\.\w+.*)", line.strip())
            if found:
                yield found[1]


def words(command: str) -> list[str]:
    """Take a command apart as a shell does, its comment and what a synopsis has in brackets left out."""
    return shlex.split(re.sub(r"\[-[^]]*\]", "", command), comments=True)


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *given: object, **options: object) -> None:
        raise Parsed(parse(self, *given, **options))  # type: ignore[call-overload]

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    for command in commands(page):
        _, _, module, *arguments = words(command)
        # `...` stands for what a reader fills in.
        filled = ["tcp://127.0.0.1:8786" if word == "..." else word for word in arguments]
        with pytest.raises(Parsed):
            importlib.import_module(module).main(filled)


def test_a_command_that_does_not_parse_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "commands", lambda page: ["python -m drift.claims data --no-such-flag"])
    with pytest.raises(SystemExit):
        test_commands_parse("README.md", monkeypatch)


def test_folders_of_the_readme_are_there_or_made_by_a_command_above() -> None:
    made = {"data/sweeps/default"}  # by `make report`, the first command
    for command in commands("README.md"):
        given = words(command)
        for word in given[3:]:
            if word.startswith(("data/", "reports/")) and given[2] != "drift.sweep":
                assert word in made or (ROOT / word).exists(), f"{command}: {word}"
        if given[2] == "drift.sweep" and "--check" not in given:
            made |= {given[given.index("--out") + 1]} if "--out" in given else {f"data/sweeps/{given[3]}"}


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if not target.startswith("http"):
                assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_what_the_readme_says_of_the_deep_chains_is_what_they_say() -> None:
    sweep = open_sweep(ROOT / EVIDENCE)
    chains = {
        (ds["model"].item(), ds["dtype"].item()): ds.drift.plateau()
        for ds in sweep.sel(protocol="append", chunk_size=8)
    }
    flat = sum(found.verdict.is_plateau for found in chains.values())
    numerals = ["None", "One", "Two", "Three", "Four", "Five", "Six"]
    assert f"{numerals[flat]} of these {numerals[len(chains)].lower()} chains are flat" in README
    smol = chains["smollm2-135m-instruct", "bf16"]
    low, high = smol.growth_interval
    said = f"by {percent(smol.growth_per_doubling).lstrip('+')} per doubling in bf16"
    assert said in " ".join(README.split()), said
    assert f"{100 * low:.1f} to {100 * high:.1f} %" in README
    assert smol.documents == 8
    assert "eight documents" in README
    over = [ds.drift.plateau(of="excess") for ds in sweep.sel(protocol="append", chunk_size=8)]
    assert all(found.verdict.is_plateau for found in over)
    assert all(ds.drift.rounding().is_rounding for ds in sweep.sel(protocol="append", chunk_size=8))
    reached = [found.level for found in over]
    assert f"at {min(reached):.2f} to {max(reached):.2f} floors" in README
    levels = [ds.drift.plateau().level for ds in sweep.sel(protocol="reprime")]
    assert f"at drifts of {min(levels):.1f} to {max(levels):.1f}".replace("0.", ".") in README
