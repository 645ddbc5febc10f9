"""``method="curvature"``: points that match score and curvature at the mode of all data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.optimize import minimize

from pseudocoreset import Dataset, Pseudocoreset, fit, fit_curvature
from pseudocoreset.models import MLP, Model, bnn, linear_regression, logistic_regression, poisson_regression
from pseudocoreset.subsets import Curvature
from tests.marks import slow_but

RNG = np.random.default_rng(0)
SCALES = np.array([0.1, 1.0, 30.0])
Z = RNG.normal(size=(400, 3))
Z[:, 2] += 0.95 * Z[:, 1]  # correlated
F = Z @ [1.0, -0.7, 0.5] - 0.3
X = (Z * SCALES).astype(np.float32)
LOGISTIC = Dataset.from_arrays(X, (RNG.uniform(size=400) < 1 / (1 + np.exp(-F))).astype(int))
COUNTS = Dataset.from_arrays(X, RNG.poisson(np.exp(0.5 * F)).astype(np.float32))
REAL = Dataset.from_arrays(X, (F + 0.4 * RNG.normal(size=400)).astype(np.float32))
QUIET = dict(key=jax.random.key(0), progress=False)


def expansions(model: Model, data: Dataset, coreset: Pseudocoreset) -> list[tuple[np.ndarray, np.ndarray]]:
    """Gradient and Hessian of the log posterior of all data and of the coreset, at the mode of all data, in float64."""
    bound = model.bind(data.train.x, data.train.y)

    def expansion(x, y, weights):
        def log_density(vector):
            params = bound.unflatten(vector)
            return bound.log_prior(params) + jnp.sum(weights * bound.log_likelihood(params, x, y))

        return jax.jit(log_density), jax.jit(jax.grad(log_density)), jax.jit(jax.hessian(log_density))

    with jax.enable_x64(True):
        targets = data.train.y if data.train.y.dtype.kind == "i" else data.train.y.astype(float)
        full = expansion(data.train.packed.astype(float), targets, np.ones(len(targets)))
        own = expansion(coreset.packed.astype(float), coreset.targets, coreset.weights)
        down = [lambda v, fn=fn: -np.asarray(fn(v)) for fn in full]
        mode = minimize(
            down[0], np.zeros(bound.num_params), jac=down[1], hess=down[2], method="trust-exact", options={"gtol": 1e-7}
        ).x
        return [(np.asarray(side[1](mode)), np.asarray(side[2](mode))) for side in (full, own)]


def assert_matches(model: Model, data: Dataset, coreset: Pseudocoreset, tolerance: float = 1e-6) -> None:
    (full_gradient, full_hessian), (own_gradient, own_hessian) = expansions(model, data, coreset)
    scale = np.sqrt(np.abs(np.diag(full_hessian)))
    np.testing.assert_allclose(own_gradient / scale, full_gradient / scale, atol=tolerance)
    np.testing.assert_allclose(
        own_hessian / np.outer(scale, scale), full_hessian / np.outer(scale, scale), atol=tolerance
    )


@pytest.mark.parametrize("form", ["real", "synthetic"])
def test_the_posterior_of_a_conjugate_regression_is_that_of_all_data(form):
    model = linear_regression(REAL, noise_scale=0.4, prior_scale=3.0)
    coreset = fit(model, REAL, "curvature", form=form, **QUIET).coreset
    with jax.enable_x64(True):
        full, own = (
            model.conjugate(*(jnp.asarray(a, float) for a in rows))
            for rows in [
                (REAL.train.x, REAL.train.y, np.ones(len(X))),
                (coreset.inputs, coreset.targets, coreset.weights),
            ]
        )
        deviation = np.sqrt(np.diag(full.covariance))
        np.testing.assert_allclose((own.mean - full.mean) / deviation, 0, atol=1e-8)
        difference = (own.covariance - full.covariance) / np.outer(deviation, deviation)
        np.testing.assert_allclose(difference, 0, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "data"),
    [(logistic_regression, LOGISTIC), (poisson_regression, COUNTS), (linear_regression, REAL)],
)
def test_gradient_and_hessian_of_real_points_at_the_mode_are_those_of_all_data(make, data):
    model = make(data, prior_scale=3.0)
    coreset = fit(model, data, "curvature", form="real", **QUIET).coreset
    assert coreset.metadata["settings"]["is_exact"]
    assert coreset.metadata["settings"]["mismatch"] < 1e-12
    d = model.num_params
    assert coreset.size <= d + d * (d + 1) // 2 + 1
    assert_matches(model, data, coreset)


def without_intercept(x, y=None):
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
    f = numpyro.deterministic("f", x @ slopes)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Poisson(jnp.exp(f)), obs=y)


def line(x):
    """A linear predictor of the columns ``z``, with an intercept."""
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
    return x["z"] @ slopes + numpyro.sample("intercept", dist.Normal(0.0, 3.0))


def binomial(x, y=None):
    f = numpyro.deterministic("f", line(x))
    with numpyro.plate("data", f.shape[0]):
        numpyro.sample("y", dist.Binomial(x["trials"], logits=f), obs=y)


def negative_binomial(x, y=None):
    f = numpyro.deterministic("f", line(x))
    with numpyro.plate("data", f.shape[0]):
        numpyro.sample("y", dist.NegativeBinomial2(x["exposure"] * jnp.exp(f), 2.0), obs=y)


def overdispersed(x, y=None):
    concentration = numpyro.sample("concentration", dist.LogNormal(0.0, 1.0))
    f = numpyro.deterministic("f", line(x))
    with numpyro.plate("data", f.shape[0]):
        numpyro.sample("y", dist.NegativeBinomial2(jnp.exp(f), concentration), obs=y)


def gamma(x, y=None):
    shape = numpyro.sample("shape", dist.LogNormal(0.0, 1.0))
    f = numpyro.deterministic("f", line(x) + x["offset"])
    with numpyro.plate("data", f.shape[0]):
        numpyro.sample("y", dist.Gamma(shape, shape * jnp.exp(-f)), obs=y)


def student(x, y=None):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    f = numpyro.deterministic("f", line(x))
    with numpyro.plate("data", f.shape[0]):
        numpyro.sample("y", dist.StudentT(5.0, f, scale), obs=y)


def squares(x, y=None):
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
    f = numpyro.deterministic("f", x**2 @ slopes)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, 1.0), obs=y)


def positive(x, y=None):
    slopes = numpyro.sample("slopes", dist.HalfNormal(3.0).expand([3]).to_event(1))
    f = numpyro.deterministic("f", x @ slopes)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, 1.0), obs=y)


TABLE = {
    "z": X,
    "trials": RNG.integers(3, 9, 400),
    "exposure": RNG.uniform(1.0, 4.0, 400).astype(np.float32),
    "offset": RNG.normal(size=400).astype(np.float32),
}
RATES = np.exp(0.5 * F) * TABLE["exposure"]
FAMILIES = {
    "logistic": (logistic_regression(LOGISTIC), LOGISTIC, 4),
    "Poisson": (poisson_regression(COUNTS), COUNTS, 8),
    "Poisson, no intercept": (Model.from_numpyro(without_intercept), COUNTS, 6),
    "normal": (linear_regression(REAL), REAL, 14),
    "normal, known noise": (linear_regression(REAL, noise_scale=0.4), REAL, 4),
    "binomial": (
        Model.from_numpyro(binomial),
        (("z", "trials"), RNG.binomial(TABLE["trials"], 1 / (1 + np.exp(-F)))),
        8,
    ),
    "negative binomial": (Model.from_numpyro(negative_binomial), (("z", "exposure"), RNG.poisson(RATES)), 8),
    "gamma": (Model.from_numpyro(gamma), (("z", "offset"), RNG.gamma(2.0, np.exp(F + TABLE["offset"]) / 2)), 14),
    "Student": (Model.from_numpyro(student), (("z",), F + 0.4 * RNG.standard_t(5, size=400)), 14),
}


@pytest.mark.parametrize("family", slow_but(FAMILIES, "logistic", "Poisson", "normal"))
def test_synthetic_points_have_gradient_and_hessian_of_all_data(family):
    model, data, most = FAMILIES[family]
    if not isinstance(data, Dataset):
        data = Dataset.from_arrays({name: TABLE[name] for name in data[0]}, data[1].astype(np.float32))
    coreset = fit(model, data, "curvature", **QUIET).coreset
    assert coreset.metadata["settings"]["form"] == "synthetic", coreset.metadata["settings"]["why"]
    assert coreset.size <= most
    assert coreset.metadata["settings"]["mismatch"] < 1e-12
    assert coreset.metadata["at_mode"]["nats"] < 1e-4
    # Inputs of several kinds are kept in float32.
    assert_matches(model, data, coreset, 1e-6 if data.train.layout is None else 1e-5)


@pytest.mark.parametrize(
    ("program", "data", "why"),
    [
        pytest.param(
            overdispersed,
            (TABLE["z"], RNG.poisson(RATES)),
            "no targets that the likelihood can have",
            marks=pytest.mark.slow,
        ),
        (lambda x, y=None: flat(x, y), (X / SCALES, LOGISTIC.train.y), "no site 'f'"),
        (squares, (X / SCALES, F), "not linear in the columns of x"),
        pytest.param(positive, (X / SCALES, F), "not linear in the parameters", marks=pytest.mark.slow),
    ],
)
def test_without_synthetic_points_there_are_real_ones_and_the_reason(program, data, why):
    x, y = data
    inputs = {"z": x.astype(np.float32)} if program is overdispersed else x.astype(np.float32)
    data = Dataset.from_arrays(inputs, y if y.dtype == np.int32 else y.astype(np.float32))
    coreset = fit(Model.from_numpyro(program), data, "curvature", **QUIET).coreset
    settings = coreset.metadata["settings"]
    assert settings["form"] == "real"
    assert why in settings["why"]
    assert settings["mismatch"] < 1e-12
    with pytest.raises(ValueError, match=f"form='synthetic': .*{why}.*take form='real'"):
        fit(Model.from_numpyro(program), data, "curvature", form="synthetic", **QUIET)


def test_real_points_are_data_and_keep_the_mass():
    coreset = fit_curvature(logistic_regression(LOGISTIC), LOGISTIC, form="real", **QUIET).coreset
    indices = coreset.metadata["indices"]
    np.testing.assert_array_equal(coreset.inputs, LOGISTIC.train.x[indices])
    np.testing.assert_array_equal(coreset.targets, LOGISTIC.train.y[indices])
    np.testing.assert_allclose(coreset.mass, 400, rtol=1e-6)


def hierarchy(groups: int, rows: int = 600) -> tuple[Model, Dataset]:
    rng = np.random.default_rng(1)
    x = {"z": rng.normal(size=(rows, 2)).astype(np.float32), "group": rng.integers(0, groups, rows)}
    effects = rng.normal(size=groups)
    y = x["z"] @ [0.5, -1.0] + effects[x["group"]] + 0.5 * rng.normal(size=rows)

    def program(x, y=None):
        slopes = numpyro.sample("slopes", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        spread = numpyro.sample("spread", dist.HalfNormal(1.0))
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        with numpyro.plate("groups", groups):
            effect = numpyro.sample("effect", dist.Normal(0.0, spread))
        with numpyro.plate("data", x["z"].shape[0]):
            numpyro.sample("y", dist.Normal(x["z"] @ slopes + effect[x["group"]], noise), obs=y)

    return Model.from_numpyro(program), Dataset.from_arrays(x, y.astype(np.float32))


def test_random_effects_are_matched_with_groups_that_stay_integers():
    model, data = hierarchy(6)
    coreset = fit(model, data, "curvature", **QUIET).coreset
    assert coreset.inputs["group"].dtype.kind == "i"
    assert set(coreset.inputs["group"]) == set(range(6))
    assert coreset.metadata["settings"]["mismatch"] < 1e-12
    assert_matches(model, data, coreset, 2e-6)


@pytest.mark.slow
def test_pairs_that_no_row_has_are_not_matched_one_by_one():
    model, data = hierarchy(45, 1500)  # 49 parameters, 1,275 numbers of a row, most of them always zero
    settings = fit(model, data, "curvature", **QUIET).coreset.metadata["settings"]
    assert settings["matched_numbers"] < 400
    assert settings["is_exact"]
    assert settings["mismatch"] < 1e-12


@pytest.mark.slow
def test_too_many_numbers_are_matched_in_part_and_the_result_says_so(caplog):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3000, 70)).astype(np.float32)
    y = (x @ rng.normal(size=70) / 8 + rng.normal(size=3000)).astype(np.float32)
    data = Dataset.from_arrays(x, y)
    result = fit(linear_regression(data, noise_scale=1.0), data, "curvature", form="real", size=150, **QUIET)
    settings = result.coreset.metadata["settings"]
    assert not settings["is_exact"]
    assert "matched along the directions that the data determine best" in caplog.text
    assert result.coreset.metadata["at_mode"]["nats"] < result.coreset.metadata["at_mode"]["other"] / 10


@pytest.mark.slow
def test_more_points_than_it_takes_are_nearer_beyond_second_order():
    model = logistic_regression(LOGISTIC)
    enough, more = (fit(model, LOGISTIC, "curvature", form="real", size=size, **QUIET).coreset for size in (15, 50))
    assert 15 < more.size <= 50
    assert more.metadata["settings"]["is_exact"]
    assert more.metadata["settings"]["spread"] < enough.metadata["settings"]["spread"] / 2
    assert_matches(model, LOGISTIC, more, 1e-5)
    free = fit(model, LOGISTIC, "curvature", size=50, **QUIET).coreset
    assert free.metadata["settings"]["form"] == "real"
    assert "nearer at draws than 4 synthetic points" in free.metadata["settings"]["why"]


def test_the_fewest_synthetic_points_are_as_many_as_the_parameters_of_the_predictor():
    model = Model.from_numpyro(without_intercept)
    coreset = fit(model, COUNTS, "curvature", size=3, **QUIET).coreset
    assert coreset.size == 3
    np.testing.assert_array_equal(coreset.targets, np.round(coreset.targets))
    assert coreset.metadata["settings"]["form"] == "synthetic"
    assert coreset.metadata["settings"]["mismatch"] < 1e-12
    with pytest.raises(ValueError, match="it takes 3 points, more than size=2; take form='real'"):
        fit(model, COUNTS, "curvature", size=2, form="synthetic", **QUIET)


def test_a_posterior_far_from_a_gaussian_is_told_of(caplog):
    data = Dataset.from_arrays(LINE, (LINE[:, 0] > 0).astype(int))  # separated
    result = fit(logistic_regression(data, prior_scale=1e4), data, "curvature", **QUIET)
    assert not result.coreset.metadata["settings"]["spread"] < 1
    assert "the posterior is far from a Gaussian there" in caplog.text
    assert "the points may be far from it. Give a larger size" in repr(result)
    automatic = fit(logistic_regression(data, prior_scale=1e4), data, size=10, steps=None, **QUIET)
    assert automatic.coreset.metadata["objective"] == "bpc_rkl"


def test_fewer_points_than_it_takes_are_the_best_of_that_number(caplog):
    model = logistic_regression(LOGISTIC)
    few, some = (fit(model, LOGISTIC, "curvature", form="real", size=size, **QUIET).coreset for size in (5, 9))
    assert (few.size, some.size) == (5, 9)
    assert few.metadata["settings"]["mismatch"] > 10 * some.metadata["settings"]["mismatch"] > 1e-6
    assert "size=5 is fewer than it takes, up to 15" in caplog.text


@pytest.mark.parametrize("double", slow_but([False, True], False))
def test_rare_categories_are_among_the_points(double):
    rng = np.random.default_rng(2)
    x = np.c_[np.ones(30_000), rng.normal(size=30_000) * 1e3, np.arange(30_000) < 3].astype(np.float32)
    y = (rng.uniform(size=30_000) < 0.02).astype(int)
    y[0] = 1
    data = Dataset.from_arrays(x, y)

    def program(x, y=None):
        slopes = numpyro.sample("slopes", dist.Cauchy(0.0, 1.0).expand([3]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Bernoulli(logits=x @ slopes), obs=y)

    with jax.enable_x64(double):
        coreset = fit(Model.from_numpyro(program), data, "curvature", form="real", **QUIET).coreset
    assert coreset.metadata["settings"]["mismatch"] < 1e-12
    assert coreset.metadata["settings"]["num_candidates"] < 30_000
    assert np.any(coreset.inputs[:, 2] == 1)


@pytest.mark.slow
def test_the_same_key_gives_the_same_points_and_another_gives_others():
    model, data = hierarchy(3, 5000)
    one, two, three = (
        fit(model, data, Curvature(), key=jax.random.key(seed), progress=False).coreset for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.weights, two.weights)
    assert one.metadata["indices"] == two.metadata["indices"] != three.metadata["indices"]


def flat(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1e12))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=slope * x[:, 0]), obs=y)


def unbounded(x, y=None):
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1e3))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(0.0, scale), obs=y)


LINE = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: fit(Model.from_numpyro(unbounded), Dataset.from_arrays(LINE, 0 * LINE[:, 0]), "curvature", **QUIET),
            ValueError,
            "'unbounded': the posterior of the full data has no mode.*narrower priors",
        ),
        (
            lambda: fit(bnn(MLP((4,)), LOGISTIC), LOGISTIC, "curvature", **QUIET),
            ValueError,
            "is a network, whose posterior has many modes",
        ),
        (
            lambda: fit(logistic_regression(LOGISTIC), LOGISTIC, "curvature", images_per_class=3, **QUIET),
            ValueError,
            "images_per_class=3: .* give size, or leave both out",
        ),
        (
            lambda: fit(logistic_regression(LOGISTIC), LOGISTIC, "curvature", size=401, **QUIET),
            ValueError,
            "size=401 is more than the 400 training data",
        ),
        (lambda: fit([poisson_regression(COUNTS)] * 2, COUNTS, "curvature", **QUIET), TypeError, "must be one Model"),
        (lambda: Curvature(form="best"), ValueError, "form='best' is unknown"),
        (lambda: fit(logistic_regression(LOGISTIC), LOGISTIC, "giga", **QUIET), ValueError, "give one of images_per_"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
