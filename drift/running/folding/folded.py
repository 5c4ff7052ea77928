"""Fold a text into a cache, chunk by chunk, and go on from there."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from drift import _arguments as arguments
from drift._bounds import MOST_TOKENS
from drift.errors import ConfigError, UnsupportedModelError
from drift.running.checks import check_chunks, check_planted, check_tokens
from drift.running.descent.caches import TapeCache, keeps_slots
from drift.running.descent.carrying import CarriedStep, KeyRotation
from drift.running.descent.decoders import blocks_of, cache_argument, driving_of, new_cache, takes, text_config
from drift.running.descent.guard import admit, check_reading
from drift.running.descent.taps import attention_as, attention_of, disturbed_states, noted_attention
from drift.running.folding.caches import FoldCache
from drift.running.folding.meters import PeakMemory
from drift.running.lanes import embedding_noise
from drift.running.model.numerics import computing_rung, numerics
from drift.running.model.weights import weights_of
from drift.running.noise import EmbeddingNoise
from drift.running.protocols import parse
from drift.running.protocols.base import Chunk, Protocol
from drift.running.protocols.runnable import check_runnable

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from drift.dataset.rungs import Rung
    from drift.running.folding.prompts import Prompt

__all__ = ["CHUNK_SIZE", "SPARE_SLOTS", "Folded", "Reached", "Step", "fold"]

#: Tokens per chunk where nobody says otherwise: the published fold's.
CHUNK_SIZE = 256
#: Slots kept free behind the text for questions and answers; more are made when they are needed.
SPARE_SLOTS = 512


@dataclass(frozen=True)
class Step:
    """What one chain step took.

    Attributes
    ----------
    chunk : Chunk
        The pass.
    seconds : float
        Wall-clock time, the carrying included.
    carried_bytes : int
        Bytes of keys and values that the cache holds after it.
    peak_bytes : int
        Most memory: on a CUDA device that of the step's tensors, on a CPU that of the process so far.
    """

    chunk: Chunk
    seconds: float
    carried_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Reached:
    """How far a fold has come, which decides where the next chunk stands.

    Attributes
    ----------
    tokens : int
        Tokens of the text and of what followed it.
    seen : int
        Tokens that have gone through, prefixes included.
    slots : int
        Slots that a block with full attention still holds, by what the protocol says.
    step : int
        The next chain step.
    """

    tokens: int = 0
    seen: int = 0
    slots: int = 0
    step: int = 0

    @classmethod
    def through(cls, protocol: Protocol, tokens: int, size: int) -> Reached:
        """How far it is after a text of `tokens` tokens in chunks of `size`."""
        reached = cls()
        for chunk in protocol.chunks(tokens, min(size, tokens)):
            reached = reached.after(protocol, chunk)
        return reached

    def after(self, protocol: Protocol, chunk: Chunk) -> Reached:
        """How far it is after a chunk."""
        slots = protocol.slots(chunk.step, self.slots + len(chunk), len(chunk))
        return Reached(chunk.stop, self.seen + len(chunk), slots, chunk.step + 1)

    def following(self, protocol: Protocol, count: int, size: int) -> tuple[Chunk, ...]:
        """The passes over `count` tokens that come after the text, in chunks of at most `size`."""
        chunks, reached = list[Chunk](), self
        end = self.tokens + count
        for start in range(self.tokens, end, size):
            stop = min(start + size, end)
            chunks.append(protocol.following(start, stop, reached.step, reached.seen, reached.slots))
            reached = reached.after(protocol, chunks[-1])
        return tuple(chunks)


class Folded:
    """A text folded into a cache, and all that is needed to go on from it.

    Made by :func:`fold`. What is fed to it changes it; :meth:`branch` keeps it as it is.

    Attributes
    ----------
    model : PreTrainedModel
    protocol : Protocol
        The reading of the fold, with all it needs from the tokenizer.
    chunk_size : int
    cache : FoldCache
        A cache of transformers: keys and values [1, head, slot, feature] of every layer.
    tokens : Tensor
        int64 [token]: the text and what followed it, prefixes left out.
    text_tokens : int
        How many of them are the text.
    steps : list of Step
        What every chain step took.
    logits : Tensor
        [vocabulary]: the model's scores of the token that comes next.
    reached : Reached
        Where the next chunk stands.
    switches : dict
        The numerical switches of the passes, as a cell records them.
    prompt : Prompt or None
        How text and question become tokens, where :func:`drift.running.folding.generating.generate` folded the text.
    """

    def __init__(
        self, model: PreTrainedModel, protocol: Protocol, chunk_size: int, rung: Rung, half_matmul: str, slots: int
    ) -> None:
        self.model = model
        self.protocol = protocol
        self.chunk_size = chunk_size
        self.device = weights_of(model).device
        self.cache: FoldCache = new_cache(model, FoldCache, slots=None if protocol.carries else slots)
        self.tokens = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.text_tokens = 0
        self.steps: list[Step] = []
        self.logits = torch.zeros(0, device=self.device)
        self.reached = Reached()
        self.switches: dict[str, Any] = {}
        self.prompt: Prompt | None = None
        self._rung = rung
        self._half_matmul = half_matmul
        self._notes: list[dict[str, Any]] = [{} for _ in self.cache.layers]
        self._rotation = KeyRotation(model, self.device)
        self._rotated = 0
        self._attention: list[list[Tensor]] | None = None
        self._memory = PeakMemory(self.device)
        self._last_logits: dict[str, Any] = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}

    @property
    def position(self) -> int:
        """Position id at which what follows goes on."""
        return self.reached.following(self.protocol, 1, 1)[0].first_position

    @property
    def seconds(self) -> float:
        """Wall-clock time of all steps."""
        return sum(step.seconds for step in self.steps)

    @property
    def peak_bytes(self) -> int:
        """Most memory that any step took; see :class:`Step`."""
        return max(step.peak_bytes for step in self.steps)

    def branch(self) -> Folded:
        """The same fold, to be taken elsewhere from here. No keys and values are copied.

        While a branch that went on is still there, another one that goes on from the same place, or the fold itself,
        moves to memory of its own first, which does copy them. Ask one question after the other.
        """
        other = copy.copy(self)
        other.cache = self.cache.branch()
        other.steps = list(self.steps)
        other._notes = [dict(notes) for notes in self._notes]
        other._attention = None
        return other

    def extend(self, tokens: ArrayLike, on_step: Callable[[Step, int], None] | None = None) -> None:
        """Let the text go on: the next chunks of the fold, as if it had been one text from the beginning.

        Parameters
        ----------
        tokens : array_like
            Integers [token].
        on_step : callable, optional
            As for :func:`fold`.

        Raises
        ------
        ConfigError
            If something followed the text already, or its last chunk would have been longer.
        """
        ids = self._checked(tokens)
        done = [step.chunk for step in self.steps]
        total = self.text_tokens + len(ids)
        chunks = self.protocol.chunks(total, min(self.chunk_size, total))
        if len(self.tokens) != self.text_tokens or list(chunks[: len(done)]) != done:
            raise ConfigError(
                f"The text cannot go on behind {len(self.tokens)} tokens: {self.protocol.label} with chunks of "
                f"{self.chunk_size} would have cut it elsewhere. Fold whole chunks, and feed nothing, before extending."
            )
        self.text_tokens = total
        self._take(chunks[len(done) :], ids, on_step)

    def feed(self, tokens: ArrayLike, *, every: bool = False) -> Tensor:
        """Put tokens behind the text, a question or what was generated, in chunks of at most the fold's size.

        Every chunk is a chain step, after which the protocol does to the cache what it does.

        Parameters
        ----------
        tokens : array_like
            Integers [token].
        every : bool
            Whether scores are wanted after every token, and not only after the last.

        Returns
        -------
        Tensor
            [token, vocabulary], or [vocabulary] of the last: the model's scores of the token that comes next.
        """
        ids = self._checked(tokens)
        rows = self._take(self.reached.following(self.protocol, len(ids), self.chunk_size), ids, None, every)
        return torch.cat(rows) if every else self.logits

    def _checked(self, tokens: ArrayLike) -> Tensor:
        ids = check_tokens(self.model, tokens)
        if len(ids) != 1:
            raise ConfigError(f"One fold holds one text; got {len(ids)}. Fold them one by one.")
        return torch.from_numpy(ids[0]).to(self.device)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Have switches set and weights at hand. What is fed within does not set them again, token after token."""
        if self._attention is not None:
            yield
            return
        training = self.model.training
        self.model.eval()
        with ExitStack() as stack:
            stack.callback(self.model.train, training)
            stack.callback(setattr, self, "_attention", None)
            self.switches = stack.enter_context(numerics(self._rung, str(self.device), self._half_matmul))
            stack.enter_context(weights_of(self.model).whole())
            stack.enter_context(attention_as(self.model, attention_of(self.protocol)))
            layers = self.cache.layers[:: driving_of(self.model).attentions]
            wanted = [self.protocol.wants_attention and keeps_slots(layer) for layer in layers]
            blocks = zip(blocks_of(self.model), wanted, strict=True)
            self._attention = [stack.enter_context(noted_attention(*each)) for each in blocks]
            yield

    def _take(
        self,
        chunks: Sequence[Chunk],
        ids: Tensor,
        on_step: Callable[[Step, int], None] | None = None,
        every: bool = False,
    ) -> list[Tensor]:
        """Take chunks of `ids` [token], which follow what there is; logits [token, vocabulary] of each if wanted."""
        rows, first = list[Tensor](), len(self.tokens)
        self._rotated = max(self._rotated, self.reached.seen + sum(len(chunk) for chunk in chunks))
        with self.computing():
            for place, chunk in enumerate(chunks):
                started = time.perf_counter()
                self._memory.begin()
                text = ids[chunk.start - first : chunk.stop - first]
                logits = self._pass(chunk, torch.cat([text.new_tensor(chunk.prefix), text]), every)
                if every:
                    rows.append(logits[len(chunk.prefix) :])
                self.logits = logits[-1]
                self.tokens = torch.cat([self.tokens, text])
                self.reached = self.reached.after(self.protocol, chunk)
                self._memory.settle()
                took = time.perf_counter() - started
                self.steps.append(Step(chunk, took, self.cache.bytes, self._memory.bytes()))
                if on_step is not None:
                    on_step(self.steps[-1], len(chunks) - place - 1)
        return rows

    def _pass(self, chunk: Chunk, ids: Tensor, every: bool) -> Tensor:
        """One forward pass, and what the protocol does to the cache after it; logits [token, vocabulary]."""
        own = new_cache(self.model, TapeCache) if chunk.alone else self.cache
        slotted = [index for index, layer in enumerate(self.cache.layers) if keeps_slots(layer)]
        driving = driving_of(self.model)
        options: dict[str, Any] = {} if every else dict(self._last_logits)
        if driving.positions:
            first = chunk.first_position + driving.origin
            options["position_ids"] = torch.arange(first, first + len(chunk), device=self.device)[None]
        options[cache_argument(self.model)] = own
        with disturbed_states(self.model, self._noise(ids)):
            out = self.model(input_ids=ids[None], use_cache=True, **options)
        if isinstance(own, TapeCache):
            for index, (keys, values) in zip(slotted, own.appended, strict=True):
                self.cache.update(keys, values, index)
        if not self.steps and any(self.cache.layers[index].get_seq_length() != len(chunk) for index in slotted):
            raise UnsupportedModelError(
                f"{type(self.model).__name__} does not cache keys and values of its own once per chunk in every block."
            )
        if self.protocol.carries:
            self._carry(chunk)
        logits: Tensor = out.logits[0]
        return logits if every else logits[-1:].clone()

    def _noise(self, ids: Tensor) -> EmbeddingNoise | None:
        """Noise on what follows the text, by all tokens so far: a question gets the same, whatever was asked before."""
        if self.protocol.embedding_noise is None:
            return None
        return embedding_noise(self.protocol, torch.cat([self.tokens, ids]), self._rung)

    def _carry(self, chunk: Chunk) -> None:
        """Let the protocol change the cache of every block."""
        assert self._attention is not None
        each = driving_of(self.model).attentions
        for place, layer in enumerate(self.cache.layers):
            index, noted = place // each, self._attention[place // each]
            step = CarriedStep(
                chunk,
                index,
                noted.pop() if noted else None,
                partial(self._rotation.rotate, index, reach=self._rotated),
                self._rung.unit_roundoff,
            )
            step.carry(self.protocol, layer, self._notes[place])
            noted.clear()


def fold(
    model: PreTrainedModel,
    tokens: ArrayLike,
    chunk_size: int = CHUNK_SIZE,
    protocol: str | Protocol = "append",
    *,
    bos_token_id: int | None = None,
    dtype: str | None = None,
    half_matmul: str = "native",
    allow_beyond_context: bool = False,
    spare_slots: int = SPARE_SLOTS,
    on_step: Callable[[Step, int], None] | None = None,
) -> Folded:
    """Fold a text into a cache, chunk by chunk, as an engine would.

    Parameters
    ----------
    model : PreTrainedModel
        Any supported causal language model, at whatever dtype and device it is in. It is left as it was.
    tokens : array_like
        Token ids, integers [token] or [1, token].
    chunk_size : int
        Tokens per chunk; the last chunk holds what is left, and a shorter text is one chunk.
    protocol : str or Protocol
        Reading of the fold, see :func:`drift.running.protocols.available`; ``full`` takes the text in one pass.
    bos_token_id : int, optional
        The token that ``reprime`` puts in front of chunks; the model configuration's BOS token by default.
    dtype : str, optional
        Rung to compute on, if the model's format does not tell: ``"tf32"`` for a model in float32.
    half_matmul : {"native", "float32"}
        How 16-bit matrix products are computed on a CPU; see :func:`drift.running.model.numerics.numerics`.
    allow_beyond_context : bool
        Whether positions may run past the context length that the model declares.
    spare_slots : int
        Slots kept free in the cache for what will follow. Where they do not do, the cache is copied once, into more.
    on_step : callable, optional
        Called after every chain step with the :class:`Step` and the number of steps that are left.

    Returns
    -------
    Folded
        Keys and values of every layer are bitwise those of the lane that :func:`drift.trace` measures.

    Raises
    ------
    ConfigError
        If tokens, chunk size and protocol do not fit together, the protocol cannot be run (see
        :func:`drift.running.protocols.runnable.check_runnable`), or the text exceeds the model's context.
    PrecisionError, UnsupportedModelError
        As for :func:`drift.trace`.

    Examples
    --------
    >>> folded = drift.fold(model, tokenizer(text, return_tensors="np").input_ids)  # doctest: +SKIP
    >>> folded.position, folded.seconds, folded.cache.bytes  # doctest: +SKIP
    """
    admit(model)
    chunk_size = arguments.whole("chunk_size", chunk_size, 1, MOST_TOKENS)
    spare_slots = arguments.whole("spare_slots", spare_slots, 0, MOST_TOKENS)
    if bos_token_id is not None:
        arguments.whole("bos_token_id", bos_token_id)
    arguments.truth("allow_beyond_context", allow_beyond_context)
    if on_step is not None:
        arguments.function("on_step", on_step)
    count = check_tokens(model, tokens).shape[1]
    bos = bos_token_id if bos_token_id is not None else getattr(text_config(model), "bos_token_id", None)
    bound = parse(protocol).bind(lambda: bos)
    check_runnable(bound)
    chunks = bound.chunks(count, min(chunk_size, count))
    check_planted(bound, chunks)
    check_chunks(model, [chunks], allow_beyond_context)
    check_reading(model, bound, chunks)
    slots = sum(len(chunk) for chunk in chunks) + spare_slots
    folded = Folded(model, bound, chunk_size, computing_rung(model, dtype), half_matmul, slots)
    folded.extend(tokens, on_step)
    return folded
