"""A text folded into a cache, as an engine would do it, and what is then made of it: questions, answers, branches.

The descent takes many lanes down one block at a time, to compare them; here one lane is run by whole forward passes,
chunk after chunk, to be used. Protocols and what they do to a cache are the same objects and the same code, so keys and
values come out bit for bit as in the descent.

``caches``
    caches whose branches share what they have in common.
``meters``
    how much memory was taken at most.
``folded``
    :func:`~drift.running.folding.folded.fold`, and the cache, position and record that it leaves.
``prompts``
    text, question and chat template as tokens.
``generating``
    :func:`~drift.running.folding.generating.generate`: the answer, token by token.
``sizing``
    what weights and cache take, before either is there.
"""
