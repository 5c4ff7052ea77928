"""What a fold does to the next token, beside other ways to compute full attention, for people who serve a model."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import xarray as xr

from drift.dataset.sweep import Sweep
from drift.reading.cells import deepest
from drift.reading.controls.floor import floor_cells
from drift.reading.floor.model import Rounding, Standing
from drift.reading.summary.levels import late_mean
from drift.reading.wording.numbers import number

__all__ = ["Advice", "advice", "advice_words", "practice"]


class Advice(Enum):
    """What the literal fold is to somebody who serves a model."""

    AS_ANOTHER_KERNEL = "as another kernel"
    MORE_THAN_ROUNDING = "more than rounding"
    OPEN = "open"


def advice(found: Sequence[Rounding]) -> Advice:
    """Decide from where the chains of the literal fold stand to their floors."""
    standings = {one.verdict for one in found}
    if standings and standings <= {Standing.AT_FLOOR, Standing.BELOW}:
        return Advice.AS_ANOTHER_KERNEL
    return Advice.MORE_THAN_ROUNDING if standings & {Standing.ABOVE, Standing.GROWING} else Advice.OPEN


_ADVICE = {
    Advice.AS_ANOTHER_KERNEL: "`append`, which is what chunked prefill does, is as far from full attention as full "
    "attention is from itself when it rounds otherwise, as another kernel or batch size makes it: there is nothing to "
    "mend, and no two such runs agree to the token. The other readings change the model.",
    Advice.MORE_THAN_ROUNDING: "`append`, which is what chunked prefill does, is further from full attention than "
    "rounding explains in some chain: look for the cause before serving it (`python -m drift.diagnose`).",
    Advice.OPEN: "Whether `append`, which is what chunked prefill does, is more than rounding is not decided here for "
    "every chain: compare in fp32, where a bug stays as large as it is and rounding does not.",
}


def advice_words(found: Advice) -> str:
    """Say it in a sentence or two."""
    return _ADVICE[found]


def practice(sweep: Sweep, folds: Sweep, protocol: str = "append") -> list[str]:
    """Say, per model at the coarsest precision, what a fold does to the next token, and what other kernels do.

    Parameters
    ----------
    sweep : Sweep
        With its controls: full attention by another kernel or in another batch.
    folds : Sweep
    protocol : str
        Of the fold; of every model the longest chain is taken.
    """
    coarse = max((ds["unit_roundoff"].item() for ds in folds), default=0.0)
    chains = [ds for ds in folds if ds["protocol"].item() == protocol and ds["unit_roundoff"].item() == coarse]
    said = []
    for ds in deepest(folds.derive(chains)):
        line = f"{ds['model'].item()}, {ds['dtype'].item()}, chunks of {ds['chunk_size'].item()}: {_token_words(ds)}"
        others = [f"{_other_words(other)} {_token_words(other)}" for other in _other_kernels(sweep, ds)]
        said.append("; ".join([line, *others]) + ".")
    return said


def _other_kernels(sweep: Sweep, ds: xr.Dataset) -> list[xr.Dataset]:
    """Cells in which full attention of the same model and precision was computed another way."""
    found: dict[str, xr.Dataset] = {}
    for other in floor_cells(sweep):
        if all(other[axis].item() == ds[axis].item() for axis in ("model", "dtype", "device")):
            found.setdefault(str(other["protocol"].item()), other)
    return list(found.values())


def _other_words(ds: xr.Dataset) -> str:
    """Name a cell of full attention computed another way."""
    return f"for comparison `{ds['protocol'].item()}` over {int(ds['token_stop'].values[-1])} tokens:"


def _token_words(ds: xr.Dataset) -> str:
    changed = 1 - late_mean(ds, "top1_agreement")
    nll = late_mean(ds, "nll_fold") - late_mean(ds, "nll_full")
    return (
        f"{number(100 * changed)} % of the most likely next tokens are others, NLL changes by "
        f"{number(nll) if nll >= 0 else '−' + number(-nll)} nat per token"
    )
