"""Lanes that go down the network together, one layer at a time.

A lane is one way of running one text through the model: full attention, or a fold. All lanes descend together, so one
pass over the layers serves every fold, and only one layer's hidden states and one layer's cache are ever held.

This is the only folder that touches the layer and cache interfaces of transformers. It re-implements no architecture:
the model's own ``forward`` is run with its layers tapped, which yields the arguments (masks, rotary tables, positions)
of every layer; the real layers are then called with them. The hidden states, keys, values and logits are bitwise those
of a plain ``model(chunk, past_key_values=cache)`` loop over the same chunks.

``lanes``
    what descends, within which limits, and who is told of it.
``decoders``
    where a model's blocks are, and what was found out of how they are called.
``taps``
    the model's own forward with its layers tapped: how each block is called.
``caches``
    the KV caches that lanes fill.
``carrying``
    what a protocol does to a block's cache after a chain step.
``blocks``
    one lane through one block.
``head``
    the final norm and the logits, in pieces.
``descending``
    all of them together: :func:`~drift.running.descent.descending.descend`.
``trials``
    a short text through a model's own forward, whole and in chunks.
``guard``
    which models and readings are taken on: none that its own forward does not bear out.
"""
