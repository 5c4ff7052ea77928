"""Task cells as tables: an item per question and fold, and what every text cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from drift.dataset.attributes import attribute
from drift.dataset.labels import parse_label
from drift.dataset.sweep import Sweep, scalar
from drift.dataset.task_contract import NONE
from drift.reading.cells import file_name

__all__ = [
    "EDGE",
    "HELD",
    "LEFT",
    "RETRIEVAL",
    "WINDOWED",
    "Failed",
    "asked",
    "controls_table",
    "costs",
    "failed_controls",
    "is_single",
    "items",
    "predicting",
    "retrieval",
    "select_tasks",
]

#: Whether the facts of an answer lie in the window of a fold that has one when the question is answered.
HELD, LEFT, EDGE = "held", "left", "edge"
#: The task of the published trials.
RETRIEVAL = "needle"
#: The reading of the fold that has such a window.
WINDOWED = "streaming"
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


def items(cells: Iterable[xr.Dataset]) -> pd.DataFrame:
    """One row per question and fold.

    Parameters
    ----------
    cells : iterable of xarray.Dataset
        Task cells.

    Returns
    -------
    pandas.DataFrame
        Axes of the cell; ``document``, ``question``; ``exact_full`` and ``exact_fold`` and the like of both lanes;
        ``change`` of the answer's log-likelihood (nats); ``answer_kl``; ``distance`` in chunks of the farthest fact;
        ``depth``, where it begins as a share of the text; ``where``, see :data:`HELD`; ``file``.
    """
    frames = []
    for ds in cells:
        shape = ds["exact_full"].shape
        document, question = np.indices(shape)
        start = np.where(ds["fact_start"].values == NONE, np.inf, ds["fact_start"].values).min(-1)
        columns = {
            **{name: scalar(ds, name) for name in _AXES},
            "document": document.ravel(),
            "question": question.ravel(),
            **{f"{n}_{lane}": ds[f"{n}_{lane}"].values.ravel() for n in _PER_LANE for lane in ("full", "fold")},
            **{name: ds[name].values.ravel() for name in _PER_ITEM},
            "distance": ds["fact_distance"].values.max(-1).ravel(),
            "depth": (start / ds["text_tokens"].values[:, None]).ravel(),
            "where": _where(ds).ravel(),
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
        ``fold_bytes`` and ``full_bytes``, the largest cache that was carried; ``first_seconds`` and ``last_seconds`` of
        a step, medians of the first and of the last quarter of them.
    """
    rows = []
    for ds in cells:
        axes = {name: scalar(ds, name) for name in _AXES}
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


def predicting(frame: pd.DataFrame) -> tuple[float, int]:
    """Rank correlation (Spearman) of the KL divergence with the size of the answer's change, and of how many items."""
    known = frame[np.isfinite(frame["answer_kl"]) & np.isfinite(frame["change"])]
    if len(known) < 3:
        return math.nan, len(known)
    kl, change = known["answer_kl"].rank(), known["change"].abs().rank()
    spread = float(kl.std() * change.std())
    return (float(kl.cov(change)) / spread if spread else math.nan), len(known)


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
