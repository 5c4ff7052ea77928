"""Answers of each engine, as its documentation and its source write them, read."""

from __future__ import annotations

from typing import Any, cast

import pytest

from drift.dataset.probes import Answer, View
from drift.errors import EndpointError
from drift.running.probing.client import Client
from drift.running.probing.servers import Engine, Server, recognise


class Saying:
    """A client that is answered the same always."""

    endpoint = "http://x/v1"

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found

    def post(self, path: str, body: object) -> dict[str, Any]:
        assert path == "/completions"
        return self.found

    def get(self, path: str) -> dict[str, Any]:
        assert path == "/models"
        return self.found


def read(found: dict[str, Any], view: View = View.GENERATED, engine: Engine = Engine.OTHER) -> Answer:
    return Server(engine, "m").ask(cast(Client, Saying(found)), {}, view)


def test_llama_cpp_tells_numbers_and_what_was_cached() -> None:
    top = [{"id": 338, "token": " that", "bytes": [1], "logprob": -0.25}, {"id": 7, "token": "x", "logprob": -2.0}]
    token = {"id": 338, "token": " that", "bytes": [32], "logprob": -0.25, "top_logprobs": top}
    usage = {"completion_tokens": 1, "prompt_tokens": 17, "prompt_tokens_details": {"cached_tokens": 16}}
    answer = read({"choices": [{"text": " that", "logprobs": {"content": [token]}}], "usage": usage})
    assert answer == Answer((338,), (-0.25,), (338,), ({338: -0.25, 7: -2.0},), None, 17, 16)


VLLM = {
    "choices": [
        {
            "text": " b",
            "logprobs": {
                "text_offset": [0],
                "tokens": ["token_id:12"],
                "token_logprobs": [-0.5],
                "top_logprobs": [{"token_id:12": -0.5, "token_id:3": -1.5}],
            },
            "prompt_logprobs": [
                None,
                {"5": {"logprob": -3.0, "rank": 9, "decoded_token": "a"}, "8": {"logprob": -0.1, "rank": 1}},
            ],
            "prompt_token_ids": [4, 5],
            "token_ids": [12],
        }
    ],
    "usage": {"prompt_tokens": 2, "completion_tokens": 1, "prompt_tokens_details": None},
}


def test_vllm_tells_both_the_prompts_tokens_and_those_generated() -> None:
    answer = read(VLLM, View.GENERATED, Engine.VLLM)
    assert (answer.tokens, answer.logprobs, answer.tops) == ((12,), (-0.5,), ({12: -0.5, 3: -1.5},))
    assert (answer.prompt_ids, answer.prompt_tokens, answer.cached_tokens) == ((4, 5), 2, None)
    prompt = read(VLLM, View.PROMPT, Engine.VLLM)
    assert (prompt.tokens, prompt.logprobs, prompt.tops) == ((4, 5), (None, -3.0), ({}, {5: -3.0, 8: -0.1}))


def test_vllm_of_before_numbers_were_told_has_the_prompts_token_first() -> None:
    (choice,) = VLLM["choices"]
    assert isinstance(choice, dict)
    older = {"choices": [{k: v for k, v in choice.items() if k not in ("prompt_token_ids", "token_ids")}]}
    assert read(older, View.PROMPT, Engine.VLLM).tokens == (-1, 5)


def test_sglang_tells_numbers_beside_texts() -> None:
    logprobs = {
        "tokens": ["a", "b", " c"],
        "token_logprobs": [None, -1.0, -0.5],
        "top_logprobs": [None, {"b": -1.0}, {" c": -0.5}],
        "text_offset": [],
    }
    echoed = {"choices": [{"logprobs": logprobs, "prompt_token_ids": [4, 5], "token_ids": [6]}]}
    answer = read(echoed, View.PROMPT, Engine.SGLANG)
    assert (answer.tokens, answer.logprobs, answer.names) == ((4, 5, 6), (None, -1.0, -0.5), ("a", "b", " c"))
    plain = {key: value[-1:] for key, value in logprobs.items()}
    answer = read({"choices": [{"logprobs": plain, "prompt_token_ids": [4, 5], "token_ids": [6]}]})
    assert (answer.tokens, answer.names, answer.tops) == ((6,), (" c",), ({" c": -0.5},))


@pytest.mark.parametrize("ids", [[4], [4, 6]])
def test_a_prompt_of_other_tokens_is_refused(ids: list[int]) -> None:
    (choice,) = VLLM["choices"]
    assert isinstance(choice, dict)
    with pytest.raises(EndpointError, match="cannot be read"):
        read({"choices": [choice | {"prompt_token_ids": ids}]}, View.PROMPT)


@pytest.mark.parametrize(
    ("owner", "engine"),
    [
        ("vllm", Engine.VLLM),
        ("sglang", Engine.SGLANG),
        ("llamacpp", Engine.LLAMA_CPP),
        ("openai", Engine.OTHER),
        (None, Engine.OTHER),
    ],
)
def test_what_a_server_calls_itself_says_what_it_is(owner: str | None, engine: Engine) -> None:
    found = {"object": "list", "data": [{"id": "m", "owned_by": owner, "max_model_len": 4096}]}
    server = recognise(cast(Client, Saying(found)), "")
    assert (server.engine, server.model) == (engine, "m")
    assert server.can_compute_anew == (engine is not Engine.OTHER)
