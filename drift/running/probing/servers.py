"""Servers: which is which, how each is asked, and how it is told to compute a prompt anew.

llama.cpp's server gives log-probabilities of generated tokens alone. vLLM (``prompt_logprobs``) and SGLang (``echo``)
give those of the prompt as well, and read no prefix cache then: what a cache does shows in generated tokens only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from drift._bounds import MOST_DIGITS
from drift._outside import Form, OutsideError, shaped
from drift.dataset.probes import Answer, Token, View
from drift.errors import EndpointError
from drift.running.probing.client import Client
from drift.shown import clipped

__all__ = ["Engine", "Server", "recognise"]

#: The likeliest tokens asked for: OpenAI's limit.
TOP = 5
_SALT = "{salt}"
_TOKEN_ID = re.compile(rf"token_id:([0-9]{{1,{MOST_DIGITS}}})")


class Engine(StrEnum):
    """What answers; the value is its name."""

    LLAMA_CPP = "llama.cpp"
    VLLM = "vLLM"
    SGLANG = "SGLang"
    OTHER = "OpenAI-compatible server"


#: What each engine says in ``owned_by`` of its list of models.
_OWNERS = {"llamacpp": Engine.LLAMA_CPP, "vllm": Engine.VLLM, "sglang": Engine.SGLANG}
#: What makes an engine compute a prompt anew; a salt that was not used before fits no cached prefix.
_ANEW: Mapping[Engine, Mapping[str, Any]] = {
    Engine.LLAMA_CPP: {"cache_prompt": False},
    Engine.VLLM: {"cache_salt": _SALT},
    Engine.SGLANG: {"cache_salt": _SALT},
    Engine.OTHER: {},
}
_FROM_CACHE: Mapping[Engine, Mapping[str, Any]] = {**_ANEW, Engine.LLAMA_CPP: {"cache_prompt": True}}
#: What makes an engine tell the numbers of tokens.
_NUMBERED: Mapping[Engine, Mapping[str, Any]] = {
    Engine.LLAMA_CPP: {},
    Engine.VLLM: {"return_tokens_as_token_ids": True, "return_token_ids": True},
    Engine.SGLANG: {"return_token_ids": True},
    Engine.OTHER: {},
}
_OF_PROMPT: Mapping[Engine, Mapping[str, Any]] = {
    Engine.LLAMA_CPP: {"echo": True},
    Engine.VLLM: {"prompt_logprobs": 1},
    Engine.SGLANG: {"echo": True},
    Engine.OTHER: {"echo": True},
}


@dataclass(frozen=True)
class Server:
    """A server and one of its models.

    Attributes
    ----------
    engine : Engine
    model : str
    anew : mapping, optional
        Fields of a request that make it compute a prompt anew; None: those of the engine.
    """

    engine: Engine
    model: str
    anew: Mapping[str, Any] | None = None

    @property
    def can_compute_anew(self) -> bool:
        """Whether it can be told to take nothing from a cache."""
        return bool(self._anew)

    @property
    def _anew(self) -> Mapping[str, Any]:
        return _ANEW[self.engine] if self.anew is None else self.anew

    def asked(self, prompt: str | list[int], view: View, tokens: int, salt: str, *, cached: bool) -> dict[str, Any]:
        """Make a request.

        Parameters
        ----------
        prompt : str or list of int
        view : View
        tokens : int
            To be generated.
        salt : str
            Requests of one salt may share a cache, where the engine has salts.
        cached : bool
            Whether what is cached may be taken.
        """
        fields = self._anew
        if cached:
            fields = _FROM_CACHE[self.engine] if self.anew is None else {}
        switch = {
            name: value.replace(_SALT, salt) if isinstance(value, str) else value for name, value in fields.items()
        }
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "logprobs": TOP,
            **_NUMBERED[self.engine],
            **switch,
        }
        return body | dict(_OF_PROMPT[self.engine]) if view is View.PROMPT else body

    def ask(self, client: Client, body: Mapping[str, Any], view: View) -> Answer:
        """Ask, and read the answer.

        Raises
        ------
        EndpointError
            As :meth:`~drift.running.probing.client.Client.post`; or if the answer holds no log-probabilities.
        """
        found = client.post("/completions", body)
        try:
            shaped(found, Form.COMPLETION)
            return _answer(found, view)
        except OutsideError as error:
            raise EndpointError(f"{client.endpoint} answers a prompt with what cannot be read: {error}.") from error


def recognise(client: Client, model: str, anew: Mapping[str, Any] | None = None) -> Server:
    """Find out what answers, and which model is meant.

    Parameters
    ----------
    client : Client
    model : str
        Empty: the only one that there is.
    anew : mapping, optional
        Fields that make it compute a prompt anew.

    Raises
    ------
    EndpointError
        If the server has several models and none was named, or not the one that was; or cannot be asked.
    """
    try:
        listed = shaped(client.get("/models"), Form.SERVED_MODELS)["data"]
    except OutsideError as error:
        raise EndpointError(f"{client.endpoint} lists its models in a way that cannot be read: {error}.") from error
    except EndpointError as error:
        if error.status != 404 or not model:
            raise
        return Server(Engine.OTHER, model, anew)
    names = [one["id"] for one in listed]
    shown = clipped(", ".join(names) or "none")
    if not model and len(names) != 1:
        raise EndpointError(f"{client.endpoint} has {len(names)} models ({shown}): name one with --model.")
    if model and names and model not in names:
        raise EndpointError(f"{client.endpoint} has no model {clipped(repr(model))}; it has {shown}.")
    chosen = model or names[0]
    owner = next((one.get("owned_by") for one in listed if one["id"] == chosen), None)
    return Server(_OWNERS.get(owner or "", Engine.OTHER), chosen, anew)


def _answer(found: Mapping[str, Any], view: View) -> Answer:
    """Read an answer.

    Raises
    ------
    OutsideError
        If it has no log-probabilities, or lists of different lengths.
    """
    choice, usage = found["choices"][0], found.get("usage") or {}
    read = _prompt_of_vllm(choice) if view is View.PROMPT and choice.get("prompt_logprobs") else _tokens(choice)
    ids = choice.get("prompt_token_ids")
    return replace(
        read,
        prompt_ids=None if ids is None else tuple(ids),
        prompt_tokens=usage.get("prompt_tokens"),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
    )


def _number(text: str) -> Token:
    found = _TOKEN_ID.fullmatch(text)
    return int(found[1]) if found else text


def _tokens(choice: Mapping[str, Any]) -> Answer:
    text = choice.get("text")
    if choice.get("logprobs") is None and text is not None and not text.strip("\ufffd"):
        return Answer((), ())  # it ended at once, or amid a letter: llama.cpp tells nothing of that
    held = choice.get("logprobs") or {}
    if (content := held.get("content")) is not None:
        numbered = all(one.get("id") is not None for one in content)
        key = "id" if numbered else "token"
        tops = [
            {top.get(key, top["token"]): top["logprob"] for top in one.get("top_logprobs") or ()} for one in content
        ]
        names = tuple(one[key] for one in content)
        return Answer(names, tuple(one["logprob"] for one in content), names, tuple(tops))
    texts, values, listed = held.get("tokens"), held.get("token_logprobs"), held.get("top_logprobs")
    if texts is None or values is None:
        raise OutsideError("it has no log-probabilities, although they were asked for (logprobs)")
    if len(texts) != len(values) or (listed and len(listed) != len(values)):
        raise OutsideError(f"{len(texts)} tokens, {len(values)} token_logprobs, {len(listed or ())} top_logprobs")
    names = tuple(map(_number, texts))
    ids = [*(choice.get("prompt_token_ids") or ()), *(choice.get("token_ids") or ())]
    ids = ids[-len(names) :] if len(ids) >= len(names) and choice.get("token_ids") is not None else []
    tops = [{_number(name): value for name, value in (top or {}).items()} for top in listed or [{}] * len(values)]
    return Answer(tuple(ids) or names, tuple(values), names, tuple(tops))


def _prompt_of_vllm(choice: Mapping[str, Any]) -> Answer:
    """One entry per token, the prompt's own first where no numbers say which it is; the first token has none."""
    entries, ids = choice["prompt_logprobs"], choice.get("prompt_token_ids")
    if ids is not None and len(ids) != len(entries):
        raise OutsideError(f"{len(ids)} prompt_token_ids, but {len(entries)} prompt_logprobs")
    keys = [str(ids[place]) if ids else next(iter(entry or {}), "-1") for place, entry in enumerate(entries)]
    if not all(_is_number(key) for key in keys) or any(
        entry and key not in entry for key, entry in zip(keys, entries, strict=True)
    ):
        raise OutsideError("its prompt_logprobs are not those of its prompt's tokens")
    values = [entry[key]["logprob"] if entry else None for key, entry in zip(keys, entries, strict=True)]
    names = tuple(int(key) for key in keys)
    return Answer(names, tuple(values), names, tuple(_ranked(entry or {}) for entry in entries))


def _is_number(key: str) -> bool:
    return key == "-1" or (key.isascii() and key.isdecimal() and len(key) <= MOST_DIGITS)


def _ranked(entry: Mapping[str, Mapping[str, Any]]) -> dict[Token, float]:
    pairs: Iterator[tuple[Token, float]] = (
        (int(key), item["logprob"]) for key, item in entry.items() if _is_number(key)
    )
    return dict(pairs)
