"""Scripts of bench/, for the tests that hold them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@contextmanager
def bench(name: str) -> Iterator[ModuleType]:
    """A script, found by its name and those of its neighbours, here and in processes that are sent something of it."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        try:
            yield import_module(name)
        finally:
            for new in set(sys.modules) - before:
                if Path(getattr(sys.modules[new], "__file__", None) or "/").parent == BENCH:
                    del sys.modules[new]
