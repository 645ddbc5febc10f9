"""What is refused names the site or the argument, and says what to do; what is allowed has its closed form."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

from pseudocoreset.models import Model
from tests.models.contract import assert_is_a_sentence, check
from tests.models.programs import Recipe, build

N = 9
RNG = np.random.default_rng(3)
X = RNG.normal(size=(N, 2))
Y = RNG.normal(size=N)
COUNTS = RNG.poisson(2.0, N)
REAL = dist.constraints.real


def slopes() -> Any:
    return numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


def observe(loc: Any, y: Any, n: int, name: str = "y") -> None:
    with numpyro.plate("data", n):
        numpyro.sample(name, dist.Normal(loc, 1.0), obs=y)


def of_inputs(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """A regression on something that is computed from all inputs."""

    def program(x, y=None):
        observe(change(x) @ slopes(), y, x.shape[0])

    return program


def of_targets(change: Callable[[Any], Any]) -> Callable[..., Any]:
    def program(x, y=None):
        observe(x @ slopes(), None if y is None else change(y), x.shape[0])

    return program


def with_prior(prior: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A regression whose coefficient ``beta`` has a prior made of the data."""

    def program(x, y=None):
        beta = numpyro.sample("beta", prior(x, jnp.zeros(x.shape[0]) if y is None else y))
        observe(x[:, 0] * jnp.sum(beta), y, x.shape[0])

    return program


def with_latent(latent: Callable[[Any], Any]) -> Callable[..., Any]:
    """A regression with one more latent site ``z``."""

    def program(x, y=None):
        w = slopes()
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", latent(x))
            numpyro.sample("y", dist.Normal(x @ w + z, 1.0), obs=y)

    return program


def with_shared(latent: Callable[[], Any]) -> Callable[..., Any]:
    def program(x, y=None):
        z = numpyro.sample("z", latent())
        observe(x @ slopes() + z, y, x.shape[0])

    return program


def with_likelihood(likelihood: Callable[..., Any]) -> Callable[..., Any]:
    """``likelihood(f, x, y)`` of a linear predictor."""

    def program(x, y=None):
        likelihood(x @ slopes(), x, y)

    return program


def in_plate(distribution: Callable[[Any], Any]) -> Callable[..., Any]:
    def likelihood(f: Any, x: Any, y: Any) -> None:
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", distribution(f), obs=y)

    return with_likelihood(likelihood)


def by_group(name: str) -> Callable[..., Any]:
    def program(x, y=None):
        with numpyro.plate("groups", 3):
            effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
        observe(effect[x[name]], y, len(x[name]))

    return program


def looks(at: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A program that looks at values in Python while it runs."""

    def program(x, y=None):
        k = at(x, y)
        observe(x @ slopes() + k, y, x.shape[0])

    return program


def own_subsample(f: Any, x: Any, y: Any) -> None:
    with numpyro.plate("rows", x.shape[0], subsample_size=3) as index:
        numpyro.sample("y", dist.Normal(f[index], 1.0), obs=None if y is None else y[index])


def numpyros_subsample(f: Any, x: Any, y: Any) -> None:
    with numpyro.plate("rows", x.shape[0], subsample_size=3):
        part = None if y is None else numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(numpyro.subsample(f, event_dim=0), 1.0), obs=part)


def four_of_a_thousand(f: Any, x: Any, y: Any) -> None:
    with numpyro.plate("rows", 1000, subsample_size=4) as index:
        index = index % x.shape[0]
        numpyro.sample("y", dist.Normal(f[index], 1.0), obs=None if y is None else y[index])


def summed_factor(f: Any, x: Any, y: Any) -> None:
    observe(f, y, x.shape[0])
    if y is not None:
        numpyro.factor("total", -jnp.sum((y - f) ** 2))


def every_pair(f: Any, x: Any, y: Any) -> None:
    numpyro.sample("y", dist.Normal(f[:, None], 1.0), obs=y)


def nothing_observed(f: Any, x: Any, y: Any) -> None:
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(f, 1.0))


def only_constants(f: Any, x: Any, y: Any) -> None:
    numpyro.sample("known", dist.Normal(jnp.sum(f[:1]) * 0, 1.0), obs=0.3)


def mean_squares(f: Any, x: Any, y: Any) -> None:
    if y is not None:
        numpyro.factor("loss", -jnp.mean((y - f) ** 2))


def without(row: int, value: float, array: np.ndarray = Y) -> np.ndarray:
    array = np.array(array, float)
    array[row] = value
    return array


def more_arguments(x, groups, y=None):
    observe(x @ slopes(), y, x.shape[0])


def number_after(x, y, n_groups):
    observe(x @ slopes(), y, x.shape[0])


def three_columns(age, height, weight, y=None):
    observe(age + height, y, len(age))


def needed_keyword(x, y=None, *, sigma):
    observe(x @ slopes(), y, x.shape[0])


def one_argument(data):
    observe(data["x"] @ slopes(), data["y"], 3)


def targets_first(y, x):
    observe(x * numpyro.sample("w", dist.Normal(0.0, 1.0)), y, x.shape[0])


BATCH = r"'y'.*(row|datum)"
COMPUTE = r"[Cc]ompute|[Pp]ut"

# kind and variant: program, x, y, name of site or argument, remedy
REFUSED: dict[str, tuple[Any, Any, Any, str, str]] = {
    "batch: standardised": (of_inputs(lambda x: (x - x.mean(0)) / x.std(0)), X, Y, BATCH, COMPUTE),
    "batch: centred": (of_inputs(lambda x: x - x.mean(0)), X, Y, BATCH, COMPUTE),
    "batch: divided by the largest": (of_inputs(lambda x: x / jnp.abs(x).max()), X, Y, BATCH, COMPUTE),
    "batch: ranks": (of_inputs(lambda x: jnp.argsort(jnp.argsort(x, 0), 0) * 1.0), X, Y, BATCH, COMPUTE),
    "batch: running sums": (of_inputs(lambda x: jnp.cumsum(x, 0)), X, Y, BATCH, COMPUTE),
    "batch: rows before": (of_inputs(lambda x: jnp.roll(x, 1, axis=0)), X, Y, BATCH, COMPUTE),
    "batch: attention over rows": (of_inputs(lambda x: jax.nn.softmax(x @ x.T) @ x), X, Y, BATCH, COMPUTE),
    "batch: number of rows": (of_inputs(lambda x: x / x.shape[0]), X, Y, BATCH, COMPUTE),
    "batch: position of the row": (of_inputs(lambda x: x * jnp.arange(x.shape[0])[:, None]), X, Y, BATCH, COMPUTE),
    "batch: targets standardised": (of_targets(lambda y: (y - y.mean()) / y.std()), X, Y, BATCH, COMPUTE),
    "batch: targets sorted": (of_targets(jnp.sort), X, Y, BATCH, COMPUTE),
    "batch: targets differenced": (of_targets(lambda y: jnp.diff(y, prepend=0.0)), X, Y, BATCH, COMPUTE),
    "prior: mean of y": (with_prior(lambda x, y: dist.Normal(y.mean(), 1.0)), X, Y, "'beta'", COMPUTE),
    "prior: scale of x": (with_prior(lambda x, y: dist.Normal(0, x.std(0)).to_event(1)), X, Y, "'beta'", COMPUTE),
    "prior: precision of x": (
        with_prior(lambda x, y: dist.MultivariateNormal(jnp.zeros(2), precision_matrix=x.T @ x + jnp.eye(2))),
        X,
        Y,
        "'beta'",
        COMPUTE,
    ),
    "prior: first row": (with_prior(lambda x, y: dist.Normal(x[0, 0], 1.0)), X, Y, "'beta'", COMPUTE),
    "prior: bounds of y": (with_prior(lambda x, y: dist.Uniform(-1.0, 2 + y.max())), X, Y, "'beta'|support", COMPUTE),
    "prior: number of data": (
        with_prior(lambda x, y: dist.Normal(0.0, x.shape[0] ** -0.5)),
        X,
        Y,
        "'beta'",
        COMPUTE,
    ),
    "prior: one for each datum": (
        with_prior(lambda x, y: dist.Normal(jnp.zeros(len(y)), 1.0).to_event(1)),
        X,
        Y,
        "'beta'",
        "share",
    ),
    "latent per row: normal": (with_latent(lambda x: dist.Normal(0.0, 1.0)), X, Y, "'z'", "share"),
    "latent per row: positive": (with_latent(lambda x: dist.Gamma(2.0, 1.0)), X, Y, "'z'", "share"),
    "latent per row: of x": (with_latent(lambda x: dist.Normal(x[:, 0], 1.0)), X, Y, "'z'", "share"),
    "latent per row: discrete": (with_latent(lambda x: dist.Bernoulli(0.5)), X, Y, "'z'", "share|discrete"),
    "discrete: bernoulli": (with_shared(lambda: dist.Bernoulli(0.5)), X, Y, "'z'", "continuous|marginal"),
    "discrete: categorical": (
        with_shared(lambda: dist.Categorical(jnp.ones(3) / 3)),
        X,
        Y,
        "'z'",
        "continuous|marginal",
    ),
    "discrete: poisson": (with_shared(lambda: dist.Poisson(3.0)), X, Y, "'z'", "continuous|marginal"),
    "improper: real": (with_shared(lambda: dist.ImproperUniform(REAL, (), ())), X, Y, "'z'|site", "proper prior"),
    "improper: positive": (
        with_shared(lambda: dist.ImproperUniform(dist.constraints.positive, (), ())),
        X,
        Y,
        "'z'|site",
        "proper prior",
    ),
    "improper: vector": (
        with_shared(lambda: dist.ImproperUniform(dist.constraints.real_vector, (), (2,))),
        X,
        Y,
        "'z'|site",
        "proper prior",
    ),
    "no observed site: forgotten": (with_likelihood(nothing_observed), X, Y, "'y'|observed site", "obs=y|share"),
    "no observed site: constants": (with_likelihood(only_constants), X, Y, "'known'|observed site", "obs=y"),
    "no observed site: a loss": (with_likelihood(mean_squares), X, Y, "'loss'|observed site", "obs=y|shape"),
    "coupled: event over the data": (
        with_likelihood(lambda f, x, y: numpyro.sample("y", dist.Normal(f, 1.0).to_event(1), obs=y)),
        X,
        Y,
        "'y'",
        "plate",
    ),
    "coupled: one normal of all rows": (
        with_likelihood(lambda f, x, y: numpyro.sample("y", dist.MultivariateNormal(f, jnp.eye(len(f))), obs=y)),
        X,
        Y,
        "'y'",
        "plate",
    ),
    "coupled: every pair": (with_likelihood(every_pair), X, Y, "'y'", r"\(n, 1\)|per datum"),
    "coupled: summed factor": (with_likelihood(summed_factor), X, Y, "'total'", r"shape \(n,\)|per datum"),
    "subsample: index": (with_likelihood(own_subsample), X, Y, "'y'", "x.shape"),
    "subsample: numpyro.subsample": (with_likelihood(numpyros_subsample), X, Y, "'y'", "x.shape"),
    "subsample: of a thousand": (with_likelihood(four_of_a_thousand), X, Y, "'y'", "x.shape"),
    "values: np.unique": (looks(lambda x, y: len(np.unique(x))), X, Y, "argument|x", "before"),
    "values: int": (looks(lambda x, y: int(x.max())), X, Y, "argument|x", "before"),
    "values: if": (looks(lambda x, y: 1.0 if x[0, 0] > 0 else 0.0), X, Y, "argument|x", "before"),
    "values: boolean index": (looks(lambda x, y: x[x[:, 0] > 0].sum()), X, Y, "argument|x", "before"),
    "values: loop over classes": (looks(lambda x, y: sum(range(int(y.max() + 3)))), X, Y, "argument|y", "before"),
    "row: y is not a number": (
        in_plate(lambda f: dist.Normal(f, 1.0)),
        X,
        without(4, np.nan),
        "row 4",
        "drop|[Cc]orrect",
    ),
    "row: y is infinite": (in_plate(lambda f: dist.Normal(f, 1.0)), X, without(2, np.inf), "row 2", "drop|[Cc]orrect"),
    "row: x is not a number": (
        in_plate(lambda f: dist.Normal(f, 1.0)),
        np.where(np.arange(N)[:, None] == 3, np.nan, X),
        Y,
        "row 3",
        "drop|[Cc]orrect",
    ),
    "row: negative count": (
        in_plate(lambda f: dist.Poisson(jnp.exp(f))),
        X,
        without(5, -1, COUNTS),
        "row 5",
        "drop|[Cc]orrect",
    ),
    "row: zero of a positive law": (
        in_plate(lambda f: dist.LogNormal(f, 1.0)),
        X,
        without(1, 0.0, np.abs(Y)),
        "row 1",
        "drop|[Cc]orrect",
    ),
    "row: share of one": (
        in_plate(lambda f: dist.Beta(1 + jnp.exp(f), 2.0)),
        X,
        without(6, 1.5, np.abs(Y) / 9),
        "row 6",
        "drop|[Cc]orrect",
    ),
    "row: class beyond the last": (
        in_plate(lambda f: dist.Categorical(logits=jnp.stack([f, 0 * f, -f], -1))),
        X,
        np.where(np.arange(N) == 7, 3, np.arange(N) % 3),
        "row 7",
        "drop|[Cc]orrect",
    ),
    "row: more successes than trials": (
        in_plate(lambda f: dist.Binomial(4, logits=f)),
        X,
        np.where(np.arange(N) == 0, 5, 2),
        "row 0",
        "drop|[Cc]orrect",
    ),
    "row: count that is no integer": (
        in_plate(lambda f: dist.Poisson(jnp.exp(f))),
        X,
        without(3, 1.5, COUNTS),
        "row 3",
        "drop|[Cc]orrect",
    ),
    "arguments: one between": (more_arguments, X, Y, "groups", "into x"),
    "arguments: one after": (number_after, X, Y, "n_groups", "into x"),
    "arguments: columns": (three_columns, X, Y, "height", "into x"),
    "arguments: a keyword": (needed_keyword, X, Y, "sigma", "into x"),
    "arguments: one for all": (one_argument, X, Y, "data", r"program\(x, y=None\)"),
    "arguments: targets first": (targets_first, X[:, 0], Y, "y, x", r"program\(x, y"),
    "inputs: lengths differ": (
        by_group("g"),
        {"g": np.zeros(N, int), "z": np.zeros(N - 1)},
        Y,
        "'z'|z",
        "length|rows|axis",
    ),
    "inputs: words": (by_group("g"), {"g": np.array(list("abcabcabc"))}, Y, "'g'|g", "number|integer|code"),
    "inputs: an array without rows": (
        by_group("g"),
        {"g": np.zeros(N, int), "s": np.float64(2.0)},
        Y,
        "'s'|s",
        "axis|rows",
    ),
    "inputs: another length than y": (in_plate(lambda f: dist.Normal(f, 1.0)), X[:-1], Y, "x|y", "rows|length|many"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_what_does_not_fit_and_says_what_to_do(name):
    program, x, y, named, remedy = REFUSED[name]
    with pytest.raises((ValueError, TypeError)) as refusal, jax.enable_x64():
        Model.from_numpyro(program).bind(x, y)
    text = str(refusal.value)
    for words in (named, remedy):
        assert re.search(words, text), f"no {words!r} in: {text}"
    assert_is_a_sentence(refusal.value)


CLOSED_FORMS = {
    "censored survival by a factor": Recipe(family="censored by a factor"),
    "trials of each row": Recipe(family="beta-binomial", inputs="dict"),
    "trials among floats": Recipe(family="binomial", target_type="float"),
    "rows under a mask": Recipe(mask="column", function="vector"),
    "missing targets": Recipe(mask="missing targets", inputs="tuple"),
    "known errors beside f": Recipe(extra="error", function="vector", noise="half-normal"),
    "exposure beside f": Recipe(family="poisson", extra="exposure", function="column", inputs="dict"),
    "offset of classes": Recipe(family="bernoulli", extra="offset", function="vector", target_type="bool"),
    "groups by an integer": Recipe(groups="centred", inputs="dict", num_groups=6),
    "two sites in the plate": Recipe(second="targets", noise="variance"),
    "a site of the inputs": Recipe(second="inputs", function="vector"),
    "a factor outside of the plate": Recipe(second="factor outside", inputs="dict"),
    "scaled likelihood": Recipe(handler="scale likelihood", family="student"),
    "conditioned": Recipe(handler="condition"),
    "scoped": Recipe(handler="scope", slopes="bounds as sites"),
    "a prior factor as long as the data": Recipe(penalty="as long as the data"),
    "several outputs with known errors": Recipe(family="several normals", extra="error", function="vector"),
    "shares that look like class probabilities": Recipe(family="shares", inputs="tuple"),
    "small integers": Recipe(family="geometric", target_type="small"),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_what_is_allowed_has_its_closed_form(name):
    case = build(CLOSED_FORMS[name])
    check(case.program, case.x, case.y, rows=case.rows, probabilities=case.probabilities)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(family="weibull", function="vector"),
        Recipe(family="shares", function="vector"),
        Recipe(family="geometric"),
    ],
    ids=str,
)
def test_binding_a_right_program_warns_of_nothing(recipe):
    case = build(recipe)
    with warnings.catch_warnings(), jax.enable_x64():
        warnings.simplefilter("error")
        Model.from_numpyro(case.program).bind(case.x, case.y)


def test_initial_parameters_are_the_unconstrained_ones_of_numpyro():
    case = build(Recipe(family="ordered", slopes="correlated", groups="centred"))
    with jax.enable_x64():
        model = Model.from_numpyro(case.program).bind(case.x, case.y)
        found = model.init(jax.random.key(0))
        wanted = numpyro.infer.util.initialize_model(
            jax.random.key(0), case.program, model_args=(jnp.asarray(case.x), jnp.asarray(case.y))
        ).param_info.z
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, dict(wanted))
    assert all(np.all(np.abs(leaf) <= 2.0) for leaf in found.values())


def test_bytes_are_integers_and_booleans_stay_booleans():
    """Three less a count is 253 in eight bits, and the opposite of true is not -2."""

    def program(x, y=None):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        with numpyro.plate("data", len(x["trials"])), handlers.mask(mask=~x["dropped"]):
            numpyro.sample("y", dist.Poisson(rate), obs=y)
        left = jnp.where(x["dropped"], 0, x["used"] - x["trials"])
        numpyro.factor("left", 0.1 * rate * left)

    used, trials = np.arange(N) % 3, 3 + np.arange(N) % 4
    dropped, y = np.arange(N) % 4 == 0, np.arange(N) % 5
    small = {"trials": trials.astype(np.uint8), "used": used.astype(np.uint8), "dropped": dropped}
    wide = {"trials": trials, "used": used, "dropped": dropped}

    def rows(values: Any) -> Any:
        kept = np.where(dropped, 0.0, dist.Poisson(values["rate"]).log_prob(y))
        return kept + 0.1 * values["rate"] * np.where(dropped, 0, used - trials)

    check(program, wide, y, rows=rows)
    with jax.enable_x64():
        model = Model.from_numpyro(program).bind(small, y.astype(np.uint8))
        found = model.log_likelihood({"rate": jnp.zeros(())}, jax.tree.map(jnp.asarray, small), y.astype(np.uint8))
        np.testing.assert_allclose(found, rows({"rate": 1.0}), rtol=1e-9)
