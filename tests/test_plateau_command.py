"""``python -m drift.plateau``, and cells and sweeps that judge themselves."""

import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import synthetic
import synthetic_controls
from plateau_tools import T, assert_same, noisy, strict, tiled, write

from drift.dataset.opening import open_sweep
from drift.errors import DatasetError
from drift.plateau import main
from drift.reading import amplitudes
from drift.reading.plateau.deciding import plateau


# ------------------------------------------------------------------------------------------ command line
@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory):
    return synthetic.sweep(
        tmp_path_factory.mktemp("sweep"), ["tiny"], ["bf16", "fp32"], ["append", "restart"], [16], layers=2,
        tokens=1024, documents=4, noise=0.05,
    )  # fmt: skip


@pytest.fixture
def two_curves(tmp_path):
    path = write(tmp_path / "two.csv", noisy(T, 0.05), name="up", header="curve,document,step,value")
    write(path, noisy(0 * T + 1, 0.02), name="level", header=None)
    return write(path, np.ones((1, 5)), name="stub", header=None)


def test_command_line_prints_a_table(two_curves, capsys):
    assert main([str(two_curves)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[0].split() == ["curve", "verdict", "growth", "per", "doubling", "level", "documents", "x", "steps"]
    assert lines[1].startswith("up ")
    assert " growing " in lines[1]
    assert lines[1].endswith("4 x 63")
    assert lines[2].startswith("level ")
    assert " flat " in lines[2]
    assert "undetermined: too few steps" in lines[3]
    assert "n/a" in lines[3]
    assert "within 5.0 %" in out
    assert "stub: undetermined (too few steps)" in out
    assert "Note (stub): within these documents only" in out
    assert " nan" not in out


KEYS = {
    "curve", "verdict", "reason", "explanation", "documents", "steps", "growth_per_doubling", "growth_interval",
    "certified_growth", "certified_interval", "certified_from", "p_equivalence", "p_growth", "p_decay", "level",
    "level_interval", "onset_step", "onset_range", "rise_factor", "rise_interval", "autocorrelation", "design_effect",
    "noise_sd", "effective_points", "best_model", "model_lead", "documents_needed", "steps_needed", "zeros",
    "nonfinite", "margin", "alpha", "caveats",
}  # fmt: skip


def test_command_line_writes_strict_json(two_curves, capsys):
    assert main([str(two_curves), "--json"]) == 0
    rows = strict(capsys.readouterr().out)
    assert [(row["curve"], row["verdict"], row["reason"]) for row in rows] == [
        ("up", "growing", None),
        ("level", "flat", None),
        ("stub", "undetermined", "too few steps"),
    ]
    for row in rows:
        assert set(row) >= KEYS
    found = plateau(noisy(T, 0.05))
    assert rows[0]["growth_per_doubling"] == found.growth_per_doubling
    assert rows[0]["growth_interval"] == list(found.growth_interval)
    assert rows[2]["level"] is None


def test_command_line_writes_csv(two_curves, capsys):
    assert main([str(two_curves), "--csv"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert table["curve"].tolist() == ["up", "level", "stub"]
    assert table["verdict"].tolist() == ["growing", "flat", "undetermined"]
    assert set(table) >= KEYS
    assert table["growth_per_doubling"].iloc[0] == pytest.approx(plateau(noisy(T, 0.05)).growth_per_doubling)


def test_command_line_takes_shares_and_percentages(two_curves, capsys):
    outputs = []
    for margin in ("0.2", "20%", "20 %"):
        assert main([str(two_curves), "--json", "--margin", margin, "--alpha", "1%"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] == outputs[2]
    assert {(row["margin"], row["alpha"]) for row in strict(outputs[0])} == {(0.2, 0.01)}


def test_command_line_heeds_floor_and_rise(tmp_path, capsys):
    path = write(tmp_path / "a.csv", tiled(np.where(T > 1, 1.0, 0.5)))
    verdicts = []
    for options in ([], ["--rise-min", "3"], ["--floor", "2"]):
        assert main([str(path), "--json", *options]) == 0
        verdicts.append(strict(capsys.readouterr().out)[0]["verdict"])
    assert verdicts == ["saturated_plateau", "flat", "flat"]


@pytest.mark.parametrize(
    "options",
    [
        ["--margin", "0"], ["--margin", "100%"], ["--margin", "wide"], ["--margin", "nan"], ["--alpha", "0.5"],
        ["--alpha", "0"], ["--layer", "top"], ["--json", "--csv"], ["--floor", "x"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_command_line_refuses_options(two_curves, capsys, options):
    with pytest.raises(SystemExit) as stop:
        main([str(two_curves), *options])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: argument" in err


@pytest.mark.parametrize("options", [["--rise-min", "1"], ["--floor", "0"], ["--floor", "nan"]], ids=" ".join)
def test_command_line_refuses_floor_and_rise(two_curves, capsys, options):
    assert main([str(two_curves), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "--rise-min must be above 1, and --floor above 0" in err


def test_command_line_without_anything_to_read(tmp_path, capsys):
    assert main([str(tmp_path / "absent.csv")]) == 2
    assert "absent.csv: cannot be read: No such file" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "no cell that can be read" in capsys.readouterr().err
    (tmp_path / "x.nc").write_text("no netCDF")
    assert main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "x.nc was left out" in err
    assert "Traceback" not in err


def test_command_line_reads_sweeps(sweep_folder, capsys):
    assert main([str(sweep_folder), "--json"]) == 0
    rows = strict(capsys.readouterr().out)
    assert len(rows) == 4
    found = {(row["model"], row["dtype"], row["protocol"]): row for row in rows}
    assert found["tiny", "bf16", "append"]["verdict"] == "flat"
    assert found["tiny", "bf16", "restart"]["verdict"] == "saturated_plateau"
    assert found["tiny", "fp32", "append"]["unit_roundoff"] == 2.0**-24
    assert {(row["measure"], row["layer"]) for row in rows} == {("hidden_rel_l2", "last")}
    assert found["tiny", "bf16", "append"]["curve"] == "tiny bf16 append/16 hidden_rel_l2 last"
    for row in rows:
        assert set(row) >= KEYS


def test_command_line_takes_measures_and_layers(sweep_folder, capsys):
    assert main([str(sweep_folder), "--json", "--measure", "logit_kl", "hidden_rel_l2", "--layer", "all"]) == 0
    rows = strict(capsys.readouterr().out)
    assert len(rows) == 4 * (1 + 4)  # embeddings, two blocks and the final norm
    mine = [(row["measure"], row["layer"]) for row in rows[:5]]
    assert mine == [("logit_kl", "last"), *(("hidden_rel_l2", k) for k in range(4))]
    assert main([str(sweep_folder), "--measure", "all"]) == 0
    out = capsys.readouterr().out
    cell = open_sweep(sweep_folder).cells[0]
    assert all((name in out) == amplitudes.has_measure(cell, name) for name in amplitudes.DISTANCES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--measure", "foo"], "'foo' is not a measure of drift that can be judged; there are hidden_rel_l2"),
        (["--measure", "hidden_norm"], "'hidden_norm' is not a measure of drift"),
        (["--layer", "9"], "no layer 9"),
    ],
)
def test_command_line_names_what_is_not_there(sweep_folder, capsys, options, message):
    assert main([str(sweep_folder), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


# ------------------------------------------------------------------------------------------ accessors
def test_cells_judge_themselves(sweep_folder):
    cell = open_sweep(sweep_folder).cells[0]
    found = cell.drift.plateau()
    assert_same(found, plateau(cell["hidden_rel_l2"].sel(layer=3).transpose("document", "step").values))
    assert cell.drift.plateau("logit_kl", margin=0.2).margin == 0.2
    table = cell.drift.plateau(["hidden_rel_l2", "nll_gap"])
    assert table["measure"].tolist() == ["hidden_rel_l2", "nll_gap"]
    assert table["verdict"].iloc[0] == found.verdict.value
    had = [name for name in amplitudes.DISTANCES if amplitudes.has_measure(cell, name)]
    assert cell.drift.plateau("all")["measure"].tolist() == had
    assert len(had) > 10
    assert cell.drift.plateau("key_rel_l2", layer="all")["layer"].tolist() == [1, 2]
    assert cell.drift.plateau("hidden_rel_l2", layer=0).zeros == 4 * 64  # embeddings cannot drift
    with pytest.raises(DatasetError, match="'foo' is not a measure"):
        cell.drift.plateau("foo")


def test_sweeps_judge_their_cells(sweep_folder):
    sweep = open_sweep(sweep_folder)
    table = sweep.drift.plateau()
    assert len(table) == len(sweep)
    assert table["model"].unique().tolist() == ["tiny"]
    assert table["verdict"].tolist() == [cell.drift.plateau().verdict.value for cell in sweep]
    with pytest.raises(DatasetError, match="'top1_agreement' is not a measure"):
        sweep.drift.plateau("top1_agreement")


@pytest.mark.numerical
def test_derived_measures_are_distances(sweep_folder):
    cell = open_sweep(sweep_folder).cells[0]
    gap = amplitudes.measure_values(cell, "nll_gap")
    np.testing.assert_array_equal(gap, abs(cell["nll_fold"] - cell["nll_full"]).transpose("document", "step"))
    rest = amplitudes.measure_values(cell, "top1_disagreement")
    np.testing.assert_array_equal(rest, 1 - cell["top1_agreement"].transpose("document", "step"))
    below = cell.copy(deep=True)
    below["logit_kl"].values[0, 3] = -1e-12
    assert amplitudes.measure_values(below, "logit_kl")[0, 3] == 0
    for measure in (name for name in amplitudes.DISTANCES if amplitudes.has_measure(cell, name)):
        assert (amplitudes.measure_values(cell, measure) >= 0).all(), measure


def test_measures_that_only_some_cells_have_are_judged_like_others(tmp_path):
    """Parts of an error, and agreement of generated tokens, are no rows of a second rank."""
    folder = synthetic_controls.whole(tmp_path / "whole", models=["alpha"])
    sweep = open_sweep(folder)
    for name, has in (
        ("hidden_rel_l2_structural", sweep.sel(reference="gold")),
        ("token_disagreement", sweep.sel(protocol="decode(append,tokens=8)")),
    ):
        table = sweep.drift.plateau(name)
        assert len(table) == len(has) > 0
        assert set(table["measure"]) == {name}
        whole = sweep.drift.plateau("all")
        assert (whole["measure"] == name).sum() == len(has)
        assert has.cells[0].drift.plateau(name).verdict
        assert amplitudes.measure_name(name)
        with pytest.raises(DatasetError, match=f"no cell has {name}: only some references or protocols"):
            sweep.sel(protocol="restart", reference="full").drift.plateau(name)
    np.testing.assert_array_equal(amplitudes.measure_values(has.cells[0], name), 1 - 0.9)
    found = sweep.drift.ladder("hidden_rel_l2_full_rounding", reference="gold")
    assert set(found["measure"]) == {"hidden_rel_l2_full_rounding"}
    # Made as 4 u with a scatter of a tenth: over ln(2^16) = 11 between the rungs, levels tilt by less than 0.2 / 11.
    np.testing.assert_allclose(found["slope"], 1, atol=0.02)
    assert "hidden_share_structural" not in amplitudes.DISTANCES, "a share is signed, and no distance"
    with pytest.raises(DatasetError, match="there is no measure 'foo'"):
        amplitudes.holding(sweep, "foo")


# ------------------------------------------------------------------------------------------ processes
def test_plateau_needs_no_torch():
    code = (
        "import sys, drift.plateau, drift.reading.plateau.curves; "
        "print([m for m in sys.modules if m.startswith('torch')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_module_runs_and_has_help():
    done = subprocess.run([sys.executable, "-m", "drift.plateau", "--help"], capture_output=True, text=True, check=True)
    assert "SWEEP|FILE.csv" in done.stdout
    assert "saturated_plateau" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "drift.plateau", "absent"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("drift.plateau: absent: cannot be read")
