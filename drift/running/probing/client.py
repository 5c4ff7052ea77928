"""The one way to a server: to the endpoint that was given and nowhere else, bounded in number, bytes and time.

No proxy of the environment is used and no redirect followed: either would send prompts, and a key, somewhere that
nobody named. The whole of a request has a deadline, from the connection to the last byte, so that a server that sends a
byte now and then ends as one that sends none.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from drift._bounds import MOST_ANSWER_BYTES
from drift._outside import Form, OutsideError, parse_json
from drift._version import __version__
from drift.errors import ConfigError, EndpointError
from drift.shown import clipped

__all__ = ["Client", "Limits"]

_PIECE = 1 << 16
_CONNECTING = 10.0  # seconds until a connection stands
_SHOWN = 300  # characters of a server's own words
_ADVICE = {
    400: "The server does not take the request",
    401: "It wants an API key: put it into a variable of the environment, and name that with --api-key-env",
    403: "The API key is not allowed to do this",
    404: "There is no such path or model: the endpoint usually ends in /v1, and --model names one that the server has",
    413: "The prompts are too long for it: give fewer --characters",
    422: "The server does not take the request",
    429: "It is asked too much: try again later, or with fewer --prompts",
    503: "It is not ready, or overloaded: try again when it has loaded its model",
}


@dataclass(frozen=True)
class Limits:
    """The most that is asked.

    Attributes
    ----------
    requests : int
    seconds : float
        Of one request, from the connection to the last byte.
    total : float
        Seconds of all together.
    answer : int
        Bytes of one answer.
    """

    requests: int
    seconds: float
    total: float
    answer: int = MOST_ANSWER_BYTES


class Client:
    """Asks one endpoint; may be used by several threads at once.

    Parameters
    ----------
    endpoint : str
        Such as ``http://127.0.0.1:8080/v1``.
    key : str
        API key; empty for none.
    limits : Limits

    Raises
    ------
    ConfigError
        If the endpoint or the key is none.
    """

    def __init__(self, endpoint: str, key: str, limits: Limits) -> None:
        self._secure, self._host, self._port, self._path = _parts(endpoint)
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError("the API key holds spaces, control characters or letters that no HTTP header can carry.")
        self._key = key
        self.endpoint = f"{'https' if self._secure else 'http'}://{_netloc(self._host, self._port)}{self._path}"
        self._limits = limits
        self._end = time.monotonic() + limits.total
        self._lock = threading.Lock()
        self._live: list[list[socket.socket]] = []
        self._closed = False
        self.requests = 0

    def __enter__(self) -> Client:
        """Ready to ask."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End what is under way, so that threads that wait for it end, too; nothing is asked after that."""
        with self._lock:
            self._closed = True
            live = list(self._live)
        for line in live:
            _end(line)

    def get(self, path: str) -> dict[str, Any]:
        """Ask for an object; errors as :meth:`post`."""
        return self._object("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send an object, and return the one that is answered.

        Raises
        ------
        EndpointError
            If the server cannot be reached, refuses, is too slow, or answers what is no JSON object; or if it was asked
            as often, or as long, as the limits say.
        """
        return self._object("POST", path, json.dumps(body).encode())

    def _object(self, method: str, path: str, payload: bytes | None) -> dict[str, Any]:
        status, raw = self._exchange(method, path, payload)
        if raw.lstrip()[:1] == b"<":
            raise self._refused(
                f"answers with a web page (status {status}), not with JSON. Does it end in /v1?", status
            )
        if not 200 <= status < 300:
            advice = _ADVICE.get(status, "It failed" if status >= 500 else "It refuses")
            raise self._refused(f"answers {method} {path} with status {status}. {advice}.{_words(raw)}", status)
        try:
            return parse_json(raw, Form.OBJECT, self._limits.answer)
        except OutsideError as error:
            raise self._refused(f"answers {method} {path} with what is no JSON object: {error}.", status) from error

    def _exchange(self, method: str, path: str, payload: bytes | None) -> tuple[int, bytes]:
        """Send a request; its status, and at most so many bytes as an answer may have."""
        left = self._admitted()
        connection = self._connection(left)
        line: list[socket.socket] = []  # http.client forgets its socket when the answer begins
        ended = threading.Event()

        def end() -> None:
            ended.set()
            _end(line)

        watch = threading.Timer(left, end)
        watch.daemon = True
        watch.start()
        try:
            connection.connect()
            connection.sock.settimeout(left)
            line.append(connection.sock)
            self._begun(line)
            connection.request(method, self._path + path, payload, self._headers(payload))
            with connection.getresponse() as response:
                found = self._read(response)
            if ended.is_set():  # what was cut off may look whole
                raise TimeoutError
            return found
        except (OSError, HTTPException, ValueError) as error:
            if self._closed:
                raise self._refused("was not waited for any longer.") from error
            if ended.is_set() or isinstance(error, TimeoutError):
                raise self._too_slow(left if line else min(left, _CONNECTING)) from error
            raise self._refused(_reason(error)) from error
        finally:
            watch.cancel()
            with self._lock:
                self._live = [one for one in self._live if one is not line]
            connection.close()

    def _begun(self, line: list[socket.socket]) -> None:
        """Take note of what is under way."""
        with self._lock:
            if self._closed:
                raise self._refused("is not asked any more.")
            self._live.append(line)

    def _admitted(self) -> float:
        """Seconds that the next request may take."""
        with self._lock:
            if self._closed:
                raise self._refused("is not asked any more.")
            if self.requests >= self._limits.requests:
                raise self._refused(f"was asked {self.requests:,} times, which is the most that was planned.")
            self.requests += 1
        left = min(self._limits.seconds, self._end - time.monotonic())
        if left <= 0:
            raise self._too_slow(0.0)
        return left

    def _connection(self, left: float) -> HTTPConnection:
        most = min(left, _CONNECTING)
        if self._secure:
            return HTTPSConnection(self._host, self._port, timeout=most, context=ssl.create_default_context())
        return HTTPConnection(self._host, self._port, timeout=most)

    def _headers(self, payload: bytes | None) -> dict[str, str]:
        headers = {"Accept": "application/json", "Connection": "close", "User-Agent": f"drift/{__version__}"}
        if payload is not None:
            headers["Content-Type"] = "application/json"
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return headers

    def _read(self, response: HTTPResponse) -> tuple[int, bytes]:
        if 300 <= response.status < 400:
            to = clipped(response.getheader("Location") or "nowhere")
            raise self._refused(
                f"redirects to {to}. Redirects are not followed: name that address if it is the one you mean.",
                response.status,
            )
        pieces: list[bytes] = []
        size = 0
        while piece := response.read(_PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > self._limits.answer:
                raise self._refused(f"answers more than {self._limits.answer:,} bytes, which is the most that is read.")
        return response.status, b"".join(pieces)

    def _refused(self, why: str, status: int | None = None) -> EndpointError:
        return EndpointError(f"{clipped(self.endpoint)} {why}", status)

    def _too_slow(self, waited: float) -> EndpointError:
        if time.monotonic() >= self._end:
            return self._refused(
                f"took more than {self._limits.total:g} s for all requests together. Ask for less (--prompts, "
                "--characters, --tokens, --repeats), or give it longer (--seconds)."
            )
        return self._refused(
            f"did not answer within {waited:.3g} s. Ask for less (--characters, --tokens), or wait longer (--timeout)."
        )


def _parts(endpoint: str) -> tuple[bool, str, int, str]:
    """Whether it is encrypted, host, port, and the path without a slash at its end."""

    def refused(why: str) -> ConfigError:
        return ConfigError(f"--endpoint {clipped(endpoint)}: {why}. Such as http://127.0.0.1:8080/v1.")

    if not endpoint.isascii() or any(mark.isspace() or not mark.isprintable() for mark in endpoint):
        raise refused("an address holds neither spaces nor letters beyond ASCII")
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError as error:
        raise refused(f"is no address ({error})") from error
    if parts.scheme not in ("http", "https"):
        raise refused("must begin with http:// or https://")
    if not parts.hostname:
        raise refused("names no host")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "--endpoint: names a user or a password. A key goes into a variable of the environment, which "
            "--api-key-env names."
        )
    if parts.query or parts.fragment:
        raise refused("has a query or a fragment, which paths cannot be put behind")
    secure = parts.scheme == "https"
    return secure, parts.hostname, port or (443 if secure else 80), parts.path.rstrip("/")


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _end(line: list[socket.socket]) -> None:
    """End what another thread waits for: closing a socket would not wake that thread."""
    for stream in line:
        with suppress(OSError):
            stream.shutdown(socket.SHUT_RDWR)


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "refuses the connection. Is the server running, and is this its port?"
    if isinstance(error, socket.gaierror):
        return f"is not known: {error.strerror or error}. Is the host's name right?"
    if isinstance(error, ssl.SSLError):
        return f"cannot be reached encrypted: {error.reason or error}. Does it speak https, with a known certificate?"
    if isinstance(error, ConnectionError):
        return f"ended the connection before it had answered ({error.strerror or error})."
    if isinstance(error, OSError):
        return f"cannot be reached: {error.strerror or error}."
    return f"does not speak HTTP as it should ({type(error).__name__}: {clipped(error)})."


def _words(raw: bytes) -> str:
    """What a server says of an error, in its own words."""
    try:
        said = parse_json(raw[: 1 << 20], Form.OBJECT)
    except OutsideError:
        text: object = raw[:_SHOWN].decode("utf-8", "replace")
    else:
        inner = said.get("error", said)
        text = inner.get("message", inner) if isinstance(inner, dict) else inner
    return f" It says: {clipped(text, _SHOWN)}" if str(text).strip() else ""
