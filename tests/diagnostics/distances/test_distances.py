"""Distances between samples, against closed forms and SciPy."""

import jax
import numpy as np
import pytest
import scipy.spatial
import scipy.stats

from pseudocoreset.compute.limits import limited
from pseudocoreset.diagnostics.distances.between import (
    all_distances,
    energy_distance,
    maximum_mean_discrepancy,
    sliced_wasserstein,
)
from pseudocoreset.diagnostics.distances.gaussian import gaussian_divergences
from pseudocoreset.diagnostics.distances.groups import jackknife

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(37, 3)), 1.3 * RNG.normal(size=(23, 3)) + [1.0, 0.0, -0.5]


def test_one_dimension_is_scipys():
    x, y = X[:, 0], Y[:, 0]
    ours = sliced_wasserstein(x[:, None], y[:, None], key=KEY, order=1)
    np.testing.assert_allclose(ours, scipy.stats.wasserstein_distance(x, y), rtol=1e-12)
    # SciPy's is the square root of half the biased estimate of two.
    biased = scipy.stats.energy_distance(x, y) ** 2
    n, m = len(x), len(y)
    within = [np.abs(a[:, None] - a).mean() for a in (x, y)]
    unbiased = biased + within[0] + within[1] - within[0] * n / (n - 1) - within[1] * m / (m - 1)
    np.testing.assert_allclose(energy_distance(x[:, None], y[:, None]), unbiased, rtol=1e-10)


def test_a_shift_is_the_wasserstein_distance():
    shift = np.array([3.0, -4.0, 0.0])
    found = sliced_wasserstein(X, X + shift, key=KEY, num_projections=20_000)
    np.testing.assert_allclose(found, 5.0 / np.sqrt(3), rtol=0.02)  # E <v, shift>^2 = |shift|^2 / d
    for order in (1, 2):
        assert sliced_wasserstein(X, np.repeat(X, 3, axis=0), key=KEY, order=order) < 1e-12


@pytest.fixture
def several_chunks():
    with limited(pair_elements=50):
        yield


def test_pairs_are_scipys(several_chunks):
    cross, within_x, within_y = (scipy.spatial.distance.cdist(a, b) for a, b in ((X, Y), (X, X), (Y, Y)))

    def off_diagonal(values):
        return values[~np.eye(len(values), dtype=bool)].mean()

    np.testing.assert_allclose(
        energy_distance(X, Y), 2 * cross.mean() - off_diagonal(within_x) - off_diagonal(within_y), rtol=1e-9
    )
    kernel = [np.exp(-(values**2) / (2 * 0.7**2)) for values in (cross, within_x, within_y)]
    wanted = off_diagonal(kernel[1]) + off_diagonal(kernel[2]) - 2 * kernel[0].mean()
    np.testing.assert_allclose(maximum_mean_discrepancy(X, Y, bandwidth=0.7), wanted, rtol=1e-9)
    h = np.median(within_x[np.triu_indices(len(X), 1)])
    assert maximum_mean_discrepancy(X, Y) == pytest.approx(maximum_mean_discrepancy(X, Y, bandwidth=h))


def test_estimates_are_unbiased():
    """Of N(0, 1) and N(1, 1): closed forms, within four standard errors over many small samples."""
    rng = np.random.default_rng(1)
    pairs = [(rng.normal(size=(4, 1)), rng.normal(size=(6, 1)) + 1) for _ in range(4000)]

    def mean_distance(shift):  # E|Z|, Z of N(shift, 2)
        normal = scipy.stats.norm
        return 2 * np.exp(-(shift**2) / 4) / np.sqrt(np.pi) + shift * (1 - 2 * normal.cdf(-shift / np.sqrt(2)))

    def mean_kernel(shift):  # of bandwidth one
        return np.exp(-(shift**2) / 6) / np.sqrt(3)

    for estimate, wanted in (
        (energy_distance, 2 * mean_distance(1) - 2 * mean_distance(0)),
        (lambda x, y: maximum_mean_discrepancy(x, y, bandwidth=1.0), 2 * mean_kernel(0) - 2 * mean_kernel(1)),
    ):
        values = np.array([estimate(x, y) for x, y in pairs])
        assert abs(values.mean() - wanted) < 4 * values.std() / np.sqrt(len(values))


def test_jackknife_of_a_difference_of_means():
    """Groups of one size: the standard error of independent group means."""
    x, y = X[:36, 0], Y[:20, 0]
    groups = np.arange(36) // 6, np.arange(20) // 5

    def gap(keep_x, keep_y):
        return np.array([x[keep_x[groups[0]]].mean() - y[keep_y[groups[1]]].mean()])

    variance = x.reshape(6, 6).mean(1).var(ddof=1) / 6 + y.reshape(4, 5).mean(1).var(ddof=1) / 4
    np.testing.assert_allclose(jackknife(gap, groups), [np.sqrt(variance)], rtol=1e-9)
    assert jackknife(gap, (np.zeros(36, int), groups[1])) is None


def test_standard_errors_of_distances_are_true():
    """Against the spread over 600 pairs of samples, in groups that move together like chains.

    Errors a fifth too small, or a quarter too large, would be found in 95 % of cases.
    """
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(6), 5)

    def sample(shift):
        return (shift + rng.normal(size=(6, 1, 2)) * 0.5 + rng.normal(size=(6, 5, 2))).reshape(30, 2)

    settings = {"key": KEY, "bandwidth": 1.0, "groups": (labels, labels)}
    found = [all_distances(sample(0.0), sample(2.0), **settings) for _ in range(600)]
    for name in ("sliced_wasserstein", "energy", "mmd"):
        values = np.array([getattr(row, name) for row in found])
        errors = np.array([getattr(row, f"{name}_standard_error") for row in found])
        # The variance over 600 is known to sqrt(2 / 600) = 6 %; a jackknife of six groups errs upwards a little.
        assert 1 - 4 * 0.058 < np.mean(errors**2) / values.var() < 1.2 + 4 * 0.058, name
    alone = all_distances(X, Y, key=KEY)
    assert alone.energy_standard_error is None
    assert alone.energy == pytest.approx(energy_distance(X, Y) / np.sqrt(3))
    assert alone.mmd == pytest.approx(maximum_mean_discrepancy(X / np.sqrt(3), Y / np.sqrt(3)))
    assert alone.sliced_wasserstein == pytest.approx(np.sqrt(3) * sliced_wasserstein(X, Y, key=KEY) / np.sqrt(3))


def test_gaussian_fits():
    found = gaussian_divergences(X, Y)
    a, b = np.cov(X.T), np.cov(Y.T)
    gap = Y.mean(0) - X.mean(0)
    for value, (one, other) in ((found.forward, (a, b)), (found.reverse, (b, a))):
        inverse = np.linalg.inv(other)
        wanted = 0.5 * (
            np.trace(inverse @ one) + gap @ inverse @ gap - 3 + np.log(np.linalg.det(other) / np.linalg.det(one))
        )
        np.testing.assert_allclose(value, wanted, rtol=1e-9)
    np.testing.assert_allclose(found.mean_difference, np.sqrt(np.mean(gap**2 / np.diag(a))), rtol=1e-12)
    np.testing.assert_allclose(found.variance_ratio, (np.prod(np.diag(b)) / np.prod(np.diag(a))) ** (1 / 3), rtol=1e-9)
    same = gaussian_divergences(X, X)
    np.testing.assert_allclose(same, (0, 0, 0, 1), atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: energy_distance(X, Y[:, :2]), "x and y must be draws"),
        (lambda: energy_distance(X[:1], Y), "at least 2 draws; got 1 and 23"),
        (lambda: energy_distance(X * np.nan, Y), "must be finite"),
        (lambda: maximum_mean_discrepancy(X, Y, bandwidth=-1.0), "bandwidth must be a positive"),
        (lambda: sliced_wasserstein(X, Y, key=KEY, order=3), "order must be 1 or 2; got 3"),
        (lambda: sliced_wasserstein(X, Y, key=KEY, num_projections=0), "num_projections must be at least 1"),
        (lambda: gaussian_divergences(X[:4], Y), "x must have more than 4 draws"),
        (
            lambda: gaussian_divergences(X, np.c_[Y[:, :2], np.ones(len(Y))]),
            r"y: its draws do not move in columns \[2\]",
        ),
        (
            lambda: gaussian_divergences(np.c_[X[:, :2], 1 - X[:, :2].sum(1)], Y),
            "x: some columns of its draws determine",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
