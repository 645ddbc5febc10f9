"""Published settings, as the front doors take them: recorded with the coreset, for every way of naming its size."""

import jax
import numpy as np
import pytest

from pseudocoreset import (
    Dataset,
    Pseudocoreset,
    fit_bpc_fkl,
    fit_bpc_rkl,
    fit_bpc_w,
    fit_fbpc,
    fit_gradient_matching,
    fit_trajectory_matching,
    train_experts,
)
from pseudocoreset.models import MLP, bnn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 3)).astype(np.float32)
Y = (np.arange(90) % 3).astype(np.int32)
DATA = Dataset.from_arrays(X, Y, name="cifar10")  # by its name, the data set of the tables
MODEL = bnn(MLP((4,)), DATA)
FAST = dict(key=jax.random.key(1), progress=False, callbacks=[lambda *_: True])


@pytest.fixture(scope="module")
def experts():
    return train_experts(
        MODEL, DATA, num_experts=1, num_epochs=32, batch_size=90, key=jax.random.key(0), progress=False
    )


def sized(way, count):
    """The argument that asks for so many points of each class."""
    if way == "coreset":
        return dict(coreset=Pseudocoreset.from_data(DATA, images_per_class=count, key=jax.random.key(2)))
    return {way: count if way == "images_per_class" else 3 * count}


# Of the reference code, by points of each class: L, alpha, the latest start, E of BPC-W, S of BPC-rKL.
TABLE = {1: (50, 0.01, 1, 2, 10), 10: (30, 0.03, 19, 1, 30), 20: (30, 0.03, 29, 2, 10)}


@pytest.mark.parametrize(
    ("fit", "count", "way"),
    [
        (fit_bpc_w, 1, "images_per_class"),
        (fit_bpc_w, 20, "size"),
        (fit_bpc_rkl, 10, "coreset"),
        (fit_bpc_fkl, 20, "coreset"),
        (fit_bpc_w, 10, "coreset"),
        pytest.param(fit_bpc_rkl, 20, "size", marks=pytest.mark.slow),
        pytest.param(fit_bpc_fkl, 1, "size", marks=pytest.mark.slow),
    ],
)
def test_settings_of_kim_2022(fit, count, way, experts):
    result = fit(MODEL, DATA, experts=experts, steps=1, **sized(way, count), **FAST)
    settings = result.coreset.metadata["objectives"][0]
    num_steps, rate, last, ahead, draws = TABLE[count]
    assert (settings["num_inner_steps"], settings["inner_learning_rate"]) == (num_steps, rate)
    assert (settings["first_epoch"], settings["last_epoch"]) == (0, last)
    assert settings["expert_epochs"] == (ahead if fit is fit_bpc_w else 1)
    if fit is fit_bpc_rkl:
        assert (settings["num_draws"], settings["batch_size"]) == (draws, 1000)
    if fit is fit_bpc_fkl:
        assert settings["num_draws"] == 30


def test_the_step_on_the_inputs_is_the_published_one():
    """SGD of step 1,000 on images: the first update is that of step 1, a thousand times."""
    images = Dataset.from_arrays(X.reshape(90, 1, 3, 1), Y, name="cifar10")
    model = bnn(MLP((4,)), images)
    trained = train_experts(
        model, images, num_experts=1, num_epochs=3, batch_size=90, key=jax.random.key(0), augment=None, progress=False
    )
    start = Pseudocoreset.from_data(images, images_per_class=1, key=jax.random.key(2))

    def moved(**changes):
        result = fit_bpc_w(
            model, images, coreset=start, experts=trained, steps=1, num_inner_steps=2, augment=None, **changes, **FAST
        )
        return result.coreset.inputs - start.inputs

    np.testing.assert_allclose(moved(), 1000 * moved(step_size=1.0), rtol=1e-2, atol=1e-3)


def test_starts_are_no_later_than_the_experts_allow():
    few = train_experts(MODEL, DATA, num_experts=1, num_epochs=4, batch_size=90, key=jax.random.key(0), progress=False)
    result = fit_bpc_w(MODEL, DATA, images_per_class=20, experts=few, steps=1, num_inner_steps=2, **FAST)
    assert result.coreset.metadata["objectives"][0]["last_epoch"] == 2


@pytest.mark.parametrize("way", ["images_per_class", "size", "coreset"])
def test_fbpc_keeps_its_table_for_every_way_of_naming_the_size(way, experts):
    """Table 4, CIFAR-10: T, gamma, lambda_x, lambda_u, N, B of 10 images of each class."""
    result = fit_fbpc(MODEL, DATA, experts=experts, inner_max_steps=1, num_draws=2, **sized(way, 10), **FAST)
    settings = result.coreset.metadata["objectives"][0]
    assert (settings["first_epoch"], settings["inner_loss"]) == (2, 0.1)
    assert (settings["data_learning_rate"], settings["coreset_learning_rate"]) == (0.05, 0.01)
    assert (result.coreset.metadata["steps"], settings["coreset_batch_size"]) == (1000, 100)


@pytest.mark.parametrize("way", ["images_per_class", "size", "coreset"])
def test_matching_keeps_its_tables_too(way, experts):
    result = fit_gradient_matching(MODEL, DATA, steps=1, **sized(way, 1), **FAST)
    settings = result.coreset.metadata["objectives"][0]
    assert (settings["num_outer"], settings["num_inner_steps"]) == (1, 1)
    result = fit_trajectory_matching(MODEL, DATA, experts=experts, steps=1, **sized(way, 1), **FAST)
    settings = result.coreset.metadata["objectives"][0]
    assert (settings["num_inner_steps"], settings["expert_epochs"], settings["last_epoch"]) == (50, 2, 1)
