"""One question, put to a folded text: what is generated, and how likely the right answer is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drift.running.folding.folded import Folded
from drift.running.folding.generating import Stop, following_tokens
from drift.running.protocols import parse
from drift.running.protocols.decode import Decode
from drift.running.tasks.quizzes import Asked
from drift.running.tasks.scoring import exact_match, string_match_all

__all__ = ["Answer", "answer_to", "log_likelihoods"]


@dataclass(frozen=True)
class Answer:
    """What one lane makes of one question.

    Attributes
    ----------
    text : str
        Greedy: the most likely token at every place, special tokens left out.
    tokens : tuple of int
        One that ends the answer is the last.
    stopped : Stop
        Why it is over.
    exact : bool
        Whether the text is the answer and nothing else, see :func:`drift.running.tasks.scoring.exact_match`.
    score : float
        RULER's: the share of the answers that occur in the text.
    log_likelihoods : tuple of float
        Nats, of every token of the right answer, given the tokens before it.
    rank : int
        Of the answer's first token that is more than a space, given what is before it: 1 is the most likely.
    margin : float
        Nats by which that token is more likely than the best other one; below 0 where it is not the most likely.
    other_log_likelihoods : tuple of float
        Nats, of every token of a wrong answer: that of another text.
    nonfinite : int
        Scores that were NaN or infinite, over all generated tokens and those of the right answer.
    """

    text: str
    tokens: tuple[int, ...]
    stopped: Stop
    exact: bool
    score: float
    log_likelihoods: tuple[float, ...]
    rank: int
    margin: float
    other_log_likelihoods: tuple[float, ...]
    nonfinite: int

    @property
    def log_likelihood(self) -> float:
        """Of the right answer, nats."""
        return sum(self.log_likelihoods)

    @property
    def log_likelihood_per_token(self) -> float:
        """Of the right answer, nats per token."""
        return self.log_likelihood / len(self.log_likelihoods)

    @property
    def other_log_likelihood(self) -> float:
        """Of the wrong answer, nats."""
        return sum(self.other_log_likelihoods)


def log_likelihoods(scores: Tensor, tokens: Sequence[int]) -> tuple[float, ...]:
    """Log-probabilities of tokens, nats, worked out in float64.

    Parameters
    ----------
    scores : Tensor
        [token, vocabulary]: what each is chosen by.
    tokens : sequence of int
    """
    wide = scores.double()
    of_token = wide.gather(1, torch.tensor(tokens, device=wide.device)[:, None])[:, 0]
    return tuple((of_token - wide.logsumexp(-1)).tolist())


def _scores(asked: Folded, answer: Sequence[int]) -> Tensor:
    """Scores [token, vocabulary] of every token of an answer, by teacher forcing in a branch of its own."""
    first = asked.logits[None]
    return torch.cat([first, asked.branch().feed(list(answer[:-1]), every=True)]) if len(answer) > 1 else first


def _standing(scores: Tensor, token: int) -> tuple[int, float]:
    """Rank of a token by its scores [vocabulary], and by how much it is ahead of the best other one."""
    (best, second), (first, _) = (x.tolist() for x in scores.topk(2))
    wanted = float(scores[token])
    return 1 + int((scores > wanted).sum()), wanted - (second if first == token else best)


def _nonfinite(scores: Tensor) -> int:
    return int((~torch.isfinite(scores)).sum())


def answer_to(
    prefill: Folded, asked: Asked, other: Sequence[int], new: int, ends: frozenset[int], tokenizer: Any
) -> tuple[Answer, Tensor]:
    """Ask in a branch of a folded text.

    Parameters
    ----------
    prefill : Folded
        It stays as it is.
    asked : Asked
    other : sequence of int
        Tokens of a wrong answer.
    new : int
        Most tokens that are generated.
    ends : frozenset of int
        Tokens that end an answer.
    tokenizer : PreTrainedTokenizerBase

    Returns
    -------
    Answer
    Tensor
        [vocabulary]: scores by which the right answer's first token that is more than a space is chosen.
    """
    branch = prefill.branch()
    branch.feed(asked.tokens)
    right = _scores(branch, asked.answer)
    others = log_likelihoods(_scores(branch, other), other)
    nonfinite, tokens = _nonfinite(right), list[int]()
    with branch.computing():
        for token, scores, _ in following_tokens(branch, Decode(parse("append"), new), ends):
            nonfinite += _nonfinite(scores)
            tokens.append(token)
    text = str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    answers = asked.question.answers
    rank, margin = _standing(right[asked.first].double(), asked.answer[asked.first])
    answer = Answer(
        text,
        tuple(tokens),
        Stop.END if tokens[-1] in ends else Stop.LENGTH,
        exact_match(text, answers),
        string_match_all(text, answers),
        log_likelihoods(right, asked.answer),
        rank,
        margin,
        others,
        nonfinite,
    )
    return answer, right[asked.first].clone()
