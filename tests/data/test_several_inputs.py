"""Inputs of several kinds: from the arrays of a user to a coreset on disk, integers as integers all the way."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from pseudocoreset import Dataset, Pseudocoreset, fit_bpc_rkl, fit_bpc_w, fit_giga, fit_herding
from pseudocoreset.fitting.leaves import Box
from pseudocoreset.inference import Posterior, sample
from pseudocoreset.models import Model

NUM_GROUPS = 3
EFFECTS = np.array([-0.5, 0.1, 0.6])


def table(n=200, seed=0):
    rng = np.random.default_rng(seed)
    x = {
        "z": rng.normal(size=(n, 2)),
        "group": rng.integers(0, NUM_GROUPS, n),
        "exposure": rng.uniform(0.1, 4.0, n),
        "seen": rng.uniform(size=n) < 0.8,
    }
    rate = x["exposure"] * np.exp(EFFECTS[x["group"]] + x["z"] @ [0.5, -0.3])
    return x, rng.poisson(rate).astype(np.float32)


def counts(x, y=None):
    effects = numpyro.sample("effects", dist.Normal(0.0, 1.0).expand((NUM_GROUPS,)).to_event(1))
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 1.0).expand((2,)).to_event(1))
    numpyro.deterministic("ratio", jnp.exp(effects[1] - effects[0]))
    with numpyro.plate("data", x["z"].shape[0]), numpyro.handlers.mask(mask=x["seen"]):
        rate = x["exposure"] * jnp.exp(effects[x["group"]] + x["z"] @ slopes)
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def rows(x, chosen):
    return {name: array[chosen] for name, array in x.items()}


X, Y = table()
DATA = Dataset.from_arrays(X, Y, test=(rows(X, slice(20)), Y[:20]))
MODEL = Model.from_numpyro(counts)
PARAMS = {"effects": np.array([0.3, -0.2, 0.5]), "slopes": np.array([0.4, -0.1])}
SHORT = {"kernel": "nuts", "num_chains": 1, "num_warmup": 20, "num_samples": 10, "progress": False}


def by_scipy(x, y, params):
    rate = x["exposure"] * np.exp(params["effects"][x["group"]] + x["z"] @ params["slopes"])
    return np.where(x["seen"], stats.poisson.logpmf(y, rate), 0.0)


@pytest.mark.parametrize("kind", ["dictionary", "tuple", "matrix"])
def test_the_likelihood_of_each_row_is_scipys(kind):
    def of_tuple(x, y=None):
        counts(dict(zip(X, x, strict=True)), y)

    program = of_tuple if kind == "tuple" else counts
    x = tuple(X.values()) if kind == "tuple" else X
    with jax.enable_x64(True):
        model = Model.from_numpyro(program).bind(x, Y)
        given = model.layout.pack(x) if kind == "matrix" else x
        found = model.log_likelihood(jax.tree.map(jnp.asarray, PARAMS), jax.tree.map(jnp.asarray, given), Y)
    np.testing.assert_allclose(found, by_scipy(X, Y, PARAMS), rtol=1e-12)


def test_a_dataset_gives_back_the_arrays_and_their_types():
    assert {name: leaf.dtype.kind for name, leaf in DATA.train.x.items()} == {
        "z": "f",
        "group": "i",
        "exposure": "f",
        "seen": "b",
    }
    for name, array in X.items():
        np.testing.assert_allclose(DATA.train.x[name], array, rtol=1e-6)
    assert MODEL.bind(X, Y).data_kinds == {"z": "learned", "group": "chosen", "exposure": "learned", "seen": "chosen"}


@pytest.mark.parametrize("fit", [fit_bpc_rkl, pytest.param(fit_bpc_w, marks=pytest.mark.slow)])
def test_integers_are_chosen_and_fixed_floats_stay(fit, tmp_path):
    start = Pseudocoreset.from_data(DATA, size=8, mass="data", key=jax.random.key(2))
    options = {"coreset": start, "steps": 12, "key": jax.random.key(1), "progress": False}
    coreset = fit(MODEL, DATA, fixed=("exposure",), **options).coreset
    for name in ("group", "seen", "exposure"):
        np.testing.assert_array_equal(coreset.inputs[name], start.inputs[name])
    assert np.abs(coreset.inputs["z"] - start.inputs["z"]).max() > 0.01
    moved = fit(MODEL, DATA, **options).coreset
    assert np.abs(moved.inputs["exposure"] - start.inputs["exposure"]).max() > 0.01
    coreset.save(tmp_path / "coreset")
    loaded = Pseudocoreset.load(tmp_path / "coreset")
    for name, array in coreset.inputs.items():
        assert loaded.inputs[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded.inputs[name], array)


def test_a_positive_column_stays_positive_under_steps_that_are_too_large():
    """In a plain array too; the exposure went negative in a third of fits."""

    def program(x, y=None):
        level = numpyro.sample("level", dist.Normal(0.0, 2.0))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Poisson(x[:, 1] * jnp.exp(level + 0.3 * x[:, 0])), obs=y)

    x = np.c_[X["z"][:, 0], X["exposure"]]
    result = fit_bpc_rkl(
        Model.from_numpyro(program), Dataset.from_arrays(x, Y), size=6, steps=20, step_size=3.0, key=jax.random.key(0),
        progress=False,
    )  # fmt: skip
    # Where the steps came to, whatever was kept of them.
    inputs = np.asarray(result.state.arrays.inputs)
    assert inputs[:, 1].min() >= np.float32(X["exposure"].min()) / 2 > 0
    assert np.abs(inputs[:, 0]).max() > 3  # the other column went where it liked


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_start_outside_the_range_of_the_data_is_not_moved_by_the_bounds(sign):
    """Data of 1 to 4, a start at 0.2 and 3: under steps of nearly nothing it stays, and 0.2 is the bound.

    The start of 3 alone has the bound of half of the least datum.
    """

    def program(x, y=None):
        level = numpyro.sample("level", dist.Normal(0.0, 2.0))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Poisson(jnp.abs(x[:, 0]) * jnp.exp(level)), obs=y)

    rng = np.random.default_rng(0)
    x = np.r_[1.0, rng.uniform(1.0, 4.0, 99)][:, None]
    data, model = Dataset.from_arrays(sign * x, rng.poisson(x[:, 0]).astype(np.float32)), Model.from_numpyro(program)
    options = {"steps": 4, "key": jax.random.key(0), "progress": False}
    for values, bound in (([0.2, 3.0], 0.2), ([3.0, 3.0], 0.5)):
        points = (sign * np.array(values)[:, None]).astype(np.float32)
        start = Pseudocoreset(inputs=points, targets=np.float32([1, 3]), weights=np.float32([50, 50]), num_data=100)
        still = fit_bpc_rkl(model, data, coreset=start, step_size=1e-7, **options)
        np.testing.assert_allclose(still.state.arrays.inputs, points, atol=1e-5)
        box = Box.of(data.train, jnp.asarray(points), (), is_bounded=True)
        far = jnp.full((2, 1), -9.0 * sign)
        entered = sign * np.asarray(box.enter(far, jnp.asarray(points)))
        np.testing.assert_allclose(entered, bound, rtol=1e-6)


def test_fixed_columns_of_a_plain_array_are_named_by_position():
    def program(x, y=None):
        slopes = numpyro.sample("slopes", dist.Normal(0.0, 1.0).expand((3,)).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(x @ slopes, 1.0), obs=y)

    x = np.random.default_rng(0).normal(size=(50, 3))
    model, data = Model.from_numpyro(program), Dataset.from_arrays(x, x @ [1.0, 2.0, 3.0])
    options = {"steps": 5, "key": jax.random.key(0), "progress": False}
    start = Pseudocoreset.from_data(data, size=4, mass="data", key=jax.random.key(1))
    coreset = fit_bpc_rkl(model, data, coreset=start, fixed=(1, -1), **options).coreset
    np.testing.assert_array_equal(coreset.inputs[:, [1, 2]], start.inputs[:, [1, 2]])
    assert np.all(coreset.inputs[:, 0] != start.inputs[:, 0])
    with pytest.raises(ValueError, match="column 3"):
        fit_bpc_rkl(model, data, size=4, fixed=(3,), **options)
    with pytest.raises(TypeError, match="'z'"):
        fit_bpc_rkl(model, data, size=4, fixed=("z",), **options)


def test_a_dataset_and_a_coreset_of_all_rows_have_the_same_posterior(tmp_path):
    whole = Pseudocoreset(inputs=X, targets=Y, weights=np.ones(len(Y), np.float32), num_data=len(Y))
    test = (rows(X, slice(20)), Y[:20])
    draws = [
        sample(MODEL, data, predict_on=test, key=jax.random.key(0), deterministic=True, **SHORT)
        for data in (DATA, whole)
    ]
    np.testing.assert_array_equal(draws[1].draws["effects"], draws[0].draws["effects"])
    values = {name: draws[0].draws[name][0] for name in PARAMS}
    each = [by_scipy(*test, {name: leaf[i] for name, leaf in values.items()}) for i in range(SHORT["num_samples"])]
    np.testing.assert_allclose(draws[0].log_likelihood[0], each, rtol=1e-4, atol=1e-4)
    ratio = np.exp(values["effects"][:, 1] - values["effects"][:, 0])
    np.testing.assert_allclose(draws[0].draws["ratio"][0], ratio, rtol=1e-5)
    draws[0].save(tmp_path / "posterior")
    np.testing.assert_array_equal(Posterior.load(tmp_path / "posterior").predict_on.x["group"], X["group"][:20])


def test_subsets_choose_whole_rows():
    model = MODEL.bind(X, Y)
    coreset = fit_giga(model, DATA, size=5, key=jax.random.key(0)).coreset
    for i in range(coreset.size):
        same = np.all(np.isclose(DATA.train.x["z"], coreset.inputs["z"][i]), axis=1)
        assert DATA.train.x["group"][same] == coreset.inputs["group"][i]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {**x, "group": x["group"][:-1]}, "one length"),
        (lambda x: {**x, "group": np.where(x["group"] == 0, 2**24 + 1, 1)}, "np.unique"),
        (lambda x: {**x, "z": np.where(x["z"] > 2, np.nan, x["z"])}, r"x\['z'\] must be finite"),
        (lambda x: {**x, "z": np.ma.masked_greater(x["z"], 1)}, r"x\['z'\]"),
        (lambda x: {}, "empty"),
    ],
)
def test_arrays_that_do_not_fit_are_named(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Dataset.from_arrays(change(X), Y)


def test_other_arrays_than_in_training_are_refused():
    model = MODEL.bind(X, Y)
    with pytest.raises(ValueError, match="exposure"):
        sample(model, ({"z": X["z"], "group": X["group"]}, Y), key=jax.random.key(0), **SHORT)
    with pytest.raises(ValueError, match="fixed names"):
        fit_bpc_rkl(MODEL, DATA, size=4, steps=1, fixed=("expsure",), key=jax.random.key(0), progress=False)


def test_every_level_has_a_point_and_its_mass():
    x, y = table(300, seed=3)
    x["group"] = np.repeat([0, 4, 9], [250, 45, 5])
    data = Dataset.from_arrays(x, y)
    coreset = Pseudocoreset.from_data(data, size=6, stratify="group", mass="data", key=jax.random.key(0))
    groups, counts = np.unique(coreset.inputs["group"], return_counts=True)
    assert groups.tolist() == [0, 4, 9]
    assert counts.tolist() == [4, 1, 1]
    masses = [coreset.weights[coreset.inputs["group"] == group].sum() for group in groups]
    np.testing.assert_allclose(masses, [250, 45, 5], rtol=1e-5)
    for name in ("exposure", "absent"):
        with pytest.raises(ValueError, match="stratify must name"):
            Pseudocoreset.from_data(data, size=6, stratify=name, key=jax.random.key(0))
    with pytest.raises(ValueError, match="3 levels"):
        Pseudocoreset.from_data(data, size=2, stratify="group", key=jax.random.key(0))


def test_levels_without_a_point_are_said(caplog):
    start = Pseudocoreset(
        inputs=rows(X, X["group"] == 1), targets=Y[X["group"] == 1], weights=np.ones((X["group"] == 1).sum())
    )
    with caplog.at_level(logging.WARNING):
        fit_bpc_rkl(MODEL, DATA, coreset=start, steps=1, key=jax.random.key(0), progress=False)
    assert "2 levels of 'group' (0, 2)" in caplog.text


def test_a_tuple_of_twelve_arrays_comes_back_in_its_order(tmp_path):
    """By name the position "10" comes before "2": every array had the numbers of another."""
    values = [np.full((4, 1 + i % 3), i + 0.25, np.float32) for i in range(12)]
    values[10] = np.array([7, 8, 9, 10])
    coreset = Pseudocoreset(inputs=tuple(values), targets=np.zeros(4, np.float32), weights=np.ones(4, np.float32))
    coreset.save(tmp_path / "coreset")
    loaded = Pseudocoreset.load(tmp_path / "coreset")
    assert loaded.layout == coreset.layout
    for one, value in zip(loaded.inputs, values, strict=True):
        assert one.dtype.kind == value.dtype.kind
        np.testing.assert_array_equal(one, value)


BIG = {**X, "group": np.where(X["group"] == 0, 2**24 + 1, 1)}


@pytest.mark.parametrize(
    "call",
    [
        lambda: Dataset.from_arrays(BIG, Y),
        lambda: Dataset.from_arrays(X, Y, test=(BIG, Y)),
        lambda: Pseudocoreset(BIG, Y, np.ones(len(Y))),
        lambda: sample(MODEL, (BIG, Y), key=jax.random.key(0), **SHORT),
        lambda: sample(MODEL, (X, Y), predict_on=(BIG, Y), key=jax.random.key(0), **SHORT),
    ],
)
def test_integers_that_float32_would_change_are_refused_where_jax_has_float64_too(call):
    with jax.enable_x64(True), pytest.raises(ValueError, match=r"\['group'\] has integers beyond 16777216"):
        call()


def test_the_largest_integers_are_kept_where_jax_has_float64():
    x = {**X, "group": 2**24 - np.arange(len(Y))}
    with jax.enable_x64(True):
        data = Dataset.from_arrays(x, Y)
        np.testing.assert_array_equal(data.train.x["group"], x["group"])
        chosen = Pseudocoreset.from_data(data, size=20, key=jax.random.key(0))
        for coreset in (chosen, fit_herding(MODEL, data, size=20, weights="data", key=jax.random.key(1)).coreset):
            assert set(coreset.inputs["group"]) <= set(x["group"])
            assert len(set(coreset.inputs["group"])) == 20


def test_a_program_gets_larger_integers_as_they_are():
    def program(x, y=None):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", x["id"].shape[0]):
            numpyro.sample("y", dist.Normal(level + (x["id"] - 2**30), 1.0), obs=y)

    x, y = {"id": 2**30 + np.arange(5)}, np.array([0.5, 1.0, 2.0, 3.0, 3.5])
    with jax.enable_x64(True):
        model = Model.from_numpyro(program).bind(x, y)
        found = model.log_likelihood({"level": jnp.asarray(0.25)}, jax.tree.map(jnp.asarray, x), jnp.asarray(y))
    np.testing.assert_allclose(found, stats.norm.logpdf(y, 0.25 + np.arange(5)), rtol=1e-12)


def test_booleans_are_zero_and_one_alone():
    seen = X["seen"][:20]
    for given in (seen.astype(int), seen.astype(np.float32)):
        data = Dataset.from_arrays(X, Y, test=({**rows(X, slice(20)), "seen": given}, Y[:20]))
        np.testing.assert_array_equal(data.test.x["seen"], seen)
    for wrong in (np.where(seen, 5, 0), np.where(seen, 1, -3), np.where(seen, 0.5, 0.0)):
        with pytest.raises(ValueError, match=r"test x\['seen'\] must hold (booleans|integers)"):
            Dataset.from_arrays(X, Y, test=({**rows(X, slice(20)), "seen": wrong}, Y[:20]))


def test_integers_in_the_place_of_floats_warn_of_lost_digits():
    exposure = 2**30 + np.arange(20)
    with pytest.warns(UserWarning, match=r"test x\['exposure'\]: rounding to float32"):
        Dataset.from_arrays(X, Y, test=({**rows(X, slice(20)), "exposure": exposure}, Y[:20]))
