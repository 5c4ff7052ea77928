"""The same tokens in transformers: log-probabilities of what a server answered, given all that came before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from drift.dataset.probes import AskedLane, Kind, Probe, View
from drift.errors import EndpointError
from drift.running.checkpoints import loading
from drift.running.checkpoints.loading import load
from drift.running.probing.prompts import Prompt

__all__ = ["load", "with_model"]

_ROWS = 64  # positions whose log-probabilities are formed in one go


def _ids(lane: AskedLane, prompts: Sequence[list[int]]) -> list[tuple[list[int], int]]:
    """All tokens of each prompt, and how many of them come before the first that has a log-probability."""
    found = []
    for number, (answer, prompt) in enumerate(zip(lane.answers, prompts, strict=True)):
        if any(not isinstance(token, int) or token < 0 for token in answer.tokens[lane.view is View.PROMPT :]):
            raise EndpointError(
                f"prompt {number}: the server tells no numbers of its tokens, so that --against has nothing to go by. "
                "llama.cpp, vLLM and SGLang tell them."
            )
        tokens = [int(token) for token in answer.tokens]
        if lane.view is View.GENERATED:
            found.append((prompt + tokens, len(prompt)))
            continue
        if tokens[1 : len(prompt)] != prompt[1:]:
            raise EndpointError(f"prompt {number}: the server answers for other tokens than those it was sent.")
        found.append((prompt[:1] + tokens[1:], 0))
    return found


def _logprobs(model: Any, tokens: Sequence[int]) -> np.ndarray:
    """Log-probability of each token but the first, given those before it: float64 [position], NaN for the first."""
    ids = torch.tensor([list(tokens)], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0]
        found = [
            logits[start : start + _ROWS].double().log_softmax(-1).cpu().numpy()
            for start in range(0, len(tokens), _ROWS)
        ]
    rows = np.concatenate(found)[:-1]
    return np.concatenate([[np.nan], rows[np.arange(len(rows)), np.asarray(tokens[1:])]])


def _scored(model: Any, lane: AskedLane, prompts: Sequence[list[int]], name: str, limit: int) -> AskedLane:
    answers = []
    for answer, (tokens, first) in zip(lane.answers, _ids(lane, prompts), strict=True):
        if any(token >= limit for token in tokens):
            raise EndpointError(f"{name} has {limit:,} tokens, the server another vocabulary: it is of another model.")
        values = _logprobs(model, tokens)[first:]
        known = [None if np.isnan(value) else float(value) for value in values]
        answers.append(replace(answer, logprobs=tuple(known), names=(), tops=(), cached_tokens=None))
    return AskedLane(name, Kind.MODEL, lane.view, tuple(answers), anew=True)


def with_model(probe: Probe, prompts: Sequence[Prompt], model: loading.Loaded) -> Probe:
    """Add lanes of a model to a probe: the tokens of its cold lanes.

    Parameters
    ----------
    probe : Probe
        Asked with numbers of tokens.
    prompts : sequence of Prompt
        These.
    model : Loaded
        See :func:`load`.

    Raises
    ------
    EndpointError
        If the server told no numbers of tokens, or such as the model does not have.
    """
    name, limit = f"model in {model.record['dtype']}", model.model.get_input_embeddings().weight.shape[0]
    cold = [lane for lane in probe.lanes if lane.kind is Kind.COLD]
    sent = [prompt.whole for prompt in prompts if not isinstance(prompt.whole, str)]
    scored = [_scored(model.model, lane, sent, name, limit) for lane in cold]
    return replace(probe, lanes=(*probe.lanes, *scored))
