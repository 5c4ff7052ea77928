"""TransformerLens: a cache of activations (``run_with_cache``), saved as `.npz`, safetensors or `.pt`.

The hooks of versions 2 to 4 that are read have the same names. Keys are those after rotation; where the model adds its
positions to the embeddings (``hook_pos_embed``), keys are not rotated and ``hook_k`` is what the cache is given.
"""

from __future__ import annotations

import re

from drift._bounds import MOST_STEPS
from drift.reading.diagnose.importers.base import Found, Importer, Options, Piece, Source, bounded, numbered
from drift.reading.diagnose.stored import OF_HEADS, Place, Stored

__all__ = ["TRANSFORMERLENS"]

_HOOK = re.compile(
    r"(?:cache_dict\.)?(?:step\.(?P<step>\d+)\.)?"
    r"(?:blocks\.(?P<block>\d+)\.(?P<in>hook_resid_pre|hook_resid_post|attn\.hook_rot_k|attn\.hook_k|attn\.hook_v)"
    r"|(?P<end>ln_final\.hook_out|hook_unembed|unembed\.hook_out|logits)|(?P<added>hook_pos_embed))"
)
_KINDS = {
    "hook_resid_pre": "hidden", "hook_resid_post": "hidden", "attn.hook_rot_k": "key", "attn.hook_k": "key",
    "attn.hook_v": "value", "ln_final.hook_out": "final",
}  # fmt: skip
_LAST = ("hook_resid_pre", "attn.hook_k", "unembed.hook_out", "hook_unembed")  # what only takes a place that is left


def _knows(source: Source) -> bool:
    return any(
        (match := _HOOK.fullmatch(name)) is not None and match["block"] is not None
        for path in source.containers[:1]
        for name in source.held(path).tensors
    )


def _read(source: Source, options: Options) -> Found:
    found = Found(
        said="a cache of TransformerLens.",
        wanted="no tensor has the name of a hook that is read (blocks.0.hook_resid_post, ...)",
    )
    steps = numbered(source.containers, source.path) if source.containers else {}
    several = len(steps) > 1
    for path, number in steps.items():
        held = source.held(path)
        found.metadata.update(held.metadata)
        hooks: list[tuple[str, re.Match[str], Stored]] = []
        for name, stored in held.tensors.items():
            match = _HOOK.fullmatch(name)
            hook = "" if match is None else match["in"] or match["end"] or ""
            if match is None or not hook:
                found.ignored.append(name)
            else:
                hooks.append((hook, match, stored))
        rotated = not any(match is not None and match["added"] for match in map(_HOOK.fullmatch, held.tensors))
        taken: set[tuple[int, Place]] = set()
        for hook, match, stored in sorted(hooks, key=lambda one: _LAST.index(one[0]) if one[0] in _LAST else -1):
            step = number if several else bounded(path, stored.name, match["step"] or "0", MOST_STEPS)
            kind = _KINDS.get(hook, "logits")
            block = bounded(path, stored.name, match["block"] or "0") + (match["block"] is not None)
            place = Place(kind, block - (hook == "hook_resid_pre"))
            if (step, place) in taken or (hook == "attn.hook_k" and rotated):
                found.ignored.append(stored.name)
                continue
            taken.add((step, place))
            found.pieces.append(_piece(place, step, stored))
    return found


def _piece(place: Place, step: int, stored: Stored) -> Piece:
    """Keys and values are [sequence, token, head, feature]."""
    heads = stored.shape[-2] if place.kind in OF_HEADS and len(stored.shape) >= 3 else None
    return Piece(place, step, stored, heads)


TRANSFORMERLENS = Importer("transformerlens", "TransformerLens", _knows, _read)
