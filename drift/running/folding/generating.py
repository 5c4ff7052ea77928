"""Generate from a folded text, token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from drift import _arguments as arguments
from drift._bounds import MOST_TOKENS
from drift.errors import ConfigError
from drift.running.checks import check_tokens
from drift.running.descent.decoders import context_of
from drift.running.descent.guard import admit
from drift.running.folding.folded import CHUNK_SIZE, Folded, Reached, Step, fold
from drift.running.folding.prompts import Prompt, template_of
from drift.running.protocols import parse
from drift.running.protocols.base import Protocol
from drift.running.protocols.decode import Decode
from drift.running.protocols.runnable import check_runnable

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Generated", "Stop", "check_reach", "end_tokens", "following_tokens", "generate"]

_UNFINISHED = "\ufffd"  # how a tokenizer shows a character of which it has not seen all bytes


class Stop(Enum):
    """Why an answer is over."""

    END = "end"
    """The model said that it is."""
    LENGTH = "length"
    """It is as long as was allowed."""


@dataclass(frozen=True)
class Generated:
    """What was generated.

    Attributes
    ----------
    text : str
        The answer, without special tokens.
    tokens : list of int
        Its tokens; one that ends the answer is the last.
    stopped : Stop
        Why it is over.
    prefill : Folded
        The folded text, as it was before the question: hand it to :func:`generate` for the next one.
    folded : Folded
        The branch in which the question was asked and the answer generated.
    question_tokens : int
        Tokens of the question and of what the chat template puts around it.
    question_seconds, answer_seconds : float
        Wall-clock time of taking in the question, and of generating the answer. That of the prefill is
        ``prefill.seconds``.
    nonfinite : int
        Scores that were NaN or infinite, over all generated tokens.
    logits : Tensor or None
        [token, vocabulary]: the scores that each token was chosen by, if they were to be kept.
    """

    text: str
    tokens: list[int]
    stopped: Stop
    prefill: Folded
    folded: Folded
    question_tokens: int
    question_seconds: float
    answer_seconds: float
    nonfinite: int
    logits: Tensor | None = None

    def as_dict(self) -> dict[str, Any]:
        """All of it but tensors, as JSON has it; memory and seconds as :meth:`cost` says."""
        fold = self.prefill
        return {
            "text": self.text,
            "tokens": self.tokens,
            "stopped": self.stopped.value,
            "nonfinite_scores": self.nonfinite,
            "protocol": fold.protocol.label,
            "chunk_size": fold.chunk_size,
            "text_tokens": fold.text_tokens,
            "question_tokens": self.question_tokens,
            "chunks": len(fold.steps),
            "numerics": fold.switches,
            **self.cost(),
        }

    def cost(self) -> dict[str, float | int]:
        """Seconds and bytes: of the fold, the question, the answer, the cache behind the text, and the peak."""
        return {
            "fold_seconds": self.prefill.seconds,
            "question_seconds": self.question_seconds,
            "answer_seconds": self.answer_seconds,
            "cache_bytes": self.prefill.steps[-1].carried_bytes,
            "peak_bytes": self.folded.peak_bytes,
        }


def end_tokens(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer, by the model's generation configuration and by the tokenizer."""
    said = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = said if isinstance(said, Sequence) else [said]
    ends = [*listed, getattr(tokenizer, "eos_token_id", None)]
    return frozenset(int(token) for token in ends if token is not None)


def generate(
    model: PreTrainedModel,
    tokenizer: Any,
    text: str | ArrayLike | Folded,
    *,
    question: str | None = None,
    chunk_size: int | None = None,
    protocol: str | Protocol | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool | None = None,
    keep_logits: bool = False,
    on_token: Callable[[int, str], None] | None = None,
    on_step: Callable[[Step, int], None] | None = None,
    bos_token_id: int | None = None,
    dtype: str | None = None,
    half_matmul: str = "native",
    allow_beyond_context: bool = False,
) -> Generated:
    """Fold a text and generate from it: an answer to a question, or how the text goes on.

    Parameters
    ----------
    model : PreTrainedModel
        Any supported causal language model, at whatever dtype and device it is in. It is left as it was.
    tokenizer : PreTrainedTokenizerBase
        The tokenizer that belongs to it.
    text : str, array_like or Folded
        What is folded: a text, integers [token], which are taken as they are, or a text that was folded before.
    question : str, optional
        What is put behind the text.
    chunk_size : int, optional
        Tokens per chunk, 256 by default; of the question, too.
    protocol : str or Protocol, optional
        Reading of the fold, ``append`` by default.
    max_new_tokens : int
        Most tokens of the answer.
    temperature : float
        0 takes the most likely token; above, tokens are sampled as the protocol ``decode`` samples them.
    seed : int
        Which random numbers.
    chat : bool, optional
        Whether text and question are put into the tokenizer's chat template: by default those of a text are, where
        there is a template; tokens are not; and a text that was folded before is treated as it was.
    keep_logits : bool
        Whether the scores that tokens are chosen by are kept.
    on_token : callable, optional
        Called with every generated token and the piece of text that it completes, which may be empty; a character whose
        bytes are spread over several tokens comes with the last of them.
    on_step, bos_token_id, dtype, half_matmul, allow_beyond_context
        As for :func:`drift.running.folding.folded.fold`.

    Returns
    -------
    Generated

    Raises
    ------
    ConfigError
        If the text is empty, options do not fit together, or text, question and answer exceed the model's context.
    PrecisionError, UnsupportedModelError
        As for :func:`drift.trace`.

    Examples
    --------
    >>> first = drift.generate(model, tokenizer, book, question="Who is Mr. Fogg?")  # doctest: +SKIP
    >>> second = drift.generate(model, tokenizer, first.prefill, question="What did he bet?")  # doctest: +SKIP
    """
    max_new_tokens = arguments.whole("max_new_tokens", max_new_tokens, 1, MOST_TOKENS)
    seed = arguments.whole("seed", seed)
    if temperature != 0:
        wanted = "it must be 0, for the most likely token, or above"
        temperature = arguments.between("temperature", temperature, 0, wanted=wanted)
    if question is not None:
        arguments.text("question", question)
    if on_token is not None:
        arguments.function("on_token", on_token)
    admit(model)
    if isinstance(text, Folded):
        if chunk_size is not None or protocol is not None:
            raise ConfigError("This text is folded already; its chunks and protocol cannot be chosen any more.")
        asking = _Asking.of(_prompt(tokenizer, chat, text.prompt), question, max_new_tokens, allow_beyond_context)
        asking.check_reach(model, text.protocol, text.reached, text.chunk_size)
        prefill = text
    else:
        prompt = _prompt(tokenizer, chat if chat is not None or isinstance(text, str) else False, None)
        asking = _Asking.of(prompt, question, max_new_tokens, allow_beyond_context)
        ids = prompt.text(text) if isinstance(text, str) else check_tokens(model, text)[0]
        bos = bos_token_id if bos_token_id is not None else getattr(tokenizer, "bos_token_id", None)
        reading = parse(protocol or "append").bind(lambda: bos)
        check_runnable(reading)
        size = CHUNK_SIZE if chunk_size is None else arguments.whole("chunk_size", chunk_size, 1, MOST_TOKENS)
        asking.check_reach(model, reading, Reached.through(reading, len(ids), size), size)
        prefill = fold(model, ids, size, reading, dtype=dtype, half_matmul=half_matmul, on_step=on_step,
                       allow_beyond_context=allow_beyond_context, spare_slots=asking.slots)  # fmt: skip
        prefill.prompt = prompt
    choose = Decode(parse("append"), max_new_tokens, temperature, seed)
    return _answer(prefill, asking, choose, end_tokens(model, tokenizer), keep_logits, on_token)


def check_reach(model: PreTrainedModel, protocol: Protocol, text: Reached, size: int, question: int, new: int) -> None:
    """Refuse positions that the model was not made for, before anything is computed.

    Parameters
    ----------
    model : PreTrainedModel
    protocol : Protocol
    text : Reached
        How far the fold is after the text.
    size : int
        Tokens per chunk.
    question, new : int
        Tokens that are put behind the text, and most tokens that are then generated.

    Raises
    ------
    ConfigError
        With what would do.
    """
    context = context_of(model)
    if context is None:
        return
    chunks, reached = list(text.following(protocol, question, size)), text
    for chunk in chunks:
        reached = reached.after(protocol, chunk)
    chunks += reached.following(protocol, new - 1, 1)
    end = max((chunk.first_position + len(chunk) for chunk in chunks), default=0)
    if end > context:
        raise ConfigError(
            f"Text ({text.tokens} tokens), question ({question}) and answer (up to {new}) reach position {end}, beyond "
            f"the model's context of {context} tokens. Shorten the text, take a model with a longer context, or a "
            "protocol whose positions stay within its cache: streaming."
        )


def following_tokens(branch: Folded, choose: Decode, ends: frozenset[int]) -> Iterator[tuple[int, Tensor, bool]]:
    """Generate from a fold, which goes on with it.

    Parameters
    ----------
    branch : Folded
        What is gone on from.
    choose : Decode
        How a token is chosen, and how many there may be.
    ends : frozenset of int
        Tokens that end the answer.

    Yields
    ------
    token : int
    scores : Tensor
        [vocabulary]: what it was chosen by.
    over : bool
        Whether it is the last. That one is not fed to the fold.
    """
    for count in range(1, choose.tokens + 1):
        scores = branch.logits
        token = int(choose.choose(scores[None], torch.tensor([len(branch.tokens) - 1])))
        over = token in ends or count == choose.tokens
        yield token, scores, over
        if over:
            return
        branch.feed([token])


def _prompt(tokenizer: Any, chat: bool | None, before: Prompt | None) -> Prompt:
    """How text and question become tokens."""
    if chat is None and before is not None:
        return before
    return Prompt.of(tokenizer, template_of(tokenizer) if chat is None else chat)


@dataclass(frozen=True)
class _Asking:
    """What is put behind a text, and how much may be generated then."""

    prompt: Prompt
    tokens: list[int]
    new: int
    allow_beyond_context: bool

    @classmethod
    def of(cls, prompt: Prompt, question: str | None, new: int, allow_beyond_context: bool) -> _Asking:
        """Make tokens of a question."""
        if question is not None and not question.strip():
            raise ConfigError("The question is empty. Leave it out to have the text gone on with.")
        return cls(prompt, prompt.question(question), new, allow_beyond_context)

    @property
    def slots(self) -> int:
        """Slots that it takes in the cache of a block."""
        return len(self.tokens) + self.new

    def check_reach(self, model: PreTrainedModel, protocol: Protocol, text: Reached, size: int) -> None:
        """Refuse positions that the model was not made for, before anything is computed."""
        if not self.allow_beyond_context:
            check_reach(model, protocol, text, size, len(self.tokens), self.new)


@dataclass
class _Telling:
    """Turns tokens into pieces of text as they come."""

    tokenizer: Any
    tell: Callable[[int, str], None] | None
    tokens: list[int] = field(default_factory=list)
    told: str = ""

    def text(self) -> str:
        """All of it, special tokens left out."""
        return str(self.tokenizer.decode(self.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def add(self, token: int, last: bool) -> None:
        """Take a token, and tell what it completes."""
        self.tokens.append(token)
        if self.tell is None:
            return
        text = self.text()
        ready = text if last or not text.endswith(_UNFINISHED) else self.told
        piece = ready[len(self.told) :]
        self.told = ready
        self.tell(token, piece)


def _answer(
    prefill: Folded,
    asking: _Asking,
    choose: Decode,
    ends: frozenset[int],
    keep_logits: bool,
    on_token: Callable[[int, str], None] | None,
) -> Generated:
    """Ask in a branch of the fold, and generate."""
    branch = prefill.branch()
    telling, kept, nonfinite = _Telling(asking.prompt.tokenizer, on_token), list[Tensor](), 0
    started = time.perf_counter()
    with branch.computing():
        if asking.tokens:
            branch.feed(asking.tokens)
        begun = time.perf_counter()
        for token, scores, over in following_tokens(branch, choose, ends):
            nonfinite += int((~torch.isfinite(scores)).sum())
            if keep_logits:
                kept.append(scores[None].clone())
            telling.add(token, over)
    return Generated(
        telling.text(),
        telling.tokens,
        Stop.END if telling.tokens[-1] in ends else Stop.LENGTH,
        prefill,
        branch,
        len(asking.tokens),
        begun - started,
        time.perf_counter() - begun,
        nonfinite,
        torch.cat(kept) if keep_logits else None,
    )
