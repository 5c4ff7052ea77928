"""The statistics of a plateau against independent truth: dense matrices, SciPy, NumPy, and noise of known make."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from plateau_tools import FLAT, ar1
from rounding import U64, gamma, linear

from drift.reading.statistics import models as statistics_models
from drift.reading.statistics import noise as statistics_noise
from drift.reading.statistics import plateau as statistics_plateau
from drift.reading.statistics import windows
from drift.reading.statistics.analysis import Code
from drift.reading.statistics.plateau import analyse

pytestmark = pytest.mark.numerical


DELTA = math.log(1.05)


def correlation(n, rho):
    return rho ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))


def quadratics(x):
    """A basis of the quadratics in x whose columns are of one size: how well conditioned it is, counts below."""
    scaled = (x - x.mean()) / np.ptp(x)
    return np.stack([np.ones_like(x), scaled, scaled**2], axis=1)


def residual_maker(x):
    design = quadratics(x)
    return np.eye(len(x)) - design @ np.linalg.pinv(design)


REGRESSORS = {
    "log depth": np.log2(np.arange(4, 40.0)),
    "log depth, late": np.log2(np.arange(33, 94.0)),
    "short": np.log2(np.arange(4, 12.0)),
    "uneven": np.sort(np.random.default_rng(3).uniform(-5, 50, 23)),
}


# ------------------------------------------------------------------------------------------ noise
@pytest.mark.parametrize("x", REGRESSORS.values(), ids=REGRESSORS.keys())
def test_traces_are_those_of_the_dense_matrices(x):
    n = len(x)
    weights = np.random.default_rng(n).standard_normal((3, n))
    noise = statistics_noise._Noise(x, weights)
    m = residual_maker(x)
    # A factorisation of n rows and three columns turns the space that they span by this angle at most (Higham, theorem
    # 19.4, with 4 for its small constant), whatever their sizes; here and there.
    angle = 2 * gamma(12 * n) * np.linalg.cond(quadratics(x))
    np.testing.assert_allclose(noise.residuals(np.eye(n)), m, rtol=0, atol=angle)
    ratios, bounds = [], []
    for k, rho in enumerate(statistics_noise._RHO):
        g = correlation(n, rho)
        a = m @ g @ m
        # What is subtracted: of three directions, 2 x norm of G x angle each; of their squares, the norm once more.
        first = 6 * np.linalg.norm(g, 2) * angle
        second = 2 * np.linalg.norm(g, 2) * first
        trace, trace2, lag1 = np.trace(a), np.trace(a @ a), np.trace(a, offset=1)
        assert noise.trace[k] == pytest.approx(trace, rel=0, abs=first)
        assert noise.trace2[k] == pytest.approx(trace2, rel=0, abs=second)
        assert noise.lag1[k] == pytest.approx(lag1, rel=0, abs=first)
        assert noise.df[k] == pytest.approx(trace**2 / trace2, rel=2 * first / trace + second / trace2, abs=0)
        size = np.einsum("ci,ij,cj->c", abs(weights), g, abs(weights))
        form = np.einsum("ci,ij,cj->c", weights, g, weights)
        assert (abs(noise.forms[k] - form) <= 2 * gamma(4 * n) * size).all()
        ratios.append(lag1 / trace)
        bounds.append(first / trace * (1 + abs(ratios[-1])))
    assert (np.diff(noise.ratio) >= 0).all()
    assert (abs(noise.ratio - np.maximum.accumulate(ratios)) <= np.maximum.accumulate(bounds)).all()
    assert max(bounds) < 1e-3, "bounds that say nothing"


def test_correlations_are_multiplied_without_their_matrix():
    vectors = np.random.default_rng(0).standard_normal((17, 4))
    for rho, product in zip(statistics_noise._RHO, statistics_noise._correlate(vectors), strict=True):
        # 16 products and sums in a row in either direction, and powers of rho beside them.
        size = correlation(17, rho) @ abs(vectors)
        assert (abs(product - correlation(17, rho) @ vectors) <= 2 * gamma(3 * 17) * size).all()


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_variance_is_unbiased_and_its_degrees_of_freedom_are_right(rho):
    runs, n = 4000, 45
    k = int(np.argmin(np.abs(statistics_noise._RHO - rho)))
    assert statistics_noise._RHO[k] == pytest.approx(rho)
    noise = statistics_noise.noise_of(15, 60, 1)[0]
    squares = (noise.residuals(ar1(np.random.default_rng(11), (runs, n), rho)) ** 2).sum(axis=1) / noise.trace[k]
    # A quadratic form with df degrees of freedom and mean 1 has variance 2 / df; four standard errors of either moment,
    # that of the variance by the kurtosis of the form, from its eigenvalues.
    m = residual_maker(np.log2(np.arange(16, 61.0)))
    powers = np.linalg.eigvalsh(m @ correlation(n, rho) @ m) ** 2
    assert squares.mean() == pytest.approx(1, abs=4 * math.sqrt(2 / noise.df[k] / runs))
    kurtosis = 3 + 12 * (powers**2).sum() / powers.sum() ** 2
    assert squares.var() == pytest.approx(2 / noise.df[k], rel=4 * math.sqrt((kurtosis - 1) / runs))


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_autocorrelation_is_an_upper_limit(rho):
    # r + one standard error: the truth is below it in 84 % of runs, were r normal; it is skewed, hence three quarters.
    noise = ar1(np.random.default_rng(5), (400, 4, 48), rho)
    _, _, found, design, variance, _ = statistics_noise._ar(noise, statistics_noise.noise_of(15, 63, 1)[0])
    assert (found >= rho * (1 - gamma(4))).mean() > 0.75  # where it is 0, it is found to be exactly that
    # A quotient of sums of squares over one mean and over four documents: a single run scatters by 0.3 and more.
    assert np.median(design) == pytest.approx(1, abs=0.3)
    if rho < 0.9:  # detrended, 48 steps at 0.9 cannot be told from a random walk
        # 4 x 48 steps: r itself has a standard error of 0.07, and its upper limit lies one above it. What else there
        # is to the limits is the bias of detrending; draws are the same everywhere.
        assert np.median(found) < rho + (1 - rho) * 0.35
        assert 0.9 < np.median(variance) < 1.3


def dense_slope_error(z, x):
    """The AR(1) standard error of the mean slope of [document, step], by its definition."""
    documents, n = z.shape
    m = residual_maker(x)
    e = z @ m

    def ratio(rho):
        a = m @ correlation(n, rho) @ m
        return np.trace(a, offset=1) / np.trace(a)

    r = (e[:, 1:] * e[:, :-1]).sum() / (e**2).sum()
    upper = r + math.sqrt((1 - r**2) / (n * documents))
    if upper <= ratio(0.0):
        rho = 0.0
    elif upper >= ratio(0.995):
        rho = 0.995
    else:
        rho = scipy.optimize.brentq(lambda rho: ratio(rho) - upper, 0.0, 0.995)
    g = correlation(n, rho)
    scale = (e.mean(axis=0) ** 2).sum() / np.trace(m @ g @ m)
    w = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    return math.sqrt(scale * w @ g @ w), rho


def interpolation_error(x):
    """What linear interpolation between the kernel's autocorrelations is off by, halfway, where it is most.

    Returns
    -------
    Of the autocorrelation, and of the standard error as a share of it.
    """
    m = residual_maker(x)
    w = (x - x.mean()) / ((x - x.mean()) ** 2).sum()

    def dense(rho):
        a = m @ correlation(len(x), rho) @ m
        return np.trace(a, offset=1) / np.trace(a), w @ correlation(len(x), rho) @ w, np.trace(a)

    ratio, form, trace = np.transpose([dense(rho) for rho in statistics_noise._RHO])
    halfway = (statistics_noise._RHO[1:] + statistics_noise._RHO[:-1]) / 2
    there = np.transpose([dense(rho) for rho in halfway])
    rho = abs(np.interp(there[0], ratio, statistics_noise._RHO) - halfway).max()
    error = np.sqrt(form / trace)
    between = np.sqrt((form[1:] + form[:-1]) / (trace[1:] + trace[:-1]))
    share = abs(between / np.sqrt(there[1] / there[2]) - 1).max()
    steepest = (abs(np.diff(np.log(error))) / np.diff(statistics_noise._RHO)).max()
    return rho, share + steepest * rho


@pytest.mark.parametrize(("rho", "documents"), [(0.0, 1), (0.4, 3), (0.8, 6), (-0.5, 2)])
def test_standard_error_of_the_slope_is_the_dense_one(rho, documents):
    rng = np.random.default_rng(17)
    x = np.log2(np.arange(17, 64.0))
    z = 0.2 * ar1(rng, (5, documents, len(x)), rho) + 0.3 * x
    fit = statistics_noise.fit_window(z, 16, 63)
    of_rho, of_error = interpolation_error(x)
    assert of_error < 0.1, "a bound that says nothing"
    for k in range(5):
        error, found = dense_slope_error(z[k], x)
        # Beside that, rounding is nothing.
        assert fit.rho[k] == pytest.approx(found, rel=1e-6, abs=of_rho)
        assert fit.slope_error[k] == pytest.approx(error, rel=of_error + 1e-6)


@given(steps=st.integers(11, 90), documents=st.integers(1, 5), seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_slope_and_level_are_polyfit_and_geometric_mean(steps, documents, seed):
    y = np.exp(np.random.default_rng(seed).normal(0, 0.1, (documents, steps)))
    first = windows.windows(steps)[-1]
    clipped = statistics_plateau._clip(np.log(y)[None, :, 3:])[0]
    z = clipped[:, first - 3 :].mean(axis=0)
    found = analyse(y)
    x = np.log2(np.arange(first + 1, steps + 1))
    w = abs(x - x.mean()) / ((x - x.mean()) ** 2).sum()
    size = abs(clipped).max() * (1 + documents * U64)
    line = np.linalg.cond(np.stack([np.ones_like(x), x / np.linalg.norm(x)], axis=1))  # by which polyfit magnifies
    assert found.slope[0] == pytest.approx(np.polyfit(x, z, 1)[0], rel=0, abs=linear(4 * len(x), size, w.sum() * line))
    assert found.level[0] == pytest.approx(z.mean(), rel=0, abs=linear(documents * len(x), size))


# ------------------------------------------------------------------------------------------ tests and intervals
def test_equivalence_is_two_one_sided_t_tests_over_documents():
    # Power laws without noise: all that is left of the standard errors is the spread of the documents.
    powers = np.array([0.01, 0.03, -0.02, 0.015, 0.024])
    t = np.arange(1, 64.0)
    found = analyse(t ** (powers[:, None] / math.log(2)))
    below = scipy.stats.ttest_1samp(powers, DELTA, alternative="less").pvalue
    above = scipy.stats.ttest_1samp(powers, -DELTA, alternative="greater").pvalue
    assert len(windows.windows(63)) == 3
    assert found.p_equivalence[0] == pytest.approx(3 * max(below, above))
    up, down = (
        analyse(t ** ((powers[:, None] + 0.06) / math.log(2))),
        analyse(t ** ((powers[:, None] - 0.08) / math.log(2))),
    )
    greater = scipy.stats.ttest_1samp(powers + 0.06, DELTA, alternative="greater").pvalue
    less = scipy.stats.ttest_1samp(powers - 0.08, -DELTA, alternative="less").pvalue
    assert (up.p_growth[0], down.p_decay[0]) == pytest.approx((greater, less))
    low, high = scipy.stats.t.interval(0.90, 4, powers.mean(), scipy.stats.sem(powers))
    assert (found.slope_low[0], found.slope_high[0]) == pytest.approx((low, high))
    levels = (np.log2(t[16:]).mean() * powers).tolist()
    low, high = scipy.stats.t.interval(0.95, 4, np.mean(levels), scipy.stats.sem(levels))
    assert (found.level_low[0], found.level_high[0]) == pytest.approx((low, high))


def test_the_least_favourable_standard_error_counts():
    estimate = np.array([0.02])
    small, large = (np.array([0.01]), np.array([40.0])), (np.array([0.012]), np.array([3.0]))
    both = statistics_noise.Estimate(estimate, [small, large])
    t = scipy.stats.t
    assert both.half_width(0.05)[0] == pytest.approx(max(t.ppf(0.95, 40) * 0.01, t.ppf(0.95, 3) * 0.012))
    assert both.p_below(0.05)[0] == pytest.approx(max(t.sf(0.03 / 0.01, 40), t.sf(0.03 / 0.012, 3)))
    assert both.p_above(0.05)[0] == pytest.approx(max(t.sf(-0.03 / 0.01, 40), t.sf(-0.03 / 0.012, 3)))
    assert statistics_noise.Estimate(estimate, [small]).p_below(0.05)[0] < both.p_below(0.05)[0]
    exact = statistics_noise.Estimate(estimate, [(np.zeros(1), np.array([5.0]))])
    assert (exact.p_below(0.05)[0], exact.p_above(0.05)[0], exact.p_above(0.02)[0]) == (0.0, 1.0, 1.0)


def test_rise_is_students_over_documents():
    rng = np.random.default_rng(8)
    y = np.exp(rng.uniform(-0.1, 0.1, (6, 63)))
    y[:, 0] *= rng.uniform(0.2, 0.4, 6)
    found = analyse(y)
    rises = np.log(y[:, 16:]).mean(axis=1) - np.log(y[:, 0])
    low, high = scipy.stats.t.interval(0.90, 5, rises.mean(), scipy.stats.sem(rises))
    assert found.rise[0] == pytest.approx(rises.mean())
    assert (found.rise_low[0], found.rise_high[0]) == pytest.approx((low, high))


def test_late_figures_are_those_of_the_last_half_and_the_last_fifth():
    y = np.exp(np.random.default_rng(9).normal(0, 0.1, (5, 63)))
    z = statistics_plateau._clip(np.log(y)[None, :, 3:])[0].mean(axis=0)  # of steps 4 to 63
    found = analyse(y)
    assert found.late_slope[0] == pytest.approx(np.polyfit(np.log2(np.arange(33, 64)), z[29:], 1)[0])
    assert found.late_step[0] == pytest.approx(z[-9:].mean() - z[13:-9].mean())  # 9 of the 47 steps that judge


def test_a_curve_that_is_flat_on_average_and_turns_up_late_is_no_plateau():
    # Down and up again: no window sees growth, and neither does the last fifth; the last half does.
    t = np.arange(1, 128.0)
    curve = 1 + 0.4 * (t / 127 - 0.6) ** 2
    found = analyse(curve * np.exp(0.03 * ar1(np.random.default_rng(1), (20, 6, 127), 0.0)))
    assert (found.p_equivalence < 0.05).sum() >= 15
    assert np.isin(found.code, FLAT).sum() <= 3
    assert (found.code == Code.LATE_CHANGE).sum() >= 15


# ------------------------------------------------------------------------------------------ models
def dense_lead(z, first, steps):
    """AICc lead and best model of the document mean z [step], by generalised least squares with dense inverses."""
    n = len(z)
    t = np.arange(first + 1, steps + 1.0)
    ends = np.array([steps / 2, steps])  # a model that changes must do so over the last doubling
    models = [("constant", 0, [lambda s: s**0])]
    for tau in np.geomspace(1.0, max(2.0, steps / 8), 8):
        models.append(("saturating exponential", 1, [lambda s: s**0, lambda s, tau=tau: np.exp(-(s - first) / tau)]))
    models.append(("power law", 0, [lambda s: s**0, np.log2]))
    models.append(("exponential", 0, [lambda s: s**0, lambda s: s]))
    models.append(("quadratic in log depth", 0, [lambda s: s**0, np.log2, lambda s: np.log2(s) ** 2]))
    for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9):
        at = share * steps
        if 3 <= (t > at).sum() <= n - 3:
            models.append(("late change", 1, [lambda s: s**0, lambda s, at=at: np.maximum(0, s - at)]))
            models.append(("late change", 1, [lambda s: s**0, lambda s, at=at: 1.0 * (s > at)]))
    best = {}
    for rho in (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95):
        covariance = correlation(n, rho) / (1 - rho**2)  # of AR(1) noise with innovations of unit variance
        inverse = scipy.linalg.inv(covariance)
        logdet = np.linalg.slogdet(covariance)[1]
        for name, nonlinear, columns in models:
            design = np.stack([c(t) for c in columns], axis=1)
            beta = np.linalg.solve(design.T @ inverse @ design, design.T @ inverse @ z)
            rest = z - design @ beta
            k = len(columns) + nonlinear + 2  # and the noise's variance and autocorrelation
            aicc = n * math.log(rest @ inverse @ rest / n) + logdet + 2 * k + 2 * k * (k + 1) / (n - k - 1)
            change = np.diff(np.stack([c(ends) for c in columns], axis=1) @ beta)[0]
            if name in ("constant", "saturating exponential") or abs(change) > DELTA:
                best[name] = min(aicc, best.get(name, np.inf))
    flat = [best.pop("constant"), best.pop("saturating exponential")]
    names = ("constant", "saturating exponential", *best)
    values = [*flat, *best.values()]
    return min(flat) - min(best.values(), default=np.inf), names[int(np.argmin(values))]


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_models_are_compared_as_by_dense_generalised_least_squares(rho):
    steps, first = 63, 4
    t = np.arange(first + 1, steps + 1.0)
    shapes = [0 * t, 0.2 * np.log2(t), 2 * t / steps, -np.exp(-(t - 1) / 2), 3 * np.maximum(0, t / steps - 0.7)]
    z = np.stack(shapes) + 0.15 * ar1(np.random.default_rng(4), (len(shapes), len(t)), rho)
    lead, model = statistics_models.compare_models(z, first, steps, DELTA)
    for k in range(len(shapes)):
        truth, name = dense_lead(z[k], first, steps)
        if math.isfinite(truth):
            # Inverses of matrices with condition number up to (1 + rho) / (1 - rho) squared, rho at most 0.95; of the
            # sum of squares, whose logarithm is taken n times, a hundredth is left at least. Twice, for a difference.
            n = len(t)
            assert lead[k] == pytest.approx(truth, rel=0, abs=2 * n * 100 * (1.95 / 0.05) ** 2 * gamma(2 * n))
        else:
            assert lead[k] == -np.inf
        assert statistics_models.model_names()[model[k]] == name
    assert lead[2] > lead[0]


def test_whitening_is_that_of_the_dense_covariance():
    rho, n = 0.6, 12
    w = statistics_models._whiten(np.eye(n), rho).T
    covariance = correlation(n, rho) / (1 - rho**2)
    size = abs(w) @ covariance @ abs(w).T
    assert (abs(w @ covariance @ w.T - np.eye(n)) <= gamma(2 * n + 8) * size).all()
