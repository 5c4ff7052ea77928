"""What protocol labels say, and which cells are measurements of a fold.

A sweep may hold cells of several kinds: folds compared with full attention at the same precision, the same folds
compared with something else (float64, their own previous step), folds that were disturbed on purpose, and full
attention run again. Pages and claims about drift mean the first kind; :func:`folds` selects it, and :func:`left_out`
says what it left out, so that nothing disappears in silence.
"""

from __future__ import annotations

from collections.abc import Callable

import xarray as xr

from drift.dataset.labels import parse_label
from drift.dataset.sweep import Sweep, scalar
from drift.errors import DatasetError

__all__ = ["DISTURBED", "ONE_STEP", "REFERENCES", "folds", "is_fold", "keep", "left_out"]

#: The protocol that computes every chunk on full attention's own keys and values: its drift is made in one step.
ONE_STEP = "one_step"
#: Protocols that test the instrument, disturb a fold on purpose or take its chain away; they show no drift of a fold.
DISTURBED = ("full", ONE_STEP, "perturbed", "random_walk", "shifted")
#: Protocols whose chain is one of generated tokens, not of chunks of a text.
GENERATING = ("decode",)
#: What folds are compared with, in words.
REFERENCES = {
    "full": "full attention at the same precision",
    "gold": "full attention in float64",
    "fold64": "the same fold in float64",
    "previous": "the fold's own previous step",
    "unperturbed": "the same fold without the perturbation",
}


def keep(sweep: Sweep, wanted: Callable[[xr.Dataset], bool]) -> Sweep:
    """Keep the cells for which `wanted` holds; unlike :meth:`Sweep.sel`, none at all is no error."""
    return sweep.derive(ds for ds in sweep if wanted(ds))


def is_fold(ds: xr.Dataset, reference: str = "full", generating: bool = False) -> bool:
    """Whether a cell measures an undisturbed fold against `reference`; chains of generated tokens only if asked for."""
    name = parse_label(scalar(ds, "protocol")).name
    kinds = name not in DISTURBED and (generating or name not in GENERATING)
    return bool(scalar(ds, "reference") == reference and kinds)


def folds(sweep: Sweep, reference: str = "full", generating: bool = False) -> Sweep:
    """Keep the cells that measure an undisturbed fold against `reference`.

    Parameters
    ----------
    sweep : Sweep
    reference : str
        What the folds are compared with.
    generating : bool
        Whether to keep chains of generated tokens (``decode``), too.

    Raises
    ------
    DatasetError
        If a sweep that has cells has no such cell.
    """
    found = keep(sweep, lambda ds: is_fold(ds, reference, generating))
    if len(sweep) and not len(found):
        there = sorted({f"{ds['protocol'].item()} against {ds['reference'].item()}" for ds in sweep})
        raise DatasetError(
            f"no cell compares a fold with {REFERENCES.get(reference, reference)} (reference {reference!r}); there "
            f"are: {', '.join(there[:8])}{', ...' * (len(there) > 8)}"
        )
    return found


def left_out(sweep: Sweep, kept: Sweep) -> str:
    """Say which cells of a sweep are not among those kept, and what they are; empty where there are none."""
    mine = {id(ds) for ds in kept}
    counts: dict[str, int] = {}
    for ds in sweep:
        if id(ds) not in mine:
            name, reference = parse_label(ds["protocol"].item()).name, ds["reference"].item()
            what = f"{name} against {REFERENCES.get(reference, reference)}" if reference != "full" else name
            counts[what] = counts.get(what, 0) + 1
    if not counts:
        return ""
    total = sum(counts.values())
    said = ", ".join(f"{n} of {what}" for what, n in sorted(counts.items()))
    return (
        f"Only folds compared with full attention at the same precision are meant here; {total} other "
        f"cell{'s' * (total != 1)} of the sweep {'are' if total != 1 else 'is'} not shown ({said})."
    )
