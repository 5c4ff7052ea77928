"""How full attention answers to disturbed embeddings: numbers, by hand, and the sentence that is made of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import synthetic
import synthetic_controls as made
import xarray as xr

from drift.dataset.sweep import Sweep
from drift.errors import DatasetError
from drift.reading import figures, floor
from drift.reading.floor import NoiseResponse


def cells(answers: Mapping[str, float], dtype: str = "fp32", **options: object) -> list[xr.Dataset]:
    """Cells of full attention, disturbed: level in unit roundoffs by what stands in the parentheses."""
    u = synthetic.ROUNDOFF[dtype]
    known = {"model": "tiny", "layers": 2, "documents": 3, "noise": 0.01, "chunk_size": 16, "tokens": 512} | options
    return [
        synthetic.cell(dtype=dtype, protocol=f"full({inside})", level=lambda k, y=y: np.full(k.shape, u * y), **known)  # type: ignore[arg-type,misc]
        for inside, y in answers.items()
    ]


def by_noise(*answers: float, sizes: tuple[float, ...] = (0.01, 0.1, 1, 10, 100, 1000, 10000)) -> dict[str, float]:
    return {f"noise={size}": y for size, y in zip(sizes, answers, strict=True)}


def response(*answers: float, **options: object) -> NoiseResponse:
    (found,) = floor.noise_responses(Sweep(cells(by_noise(*answers), **options)))
    return found


def test_the_numbers_are_those_of_the_cells() -> None:
    made_of = cells(by_noise(0, 0, 12, 100, 1000, 9000, 20000))
    (one,) = floor.noise_responses(Sweep(made_of))
    assert one.sizes.tolist() == [0.01, 0.1, 1, 10, 100, 1000, 10000]
    assert one.silent.tolist() == [0.01, 0.1]
    by_hand = [np.exp(np.log(ds["hidden_rel_l2"].values[:, -1, 8:]).mean(axis=1)) for ds in made_of[2:]]
    np.testing.assert_allclose(one.values[2:], by_hand)
    np.testing.assert_allclose(one.level[2:], np.exp(np.log(by_hand).mean(axis=1)))
    assert one.proportional == (1, 1000)
    assert one.saturated is None
    assert one.above_proportion(10000) == pytest.approx(20000 / 10000 / 10, rel=0.2)
    assert (one.labels["model"], one.labels["dtype"], one.labels["documents"], one.steps) == ("tiny", "fp32", 3, 32)


def test_where_a_response_ends_and_where_it_begins() -> None:
    one = response(9, 9.5, 10, 30, 300, 900, 950)
    assert one.proportional == (10, 100)
    assert one.saturated == 1000
    assert one.above_proportion(1) == pytest.approx(10 / 3, rel=0.05)
    constant = response(*[9.0] * 7)
    assert constant.saturated == 0.01
    assert constant.proportional is None
    assert np.isnan(constant.above_proportion(1))


def test_one_document_that_is_not_in_proportion_is_enough() -> None:
    made_of = cells(by_noise(1, 10, 100, sizes=(1, 10, 100)), noise=0.0)
    made_of[2]["hidden_rel_l2"].values[1] *= 4
    (one,) = floor.noise_responses(Sweep(made_of))
    assert one.proportional == (1, 10)


def test_what_is_not_finite_is_in_no_stretch() -> None:
    made_of = cells(by_noise(1, 10, 100, sizes=(1, 10, 100)))
    made_of[1]["hidden_rel_l2"].values[...] = np.nan
    (one,) = floor.noise_responses(Sweep(made_of))
    assert one.proportional is None
    assert np.isnan(one.values[1]).all()
    figure = figures.response_to_noise(Sweep(made_of))
    assert "3 NaN or Inf" in figure.axes[0].get_xlabel()


def test_seeds_are_drawn_together_and_other_cells_left_out() -> None:
    twice = cells({"noise=1": 2.0, "noise=1,seed=3": 8.0, "noise=10": 40.0}, noise=0.0)
    others = cells({"noise=100,batch=2": 9.0, "attention=eager": 3.0, "batch=2": 3.0})
    gold = [made.remake(ds, reference="gold") for ds in cells({"noise=1000": 5.0})]
    (one,) = floor.noise_responses(Sweep([*twice, *others, *gold, synthetic.cell(layers=2, tokens=128)]))
    assert one.sizes.tolist() == [1, 10]
    np.testing.assert_allclose(one.level, synthetic.ROUNDOFF["fp32"] * np.array([4.0, 40.0]))
    assert one.proportional == (1, 10)


def test_of_each_model_and_precision_the_cells_of_most_sizes_are_taken() -> None:
    few = cells(by_noise(5, 50, sizes=(1, 10)), tokens=1024)
    many = cells(by_noise(1, 10, 100, sizes=(1, 10, 100)))
    coarse = cells(by_noise(1, 10, sizes=(1, 10)), dtype="bf16")
    found = floor.noise_responses(Sweep([*few, *many, *coarse]))
    assert [(one.labels["dtype"], len(one.sizes), one.labels["tokens"]) for one in found] == [
        ("bf16", 2, 512), ("fp32", 3, 512),
    ]  # fmt: skip


def test_divergences_enter_as_amplitudes() -> None:
    made_of = cells(by_noise(1, 10, 100, sizes=(1, 10, 100)))
    for ds, size in zip(made_of, (1, 10, 100), strict=True):
        ds["logit_kl"].values[...] = 1e-12 * size**2
    (one,) = floor.noise_responses(Sweep(made_of), "logit_kl")
    np.testing.assert_allclose(one.level, [1e-6, 1e-5, 1e-4])
    assert one.proportional == (1, 100)


def test_a_sweep_without_such_cells_is_told_what_would_measure_it() -> None:
    with pytest.raises(DatasetError, match=r"disturbed embeddings; to measure it: python -m drift\.sweep"):
        floor.noise_responses(Sweep([synthetic.cell(layers=2, tokens=128)]))


# ---------------------------------------------------------------------------------------------- words
@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ((0, 0, 20, 100, 1000, 9e4, 1e5), "in proportion from 10 to 100 unit roundoffs; from 10 down to 1 it falls "
         "only 5.0-fold; to 0.1 and less not at all; no more than 5.7e-3 from 1,000 on"),
        ((9, 9.5, 10, 30, 300, 3000, 3e4), "in proportion from 10 to 10,000 unit roundoffs; from 0.1 down to 0.01 it "
         "falls only 1.1-fold"),
        ((1, 1, 1, 1, 1, 1, 1), "nowhere in proportion; from 0.1 down to 0.01 it falls only 1.0-fold; no more "
         "than 6.0e-8 from 0.01 on"),
    ],
)  # fmt: skip
def test_the_sentence(answers: tuple[float, ...], words: str) -> None:
    found = floor.noise_responses(Sweep(cells(by_noise(*answers), noise=0.0)))
    assert floor.response_headline(found) == f"Full attention answers to disturbed embeddings {words}"


def test_precisions_that_differ_are_named() -> None:
    fine = cells(by_noise(1, 10, 100, sizes=(1, 10, 100)))
    coarse = cells(by_noise(1, 10, 10, sizes=(1, 10, 100)), dtype="bf16")
    words = floor.response_headline(floor.noise_responses(Sweep([*fine, *coarse])))
    assert "in proportion from 1 to 10 unit roundoffs (bf16), from 1 to 100 unit roundoffs (fp32)" in words
    assert words.endswith("; no more than 3.9e-2 from 10 on (bf16)")
    other = cells(by_noise(1, 10, 10, sizes=(1, 10, 100)), model="another")
    words = floor.response_headline(floor.noise_responses(Sweep([*fine, *coarse, *other])))
    assert "1 to 10 unit roundoffs (fp32 of another, bf16)" in words
    nothing = floor.noise_responses(Sweep(cells(by_noise(0, 0, sizes=(1, 10)))))
    assert "with nothing" in floor.response_headline(nothing)
