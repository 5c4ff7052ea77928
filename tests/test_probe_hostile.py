"""Servers that misbehave: one line that says what was wrong, soon, and nothing sent anywhere else."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from probe_tools import Behaviour, serving

from drift import probe as door
from drift.dataset.probes import View
from drift.errors import ConfigError, EndpointError
from drift.running.probing import asking
from drift.running.probing.client import Client, Limits
from drift.running.probing.servers import Engine, Server

SMALL = ("--prompts", "2", "--characters", "64", "--tokens", "2", "--repeats", "0", "--timeout", "5")
SOON = 4.0  # seconds that are more than a deadline of half a second takes


def replying(status: int, body: bytes, **headers: str) -> type[BaseHTTPRequestHandler]:
    """A server that always says the same."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

    return Handler


@contextmanager
def raw(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does as `talk` says with a connection, whatever was asked."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
            with suppress(OSError):
                talk(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in held:
            connection.close()
        thread.join(SOON)


def client(endpoint: str, seconds: float = 5.0, **limits: Any) -> Client:
    return Client(endpoint, "", Limits(**{"requests": 10, "seconds": seconds, "total": 60.0, **limits}))


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b'{"error": {"message": "no \\u001b key"}}', r"status 401.*--api-key-env.*no \\x1b key"),
        (404, b'{"error": "no such model"}', "status 404.*no such model"),
        (404, b"<html>not found</html>", "web page"),
        (200, b"<!doctype html><p>hello", "web page"),
        (200, b'{"data": [', "no JSON object"),
        (200, b"[" * 100_000, "no JSON object"),
        (200, b"[1]", "not an object, but a list"),
        (200, b"\xff\xfe{}", "no JSON object"),
        (500, b"", "status 500. It failed"),
        (429, b"slowly", "asked too much.*slowly"),
        (503, b'{"error":{"message":"Loading model"}}', "not ready.*Loading model"),
        (302, b"", "redirects to http://elsewhere.example/x.*not followed"),
        (200, b'{"data": [{"id": 5}]}', "lists its models in a way that cannot be read"),
        (200, b'{"data": []}', "has 0 models"),
        (200, b'{"data": [{"id": "a"}, {"id": "b"}]}', r"has 2 models \(a, b\): name one with --model"),
    ],
)
def test_an_answer_that_is_none_is_a_line(
    status: int, body: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    headers = {"Location": "http://elsewhere.example/x"} if status == 302 else {}
    with serving(None, replying(status, body, **headers)) as endpoint:
        assert door.main(["--endpoint", endpoint, *SMALL]) == 2
    told = capsys.readouterr()
    assert not told.out and "Traceback" not in told.err and "\x1b" not in told.err
    assert re.search(said, told.err), told.err


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert door.main(["--endpoint", f"http://127.0.0.1:{port}/v1", *SMALL]) == 2
    assert "refuses the connection. Is the server running" in capsys.readouterr().err


def test_a_body_without_end_is_read_up_to_a_bound() -> None:
    with (
        serving(None, replying(200, b"x" * 5000)) as endpoint,
        pytest.raises(EndpointError, match="more than 1,000 bytes"),
    ):
        client(endpoint, answer=1000).get("/models")


def silent(connection: socket.socket) -> None:
    """Never answer."""


def dripping(head: bytes) -> Callable[[socket.socket], None]:
    """Send something, and then a byte now and then."""

    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(head)
        while True:
            time.sleep(0.05)
            connection.sendall(b"a")

    return talk


@pytest.mark.parametrize(
    "talk",
    [
        silent,
        dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"),
        dripping(b"HTTP/1.1 200 OK\r\nX: "),
        dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ],
)
def test_a_server_that_is_slow_ends_at_the_deadline(talk: Callable[[socket.socket], None]) -> None:
    began = time.monotonic()
    with raw(talk) as endpoint, pytest.raises(EndpointError, match=r"did not answer within 0\.5 s"):
        client(endpoint, seconds=0.5).get("/models")
    assert time.monotonic() - began < SOON


def test_all_requests_together_have_a_deadline() -> None:
    with raw(silent) as endpoint, pytest.raises(EndpointError, match=r"more than 0\.5 s for all requests"):
        client(endpoint, total=0.5).get("/models")


def test_a_connection_that_ends_early_is_a_line() -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.close()

    with raw(talk) as endpoint, pytest.raises(EndpointError, match=r"ended the connection|does not speak HTTP"):
        client(endpoint).get("/models")


def test_no_more_requests_than_planned() -> None:
    with serving(Behaviour()) as endpoint:
        asked = client(endpoint, requests=1)
        asked.get("/models")
        with pytest.raises(EndpointError, match="the most that was planned"):
            asked.get("/models")


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("ftp://a/v1", "must begin with http"),
        ("127.0.0.1:8080", "must begin with http"),
        ("http://", "names no host"),
        ("http://me:secret@a/v1", "names a user or a password"),
        ("http://a:99999/v1", "is no address"),
        ("http://a/v1?key=1", "has a query"),
        ("http://a b/v1", "neither spaces"),
        ("http://a/v1\r\nX: y", "neither spaces"),
    ],
)
def test_an_endpoint_that_is_none(endpoint: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        client(endpoint)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"choices": []}, "choices"),
        ({"choices": [{"text": "a", "logprobs": None}]}, "no log-probabilities"),
        ({"choices": [{"logprobs": {"tokens": ["a"], "token_logprobs": []}}]}, "1 tokens, 0 token_logprobs"),
        ({"choices": [{"logprobs": {"tokens": ["a"], "token_logprobs": ["x"]}}]}, "token_logprobs"),
        ({"choices": [{"logprobs": {"content": [{"token": "a"}]}}]}, "logprob"),
    ],
)
def test_a_completion_that_cannot_be_read_is_a_line(
    found: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Behaviour, "answer", lambda self, body: found)
    with serving(Behaviour()) as endpoint:
        assert door.main(["--endpoint", endpoint, *SMALL]) == 2
    told = capsys.readouterr().err
    assert "answers a prompt with what cannot be read" in told and said in told


def test_a_key_comes_from_the_environment_alone_and_goes_to_the_endpoint_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviour = Behaviour()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("OPENAI_API_KEY", "not-to-be-sent")
    monkeypatch.setenv("MINE", "sesame")
    with serving(behaviour) as endpoint:
        assert door.main(["--endpoint", endpoint, *SMALL, "--lanes", ""]) in (0, 3)
        assert not any("Authorization" in headers for headers in behaviour.headers)
        assert door.main(["--endpoint", endpoint, *SMALL, "--lanes", "", "--api-key-env", "MINE"]) in (0, 3)
    assert behaviour.headers[-1]["Authorization"] == "Bearer sesame"
    told = capsys.readouterr()
    assert "sesame" not in told.out + told.err
    assert door.main(["--endpoint", endpoint, *SMALL, "--api-key-env", "NOBODY"]) == 2
    assert "no such variable" in capsys.readouterr().err
    monkeypatch.setenv("MINE", "two\nlines")
    assert door.main(["--endpoint", endpoint, *SMALL, "--api-key-env", "MINE"]) == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--model", "other"), "has no model 'other'; it has fake"),
        (("--nonce", "a b"), "--nonce a b"),
        (("--anew", "[1]"), "--anew: not an object"),
        (("--anew", "{"), "--anew: not JSON"),
        (("--text", "hub:somebody/text"), "asks its endpoint and nobody else"),
        (("--text", "no-such-file.txt"), "no corpus"),
        (("--junit", "no/such/folder/a.xml"), "a folder that is not there"),
        (("--out", "."), "names a folder"),
        (("--prompts", "64", "--characters", "1000000"), "need 65,000,000"),
    ],
)
def test_arguments_that_cannot_be(more: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Behaviour()) as endpoint:
        assert door.main(["--endpoint", endpoint, *SMALL, *more]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("flag", [("--prompts", "65"), ("--tokens", "0"), ("--lanes", "hot"), ("--seconds", "nan")])
def test_numbers_beyond_their_bounds(flag: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        door.main(["--endpoint", "http://127.0.0.1:1/v1", *flag])
    assert stopped.value.code == 2


def test_an_interruption_ends_what_is_under_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hang = threading.Event()
    answer = Behaviour.answer

    def slowly(self: Behaviour, body: dict[str, Any]) -> dict[str, Any]:
        if self.under_way or hang.is_set():
            hang.wait(30)
        return answer(self, body)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.2)
        raise KeyboardInterrupt

    monkeypatch.setattr(Behaviour, "answer", slowly)
    monkeypatch.setattr(asking, "wait", interrupted)
    began = time.monotonic()
    with serving(Behaviour(overlap=0.5)) as endpoint:
        assert door.main(["--endpoint", endpoint, *SMALL, "--lanes", "batch", "--timeout", "30"]) == 130
        hang.set()
    assert time.monotonic() - began < 15
    assert capsys.readouterr().err.endswith("drift.probe: interrupted\n")


@pytest.mark.parametrize("engine", list(Engine))
def test_what_is_sent_to_each_engine_is_what_its_documentation_names(engine: Engine) -> None:
    server = Server(engine, "m")
    cold = server.asked("p", View.GENERATED, 4, "salt", cached=False)
    warm = server.asked("p", View.GENERATED, 4, "salt", cached=True)
    prompt = server.asked([1, 2], View.PROMPT, 1, "salt", cached=False)
    fields = {
        Engine.LLAMA_CPP: ({"cache_prompt": False}, {"cache_prompt": True}, {"echo": True}),
        Engine.VLLM: ({"cache_salt": "salt"}, {"cache_salt": "salt"}, {"prompt_logprobs": 1}),
        Engine.SGLANG: ({"cache_salt": "salt"}, {"cache_salt": "salt"}, {"echo": True}),
        Engine.OTHER: ({}, {}, {"echo": True}),
    }[engine]
    for body, due in zip((cold, warm, prompt), fields, strict=True):
        assert due.items() <= body.items()
    common = {"model", "prompt", "max_tokens", "temperature", "logprobs"}
    if engine is Engine.OTHER:  # a strict server refuses what it does not know
        assert set(cold) == common
