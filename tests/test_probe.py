"""A server that is asked in several ways: what is sent, what is made of the answers, what the command says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as tree

import pytest
from probe_tools import Behaviour, serving

from drift import probe as door

SMALL = (
    "--prompts",
    "6",
    "--characters",
    "120",
    "--tokens",
    "12",
    "--repeats",
    "2",
    "--nonce",
    "abc",
    "--timeout",
    "30",
)


def probed(
    behaviour: Behaviour, capsys: pytest.CaptureFixture[str], *more: str, code: int | None = None
) -> dict[str, Any]:
    """What the command says of a server."""
    with serving(behaviour) as endpoint:
        told = door.main(["--endpoint", endpoint, *SMALL, "--json", *more])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told == found["exit_code"]
    assert code is None or told == code, [(p["lane"], p["verdict"], p["explanation"]) for p in found["pairs"]]
    return found


def verdicts(found: dict[str, Any], view: str = "generated") -> dict[str, str]:
    return {pair["lane"]: pair["verdict"] for pair in found["pairs"] if pair["view"] == view}


def test_a_server_that_always_computes_the_same_has_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    found = probed(Behaviour(), capsys, code=0)
    assert set(verdicts(found).values()) == {"same_bits"}
    assert list(verdicts(found)) == ["shared prefix", "warm", "repeat 1", "repeat 2", "6 at a time", "3 at a time"]
    assert (found["engine"], found["nonce"], found["prompts"]) == ("llama.cpp", "abc", 6)
    assert any("no floor" in note for note in found["notes"])


def test_a_bug_of_the_cache_is_beyond_and_does_not_hide_itself(capsys: pytest.CaptureFixture[str]) -> None:
    behaviour = Behaviour(noise=3e-4, cache=1e-3, batch=1e-3, bug=lambda way: 0.5 * (way == "cache"))
    found = probed(behaviour, capsys, code=1)
    assert {lane for lane, verdict in verdicts(found).items() if verdict == "beyond_floor"} == {"warm", "shared prefix"}


def test_a_cache_that_was_not_used_is_not_vouched_for(capsys: pytest.CaptureFixture[str]) -> None:
    found = probed(Behaviour(caches=False), capsys, code=3)
    assert {pair["why"] for pair in found["pairs"] if pair["kind"] == "cache"} == {"not_cached"}
    assert probed(Behaviour(caches=False), capsys, "--lanes", "batch", code=0)["verdict"] == "same_bits"


def test_a_server_without_a_switch_has_no_repeats_but_lanes_of_its_cache(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = Behaviour(owner="somebody", alone=4, knows_switch=False, cache=1e-3, batch=1e-3, tells_cache=False)
    found = probed(quiet, capsys, code=3)
    assert {pair["kind"] for pair in found["pairs"] if pair["lane"].startswith("repeat")} == {"cache"}
    assert verdicts(found)["warm"] == "undetermined"
    assert "shared prefix" not in verdicts(found) and "--anew" in found["left_out"][0]
    switched = Behaviour(owner="somebody", cache=1e-3, batch=1e-3)
    told = probed(switched, capsys, "--anew", '{"cache_prompt": false, "salted": "{salt}"}')
    assert verdicts(told)["repeat 1"] == "same_bits" and "shared prefix" in verdicts(told)
    assert next(pair for pair in told["pairs"] if pair["lane"] == "warm")["why"] == "floor"
    salts = [body["salted"] for body in switched.bodies if "salted" in body]
    assert salts and len(set(salts)) == len(salts)


def test_the_prompts_own_tokens_are_compared_where_they_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    behaviour = Behaviour(owner="sglang", prompt_logprobs=True, noise=1e-3)
    found = probed(behaviour, capsys)
    assert found["exit_code"] != 1
    assert list(verdicts(found, "prompt")) == ["repeat 1", "repeat 2", "6 at a time", "3 at a time"]
    first = next(pair for pair in found["pairs"] if pair["view"] == "prompt")
    assert first["positions"] > 6 * 12
    bare = probed(Behaviour(), capsys, code=0)
    assert not verdicts(bare, "prompt") and any("generated tokens alone" in text for text in bare["left_out"])


def test_no_more_is_asked_than_was_planned_and_every_prompt_begins_otherwise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    behaviour = Behaviour(owner="vllm")
    found = probed(behaviour, capsys)
    # models, two trials, and per prompt: two for the shared prefix, cold, warm, two repeats, two batches
    assert found["requests"] == 3 + 6 * 8 == len(behaviour.paths)
    assert set(behaviour.paths) == {"/v1/models", "/v1/completions"}
    assert len({body["prompt"].split()[0] for body in behaviour.bodies}) == 7
    assert all(body["cache_salt"] and body["temperature"] == 0 for body in behaviour.bodies)
    of_one = [
        body for body in behaviour.bodies if body["prompt"].split()[0] == behaviour.bodies[-1]["prompt"].split()[0]
    ]
    assert len({body["cache_salt"] for body in of_one}) == len(of_one) - 2  # two of them share another's cache


def test_batches_are_asked_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    behaviour = Behaviour(overlap=0.1)
    probed(behaviour, capsys, "--prompts", "2", "--repeats", "0", "--lanes", "batch", code=0)
    assert behaviour.most == 2


def test_junit_the_page_and_the_text_say_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    behaviour = Behaviour(cache=1e-3, batch=1e-3, bug=lambda way: 0.5 * (way == "cache"), models=("<b>m\x1b</b>",))
    xml, html = tmp_path / "a.xml", tmp_path / "a.html"
    with serving(behaviour) as endpoint:
        assert door.main(["--endpoint", endpoint, *SMALL, "--junit", str(xml), "--out", str(html)]) == 1
    said = capsys.readouterr().out
    assert said.startswith(
        "BEYOND THE FLOOR in 2 of 6 pairs: shared prefix (generated tokens), warm (generated tokens)."
    )
    assert "\x1b" not in said
    suite = tree.parse(xml).getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("7", "2", "1")
    failed = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    assert failed == ["shared prefix", "warm"]
    page = html.read_text(encoding="utf-8")
    assert "BEYOND THE FLOOR" in page and "<b>m" not in page and "Content-Security-Policy" in page


def test_undetermined_is_an_error_in_junit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    probed(Behaviour(cache=1e-3), capsys, "--junit", str(tmp_path / "a.xml"), code=3)
    suite = tree.parse(tmp_path / "a.xml").getroot()[0]
    assert (suite.get("errors"), suite.get("failures")) == ("2", "0")
