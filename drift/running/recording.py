"""What the lanes hold, reduced to the numbers of the data contract, one document at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drift.dataset.contract import QUANTILES, VARIABLES
from drift.running import measures
from drift.running.descent.lanes import Recorder

__all__ = ["Comparison", "DocumentRecorder"]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Comparison:
    """Which lane is compared with which, and where its chain steps begin.

    Attributes
    ----------
    lane : int
        The fold.
    reference : int or None
        The lane that it is compared with; None compares it with itself one chain step earlier.
    starts : tuple of int
        First token of each chain step; tokens before the first are not measured.
    parts : tuple of int, optional
        The lanes (full attention, the same fold in float64) that the error is taken apart with.
    choose : callable, optional
        The tokens [row] that logits [row, vocabulary] of the text's tokens [row] generate.
    only : frozenset of str, optional
        The variables that are wanted; all of them by default.
    stops : tuple of int
        Tokens of the text after which recurrent states are compared, one of each chain step; none compares no states.
    """

    lane: int
    reference: int | None
    starts: tuple[int, ...]
    parts: tuple[int, int] | None = None
    choose: Callable[[Tensor, Tensor], Tensor] | None = None
    only: frozenset[str] | None = None
    stops: tuple[int, ...] = ()

    def wants(self, name: str) -> bool:
        """Whether a variable is wanted."""
        return self.only is None or name in self.only


class DocumentRecorder(Recorder):
    """Receives one document from the descent.

    Parameters
    ----------
    text : Tensor
        int64 [token].
    comparisons : sequence of Comparison
    stride : int
        Logits are compared at every ``stride``-th token.
    """

    def __init__(self, text: Tensor, comparisons: Sequence[Comparison], stride: int) -> None:
        self._text = text
        self._folds = [_Fold(c, np.arange(0, len(text), stride), len(text)) for c in comparisons]
        # The next token of each token, -1 after the last.
        self._targets = torch.cat([text[1:], text.new_full((1,), -1)])
        self._states: dict[int, tuple[Tensor, Tensor]] = {}
        self._logits: dict[int, tuple[Tensor, measures.LogitReference]] = {}
        self._recurrent: dict[tuple[int, int], list[Tensor]] = {}
        self._kept = frozenset(self.references)

    @property
    def references(self) -> list[int]:
        """The lanes that others are compared with: lane 0 first, and each after those that it is compared with."""
        needs: dict[int, set[int]] = {}
        for fold in self._folds:
            if fold.of.reference is not None:
                needs.setdefault(fold.of.lane, set()).update({fold.of.reference, *(fold.of.parts or ())})
        waiting = sorted(set().union(*needs.values()) - {0})
        order = [0]
        while waiting:
            ready = [lane for lane in waiting if needs.get(lane, set()) <= set(order)]
            order += ready
            waiting = [lane for lane in waiting if lane not in ready]
        return order

    def hidden(self, layer: int, kind: str, states: Sequence[Tensor]) -> None:
        """Compare the hidden states of every fold with its reference's."""
        for fold, compared in zip(self._folds, self._compare(states), strict=True):
            fold.layer(states, compared)

    def states(
        self, lane: int, block: int, tokens: int, convolved: Sequence[Tensor], recurrent: Sequence[Tensor]
    ) -> None:
        """Hold recurrent states until both lanes of a comparison have told theirs, and compare them then."""
        mine = [fold for fold in self._folds if tokens in fold.of.stops and lane in (fold.of.lane, fold.of.reference)]
        if not mine or not recurrent:
            return
        self._recurrent[lane, tokens] = [state.clone() for state in recurrent]
        for fold in mine:
            assert fold.of.reference is not None
            pair = [self._recurrent.get((each, tokens)) for each in (fold.of.reference, fold.of.lane)]
            if pair[0] is not None and pair[1] is not None:
                fold.states[fold.of.stops.index(tokens)] = measures.relative_l2(pair[0], pair[1])
                fold.recurs = True

    def cache(self, block: int, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Compare what every fold appended to its cache with what its reference did; NaN of a block that keeps none."""
        self._recurrent.clear()
        for fold in self._folds:
            fold.end_states()
        if not keys:
            for fold in self._folds:
                fold.blocks.append(fold.no_slots())
            return
        compared = [self._compare([x.transpose(0, 1).flatten(1) for x in lanes]) for lanes in (keys, values)]
        for fold, key, value in zip(self._folds, *compared, strict=True):
            fold.blocks.append(
                {
                    "key_rel_l2": key.per_step(measures.StateRows.rel_l2),
                    "value_rel_l2": value.per_step(measures.StateRows.rel_l2),
                }
            )

    def _compare(self, lanes: Sequence[Tensor]) -> list[_Compared]:
        """Compare each fold's states [token, feature] of all tokens with its reference's."""
        rows: dict[tuple[int, int], measures.StateRows] = {}
        for reference in {fold.of.reference for fold in self._folds if fold.of.reference is not None}:
            # A lane may be compared in several ways of cutting the text into steps.
            own = list(dict.fromkeys(fold.of.lane for fold in self._folds if fold.of.reference == reference))
            compared = measures.compare_states(lanes[reference], *(lanes[lane] for lane in own))
            rows |= {(lane, reference): one for lane, one in zip(own, compared, strict=True)}
        return [
            fold.with_previous(lanes[fold.of.lane])
            if fold.of.reference is None
            else fold.compared(rows[fold.of.lane, fold.of.reference])
            for fold in self._folds
        ]

    def cache_bytes(self, block: int, sizes: Sequence[Sequence[int]]) -> None:
        """Add up what each fold carries; a pass that covers several chain steps counts for all of them."""
        for fold in self._folds:
            own = np.asarray(sizes[fold.of.lane], dtype=np.int64)
            steps = len(fold.of.starts)
            fold.bytes += own[-steps:] if len(own) >= steps else own[-1]

    def final(self, lane: int, rows: Tensor, states: Tensor) -> None:
        """Keep a reference's stretch; compare the folds' pieces with it."""
        if lane in self._kept:
            self._states[lane] = rows, states
        mine = [fold for fold in self._folds if fold.of.lane == lane]
        compared = {
            reference: measures.compare_states(_within(self._states[reference], rows), states)
            for reference in {fold.of.reference for fold in mine if fold.of.reference is not None}
        }
        for fold in mine:
            if fold.of.reference is None:
                fold.final_states.append(states)
            else:
                fold.final += compared[fold.of.reference]
                fold.final_parts_piece(rows, states, self._states)

    def logits(self, lane: int, rows: Tensor, logits: Tensor) -> None:
        """Keep a reference's stretch; compare the folds' pieces with it."""
        if lane in self._kept:
            targets = self._targets[rows.to(self._targets.device)]
            self._logits[lane] = rows, measures.LogitReference(logits, targets)
        mine = [fold for fold in self._folds if fold.of.lane == lane and fold.of.reference is not None]
        for reference in {fold.of.reference for fold in mine}:
            assert reference is not None
            first, held = self._logits[reference]
            offset = int(torch.searchsorted(first, rows[0]))
            within = held.rows(offset, offset + len(rows))
            compared = measures.compare_logits(within, logits)
            for fold in mine:
                if fold.of.reference == reference:
                    fold.logit_piece(rows, logits, within, compared)

    def variables(self, comparison: int) -> Arrays:
        """The variables of the data contract for one of the comparisons, by its place, without the document axis."""
        return self._folds[comparison].variables()


def _within(held: tuple[Tensor, Tensor], rows: Tensor) -> Tensor:
    """The part of a lane's stretch that covers some rows."""
    offset = int(torch.searchsorted(held[0], rows[0]))
    return held[1][offset : offset + len(rows)]


@dataclass(frozen=True)
class _Compared:
    """A comparison of states, to be reduced to chain steps, of which the first ``missing`` cannot be compared."""

    rows: measures.StateRows
    starts: list[int]
    missing: int = 0

    def per_step(self, reduce: Callable[[measures.StateRows, list[int]], NDArray[Any]]) -> NDArray[Any]:
        """[step, ...]; NaN, or 0 where things are counted, for steps that cannot be compared."""
        if not self.missing:
            return reduce(self.rows, self.starts)
        later = reduce(self.rows, self.starts) if self.starts else None
        if later is None:  # nothing tells the shape of a reduction but a reduction
            one = measures.StateRows(
                **{f.name: np.zeros(1, dtype=getattr(self.rows, f.name).dtype) for f in fields(self.rows)}
            )
            later = reduce(one, [0])[:0]
        empty = np.nan if later.dtype.kind == "f" else 0
        return np.concatenate([np.full((self.missing, *later.shape[1:]), empty, dtype=later.dtype), later])

    def variables(self, wanted: Callable[[str], bool]) -> Arrays:
        """The wanted variables of a layer."""
        return {name: self.per_step(reduce) for name, reduce in _OF_LAYERS.items() if wanted(name)}


#: What is measured at every layer.
_OF_LAYERS: dict[str, Callable[[measures.StateRows, list[int]], NDArray[Any]]] = {
    "hidden_rel_l2": measures.StateRows.rel_l2,
    "hidden_cosine_distance": measures.StateRows.cosine_distance,
    "hidden_max_abs": measures.StateRows.step_max_abs,
    "hidden_norm": measures.StateRows.norm,
    "nonfinite_count": measures.StateRows.step_nonfinite,
    "hidden_rel_l2_token": lambda rows, starts: measures.step_quantiles(rows.rel_l2_token(), starts, QUANTILES),
}


class _Fold:
    """One comparison on its way down."""

    def __init__(self, comparison: Comparison, sampled: NDArray[np.int64], n_tokens: int) -> None:
        self.of = comparison
        self.layers: list[Arrays] = []
        self.blocks: list[Arrays] = []
        self.bytes = np.zeros(len(comparison.starts), dtype=np.int64)
        self.states = np.full(len(comparison.starts), np.nan)
        self.recurs = False
        self._of_states: list[NDArray[np.float64]] = []
        self._first = comparison.starts[0]
        self._starts = [start - self._first for start in comparison.starts]
        self._sampled = sampled
        self._n_tokens = n_tokens
        self.final: list[measures.StateRows] = []
        self.final_states: list[Tensor] = []
        self._final_parts: list[measures.PartRows] = []
        self._logits: list[measures.LogitRows] = []
        self._agreement: list[NDArray[np.float64]] = []

    # ------------------------------------------------------------ states

    def no_slots(self) -> Arrays:
        """What is measured of a block that keeps no keys and values."""
        nothing = np.full(len(self._starts), np.nan)
        return {"key_rel_l2": nothing, "value_rel_l2": nothing}

    def end_states(self) -> None:
        """Note the recurrent states of a block; NaN of one without."""
        self._of_states.append(self.states)
        self.states = np.full(len(self.of.starts), np.nan)

    def compared(self, rows: measures.StateRows) -> _Compared:
        """What is measured of a comparison of all tokens."""
        return _Compared(rows.rows(self._first), self._starts)

    def with_previous(self, own: Tensor) -> _Compared:
        """Compare with the tokens one chain step earlier, which the first step does not have."""
        size = self.of.starts[1] - self._first if len(self._starts) > 1 else len(own)
        (rows,) = measures.compare_states(own[self._first : len(own) - size], own[self._first + size :])
        return _Compared(rows, [start - size for start in self._starts[1:]], missing=1)

    def layer(self, states: Sequence[Tensor], compared: _Compared) -> None:
        """Note one layer."""
        out = compared.variables(self.of.wants)
        if self.of.parts is not None:
            assert self.of.reference is not None
            lanes = (self.of.reference, *self.of.parts, self.of.lane)
            out |= measures.compare_parts(*(states[lane][self._first :] for lane in lanes)).per_step(self._starts)
        self.layers.append(out)

    def final_parts_piece(self, rows: Tensor, states: Tensor, held: dict[int, tuple[Tensor, Tensor]]) -> None:
        """Take the error of a piece of the states after the final norm apart, where that is asked for."""
        if self.of.parts is not None:
            assert self.of.reference is not None
            reference = _within(held[self.of.reference], rows)
            full, fold64 = (_within(held[lane], rows) for lane in self.of.parts)
            self._final_parts.append(measures.compare_parts(reference, full, fold64, states))

    def _final_layer(self) -> Arrays:
        if self.of.reference is None:
            return self.with_previous(torch.cat(self.final_states)).variables(self.of.wants)
        out = self.compared(measures.StateRows.concatenate(self.final)).variables(self.of.wants)
        if self._final_parts:
            # Sums run from each start to the next, so what lies before the first is left out by itself.
            out |= measures.PartRows.concatenate(self._final_parts).per_step(self.of.starts)
        return out

    # ------------------------------------------------------------ logits

    def logit_piece(
        self, rows: Tensor, logits: Tensor, within: measures.LogitReference, compared: measures.LogitRows
    ) -> None:
        """Note a piece of the logits."""
        self._logits.append(compared)
        if self.of.choose is not None:
            same = self.of.choose(within.logits, rows) == self.of.choose(logits, rows)
            self._agreement.append(same.cpu().numpy().astype(np.float64))

    def variables(self) -> Arrays:
        """All variables, without the document axis."""
        layers = [*self.layers, self._final_layer()]
        out = {name: np.stack([layer[name] for layer in layers]) for name in layers[0]}
        out |= {name: np.stack([block[name] for block in self.blocks]) for name in self.blocks[0]}
        if self.of.wants("cache_bytes"):
            out["cache_bytes"] = self.bytes
        if self.recurs and self.of.wants("state_rel_l2"):
            out["state_rel_l2"] = np.stack(self._of_states)
        if self._logits:
            return out | self._logit_variables()
        return out | self._uncompared(out)  # against the previous step, whose next tokens are others

    def _uncompared(self, recorded: Arrays) -> Arrays:
        """What the table asks for beside layers and blocks, with no logits compared: NaN, or 0 of what is counted."""
        sizes = {"step": len(self._starts), "quantile": len(QUANTILES)}
        asked = {
            name: row
            for name, row in VARIABLES.items()
            if name not in recorded and not row.optional and not {"layer", "block"} & {*row.dims}
        }
        shapes = {name: [sizes[dim] for dim in row.dims if dim != "document"] for name, row in asked.items()}
        empty = {name: np.nan if row.dtype == "float64" else 0 for name, row in asked.items()}
        return {name: np.full(shapes[name], empty[name], dtype=row.dtype) for name, row in asked.items()}

    def _logit_variables(self) -> Arrays:
        n_steps = len(self._starts)
        before = int((self._sampled < self._first).sum())
        sampled = self._sampled[before:] - self._first
        rows = measures.LogitRows.concatenate(self._logits).rows(before)
        steps, starts = measures.sampled_steps(sampled, self._starts)

        def spread(values: NDArray[Any]) -> NDArray[Any]:
            """Put the sampled steps in their places; a step without a sampled token reads NaN."""
            out = np.full((n_steps, *values.shape[1:]), np.nan)
            out[steps] = values
            return out

        def count(per_row: NDArray[Any]) -> NDArray[np.int64]:
            out = np.zeros(n_steps, dtype=np.int64)
            out[steps] = np.add.reduceat(per_row, starts)
            return out

        has_target = sampled < self._n_tokens - 1 - self._first
        targets = count(has_target.astype(np.int64))

        def target_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
            """Mean over the rows that have a next token; NaN in such a row stays NaN."""
            total = spread(np.add.reduceat(np.where(has_target, values, 0.0), starts))
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.where(targets > 0, total / targets, np.nan)

        found: dict[str, Callable[[], NDArray[Any]]] = {
            "logit_kl": lambda: spread(measures.step_mean(rows.kl, starts)),
            "logit_js": lambda: spread(measures.step_mean(rows.js, starts)),
            "logit_rel_l2": lambda: spread(rows.rel_l2(starts)),
            "logit_max_abs": lambda: spread(np.maximum.reduceat(rows.max_abs, starts)),
            "top1_agreement": lambda: spread(measures.step_mean(rows.top1, starts)),
            "delta_p_rms": lambda: np.sqrt(target_mean(rows.delta_p**2)),
            "nll_full": lambda: target_mean(rows.nll_full),
            "nll_fold": lambda: target_mean(rows.nll_fold),
            "logit_nonfinite_count": lambda: count(rows.nonfinite),
            "logit_count": lambda: count(np.ones(len(sampled), dtype=np.int64)),
            "target_count": lambda: targets,
            "logit_kl_token": lambda: spread(measures.step_quantiles(rows.kl, starts, QUANTILES)),
        }
        if self._agreement:
            agreement = np.concatenate(self._agreement)[before:]
            found["token_agreement"] = lambda: spread(measures.step_mean(agreement, starts))
        return {name: reduce() for name, reduce in found.items() if self.of.wants(name)}
