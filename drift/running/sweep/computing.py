"""Compute groups in this process: load, cut texts, descend, write; what became of each is an outcome.

Torch is needed here. Who only plans or hands out gets here by :func:`drift.running.sweep.engines.engine.computer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from xarray import Dataset

from drift.running import corpus, tracing
from drift.running.descent.lanes import Limits
from drift.running.keeping import KeptDocuments
from drift.running.sweep.asking import Asking
from drift.running.sweep.cells import Cell
from drift.running.sweep.groups import Group
from drift.running.sweep.outcome import Failure, Outcome
from drift.running.sweep.planning import Plan
from drift.running.sweep.working import CannotWriteError, Weights, Work, free_memory, own_attributes

__all__ = ["Computer", "compute_group"]


def compute_group(
    todo: Plan, group: Group, *, fail_fast: bool, fraction: Callable[[float], None] = lambda done: None
) -> Outcome:
    """Compute one group in this process, and keep nothing of it in memory; see :meth:`Computer.compute`."""
    return Computer().compute(todo, group, fail_fast=fail_fast, fraction=fraction)


class Computer:
    """Computes one group after the other; weights stay in memory while the next group needs the same.

    Parameters
    ----------
    threads : int, optional
        Threads for torch; its own choice by default.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._weights = Weights()

    def compute(
        self,
        todo: Plan,
        group: Group,
        *,
        fail_fast: bool,
        fraction: Callable[[float], None] = lambda done: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> Outcome:
        """Compute one group and write its cells; the sweep's state is left to the caller.

        Parameters
        ----------
        todo : Plan
            The plan that the group belongs to.
        group : Group
            What to compute.
        fail_fast : bool
            Whether to stop at the first failure.
        fraction : callable
            Told how much of it is done, 0 to 1.
        say : callable
            Told in one line each what a person should know meanwhile.

        Returns
        -------
        Outcome
        """
        kind: type[Work] = Asking if group.cells[0].task else _Descent
        work = kind(todo, group, self._weights, fail_fast, fraction, say)
        try:
            work.outcome.computing = work.compute()
        except CannotWriteError as error:
            work.outcome.stopped = str(error)
        finally:
            free_memory(group.cells[0].device)
        return work.outcome


class _Descent(Work):
    """Folds of the same texts, measured in one descent."""

    _read = ""  # sha256 of all tokens, of documents that are not to be computed too

    def attempt(self) -> bool:
        """Measure; whether there were texts."""
        first, tokenizer = self.cells[0], self.weights.loaded.tokenizer
        try:
            tokens = corpus.documents(first.corpus, tokenizer, first.documents, first.tokens, first.seed)
            self._read = tracing.tokens_sha256(tokens)
            tokens = tokens[list(first.only)] if first.only else tokens
        except Exception as error:
            self.fail(self.cells, Failure.of(error, "corpus"))
            return False
        self._descend(self.with_their_tokens(tokenizer), tokens)
        return True

    def _descend(self, cells: Sequence[Cell], tokens: Any) -> None:
        """Compute cells in one descent, or, where that fails for reasons that may lie in one of them, one by one."""
        if not cells or self.outcome.stopped:
            return
        failure: Failure | None = None
        datasets: list[Dataset] = []
        kept = self._kept(cells, tokens)
        try:
            datasets = self._trace(cells, tokens, kept)
        except Exception as error:
            failure = Failure.of(error)
        if failure is None:
            for cell, ds in zip(cells, datasets, strict=True):
                self.keep(cell, ds)
        if kept:
            kept.forget()
        if failure is None:
            return
        free_memory(cells[0].device)
        if len(cells) == 1 or not failure.may_be_one_folds:
            self.fail(cells, failure)
            return
        self.say(f"    {failure.reason}; trying the {len(cells)} folds one at a time")
        for cell in cells:
            self._descend([cell], tokens)

    def _kept(self, cells: Sequence[Cell], tokens: Any) -> KeptDocuments | None:
        """Where the documents of these cells are kept until they are written; a single one is not worth it."""
        return self.kept([cell.record for cell in cells], tracing.tokens_sha256(tokens)) if len(tokens) > 1 else None

    def _trace(self, cells: Sequence[Cell], tokens: Any, kept: KeptDocuments | None) -> list[Dataset]:
        way, loaded, first = self.way, self.weights.loaded, cells[0]
        return tracing.trace_folds(
            loaded.model,
            tokens,
            [(cell.chunk_size, cell.protocol, cell.reference) for cell in cells],
            bos_token_id=loaded.tokenizer.bos_token_id,
            logit_stride=first.logit_stride,
            floor_draws=first.floor_draws,
            half_matmul=first.half_matmul,
            labels={"model": first.label, "family": first.family, "dtype": first.dtype},
            attrs={**self.shared_attributes(), "tokens_sha256": self._read},
            fold_attrs=[own_attributes(cell) for cell in cells],
            on_progress=self.progress,
            allow_beyond_context=any(cell.beyond_context for cell in cells),
            limits=Limits(float("inf") if way.keeps_calls else 0, way.logit_rows) if way else None,
            kept=kept,
        )
