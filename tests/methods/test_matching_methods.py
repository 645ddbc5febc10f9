"""The front doors of dataset distillation, and the images that they work on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset import (
    Dataset,
    Pseudocoreset,
    fit_bacon,
    fit_distribution_matching,
    fit_gradient_matching,
    fit_trajectory_matching,
    train_experts,
)
from pseudocoreset.models import MLP, ConvNet, bnn, linear_regression, logistic_regression
from pseudocoreset.objectives.bacon import decode, encode, out_of_range, total_variation

RNG = np.random.default_rng(11)
X = RNG.normal(size=(23, 4))
Y = np.r_[np.arange(21) % 3, 0, 0].astype(np.int32)
IMAGES = RNG.integers(0, 256, size=(12, 8, 8, 2)).astype(np.uint8)
LABELS = (np.arange(12) % 3).astype(np.int32)
PICTURES = Dataset.from_arrays(IMAGES, LABELS)
NET = bnn(ConvNet(depth=1, width=4), PICTURES)
VECTORS = Dataset.from_arrays(X.astype(np.float32), Y)
SMALL = bnn(MLP((6,)), VECTORS)


def test_features_are_what_the_head_is_applied_to():
    for model, x in ((NET, PICTURES.train.x), (SMALL, VECTORS.train.x)):

        def run(key, model=model, x=x):
            params = model.init(key)
            return params, model.features(params, x), model.apply(params, x)

        params, features, outputs = jax.tree.map(np.asarray, jax.jit(run)(jax.random.key(0)))
        f = features @ params["network/head.kernel"] + params["network/head.bias"]
        np.testing.assert_allclose(f, outputs, rtol=1e-5, atol=1e-6)
    bare = logistic_regression(num_classes=3).bind(X, Y)
    assert not bare.has_features
    with pytest.raises(ValueError, match="no features"):
        bare.features({}, jnp.asarray(X))


def test_the_priors_vanish_where_they_should():
    flat = jnp.full((2, 5, 4, 3), 0.7)
    assert np.all(total_variation(flat) == 0)
    step_edge = flat.at[:, 2:].add(2.0)  # one of four vertical neighbours in every column
    np.testing.assert_allclose(total_variation(step_edge), 2.0 / 4, rtol=1e-6)
    low, high = jnp.zeros(3), jnp.ones(3)
    assert np.all(out_of_range(flat, low, high) == 0)
    np.testing.assert_allclose(out_of_range(flat + 1.0, low, high), 0.7**2, rtol=1e-5)


def test_a_stored_image_holds_four():
    quarters = jnp.arange(8.0).reshape(4, 2)  # four constant images in each of two stored ones
    images = jnp.broadcast_to(quarters.reshape(8, 1, 1, 1), (8, 6, 4, 3))
    stored = encode(images)
    assert stored.shape == (2, 6, 4, 3)
    corners = [(0, 0), (-1, 0), (0, -1), (-1, -1)]  # upper left, lower left, upper right, lower right
    np.testing.assert_array_equal([[stored[j, r, c, 0] for j in range(2)] for r, c in corners], quarters)
    np.testing.assert_allclose(decode(stored), images, rtol=1e-6)
    crops = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    wanted = jax.image.resize(crops[:, 3:, :2], (2, 6, 4, 3), "bilinear")  # lower left
    np.testing.assert_allclose(decode(crops)[2:4], wanted, rtol=1e-6)
    np.testing.assert_allclose(wanted[:, 0, 1, 0], 0.75 * crops[:, 3, 0, 0] + 0.25 * crops[:, 3, 1, 0], rtol=1e-5)
    with pytest.raises(ValueError, match="sides divisible by 2"):
        decode(jnp.zeros((1, 5, 4, 3)))
    with pytest.raises(ValueError, match="multiple of 4"):
        encode(jnp.zeros((6, 4, 4, 3)))


FAST = dict(key=jax.random.key(5), progress=False)


def test_fit_bacon_of_four_images_a_point():
    """Stored points start as downscaled images of their class, and come back decoded."""
    starts = []
    result = fit_bacon(
        bnn(MLP((4,)), PICTURES), PICTURES, images_per_class=1, steps=1, step_size=1e-30, formation=2, **FAST,
        weights="data",
        callbacks=[lambda _, coreset, __: starts.append(coreset)],
    )  # fmt: skip
    (start,) = starts
    assert start.mass == pytest.approx(12)
    small = PICTURES.train.x.reshape(12, 4, 2, 4, 2, 2).mean((2, 4))
    for image, label in zip(start.inputs, start.targets, strict=True):
        for corner in (image[:4, :4], image[4:, :4], image[:4, 4:], image[4:, 4:]):
            gaps = np.abs(small[np.equal(LABELS, label)] - corner).max((1, 2, 3))
            assert gaps.min() < 1e-5
    assert result.coreset.size == 12
    assert result.coreset.mass == pytest.approx(12)
    np.testing.assert_array_equal(result.coreset.targets, [0, 1, 2] * 4)
    np.testing.assert_allclose(result.coreset.inputs, decode(result.state.arrays.inputs), rtol=1e-6)
    assert result.coreset.metadata["stored_images"] == 3


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_four_images_a_point_of_soft_targets_and_other_weights(weight):
    """Each decoded image has the probabilities of the stored one; weights of one stay one, others are shared out."""
    soft = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], np.float32)
    stored = Pseudocoreset(PICTURES.train.x[[0, 5]], soft, np.full(2, weight, np.float32), num_data=12)
    result = fit_bacon(
        bnn(MLP((4,)), PICTURES), PICTURES, coreset=stored, steps=1, step_size=1e-30, formation=2, **FAST
    )
    np.testing.assert_array_equal(result.coreset.targets, np.concatenate([soft] * 4))
    np.testing.assert_allclose(result.coreset.inputs, decode(jnp.asarray(stored.inputs)), rtol=1e-6)
    np.testing.assert_array_equal(result.coreset.weights, 1.0 if weight == 1 else weight / 4)


def test_fit_distribution_matching():
    result = fit_distribution_matching(SMALL, VECTORS, images_per_class=1, steps=60, step_size=0.5, **FAST)
    assert 0 < result.history["loss"][-15:].mean() < 0.7 * result.history["loss"][:6].mean()
    assert result.coreset.metadata["objective"] == "distribution_matching"


@pytest.fixture(scope="module")
def experts():
    arguments = dict(num_experts=2, num_epochs=4, learning_rate=0.1, batch_size=6)
    return train_experts(SMALL, VECTORS, **arguments, **FAST)


def test_the_fits_take_expert_snapshots(experts):
    common = dict(images_per_class=2, steps=4, experts=experts, **FAST)
    trajectory = fit_trajectory_matching(SMALL, VECTORS, num_inner_steps=3, inner_learning_rate=0.1, **common)
    # What a network is to be trained with on these points travels with them.
    assert trajectory.coreset.metadata["learned_step_size"] == trajectory.history["step_size"][-1] != 0.1
    settings = trajectory.coreset.metadata["objectives"][0]
    assert (settings["last_epoch"], settings["expert_epochs"]) == (2, 2)  # as late as four epochs allow
    means = fit_bacon(SMALL, VECTORS, variant="released", first_epoch=1, **common)
    settings = means.coreset.metadata["objectives"][0]
    assert (settings["window"], settings["cross_entropy"]) == ([1, None], 0.5)
    assert means.coreset.mass == means.coreset.size == 6
    for result in (trajectory, means):
        assert np.all(np.isfinite(result.history["loss"]))


def test_gradient_matching_of_regression_learns_the_weights_too():
    y = (X @ np.array([1.0, -1.0, 0.5, 0.0])).astype(np.float32)
    data = Dataset.from_arrays(X.astype(np.float32), y)
    result = fit_gradient_matching(
        linear_regression(noise_scale=0.5), data, size=4, steps=80, distance="squared", num_outer=4,
        num_inner_steps=2, inner_learning_rate=0.05, **FAST,
    )  # fmt: skip
    assert result.history["loss"][-10:].mean() < 0.5 * result.history["loss"][:10].mean()
    assert np.ptp(result.coreset.weights) > 0
    assert result.history["inner_rounds"][:6].tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_bacon(NET, PICTURES, size=6, formation=2, **FAST), "formation=2 .* give images_per_class"),
        (lambda: fit_bacon(NET, PICTURES, **FAST), "give one of images_per_class and size"),
        (lambda: fit_distribution_matching(NET, PICTURES, size=6, steps=0, **FAST), "steps must be at least 1"),
        (lambda: fit_gradient_matching(NET, PICTURES, size=6, first_epoch=-1, **FAST), "first_epoch must be at least"),
        (
            lambda: fit_trajectory_matching(NET, PICTURES, size=6, expert_epochs=0, **FAST),
            "expert_epochs must be at least 1",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
