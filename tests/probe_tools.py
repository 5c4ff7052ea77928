"""Servers for the tests of drift.probe: OpenAI's protocol in a thread, with noise, caches and bugs of known size."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

VOCABULARY = 40


def drawn(*parts: object) -> np.random.Generator:
    """Random numbers that are the same whenever the parts are."""
    seed = hashlib.sha256("\0".join(map(repr, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(seed[:8], "big"))


@dataclass
class Behaviour:
    """What a fake server is, and by how much its logits move, by what varies.

    Attributes
    ----------
    owner : str
        What it says in ``owned_by``.
    noise, cache, batch : float
        Size of what moves logits: in every answer anew; where something came from the cache; where it was in a batch.
    alone : int
        How often a prompt is asked alone; what comes after that is a batch, whatever a slow machine makes of it.
    overlap : float
        Seconds that an answer takes.
    tells_cache, prompt_logprobs, knows_switch, caches : bool
    models : tuple of str
    """

    owner: str = "llamacpp"
    noise: float = 0.0
    cache: float = 0.0
    batch: float = 0.0
    bug: Callable[[str], float] = lambda way: 0.0
    tells_cache: bool = True
    prompt_logprobs: bool = False
    knows_switch: bool = True
    caches: bool = True
    models: tuple[str, ...] = ("fake",)
    alone: int = 5
    overlap: float = 0.0
    seen: list[tuple[str, list[str]]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=dict)
    under_way: int = 0
    most: int = 0
    answers: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def cached(self, body: Mapping[str, Any], words: list[str]) -> int:
        """How many words of a prompt come from the cache; remembers the prompt."""
        salt = str(body.get("cache_salt", ""))
        with self.lock:
            known = [w for s, w in self.seen if s == salt]
            self.seen.append((salt, words))
        if not self.caches or (self.knows_switch and body.get("cache_prompt") is False):
            return 0
        common = [next((n for n, (a, b) in enumerate(zip(words, w, strict=False)) if a != b), min(len(words), len(w)))
                  for w in known]  # fmt: skip
        return min(max(common, default=0), len(words) - 1)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """One completion."""
        words = str(body["prompt"]).split()
        with self.lock:
            self.answers += 1
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            number = self.answers
            times = self.asked[body["prompt"]] = self.asked.get(body["prompt"], 0) + (int(body["max_tokens"]) > 1)
        cached = self.cached(body, words)
        time.sleep(self.overlap)
        with self.lock:
            self.under_way -= 1
        batched = times > self.alone
        ways = {"noise": (self.noise, number), "cache": (self.cache * (cached > 0), cached),
                "batch": (self.batch * batched, batched)}  # fmt: skip
        shift = max((self.bug(way) for way, on in (("cache", cached > 0), ("batch", batched)) if on), default=0.0)
        made = self._made(words, body, ways, shift)
        usage: dict[str, Any] = {"prompt_tokens": len(words), "completion_tokens": int(body["max_tokens"])}
        if self.tells_cache:
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        return {"choices": [made], "usage": usage}

    def _row(self, context: list[str], ways: Mapping[str, tuple[float, object]], shift: float) -> np.ndarray:
        logits = drawn("true", context).normal(size=VOCABULARY) * 2
        for way, (size, draw) in ways.items():
            logits += size * drawn(way, draw, context).normal(size=VOCABULARY)
        logits += shift * drawn("bug", context).normal(size=VOCABULARY)
        return logits - np.log(np.exp(logits).sum())

    def _made(
        self, words: list[str], body: dict[str, Any], ways: Mapping[str, tuple[float, object]], shift: float
    ) -> dict[str, Any]:
        told: list[tuple[str, float | None, dict[str, float]]] = []
        echo = self.prompt_logprobs and bool(body.get("echo"))
        for n, word in enumerate(words if echo else []):
            row = self._row(words[:n], ways, shift)
            at = int(drawn("number", word).integers(VOCABULARY))
            told.append((word, float(row[at]) if n else None, {}))
        context = list(words)
        for _ in range(int(body["max_tokens"])):
            row = self._row(context, ways, shift)
            top = np.argsort(-row)[:5]
            tops = {f"w{t}": float(row[t]) for t in top}
            told.append((f"w{top[0]}", float(row[top[0]]), tops))
            context.append(f"w{top[0]}")
        names, values, tops = zip(*told, strict=True)
        return {"text": "", "logprobs": {"tokens": names, "token_logprobs": values, "top_logprobs": tops}}


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def _send(self, found: object, status: int = 200) -> None:
        raw = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _noted(self) -> Behaviour:
        behaviour: Behaviour = self.server.behaviour
        with behaviour.lock:
            behaviour.headers.append(dict(self.headers))
            behaviour.paths.append(self.path)
        return behaviour

    def do_GET(self) -> None:
        behaviour = self._noted()
        self._send({"object": "list", "data": [{"id": m, "owned_by": behaviour.owner} for m in behaviour.models]})

    def do_POST(self) -> None:
        behaviour = self._noted()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with behaviour.lock:
            behaviour.bodies.append(body)
        self._send(behaviour.answer(body))


@contextmanager
def serving(behaviour: Behaviour | None, handler: type[BaseHTTPRequestHandler] = _Handler) -> Iterator[str]:
    """Serve for a while: the endpoint."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *about: None  # type: ignore[method-assign]  # of clients who went away
    server.behaviour = behaviour  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
