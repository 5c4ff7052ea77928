"""What a protocol is: a rule for taking a text through a model in chunks that share a carried KV cache.

A protocol says what differs from appending chunk after chunk: how the text is cut and positioned
(:meth:`Protocol.chunks`), and what becomes of the cache after a chain step (:meth:`Protocol.carry`). The descent does
the rest; no protocol touches a model.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from drift._bounds import MOST_STEPS, MOST_TOKENS
from drift.dataset.labels import Label
from drift.errors import ConfigError, ProtocolError
from drift.running.options import written

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Carried", "CarriedStates", "Chunk", "Protocol", "Variation"]


@dataclass(frozen=True)
class Chunk:
    """One pass of a stretch of the text through the model.

    Attributes
    ----------
    start, stop : int
        The chunk covers the tokens ``text[start:stop]``.
    prefix : tuple of int
        Token ids put in front of the chunk. They take positions and stay in the cache; what the model says about
        them is not compared.
    first_position : int
        Position id of the first token of the chunk, prefix included; the others follow without gaps.
    step : int
        The chain step that the pass belongs to.
    alone : bool
        Whether the chunk sees nothing of the cache.
    kept : bool
        Whether its keys and values stay in the cache.
    measured : bool
        Whether it is what is compared. Every token of the text is measured in exactly one pass.
    """

    start: int
    stop: int
    prefix: tuple[int, ...] = ()
    first_position: int = 0
    step: int = 0
    alone: bool = False
    kept: bool = True
    measured: bool = True

    def __len__(self) -> int:
        """Number of tokens that the model sees: prefix and text."""
        return len(self.prefix) + self.stop - self.start


@dataclass
class Carried:
    """What one block's cache holds after a chain step, for :meth:`Protocol.carry` to change.

    Attributes
    ----------
    keys, values : Tensor
        [batch, head, slot, feature], oldest slot first; keys are rotated to their positions. To be replaced, not
        written into.
    step : int
        The chain step that has just been taken.
    block : int
        Which block, from 1.
    new : int
        How many of the last slots this step appended.
    sliding : bool
        Whether the block attends to a sliding window, and so forgets by itself. Its number of slots must stay.
    attention : Tensor or None
        [batch, query head, query, slot]: attention probabilities of this step, where the protocol asked for them.
    rotate : callable
        ``rotate(keys, shift)`` moves keys [..., slot, feature] by ``shift`` positions, int64 [slot].
    unit_roundoff : float
        Of the precision that the lane computes in.
    notes : dict
        The protocol's own memory of this block, empty at the first step.
    """

    keys: Tensor
    values: Tensor
    step: int
    block: int
    new: int
    sliding: bool
    attention: Tensor | None
    rotate: Callable[[Tensor, Tensor], Tensor]
    unit_roundoff: float
    notes: dict[str, Any] = field(default_factory=dict)

    def select(self, slots: Any) -> None:
        """Keep the slots of an index along the slot axis (a slice or int64 [slot])."""
        self.keys, self.values = self.keys[..., slots, :], self.values[..., slots, :]


@dataclass
class CarriedStates:
    """States of convolutions and recurrences of a block after a chain step, for :meth:`Protocol.carry_states`.

    Attributes
    ----------
    states : list of Tensor
        [batch, ...]: those of convolutions, then those of recurrences. To be replaced, not written into.
    step, block, unit_roundoff
        As for :class:`Carried`.
    """

    states: list[Tensor]
    step: int
    block: int
    unit_roundoff: float


@dataclass(frozen=True)
class Protocol(ABC):
    """One reading of the fold.

    A subclass lives in a module of its own in this package, sets ``name`` and ``summary``, and overrides what differs
    from appending. Its dataclass fields are its options, written in parentheses in a label: ``reprime(token=1)``.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    """What it does, in one line: pages show it beside the label."""
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Options that take one of a few words."""
    spelt: ClassVar[tuple[str, ...]] = ()
    """Options that the label says even where they are the default: once that was another, and cells are named by it."""
    references: ClassVar[tuple[str, ...]] = ("full", "gold", "fold64", "previous")
    """What the fold can be compared with, see :data:`drift.dataset.contract.REFERENCES`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class that changes the cache without saying how many slots that leaves.

        Raises
        ------
        ProtocolError
            If the class overrides :meth:`carry` and inherits :meth:`slots`.
        """
        super().__init_subclass__(**kwargs)
        if "carry" in vars(cls) and "slots" not in vars(cls):
            raise ProtocolError(
                f"Protocol {getattr(cls, 'name', cls.__name__)} ({cls.__module__}.{cls.__name__}) overrides carry, "
                "which changes a block's cache, but not slots, which says how many slots that leaves: the masks and "
                "positions of the chunks are made from that number before there is a cache to count. Override "
                "slots(step, held, new) as well; where every slot stays, it returns held."
            )

    @property
    def label(self) -> str:
        """The protocol's canonical name, with the options that were set, as it is written in configurations."""
        return Label(self.name, options=written(self, always=self.spelt)).text

    @property
    def in_words(self) -> str:
        """What it does, in one line; empty where its file does not say."""
        return self.summary

    @property
    def attn_implementation(self) -> str | None:
        """Attention implementation that the fold runs with; None takes the model's own."""
        return None

    @property
    def texts_at_once(self) -> int:
        """How many texts the lane computes in a batch."""
        return 1

    @property
    def planted_at(self) -> int | None:
        """The first chain step that a planted error can show in; None where nothing is planted."""
        return None

    @property
    def embedding_noise(self) -> tuple[float, int] | None:
        """Noise on the embeddings of the text, in unit roundoffs, and its seed; None where there is none."""
        return None

    @property
    def takes_full_cache(self) -> bool:
        """Whether every chunk continues from full attention's keys and values instead of those of earlier chunks."""
        return False

    @property
    def measures_what_it_carries(self) -> bool:
        """Whether the states that are compared are those whose keys and values are carried on."""
        return True

    @property
    def wants_attention(self) -> bool:
        """Whether :meth:`carry` needs attention probabilities; the fold then runs with ``eager`` attention."""
        return False

    @property
    def carries(self) -> bool:
        """Whether :meth:`carry` does anything at all."""
        return type(self).carry is not Protocol.carry

    @property
    def carries_states(self) -> bool:
        """Whether :meth:`carry_states` does anything at all."""
        return type(self).carry_states is not Protocol.carry_states

    def prefix(self, step: int) -> tuple[int, ...]:
        """Token ids put in front of the chunk of chain step ``step``."""
        return ()

    def first_position(self, step: int, seen: int, slots: int) -> int:
        """Position id of a chunk's first token when ``seen`` tokens have gone through, and ``slots`` are still held."""
        return seen

    def slots(self, step: int, held: int, new: int) -> int:
        """How many slots a block with full attention carries on after a chain step.

        Parameters
        ----------
        step : int
            The chain step that has just been taken.
        held : int
            Slots that the block holds, those of this step included.
        new : int
            How many of them, the last ones, this step appended; prefixes count.
        """
        return held

    def carry(self, cache: Carried) -> None:
        """Change one block's cache after a chain step.

        It must leave as many slots as :meth:`slots` says, and is held to that; a block with a sliding window of its
        own (``cache.sliding``) keeps the number that it has.
        """

    def carry_states(self, cache: CarriedStates) -> None:
        """Change one block's states after a chain step, where it has any; a protocol that does not leaves them alone.

        A state has no slots that could be dropped, moved or put together: it stands for all that came before.
        """

    def check_carried(self, cache: Carried, held: int) -> None:
        """Hold what :meth:`carry` left of a cache of ``held`` slots against what :meth:`slots` says.

        Raises
        ------
        ProtocolError
            If the two numbers differ.
        """
        keys, values = cache.keys.shape[-2], cache.values.shape[-2]
        said = held if cache.sliding else self.slots(cache.step, held, cache.new)
        if keys == values == said:
            return
        left = f"{keys} slots" if keys == values else f"{keys} slots of keys and {values} of values"
        where = f"Protocol {self.label}: after chain step {cache.step}, carry left {left} in block {cache.block}, but "
        if cache.sliding:
            raise ProtocolError(
                f"{where}that block attends to a sliding window of its own and must keep the {held} that it held. Have "
                "carry leave the number of slots alone where cache.sliding is true."
            )
        raise ProtocolError(
            f"{where}slots(step={cache.step}, held={held}, new={cache.new}) says {said}. Override slots in "
            f"{type(self).__module__} so that it says what carry leaves."
        )

    def bind(self, bos_token_id: Callable[[], int | None]) -> Protocol:
        """Return the protocol with everything it needs from the tokenizer filled in.

        Parameters
        ----------
        bos_token_id : callable
            Asked for the tokenizer's beginning-of-sequence token only if the protocol needs one.

        Raises
        ------
        ConfigError
            If the protocol needs a token that the tokenizer does not have and that was not named.
        """
        return self

    def starts(self, tokens: int, chunk_size: int) -> tuple[int, ...]:
        """First token of every chain step; what lies before the first of them is not measured."""
        self._check_size(tokens, chunk_size)
        return tuple(range(0, tokens, chunk_size))

    def chunks(self, tokens: int, chunk_size: int) -> tuple[Chunk, ...]:
        """Cut a text of ``tokens`` tokens; the last chunk holds what is left.

        Raises
        ------
        ConfigError
            If the chunk size is not between 1 and the length of the text.
        """
        self._check_size(tokens, chunk_size)
        chunks: list[Chunk] = []
        seen = slots = 0
        for step, start in enumerate(range(0, tokens, chunk_size)):
            position = self.first_position(step, seen, slots)
            chunk = Chunk(start, min(start + chunk_size, tokens), self.prefix(step), position, step)
            chunks.append(chunk)
            seen += len(chunk)
            slots = self.slots(step, slots + len(chunk), len(chunk))
        return tuple(chunks)

    def following(self, start: int, stop: int, step: int, seen: int, slots: int) -> Chunk:
        """The pass over tokens that come after the folded text, a question or what is generated.

        It sees all that is held, and nothing is put in front of it.

        Parameters
        ----------
        start, stop : int
            The tokens, counted on from the text.
        step : int
            The chain step.
        seen, slots : int
            Tokens that have gone through, and slots that a block with full attention still holds.
        """
        return Chunk(start, stop, (), self.first_position(step, seen, slots), step)

    def reference_chunks(self, tokens: int) -> tuple[Chunk, ...]:
        """How the lanes of full attention take the same text: in one chunk."""
        return (Chunk(0, tokens),)

    def continuation(self) -> int:
        """How many tokens are generated after the text, and measured in place of it."""
        return 0

    @staticmethod
    def _check_size(tokens: int, chunk_size: int) -> None:
        if not 1 <= chunk_size <= tokens:
            raise ConfigError(
                f"chunk_size is {chunk_size}, but a text of {tokens} tokens can only be cut into chunks "
                f"of 1 to {tokens} tokens."
            )
        if tokens > MOST_TOKENS or -(-tokens // chunk_size) > MOST_STEPS:
            raise ConfigError(
                f"A text of {tokens} tokens in chunks of {chunk_size} is too long: at most {MOST_TOKENS:,} tokens, in "
                f"at most {MOST_STEPS:,} chunks."
            )

    def check_reference(self, reference: str) -> None:
        """Refuse something that this fold cannot be compared with.

        Raises
        ------
        ConfigError
        """
        self._require(
            reference in self.references,
            f"cannot be compared with {reference!r}; references of {self.label}: {', '.join(self.references)}"
            + ("; only perturbed(PROTOCOL,...) has 'unperturbed'" if reference == "unperturbed" else ""),
        )

    def _require(self, holds: bool, what: str) -> None:
        """Refuse an option, naming the protocol."""
        if not holds:
            raise ConfigError(f"Protocol {self.name}: {what}.")


@dataclass(frozen=True)
class Variation(Protocol):
    """A protocol that changes another one, which is its first option: ``shifted(append,step=4)``."""

    protocol: Protocol

    def __post_init__(self) -> None:
        self._require(
            self.protocol.continuation() == 0,
            f"{self.protocol.label} generates text after the fold, so it must stand outside: put {self.name} into it",
        )

    @property
    def label(self) -> str:
        """The protocol's canonical name, that of the protocol inside first."""
        return Label(self.name, self.protocol.label, written(self, "protocol", self.spelt)).text

    @property
    def in_words(self) -> str:
        """What the protocol inside does, then what this one does to it."""
        return "; ".join(words for words in (self.protocol.in_words, self.summary) if words)

    @property
    def attn_implementation(self) -> str | None:
        """As the protocol inside."""
        return self.protocol.attn_implementation

    @property
    def texts_at_once(self) -> int:
        """As the protocol inside."""
        return self.protocol.texts_at_once

    @property
    def planted_at(self) -> int | None:
        """As the protocol inside."""
        return self.protocol.planted_at

    @property
    def embedding_noise(self) -> tuple[float, int] | None:
        """As the protocol inside."""
        return self.protocol.embedding_noise

    @property
    def takes_full_cache(self) -> bool:
        """As the protocol inside."""
        return self.protocol.takes_full_cache

    @property
    def measures_what_it_carries(self) -> bool:
        """As the protocol inside."""
        return self.protocol.measures_what_it_carries

    @property
    def wants_attention(self) -> bool:
        """As the protocol inside."""
        return self.protocol.wants_attention

    @property
    def carries(self) -> bool:
        """As the protocol inside, unless there is more to do."""
        return self.protocol.carries or type(self).carry is not Variation.carry

    @property
    def carries_states(self) -> bool:
        """As the protocol inside, unless there is more to do."""
        return self.protocol.carries_states or type(self).carry_states is not Variation.carry_states

    def carry(self, cache: Carried) -> None:
        """As the protocol inside."""
        self.protocol.carry(cache)

    def carry_states(self, cache: CarriedStates) -> None:
        """As the protocol inside."""
        self.protocol.carry_states(cache)

    def prefix(self, step: int) -> tuple[int, ...]:
        """As the protocol inside."""
        return self.protocol.prefix(step)

    def first_position(self, step: int, seen: int, slots: int) -> int:
        """As the protocol inside."""
        return self.protocol.first_position(step, seen, slots)

    def slots(self, step: int, held: int, new: int) -> int:
        """As the protocol inside."""
        return self.protocol.slots(step, held, new)

    def bind(self, bos_token_id: Callable[[], int | None]) -> Protocol:
        """Bind the protocol inside."""
        return replace(self, protocol=self.protocol.bind(bos_token_id))

    def chunks(self, tokens: int, chunk_size: int) -> tuple[Chunk, ...]:
        """As the protocol inside."""
        return self.protocol.chunks(tokens, chunk_size)
