"""Where a model's decoder layers are, and how they are called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from drift.errors import UnsupportedModelError
from drift.running.descent.caches import keeps_slots, keeps_states, with_states_by_index
from drift.running.descent.streams import Streams

__all__ = [
    "TESTED",
    "Driving",
    "blocks_of",
    "cache_argument",
    "carried_kinds",
    "carries_states",
    "context_of",
    "decoder_of",
    "driving_of",
    "foreign_cache",
    "has_position_table",
    "keeps_more",
    "new_cache",
    "own_cache",
    "remember",
    "remembered",
    "structural_fault",
    "takes",
    "tested",
    "text_config",
]

#: Model classes of transformers whose descent is held bit for bit against a plain loop by this project's own tests.
TESTED = frozenset(
    {
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "OlmoeForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
    }
)
_DRIVING = "_drift_driving"  # in the model's own dictionary: it goes where the model goes
_TESTED_ATTENTION = ("eager", "sdpa")
_KNOWN_CODE = ("torch.nn.modules.", "transformers.activations", "transformers.models.")


@dataclass(frozen=True)
class Driving:
    """What was found out of how a model's blocks are called.

    Attributes
    ----------
    plain : bool
        Whether nothing need be known: embeddings may stand for token ids where only calls are wanted, what the decoder
        does behind its last block takes one token as well as all, and blocks put out their states alone.
    outputs : int
        Length of the tuple that blocks put out; 0 where that is the states alone.
    streams : Streams
        How the states lie in memory that blocks are given and put out.
    attentions : int
        How often every block attends, each time with a layer of the cache of its own.
    origin : int
        Position id that the model itself gives the first token of a text.
    positions : bool
        Whether the model listens to the position ids that it is given.
    token : int
        A token id that stands for text and for nothing else.
    outcome : str
        How the descent was held against the model's own forward, as cells record it: ``tested`` (by this project's
        tests), ``bitwise`` or ``floor`` (before the first descent of this very model; ``floor`` where kernels differ by
        shape, and what they leave is no more than rounding).
    dtype : torch.dtype or None
        What the model computed in then.
    """

    plain: bool = True
    outputs: int = 0
    streams: Streams = field(default_factory=Streams)
    attentions: int = 1
    origin: int = 0
    positions: bool = True
    token: int = 0
    outcome: str = "tested"
    dtype: torch.dtype | None = None


def driving_of(model: PreTrainedModel) -> Driving:
    """What was found out of a model; of one that was never looked at, that nothing need be known."""
    found = remembered(model)
    return found if found is not None and found.dtype is model.dtype else Driving()


def remembered(model: PreTrainedModel) -> Driving | None:
    """What was found out of a model in whatever precision it was in then; None where it was never looked at."""
    found = model.__dict__.get(_DRIVING)
    return found if isinstance(found, Driving) else None


def remember(model: PreTrainedModel, driving: Driving | None) -> None:
    """Keep with a model what was found out of it; None forgets it."""
    model.__dict__.pop(_DRIVING, None)
    if driving is not None:
        model.__dict__[_DRIVING] = driving


def text_config(model: PreTrainedModel) -> Any:
    """Configuration of a model's text decoder."""
    return model.config.get_text_config(decoder=True)


def context_of(model: PreTrainedModel) -> int | None:
    """How many positions a model declares, counted from that of a text's first token; None where it does not say."""
    context = getattr(text_config(model), "max_position_embeddings", None)
    # There are architectures that say -1 for none.
    return None if context is None or int(context) <= 0 else int(context) - driving_of(model).origin


def has_position_table(model: PreTrainedModel) -> bool:
    """Whether positions are looked up in a table, so that there are none beyond its end."""
    return any(
        isinstance(module, nn.Embedding) and ("position" in name or name.endswith("wpe"))
        for name, module in decoder_of(model).named_modules()
    )


def takes(module: nn.Module, argument: str) -> bool:
    """Whether a module's forward has an argument of that name."""
    return argument in inspect.signature(module.forward).parameters


def cache_argument(module: nn.Module) -> str:
    """What a module's forward calls the cache; architectures that only recur have another name for it."""
    names = ("past_key_values", "cache_params")
    return next((name for name in names if takes(module, name)), names[0])


def own_cache(model: PreTrainedModel) -> type[DynamicCache] | None:
    """The class of cache that a model's decoder asks for, where that is one of its own; None where any will do."""
    decoder = decoder_of(model)
    kind: Any = type(decoder)
    return _cache_asked_for(kind, cache_argument(decoder))


@functools.cache
def _cache_asked_for(kind: Any, argument: str) -> type[DynamicCache] | None:
    """The class of cache of its own that a kind of decoder says it takes; a cache is made for every block of a lane."""
    kinds = _kinds_taken(kind, argument)
    return next((k for k in kinds if issubclass(k, DynamicCache) and k is not DynamicCache), None)


def _kinds_taken(kind: Any, argument: str) -> list[type]:
    """The classes that a kind of module says an argument of its forward may be of."""
    named = inspect.signature(kind.forward).parameters.get(argument)
    said = () if named is None else get_args(named.annotation) or (named.annotation,)
    return [each for each in said if isinstance(each, type)]


def foreign_cache(decoder: nn.Module) -> type | None:
    """The class in which a decoder's own code keeps what it carries, where that is no cache of transformers."""
    kinds = _kinds_taken(type(decoder), cache_argument(decoder))
    own = (k for k in kinds if k.__module__ == type(decoder).__module__ and not issubclass(k, Cache))
    return next(own, None)


def new_cache(model: PreTrainedModel, kind: Any = DynamicCache, **options: Any) -> Any:
    """An empty cache of a class ``kind`` for a model's decoder, of the decoder's own class where that is asked for."""
    own: Any = own_cache(model)
    made = kind if own is None else with_states_by_index(kind, own)
    return made(config=text_config(model), **options)


def carries_states(model: PreTrainedModel) -> bool:
    """Whether a block of a model carries states of convolutions or recurrences from chunk to chunk."""
    return any(states for _, states in carried_kinds(model))


def carried_kinds(model: PreTrainedModel) -> list[tuple[bool, bool]]:
    """Of each block, whether it keeps keys and values, and whether it keeps states."""
    return [(keeps_slots(layer), keeps_states(layer)) for layer in DynamicCache(config=text_config(model)).layers]


def tested(model: PreTrainedModel) -> bool:
    """Whether a model is on the tested list, and all of it is the code that was tested."""
    kind = type(model)
    if kind.__name__ not in TESTED or not kind.__module__.startswith("transformers.models."):
        return False
    if text_config(model)._attn_implementation not in _TESTED_ATTENTION:
        return False
    return all(
        type(module).__module__.startswith(_KNOWN_CODE) and "forward" not in module.__dict__
        for module in model.modules()
    )


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a supported model, in the order in which they are called.

    Raises
    ------
    UnsupportedModelError
        If there are none to be found.
    """
    return _found(model)[1]


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The module that makes embeddings of token ids, calls the decoder layers and norms what the last one puts out.

    Raises
    ------
    UnsupportedModelError
        If there are no decoder layers to be found.
    """
    return _found(model)[0]


def _found(model: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    decoder = model.get_decoder()
    blocks = getattr(decoder, "layers", None)
    if isinstance(blocks, nn.ModuleList):
        return decoder, blocks
    name, count = type(model).__name__, getattr(text_config(model), "num_hidden_layers", None)
    if count is None:
        raise UnsupportedModelError(
            f"{name} does not say how many decoder layers it has: its configuration has no num_hidden_layers."
        )
    chains = list(_chains(model, count))
    own = [chain for chain in chains if any(getattr(m, "config", None) is text_config(model) for m in chain[1:])]
    if len(chains) > 1 and len(own) == 1:
        chains = own
    if not chains:
        raise UnsupportedModelError(f"{name} has no list of {count} decoder layers that could be tapped.")
    if len(chains) > 1:
        raise UnsupportedModelError(
            f"{name} has {len(chains)} lists of {count} layers each, and nothing says which of them are the decoder's."
        )
    *owners, blocks = chains[0]
    assert isinstance(blocks, nn.ModuleList)
    inner = (owner for owner in reversed(owners[1:]) if takes(owner, "past_key_values") and takes(owner, "input_ids"))
    return next(inner, owners[-1]), blocks


def _chains(model: nn.Module, count: int | None) -> Iterator[tuple[nn.Module, ...]]:
    """The way from a model to each list of `count` modules: those least deep inside of it only."""
    level: list[tuple[nn.Module, ...]] = [(model,)]
    while level:
        inside = [(*chain, child) for chain in level for child in chain[-1].children()]
        lists = [chain for chain in inside if isinstance(chain[-1], nn.ModuleList) and len(chain[-1]) == count]
        if lists:
            yield from lists
            return
        level = [chain for chain in inside if not isinstance(chain[-1], nn.ModuleList)]


def keeps_more(layer: object) -> bool:
    """Whether a layer of a cache keeps anything beside keys, values and states, such as the keys of a sparse index."""
    kinds = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
    return type(layer) not in kinds and not keeps_states(layer)


def structural_fault(model: PreTrainedModel) -> str | None:
    """What keeps a model from being driven layer by layer, as far as its structure tells; None if nothing does."""
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        return f"{name} is an encoder-decoder model; drift understands decoder-only models."
    try:
        decoder = decoder_of(model)
    except UnsupportedModelError as error:
        return str(error)
    if not takes(decoder, cache_argument(decoder)):
        return f"{name} keeps no KV cache: no module around its layers takes past_key_values or cache_params."
    foreign = foreign_cache(decoder)
    if foreign is not None:
        return (
            f"{name} keeps what it carries in a class of its own ({foreign.__name__}), which has none of the layers of "
            "a cache of transformers: nothing of it could be cut, measured or handed on block by block."
        )
    for index, layer in enumerate(DynamicCache(config=text_config(model)).layers):
        if not (keeps_slots(layer) or keeps_states(layer) or isinstance(layer, DummyLayer)):
            return f"{name}: layer {index} keeps neither keys and values nor states ({type(layer).__name__})."
    if decoder is model:
        return f"{name} has no decoder apart from its language-model head."
    return None
