"""The plan of a sweep: which cells there are, what they are called, what they will cost."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sweep_fixtures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sweep_fixtures import small

from drift import dataset
from drift.running.sweep.config import load_config
from drift.running.sweep.cost import correction, group_cost, show_bytes, show_seconds
from drift.running.sweep.planning import plan

tiny, here = sweep_fixtures.tiny, sweep_fixtures.here


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_order_in_a_file_does_not_change_what_a_cell_is(data: st.DataObject, tiny: Path) -> None:
    base = small(tiny, dtype=["bf16", "fp32"], tokens=[16, 24])
    whole = {c.file: c.hash for c in plan(load_config(base), tiny / "nowhere").cells}
    shuffled = {k: data.draw(st.permutations(v)) if isinstance(v, list) else v for k, v in base.items()}
    axis = data.draw(st.sampled_from(["dtype", "chunk_size", "protocol", "tokens"]))
    parts = [{axis: value} for value in data.draw(st.permutations(base[axis]))]
    overlap = data.draw(st.sampled_from([[], parts[:1]]))
    grids = {k: v for k, v in shuffled.items() if k != axis} | {"grids": [*parts, *overlap]}
    for config in (shuffled, grids):
        made = plan(load_config(config), tiny / "nowhere")
        assert {c.file: c.hash for c in made.cells} == whole
        assert len(made.cells) == len(whole)
        groups = made.groups()
        assert {len(g.cells) for g in groups} == {4}
        assert len(groups) == 4
        # What shares weights is computed in one go: the model is loaded once per dtype.
        assert len({g.cells[0].weights for g in groups}) == 2 == _runs([g.cells[0].weights for g in groups])


def _runs(values: list[Any]) -> int:
    return 1 + sum(a != b for a, b in pairwise(values))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"documents": 3}, {"tokens": 25}, {"dtype": "fp64"}, {"chunk_size": [5]},
        {"protocol": ["restart"]}, {"attn_implementation": "eager"}, {"logit_stride": 2}, {"corpus": "random"},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_changes_a_number_changes_the_cell(change: dict[str, Any], tiny: Path) -> None:
    before = {c.hash for c in plan(load_config(small(tiny)), tiny / "nowhere").cells}
    after = {c.hash for c in plan(load_config(small(tiny, **change)), tiny / "nowhere").cells}
    assert not before & after


def test_other_weights_and_another_text_are_other_cells(tiny: Path, here: Path) -> None:
    shutil.copytree(tiny / "tiny", here / "tiny")
    shutil.copy(tiny / "text.txt", here / "text.txt")
    config = load_config(small(here))
    before = {c.hash for c in plan(config, here / "out").cells}
    assert {c.hash for c in plan(config, here / "out").cells} == before
    weights = here / "tiny" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed = {c.hash for c in plan(config, here / "out").cells}
    assert not changed & before
    (here / "text.txt").write_text((here / "text.txt").read_text(encoding="utf-8") + "!", encoding="utf-8")
    assert not {c.hash for c in plan(config, here / "out").cells} & (changed | before)


def test_dtypes_under_torchs_names_are_the_same_cells(tiny: Path) -> None:
    ours, torchs = (
        plan(load_config(small(tiny, dtype=names))).cells for names in (["bf16", "fp32"], ["bfloat16", "float32"])
    )
    assert [cell.file for cell in torchs] == [cell.file for cell in ours]
    assert {cell.dtype for cell in torchs} == {"bf16", "fp32"}


def test_names_of_cells_are_safe_and_carry_the_hash(tiny: Path) -> None:
    made = plan(load_config(small(tiny, protocol="reprime(token=3)")), tiny / "nowhere")
    for cell in made.cells:
        assert cell.file == f"{cell.label}_fp32_reprime-token-3_c{cell.chunk_size}_{cell.hash[:16]}.nc"
        assert dataset.content_hash(cell.record) == cell.hash


class _Shape:
    intermediate_size = 1536
    layers, hidden_size, heads, kv_heads, head_dim, vocab_size, parameters, tied = (
        30,
        576,
        9,
        3,
        64,
        49152,
        134_515_008,
        True,
    )


def _cost(**changes: Any) -> Any:
    base: dict[str, Any] = {
        "dtype": "fp32",
        "device": "cpu",
        "half_matmul": "native",
        "documents": 1,
        "tokens": 1024,
        "folds": [64],
    }
    return group_cost(_Shape(), **(base | changes))


def test_estimates_grow_with_the_work() -> None:
    base = _cost()
    assert _cost(documents=2).seconds == pytest.approx(2 * base.seconds)
    assert _cost(tokens=2048).seconds > 2 * base.seconds
    assert _cost(folds=[64, 64]).seconds > base.seconds < _cost(folds=[8]).seconds
    assert _cost(dtype="fp64").memory_bytes > base.memory_bytes > _cost(device="cuda", dtype="bf16").memory_bytes
    assert base.memory_bytes > 4 * _Shape.parameters


def test_finished_groups_correct_the_estimate() -> None:
    timings = [
        {"device": "cpu", "dtype": "fp32", "estimated_s": 10, "elapsed_s": 30},
        {"device": "cpu", "dtype": "bf16", "estimated_s": 10, "elapsed_s": 50},
        {"device": "cpu", "dtype": "bf16", "estimated_s": 0, "elapsed_s": 50},
    ]
    assert correction([], device="cpu", dtype="fp32") == 1
    assert correction(timings, device="cpu", dtype="fp32") == 3
    assert correction(timings, device="cpu", dtype="fp64") == 4
    assert correction(timings, device="cuda", dtype="fp64") == 4


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (7.3, "7 s"), (37, "35 s"), (300, "5 min"), (7200, "2.0 h"), (90000, "25 h")]
)
def test_durations_are_rounded(seconds: float, words: str) -> None:
    assert show_seconds(seconds) == words


@pytest.mark.parametrize(("count", "words"), [(81_234, "80 kB"), (1.26e6, "1.3 MB"), (1.26e10, "13 GB"), (1, "10 kB")])
def test_sizes_are_rounded(count: float, words: str) -> None:
    assert show_bytes(count) == words


def test_merged_permissions_of_the_same_cell(tiny: Path) -> None:
    base = small(tiny, tokens=24)
    grids = [{"allow_beyond_context": False}, {"allow_beyond_context": True}]
    for order in (grids, grids[::-1]):
        made = plan(load_config(base | {"grids": order}), tiny / "nowhere")
        assert len(made.cells) == 4
        assert all(cell.beyond_context for cell in made.cells)
