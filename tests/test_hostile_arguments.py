"""What is given from Python is refused by the name of the argument, never by an error from the depths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic

import drift
from drift import dataset
from drift.errors import ArgumentError, ConfigError, DriftError, UnsupportedModelError
from drift.running.capturing import capture
from drift.running.checkpoints.loading import load

NAN = float("nan")
NO_NUMBERS: list[Any] = [2.5, "16", None, True, NAN, float("inf"), [16], -1, 0, 10**30, np.float64(16)]


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Any]) -> Any:
    return tiny("llama")


@pytest.fixture
def ids(token_ids: Callable[..., Any]) -> Any:
    return token_ids(1, 32)


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_a_chunk_size_that_is_none_is_refused(model: Any, ids: Any, value: Any) -> None:
    with pytest.raises(ArgumentError, match="chunk_size is "):
        drift.trace(model, ids, chunk_size=value)
    with pytest.raises(ArgumentError, match="chunk_size is "):
        drift.trace_folds(model, ids, [(value, "append")])
    if value != 0 or isinstance(value, bool):
        with pytest.raises(ArgumentError, match="chunk_size is "):
            capture(model, ids, value, "append", "nowhere")


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("name", ["logit_stride", "floor_draws"])
def test_a_count_that_is_none_is_refused(model: Any, ids: Any, name: str, value: Any) -> None:
    if (name, value) == ("floor_draws", 0) and not isinstance(value, bool):
        return
    with pytest.raises(ArgumentError, match=f"{name} is "):
        drift.trace(model, ids, 16, **{name: value})


@pytest.mark.parametrize("value", [2.5, "1", True, NAN, -1, 10**30])
def test_a_token_that_is_none_is_refused(model: Any, ids: Any, value: Any) -> None:
    with pytest.raises(ArgumentError, match="bos_token_id is "):
        drift.trace(model, ids, 16, "reprime", bos_token_id=value)


@pytest.mark.parametrize(
    "tokens",
    [[[1, 2], [3]], "text", None, 5, [[1.5, 2.0]], [[True, False]], [], [[[1]]], [["a"]], object(), [[10**30]]],
)
def test_tokens_that_are_none_are_refused(model: Any, tokens: Any) -> None:
    with pytest.raises(ConfigError, match="tokens "):
        drift.trace(model, tokens, 16)


@pytest.mark.parametrize(
    "folds", [None, 5, "append", {}, [], [5], ["ab"], [(16,)], [(16, "append", "full", 1)], [None], [(16, "append"), 3]]
)
def test_folds_that_are_none_are_refused(model: Any, ids: Any, folds: Any) -> None:
    with pytest.raises(ArgumentError, match=r"folds|No fold"):
        drift.trace_folds(model, ids, folds)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"protocol": None}, "protocol"),
        ({"protocol": 5}, "protocol"),
        ({"reference": None}, "reference is "),
        ({"reference": []}, "reference is "),
        ({"reference": "nothing"}, "nothing"),
        ({"labels": 5}, "labels is "),
        ({"labels": {"dtype": 5}}, "dtype"),
        ({"labels": {"dtype": []}}, "dtype"),
        ({"attrs": [1]}, "attrs is "),
        ({"allow_beyond_context": "yes"}, "allow_beyond_context is "),
        ({"on_progress": 5}, "on_progress is "),
        ({"limits": 5}, "limits is "),
        ({"half_matmul": []}, "half_matmul is "),
        ({"fold_attrs": 5}, "fold_attrs"),
        ({"fold_attrs": [5]}, "fold_attrs"),
    ],
)
def test_options_that_are_none_are_refused_by_name(model: Any, ids: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(DriftError, match=said):
        drift.trace(model, ids, 16, **options)


@pytest.mark.parametrize("value", [None, 5, "model", object()])
def test_what_is_no_model_is_refused(ids: Any, value: Any) -> None:
    with pytest.raises(UnsupportedModelError):
        drift.trace(value, ids, 16)


@pytest.mark.parametrize("name", ["name", "dtype", "device", "attn_implementation", "weights"])
@pytest.mark.parametrize("value", [None, 5, [], b"x"])
def test_a_model_is_asked_for_in_texts(name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"{name} is "):
        load(**{"name": "smollm2-135m-instruct", name: value})


@pytest.mark.parametrize("name", ["a\0b", "no/such/place", ""])
def test_a_name_of_any_kind_stands_for_nothing(name: str) -> None:
    with pytest.raises(DriftError):
        load(name)
    if name:  # an empty path is the folder that one is in
        with pytest.raises(DriftError):
            drift.open_sweep(name)
        with pytest.raises(DriftError):
            dataset.read(name)


@pytest.mark.parametrize("value", [None, 5, [], b"\0", object()])
def test_a_path_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(DriftError):
        drift.open_sweep(value)
    with pytest.raises(DriftError):
        dataset.read(value)


@pytest.mark.parametrize("value", [2.5, "6", None, True, NAN])
def test_thinning_takes_whole_numbers(value: Any) -> None:
    cell = synthetic.cell(model="tiny", layers=6, tokens=64, chunk_size=16)
    with pytest.raises(ArgumentError, match="layers is "):
        dataset.thin(cell, value)
    with pytest.raises(ArgumentError, match="bits is "):
        dataset.thin(cell, 6, value)


@pytest.mark.parametrize("axis", [{"model": object()}, {"chunk_size": "16"}, {"nothing": 1}, {"chunk_size": [[1]]}])
def test_selecting_what_is_not_there_is_refused(tmp_path: Path, axis: dict[str, Any]) -> None:
    dataset.write(synthetic.cell(model="tiny", layers=3, tokens=64, chunk_size=16), tmp_path / "a.nc")
    sweep = drift.open_sweep(tmp_path)
    with pytest.raises(DriftError):
        sweep.sel(**axis)
    with pytest.raises(DriftError):
        sweep.frame(5)  # type: ignore[arg-type]
    with pytest.raises(DriftError):
        sweep.frame("hidden_rel_l2", layer=[None])
