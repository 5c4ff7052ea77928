"""vLLM's ``ExampleHiddenStatesConnector``: a file per request, with the hidden states of some layers at once.

Which layers these are it does not say: ``eagle_aux_hidden_state_layer_ids`` of the configuration does, and the number L
there is what goes into layer L (counted from 0), which is what L blocks gave.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from drift._bounds import MOST_BLOCKS, MOST_TOKENS
from drift._outside import regular
from drift._tensor_files import BYTES
from drift.errors import DatasetError
from drift.reading.diagnose.importers.base import Found, Importer, Options, Piece, Source
from drift.reading.diagnose.stored import Place, Stored

__all__ = ["VLLM"]

_STATES, _TOKENS = "hidden_states", "token_ids"


def _fits(tensors: Mapping[str, Stored]) -> bool:
    return set(tensors) == {_STATES, _TOKENS} and len(tensors[_STATES].shape) == 3


def _knows(source: Source) -> bool:
    return any(_fits(source.held(path).tensors) for path in source.containers[:1])


def _read(source: Source, options: Options) -> Found:
    path = source.only("vLLM")
    held = source.held(path)
    if not _fits(held.tensors):
        raise DatasetError(f"{path}: holds other tensors than {_STATES} [token, layer, feature] and {_TOKENS}.")
    states = held.tensors[_STATES]
    count = states.shape[1]
    if not count or len(options.layers) != count or len(set(options.layers)) != count:
        given = f"{len(options.layers)} were named" if options.layers else "no file says which"
        raise DatasetError(
            f"{path}: holds the hidden states of {count} layers, and {given}: say them as they stand in "
            "eagle_aux_hidden_state_layer_ids, such as --layers 1,2,3."
        )
    if max(options.layers) > MOST_BLOCKS:
        raise DatasetError(f"{path}: {max(options.layers)} is beyond what a dump may hold ({MOST_BLOCKS:,} at most).")
    tokens = held.tensors[_TOKENS]
    said = {"tokens_sha256": _hashed(tokens)} if tokens.dtype == "I64" and tokens.shape == states.shape[:1] else {}
    pieces = [Piece(Place("hidden", layer), 0, states.axis(1, at, 0)) for at, layer in enumerate(options.layers)]
    return Found(pieces, [], held.metadata | said, "what vLLM's hidden-states connector wrote.")


def _hashed(tokens: Stored) -> str:
    """What our own dumps say of their tokens, too."""
    if tokens.shape[0] > MOST_TOKENS:
        raise DatasetError(f"{tokens.path}: has {tokens.shape[0]:,} tokens; at most {MOST_TOKENS:,} are read.")
    with regular(tokens.path) as (stream, _):
        stream.seek(tokens.begin)
        return hashlib.sha256(stream.read(tokens.shape[0] * BYTES[tokens.dtype])).hexdigest()


VLLM = Importer("vllm", "vLLM's hidden-states connector", _knows, _read)
