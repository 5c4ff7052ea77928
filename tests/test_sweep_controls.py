"""Controls: every sweep computes them once per model, precision, device and attention, and they read as they must."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import half_attention
from rounding import apart, gamma
from sweep_tools import text_file, tiny_checkpoint, write_config

import drift
from drift import dataset
from drift.errors import ConfigError
from drift.running import corpus
from drift.running.sweep.config import load_config
from drift.running.sweep.control_cells import SIZES, controls
from drift.running.sweep.planning import plan
from drift.running.sweep.running import run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("controls")
    tiny_checkpoint(folder / "tiny")
    text_file(folder / "text.txt")
    return folder


def config(home: Path, path: Path, **changes: Any) -> Path:
    axes = {
        "name": "controlled",
        "model": str(home / "tiny"),
        "corpus": str(home / "text.txt"),
        "tokens": 96,
        "chunk_size": 16,
        "device": "cpu",
        "controls": True,
    }
    return write_config(path, **(axes | changes))


@pytest.mark.parametrize(
    ("setting", "failing"),
    [
        ({}, None),
        ({"half_matmul": "float32"}, set()),
        ({"attn_implementation": "eager"}, {"full(attention=sdpa)"}),
    ],
    ids=["as it is", "in float32", "eager"],
)
def test_where_torch_refuses_its_16_bit_attention_a_failure_says_what_to_do(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: dict[str, Any], failing: set[str] | None
) -> None:
    """The refusal is played, for few processors have what it takes; what the advice is worth is tried."""
    real = torch.nn.functional.scaled_dot_product_attention

    def refusing(query: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if torch.overrides.has_torch_function((query,)):
            return torch.overrides.handle_torch_function(refusing, (query,), query, *args, **options)
        if query.dtype is torch.bfloat16:
            raise RuntimeError("pack_vnni2 is only supported when avx512 is supported")
        return real(query, *args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refusing)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    made = load_config(config(home, tmp_path / "made.yaml", dtype="bf16", **({"half_matmul": "native"} | setting)))
    summary = run(made, tmp_path / "out")
    failed = {failure["config"]["protocol"] for failure in summary.failures}
    assert failed == ({cell.protocol for cell in plan(made, tmp_path / "out").cells} if failing is None else failing)
    for failure in summary.failures:
        assert failure["kind"] == "processor"
        assert "under ATEN_CPU_CAPABILITY=default" in failure["reason"]
        advice = ("unset ATEN_CPU_CAPABILITY", "--set half_matmul=float32", "--set attn_implementation=eager")
        assert all(words in failure["reason"] for words in advice)


@pytest.fixture(scope="module")
def sweep(home: Path) -> dataset.Sweep:
    half_attention("bfloat16", heads=4, tokens=96, features=8)
    made = config(home, home / "made.yaml", dtype=["bf16", "fp32", "fp64"], reference=["full", "gold"], documents=2)
    assert run(load_config(made), home / "out").exit == 0
    return dataset.open_sweep(home / "out")


@pytest.mark.numerical
def test_controls_are_kept_apart_from_what_was_asked_for(sweep: dataset.Sweep) -> None:
    assert {(c.dtype.item(), c.reference.item()) for c in sweep} == {
        (dtype, reference) for dtype in ("bf16", "fp32", "fp64") for reference in ("full", "gold")
    }
    for dtype, fires in (("bf16", 3), ("fp32", 7), ("fp64", 8)):
        kinds = [c.attrs["control"] for c in sweep.controls if c.dtype.item() == dtype]
        assert sorted(kinds) == ["fires"] * fires + ["floor"] * 2 + ["quiet"]
    assert all("hidden_share_structural" in c for c in sweep.sel(reference="gold"))
    assert not any("hidden_share_structural" in c for c in sweep.sel(reference="full"))


def alone(home: Path, control: xr.Dataset, folds: list[tuple[str, str]]) -> list[xr.Dataset]:
    """Folds (protocol, reference) of the text of a control, without a sweep: the first document alone."""
    model, tokenizer = drift.load_model(str(home / "tiny"), dtype=control.dtype.item())
    text = corpus.documents(str(home / "text.txt"), tokenizer, 1, int(control.token_stop[-1]))
    cells = drift.trace_folds(
        model,
        text,
        [(int(control.chunk_size), *fold) for fold in folds],
        half_matmul=json.loads(control.attrs["numerics_json"])["half_matmul"],
    )
    assert {cell.attrs["tokens_sha256"] for cell in cells} == {control.attrs["tokens_sha256"]}
    return [cell.isel(document=0, layer=-1) for cell in cells]


@pytest.mark.numerical
def test_what_must_not_fire_reads_exactly_zero_and_what_must_fire_does(home: Path, sweep: dataset.Sweep) -> None:
    for cell in sweep.controls:
        found = cell.hidden_rel_l2.isel(document=0, layer=-1).values
        protocol = str(cell.protocol.item())
        if cell.attrs["control"] == "quiet":
            for name in ("hidden_rel_l2", "key_rel_l2", "value_rel_l2", "logit_max_abs"):
                assert not cell[name].values.any(), name
        elif "perturbed" in protocol:
            assert not found[:3].any(), protocol
            assert (found[3:] > 0).all(), protocol
        elif "shifted" in protocol:
            # How much rounding there is before the step, kernels decide: as much as without the bug, to the bit. From
            # the step on there is what the bug does in float64, and the roundings of two lanes.
            append, gold, wide = alone(home, cell, [("append", "full"), (protocol, "gold"), (protocol, "fold64")])
            np.testing.assert_array_equal(found[:4], append.hidden_rel_l2[:4])
            late = slice(4, None)
            bug = gold.hidden_rel_l2_structural[late].values
            bound = apart(bug, gold.hidden_rel_l2_full_rounding[late].values, wide.hidden_rel_l2[late].values)
            assert (bound < bug / 2).all(), "rounding hides the bug"
            assert (abs(found[4:] - bug) <= bound).all()
            assert (found[4:] > append.hidden_rel_l2[late]).all()


def test_every_precision_gets_the_sizes_that_it_can_hold() -> None:
    assert SIZES[-1] / SIZES[0] == pytest.approx(1e6)
    assert [b / a for a, b in pairwise(SIZES)] == pytest.approx([10] * (len(SIZES) - 1))
    for roundoff, sizes in ((2.0**-8, [1e-2, 1e-1]), (2.0**-11, [1e-3, 1e-2, 1e-1]), (2.0**-53, list(SIZES))):
        labels = [c.protocol for c in controls(roundoff, "sdpa") if c.protocol.startswith("perturbed")]
        assert labels == [f"perturbed(append,step=2,size={size!r})" for size in sizes]
    assert next(c.protocol for c in controls(1e-3, "eager") if c.kind == "floor") == "full(attention=sdpa)"


def test_controls_are_the_same_cells_for_all_that_share_a_model(home: Path, tmp_path: Path) -> None:
    one = plan(load_config(config(home, tmp_path / "one.yaml", dtype="fp32")), tmp_path / "a")
    many = plan(
        load_config(
            config(home, tmp_path / "many.yaml", dtype="fp32", chunk_size=[8, 16], protocol=["append", "restart"])
        ),
        tmp_path / "b",
    )
    kept = [{cell.file for cell in made.cells if cell.control} for made in (one, many)]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 10
    off = plan(load_config(config(home, tmp_path / "off.yaml", controls=False)), tmp_path / "c")
    assert not any(cell.control for cell in off.cells)


def test_a_reference_is_part_of_name_and_hash_but_the_common_one_is_not(home: Path, tmp_path: Path) -> None:
    made = plan(
        load_config(config(home, tmp_path / "r.yaml", reference=["full", "gold"], dtype="fp32")), tmp_path / "r"
    )
    full, gold = (next(c for c in made.cells if c.reference == name and not c.control) for name in ("full", "gold"))
    assert full.hash != gold.hash
    assert "_gold_" in gold.file
    assert "reference" not in full.record
    assert full.descent == gold.descent


def test_a_wrong_reference_is_said_before_anything_is_computed(home: Path, tmp_path: Path) -> None:
    made = config(home, tmp_path / "wrong.yaml", reference=["unperturbed"], protocol=["append", "isolated"])
    with pytest.raises(ConfigError, match=r"wrong.yaml: reference: Protocol append: cannot be compared with 'unpert"):
        plan(load_config(made), tmp_path / "w")


@pytest.mark.numerical
def test_a_gold_cell_adds_up(sweep: dataset.Sweep) -> None:
    for cell in sweep.sel(reference="gold", dtype="bf16"):
        shares = sum(cell[f"hidden_share_{part}"] for part in ("structural", "full_rounding", "fold_rounding"))
        size = sum(abs(cell[f"hidden_share_{part}"]) for part in ("structural", "full_rounding", "fold_rounding"))
        # Each share is a quotient; two additions are in its denominator, and two here.
        assert (abs(shares - 1) <= gamma(5) * size).isel(layer=slice(1, None)).all()
