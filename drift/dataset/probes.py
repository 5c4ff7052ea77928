"""What a server was asked, and what it answered: what one wing hands on, and the other judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Answer", "AskedLane", "Kind", "Probe", "View"]

#: A token's number, or its text where a server tells no number.
Token = int | str


class Kind(StrEnum):
    """What a lane varies against the cold one."""

    COLD = "cold"
    """Nothing was cached, and nothing else was computed: what the others are compared with."""
    REPEAT = "repeat"
    """Nothing: the same again, computed anew."""
    CACHE = "cache"
    """The beginning of the prompt was not computed, but taken from a cache."""
    BATCH = "batch"
    """Other prompts were asked at the same time."""
    MODEL = "model"
    """The same tokens, in transformers."""


class View(StrEnum):
    """Whose log-probabilities were asked for."""

    GENERATED = "generated"
    """Those of the tokens that the server chose, greedily."""
    PROMPT = "prompt"
    """Those of the prompt's own tokens."""


@dataclass(frozen=True)
class Answer:
    """What a server said of one prompt.

    Attributes
    ----------
    tokens : tuple of int or of str [position]
        Numbers, or texts where no numbers are told.
    logprobs : tuple of float or None [position]
        Nats; None where there is none, as of a first token.
    names : tuple of int or of str [position]
        What `tops` calls the tokens.
    tops : tuple of mappings [position]
        Log-probabilities of the likeliest; empty where none are told.
    prompt_ids : tuple of int, or None
        Numbers of the prompt's tokens, where they are told.
    prompt_tokens, cached_tokens : int or None
        How many tokens the prompt has, and how many of these came from a cache; None where that is not told.
    """

    tokens: tuple[Token, ...]
    logprobs: tuple[float | None, ...]
    names: tuple[Token, ...] = ()
    tops: tuple[Mapping[Token, float], ...] = ()
    prompt_ids: tuple[int, ...] | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True)
class AskedLane:
    """One way in which all prompts were asked.

    Attributes
    ----------
    name : str
    kind : Kind
    view : View
    answers : tuple of Answer
        One per prompt.
    anew : bool
        Whether the server was told, in a way that it knows, to compute all of it anew.
    """

    name: str
    kind: Kind
    view: View
    answers: tuple[Answer, ...]
    anew: bool = False

    @property
    def cached_share(self) -> float | None:
        """Share of the prompts' tokens that came from a cache; None where the server does not tell."""
        known = [(one.cached_tokens, one.prompt_tokens) for one in self.answers]
        counted = [(cached, of) for cached, of in known if cached is not None and of]
        if len(counted) < len(known) or not known:
            return None
        return sum(cached for cached, _ in counted) / sum(of for _, of in counted)


@dataclass(frozen=True)
class Probe:
    """All that was asked of a server.

    Attributes
    ----------
    endpoint, engine, model : str
        Where, what it calls itself, and which of its models.
    nonce : str
        What the prompts' beginnings were made of.
    lanes : tuple of AskedLane
        The cold one of a view first.
    left_out : tuple of str
        Lanes that this server cannot be asked for.
    requests : int
    seconds : float
    """

    endpoint: str
    engine: str
    model: str
    nonce: str
    lanes: tuple[AskedLane, ...]
    left_out: tuple[str, ...] = ()
    requests: int = 0
    seconds: float = 0.0

    def of(self, view: View) -> tuple[AskedLane, ...]:
        """Lanes of a view."""
        return tuple(lane for lane in self.lanes if lane.view is view)
