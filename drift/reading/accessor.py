"""``ds.drift`` and ``sweep.drift``: what the reading wing can do with a cell, where the cell is.

:mod:`drift` attaches both when it is imported; this module is loaded on first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from drift import _arguments as arguments
from drift.errors import ArgumentError
from drift.reading import floor
from drift.reading import ladder as reading_ladder
from drift.reading.controls.gating import NO_CONTROLS, gate
from drift.reading.excess import excess
from drift.reading.plateau import curves
from drift.reading.quantities import Of, quantity

if TYPE_CHECKING:
    from drift.dataset.sweep import Sweep
    from drift.reading.floor.model import Rounding
    from drift.reading.plateau.model import Plateau

__all__ = ["CellAccessor", "SweepAccessor"]


def measure_names(measure: str | Sequence[str]) -> list[str]:
    """Names of measures; one stands for itself.

    Raises
    ------
    ArgumentError
        If it is neither a name nor a sequence of names.
    """
    if isinstance(measure, str):
        return [measure]
    if not isinstance(measure, Sequence):
        raise ArgumentError(f"measure is a {type(measure).__name__}; it must be a name, or a list of names.")
    return [arguments.text("measure", name) for name in measure]


class CellAccessor:
    """The accessor ``ds.drift`` of a cell."""

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def excess(self, measure: str = "hidden_rel_l2", layer: int | str = "last") -> xr.DataArray:
        """Drift in units of its rounding floor, [document, step]: see :func:`drift.reading.excess.excess`."""
        return excess(self._ds, measure, layer)

    def plateau(
        self,
        measure: str | Sequence[str] = "hidden_rel_l2",
        layer: int | str = "last",
        of: str = Of.DRIFT.value,
        **options: Any,
    ) -> Plateau | pd.DataFrame:
        """Decide whether drift is a plateau.

        A cell by itself has no controls: the verdict takes for granted that the instrument reads right.
        ``sweep.drift.plateau()`` asks the controls of the sweep first.

        Parameters
        ----------
        measure : str or sequence of str
            Keys of :data:`drift.reading.amplitudes.DISTANCES`, or ``"all"``.
        layer : int, "last" or "all"
            For measures that have layers (or blocks).
        of : {"drift", "excess", "floor"}
            A value of :class:`drift.reading.quantities.Of`; accumulation takes two cells, and so is the sweep's.
        **options
            ``margin``, ``alpha``, ``floor``, ``rise_min``: see :func:`drift.reading.plateau.deciding.plateau`.

        Returns
        -------
        Plateau or pandas.DataFrame
            The verdict for one measure and layer; a table with one row per curve for several.

        Raises
        ------
        DatasetError
            If there is no such measure or layer, or the cell has not what was asked for.
        """
        measures = measure_names(measure)
        found = list(curves.from_cell(self._ds, measures, layer, quantity(of)))
        verdicts = curves.judge(found, NO_CONTROLS, **options)
        if isinstance(measure, str) and measure != "all" and layer != "all":
            return verdicts[0]
        return curves.plateau_frame(found, verdicts)

    def rounding(self, measure: str = "hidden_rel_l2", layer: int | str = "last", **options: Any) -> Rounding:
        """Decide, from this precision alone, whether drift is rounding: see :func:`drift.reading.floor.rounding`.

        As for :meth:`plateau`, a cell by itself has no controls.
        """
        return floor.rounding(self._ds, measure, layer, **options)


class SweepAccessor:
    """The accessor ``sweep.drift`` of a sweep."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def ladder(
        self, measure: str = "hidden_rel_l2", layer: int | str = "last", reference: str = "full"
    ) -> pd.DataFrame:
        """Judge how drift goes with the unit roundoff; arguments as for :func:`drift.reading.ladder.judging.ladders`.

        Where controls of the sweep failed, every ladder is undetermined.

        Returns
        -------
        pandas.DataFrame
            One row per fold (all its precisions) and per adjacent pair of precisions.
        """
        return reading_ladder.ladder_frame(reading_ladder.ladders(self._sweep, measure, layer, reference))

    def plateau(
        self,
        measure: str | Sequence[str] = "hidden_rel_l2",
        layer: int | str = "last",
        of: str = Of.DRIFT.value,
        **options: Any,
    ) -> pd.DataFrame:
        """Decide for every cell; arguments as for :meth:`CellAccessor.plateau`, and ``of="accumulation"``.

        Where controls of the sweep failed, every curve is undetermined.

        Returns
        -------
        pandas.DataFrame
            One row per curve: its name, the cell's scalar coordinates, measure, layer, and the fields of
            :class:`drift.reading.plateau.model.Plateau` as plain values. Cells of which there is no such curve have
            no verdict, but ``left_out`` (why) and ``remedy``.
        """
        measures, asked = measure_names(measure), quantity(of)
        found = list(curves.from_sweep(self._sweep, measures, layer, asked))
        without = curves.left_out(self._sweep, measures, layer, asked)
        return curves.plateau_frame(found, curves.judge(found, gate(self._sweep), **options), without)

    def rounding(self, measure: str = "hidden_rel_l2", layer: int | str = "last", **options: Any) -> pd.DataFrame:
        """Decide for every cell whether drift is rounding; arguments as for :meth:`CellAccessor.rounding`.

        Where controls of the sweep failed, every cell is undetermined.

        Returns
        -------
        pandas.DataFrame
            One row per cell: its name, scalar coordinates, measure, layer and the verdict
            (:meth:`drift.reading.floor.model.Rounding.as_dict`). Cells without a floor have none, but ``left_out``
            (why) and ``remedy``.
        """
        without = curves.left_out(self._sweep, [measure], layer, Of.EXCESS)
        return floor.rounding_frame(floor.from_sweep(self._sweep, measure, layer, **options), without)
