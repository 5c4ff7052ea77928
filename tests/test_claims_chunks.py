"""C3, chunk sizes, held against a text whose drift is known at every token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import synthetic
import xarray as xr
from claims_tools import NOT_TESTED, REFUTED, SUPPORTED, UNDETERMINED, cell, flat, held, only, pooled
from rounding import gamma, linear

from drift.reading import amplitudes
from drift.reading.amplitudes import AMPLITUDE_POWERS
from drift.reading.claims.model import Status

pytestmark = pytest.mark.numerical


class Text:
    """Drift of every token of a text, from which cells of any chunk size are made."""

    def __init__(self, tokens: int = 8192, documents: int = 6, seed: int = 0, spread: float = 0.3) -> None:
        rng = np.random.default_rng(seed)
        shape = documents, tokens
        self.tokens, self.documents = tokens, documents
        self.norm2 = np.exp(0.5 * rng.standard_normal(shape))  # of the state
        self.error2 = self.norm2 * (0.1 * np.exp(spread * rng.standard_normal(shape))) ** 2
        self.kl = (0.1 * np.exp(spread * rng.standard_normal(shape))) ** 2
        self.delta_p = 0.03 * np.exp(spread * rng.standard_normal(shape))
        self.gap = 0.05 + 0.05 * rng.standard_normal(shape)

    def cell(self, chunk_size: int, factor: float = 1.0, stride: int = 1) -> xr.Dataset:
        """The cell of one chunk size; its drift is `factor` times that of the text; logits of every `stride`-th."""
        ds = synthetic.cell(
            model="a", layers=2, protocol="reprime", tokens=self.tokens, documents=self.documents, chunk_size=chunk_size
        )
        starts = ds["token_start"].values
        sampled = np.arange(self.tokens) % stride == 0
        target = sampled & (np.arange(self.tokens) < self.tokens - 1)

        def pool(values: np.ndarray) -> np.ndarray:
            return np.add.reduceat(values, starts, axis=-1)

        ds["logit_count"].values[...] = pool(sampled.astype(int))
        ds["target_count"].values[...] = pool(target.astype(int))
        norm2, error2 = pool(self.norm2), pool(self.error2)
        ds["hidden_norm"].values[:, -1] = np.sqrt(norm2)
        ds["hidden_rel_l2"].values[:, -1] = factor * np.sqrt(error2 / norm2)
        ds["hidden_norm"].values[:, 1] = np.sqrt(pool(self.norm2[:, ::-1]))
        ds["hidden_rel_l2"].values[:, 1] = np.sqrt(pool(self.error2[:, ::-1]) / pool(self.norm2[:, ::-1]))
        for name in ("key_rel_l2", "value_rel_l2"):  # keys and values of equal norm at every token
            ds[name].values[:, -1] = factor * np.sqrt(pool(self.error2 / self.norm2) / pool(np.ones(self.tokens)))
        with np.errstate(invalid="ignore"):  # a step without sampled tokens has no logits to compare: NaN
            ds["logit_kl"].values[...] = factor**2 * pool(self.kl * sampled) / pool(sampled * 1.0)
            ds["delta_p_rms"].values[...] = factor * np.sqrt(pool(self.delta_p**2 * target) / pool(target * 1.0))
            gap = factor * pool(self.gap * target) / pool(target * 1.0)
        ds["nll_full"].values[...] = np.where(np.isnan(gap), np.nan, 3.0)
        ds["nll_fold"].values[...] = 3.0 + gap
        return ds

    def blocks(self, measure: str, size: int, stride: int = 1) -> np.ndarray:
        """Amplitude of blocks of `size` tokens, from the tokens themselves; what does not fill one is left out."""
        count = self.tokens // size
        sampled = np.arange(self.tokens) % stride == 0
        target = sampled & (np.arange(self.tokens) < self.tokens - 1)

        def mean(values: np.ndarray, of: np.ndarray) -> np.ndarray:
            values, of = (np.broadcast_to(v, self.norm2.shape)[:, : count * size] for v in (values, of))
            parts = values.reshape(-1, count, size), of.reshape(-1, count, size)
            return parts[0].sum(axis=2) / parts[1].sum(axis=2)

        if measure == "hidden_rel_l2":
            return np.sqrt(mean(self.error2, self.norm2))
        if measure == "logit_kl":
            return np.sqrt(mean(self.kl * sampled, sampled))
        if measure == "delta_p_rms":
            return np.sqrt(mean(self.delta_p**2 * target, target))
        if measure == "nll_gap":
            return np.abs(mean(self.gap * target, target))
        return np.sqrt(mean(self.error2 / self.norm2, np.ones(self.tokens)))


def pooling(tokens: int, measure: str = "hidden_rel_l2") -> tuple[float, float]:
    """Relative and absolute rounding of quotients of sums over tokens, by two ways of which one goes over chunks.

    A gap has either sign, and is the difference of two NLL around 3.
    """
    return gamma(4 * tokens + 40), linear(tokens, 3.5) if measure == "nll_gap" else 0.0


@pytest.mark.parametrize("measure", list(AMPLITUDE_POWERS))
@pytest.mark.parametrize(
    ("tokens", "size", "block"), [(1024, 64, 256), (1000, 50, 200), (1024, 2, 64), (512, 512, 512)]
)
@pytest.mark.parametrize("stride", [1, 5])
def test_blocks_are_what_the_tokens_say(measure: str, tokens: int, size: int, block: int, stride: int) -> None:
    text = Text(tokens=tokens, documents=3)
    found = pooled(text.cell(size, stride=stride), measure, block)
    assert found.shape == (3, tokens // block)
    rtol, atol = pooling(block, measure)
    np.testing.assert_allclose(found, text.blocks(measure, block, stride), rtol=rtol, atol=atol)


def test_blocks_pool_by_the_norm_of_their_own_layer() -> None:
    text = Text(tokens=512, documents=2)
    count = (2, 4, 128)
    expected = np.sqrt(text.error2[:, ::-1].reshape(count).sum(axis=2) / text.norm2[:, ::-1].reshape(count).sum(axis=2))
    found = pooled(text.cell(32), "hidden_rel_l2", 128, layer=1)
    np.testing.assert_allclose(found, expected, rtol=pooling(128)[0])


@pytest.mark.parametrize("measure", list(AMPLITUDE_POWERS))
@pytest.mark.parametrize(("tokens", "size", "block"), [(1024, 64, 96), (4096, 96, 256), (1000, 96, 128), (300, 7, 100)])
def test_chunks_across_a_border_count_by_their_tokens(measure: str, tokens: int, size: int, block: int) -> None:
    ds = Text(tokens=tokens, documents=3).cell(size)
    # the same, token by token: every token of a chunk has its chunk's share of what was measured, and its weight
    length = np.diff([*ds["token_start"].values, tokens])
    names = {"logit_kl": "logit_count", "delta_p_rms": "target_count", "nll_gap": "target_count"}
    weight = np.broadcast_to(length, (3, len(length))).astype(float)
    if measure == "hidden_rel_l2":
        weight = ds["hidden_norm"].values[:, -1] ** 2
    elif measure in names:
        weight = ds[names[measure]].values.astype(float)
    values = amplitudes.amplitude(ds, measure, "last") ** 2
    if measure == "nll_gap":
        values = ds["nll_fold"].values - ds["nll_full"].values
    kept = tokens // block * block
    parts = [np.repeat(v / length, length, axis=1)[:, :kept].reshape(3, -1, block) for v in (weight * values, weight)]
    expected = parts[0].sum(axis=2) / parts[1].sum(axis=2)
    expected = np.abs(expected) if measure == "nll_gap" else np.sqrt(expected)
    # Sums up to a border are taken from one another: a block's share of the text is what is left of their digits.
    rtol, atol = (tokens / block * bound for bound in pooling(tokens, measure))
    np.testing.assert_allclose(pooled(ds, measure, block), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("measure", list(AMPLITUDE_POWERS))
@pytest.mark.parametrize("sizes", [(32, 64, 128, 256), (64, 96), (32, 96, 64)], ids=str)
def test_c3_the_same_drift_at_every_token_does_not_depend_on_the_chunks(measure: str, sizes: tuple[int, ...]) -> None:
    text = Text()
    found = only([text.cell(s) for s in sizes], "C3 chunk size", measure)
    assert found.status is SUPPORTED
    # Chunks across a border give half of themselves to either side: squares that scatter by twice 0.3, at 6 x 8192
    # tokens, four standard errors. Without such chunks there is nothing but rounding, of logarithms of up to 10.
    assert found.estimate == pytest.approx(
        0, rel=0, abs=4 * 2 * 0.3 / math.sqrt(6 * 8192) if 96 in sizes else linear(8192, 10)
    )
    assert found.scope == f"a bf16, chunks {', '.join(map(str, sorted(sizes)))}"


@pytest.mark.parametrize("measure", list(AMPLITUDE_POWERS))
@pytest.mark.parametrize(("growth", "status"), [(0.2, REFUTED), (-0.2, REFUTED), (0.02, SUPPORTED)])
def test_c3_finds_the_change_per_doubling(measure: str, growth: float, status: Status) -> None:
    text, sizes = Text(spread=0.1), (32, 64, 128, 256)
    cells = [text.cell(s, (1 + growth) ** math.log2(s / 32)) for s in sizes]
    found = only(cells, "C3 chunk size", measure)
    assert found.status is status
    bound = linear(8192, 10)  # rounding of logarithms of up to 10: the noise is the same in every cell
    assert found.estimate == pytest.approx(growth, rel=0, abs=bound)
    assert found.interval[0] <= growth + bound
    assert found.interval[1] >= growth - bound
    assert found.margin == pytest.approx((-0.05 / 1.05, 0.05))
    wide = only(cells, "C3 chunk size", measure, chunk=0.3)
    assert wide.status is SUPPORTED


def test_c3_noise_that_hides_a_change_supports_nothing() -> None:
    insignificant = 0
    for seed in range(6):
        cells = [cell(flat(), chunk_size=c, tokens=8192, between=0.5, documents=5, seed=seed) for c in (64, 128)]
        found = only(cells, "C3 chunk size")
        assert found.status is not SUPPORTED
        insignificant += found.status is UNDETERMINED
    assert insignificant >= 3


def test_c3_compares_one_text_and_no_chunk_that_is_larger() -> None:
    assert held([cell(chunk_size=64)], "C3 chunk size").status is NOT_TESTED
    other = [cell(chunk_size=64, tokens=8192), cell(chunk_size=128, tokens=4096)]
    assert held(other, "C3 chunk size").status is NOT_TESTED
    text = Text(tokens=2048)
    cells = [text.cell(s) for s in (64, 128)]
    assert only([*cells, text.cell(4096)], "C3 chunk size") == only(cells, "C3 chunk size")
    assert held([cells[0], text.cell(4096)], "C3 chunk size").status is NOT_TESTED
    # one block is all there is, and no spread of documents: no noise model
    few = Text(tokens=512, documents=3)
    lone = only([few.cell(64), few.cell(512)], "C3 chunk size")
    assert (lone.status, math.isnan(lone.estimate)) == (UNDETERMINED, True)
    assert "too few steps" in lone.words
