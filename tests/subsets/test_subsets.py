"""Subsets of the real data: against brute force, against the exact divergence, and what the front doors promise."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from pseudocoreset import Dataset, Pseudocoreset, fit_giga, fit_herding, fit_k_centres, fit_random, fit_sparse_vi
from pseudocoreset.fitting import Outcome
from pseudocoreset.models import MLP, Gaussian, bnn, gaussian_location, linear_regression, logistic_regression
from pseudocoreset.subsets.giga import geodesic_ascent

RNG = np.random.default_rng(11)
KEY = jax.random.key(3)
X = RNG.normal(size=(50, 3)).astype(np.float32)
Y = (np.arange(50) % 3).astype(np.int32)  # 17, 17 and 16 of a class
DATA = Dataset.from_arrays(X, Y)
MODEL = gaussian_location(DATA)
ANGLES = RNG.uniform(0, 2 * np.pi, 500)
# A ring, on which no datum is near the mean.
POINTS = (2 * np.c_[np.cos(ANGLES), np.sin(ANGLES)] + 0.3 * RNG.normal(size=(500, 2)) + 1.0).astype(np.float32)
LOCATIONS = Dataset.from_arrays(POINTS)
LOCATION = gaussian_location(LOCATIONS)
FEATURE_METHODS = {"herding": fit_herding, "k_centres": fit_k_centres}
WEIGHTED_METHODS = {"sparse_vi": fit_sparse_vi, "giga": fit_giga}
# Every method, quick.
METHODS = {
    "random": fit_random,
    **FEATURE_METHODS,
    "sparse_vi": lambda *a, **k: fit_sparse_vi(*a, **{"num_weight_steps": 20, "num_draws": 20, **k}),
    "giga": fit_giga,
}


def fit(method, model=MODEL, data=DATA, **arguments):
    return method(model, data, **{"key": KEY, "progress": False, **arguments})


def indices_of(coreset):
    return np.asarray(coreset.metadata["indices"])


def herd(features, count):
    """Against all data at every step, in float64."""
    features = features.astype(np.float64)
    chosen, distances = [], []
    for _ in range(count):
        gap = [
            np.inf if i in chosen else np.linalg.norm(features[[*chosen, i]].mean(0) - features.mean(0))
            for i in range(len(features))
        ]
        chosen.append(int(np.argmin(gap)))
        distances.append(min(gap))
    return chosen, distances


def farthest_first(features, count):
    features = features.astype(np.float64)
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    chosen = [int(np.argmin(np.linalg.norm(features - features.mean(0), axis=1)))]
    while len(chosen) < count:
        chosen.append(int(np.argmax(distances[:, chosen].min(1))))
    return chosen, [distances[:, chosen[: i + 1]].min(1).max() for i in range(count)]


def moments(columns):
    """Columns in standard units, and their products."""
    columns = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    pairs = itertools.combinations_with_replacement(range(columns.shape[1]), 2)
    return np.stack([*columns.T, *(columns[:, i] * columns[:, j] for i, j in pairs)], axis=1)


@pytest.mark.parametrize(("name", "brute", "measure"), [
    ("herding", herd, "distance_to_mean"),
    ("k_centres", farthest_first, "radius"),
])  # fmt: skip
def test_greedy_choices_are_those_of_brute_force(name, brute, measure):
    result = fit(FEATURE_METHODS[name], size=20, weights="data")
    # Columns of a table count alike; herding matches second moments too, those with the label among them.
    features = X / np.std(X, axis=0) if name == "k_centres" else moments(np.c_[X, Y == 1, Y == 2].astype(float))
    chosen, measures = brute(features, 20)
    assert indices_of(result.coreset).tolist() == chosen
    np.testing.assert_allclose(result.history[measure], measures, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(result.coreset.inputs, X[chosen])

    balanced = fit(FEATURE_METHODS[name], images_per_class=4, weights="data")
    wanted = [np.flatnonzero(label == Y)[brute(features[label == Y], 4)[0]] for label in range(3)]
    np.testing.assert_array_equal(indices_of(balanced.coreset), np.concatenate(wanted))
    assert balanced.history[measure].shape == (12,)


@pytest.mark.parametrize("name", FEATURE_METHODS)
def test_features_as_a_function_and_as_an_array_are_the_same(name):
    chosen = [
        indices_of(fit(FEATURE_METHODS[name], size=6, weights="data", features=features).coreset).tolist()
        for features in (lambda x: x[:, :2] ** 2, X[:, :2] ** 2, None)
    ]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_radius_of_k_centres_is_within_twice_the_best(count):
    for seed in range(5):
        x = np.random.default_rng(seed).normal(size=(14, 2)).astype(np.float32)
        distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
        best = min(distances[:, list(c)].min(1).max() for c in itertools.combinations(range(14), count))
        data = Dataset.from_arrays(x)
        result = fit(fit_k_centres, gaussian_location(data), data, size=count, features=x, weights="data")
        radius = result.history["radius"]
        assert best - 1e-5 <= radius[-1] <= 2 * best
        assert np.all(np.diff(radius) <= 0)


def test_k_centres_takes_copies_of_a_datum_once_each():
    data = Dataset.from_arrays(np.repeat(np.eye(2, dtype=np.float32), 4, axis=0))
    result = fit(fit_k_centres, gaussian_location(data), data, size=8)
    assert sorted(indices_of(result.coreset)) == list(range(8))
    np.testing.assert_array_equal(result.history["radius"][1:], 0.0)


def ascent(vectors, steps, groups=None, quota=None):
    groups = np.zeros(len(vectors), np.int32) if groups is None else groups
    found = geodesic_ascent(jnp.asarray(vectors), jnp.asarray(groups), steps if quota is None else quota, steps)
    return tuple(map(np.asarray, found))


def relative_error(vectors, weights):
    total = vectors.sum(0)
    return np.linalg.norm(weights @ vectors - total) / np.linalg.norm(total)


def test_geodesic_ascent_takes_the_steps_of_the_paper():
    """Algorithm 2 with angles instead of inner products: each choice and each point on its geodesic by search."""
    vectors = np.random.default_rng(0).normal(size=(40, 6)) + 0.5
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    target = vectors.sum(0) / np.linalg.norm(vectors.sum(0))
    weights = np.zeros(40)
    wanted = []
    for number in range(8):
        here = weights @ units
        if number == 0:
            best, share = int(np.argmax(units @ target)), 1.0
        else:
            tangents = units - np.outer(units @ here, here)
            tangents /= np.maximum(np.linalg.norm(tangents, axis=1, keepdims=True), 1e-6)
            best = int(np.argmax(tangents @ (target - (target @ here) * here)))

            def off_target(share, here=here, unit=units[best]):
                point = (1 - share) * here + share * unit
                return np.sum((point / np.linalg.norm(point) - target) ** 2)

            share = minimize_scalar(off_target, bounds=(0, 1), options={"xatol": 1e-10}).x
        weights *= 1 - share
        weights[best] += share
        weights /= np.linalg.norm(weights @ units)
        wanted.append(np.sqrt(1 - (target @ (weights @ units)) ** 2))
    with jax.enable_x64(True):
        found, errors = ascent(vectors, 8)
    np.testing.assert_allclose(errors, wanted, rtol=1e-4)
    np.testing.assert_allclose(relative_error(vectors, found), errors[-1], rtol=1e-8)
    assert set(np.flatnonzero(found)) == set(np.flatnonzero(weights))


def test_geodesic_ascent_finds_a_sum_in_the_cone_of_a_few():
    """200 data that are mixtures of 3 of them, in 20 dimensions."""
    rng = np.random.default_rng(1)
    corners = rng.normal(size=(3, 20))
    vectors = np.concatenate([corners, rng.dirichlet(np.ones(3), 197) @ corners]).astype(np.float32)
    weights, errors = ascent(vectors, 60)
    assert relative_error(vectors, weights) < 1e-3
    assert np.all(np.diff(errors) <= 0)
    assert errors[-1] < 0.05 * errors[1]
    assert weights.min() >= 0


def test_geodesic_ascent_in_single_precision_is_that_of_double():
    """Gradients that cancel, as at a mode, and are much longer than the sum that is left."""
    rng = np.random.default_rng(3)
    gradients = rng.normal(size=(300, 2))
    vectors = 1e5 * (gradients - gradients.mean(axis=0)) @ rng.normal(size=(2, 30)) + rng.normal(size=(300, 30)) + 0.3
    vectors = vectors.astype(np.float32).astype(np.float64)
    with jax.enable_x64(True):
        double, errors = ascent(vectors, 80)
    single, found = ascent(vectors.astype(np.float32), 80)
    np.testing.assert_array_equal(np.flatnonzero(single), np.flatnonzero(double))
    np.testing.assert_allclose(single, double, rtol=1e-6)
    np.testing.assert_allclose(found, errors, rtol=1e-6)
    # The error of the direction, and that of the sum at the best length along it.
    assert relative_error(vectors, single) == pytest.approx(errors[-1], rel=1e-2)


def test_geodesic_ascent_keeps_to_its_quota_and_leaves_out_what_says_nothing():
    vectors = np.random.default_rng(2).normal(size=(60, 10)).astype(np.float32) + 0.3
    vectors[::7] = 0.0
    groups = (np.arange(60) % 4).astype(np.int32)
    weights, errors = ascent(vectors, 30, groups, quota=2)
    assert np.bincount(groups[weights > 0], minlength=4).max() <= 2
    assert np.all(weights[::7] == 0)
    assert np.all(np.isfinite(weights))
    # The scale is the best one.
    for factor in (0.99, 1.01):
        assert relative_error(vectors, weights) < relative_error(vectors, factor * weights)
    np.testing.assert_allclose(relative_error(vectors, weights), errors[-1], rtol=1e-4)


def location_divergence(x, w):
    """KL(coreset posterior || full-data posterior) of N(theta, I) data with a N(0, I) prior, in float64."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    small, full = 1 / (1 + w.sum()), 1 / (1 + len(POINTS))
    shift = small * (w @ x) - full * POINTS.astype(np.float64).sum(0)
    return 0.5 * np.sum(small / full - 1 + np.log(full / small) + shift**2 / full)


@pytest.fixture(scope="module")
def uniform():
    """Median divergence of 10 uniform subsets of each size."""

    def divergence(size, seed):
        chosen = fit(fit_random, LOCATION, LOCATIONS, size=size, key=jax.random.key(seed)).coreset
        return location_divergence(chosen.inputs, chosen.weights)

    return {size: np.median([divergence(size, seed) for seed in range(10)]) for size in (1, 3, 8)}


def test_sparse_vi_lowers_the_exact_divergence(uniform):
    divergence = []

    def callback(choices, coreset, info):
        assert coreset.size <= choices
        assert coreset.mass == pytest.approx(info["mass"], rel=1e-5)
        np.testing.assert_array_equal(coreset.inputs, POINTS[indices_of(coreset)])
        divergence.append(location_divergence(coreset.inputs, coreset.weights))
        return choices == 9

    arguments = dict(num_weight_steps=200, batch_size=None, callbacks=[callback])
    result = fit(fit_sparse_vi, LOCATION, LOCATIONS, size=12, **arguments)
    assert all(divergence[size - 1] < 0.5 * uniform[size] for size in uniform)
    assert divergence[0] > divergence[1] > 100 * divergence[3]  # three points have the mean of all among them
    assert max(divergence[3:]) < 0.05
    assert np.all(np.diff(divergence) < 0.01)
    assert 450 < result.coreset.mass < 550
    assert result.outcome is Outcome.STOPPED
    assert {name: values.shape for name, values in result.history.items()} == dict.fromkeys(
        ("correlation", "residual", "mass"), (9,)
    )
    assert result.history["residual"][-1] < 0.1 * result.history["residual"][0]


def test_giga_lowers_the_exact_divergence(uniform):
    results = {size: fit(fit_giga, LOCATION, LOCATIONS, size=size) for size in (8, 30)}
    divergence = {s: location_divergence(r.coreset.inputs, r.coreset.weights) for s, r in results.items()}
    assert divergence[8] < 0.01 * uniform[8]
    assert divergence[30] < 0.1
    errors = results[30].history["error"]
    assert errors.shape == (30,)
    assert np.all(np.diff(errors) <= 0)
    assert errors[-1] < 0.02 * errors[0]


def test_giga_with_a_given_gaussian():
    """A tighter one sees the data as nearly linear functions; one of other parameters is refused."""
    full = Gaussian(jnp.asarray(POINTS.mean(0)), jnp.asarray(0.03))
    given = fit(fit_giga, LOCATION, LOCATIONS, size=8, posterior=full)
    assert given.coreset.metadata["settings"]["proxy"] == "given"
    assert location_divergence(given.coreset.inputs, given.coreset.weights) < 10
    with pytest.raises(ValueError, match=r"posterior .*2 parameters.*\(3,\)"):
        fit(fit_giga, LOCATION, LOCATIONS, size=8, posterior=Gaussian(jnp.zeros(3), jnp.ones(3)))


@pytest.mark.slow
def test_sparse_vi_of_a_regression_beats_uniform_subsets():
    """Where data differ in what they say, with candidates and batches."""
    x = RNG.normal(size=(500, 4)).astype(np.float32)
    y = (x @ [1.0, -2.0, 0.5, 0.0] + 0.5 * RNG.normal(size=500)).astype(np.float32)
    data = Dataset.from_arrays(x, y)
    model = linear_regression(data, noise_scale=0.5, intercept=False)

    def posterior(x, y, w):
        x = x.astype(np.float64)
        covariance = np.linalg.inv(np.eye(4) + (x.T * w) @ x / 0.25)
        return covariance @ (x.T @ (w * y) / 0.25), covariance

    def divergence(coreset):
        (m, s), (mean, full) = posterior(coreset.inputs, coreset.targets, coreset.weights), posterior(x, y, 1.0)
        inverse = np.linalg.inv(full)
        logs = np.linalg.slogdet(full)[1] - np.linalg.slogdet(s)[1]
        return 0.5 * (np.trace(inverse @ s) + (m - mean) @ inverse @ (m - mean) - 4 + logs)

    plain = np.median(
        [divergence(fit(fit_random, model, data, size=15, key=jax.random.key(i)).coreset) for i in range(10)]
    )
    sparse = fit(fit_sparse_vi, model, data, size=15, num_weight_steps=100, num_candidates=200, batch_size=100)
    assert divergence(sparse.coreset) < 0.05 * plain


@pytest.mark.slow
def test_sparse_vi_of_a_logistic_regression():
    """Through the Laplace approximation: the mode moves towards that of the full data."""
    model = logistic_regression(DATA)
    result = fit(fit_sparse_vi, model, images_per_class=4, num_weight_steps=30, num_draws=50)
    assert result.coreset.metadata["settings"]["proxy"] == "laplace"
    assert np.bincount(result.coreset.targets).max() <= 4
    assert result.history["residual"][-1] < 0.3 * result.history["residual"][0]


@pytest.mark.parametrize("name", METHODS)
def test_sizes_and_balance(name):
    balanced = fit(METHODS[name], images_per_class=2).coreset
    exact = name not in WEIGHTED_METHODS
    counts = np.bincount(balanced.targets, minlength=3)
    assert counts.tolist() == [2, 2, 2] if exact else 1 <= counts.max() <= 2
    in_all = fit(METHODS[name], size=7)
    assert in_all.coreset.size == 7 if exact else 1 <= in_all.coreset.size <= 7
    assert in_all.outcome is Outcome.COMPLETED
    assert in_all.coreset.metadata["objective"] == name
    assert in_all.coreset.num_data == 50
    assert all(values.shape == (7,) for values in in_all.history.values())
    if name != "random":
        assert len(set(indices_of(in_all.coreset))) == in_all.coreset.size


@pytest.mark.parametrize("name", METHODS)
def test_the_same_key_gives_the_same_bits(name, tmp_path):
    one, other = (fit(METHODS[name], size=7).coreset for _ in range(2))
    for leaf in ("inputs", "targets", "weights"):
        np.testing.assert_array_equal(getattr(one, leaf), getattr(other, leaf))
    one.save(tmp_path / name)
    np.testing.assert_array_equal(Pseudocoreset.load(tmp_path / name).weights, one.weights)
    changed = fit(METHODS[name], size=7, key=jax.random.key(4)).coreset
    same = one.size == changed.size and np.array_equal(one.weights, changed.weights)
    assert (same and np.array_equal(one.inputs, changed.inputs)) == (name in FEATURE_METHODS)


def test_random_is_where_a_fit_starts_and_masses():
    start = Pseudocoreset.from_data(DATA, images_per_class=2, key=KEY)
    np.testing.assert_array_equal(fit(fit_random, images_per_class=2).coreset.inputs, start.inputs)
    for method in (fit_random, *FEATURE_METHODS.values()):
        assert fit(method, size=7).coreset.mass == pytest.approx(50)
        assert fit(method, size=7, weights="ones").coreset.mass == 7
        assert fit(method, bnn(MLP((4,)), DATA), size=7).coreset.mass == 7


ANY = list(METHODS)
BY_FEATURES = list(FEATURE_METHODS)


@pytest.mark.parametrize(
    ("names", "arguments", "error", "message"),
    [
        (ANY, dict(size=None), ValueError, "one of images_per_class and size"),
        (ANY, dict(images_per_class=2), ValueError, "one of images_per_class and size"),
        (ANY, dict(size=51), ValueError, "size=51.*50"),
        (ANY, dict(size=0), ValueError, "size"),
        (ANY, dict(size=None, images_per_class=17), ValueError, "images_per_class=17, but class 2 has 16"),
        (ANY, dict(model=LOCATION, data=LOCATIONS, size=None, images_per_class=1), ValueError, "needs classes"),
        (ANY, dict(key=3), TypeError, "jax.random.key"),
        (ANY, dict(model="logistic"), TypeError, "model must be"),
        (["random", *BY_FEATURES], dict(weights="learned"), ValueError, "weights='learned'"),
        (BY_FEATURES, dict(features=X[:9]), ValueError, r"features.*\(50, d\).*\(9, 3\)"),
        (BY_FEATURES, dict(features=lambda x: x[:, 0]), ValueError, r"features.*\(50, d\).*\(50,\)"),
        (BY_FEATURES, dict(features=np.full((50, 2), np.nan)), ValueError, "features has 100"),
        (list(WEIGHTED_METHODS), dict(num_draws=1), ValueError, "num_draws"),
        (list(WEIGHTED_METHODS), dict(model=[MODEL, MODEL]), TypeError, "model must be one Model.*got 2"),
        (list(WEIGHTED_METHODS), dict(model=bnn(MLP((4,)), DATA)), ValueError, "dense Laplace"),
        (["sparse_vi"], dict(proxy="chains"), ValueError, "proxy='chains'"),
        (["sparse_vi"], dict(model=logistic_regression(DATA), proxy="conjugate"), ValueError, "no conjugate posterior"),
        (["sparse_vi"], dict(step_size=0.0), ValueError, "step_size"),
        (["sparse_vi"], dict(num_candidates=0), ValueError, "num_candidates"),
        (["sparse_vi"], dict(num_weight_steps=0), ValueError, "num_weight_steps"),
        (["sparse_vi"], dict(batch_size=0), ValueError, "batch_size"),
        (["giga"], dict(posterior="exact"), ValueError, "posterior='exact'"),
    ],
)
def test_bad_arguments_are_named_before_anything_runs(names, arguments, error, message):
    for name in names:
        with pytest.raises(error, match=message):
            fit(METHODS[name], **{"size": 5, **arguments})
