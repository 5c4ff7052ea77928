"""drift.probe on llama.cpp's own server: with a tiny model, and with the embedded Llama checkpoint."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from checkpoints_tools import write_gguf
from probe_tools import serving

from drift import probe as door
from drift.errors import CheckpointError
from drift.running.checkpoints import wheels
from drift.running.checkpoints.cache import temporary_folder
from drift.running.checkpoints.resolving import resolve

engine = pytest.importorskip("xllamacpp", reason="llama.cpp's server is not installed (extra engines)")

SMALL = ("--prompts", "4", "--characters", "80", "--tokens", "8", "--repeats", "1", "--timeout", "60")


@contextmanager
def llama(gguf: Path, tokens: int = 2048) -> Iterator[str]:
    """A server of llama.cpp with four slots."""
    asked = engine.CommonParams()
    asked.model.path, asked.n_ctx, asked.n_parallel, asked.cpuparams.n_threads = str(gguf), tokens, 4, 1
    server = engine.Server(asked)
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "tiny.gguf"
    # A byte that is no letter of its own has no log-probability in llama.cpp's answers.
    write_gguf(path, ascii_only=True)
    return path


def probed(endpoint: str, capfd: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    capfd.readouterr()
    code = door.main(["--endpoint", endpoint, *SMALL, "--json", *more])
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert code == found["exit_code"]
    return found


def pairs(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert {pair["view"] for pair in found["pairs"]} == {"generated"}  # all that llama.cpp gives
    return {pair["lane"]: pair for pair in found["pairs"]}


def test_a_server_of_llama_cpp_and_the_same_model_in_transformers(
    tiny_gguf: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path))
    with llama(tiny_gguf) as endpoint:
        found = probed(endpoint, capfd, "--against", str(tiny_gguf))
    assert found["engine"] == "llama.cpp" and found["exit_code"] != 1
    by = pairs(found)
    assert by["warm"]["cached"] > 0.9 and 0.3 < by["shared prefix"]["cached"] < 0.7
    assert by["repeat 1"]["cached"] == by["4 at a time"]["cached"] == 0
    assert by["repeat 1"]["verdict"] == "same_bits"
    # Weights in 8 bits are exact in both; llama.cpp rounds activations to 8 bits as well, transformers does not.
    assert 0 < by["model in fp32"]["mean"] < 0.05
    assert by["model in fp32"]["positions"] > 4


class Mixing(BaseHTTPRequestHandler):
    """Hands requests on; those that may use a cache go to another server, whose weights are others."""

    server: Any

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def _hand_on(self, raw: bytes | None) -> None:
        plain, cached = self.server.behaviour
        to = cached if raw is not None and json.loads(raw).get("cache_prompt") else plain
        with urllib.request.urlopen(to + self.path.removeprefix("/v1"), raw) as told:
            answer = told.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self) -> None:
        self._hand_on(None)

    def do_POST(self) -> None:
        self._hand_on(self.rfile.read(int(self.headers["Content-Length"])))


def test_a_cache_of_other_weights_never_passes(
    tiny_gguf: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path))
    write_gguf(tmp_path / "other.gguf", seed=1, ascii_only=True)
    with llama(tiny_gguf) as one, llama(tmp_path / "other.gguf") as other, serving((one, other), Mixing) as endpoint:
        told = probed(endpoint, capfd, "--model", str(tiny_gguf), "--against", str(tiny_gguf))
    # Texts of two such models part at their first token, so that nothing is there to be compared.
    assert told["exit_code"] == 3
    assert pairs(told)["warm"]["verdict"] == pairs(told)["shared prefix"]["verdict"] == "undetermined"
    assert pairs(told)["repeat 1"]["verdict"] == "same_bits"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_server_with_the_embedded_llama_is_not_accused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    checkpoint = resolve("smollm2-135m-instruct")
    try:
        with temporary_folder("probing") as workshop:
            found_wheels = wheels.obtain_wheels(checkpoint, workshop, lambda message: None)
    except CheckpointError as error:
        pytest.skip(f"its GGUF file cannot be had here: {error}")
    wheels.join_members(checkpoint, found_wheels, tmp_path / "smollm2.gguf")
    with llama(tmp_path / "smollm2.gguf") as endpoint:
        found = probed(endpoint, capfd, "--characters", "200")
    assert found["exit_code"] in (0, 3), found["headline"]
    assert pairs(found)["repeat 1"]["verdict"] == "same_bits"
    assert pairs(found)["warm"]["cached"] > 0.9
    assert pairs(found)["warm"]["verdict"] != "beyond_floor"
