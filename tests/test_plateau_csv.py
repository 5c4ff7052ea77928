"""Curves from CSV files: what is read, and what is wrong with the rest, by file and line."""

import math

import numpy as np
import pandas as pd
import pytest
from plateau_tools import T, assert_same, noisy, write

from drift.errors import DatasetError
from drift.plateau import main
from drift.reading.controls import NO_CONTROLS
from drift.reading.plateau import csv_files, curves
from drift.reading.plateau.deciding import plateau


@pytest.fixture
def csv(tmp_path):
    def make(text, name="mine.csv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return make


@pytest.mark.parametrize("first", [0, 1, 17])
def test_csv_of_one_curve(tmp_path, first):
    values = noisy(T, 0.1, 3)
    (curve,) = csv_files.from_csv(write(tmp_path / "mine.csv", values, first=first))
    assert (curve.name, curve.labels, curve.caveats) == ("mine", {}, ())
    np.testing.assert_array_equal(curve.values, values)  # repr of a float is exact
    assert_same(curves.judge([curve], NO_CONTROLS)[0], plateau(values))


def test_csv_of_several_curves_unsorted_and_with_other_columns(tmp_path):
    up, level = noisy(T, 0.1, 3), noisy(0 * T + 1, 0.02, 4)
    path = write(tmp_path / "a.csv", up, name="up", header="curve,document,step,value")
    write(path, level, name="level", header=None)
    table = pd.read_csv(path)
    table["note"] = "x,y"
    table = table.sample(frac=1, random_state=0)[["value", "note", "step", "curve", "document"]]
    table.columns = ["Value ", "note", "STEP", "curve", "document"]
    table.to_csv(path, index=False)
    found = {curve.name: curve for curve in csv_files.from_csv(path)}
    assert set(found) == {"up", "level"}
    # rows are shuffled, so documents come in another order
    assert sorted(map(tuple, found["up"].values)) == sorted(map(tuple, up))
    assert sorted(map(tuple, found["level"].values)) == sorted(map(tuple, level))


def test_csv_takes_nan_and_inf_for_findings(csv):
    (curve,) = csv_files.from_csv(
        csv("document,step,value\na,0,NaN\na,1,inf\na,2,+Infinity\na,3,1e400\na,4,nan\na,5,0\n")
    )
    np.testing.assert_array_equal(curve.values, [[math.nan, math.inf, math.inf, math.inf, math.nan, 0.0]])
    assert curves.judge([curve], NO_CONTROLS)[0].nonfinite == 5


def test_csv_of_ragged_documents_is_cut_and_says_so(csv):
    rows = [f"a,{s},1" for s in range(30)] + [f"b,{s},2" for s in range(26)]
    (curve,) = csv_files.from_csv(csv("document,step,value\n" + "\n".join(rows)))
    assert curve.values.shape == (2, 26)
    assert curve.caveats == ("documents have 26 to 30 steps: the first 26 are used",)
    assert curves.judge([curve], NO_CONTROLS)[0].caveats[0] == curve.caveats[0]


def test_csv_as_spreadsheets_write_it(csv, tmp_path):
    path = tmp_path / "bom.csv"
    path.write_bytes(b"\xef\xbb\xbfdocument,step,value\r\na , 0, 1.5 \r\n\r\na,1,2.5\r\n,,\r\n")
    (curve,) = csv_files.from_csv(path)
    assert curve.values.tolist() == [[1.5, 2.5]]


HEAD = "document,step,value\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "a,0,1\na,1,x\n", "mine.csv, line 3: value is 'x', not a number"),
        (HEAD + "a,0,1\na,1,\n", "mine.csv, line 3: value is '', not a number"),
        (HEAD + "a,0,1\na,1\n", "mine.csv, line 3: value is '', not a number"),
        (HEAD + "a,0,1\n\n\na,1,x\n", "mine.csv, line 5: value is 'x', not a number"),
        (HEAD + "a,0.5,1\n", "mine.csv, line 2: step is '0.5', not a whole number"),
        (HEAD + "a,inf,1\n", "mine.csv, line 2: step is 'inf', not a whole number"),
        (HEAD + "a,0,1\n,1,1\n", "mine.csv, line 3: document is empty"),
        ("document,step,value,curve\na,0,1,c\na,1,1\n", "mine.csv, line 3: curve is empty"),
        (HEAD + "a,0,1\na,1,-0.5\n", "mine.csv, line 3: value is -0.5, but drift is a distance"),
        (HEAD + "a,0,1\na,1,-inf\n", "mine.csv, line 3: value is -inf, but"),
        (HEAD + "a,0,1\na,1,1\na,1,2\n", "mine.csv, line 4: step 1 of curve 'mine', document 'a' stands here for the"),
        (HEAD + "a,0,1\na,2,1\n", "mine.csv: curve 'mine', document 'a': step 0 is followed by 2; steps must be"),
        (HEAD + "a,0,1\nb,1,1\n", "begin at different steps (0 to 1)"),
        (HEAD + "a,0,1,9\na,1,1,9\n", "mine.csv: rows have more cells than the header"),
        (HEAD + "a,0,1\na,1,1,9\n", "mine.csv: not a CSV file: "),
        (HEAD, "mine.csv: no rows below the header"),
        ("", "mine.csv: not a CSV file: "),
        ("step,value\n0,1\n", "mine.csv: no column document; it has step, value. Wanted: document, step, value"),
        ("document;step;value\na;0;1\n", "mine.csv: no column document, step, value; it has document;step;value"),
        ("document,step,value,Value\na,0,1,1\n", "mine.csv: two columns are called value"),
    ],
)
def test_csv_errors_name_file_and_line(csv, capsys, text, message):
    path = csv(text)
    with pytest.raises(DatasetError) as error:
        csv_files.from_csv(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert main([str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_csv_that_is_no_text(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(b"document,step,value\n\xff,0,1\n")
    with pytest.raises(DatasetError, match="not a CSV file"):
        csv_files.from_csv(path)
