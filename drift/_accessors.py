"""``ds.drift`` and ``sweep.drift``: there after ``import drift``, loaded when first used.

The room with the datasets does not know who reads them, and importing drift must not import xarray. So readers are
named here, and attached to :class:`xarray.Dataset` when xarray is imported: at once, or by whoever imports it later.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["attach", "cell_accessor", "sweep_accessor"]

_NAME = "drift"
_HOME = "drift.reading.accessor"


def cell_accessor(ds: Any) -> Any:
    """Return the reader of a cell (xarray.Dataset): :class:`drift.reading.accessor.CellAccessor`."""
    return import_module(_HOME).CellAccessor(ds)


def sweep_accessor(sweep: Any) -> Any:
    """Return the reader of a sweep: :class:`drift.reading.accessor.SweepAccessor`."""
    return import_module(_HOME).SweepAccessor(sweep)


def _register(xarray: ModuleType) -> None:
    if not hasattr(xarray.Dataset, _NAME):
        xarray.register_dataset_accessor(_NAME)(cell_accessor)


class _Registering(Loader):
    """Load xarray as its own loader does, then register."""

    def __init__(self, loader: Loader, finder: MetaPathFinder) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register(module)
        with suppress(ValueError):
            sys.meta_path.remove(self._finder)

    def __getattr__(self, name: str) -> Any:  # resources and sources of xarray are found by its own loader
        return getattr(self._loader, name)


class _UntilXarray(MetaPathFinder):
    """Wait until xarray is loaded; that somebody only asks whether it is there ends nothing."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "xarray":
            return None
        found = (other.find_spec(fullname, path, target) for other in list(sys.meta_path) if other is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader, self)
        return spec


def attach() -> None:
    """Attach ``ds.drift``: now where xarray is loaded, else as soon as it is."""
    if "xarray" in sys.modules:
        _register(sys.modules["xarray"])
    elif not any(isinstance(finder, _UntilXarray) for finder in sys.meta_path):
        sys.meta_path.insert(0, _UntilXarray())
