"""Compute groups in this process: load, cut texts, descend, write; what became of each is an outcome.

Torch is needed here. Who only plans or hands out gets here by :func:`drift.running.sweep.engines.engine.computer`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from xarray import Dataset

from drift import dataset
from drift.errors import ConfigError, DatasetError
from drift.running import corpus, protocols, tracing
from drift.running.checkpoints import loading
from drift.running.descent.lanes import Limits
from drift.running.keeping import KeptDocuments
from drift.running.model.weights import UnfitForStreamingError, weights_of
from drift.running.provenance import provenance
from drift.running.sweep.cells import Cell
from drift.running.sweep.cost import show_bytes
from drift.running.sweep.groups import Group
from drift.running.sweep.memory import Footprint, give_back, resident_bytes
from drift.running.sweep.outcome import Failure, Outcome, is_refusal
from drift.running.sweep.planning import Plan

__all__ = ["Computer", "compute_group"]

# What a cell keeps of the record of its weights: nothing that differs from machine to machine.
_KEPT = (
    "source", "family", "label", "original", "license", "weights", "published_dtype", "underflow_share",
    "weights_in_another_dtype",
)  # fmt: skip
_NEARLY = 0.7  # of a descent's predicted peak: a block adds more before anybody looks again


class _CannotWrite(Exception):
    """Nothing more can be written: no cell's fault."""


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
        self._weights = _Weights()

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
        work = _Work(todo, group, self._weights, fail_fast, fraction, say)
        try:
            work.outcome.computing = work.compute()
        except _CannotWrite as error:
            work.outcome.stopped = str(error)
        finally:
            _free(group.cells[0].device)
        return work.outcome


class _Weights:
    """The weights that are in memory: those of one model at one precision."""

    def __init__(self) -> None:
        self.loaded: Any = None
        self._key: tuple[object, ...] = ()
        self._failure: Failure | None = None

    def have(self, cell: Cell, kept: str, say: Callable[[str], None]) -> Failure | None:
        """Have the weights of a cell where they are to be kept; the ones before are let go first."""
        key = (*cell.weights, kept)
        if key == self._key:
            return self._failure
        self.loaded, self._failure, self._key = None, None, key
        _free(cell.device)
        given = (cell.model, cell.dtype, cell.device, cell.attn_implementation)
        try:
            try:
                self.loaded = loading.load(*given, weights=kept)
            except UnfitForStreamingError as error:
                if cell.kept == "streamed":
                    raise
                say(f"    {error} Its weights are loaded whole.")
                self.loaded = loading.load(*given)
        except Exception as error:
            self._failure = Failure.of(error, "checkpoint")
            _free(cell.device)
        return self._failure


class _Work:
    """One group at work."""

    def __init__(
        self,
        todo: Plan,
        group: Group,
        weights: _Weights,
        fail_fast: bool,
        fraction: Callable[[float], None],
        say: Callable[[str], None],
    ) -> None:
        self.outcome = Outcome()
        self._folder = todo.folder
        self._budget = todo.budget(group.cells[0].device)
        self._cells = group.cells
        way = group.way(self._budget)
        self._way: Footprint | None = way[0] if way else None
        self._fits = way is None or way[1]
        self._weights = weights
        self._fail_fast = fail_fast
        self._fraction = fraction
        self._say = say
        self._read = ""  # sha256 of all tokens, of documents that are not to be computed too

    def compute(self) -> float:
        """Compute the cells; returns the seconds spent after loading."""
        failure = self._load()
        if failure is not None:
            self._fail(self._cells, failure)
            return 0.0
        began = time.monotonic()
        first, tokenizer = self._cells[0], self._weights.loaded.tokenizer
        try:
            tokens = corpus.documents(first.corpus, tokenizer, first.documents, first.tokens, first.seed)
            self._read = tracing.tokens_sha256(tokens)
            tokens = tokens[list(first.only)] if first.only else tokens
        except Exception as error:
            self._fail(self._cells, Failure.of(error, "corpus"))
            return 0.0
        self._descend(self._with_their_tokens(tokenizer), tokens)
        return time.monotonic() - began

    def _load(self) -> Failure | None:
        """Have the weights in memory, if what is to be done with them can fit."""
        first, way = self._cells[0], self._way
        if way is not None and not self._fits:
            return _too_large(way, self._budget or 0, first.device)
        return self._weights.have(first, way.weights if way else "resident", self._say)

    def _with_their_tokens(self, tokenizer: Any) -> list[Cell]:
        """The cells whose reading finds the tokens it needs; one that lacks some must not take the others with it."""
        found = []
        for cell in self._cells:
            try:
                protocols.parse(cell.protocol).bind(lambda: tokenizer.bos_token_id)
                found.append(cell)
            except ConfigError as error:
                self._fail([cell], Failure.of(error))
        return found

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
                self._keep(cell, ds)
        if kept:
            kept.forget()
        if failure is None:
            return
        _free(cells[0].device)
        if len(cells) == 1 or not failure.may_be_one_folds:
            self._fail(cells, failure)
            return
        self._say(f"    {failure.reason}; trying the {len(cells)} folds one at a time")
        for cell in cells:
            self._descend([cell], tokens)

    def _kept(self, cells: Sequence[Cell], tokens: Any) -> KeptDocuments | None:
        """Where the documents of these cells are kept until they are written; a single one is not worth it."""
        if len(tokens) < 2:
            return None
        made_with = provenance(weights_of(self._weights.loaded.model).device)
        identity = {
            "cells": [cell.record for cell in cells],
            "checkpoint": cells[0].checkpoint,
            "tokens": tracing.tokens_sha256(tokens),
            "weights": self._way.weights if self._way else "resident",
            **{name: made_with[name] for name in ("versions_json", "device_name", "driver", "threads")},
        }
        return KeptDocuments(self._folder.path, identity)

    def _trace(self, cells: Sequence[Cell], tokens: Any, kept: KeptDocuments | None) -> list[Dataset]:
        way, loaded, first = self._way, self._weights.loaded, cells[0]
        return tracing.trace_folds(
            loaded.model,
            tokens,
            [(cell.chunk_size, cell.protocol, cell.reference) for cell in cells],
            bos_token_id=loaded.tokenizer.bos_token_id,
            logit_stride=first.logit_stride,
            floor_draws=first.floor_draws,
            half_matmul=first.half_matmul,
            labels={"model": first.label, "family": first.family, "dtype": first.dtype},
            attrs={
                "checkpoint_sha256": first.checkpoint,
                "checkpoint_json": {key: loaded.record[key] for key in _KEPT if key in loaded.record},
                "corpus": first.corpus,
                "corpus_sha256": first.text,
                "tokens_sha256": self._read,
                "seed": first.seed,
            },
            fold_attrs=[_own(cell) for cell in cells],
            on_progress=self._progress,
            allow_beyond_context=any(cell.beyond_context for cell in cells),
            limits=Limits(float("inf") if way.keeps_calls else 0, way.logit_rows) if way else None,
            kept=kept,
        )

    def _progress(self, share: float) -> None:
        # Only where it matters: memory that is given back must be asked for again, page by page.
        if self._way and resident_bytes() > _NEARLY * self._way.bytes:
            give_back()
        self._fraction(share)

    def _keep(self, cell: Cell, ds: Dataset) -> None:
        """Write a computed cell."""
        try:
            dataset.write(ds, self._folder.cell(cell.file))
        except DatasetError as error:
            if is_refusal(error):
                raise _CannotWrite(str(error)) from error
            self._fail([cell], Failure.of(error))
            return
        self.outcome.files.append(cell.file)
        self.outcome.checked[cell.file] = self._folder.fingerprint(cell.file)
        self._folder.forget_log(cell.file)

    def _fail(self, cells: Sequence[Cell], failure: Failure) -> None:
        for cell in cells:
            self.outcome.failures[cell.file] = failure.recorded(cell, self._folder)
            if self._fail_fast and not self.outcome.stopped:
                self.outcome.stopped = f"--fail-fast, after {cell} failed"


def _own(cell: Cell) -> dict[str, object]:
    """What a cell says of itself; the sha256 of its configuration is the cell's hash."""
    control = {"control": cell.control} if cell.control else {}
    return {"title": f"Drift of the folded pass: {cell}", "config_json": cell.record, **control}


def _too_large(way: Footprint, budget: float, device: str) -> Failure:
    """Why a descent is not begun."""
    where = "device" if device == "cuda" else "machine"
    return Failure(
        "memory",
        f"needs about {show_bytes(way.bytes)} of memory even with {way.weights} weights, and {show_bytes(budget)} are "
        f"allowed or free; use fewer tokens or folds, a narrower dtype, or a {where} with more, and say "
        f"--memory {way.bytes / 1e9 * 1.05:.1f}GB if it has that much",
        "refused before anything was computed: " + ", ".join(f"{k} {show_bytes(v)}" for k, v in way.parts.items()),
    )


def _free(device: str) -> None:
    """Give memory back before more is taken."""
    gc.collect()
    give_back()
    if device == "cuda":
        with suppress(RuntimeError):  # a device that is lost must not keep its failure from being recorded
            torch.cuda.empty_cache()
