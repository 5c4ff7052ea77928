"""From what modules took and gave to places: debuggers that hook every module differ in the names of files only.

Modules are known by their paths, as transformers, vLLM and SGLang have them for decoders. What is none of these is
listed, not guessed: keys before their rotation, towers for images, experts, projections.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from drift._bounds import MOST_BLOCKS, MOST_DIGITS
from drift.reading.diagnose.formats import FORMATS
from drift.reading.diagnose.importers.base import Found, Options, Piece
from drift.reading.diagnose.stored import Place, Stored, without_batch

__all__ = ["Call", "Role", "place_calls", "role_of"]


class Role(Enum):
    """What a module is."""

    BLOCK = "block"
    EMBEDDING = "embedding"
    POSITIONS = "positions that are added"
    NORM = "final norm"
    LOGITS = "logits"
    ATTENTION = "attention, given queries, keys and values"
    VALUES = "projection to values"
    NORMED_VALUES = "norm of values"
    OTHER = "other"


_PREFIX = r"(?:(?:model|language_model|text_model|transformer|decoder|gpt_neox|backbone)\.)*"
_BLOCK = rf"{_PREFIX}(?:layers|h|blocks)\.(\d+)"
_ROLES = {
    Role.BLOCK: _BLOCK,
    Role.EMBEDDING: rf"{_PREFIX}(?:embed_tokens|embed_in)",
    Role.POSITIONS: rf"{_PREFIX}(?:embed_positions|wpe)",
    Role.NORM: rf"{_PREFIX}(?:norm|ln_f|final_layer_norm|final_layernorm)",
    Role.LOGITS: rf"{_PREFIX}(?:lm_head|embed_out|output_layer|logits_processor)|",
    Role.ATTENTION: rf"{_BLOCK}\.(?:self_attn|attn|attention)\.attn",
    Role.VALUES: rf"{_BLOCK}\.(?:self_attn|attn|attention)\.v_proj",
    Role.NORMED_VALUES: rf"{_BLOCK}\.(?:self_attn|attn|attention)\.v_norm",
}
_COMPILED = {role: re.compile(pattern) for role, pattern in _ROLES.items()}
_POSITIONAL = re.compile(r"(?:args_)?\d*")
# What the whole network hands out is asked before what its last projection gave: logits may be capped in between.
_WHOLE = ("", "logits_processor")
_LOGITS = ("logits", "next_token_logits")
_STATES = ("hidden_states", "residual")


def role_of(path: str) -> tuple[Role, int]:
    """What a module is by its path, and its block, counted from 0 (0 where it is in none)."""
    for role, pattern in _COMPILED.items():
        match = pattern.fullmatch(path)
        if match is not None:
            digits = match[1] if pattern.groups else "0"
            return (role, int(digits)) if len(digits) <= MOST_DIGITS and int(digits) < MOST_BLOCKS else (Role.OTHER, 0)
    return Role.OTHER, 0


@dataclass
class Call:
    """What a module took and gave, by name or number, in order."""

    inputs: dict[str, Stored] = field(default_factory=dict)
    outputs: dict[str, Stored] = field(default_factory=dict)


def _floats(tensors: Mapping[str, Stored]) -> list[Stored]:
    return [one for one in tensors.values() if one.dtype in FORMATS]


def _taken(tensors: Mapping[str, Stored]) -> list[Stored]:
    """Of what a module took, what may be its state: what has no name, or that of a state."""
    plain = {name: one for name, one in tensors.items() if _POSITIONAL.fullmatch(name)}
    named = {name: one for ending in _STATES for name, one in tensors.items() if name.endswith(ending)}
    return _floats({**plain, **named})


def _state(tensors: list[Stored]) -> tuple[Stored | None, list[Stored]]:
    """A hidden state [token, feature], and what it is of.

    It is the first tensor, and the second is added where engines hand on (hidden, residual).
    """
    if not tensors:
        return None, []
    one, *more = (without_batch(tensor, 2) for tensor in tensors[:2])
    if more and more[0].shape == one.shape and more[0].dtype == one.dtype:
        return replace(one, plus=more[0]), tensors[:2]
    return one, tensors[:1]


class _Placing:
    """Gives the modules of a step their places."""

    def __init__(self, found: Found, options: Options, step: int) -> None:
        self.found, self.options, self.step = found, options, step
        self.used: set[int] = set()
        self.taken: set[Place] = set()
        self.flat = 0

    def take(self, place: Place, stored: Stored | None, of: Iterable[Stored], heads: int | None = None) -> None:
        """Place a tensor, unless another has the place, and remember what it is of."""
        if stored is not None and place not in self.taken:
            self.taken.add(place)
            self.used.update(id(one) for one in of)
            self.found.pieces.append(Piece(place, self.step, stored, heads))

    def cache(self, place: Place, stored: Stored, batch: bool) -> None:
        """Place keys or values: [token, head, feature], or flat if it is known how many heads there are."""
        plain = without_batch(stored, 2) if batch else stored
        if len(plain.shape) == 2 and self.options.heads is None:
            self.flat += 1
        elif len(plain.shape) in (2, 3):
            heads = self.options.heads if len(plain.shape) == 2 else plain.shape[-2]
            self.take(place, plain, [stored], heads)


def _blocks(calls: Mapping[str, Call], placing: _Placing) -> int:
    """Place hidden states; the number of blocks."""
    blocks = {role_of(path)[1]: call for path, call in calls.items() if role_of(path)[0] is Role.BLOCK}
    for block, call in sorted(blocks.items()):
        placing.take(Place("hidden", block + 1), *_state(_floats(call.outputs)))
    for block, call in sorted(blocks.items()):
        placing.take(Place("hidden", block), *_state(_taken(call.inputs)))
    return max(blocks, default=-1) + 1


def _ends(calls: Mapping[str, Call], placing: _Placing, blocks: int) -> None:
    """Place embeddings, what the final norm took and gave, and logits."""
    roles = {path: role_of(path)[0] for path in calls}
    logits: list[Stored] = []
    for path, role in roles.items():
        outputs = calls[path].outputs
        first = _floats(outputs)[:1]
        if role is Role.EMBEDDING and first and Role.POSITIONS not in roles.values():
            placing.take(Place("hidden", 0), first[0], first)
        elif role is Role.NORM:
            placing.take(Place("final", 0), first[0] if first else None, first)
            if blocks:
                placing.take(Place("hidden", blocks), *_state(_taken(calls[path].inputs)))
        elif role is Role.LOGITS and path in _WHOLE:
            logits[:0] = [one for name, one in outputs.items() if name.endswith(_LOGITS)]
        elif role is Role.LOGITS:
            logits += first
    for one in logits:
        placing.take(Place("logits", 0), one, [one])


def _caches(calls: Mapping[str, Call], placing: _Placing) -> None:
    """Place keys and values: what the attention itself was given, or else the projection to values."""
    roles = {path: role_of(path) for path in calls}
    normed = {block for role, block in roles.values() if role is Role.NORMED_VALUES}
    whole = {block for path, (role, block) in roles.items() if role is Role.ATTENTION and calls[path].inputs}
    for path, (role, block) in roles.items():
        given, gave = _floats(calls[path].inputs), _floats(calls[path].outputs)
        if role is Role.ATTENTION and len(given) >= 3:
            placing.cache(Place("key", block + 1), given[1], batch=False)
            placing.cache(Place("value", block + 1), given[2], batch=False)
        elif role is Role.VALUES and gave and block not in normed | whole:
            placing.cache(Place("value", block + 1), gave[0], batch=True)


def place_calls(steps: Iterable[Mapping[str, Call]], options: Options, found: Found) -> None:
    """Give what modules took and gave their places.

    Parameters
    ----------
    steps : iterable of mapping
        Per step, what was called, by module path ("" is the whole network).
    options : Options
        With the heads of keys and values, which are flat.
    found : Found
        What is added to.
    """
    flat = 0
    for step, calls in enumerate(steps):
        placing = _Placing(found, options, step)
        blocks = _blocks(calls, placing)
        _ends(calls, placing, blocks)
        _caches(calls, placing)
        flat += placing.flat
        for call in calls.values():
            for one in (*call.inputs.values(), *call.outputs.values()):
                if id(one) not in placing.used:
                    found.ignored.append(one.name)
    if flat:
        found.said += " Keys and values are [token, head * feature] there: --heads N has them compared."
