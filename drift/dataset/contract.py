"""The data contract: one cell of a sweep is one netCDF file, and this module is the only door to it.

The running wing calls :func:`build` and :func:`write`; the reading wing calls :func:`read` and
:func:`open_sweep`. A file that breaks the contract is refused on both sides, with a message that names the
file, the rule and the remedy. NumPy, pandas and xarray only: a sweep can be read where torch is not installed.

The table of variables grows, and cells that took hours stay readable. Each row of :data:`VARIABLES` says since which
schema version it is there; :data:`SCHEMA_VERSION` is the latest of them, and a cell carries the one that it was
written under. A cell must hold what its own version asks for (:func:`required`). So

- an older cell is whole without the rows that came later;
- a newer one is read for what is known here: variables of no row are kept as they are, written again and thinned with
  the cell, and not shown; :attr:`drift.dataset.sweep.Sweep.notes` says so. It is refused only where a row or an axis
  that is known here is broken, or where an axis that tells cells apart is not known here;
- the version is part of every planned cell's hash. What a plan asks for is then computed again under its new name, and
  the older file stays: readers and the resume agree on what is complete.

A sweep is a folder of cells, and ``sweep.json`` beside them. Of that file this module reads

``cells``
    a list of objects (or an object of objects); each names its file under ``file`` (or ``path``) and may carry
    ``state`` and ``reason``. Files of the folder that no object names belong to another plan and are left out.
``failures``
    a list of objects with at least ``reason``; where absent, the cells whose ``state`` is ``failed``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from drift._bounds import MOST_DIGITS

__all__ = [
    "CARRIES",
    "COORDINATES",
    "DTYPES",
    "FLOORS",
    "QUANTILES",
    "REFERENCES",
    "REQUIRED_ATTRS",
    "SCALARS",
    "SCHEMA_VERSION",
    "VARIABLES",
    "Coordinate",
    "Variable",
    "layer_kinds",
    "required",
    "schema_of",
]

#: Quantiles over a chunk's tokens, kept where a variable has the dimension ``quantile``.
QUANTILES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
#: What a fold can be compared with.
REFERENCES: dict[str, str] = {
    "full": "full attention at the same precision",
    "gold": "full attention in true float64",
    "fold64": "the same fold in true float64",
    "previous": "the fold's own previous chain step, token by token",
    "unperturbed": "the same fold without the perturbation (for the protocol perturbed)",
}
REQUIRED_ATTRS = (
    "Conventions",
    "title",
    "schema_version",
    "config_json",
    "config_sha256",
    "drift_version",
    "git_commit",
    "git_dirty",
    "versions_json",
    "device_name",
    "driver",
    "threads",
    "numerics_json",
    "checkpoint_sha256",
    "tokens_sha256",
    "seed",
    "created_at",
    "elapsed_s",
    "bos_token_id",
    "logit_stride",
)
# Divergences and cosine distances are differences of nearly equal sums: rounding can leave them this far below 0.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Variable:
    """One row of the table of variables.

    Attributes
    ----------
    dims : tuple of str
        Dimensions, in order.
    units : str
        ``"1"`` for pure numbers, else ``"nat"``, ``"byte"``, ``"s"``.
    long_name : str
        What a reader sees on an axis.
    dtype : str
        NumPy dtype, exactly.
    lower, upper : float or None
        Bounds that every value which is not NaN keeps.
    optional : bool
        Whether a cell may do without: what only some references or protocols have.
    distance : bool
        Whether it is 0 where the two passes agree and grows as they part: what is judged as a curve.
    since : int
        The schema version that asks for it first. A new row has a new one: it is optional in every older cell.
    volatile : bool
        Whether it differs from one run to the next: what was timed, or depends on what else the machine did.
    """

    dims: tuple[str, ...]
    units: str
    long_name: str
    dtype: str = "float64"
    lower: float | None = 0.0
    upper: float | None = None
    optional: bool = False
    distance: bool = True
    since: int = 1
    volatile: bool = False


_DLS = ("document", "layer", "step")
_DBS = ("document", "block", "step")
_DS = ("document", "step")
#: The contract's table: adding a measure is one row here and the function in ``drift/running/measures.py``.
VARIABLES: dict[str, Variable] = {
    "hidden_rel_l2": Variable(_DLS, "1", "relative L2 drift of the hidden state"),
    "hidden_cosine_distance": Variable(
        _DLS, "1", "cosine distance of the hidden state, mean over tokens", lower=-_ROUNDING, upper=2 + _ROUNDING
    ),
    "hidden_max_abs": Variable(_DLS, "1", "largest absolute difference of the hidden state"),
    "hidden_norm": Variable(_DLS, "1", "Frobenius norm of the reference hidden state", distance=False),
    "nonfinite_count": Variable(_DLS, "1", "elements of the hidden state that are NaN or Inf in either lane", "int64"),
    "hidden_rel_l2_token": Variable(
        (*_DLS, "quantile"), "1", "relative L2 drift of the hidden state, quantiles over tokens"
    ),
    "key_rel_l2": Variable(_DBS, "1", "relative L2 drift of the keys that the chunk appended"),
    "value_rel_l2": Variable(_DBS, "1", "relative L2 drift of the values that the chunk appended"),
    "logit_kl": Variable(_DS, "nat", "KL(full || fold) of the next-token distribution, mean", lower=-_ROUNDING),
    "logit_js": Variable(
        _DS,
        "nat",
        "Jensen-Shannon divergence of the next-token distribution, mean",
        lower=-_ROUNDING,
        upper=float(np.log(2)) + _ROUNDING,
    ),
    "logit_rel_l2": Variable(_DS, "1", "relative L2 drift of the logits"),
    "logit_max_abs": Variable(_DS, "1", "largest absolute difference of a logit"),
    "top1_agreement": Variable(
        _DS, "1", "share of tokens with the same most likely next token", upper=1.0, distance=False
    ),
    "delta_p_rms": Variable(_DS, "1", "RMS change in the probability of the correct token", upper=1.0 + _ROUNDING),
    "nll_full": Variable(
        _DS, "nat", "negative log-likelihood per token, full attention", lower=-_ROUNDING, distance=False
    ),
    "nll_fold": Variable(_DS, "nat", "negative log-likelihood per token, fold", lower=-_ROUNDING, distance=False),
    "logit_nonfinite_count": Variable(_DS, "1", "logits that are NaN or Inf in either lane", "int64"),
    "logit_count": Variable(_DS, "1", "tokens whose logits were compared", "int64"),
    "target_count": Variable(_DS, "1", "compared tokens that have a next token", "int64"),
    "cache_bytes": Variable(_DS, "byte", "carried KV cache after the step", "int64"),
    "logit_kl_token": Variable(
        (*_DS, "quantile"),
        "nat",
        "KL(full || fold) of the next-token distribution, quantiles over tokens",
        lower=-_ROUNDING,
    ),
    # Only of models with recurrences.
    "state_rel_l2": Variable(
        _DBS, "1", "relative L2 drift of the recurrent states after the step", optional=True, since=3
    ),
    # Only against the reference `gold`: the difference as a sum of three vectors, see drift.tracing.
    "hidden_rel_l2_structural": Variable(
        _DLS, "1", "relative L2 of the structural part: the fold against full attention, both in float64", optional=True
    ),
    "hidden_rel_l2_full_rounding": Variable(_DLS, "1", "relative L2 of the rounding of full attention", optional=True),
    "hidden_rel_l2_fold_rounding": Variable(_DLS, "1", "relative L2 of the rounding that folding adds", optional=True),
    "hidden_share_structural": Variable(
        _DLS, "1", "share of the squared error that is structural", lower=None, optional=True, distance=False
    ),
    "hidden_share_full_rounding": Variable(
        _DLS,
        "1",
        "share of the squared error that is rounding of full attention",
        lower=None,
        optional=True,
        distance=False,
    ),
    "hidden_share_fold_rounding": Variable(
        _DLS,
        "1",
        "share of the squared error that is rounding added by folding",
        lower=None,
        optional=True,
        distance=False,
    ),
    # Only for `decode`.
    "token_agreement": Variable(
        _DS,
        "1",
        "share of tokens that both lanes would have generated alike, given the same random numbers",
        upper=1.0,
        optional=True,
        distance=False,
    ),
}
#: Measures that cells also carry of full attention against itself, its embeddings disturbed by one unit roundoff (its
#: rounding floor), and the row of each: the measure's dimensions and ``draw``. Cells without floor draws have none, nor
#: have cells without the measure.
FLOORS: dict[str, str] = {
    name: f"{name}_floor"
    for name in (
        "hidden_rel_l2",
        "key_rel_l2",
        "value_rel_l2",
        "state_rel_l2",
        "logit_kl",
        "logit_rel_l2",
        "delta_p_rms",
    )
}
VARIABLES |= {
    floor: replace(
        VARIABLES[name],
        dims=(*VARIABLES[name].dims, "draw"),
        long_name=f"rounding floor of full attention: {VARIABLES[name].long_name}",
        optional=True,
        distance=False,
        since=max(2, VARIABLES[name].since),
    )
    for name, floor in FLOORS.items()
}
#: Latest schema version; a new row of the table raises it.
SCHEMA_VERSION = str(max(row.since for row in VARIABLES.values()))


def schema_of(attrs: Mapping[Any, Any]) -> int | None:
    """Schema version that a cell's attributes carry; None where they carry none, or what is no version."""
    said = str(attrs.get("schema_version", ""))
    known = said.isascii() and said.isdigit() and len(said) <= MOST_DIGITS
    return int(said) if known and int(said) else None


def required(schema: int) -> list[str]:
    """Names of the variables that a cell of a schema version must hold, as far as they are known here."""
    return [name for name, row in VARIABLES.items() if not row.optional and row.since <= schema]


@dataclass(frozen=True)
class Coordinate:
    """One row of the table of coordinates.

    Attributes
    ----------
    dims : tuple of str
    kind : str
        ``U`` text, ``i`` int64, ``f`` float64.
    units : str or None
    long_name : str
    optional : bool
    """

    dims: tuple[str, ...]
    kind: str
    units: str | None
    long_name: str
    optional: bool = False


COORDINATES: dict[str, Coordinate] = {
    "model": Coordinate((), "U", None, "checkpoint"),
    "family": Coordinate((), "U", None, "model family"),
    "dtype": Coordinate((), "U", None, "rung of the precision ladder"),
    "unit_roundoff": Coordinate((), "f", "1", "unit roundoff of the rung"),
    "chunk_size": Coordinate((), "i", "token", "tokens per chunk"),
    "protocol": Coordinate((), "U", None, "reading of the fold"),
    "reference": Coordinate((), "U", None, "what the fold is compared with"),
    "attn_implementation": Coordinate((), "U", None, "attention implementation"),
    "device": Coordinate((), "U", None, "device"),
    "document": Coordinate(("document",), "i", "1", "document"),
    "step": Coordinate(("step",), "i", "1", "chain step (chunk number)"),
    "token_start": Coordinate(("step",), "i", "token", "first token of the chunk"),
    "token_stop": Coordinate(("step",), "i", "token", "one past the last token of the chunk"),
    "layer": Coordinate(("layer",), "i", "1", "layer (0 = embeddings, last = after the final norm)"),
    "layer_kind": Coordinate(("layer",), "U", None, "what the layer is"),
    "block": Coordinate(("block",), "i", "1", "transformer block"),
    "carries": Coordinate(("block",), "U", None, "what the block carries from chunk to chunk", optional=True),
    "quantile": Coordinate(("quantile",), "f", "1", "quantile over the chunk's tokens"),
    "draw": Coordinate(("draw",), "i", "1", "seed of the draw of the rounding floor", optional=True),
}
#: What a block can carry, in the words of the coordinate ``carries``: whether it keeps keys and values, and states of
#: convolutions or recurrences. Cells of models all of whose blocks keep keys and values alone have no such coordinate.
CARRIES: dict[tuple[bool, bool], str] = {
    (True, False): "keys and values",
    (False, True): "states",
    (True, True): "keys, values and states",
    (False, False): "nothing",
}
#: Scalar coordinates: the axes by which the cells of a sweep are told apart.
SCALARS = tuple(name for name, c in COORDINATES.items() if not c.dims)
DTYPES = {"i": np.dtype("int64"), "f": np.dtype("float64")}


def layer_kinds(layers: int) -> list[str]:
    """Kinds of the layers 0 to `layers` - 1: the embeddings, the blocks, the final norm."""
    return ["embedding", *["block"] * max(layers - 2, 0), "final_norm"][:layers]
