"""One group at work, whatever is computed of it: weights, cells that are written, cells that fail.

Torch is needed here.
"""

from __future__ import annotations

import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from xarray import Dataset

from drift import dataset
from drift.errors import ConfigError, DatasetError
from drift.running import protocols
from drift.running.checkpoints import loading
from drift.running.keeping import KeptDocuments
from drift.running.model.weights import UnfitForStreamingError, weights_of
from drift.running.provenance import provenance
from drift.running.sweep.cells import Cell
from drift.running.sweep.cost import show_bytes
from drift.running.sweep.groups import Group
from drift.running.sweep.memory import Footprint, give_back, resident_bytes
from drift.running.sweep.outcome import Failure, Outcome, is_refusal
from drift.running.sweep.planning import Plan

__all__ = ["CannotWriteError", "Weights", "Work", "free_memory", "own_attributes"]

# What a cell keeps of the record of its weights: nothing that differs from machine to machine.
_RECORDED = (
    "source", "family", "label", "original", "license", "weights", "published_dtype", "underflow_share",
    "weights_in_another_dtype",
)  # fmt: skip
_NEARLY = 0.7  # of a descent's predicted peak: a block adds more before anybody looks again


class CannotWriteError(Exception):
    """Nothing more can be written: no cell's fault."""


class Weights:
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
        free_memory(cell.device)
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
            free_memory(cell.device)
        return self._failure


class Work(ABC):
    """One group at work; see :meth:`drift.running.sweep.computing.Computer.compute` for what it is given.

    Attributes
    ----------
    outcome : Outcome
    folder : Folder
        Of the sweep.
    cells : tuple of Cell
    way : Footprint or None
        How it is run; None where the model's shape is not known.
    weights : Weights
    say : callable
        Told in one line each what a person should know meanwhile.
    """

    def __init__(
        self,
        todo: Plan,
        group: Group,
        weights: Weights,
        fail_fast: bool,
        fraction: Callable[[float], None],
        say: Callable[[str], None],
    ) -> None:
        self.outcome = Outcome()
        self.folder = todo.folder
        self._budget = todo.budget(group.cells[0].device)
        self.cells = group.cells
        way = group.way(self._budget)
        self.way: Footprint | None = way[0] if way else None
        self._fits = way is None or way[1]
        self.weights = weights
        self._fail_fast = fail_fast
        self._fraction = fraction
        self.say = say

    def compute(self) -> float:
        """Compute the cells; returns the seconds spent after loading, 0 where there was nothing to compute from."""
        failure = self.load()
        if failure is not None:
            self.fail(self.cells, failure)
            return 0.0
        began = time.monotonic()
        return time.monotonic() - began if self.attempt() else 0.0

    @abstractmethod
    def attempt(self) -> bool:
        """Compute the cells, the weights in memory; whether there were texts to compute them from."""

    def load(self) -> Failure | None:
        """Have the weights in memory, if what is to be done with them can fit."""
        first, way = self.cells[0], self.way
        if way is not None and not self._fits:
            return _too_large(way, self._budget or 0, first.device)
        return self.weights.have(first, way.weights if way else "resident", self.say)

    def with_their_tokens(self, tokenizer: Any) -> list[Cell]:
        """The cells whose reading finds the tokens it needs; one that lacks some must not take the others with it."""
        found = []
        for cell in self.cells:
            try:
                protocols.parse(cell.protocol).bind(lambda: tokenizer.bos_token_id)
                found.append(cell)
            except ConfigError as error:
                self.fail([cell], Failure.of(error))
        return found

    def kept(self, what: Sequence[object], tokens: str) -> KeptDocuments:
        """Where what was computed of documents is kept until it is written.

        Parameters
        ----------
        what : sequence of object
            JSON values: what is computed, beside weights, versions and machine.
        tokens : str
            sha256 of the texts.
        """
        made_with = provenance(weights_of(self.weights.loaded.model).device)
        identity = {
            "cells": list(what),
            "checkpoint": self.cells[0].checkpoint,
            "tokens": tokens,
            "weights": self.way.weights if self.way else "resident",
            **{name: made_with[name] for name in ("versions_json", "device_name", "driver", "threads")},
        }
        return KeptDocuments(self.folder.path, identity)

    def shared_attributes(self) -> dict[str, object]:
        """What all cells of the group say alike."""
        first, loaded = self.cells[0], self.weights.loaded
        return {
            "checkpoint_sha256": first.checkpoint,
            "checkpoint_json": {key: loaded.record[key] for key in _RECORDED if key in loaded.record},
            "corpus": first.corpus,
            "corpus_sha256": first.text,
            "seed": first.seed,
        }

    def progress(self, share: float) -> None:
        """Tell how much of the group is done, 0 to 1."""
        # Only where it matters: memory that is given back must be asked for again, page by page.
        if self.way and resident_bytes() > _NEARLY * self.way.bytes:
            give_back()
        self._fraction(share)

    def keep(self, cell: Cell, ds: Dataset) -> None:
        """Write a computed cell."""
        try:
            dataset.write(ds, self.folder.cell(cell.file))
        except DatasetError as error:
            if is_refusal(error):
                raise CannotWriteError(str(error)) from error
            self.fail([cell], Failure.of(error))
            return
        self.outcome.files.append(cell.file)
        self.outcome.checked[cell.file] = self.folder.fingerprint(cell.file)
        self.folder.forget_log(cell.file)

    def fail(self, cells: Sequence[Cell], failure: Failure) -> None:
        """Take note of why cells cannot be computed."""
        for cell in cells:
            self.outcome.failures[cell.file] = failure.recorded(cell, self.folder)
            if self._fail_fast and not self.outcome.stopped:
                self.outcome.stopped = f"--fail-fast, after {cell} failed"


def own_attributes(cell: Cell) -> dict[str, object]:
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


def free_memory(device: str) -> None:
    """Give memory back before more is taken."""
    gc.collect()
    give_back()
    if device == "cuda":
        with suppress(RuntimeError):  # a device that is lost must not keep its failure from being recorded
            torch.cuda.empty_cache()
