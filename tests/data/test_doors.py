"""Models, data, coresets and held-out data that do not belong together are refused at every door."""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

import pseudocoreset
from pseudocoreset import Dataset, Pseudocoreset, compare_posteriors, evaluate, fit_bpc_rkl, fit_random, train_experts
from pseudocoreset.data import Preprocessing, Split
from pseudocoreset.data.images import is_channel_first
from pseudocoreset.diagnostics import predictive_metrics, reweight
from pseudocoreset.inference import Posterior, sample
from pseudocoreset.models import MLP, ConvNet, Model, bnn, logistic_regression

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
FIVE = np.repeat(np.arange(5), 8)
X = (RNG.normal(size=(40, 4)) + FIVE[:, None]).astype(np.float32)
DATA = Dataset.from_arrays(X, FIVE, test=(X, FIVE))
THREE = Dataset.from_arrays(X, FIVE % 3, test=(X, FIVE % 3))
REGRESSION = logistic_regression(num_classes=3)
BOUND = REGRESSION.bind(X, FIVE % 3)
NETWORK = bnn(MLP(widths=(4,)), input_shape=(4,), num_outputs=3)
SAMPLING: dict[str, Any] = {"num_chains": 1, "num_warmup": 5, "num_samples": 4, "key": KEY, "progress": False}
FITS = [name for name in pseudocoreset.__all__ if name.startswith("fit_")]
STARTED = [name for name in FITS if "coreset" in inspect.signature(getattr(pseudocoreset, name)).parameters]
POINTWISE = ("fit_curvature", "fit_giga", "fit_sparse_vi")  # for models of few parameters


def fit_with(name: str, data: Dataset, model: Model | None = None, **arguments: Any) -> Any:
    """A call of a front door with nothing but what all of them have."""
    model = model or (REGRESSION if name in POINTWISE else NETWORK)
    if "coreset" not in arguments:
        arguments["images_per_class"] = 1
    return getattr(pseudocoreset, name)(model, data, key=KEY, progress=False, **arguments)


def posterior(model: Model = BOUND, keep: str = "weights", predict_on: Any = None) -> Posterior:
    return sample(model, (X, FIVE % 3), keep=keep, predict_on=predict_on, **SAMPLING)


TOO_MANY = (
    r"integers from 0 to 2, the 3 classes of the model; row \d+ has 3, so there are 5 classes where the model has 3"
)


@pytest.mark.parametrize("name", FITS)
def test_fits_refuse_more_classes_than_the_model_has(name: str) -> None:
    with pytest.raises(ValueError, match="data: labels must be " + TOO_MANY):
        fit_with(name, DATA)


LABEL_DOORS: dict[str, Callable[[np.ndarray], Any]] = {
    "sample": lambda y: sample(BOUND, (X, y), **SAMPLING),
    "sample, network": lambda y: sample(NETWORK, (X, y), **SAMPLING),
    "predict_on": lambda y: sample(BOUND, (X, FIVE % 3), predict_on=(X, y), **SAMPLING),
    "Posterior.evaluate": lambda y: posterior().evaluate((X, y)),
    "compare_posteriors": lambda y: compare_posteriors({"a": posterior()}, (X, y), reference=None),
    "coreset": lambda y: sample(BOUND, Pseudocoreset(X, y, np.ones(40, np.float32)), **SAMPLING),
}


@pytest.mark.parametrize("door", LABEL_DOORS)
def test_pairs_refuse_labels_that_the_model_has_not(door: str) -> None:
    with pytest.raises(ValueError, match=TOO_MANY):
        LABEL_DOORS[door](FIVE)
    with pytest.raises(ValueError, match="row 16 has 3; they seem to count from 1: give y - 1"):
        LABEL_DOORS[door](1 + FIVE % 3)
    with pytest.raises(ValueError, match=r"integers from 0 to 2.* has 0\.5"):
        LABEL_DOORS[door](FIVE % 3 + 0.5)
    with pytest.raises(ValueError, match=r"integer codes without gaps are made by names, y = np\.unique"):
        LABEL_DOORS[door](10 * (FIVE % 3))


@pytest.mark.parametrize("door", ["sample", "predict_on", "Posterior.evaluate", "compare_posteriors"])
def test_pairs_refuse_words_with_their_remedy(door: str) -> None:
    with pytest.raises(TypeError, match=r"got text \('cat'.*give integer codes: names, y = np\.unique"):
        LABEL_DOORS[door](np.array(["cat", "dog"] * 20))


def test_labels_of_minus_one_and_one_are_refused_with_their_remedy() -> None:
    signs = np.where(FIVE > 2, 1, -1)
    binary = logistic_regression(num_classes=2)
    for y in (signs, signs.astype(float)):
        with pytest.raises(ValueError, match=r"for labels -1 and 1 give \(y > 0\)\.astype\(int\)"):
            sample(binary.bind(X, np.abs(signs)), (X, y), **SAMPLING)
    with pytest.raises(ValueError, match=r"label -1.*for labels -1 and 1 give \(y > 0\)"):
        Dataset.from_arrays(X, signs)
    with pytest.raises(ValueError, match=r"for labels -1 and 1 give \(y > 0\)"):
        fit_random(binary.bind(X, np.abs(signs)), Dataset.from_arrays(X, signs.astype(float)), size=3, key=KEY)


def test_other_doors_refuse_more_classes_than_the_model_has() -> None:
    with pytest.raises(ValueError, match=TOO_MANY):
        train_experts(NETWORK, DATA, num_experts=1, num_epochs=1, batch_size=8, key=KEY, progress=False)
    coreset = Pseudocoreset.from_data(DATA, images_per_class=1, key=KEY)
    for protocol in ("default", "kim2022", "distillation"):
        with pytest.raises(ValueError, match=TOO_MANY):
            evaluate(coreset, NETWORK, DATA, protocol=protocol, key=KEY, progress=False)
    with pytest.raises(ValueError, match="coreset: labels must be integers from 0 to 2, the 3 classes of the data"):
        evaluate(coreset, NETWORK, THREE, key=KEY, progress=False)
    with pytest.raises(ValueError, match=r"data\.test: labels must be integers from 0 to 2"):
        train_experts(NETWORK, dataclasses.replace(THREE, test=DATA.test), num_experts=1, key=KEY, batch_size=8)


def test_a_model_of_more_classes_than_the_data_is_taken() -> None:
    wide = bnn(MLP(widths=(4,)), input_shape=(4,), num_outputs=7)
    assert fit_with("fit_random", DATA, wide).coreset.size == 5


def test_real_targets_for_a_model_of_classes_are_refused() -> None:
    data = Dataset.from_arrays(X, (FIVE % 3).astype(float))
    for model in (NETWORK, BOUND, logistic_regression(num_classes=3)):
        with pytest.raises(ValueError, match=r"data has real targets.*y\.astype\(int\)"):
            fit_random(model, data, size=3, key=KEY)
    assert sample(BOUND, (X, (FIVE % 3).astype(float)), **SAMPLING).num_draws == 4


# Words and one-hot labels.


@pytest.mark.parametrize("form", [np.array, pd.Series, lambda y: pd.Series(pd.Categorical(y)), list])
def test_words_become_classes_in_alphabetical_order(form: Callable[[list[str]], Any]) -> None:
    words = ["dog", "cat", "eel", "cat"] * 10
    data = Dataset.from_arrays(X, form(words), test=(X[:3], form(["eel", "cat", "cat"])))
    assert data.class_names == ("cat", "dog", "eel")
    np.testing.assert_array_equal(data.train.y[:4], [1, 0, 2, 0])
    assert data.test is not None
    np.testing.assert_array_equal(data.test.y, [2, 0, 0])
    named = Dataset.from_arrays(X, form(words), class_names=["eel", "dog", "cat"])
    np.testing.assert_array_equal(named.train.y[:4], [1, 2, 0, 2])


def test_words_that_are_no_classes_are_refused() -> None:
    words = np.array(["dog", "cat"] * 20)
    with pytest.raises(ValueError, match="y has the label 'cat' in row 1, which is none of the classes 'dog', 'eel'"):
        Dataset.from_arrays(X, words, class_names=["dog", "eel"])
    with pytest.raises(ValueError, match="test y has the label 'eel' in row 2"):
        Dataset.from_arrays(X, words, test=(X[:3], ["cat", "dog", "eel"]))
    with pytest.raises(TypeError, match="test y must be an array of numbers, got text"):
        Dataset.from_arrays(X, FIVE, test=(X[:2], ["cat", "dog"]))


def test_one_hot_labels_are_told_from_several_targets() -> None:
    hot = np.eye(5)[FIVE]
    for form in (hot, hot.astype(int), hot.astype(bool), hot.astype(np.float32)):
        with pytest.raises(ValueError, match=r"one-hot.*y\.argmax\(axis=1\)"):
            Dataset.from_arrays(X, form)
        with pytest.raises(ValueError, match=r"one-hot.*y\.argmax\(axis=1\)"):
            sample(BOUND, (X, form), **SAMPLING)
    with pytest.raises(ValueError, match=r"predict_on: y is one-hot.*y\.argmax\(axis=1\)"):
        sample(BOUND, (X, FIVE % 3), predict_on=(X, np.eye(3)[FIVE % 3]), **SAMPLING)
    with pytest.raises(ValueError, match=r"shape \(40, 1\); give y\[:, 0\]"):
        Dataset.from_arrays(X, FIVE[:, None])
    with pytest.raises(ValueError, match=r"y has shape \(40, 1\); wanted \(n,\).*give y\[:, 0\]"):
        sample(BOUND, (X, FIVE[:, None] % 3), **SAMPLING)
    # A one-hot row is a probability of one: the same posterior as that of the label.
    soft = sample(BOUND, (X, np.eye(3)[FIVE % 3]), **SAMPLING)
    np.testing.assert_allclose(soft.draws["coefficients"], posterior(keep="weights").draws["coefficients"], atol=2e-3)


def test_bytes_as_counts_do_not_overflow() -> None:
    """255 + 1 is 0 in uint8: the logarithm of its factorial would be infinite."""

    def program(x: jax.Array, y: jax.Array | None = None) -> None:
        rate = jnp.exp(numpyro.sample("rate", dist.Normal(5.0, 1.0)))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Poisson(rate), obs=y)

    counts = RNG.poisson(200, 40).clip(max=255)
    counts[0] = 255
    model = Model.from_numpyro(program)
    found = [
        sample(model, (X, form), kernel="hmc", step_size=1e-4, **SAMPLING).sample_stats["lp"]
        for form in (counts.astype(np.uint8), counts.astype(np.float32))
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


# Preprocessing.

NORMAL = Dataset.from_arrays(X, FIVE % 3, test=(X, FIVE % 3), normalize=True)
WHITE = Dataset.from_arrays(X, FIVE % 3, test=(X, FIVE % 3), normalize=True, zca=True)
OTHERS = {"plain": THREE, "whitened": WHITE, "shifted": Dataset.from_arrays(X + 1, FIVE % 3, normalize=True)}
CORESET = Pseudocoreset.from_data(NORMAL, images_per_class=1, key=KEY)


@pytest.mark.parametrize("other", OTHERS)
def test_coresets_are_held_against_the_preprocessing_of_data(other: str) -> None:
    data = OTHERS[other]
    held_out = data.test or data.train
    message = "was preprocessed as .*, .* as .*would see other inputs"
    for call in (
        lambda: sample(NETWORK, CORESET, predict_on=held_out, **SAMPLING),
        lambda: sample(NETWORK, NORMAL, predict_on=held_out, **SAMPLING),
        lambda: sample(NETWORK, CORESET, keep="weights", **SAMPLING).evaluate(held_out),
        lambda: compare_posteriors(
            {"coreset": sample(NETWORK, CORESET, predict_on=NORMAL.test, keep="weights", **SAMPLING)},
            held_out,
            reference=None,
        ),
        lambda: evaluate(CORESET, NETWORK, data, key=KEY, progress=False),
        lambda: reweight(sample(BOUND, (X, FIVE % 3), **(SAMPLING | {"num_samples": 25})), source=CORESET, target=data),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("name", STARTED)
def test_fits_hold_a_start_against_the_preprocessing_of_data(name: str) -> None:
    with pytest.raises(ValueError, match=r"the coreset was preprocessed as \(scale 1, mean .*, data as \(scale 1\)"):
        fit_with(name, THREE, coreset=CORESET)


def test_experts_and_splits_are_held_against_the_preprocessing_of_data() -> None:
    experts = train_experts(NETWORK, NORMAL, num_experts=1, num_epochs=2, batch_size=20, key=KEY, progress=False)
    for data in (THREE, WHITE):
        with pytest.raises(ValueError, match="what the experts were trained on was preprocessed as"):
            fit_with("fit_trajectory_matching", data, experts=experts, steps=1, first_epoch=0, last_epoch=0)
    with pytest.raises(ValueError, match=r"test has the preprocessing .*, train "):
        dataclasses.replace(NORMAL, test=THREE.test)


def test_preprocessing_is_compared_by_content(tmp_path: pathlib.Path) -> None:
    CORESET.save(tmp_path / "coreset")
    again = Dataset.from_arrays(X.copy(), FIVE % 3, test=(X, FIVE % 3), normalize=True)
    loaded = Pseudocoreset.load(tmp_path / "coreset")
    first = sample(NETWORK, CORESET, predict_on=NORMAL.test, **SAMPLING)
    second = sample(NETWORK, loaded, predict_on=again.test, **SAMPLING)
    np.testing.assert_array_equal(first.function_values, second.function_values)
    first.save(tmp_path / "posterior")
    assert NORMAL.test is not None
    Posterior.load(tmp_path / "posterior")


def test_pairs_have_no_preprocessing_and_are_taken(tmp_path: pathlib.Path) -> None:
    assert NORMAL.test is not None
    pair = (NORMAL.test.x, NORMAL.test.y)
    taken = sample(NETWORK, CORESET, predict_on=pair, **SAMPLING)
    wanted = sample(NETWORK, CORESET, predict_on=NORMAL.test, **SAMPLING)
    np.testing.assert_allclose(taken.function_values, wanted.function_values, rtol=1e-5, atol=1e-6)
    taken.save(tmp_path / "posterior")
    again = Posterior.load(tmp_path / "posterior").predict_on
    assert again is not None
    sample(NETWORK, CORESET, predict_on=again, **SAMPLING)
    by_hand = Pseudocoreset(CORESET.inputs, CORESET.targets, CORESET.weights)
    assert sample(NETWORK, by_hand, predict_on=WHITE.test, **SAMPLING).num_draws == 4
    assert evaluate(by_hand, NETWORK, NORMAL, key=KEY, progress=False, num_warmup=2, num_samples=2).metrics


# Arguments beside a coreset.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 7}, "coreset has 3 points, but size=7"),
        ({"images_per_class": 4}, "coreset has 3 points, but images_per_class=4 of 3 classes"),
        ({"weights": "data"}, r"coreset has the mass 3, but weights='data' means 40.*coreset\.with_mass\('data'\)"),
    ],
)
@pytest.mark.parametrize("name", ["fit_fbpc", "fit_bpc_rkl", "fit_gradient_matching", "fit_distribution_matching"])
def test_what_a_coreset_contradicts_is_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_with(name, NORMAL, coreset=CORESET, **arguments)


def test_what_a_coreset_agrees_with_is_taken() -> None:
    arguments: dict[str, Any] = {"coreset": CORESET, "steps": 1, "size": 3, "images_per_class": 1, "weights": "ones"}
    result = fit_with("fit_gradient_matching", NORMAL, **arguments)
    assert result.coreset.mass == pytest.approx(3, rel=1e-6)
    heavy = fit_with("fit_gradient_matching", NORMAL, coreset=CORESET.with_mass("data"), steps=1, weights="data")
    assert heavy.coreset.mass == pytest.approx(40)
    soft = dataclasses.replace(CORESET, targets=np.full((3, 5), 0.2, np.float32))
    with pytest.raises(ValueError, match="coreset has 5 classes; the data have 3"):
        fit_with("fit_gradient_matching", NORMAL, coreset=soft, steps=1)


# Images.

PICTURES = RNG.integers(0, 256, size=(40, 16, 16, 3)).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 28, 28), (4, 32, 32), (3, 20, 30)])
def test_images_with_channels_first_are_refused(shape: tuple[int, ...], dtype: type) -> None:
    x = np.ones((40, *shape), dtype)
    if dtype != np.uint8 and shape[1] != shape[2]:
        return  # a signal, for all that one can tell
    for make in (
        lambda: Dataset.from_arrays(x, FIVE),
        lambda: Dataset.from_arrays(np.moveaxis(x, 1, -1), FIVE, test=(x, FIVE)),
    ):
        with pytest.raises(ValueError, match=r"channels first, as torch keeps them.*np\.moveaxis\(x, 1, -1\)"):
            make()


def test_images_with_channels_first_are_refused_by_networks_of_images() -> None:
    for shape in ((3, 32, 32), (1, 28, 28)):
        with pytest.raises(ValueError, match="channels first"):
            bnn(ConvNet(depth=1, width=4), input_shape=shape, num_outputs=2)
    with pytest.raises(ValueError, match=r"for one channel give x\[\.\.\., None\]"):
        bnn(ConvNet(depth=1, width=4), input_shape=(28, 28), num_outputs=2)


@pytest.mark.parametrize(
    "shape", [(32, 32, 3), (3, 3, 2), (4, 16, 3), (2, 100, 16), (1, 100, 16), (8, 8, 8), (4, 4, 1)]
)
def test_images_with_few_rows_are_taken(shape: tuple[int, ...]) -> None:
    assert not is_channel_first(shape)
    assert Dataset.from_arrays(RNG.normal(size=(10, *shape)), np.arange(10.0)).feature_shape == shape


def test_values_of_images_are_looked_at() -> None:
    floats = PICTURES.astype(np.float64)
    for form in (floats, floats.astype(np.float32), PICTURES.astype(np.int64)):
        with pytest.warns(UserWarning, match=r"x looks like images with values from 0 to 255.*normalize=True"):
            Dataset.from_arrays(form, FIVE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = Dataset.from_arrays(PICTURES, FIVE, normalize=True).train.x
        Dataset.from_arrays(floats / 255, FIVE)
        for form in (floats, PICTURES.astype(np.uint16) * 257):
            np.testing.assert_allclose(Dataset.from_arrays(form, FIVE, normalize=True).train.x, plain, atol=1e-4)
    with pytest.raises(ValueError, match=r"dtype uint16 with values up to 65535.*\(x / 65535\)\.astype\('float32'\)"):
        Dataset.from_arrays(PICTURES.astype(np.uint16) * 257, FIVE)
    with pytest.raises(ValueError, match=r"give x\[\.\.\., None\]"):
        Dataset.from_arrays(PICTURES[..., 0], FIVE)


@pytest.mark.parametrize("model", [BOUND, NETWORK], ids=["regression", "network"])
def test_bytes_in_a_pair_are_refused_where_they_are_pictures(model: Model) -> None:
    with pytest.raises(TypeError, match=r"dtype uint8.*Dataset\.from_arrays"):
        sample(model, (PICTURES, FIVE % 3), **SAMPLING)
    with pytest.raises(TypeError, match=r"predict_on: x has dtype uint8"):
        sample(model, (X, FIVE % 3), predict_on=(PICTURES, FIVE % 3), **SAMPLING)


# Several targets.

Y2 = np.stack([X[:, 0] + X[:, 1], 2 * X[:, 2]], axis=1) + 0.1 * RNG.normal(size=(40, 2))
PAIRS = Dataset.from_arrays(X, Y2, test=(X[:7], Y2[:7]))


def two_targets(x: jax.Array, y: jax.Array | None = None) -> None:
    w = numpyro.sample("w", dist.Normal(0, 1).expand([4, 2]).to_event(2))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, 0.5).to_event(1), obs=y)


def test_several_targets_go_through_coreset_and_posterior(tmp_path: pathlib.Path) -> None:
    model = Model.from_numpyro(two_targets)
    coreset = fit_random(model, PAIRS, size=6, key=KEY).coreset
    assert coreset.targets.shape == (6, 2)
    assert not coreset.is_soft
    rows = [int(np.argmax(np.all(point == X, axis=1))) for point in coreset.inputs]
    np.testing.assert_array_equal(coreset.targets, Y2[rows].astype(np.float32))
    coreset.save(tmp_path / "coreset")
    loaded = Pseudocoreset.load(tmp_path / "coreset")
    draws = sample(model, loaded, kernel="hmc", step_size=1e-3, predict_on=PAIRS.test, **SAMPLING)
    w = draws.draws["w"][0].astype(float)
    residual = (Y2[:7] - X[:7].astype(float) @ w) / 0.5
    wanted = (-0.5 * residual**2 - np.log(0.5 * np.sqrt(2 * np.pi))).sum(-1)
    np.testing.assert_allclose(draws.log_likelihood[0], wanted, rtol=1e-4)
    residual = (coreset.targets - coreset.inputs @ w) / 0.5
    each = (-0.5 * residual**2 - np.log(0.5 * np.sqrt(2 * np.pi))).sum(-1)
    prior = (-0.5 * w**2 - 0.5 * np.log(2 * np.pi)).sum((1, 2))
    np.testing.assert_allclose(draws.sample_stats["lp"][0], each @ coreset.weights + prior, rtol=1e-4)


def test_targets_that_look_like_probabilities_are_learned_as_real_numbers(tmp_path: pathlib.Path) -> None:
    shares = RNG.dirichlet([1.0, 1.0], size=40)
    data = Dataset.from_arrays(X, shares)
    start = Pseudocoreset.from_data(data, size=4, key=KEY)
    assert not start.is_soft
    result = fit_bpc_rkl(
        Model.from_numpyro(two_targets), data, coreset=start, targets="learned", steps=3, key=KEY, progress=False
    )
    assert not result.coreset.is_soft
    assert np.abs(result.coreset.targets.sum(axis=1) - 1).max() > 0.01
    start.save(tmp_path / "start")
    assert not Pseudocoreset.load(tmp_path / "start").is_soft
    # By hand, what sums to one is taken for probabilities unless it is said to be otherwise.
    plain = Pseudocoreset(start.inputs, start.targets, start.weights)
    assert plain.is_soft
    assert not dataclasses.replace(plain, holds_probabilities=False).is_soft


@pytest.mark.parametrize("noise_scale", [None, 0.5])
def test_a_network_of_two_outputs_has_independent_gaussian_noise(noise_scale: float | None) -> None:
    model = bnn(MLP(widths=(4,)), PAIRS, noise_scale=noise_scale)
    draws = sample(model, PAIRS, keep="functions", **SAMPLING)
    noise = draws.draws["noise"][0][:, None] if noise_scale is None else np.full((4, 1, 2), noise_scale)
    assert noise.shape == (4, 1, 2)
    assert draws.function_values is not None
    residual = (Y2[:7] - draws.function_values[0].astype(float)) / noise
    wanted = (-0.5 * residual**2 - np.log(noise * np.sqrt(2 * np.pi))).sum(-1)
    np.testing.assert_allclose(draws.log_likelihood[0], wanted, rtol=1e-4)
    rmse = predictive_metrics(draws).rmse
    mean = draws.function_values[0].mean(0)
    assert rmse == pytest.approx(float(np.sqrt(((Y2[:7] - mean) ** 2).mean())), rel=1e-4)
    single = bnn(MLP(), input_shape=(4,), num_outputs=1, likelihood="gaussian")
    with pytest.raises(ValueError, match=r"targets of shape \(2,\)|y has shape"):
        fit_random(single, PAIRS, size=3, key=KEY)


def test_splits_with_other_targets_than_train_are_refused() -> None:
    with pytest.raises(ValueError, match=r"test has targets of shape \(\), train \(2,\)"):
        Dataset.from_arrays(X, Y2, test=(X, Y2[:, 0]))
    with pytest.raises(ValueError, match=r"holds classes, so it must be \(n,\)"):
        Split(X, np.zeros((40, 2), np.int32), Preprocessing())
    start, model = Pseudocoreset.from_data(PAIRS, size=6, key=KEY), Model.from_numpyro(one_target)
    with pytest.raises(ValueError, match=re.escape("coreset has targets of shape (6, 2); the data have (40,)")):
        fit_with("fit_bpc_rkl", Dataset.from_arrays(X, Y2[:, 0]), model, coreset=start)


def one_target(x: jax.Array, y: jax.Array | None = None) -> None:
    w = numpyro.sample("w", dist.Normal(0, 1).expand([4]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


@pytest.mark.parametrize("values", [np.arange(256.0), np.arange(377.0), np.arange(256) + 0.5])
def test_bytes_are_advised_where_they_hold_the_values(values: np.ndarray) -> None:
    images = np.resize(values, (40, 28, 28, 1))
    with pytest.warns(UserWarning, match="x looks like images") as caught:
        Dataset.from_arrays(images, FIVE)
    holds = np.array_equal(images.astype("uint8"), images)
    assert ("astype('uint8')" in str(caught[0].message)) == holds


def test_grids_of_large_counts_are_taken_as_the_refusal_says() -> None:
    counts = np.resize(np.arange(300), (40, 16, 16, 2))
    with pytest.raises(ValueError, match=r"Counts for another model .* with x\.astype\('float32'\)"):
        Dataset.from_arrays(counts, FIVE)
    with pytest.warns(UserWarning, match="which stay as they are"):
        data = Dataset.from_arrays(counts.astype("float32"), FIVE)
    np.testing.assert_array_equal(data.train.x, counts)
