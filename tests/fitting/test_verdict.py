"""The verdict: its intervals against closed forms, and no bad coreset that passes for a good one."""

import functools
import json
from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from pseudocoreset import Dataset, Pseudocoreset, fit
from pseudocoreset.fitting import Level, Verdict, judge
from pseudocoreset.fitting.verdict.likelihood import full_values
from pseudocoreset.models import MLP, Model, bnn, logistic_regression, poisson_regression
from pseudocoreset.subsets.curvature.density import Density
from pseudocoreset.subsets.curvature.mode import full_posterior

N, D = 300, 3
QUIET = {"key": jax.random.key(0), "progress": False}


def linear(x, y=None):
    """Linear regression with a noise of one: every posterior is a Gaussian."""
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 2.0).expand([D]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ slopes, 1.0), obs=y)


@functools.cache
def line() -> tuple[Model, Dataset]:
    random = np.random.default_rng(0)
    x = random.normal(size=(N, D)).astype(np.float32)
    y = (x @ [0.5, -1.0, 0.2] + random.normal(size=N)).astype(np.float32)
    return Model.from_numpyro(linear), Dataset.from_arrays(x, y)


def gaussian(x, y, weights) -> tuple[np.ndarray, np.ndarray]:
    """Mean and precision of the posterior."""
    x, y, weights = (np.asarray(a, float) for a in (x, y, weights))
    precision = np.eye(D) / 4 + (weights[:, None] * x).T @ x
    return np.linalg.solve(precision, x.T @ (weights * y)), precision


def divergence(one, other) -> float:
    """KL(one || other) of two Gaussians."""
    move = one[0] - other[0]
    trace = np.trace(np.linalg.solve(one[1], other[1]))
    log_det = np.linalg.slogdet(one[1])[1] - np.linalg.slogdet(other[1])[1]
    return 0.5 * (trace - D + move @ other[1] @ move + log_det)


def any_points(random) -> Pseudocoreset:
    """Points from near the data to far from them."""
    data = line()[1]
    size = int(random.integers(4, N))
    chosen = random.choice(N, size, replace=False)
    noise = random.choice([0.0, 0.1, 1.0])
    targets = data.train.y[chosen] + noise * random.normal(size=size)
    weights = random.gamma(random.choice([1.0, 100.0]), size=size)
    mass = N * random.choice([0.5, 1.0, 1.0, 1.5])
    weights = mass * weights / weights.sum()
    return Pseudocoreset(data.train.x[chosen], targets.astype(np.float32), weights.astype(np.float32), num_data=N)


def coverage(count: int) -> tuple[int, int]:
    """Intervals of two standard errors that cover the truth, of both divergences."""
    model, data = line()
    model = model.bind(data.train.x, data.train.y)
    full = gaussian(data.train.x, data.train.y, np.ones(N))
    covered = np.zeros(2, int)
    for i in range(count):
        coreset = any_points(np.random.default_rng(i))
        own = gaussian(coreset.inputs, coreset.targets, coreset.weights)
        verdict = judge(model, data, coreset, key=jax.random.key(i))
        for j, (found, truth) in enumerate(
            [(verdict.to_full, divergence(own, full)), (verdict.from_full, divergence(full, own))]
        ):
            covered[j] += abs(found.value - truth) <= 2 * found.standard_error
            assert abs(found.value - truth) <= 5 * found.standard_error + 1e-6, (i, found, truth)
    return tuple(covered.tolist())


def test_intervals_cover_the_divergences_of_gaussians() -> None:
    assert min(coverage(30)) >= 26  # 95 % of 30 give fewer in one of 70 draws of 30


@pytest.mark.slow
def test_intervals_cover_the_divergences_of_200_gaussians() -> None:
    assert min(coverage(200)) >= 184


BAD = ("random", "wrong labels", "mass of ones", "flat direction", "shifted")


def bad(kind: str, data: Dataset, seed: int) -> Pseudocoreset:
    """A coreset of 20 points that is far from the data."""
    random = np.random.default_rng(seed)
    size = 20
    chosen = random.choice(data.train.num_data, size, replace=False)
    x, y = np.array(data.train.x[chosen]), np.array(data.train.y[chosen])
    weights = np.full(size, data.train.num_data / size, np.float32)
    if kind == "wrong labels":
        y = 1 - y
    if kind == "mass of ones":
        weights[:] = 1.0
    if kind == "flat direction":
        x[:, random.integers(x.shape[1])] = 0.0
    if kind == "shifted":
        x = x + random.normal(size=x.shape[1]).astype(np.float32)
    return Pseudocoreset(x, y, weights, num_data=data.train.num_data)


def classes(rows: int, d: int = 4) -> Dataset:
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, d)).astype(np.float32)
    chances = 1 / (1 + np.exp(-x @ np.linspace(-1, 1, d)))
    return Dataset.from_arrays(x, (random.uniform(size=rows) < chances).astype(np.int32))


def good_ones(kinds: Sequence[str], count: int) -> list[tuple[str, int]]:
    """Of bad coresets those that pass for good ones."""
    data = classes(500)
    model = logistic_regression(data, prior_scale=5.0).bind(data.train.x, data.train.y)
    posterior = full_posterior(Density(model, data), jax.random.key(0))
    found = []
    for kind in kinds:
        for i in range(count):
            verdict = judge(model, data, bad(kind, data, i), key=jax.random.key(i), posterior=posterior)
            assert verdict.level in (Level.POOR, Level.USABLE, Level.GOOD)
            if verdict.level is Level.GOOD:
                found.append((kind, i))
    return found


def test_a_bad_coreset_is_never_good() -> None:
    assert good_ones(BAD, 2) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD)
def test_of_1000_bad_coresets_none_is_good(kind) -> None:
    assert good_ones([kind], 200) == []


def counts() -> Dataset:
    random = np.random.default_rng(1)
    x = random.normal(size=(1000, 3)).astype(np.float32)
    return Dataset.from_arrays(x, random.poisson(np.exp(0.3 * x.sum(1))).astype(np.float32))


@pytest.mark.parametrize(
    ("make", "data"),
    [(logistic_regression, classes(1000)), (poisson_regression, counts())],
    ids=["logistic", "poisson"],
)
def test_points_by_curvature_are_good_and_the_file_says_so(make, data, tmp_path) -> None:
    result = fit(make(data, prior_scale=5.0), data, "curvature", **QUIET)
    verdict = result.verdict
    assert verdict.level is Level.GOOD
    assert verdict.to_full.upper < 0.1
    assert "\nGOOD: the coreset posterior is " in repr(result)
    result.coreset.save(tmp_path / "coreset")
    saved = Verdict.of(Pseudocoreset.load(tmp_path / "coreset"))
    assert saved == replace(verdict, seconds=0.0)
    assert Verdict.of(result.coreset.with_mass(10)) is None  # another posterior
    json.dumps(verdict.as_dict(), allow_nan=False)
    far = Verdict(Level.POOR, to_full=replace(verdict.to_full, value=np.inf), pareto_k=np.inf)
    assert Verdict.from_dict(far.as_dict()) == far


def separated(x, y=None):
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 100.0).expand([2]).to_event(1))
    f = numpyro.deterministic("f", x @ slopes)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=f), obs=y)


def separated_data() -> Dataset:
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 2)).astype(np.float32)
    x[:, 0] += np.sign(x[:, 0])
    return Dataset.from_arrays(x, (x[:, 0] > 0).astype(np.int32))


def exact(data: Dataset, coreset: Pseudocoreset) -> tuple[float, float]:
    """Both divergences on a grid."""
    axes = np.linspace(-60.0, 500.0, 400), np.linspace(-300.0, 300.0, 400)
    at = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    logs = []
    for x, y, weights in (
        (data.train.x, data.train.y, np.ones(data.train.num_data)),
        (coreset.inputs, coreset.targets, coreset.weights),
    ):
        total = -np.sum(at**2, axis=1) / 2 / 100.0**2
        y = y if np.ndim(y) == 1 else np.asarray(y)[:, 1]
        for row, chance, weight in zip(np.asarray(x, float), y, weights, strict=True):
            f = at @ row
            total += weight * (chance * f - np.logaddexp(0.0, f))
        logs.append(total - np.logaddexp.reduce(total))
    full, own = logs
    return float(np.exp(own) @ (own - full)), float(np.exp(full) @ (full - own))


def test_separated_classes_under_a_wide_prior_are_not_good_by_laplace_alone() -> None:
    """The posterior is half a Gaussian: score and curvature at the mode say nothing of it."""
    data = separated_data()
    result = fit(Model.from_numpyro(separated), data, "curvature", **QUIET)
    assert result.coreset.metadata["at_mode"]["nats"] < 0.1
    assert result.verdict.level in (Level.POOR, Level.USABLE)
    for found, truth in zip(
        (result.verdict.to_full, result.verdict.from_full), exact(data, result.coreset), strict=True
    ):
        assert result.verdict.is_bound or abs(found.value - truth) < 4 * found.standard_error + 0.1 * truth


def test_a_network_and_points_with_a_mass_of_ones_have_no_verdict_but_a_reason() -> None:
    data = classes(60)
    network = fit(bnn(MLP((4,)), data), data, "random", size=4, **QUIET)
    assert network.verdict.level is Level.NOT_KNOWN
    assert "NOT KNOWN: the posterior of a network has many modes. To know it, sample a short posterior" in repr(network)
    ones = fit(logistic_regression(data), data, "herding", size=4, weights="ones", **QUIET)
    assert ones.verdict.level is Level.NOT_KNOWN
    assert "with_mass('data')" in ones.verdict.reason


def test_a_poor_coreset_warns_and_can_be_worse_than_random_points(caplog) -> None:
    data = classes(400)
    chosen = fit(logistic_regression(data), data, "herding", size=3, features=lambda x: x, **QUIET)
    assert chosen.verdict.level is Level.POOR
    assert "POOR: " in caplog.text
    worse = replace(chosen.verdict, to_full=replace(chosen.verdict.to_full, value=1e9))
    worse = replace(worse, uniform=replace(worse.to_full, value=1.0, standard_error=0.1))
    first = repr(replace(chosen, verdict=worse)).splitlines()[0]
    assert first.startswith("FitResult(worse than a uniform subset of as many points; ")


def test_without_a_verdict_nothing_is_judged(monkeypatch) -> None:
    data = classes(60)
    monkeypatch.setattr("pseudocoreset.fitting.running.judge", None)
    result = fit(logistic_regression(data), data, "random", size=10, verdict=False, **QUIET)
    assert result.verdict is None
    assert "verdict" not in result.coreset.metadata


def test_a_fit_outlives_a_judge_that_fails(monkeypatch, caplog) -> None:
    def fails(*_, **__):
        raise FloatingPointError("no number")

    data = classes(60)
    monkeypatch.setattr("pseudocoreset.fitting.running.judge", fails)
    result = fit(logistic_regression(data), data, "random", size=10, **QUIET)
    assert result.verdict.level is Level.NOT_KNOWN
    assert "judging it failed with FloatingPointError: no number" in repr(result)
    assert "could not be judged" in caplog.text


def test_points_that_leave_a_direction_to_a_flat_prior_are_poor() -> None:
    def flat(x, y=None):
        slopes = numpyro.sample("slopes", dist.Normal(0.0, 1e6).expand([D]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(x @ slopes, 1.0), obs=y)

    data = line()[1]
    x = np.array(data.train.x[:50])
    x[:, 1] = 0.0
    points = Pseudocoreset(x, data.train.y[:50], np.full(50, N / 50, np.float32), num_data=N)
    verdict = judge(Model.from_numpyro(flat), data, points, key=jax.random.key(0))
    assert verdict.level is Level.POOR
    assert verdict.to_full.value > 1e6
    assert verdict.from_full.value == pytest.approx(np.log(1e6 * np.sqrt(N)), rel=0.1)


def test_the_likelihood_of_some_rows_is_that_of_all_within_what_its_blocks_tell() -> None:
    """Of a curved log-likelihood, up to a constant, which no divergence sees."""
    data = classes(40_000)
    density = Density(logistic_regression(data, prior_scale=5.0).bind(data.train.x, data.train.y), data)
    posterior = full_posterior(density, jax.random.key(0))
    random = np.random.default_rng(0)
    draws = posterior.mode + 3 * random.normal(size=(40, 5)) @ posterior.factor.T
    some = full_values(density, posterior, draws, random, most=1)
    every = full_values(density, posterior, draws, random)
    assert (some.num_rows, every.num_rows, len(every.without)) == (10_000, 40_000, 0)
    errors = (some.values - every.values) - np.mean(some.values - every.values)
    spread = np.sqrt(9 * np.var(some.without - some.without.mean(1, keepdims=True), axis=0))
    assert np.sqrt(np.mean((errors / spread) ** 2)) < 2.5
    assert np.sqrt(np.mean(errors**2)) < 0.05 * np.std(every.values)
