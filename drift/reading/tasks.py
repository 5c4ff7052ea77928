"""Task cells as tables: an item per question and fold, and what every text cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from drift import _published as largest
from drift.dataset.attributes import attribute
from drift.dataset.labels import parse_label
from drift.dataset.sweep import Sweep, scalar
from drift.dataset.task_contract import NONE
from drift.reading.cells import file_name

__all__ = [
    "EDGE",
    "HELD",
    "LEFT",
    "PREDICTORS",
    "RETRIEVAL",
    "WINDOWED",
    "Failed",
    "Predicting",
    "asked",
    "controls_table",
    "costs",
    "costs_table",
    "failed_controls",
    "is_floor",
    "is_folded",
    "is_published_size",
    "is_single",
    "items",
    "predicting",
    "reckoned",
    "retrieval",
    "select_tasks",
]

#: Whether the facts of an answer lie in the window of a fold that has one when the question is answered.
HELD, LEFT, EDGE = "held", "left", "edge"
#: The task of the published trials.
RETRIEVAL = "needle"
#: The reading of the fold that has such a window.
WINDOWED = "streaming"
#: What may tell where a fold fails, by its column in :func:`items`.
PREDICTORS = ("excess", "answer_kl")
_NEARLY = 0.99  # of the published size: a question needs room, too
_FULL = "full"
_AXES = ("model", "dtype", "chunk_size", "protocol", "task", "tokens", "device")
_PER_LANE = ("exact", "score", "log_likelihood", "other_log_likelihood")
_PER_ITEM = ("answer_kl", "answer_logit_rel_l2", "without_exact", "first_difference")


def _window(ds: xr.Dataset) -> int | None:
    """Tokens that a fold with a window holds; None where it has none, or does not say."""
    label = parse_label(scalar(ds, "protocol"))
    said = attribute(ds.attrs, "protocol_json").get("options")
    options = {**label.options, **(said if isinstance(said, dict) else {})}
    try:
        return int(options["window"]) if label.name == WINDOWED else None
    except (KeyError, TypeError, ValueError):
        return None


def _where(ds: xr.Dataset) -> np.ndarray:
    """Whether all facts of an answer lie in the window, none does, or what else: [document, question]."""
    shape, window = ds["exact_full"].shape, _window(ds)
    if window is None:
        return np.full(shape, HELD, dtype=object)
    start, stop = ds["fact_start"].values, ds["fact_stop"].values
    there = start != NONE
    text = ds["text_tokens"].values[:, None, None]
    asked = ds["question_tokens"].values[..., None]
    held = (text + asked - start <= window) | ~there
    left = (text - stop >= window) | ~there
    return np.where(held.all(-1), HELD, np.where(left.all(-1), LEFT, EDGE)).astype(object)


def is_folded(ds: xr.Dataset) -> bool:
    """Whether a task cell asks a fold, and not full attention once more."""
    return parse_label(scalar(ds, "protocol")).name != _FULL


def is_floor(ds: xr.Dataset) -> bool:
    """Whether it asks full attention whose embeddings are disturbed by one unit roundoff: a rounding floor."""
    label = parse_label(scalar(ds, "protocol"))
    return label.name == _FULL and "noise" in label.options and label.number("noise") == 1


def _texts(ds: xr.Dataset) -> tuple[object, ...]:
    """What two cells share that ask the same questions of the same texts, whatever folds them."""
    axes = ("model", "dtype", "task", "tokens", "device", "attn_implementation")
    return (*(scalar(ds, name) for name in axes), str(ds.attrs.get("tokens_sha256", "")), *ds["exact_full"].shape)


def _floors(cells: Sequence[xr.Dataset]) -> dict[tuple[object, ...], np.ndarray]:
    """Relative L2 drift of the logits between full attention and its floors: geometric mean, [document, question]."""
    drawn: dict[tuple[object, ...], list[np.ndarray]] = {}
    for ds in cells:
        if is_floor(ds):
            drawn.setdefault(_texts(ds), []).append(ds["answer_logit_rel_l2"].values)
    with np.errstate(divide="ignore"):
        return {texts: np.exp(np.log(np.array(values)).mean(axis=0)) for texts, values in drawn.items()}


def _excess(ds: xr.Dataset, floor: np.ndarray | None) -> np.ndarray:
    """Drift of the logits at the question over its floor, [document, question]; NaN where there is none."""
    drift = ds["answer_logit_rel_l2"].values
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.full(drift.shape, np.nan) if floor is None else np.where(np.isinf(floor), np.nan, drift / floor)


def items(cells: Iterable[xr.Dataset]) -> pd.DataFrame:
    """One row per question and fold; full attention once more is no fold, but the floor of the others.

    Parameters
    ----------
    cells : iterable of xarray.Dataset
        Task cells.

    Returns
    -------
    pandas.DataFrame
        Axes of the cell; ``document``, ``question``; ``exact_full`` and ``exact_fold`` and the like of both lanes;
        ``change`` of the answer's log-likelihood (nats); ``answer_kl``; ``excess``, drift of the logits at the question
        over its rounding floor, NaN where none was asked; ``distance`` in chunks of the farthest fact;
        ``depth``, where it begins as a share of the text; ``where``, see :data:`HELD`; ``published_size``, see
        :func:`is_published_size`; ``file``.
    """
    cells, frames = list(cells), []
    floors = _floors(cells)
    for ds in filter(is_folded, cells):
        shape = ds["exact_full"].shape
        document, question = np.indices(shape)
        start = np.where(ds["fact_start"].values == NONE, np.inf, ds["fact_start"].values).min(-1)
        columns = {
            **{name: scalar(ds, name) for name in _AXES},
            "document": document.ravel(),
            "question": question.ravel(),
            **{f"{n}_{lane}": ds[f"{n}_{lane}"].values.ravel() for n in _PER_LANE for lane in ("full", "fold")},
            **{name: ds[name].values.ravel() for name in _PER_ITEM},
            "excess": _excess(ds, floors.get(_texts(ds))).ravel(),
            "distance": ds["fact_distance"].values.max(-1).ravel(),
            "depth": (start / ds["text_tokens"].values[:, None]).ravel(),
            "where": _where(ds).ravel(),
            "published_size": is_published_size(ds),
            "file": file_name(ds),
        }
        frames.append(pd.DataFrame(columns))
    if not frames:
        return pd.DataFrame(columns=[*_AXES, "document", "question"])
    table = pd.concat(frames, ignore_index=True)
    table["change"] = table["log_likelihood_fold"] - table["log_likelihood_full"]
    return table


def costs(cells: Iterable[xr.Dataset]) -> pd.DataFrame:
    """One row per text and fold: what folding it took, and full attention.

    Returns
    -------
    pandas.DataFrame
        Axes of the cell; ``document``; ``steps``; ``text_tokens``; ``fold_seconds`` of all steps, ``full_seconds``;
        ``fold_bytes`` and ``full_bytes``, the largest cache that was carried; ``fold_peak`` and ``full_peak``, most
        memory (bytes), and ``reckoned_peak``, that by the sweep, NaN where it does not say; ``first_seconds`` and
        ``last_seconds`` of a step, medians of the first and of the last quarter of them.
    """
    rows = []
    for ds in filter(is_folded, cells):
        axes = {name: scalar(ds, name) for name in _AXES}
        taken = float(reckoned(ds).get("own", {}).get("memory_bytes", math.nan))
        for document in range(ds.sizes["document"]):
            seconds = ds["fold_seconds"].values[document]
            seconds = seconds[np.isfinite(seconds)]
            # The last chunk holds what is left: it is shorter.
            whole = seconds[:-1] if len(seconds) > 1 else seconds
            quarter = max(len(whole) // 4, 1)
            rows.append(
                {
                    **axes,
                    "document": document,
                    "steps": len(seconds),
                    "text_tokens": int(ds["text_tokens"].values[document]),
                    "fold_seconds": float(seconds.sum()),
                    "full_seconds": float(ds["full_seconds"].values[document]),
                    "fold_bytes": int(ds["fold_carried_bytes"].values[document].max()),
                    "full_bytes": int(ds["full_carried_bytes"].values[document]),
                    "fold_peak": int(ds["fold_peak_bytes"].values[document].max()),
                    "full_peak": int(ds["full_peak_bytes"].values[document]),
                    "reckoned_peak": taken,
                    "first_seconds": float(np.median(whole[:quarter])),
                    "last_seconds": float(np.median(whole[-quarter:])),
                    "file": file_name(ds),
                }
            )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Failed:
    """A control of a task that did not come out as it must.

    Attributes
    ----------
    cell : xarray.Dataset
    without : int
        Questions that full attention answered without the facts.
    unsteady : bool
        Whether full attention, asked twice, gave other bits.
    """

    cell: xr.Dataset
    without: int
    unsteady: bool


def failed_controls(cells: Iterable[xr.Dataset]) -> Iterator[Failed]:
    """Yield the cells whose controls did not come out as they must."""
    for ds in cells:
        without, again = int(ds["without_exact"].values.sum()), ds["again_same"].values
        if without or (again == 0).any():
            yield Failed(ds, without, bool((again == 0).any()))


def is_single(ds: xr.Dataset) -> bool:
    """Whether one value under one key is hidden and asked for, as in the published trials."""
    label = parse_label(scalar(ds, "task"), "task")
    return label.name == RETRIEVAL and not {"keys", "values", "queries"} & label.options.keys()


def retrieval(cells: Iterable[xr.Dataset]) -> list[xr.Dataset]:
    """The cells that hide a single value, and ask for it."""
    return [ds for ds in cells if is_single(ds)]


@dataclass(frozen=True)
class Predicting:
    """How far something that is known at the question tells what becomes of the answer.

    Attributes
    ----------
    by : str
        One of :data:`PREDICTORS`.
    correlation : float
        Of ranks (Spearman), with the size of the change of the answer's log-likelihood; NaN of fewer than three items.
    count : int
        Items of which both are known.
    larger : float
        Of all pairs of an answer that the fold loses and one that it keeps, among those that full attention gives: in
        which share the lost one has the larger value, ties by half. NaN where there is no such pair.
    lost, kept : int
        How many there are of each.
    """

    by: str
    correlation: float
    count: int
    larger: float
    lost: int
    kept: int


def predicting(frame: pd.DataFrame, by: str = "answer_kl") -> Predicting:
    """Say how far a column of :func:`items` tells what becomes of the answers."""
    known = frame[np.isfinite(frame[by]) & np.isfinite(frame["change"])]
    given = known[known["exact_full"] == 1]
    lost, kept = (given.loc[given["exact_fold"] == exact, by].to_numpy(dtype=float) for exact in (0, 1))
    pairs = np.subtract.outer(lost, kept)
    larger = float(((pairs > 0) + 0.5 * (pairs == 0)).mean()) if pairs.size else math.nan
    return Predicting(by, _rank_correlation(known[by], known["change"].abs()), len(known), larger, len(lost), len(kept))


def _rank_correlation(a: pd.Series, b: pd.Series) -> float:
    if len(a) < 3:
        return math.nan
    a, b = a.rank(), b.rank()
    spread = float(a.std() * b.std())
    return float(a.cov(b)) / spread if spread else math.nan


def reckoned(ds: xr.Dataset) -> dict[str, dict[str, Any]]:
    """What the sweep reckoned that a cell takes (``own``), and the published size; empty where it did not.

    Raises
    ------
    DatasetError
        If the attribute is not what it should be.
    """
    return {name: value for name, value in attribute(ds.attrs, "reckoned_json").items() if isinstance(value, dict)}


def is_published_size(ds: xr.Dataset) -> bool:
    """Whether a cell is of a text and a model that are as large as published."""
    shape = reckoned(ds).get("own", {}).get("shape") or {}
    parameters = int(shape.get("parameters", 0))
    return int(scalar(ds, "tokens")) >= _NEARLY * largest.TOKENS and parameters >= _NEARLY * largest.PARAMETERS


def costs_table(cells: Sequence[xr.Dataset]) -> pd.DataFrame:
    """What texts took: a row per model, reading, chunk size and length; means over texts, and the most of all steps."""
    frame, rows = costs(cells), []
    keys = ["model", "dtype", "protocol", "chunk_size", "tokens", "device"]
    for key, own in frame.groupby(keys, sort=True) if len(frame) else ():
        rows.append(
            {
                **dict(zip(keys, key, strict=True)),
                "texts": len(own),
                "chain steps": int(own["steps"].max()),
                "seconds, fold": own["fold_seconds"].mean(),
                "seconds, full attention": own["full_seconds"].mean(),
                "first steps, s": own["first_seconds"].mean(),
                "last steps, s": own["last_seconds"].mean(),
                "carried, GB": own["fold_bytes"].max() / 1e9,
                "peak, fold, GB": own["fold_peak"].max() / 1e9,
                "peak, full attention, GB": own["full_peak"].max() / 1e9,
                "peak, reckoned by drift's sweep, GB": own["reckoned_peak"].max() / 1e9,
            }
        )
    return pd.DataFrame(rows)


def select_tasks(sweep: Sweep, models: Sequence[str] | str | None = None) -> list[xr.Dataset]:
    """The task cells of a sweep, of some models (a list, or text with commas); ``None`` keeps all."""
    if models is None:
        return list(sweep.tasks)
    wanted = [name.strip() for name in models.split(",")] if isinstance(models, str) else list(models)
    return [ds for ds in sweep.tasks if scalar(ds, "model") in wanted]


def controls_table(cells: Iterable[xr.Dataset]) -> pd.DataFrame:
    """What the controls of each task came to: a row per model, precision, task and length."""
    rows: dict[tuple[str, ...], dict[str, object]] = {}
    for ds in cells:
        again = ds["again_same"].values
        key = tuple(str(scalar(ds, name)) for name in ("model", "dtype", "task", "tokens"))
        rows[key] = {
            "model": key[0],
            "dtype": key[1],
            "task": key[2],
            "tokens": key[3],
            "answered without the facts": f"{int(ds['without_exact'].values.sum())} of {ds['without_exact'].size}",
            "full attention twice the same": "yes" if (again[again != NONE] == 1).all() else "no",
        }
    return pd.DataFrame(list(rows.values()))


def asked(cells: Iterable[xr.Dataset]) -> pd.DataFrame:
    """Every task cell: its axes, and how many texts and questions it has."""
    rows = [
        {**{name: scalar(ds, name) for name in _AXES}, "texts": ds.sizes["document"], "questions": ds.sizes["question"]}
        for ds in cells
    ]
    return pd.DataFrame(rows)
