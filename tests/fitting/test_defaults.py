"""Defaults on tables: steps in units of columns, columns without gradient, and no worse than random points."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import pseudocoreset as pc
from pseudocoreset import Dataset, Pseudocoreset
from pseudocoreset.methods.optimizers import column_scales, in_units
from pseudocoreset.models import Model, logistic_regression, poisson_regression
from pseudocoreset.proxies import divergence_at_mode
from tests.marks import slow_but

SCALES = np.array([0.1, 1.0, 100.0])


def counts(scales=SCALES, rows=400):
    random = np.random.default_rng(0)
    z = random.normal(size=(rows, 3))
    y = random.poisson(np.exp(0.5 + z @ [0.5, -0.4, 0.2])).astype(np.float32)
    return Dataset.from_arrays((z * scales).astype(np.float32), y)


def fit(method, model, data, **settings):
    return method(
        model, data, **{"size": 12, "key": jax.random.key(3), "progress": False, "verdict": False, **settings}
    )


def test_units_are_standard_deviations() -> None:
    data = counts()
    np.testing.assert_allclose(column_scales(data), np.std(data.train.x.astype(float), axis=0), rtol=1e-5)
    far = Dataset.from_arrays(np.c_[data.train.x[:, 0] + 1e4, np.ones(400)].astype(np.float32), data.train.y)
    found = column_scales(far)
    np.testing.assert_allclose(found[0], np.std(far.train.x[:, 0].astype(float)), rtol=1e-4)
    assert found[1] == 0


@pytest.mark.parametrize("make", [lambda: optax.adam(0.1), lambda: optax.adamw(0.1, weight_decay=0.2)])
def test_an_optimiser_in_units_is_that_of_the_scaled_leaf(make) -> None:
    """The path of z = x / s, on the same loss of z."""
    start = np.array([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]], np.float32)

    def path(optimizer, x, units):
        leaves = {"inputs": jnp.asarray(x)}
        state = optimizer.init(leaves)
        for _ in range(5):
            gradient = jax.grad(lambda p: jnp.sum(jnp.sin(p["inputs"] / units)))(leaves)
            moves, state = optimizer.update(gradient, state, leaves)
            leaves = optax.apply_updates(leaves, moves)
        return np.asarray(leaves["inputs"])

    plain = path(make(), start, np.ones(3))
    scaled = path(in_units(make(), {"inputs": SCALES}), start * SCALES, SCALES)
    np.testing.assert_allclose(scaled / SCALES, plain, rtol=1e-5, atol=1e-6)


def test_a_fit_does_not_depend_on_units() -> None:
    """Columns in other units, and priors with them: the same coreset in those units."""
    coresets = []
    for scales in (np.ones(3), 2.0 ** np.array([-4, 0, 6])):

        def program(x, y=None, scales=scales):
            slopes = numpyro.sample("slopes", dist.Normal(0.0, 1.0 / scales).to_event(1))
            with numpyro.plate("data", x.shape[0]):
                numpyro.sample("y", dist.Poisson(jnp.exp(x @ slopes)), obs=y)

        result = fit(pc.fit_bpc_fkl, Model.from_numpyro(program), counts(scales), steps=20)
        coresets.append(result.coreset.inputs / scales)
    np.testing.assert_allclose(*coresets, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "method",
    slow_but(
        [pc.fit_bpc_rkl, pc.fit_bpc_fkl, pc.fit_sparse_vi, pc.fit_giga, pc.fit_herding], pc.fit_bpc_fkl, pc.fit_giga
    ),
)
def test_defaults_say_how_near_they_end_and_those_that_learn_end_no_worse_than_random_points(method) -> None:
    data = counts()
    model = poisson_regression(data, prior_scale=10.0)
    learns = method in (pc.fit_bpc_rkl, pc.fit_bpc_fkl)
    result = fit(method, model, data, **({"steps": 60} if learns else {}))
    found = result.coreset.metadata["at_mode"]
    assert found["nats"] == pytest.approx(divergence_at_mode(model, data, result.coreset).nats, rel=1e-3)
    assert not learns or found["nats"] <= found["other"] + 1e-3
    assert learns or found["kept"] == "fitted"
    assert f"{found['nats']:.3g} nats from the posterior of all data" in repr(result)


@pytest.mark.parametrize("method", [pc.fit_herding])
def test_a_method_that_chooses_returns_its_choice_and_warns_where_random_points_are_nearer(method, caplog) -> None:
    """The points are those without the comparison, whose history they have: by columns alone, points near the mean."""
    data = counts()
    model = poisson_regression(data, prior_scale=10.0)
    chosen = fit(method, model, data, size=4, weights="data", features=lambda x: x / SCALES).coreset
    warned = []
    for seed in range(4):
        caplog.clear()
        result = fit(method, model, data, size=4, key=jax.random.key(seed), features=lambda x: x / SCALES)
        np.testing.assert_array_equal(result.coreset.inputs, chosen.inputs)
        found = result.coreset.metadata["at_mode"]
        is_farther = found["other"] is not None and found["nats"] > found["other"] + 1e-3
        assert (found["nearer"] == "random subset") == is_farther
        assert ("than a random subset of as many points" in caplog.text) == is_farther
        if is_farther:
            assert f"{found['nats']:.3g} nats, and {found['other']:.3g} nats" in caplog.text
            assert f"a random subset of as many points is nearer, {found['other']:.3g}" in repr(result)
        warned.append(is_farther)
    assert any(warned)


def test_a_fit_that_ends_worse_gives_its_start() -> None:
    data = counts()
    model = poisson_regression(data, prior_scale=10.0)
    start = Pseudocoreset.from_data(data, size=12, key=jax.random.key(5), mass="data")
    result = fit(pc.fit_bpc_fkl, model, data, size=None, coreset=start, steps=1, optimizer=optax.sgd(1e3))
    np.testing.assert_array_equal(result.coreset.inputs, start.inputs)
    np.testing.assert_array_equal(result.coreset.weights, start.weights)
    found = result.coreset.metadata["at_mode"]
    assert found["kept"] == "start"
    assert found["nats"] == found["other"]
    assert "The start is kept, for the fit ended farther away" in repr(result)
    assert result.coreset.metadata["objective"] == "bpc_fkl"


def grouped(x, y=None):
    """Two columns, and a third that holds the group of a row: an index."""
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    effects = numpyro.sample("effects", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
    f = numpyro.deterministic("f", x[:, :2] @ slopes + effects[x[:, 2].astype(jnp.int32)])
    numpyro.deterministic("features", jnp.c_[x[:, :2], effects[x[:, 2].astype(jnp.int32)]])
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=f), obs=y)


EXPERTS = {"num_experts": 2, "num_expert_epochs": 3, "steps": 10}
MOVING = {
    "bpc_rkl": (pc.fit_bpc_rkl, {"steps": 10}),
    "bpc_fkl": (pc.fit_bpc_fkl, {"steps": 10}),
    "bpc_w": (pc.fit_bpc_w, {"steps": 10}),
    "fbpc": (pc.fit_fbpc, EXPERTS),
    "gradient_matching": (pc.fit_gradient_matching, {"steps": 10, "distance": "squared"}),
    "distribution_matching": (pc.fit_distribution_matching, {"steps": 10}),
    "trajectory_matching": (pc.fit_trajectory_matching, EXPERTS),
    "bacon": (pc.fit_bacon, {"steps": 10}),
    "weight decay": (pc.fit_bpc_fkl, {"steps": 10, "optimizer": optax.adamw(0.1, weight_decay=0.1)}),
}


@pytest.mark.parametrize("name", slow_but(MOVING, "fbpc", "gradient_matching", "weight decay"))
def test_a_column_of_group_codes_keeps_its_bits(name: str) -> None:
    """Its gradient is zero; the others move."""
    random = np.random.default_rng(0)
    x = np.c_[random.normal(size=(300, 2)) * [0.1, 50.0], random.integers(0, 5, 300)].astype(np.float32)
    y = random.integers(0, 2, 300)
    method, settings = MOVING[name]
    result = fit(method, Model.from_numpyro(grouped), Dataset.from_arrays(x, y), **settings)
    learned, start = np.asarray(result.state.arrays.inputs), result.state.arrays.targets
    assert set(learned[:, 2].tolist()) <= set(range(5))
    assert len(start) == 12
    assert not np.isin(learned[:, 1], x[:, 1]).all()


def test_herding_of_a_table_has_the_spread_of_the_data() -> None:
    """Of columns alone the best match of the mean are points beside it, whose posterior is far off and far too wide."""
    data = counts()
    model = poisson_regression(data, prior_scale=10.0)
    chosen = fit(pc.fit_herding, model, data, weights="data").coreset
    np.testing.assert_allclose(np.std(chosen.inputs / SCALES, axis=0), 1.0, atol=0.25)
    columns = fit(pc.fit_herding, model, data, weights="data", features=lambda x: x / SCALES).coreset
    assert np.all(np.std(columns.inputs / SCALES, axis=0) < 0.6)
    others = [
        divergence_at_mode(model, data, Pseudocoreset.from_data(data, size=12, key=jax.random.key(i), mass="data")).nats
        for i in range(3)
    ]
    assert divergence_at_mode(model, data, chosen).nats < max(others)


def test_fbpc_of_a_model_that_is_no_network_has_the_mass_of_the_data_and_ends_no_worse_than_its_start() -> None:
    random = np.random.default_rng(0)
    z = random.normal(size=(300, 3))
    data = Dataset.from_arrays((z * SCALES).astype(np.float32), (z[:, 0] > 0.5 * random.normal(size=300)).astype(int))
    result = fit(pc.fit_fbpc, logistic_regression(data), data, steps=5, num_experts=1, num_expert_epochs=3)
    assert result.coreset.mass == pytest.approx(300, rel=1e-5)
    found = result.coreset.metadata["at_mode"]
    assert found["nats"] <= found["other"] + 1e-3
    ones = fit(
        pc.fit_fbpc, logistic_regression(data), data, steps=5, num_experts=1, num_expert_epochs=3, weights="ones"
    )
    assert ones.coreset.mass == pytest.approx(12, rel=1e-5)
    assert "at_mode" not in ones.coreset.metadata


def with_features(x, y=None):
    """A logistic regression with the sites that every method can use."""
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    scaled = numpyro.deterministic("features", x / SCALES)
    f = numpyro.deterministic("f", scaled @ slopes)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=f), obs=y)


@pytest.mark.parametrize(
    "name",
    slow_but(
        [name for name in pc.__all__ if name.startswith("fit_")], "fit_fbpc", "fit_bpc_fkl", "fit_giga", "fit_random"
    ),
)
def test_every_fit_of_a_table_says_how_far_it_is(name: str) -> None:
    random = np.random.default_rng(0)
    z = random.normal(size=(300, 3))
    data = Dataset.from_arrays((z * SCALES).astype(np.float32), (z[:, 0] > random.normal(size=300)).astype(int))
    method = getattr(pc, name)
    quick = {"num_weight_steps": 20, "steps": 5, "num_experts": 1, "num_expert_epochs": 3}
    taken = {k: v for k, v in quick.items() if k in inspect.signature(method).parameters}
    result = fit(method, Model.from_numpyro(with_features), data, **taken)
    assert re.search(r"It is \S+ nats from the posterior of all data|is kept, for the fit ended farther", repr(result))
    found = result.coreset.metadata["at_mode"]
    assert found["nats"] == pytest.approx(
        divergence_at_mode(Model.from_numpyro(with_features), data, result.coreset).nats, rel=1e-3
    )
