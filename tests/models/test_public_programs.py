"""Programs of the kinds that people publish in galleries, tutorials and books: right, or refused in a sentence."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.contrib.hsgp.approximation import hsgp_squared_exponential
from numpyro.contrib.module import flax_module, random_flax_module
from numpyro.distributions.transforms import OrderedTransform, SimplexToOrderedTransform
from scipy import special, stats

from tests.models.contract import REFUSALS, assert_is_a_sentence, check, right_or_refused

N = 8
RNG = np.random.default_rng(7)
Z = RNG.normal(size=N)
REAL = RNG.normal(size=N)
POSITIVE = RNG.gamma(2.0, size=N)
COUNTS = RNG.poisson(3.0, N)
BINARY = np.arange(N) % 2
GROUP = RNG.permutation(np.arange(N) % 4)
TRIALS = RNG.integers(5, 20, N)
SUCCESSES = RNG.binomial(TRIALS, 0.4)
FEATURES = RNG.normal(size=(N, 3))


@dataclass(frozen=True)
class Public:
    """A program with data, what SciPy says of its rows where that is short, and how it may be refused.

    ``refused`` is None where it must be right, and words of the refusal where it must be refused; with ``or_right``
    both will do.
    """

    program: Callable[..., Any]
    x: Any
    y: np.ndarray
    rows: Callable[..., Any] | None = None
    refused: tuple[str, ...] | None = None
    or_right: bool = False
    reference: Callable[..., Any] | None = None
    inputs_move: bool = True


PROGRAMS: dict[str, Public] = {}


def public(x: Any, y: Any, **expected: Any) -> Callable[..., Any]:
    def register(program: Callable[..., Any]) -> Callable[..., Any]:
        PROGRAMS[program.__name__] = Public(program, x, np.asarray(y), **expected)
        return program

    return register


def normal(name: str, scale: float = 1.0) -> Any:
    return numpyro.sample(name, dist.Normal(0.0, scale))


@public(
    {"player": np.arange(N) % 4, "at_bats": TRIALS},
    SUCCESSES,
    rows=lambda v: stats.binom.logpmf(SUCCESSES, TRIALS, v["chance"][np.arange(N) % 4]),
)
def batting_averages(x, y=None):
    mean = numpyro.sample("mean", dist.Uniform(0.0, 1.0))
    spread = numpyro.sample("spread", dist.Pareto(1.0, 1.5))
    with numpyro.plate("players", 4):
        chance = numpyro.sample("chance", dist.Beta(mean * spread, (1 - mean) * spread))
    with numpyro.plate("data", len(x["player"])):
        numpyro.sample("hits", dist.Binomial(x["at_bats"], probs=chance[x["player"]]), obs=y)


@public({"school": np.arange(N), "sigma": POSITIVE}, 10 * REAL)
def eight_schools(x, y=None):
    mu, tau = normal("mu", 5.0), numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", N), handlers.reparam(config={"theta": numpyro.infer.reparam.LocScaleReparam(0)}):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
    with numpyro.plate("data", len(x["sigma"])):
        numpyro.sample("y", dist.Normal(theta[x["school"]], x["sigma"]), obs=y)


@public({"sigma": POSITIVE}, 10 * REAL, refused=("'theta'",))
def eight_schools_in_one_plate(x, y=None):
    mu, tau = normal("mu", 5.0), numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", x["sigma"].shape[0]):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, x["sigma"]), obs=y)


@public({"sigma": POSITIVE}, 10 * REAL, refused=("8", "theta"))
def eight_schools_of_a_number_closed_over(x, y=None):
    mu, tau = normal("mu", 5.0), numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", N):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, x["sigma"]), obs=y)


@public(FEATURES, REAL)
def regularised_horseshoe(x, y=None):
    tau = numpyro.sample("tau", dist.HalfCauchy(0.1))
    slab = 2.0 * jnp.sqrt(numpyro.sample("slab", dist.InverseGamma(2.0, 2.0)))
    with numpyro.plate("columns", 3):
        local = numpyro.sample("local", dist.HalfCauchy(1.0))
        unit = numpyro.sample("unit", dist.Normal(0.0, 1.0))
    shrunk = slab * local / jnp.sqrt(slab**2 + tau**2 * local**2)
    beta = numpyro.deterministic("beta", unit * tau * shrunk)
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ beta, noise), obs=y)


@public(FEATURES, REAL, refused=("tau", "n", "number of data"))
def horseshoe_whose_scale_knows_the_number_of_data(x, y=None):
    tau = numpyro.sample("tau", dist.HalfCauchy(1.0 / np.sqrt(x.shape[0])))
    with numpyro.plate("columns", 3):
        beta = numpyro.sample("beta", dist.Normal(0.0, tau))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


@public(Z, COUNTS % 4)
def ordinal_with_induced_dirichlet(x, y=None):
    slope = normal("slope")
    cuts = numpyro.sample(
        "cuts",
        dist.TransformedDistribution(dist.Dirichlet(jnp.ones(4)), SimplexToOrderedTransform(jnp.zeros(()))),
    )
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.OrderedLogistic(slope * x, cuts), obs=y)


def two_parameters(v: Any) -> Any:
    logits = v["discrimination"][GROUP] * (v["ability"][BINARY] - v["difficulty"][GROUP])
    return np.where(BINARY > 0, special.log_expit(logits), special.log_expit(-logits))


@public(np.stack([BINARY, GROUP], axis=1), BINARY, rows=two_parameters)
def item_response_of_a_table_of_integers(x, y=None):
    person, item = x[:, 0], x[:, 1]
    with numpyro.plate("persons", 2):
        ability = numpyro.sample("ability", dist.Normal(0.0, 1.0))
    with numpyro.plate("items", 4):
        difficulty = numpyro.sample("difficulty", dist.Normal(0.0, 1.0))
        discrimination = numpyro.sample("discrimination", dist.LogNormal(0.0, 0.5))
    logits = discrimination[item] * (ability[person] - difficulty[item])
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


@public({"distance": 2.0 + 5 * POSITIVE, "tries": TRIALS}, SUCCESSES)
def golf_putts(x, y=None):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    angle = jnp.arcsin((4.25 - 1.68) / 24 / x["distance"])
    chance = 2 * jax.scipy.special.ndtr(angle / sigma) - 1
    with numpyro.plate("data", len(x["tries"])):
        numpyro.sample("y", dist.Binomial(x["tries"], probs=jnp.clip(chance, 1e-6, 1 - 1e-6)), obs=y)


@public((np.log(100 * POSITIVE), BINARY), COUNTS)
def tools_of_islands(x, y=None):
    population, contact = x
    a = numpyro.sample("a", dist.Normal(1.0, 1.0).expand([2]))
    b = numpyro.sample("b", dist.Exponential(1.0).expand([2]))
    phi = numpyro.sample("phi", dist.Exponential(1.0))
    rate = jnp.exp(a[contact] + b[contact] * (population - 4.0) / 4.0)
    with numpyro.plate("data", len(population)):
        numpyro.sample("tools", dist.GammaPoisson(rate / phi, 1 / phi), obs=y)


def beyond(v: Any) -> Any:
    rate = v["rate"]
    return np.where(
        BINARY > 0, stats.expon.logsf(POSITIVE, scale=1 / rate), stats.expon.logpdf(POSITIVE, scale=1 / rate)
    )


@public({"censored": BINARY.astype(bool)}, POSITIVE, rows=beyond)
def censoring_as_a_second_observed_site(x, y=None):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 2.0))
    cut = x["censored"]
    with numpyro.plate("data", len(cut)):
        # With `not` on booleans: it would be -1 or -2 on integers.
        with handlers.mask(mask=~cut):
            numpyro.sample("time", dist.Exponential(rate), obs=y)
        if y is not None:
            with handlers.mask(mask=cut):
                survival = jnp.exp(-rate * y)
                numpyro.sample("is_censored", dist.Bernoulli(probs=survival), obs=jnp.ones(len(cut)))


@public({"event": BINARY}, POSITIVE, refused=("observed",), or_right=True)
def survival_by_a_factor_alone(x, y=None):
    shape, scale = numpyro.sample("shape", dist.LogNormal(0, 0.3)), numpyro.sample("scale", dist.LogNormal(0, 0.3))
    if y is not None:
        hazard = jnp.log(shape / scale) + (shape - 1) * jnp.log(y / scale)
        numpyro.factor("time", x["event"] * hazard - (y / scale) ** shape)


@public({"age": Z}, REAL, refused=("age_missing", "8 data", "depends on the rows"))
def imputation_of_a_column(x, y=None):
    b, missing = normal("b"), np.array([1, 4])
    with numpyro.plate("missing", 2):
        filled = numpyro.sample("age_missing", dist.Normal(0.0, 1.0))
    age = x["age"].at[missing].set(filled)
    with numpyro.plate("data", len(age)):
        numpyro.sample("y", dist.Normal(b * age, 1.0), obs=y)


@public({"error": 0.1 + 0.1 * POSITIVE, "z": Z}, REAL, refused=("'true'",))
def measurement_error_with_true_values(x, y=None):
    b = normal("b")
    with numpyro.plate("data", len(x["z"])):
        true = numpyro.sample("true", dist.Normal(b * x["z"], 1.0))
        numpyro.sample("y", dist.Normal(true, x["error"]), obs=y)


@public(
    np.stack([Z, POSITIVE, POSITIVE[::-1]], 1),
    REAL,
    rows=lambda v: stats.norm.logpdf(
        REAL, v["a"] + v["b"] * Z, np.sqrt(POSITIVE[::-1] ** 2 + v["b"] ** 2 * POSITIVE**2)
    ),
)
def line_with_errors_in_both(x, y=None):
    a, b = normal("a"), normal("b")
    noise = jnp.sqrt(x[:, 2] ** 2 + b**2 * x[:, 1] ** 2)
    f = numpyro.deterministic("f", a + b * x[:, 0])
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, noise), obs=y)


@public(np.stack([Z, POSITIVE], 1), REAL)
def line_with_outliers(x, y=None):
    a, b = normal("a"), normal("b")
    good = numpyro.sample("good", dist.Beta(4.0, 1.0))
    wide = numpyro.sample("wide", dist.HalfNormal(5.0))
    f = numpyro.deterministic("f", a + b * x[:, 0])
    spread = jnp.stack([x[:, 1], jnp.sqrt(x[:, 1] ** 2 + wide**2)], -1)
    mixture = dist.Categorical(probs=jnp.stack([good, 1 - good]))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.MixtureSameFamily(mixture, dist.Normal(f[:, None], spread)), obs=y)


@public(Z, REAL, refused=("depends on the rows", "shape"))
def autoregression(x, y=None):
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))
    before = jnp.concatenate([jnp.zeros(1), (x if y is None else y)[:-1]])
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(phi * before, 1.0), obs=y)


@public({"lag": REAL[::-1].copy()}, REAL, rows=lambda v: stats.norm.logpdf(REAL, v["phi"] * REAL[::-1], 1.0))
def autoregression_with_the_lag_as_an_input(x, y=None):
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))
    with numpyro.plate("data", len(x["lag"])):
        numpyro.sample("y", dist.Normal(phi * x["lag"], 1.0), obs=y)


@public(Z, REAL, refused=("one log-probability per datum", "one log-probability a datum"))
def gaussian_process(x, y=None):
    length = numpyro.sample("length", dist.LogNormal(0.0, 0.3))
    gram = jnp.exp(-0.5 * (x[:, None] - x) ** 2 / length**2) + 0.1 * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), gram), obs=y)


@public(Z, REAL)
def gaussian_process_of_basis_functions(x, y=None):
    length, alpha = (numpyro.sample(name, dist.LogNormal(0.0, 0.3)) for name in ("length", "alpha"))
    f = hsgp_squared_exponential(x, alpha=alpha, length=length, ell=4.0, m=5)
    f = numpyro.deterministic("f", f)
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(f, 0.5), obs=y)


@public(np.linspace(0.0, 1.0, N), REAL)
def trend_with_changepoints(x, y=None):
    points = jnp.array([0.25, 0.5, 0.75])
    k, m = normal("k"), normal("m")
    delta = numpyro.sample("delta", dist.Laplace(0.0, 0.3).expand([3]).to_event(1))
    after = (x[:, None] > points).astype(x.dtype)
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal((k + after @ delta) * x + m - after @ (points * delta), 0.3), obs=y)


@public({"month": GROUP}, REAL)
def local_level_of_months(x, y=None):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    level = numpyro.sample("level", dist.GaussianRandomWalk(sigma, num_steps=4))
    with numpyro.plate("data", len(x["month"])):
        numpyro.sample("y", dist.Normal(level[x["month"]], 1.0), obs=y)


@public(Z, REAL, refused=("'s'",))
def stochastic_volatility(x, y=None):
    step = numpyro.sample("sigma", dist.Exponential(50.0))
    s = numpyro.sample("s", dist.GaussianRandomWalk(step, num_steps=x.shape[0]))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.StudentT(5.0, 0.0, jnp.exp(s)), obs=y)


@public(FEATURES, REAL)
def mixture_with_ordered_means(x, y=None):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    base = dist.Normal(0.0, 2.0).expand([3]).to_event(1)
    means = numpyro.sample("means", dist.TransformedDistribution(base, OrderedTransform()))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(means, 0.7)), obs=y)


@public(Z, REAL, refused=("'assignment'",))
def mixture_with_assignments(x, y=None):
    means = numpyro.sample("means", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with numpyro.plate("data", len(x)):
        k = numpyro.sample("assignment", dist.Categorical(jnp.ones(3) / 3), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(means[k], 1.0), obs=y)


@public(FEATURES, REAL, refused=("plate", "subsample", "'y'"))
def subsample_drawn_by_the_program(x, y=None):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("data", x.shape[0], subsample_size=4) as index:
        numpyro.sample("y", dist.Normal(x[index] @ beta, 1.0), obs=None if y is None else y[index])


def plain_regression(x, y=None):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


@public(FEATURES, REAL, reference=plain_regression, refused=("subsample", "plate"), or_right=True)
def plate_of_all_data(x, y=None):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("data", 1_000, subsample_size=x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


@public(FEATURES, COUNTS % 3)
def softmax_with_a_pinned_class(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([3, 2]).to_event(2))
    f = numpyro.deterministic("f", jnp.concatenate([jnp.zeros((x.shape[0], 1)), x @ w], axis=1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=f), obs=y)


@public(FEATURES, RNG.normal(size=(N, 2)))
def correlated_outputs(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([3, 2]).to_event(2))
    scale = numpyro.sample("scale", dist.HalfNormal(1).expand([2]).to_event(1))
    corr = numpyro.sample("corr", dist.LKJCholesky(2, 2.0))
    f = numpyro.deterministic("f", x @ w)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.MultivariateNormal(f, scale_tril=scale[:, None] * corr), obs=y)


@public(FEATURES, REAL, refused=("depends on the rows",))
def network_with_batch_normalisation(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([3, 4]).to_event(2))
    v = numpyro.sample("v", dist.Normal(0, 1).expand([4]).to_event(1))
    hidden = x @ w
    hidden = jax.nn.relu((hidden - hidden.mean(0)) / (hidden.std(0) + 1e-3))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(hidden @ v, 1.0), obs=y)


@public(FEATURES, REAL)
def random_flax_network(x, y=None):
    net = random_flax_module("net", nn.Dense(2), prior=dist.Normal(0.0, 1.0), input_shape=(1, 3))
    w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(jnp.tanh(net(x)) @ w, 1.0), obs=y)


@public(FEATURES, REAL, refused=("net",))
def network_whose_weights_have_no_prior(x, y=None):
    net = flax_module("net", nn.Dense(2), input_shape=(1, 3))
    w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(jnp.tanh(net(x)) @ w, 1.0), obs=y)


@public(FEATURES, REAL, refused=("'noise'",))
def noise_as_a_parameter_without_a_prior(x, y=None):
    noise = numpyro.param("noise", 0.5, constraint=dist.constraints.positive)
    w = numpyro.sample("w", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, noise), obs=y)


@public({"home": BINARY, "away": 2 + BINARY[::-1]}, BINARY)
def pairs_of_teams(x, y=None):
    with numpyro.plate("teams", 4):
        raw = numpyro.sample("raw", dist.Normal(0.0, 1.0))
    # A mean over parameters is no mean over data.
    skill = raw - raw.mean()
    f = numpyro.deterministic("f", skill[x["home"]] - skill[x["away"]])
    with numpyro.plate("games", len(x["home"])):
        numpyro.sample("y", dist.Bernoulli(logits=f), obs=y)


@public({"state": GROUP, "education": BINARY}, SUCCESSES > 3)
def crossed_groups(x, y=None):
    with numpyro.plate("states", 4, dim=-2), numpyro.plate("educations", 2, dim=-1):
        cell = numpyro.sample("cell", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(x["state"])):
        numpyro.sample("y", dist.Bernoulli(logits=cell[x["state"], x["education"]]), obs=y)


@public({"county": GROUP, "floor": BINARY}, REAL)
def radon(x, y=None):
    uranium = jnp.array([0.1, -0.5, 0.7, 0.0])
    g = normal("g")
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("counties", 4):
        level = numpyro.sample("level", dist.Normal(g * uranium, spread))
    floor, noise = normal("floor"), numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("data", len(x["county"])):
        numpyro.sample("y", dist.Normal(level[x["county"]] + floor * x["floor"], noise), obs=y)


@public({"z": Z, "weight": POSITIVE}, REAL, rows=lambda v: POSITIVE * stats.norm.logpdf(REAL, v["b"] * Z, 1.0))
def survey_weights(x, y=None):
    b = normal("b")
    with numpyro.plate("data", len(x["z"])), handlers.scale(scale=x["weight"]):
        numpyro.sample("y", dist.Normal(b * x["z"], 1.0), obs=y)


@public({"z": Z, "seen": BINARY > 0}, REAL, refused=("y_unobserved", "'y'"))
def missing_targets_imputed_by_obs_mask(x, y=None):
    b = normal("b")
    with numpyro.plate("data", len(x["z"])):
        numpyro.sample("y", dist.Normal(b * x["z"], 1.0), obs=y, obs_mask=x["seen"])


@public(Z, REAL, refused=("'a'",))
def prior_centred_at_the_targets(x, y=None):
    a = numpyro.sample("a", dist.Normal(0.0 if y is None else jnp.mean(y), 2.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(a * x, 1.0), obs=y)


@public(FEATURES, REAL, refused=("'beta'",))
def prior_scaled_by_the_inputs(x, y=None):
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(3), 2.5 / jnp.std(x, axis=0)).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


@public(FEATURES, REAL, refused=("'beta'",))
def prior_of_zellner(x, y=None):
    beta = numpyro.sample("beta", dist.MultivariateNormal(jnp.zeros(3), precision_matrix=x.T @ x / 8 + jnp.eye(3)))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


@public(POSITIVE, REAL, refused=("'change'", "support"))
def changepoint_within_the_range_of_the_inputs(x, y=None):
    change = numpyro.sample("change", dist.Uniform(0.0, jnp.max(x)))
    a = normal("a")
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(a * jax.nn.sigmoid(x - change), 1.0), obs=y)


@public(Z, REAL)
def knowledge_as_an_observation(x, y=None):
    b = normal("b", 3.0)
    numpyro.sample("earlier study", dist.Normal(b, 0.5), obs=0.7)
    numpyro.sample("two more", dist.Normal(b, 0.5).expand([2]).to_event(1), obs=jnp.array([0.1, 0.4]))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(b * x, 1.0), obs=y)


@public(Z, REAL, refused=("depends on the rows", "shape"))
def targets_standardised_inside(x, y=None):
    b = normal("b")
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(b * x, 1.0), obs=None if y is None else (y - y.mean()) / (1 + y.std()))


@public(Z, REAL, refused=("'everything'",))
def likelihood_as_one_factor(x, y=None):
    b = normal("b")
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(b * x, 1.0), obs=y)
    if y is not None:
        numpyro.factor("everything", jnp.sum(dist.Normal(b, 1.0).log_prob(y)))


@public(
    {"limit": -POSITIVE, "z": Z},
    np.maximum(REAL, -POSITIVE + 0.01),
    rows=lambda v: stats.truncnorm.logpdf(
        np.maximum(REAL, -POSITIVE + 0.01), -POSITIVE - v["b"] * Z, np.inf, v["b"] * Z, 1.0
    ),
)
def truncated_at_a_limit_of_each_row(x, y=None):
    f = numpyro.deterministic("f", normal("b") * x["z"])
    with numpyro.plate("data", len(x["z"])):
        numpyro.sample("y", dist.TruncatedNormal(f, 1.0, low=x["limit"]), obs=y)


@public(FEATURES, np.stack([REAL, BINARY], axis=1))
def two_outcomes_of_two_kinds(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([3]).to_event(1))
    u = numpyro.sample("u", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("dose", dist.Normal(x @ w, 1.0), obs=None if y is None else y[:, 0])
        numpyro.sample("cured", dist.Bernoulli(logits=x @ u), obs=None if y is None else y[:, 1])


@public(Z, COUNTS)
def hurdle_of_two_sites(x, y=None):
    chance, rate = numpyro.sample("chance", dist.Beta(1, 1)), jnp.exp(normal("b") * x)
    with numpyro.plate("data", len(x)):
        if y is None:
            numpyro.sample("some", dist.Bernoulli(probs=chance))
        else:
            some = y > 0
            numpyro.sample("some", dist.Bernoulli(probs=chance), obs=some)
            with handlers.mask(mask=some):
                numpyro.sample("y", dist.Poisson(rate), obs=y)
                numpyro.factor("without zero", -jnp.log(-jnp.expm1(-rate)))


@public(FEATURES, REAL, refused=("'f'",), or_right=True)
def slope_of_the_name_f(x, y=None):
    f = numpyro.sample("f", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ f, 1.0), obs=y)


@public(FEATURES, REAL, refused=("'f'",), or_right=True)
def targets_of_the_name_f(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("f", dist.Normal(x @ w, 1.0), obs=y)


@public({"image": RNG.normal(size=(N, 3, 3)), "age": Z, "site": GROUP}, BINARY)
def picture_beside_columns(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([9]).to_event(1))
    b = numpyro.sample("b", dist.Normal(0, 1).expand([4]).to_event(1))
    f = numpyro.deterministic("f", x["image"].reshape(len(x["age"]), -1) @ w + b[x["site"]] * x["age"])
    with numpyro.plate("data", x["image"].shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=f), obs=y)


@public({"seconds": 1_700_000_001 + 3 * np.arange(N)}, REAL)
def large_integers(x, y=None):
    b = normal("b")
    with numpyro.plate("data", len(x["seconds"])):
        numpyro.sample("y", dist.Normal(b * ((x["seconds"] - 1_700_000_000) % 7), 1.0), obs=y)


@public(FEATURES, REAL, refused=("values of its arguments", "np.unique"))
def levels_found_inside(x, y=None):
    levels = np.unique(np.asarray(x[:, 0]))
    with numpyro.plate("levels", len(levels)):
        effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(effect[jnp.searchsorted(levels, x[:, 0])], 1.0), obs=y)


@public(Z, REAL)
def intervention(x, y=None):
    def model(x, y=None):
        a = normal("a")
        b = numpyro.sample("b", dist.Normal(a, 1.0))
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Normal(b * x, 1.0), obs=y)

    return handlers.do(model, data={"a": 0.4})(x, y)


@public(Z, REAL)
def lifted_parameters(x, y=None):
    def model(x, y=None):
        b = numpyro.param("b", 0.3)
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Normal(b * x, 1.0), obs=y)

    return handlers.lift(model, prior=dist.Normal(0.0, 1.0))(x, y)


@public(Z, COUNTS % 3 + 1, refused=("row",))
def classes_counted_from_one(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Categorical(logits=x[:, None] * w), obs=y)


@public(FEATURES, REAL, refused=("depends on the rows", "'y'"))
def time_series_by_scan(x, y=None):
    a = numpyro.sample("a", dist.Uniform(0.0, 1.0))

    def step(level, one):
        level = a * level + (1 - a) * one
        return level, level

    _, levels = jax.lax.scan(step, 0.0, x[:, 0])
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(levels, 1.0), obs=y)


@public(FEATURES, REAL, refused=("random",))
def dropout_of_columns(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([3]).to_event(1))
    key = numpyro.prng_key()
    keep = jax.random.bernoulli(jax.random.key(0) if key is None else key, 0.5, (3,))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal((x * keep) @ w, 1.0), obs=y)


@public(FEATURES, REAL, refused=("net",))
def network_with_a_prior_of_its_biases_alone(x, y=None):
    net = random_flax_module("net", nn.Dense(1), prior={"bias": dist.Normal(0.0, 1.0)}, input_shape=(1, 3))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(net(x)[:, 0], 1.0), obs=y)


@public({"month": GROUP}, REAL, refused=("'level'",), or_right=True)
def levels_by_scan(x, y=None):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))

    def step(level, _):
        level = numpyro.sample("level", dist.Normal(level, sigma))
        return level, level

    _, levels = scan(step, 0.0, jnp.arange(4))
    with numpyro.plate("data", len(x["month"])):
        numpyro.sample("y", dist.Normal(levels[x["month"]], 1.0), obs=y)


@public(FEATURES, REAL, refused=("y_0",))
def a_site_for_each_row(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([3]).to_event(1))
    for i in range(x.shape[0]):
        numpyro.sample(f"y_{i}", dist.Normal(x[i] @ w, 1.0), obs=None if y is None else y[i])


@public({"z": Z, "weight": POSITIVE}, REAL, refused=("depends on the rows",))
def weights_normalised_inside(x, y=None):
    b = normal("b")
    with numpyro.plate("data", len(x["z"])), handlers.scale(scale=x["weight"] / jnp.mean(x["weight"])):
        numpyro.sample("y", dist.Normal(b * x["z"], 1.0), obs=y)


@public(Z, RNG.normal(size=(N, 5)))
def two_plates_of_outputs(x, y=None):
    with numpyro.plate("outputs", 5):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("outputs again", 5, dim=-1), numpyro.plate("data", len(x), dim=-2):
        numpyro.sample("y", dist.Normal(x[:, None] * slope, 1.0), obs=y)


@public({"milliseconds": 1_700_000_000_000 + 7 * np.arange(N)}, REAL, refused=("'milliseconds'",), or_right=True)
def integers_beyond_32_bits(x, y=None):
    b = normal("b")
    with numpyro.plate("data", len(x["milliseconds"])):
        numpyro.sample("y", dist.Normal(b * (x["milliseconds"] % 5), 1.0), obs=y)


@public(FEATURES * [0.0, 1.0, 1.0] + [1.0, 0.0, 0.0], REAL, refused=("depends on the rows",))
def centring_of_a_constant_column(x, y=None):
    """Nothing to see on the data; the points of a coreset move."""
    b = normal("b")
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(b * (x[:, 0] - x[:, 0].mean()), 1.0), obs=y)


@public((Z, GROUP), REAL)
def keyword_arguments_with_defaults(x, y=None, *, scale=0.7, groups=4):
    z, group = x
    with numpyro.plate("groups", groups):
        effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", z.shape[0]):
        numpyro.sample("y", dist.Normal(effect[group] * z, scale), obs=y)


PROGRAMS["partial"] = Public(functools.partial(keyword_arguments_with_defaults, scale=0.2), (Z, GROUP), REAL)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_published_kind_of_program_is_right_or_refused(name):
    case = PROGRAMS[name]
    expected = {"rows": case.rows, "reference": case.reference, "inputs_move": case.inputs_move}
    if case.refused is None:
        check(case.program, case.x, case.y, **expected)
    elif case.or_right:
        right_or_refused(case.program, case.x, case.y, *case.refused, **expected)
    else:
        with pytest.raises(REFUSALS) as refusal:
            check(case.program, case.x, case.y, **expected)
        assert_is_a_sentence(refusal.value)
        assert any(word in str(refusal.value) for word in case.refused), str(refusal.value)
