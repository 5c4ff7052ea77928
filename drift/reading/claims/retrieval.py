"""C5: what was folded is found again, as full attention finds it; what left a window is not; and across chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from drift.dataset.labels import parse_label
from drift.dataset.sweep import scalar
from drift.reading.cells import file_name
from drift.reading.claims.model import Finding, Setting, Status
from drift.reading.claims.testing import decide_status, margin_tests
from drift.reading.statistics.arrays import Float
from drift.reading.statistics.noise import Estimate
from drift.reading.statistics.proportions import (
    Pairs,
    Share,
    cluster_difference,
    difference_of_shares,
    effective_share,
    mcnemar,
    paired_pairs,
    tango,
    tango_p,
)
from drift.reading.tasks import HELD, LEFT, RETRIEVAL, WINDOWED, failed_controls, is_single, items
from drift.reading.wording.tasks import (
    beyond_the_model,
    change_words,
    control_words,
    difference_words,
    hits_words,
    lengths_words,
    none_left,
    share_words,
    step_words,
    trials_words,
)

__all__ = ["c5_across", "c5_difference", "c5_retrieval", "c5_streaming", "per_text", "shares"]

_EXACT, _LIKELY = "exact match", "log-likelihood of the answer"
_GROUP = ["model", "dtype", "chunk_size", "task"]
_HALF = 0.5


def per_text(part: pd.DataFrame, column: str) -> Float:
    """A column of some items as [text, question]; texts of several lengths one below the other."""
    rows = [own[column].to_numpy(dtype=float) for _, own in part.groupby(["tokens", "file", "document"], sort=False)]
    width = min(map(len, rows))
    return np.array([row[:width] for row in rows])


def shares(cells: Sequence[xr.Dataset], keys: Sequence[str], setting: Setting) -> pd.DataFrame:
    """Shares of exact answers with their intervals, by some columns of :func:`drift.reading.tasks.items`.

    Returns
    -------
    pandas.DataFrame
        The keys; ``exact`` of how many; ``share``, its interval; ``full attention``, its share of the same items.
    """
    frame, rows = items(cells), []
    for key, own in frame.groupby(list(keys), sort=True) if len(frame) else ():
        share = effective_share(per_text(own, "exact_fold"), setting.alpha)
        rows.append(
            {
                **dict(zip(keys, key, strict=True)),
                "exact": f"{int(own['exact_fold'].sum())} of {len(own)}",
                "share": share_words(share, setting.alpha),
                "full attention": f"{int(own['exact_full'].sum())} of {len(own)}",
            }
        )
    return pd.DataFrame(rows)


def _groups(cells: Sequence[xr.Dataset], wanted: Callable[[xr.Dataset], bool]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Items of the same model, precision, chunk size and task, over all lengths; with a name."""
    frame = items(ds for ds in cells if wanted(ds))
    if not len(frame):
        return
    for (model, dtype, size, task), part in frame.groupby(_GROUP, sort=True):
        yield f"{task}, {model} {dtype}, chunk {size}, {lengths_words(part['tokens'].tolist())}", part


def _is_retrieval(ds: xr.Dataset) -> bool:
    return parse_label(scalar(ds, "task"), "task").name == RETRIEVAL


def _finding(
    part: str, scope: str, found: pd.DataFrame, status: Status, effect: str, estimate: float,
    interval: tuple[float, float], margin: tuple[float, float], tests: tuple[float, float], words: str, **detail: Any,
) -> Finding:  # fmt: skip
    measure = _LIKELY if part == "across chunks" else _EXACT
    return Finding(
        "C5", part, str(found["protocol"].iloc[0]), measure, scope, status, effect, estimate, interval, margin, *tests,
        f"{words}.", "", tuple(sorted(set(found["file"]))),
        {"tokens": int(found["tokens"].max()), "published_size": bool(found["published_size"].any()), **detail},
    )  # fmt: skip


def _untested(part: str, scope: str, found: pd.DataFrame, effect: str, words: str) -> Finding:
    nan = (math.nan, math.nan)
    return _finding(part, scope, found, Status.NOT_TESTED, effect, math.nan, nan, nan, nan, words)


def _beyond(part: str, scope: str, found: pd.DataFrame, effect: str) -> Finding | None:
    """A finding that says that full attention fails more than half of the items, where it does."""
    hits, trials = int(found["exact_full"].sum()), len(found)
    if hits >= _HALF * trials:
        return None
    return _untested(part, scope, found, effect, beyond_the_model(hits, trials))


def _checked(cells: Sequence[xr.Dataset], found: Iterator[Finding]) -> Iterator[Finding]:
    """Findings, without a verdict where a control of the cells that they rest on failed."""
    failed = {
        file_name(one.cell): control_words(str(scalar(one.cell, "task")), one.without, one.unsteady)
        for one in failed_controls(cells)
    }
    for finding in found:
        said = [words for file, words in failed.items() if file in finding.cells]
        yield finding.without_verdict(said) if said else finding


def c5_retrieval(cells: Sequence[xr.Dataset], setting: Setting) -> Iterator[Finding]:
    """Yield, per model, precision and chunk size, how often the fold finds what is hidden."""
    return _checked(cells, _retrieval(cells, setting))


def _retrieval(cells: Sequence[xr.Dataset], setting: Setting) -> Iterator[Finding]:
    effect, bound = "share of exact answers", 1 - setting.retrieval
    for scope, part in _groups(cells, is_single):
        if (beyond := _beyond("retrieval", scope, part, effect)) is not None:
            yield beyond
            continue
        values = per_text(part, "exact_fold")
        share = effective_share(values, setting.alpha)
        tests = share.p_above(bound), share.p_below(bound)
        words = hits_words(int(values.sum()), trials_words(values.size, len(values)), share, setting.alpha)
        yield _finding(
            "retrieval", scope, part, decide_status(*tests, setting.alpha), effect, share.value,
            (share.low, share.high), (bound, 1.0), tests, words, trials=values.size, hits=int(values.sum()),
            deepest=int(part["distance"].max()),
        )  # fmt: skip


def _pairs(part: pd.DataFrame) -> tuple[Pairs, Pairs]:
    """Pairs as they are, and as they count: a text with several questions is one pair, whichever way it leans."""
    first, second = per_text(part, "exact_full"), per_text(part, "exact_fold")
    counted = paired_pairs(first, second)
    if first.shape[1] == 1:
        return counted, counted
    lean = (second - first).sum(1)
    return counted, Pairs(float((lean < 0).sum()), float((lean > 0).sum()), float(len(lean)))


def c5_difference(cells: Sequence[xr.Dataset], setting: Setting) -> Iterator[Finding]:
    """Yield whether the fold finds what full attention finds: equivalence of the shares, on the same items."""
    return _checked(cells, _difference(cells, setting))


def _difference(cells: Sequence[xr.Dataset], setting: Setting) -> Iterator[Finding]:
    effect, margin = "difference of the shares of exact answers", setting.retrieval
    for scope, part in _groups(cells, _is_retrieval):
        if (beyond := _beyond("as full attention", scope, part, effect)) is not None:
            yield beyond
            continue
        counted, pairs = _pairs(part)
        found = tango(pairs, setting.alpha)
        (below, _), (_, above) = tango_p(pairs, margin), tango_p(pairs, -margin)
        (_, over), (under, _) = tango_p(pairs, margin), tango_p(pairs, -margin)
        tests = max(below, above), min(1.0, 2 * min(over, under))
        p = mcnemar(pairs)
        words = difference_words(int(counted.first), int(counted.second), p, found, setting.alpha)
        same = int((part["first_difference"] < 0).sum())
        yield _finding(
            "as full attention", scope, part, decide_status(*tests, setting.alpha), effect, found.value, found.pair,
            (-margin, margin), tests, words, mcnemar=p, same_text=same, trials=len(part),
        )  # fmt: skip


def c5_streaming(cells: Sequence[xr.Dataset], setting: Setting) -> Iterator[Finding]:
    """Yield whether a fold with a window loses what has left it."""
    return _checked(cells, _streaming(cells, setting))


def _streaming(cells: Sequence[xr.Dataset], setting: Setting) -> Iterator[Finding]:
    effect, margin = "share of exact answers out of the window", setting.retrieval
    windowed = [ds for ds in cells if parse_label(scalar(ds, "protocol")).name == WINDOWED]
    for scope, part in _groups(windowed, is_single):
        if (beyond := _beyond("streaming", scope, part, effect)) is not None:
            yield beyond
            continue
        left, held = part[part["where"] == LEFT], part[part["where"] == HELD]
        if not len(left):
            yield _untested("streaming", scope, part, effect, none_left())
            continue
        out = _share(left, setting)
        inside = _share(held, setting) if len(held) else Share(0.0, 0.0, math.nan, math.nan)
        step = difference_of_shares(inside, out, setting.alpha)
        tests = out.p_below(margin), out.p_above(margin)
        yield _finding(
            "streaming", scope, part, decide_status(*tests, setting.alpha), effect, out.value, (out.low, out.high),
            (0.0, margin), tests, step_words(inside, out, step, setting.alpha),
            step=step.value, step_interval=step.pair,
        )  # fmt: skip


def _share(part: pd.DataFrame, setting: Setting) -> Share:
    return effective_share(per_text(part, "exact_fold"), setting.alpha)


def c5_across(cells: Sequence[xr.Dataset], setting: Setting) -> Iterator[Finding]:
    """Yield, per task whose answers rest on several facts, by how much the answer's log-likelihood changes."""
    return _checked(cells, _across(cells, setting))


def _across(cells: Sequence[xr.Dataset], setting: Setting) -> Iterator[Finding]:
    effect, margin = "change of the answer's log-likelihood (nats)", setting.likelihood
    for scope, part in _groups(cells, lambda ds: not _is_retrieval(ds)):
        if (beyond := _beyond("across chunks", scope, part, effect)) is not None:
            yield beyond
            continue
        full, fold = per_text(part, "log_likelihood_full"), per_text(part, "log_likelihood_fold")
        change = cluster_difference(full, fold, setting.alpha)
        if not change.df:
            words = change_words(change, len(full), setting.alpha)
            yield _untested("across chunks", scope, part, effect, words)
            continue
        estimate = Estimate(np.array([change.value]), [(np.array([change.standard_error]), np.array([change.df]))])
        tests = margin_tests(estimate, -margin, margin)
        yield _finding(
            "across chunks", scope, part, decide_status(*tests, setting.alpha), effect, change.value, change.pair,
            (-margin, margin), tests, change_words(change, len(full), setting.alpha),
        )  # fmt: skip
