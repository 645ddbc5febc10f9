"""One table of all objectives, and the laws that each must keep."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pseudocoreset import Dataset, Pseudocoreset, train_experts
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.fitting import Outcome, optimise
from pseudocoreset.models import MLP, bnn, linear_regression
from pseudocoreset.objectives import (
    InnerTraining,
    Rows,
    bacon,
    distribution_matching,
    forward_kl,
    function_kl,
    gradient_matching,
    reverse_kl,
    trajectory_matching,
    wasserstein,
)
from pseudocoreset.proxies import Isotropic, Laplace, Linearized, Trajectory

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 4)).astype(np.float32)
Y = (np.arange(90) % 3).astype(np.int32)
X[np.arange(90), Y] += 1.5
CLASSES = Dataset.from_arrays(X, Y)
REALS = Dataset.from_arrays(X, (X @ np.array([1.0, -0.5, 0.2, 0.7]) + 0.3 * RNG.normal(size=90)).astype(np.float32))
NETWORK = bnn(MLP((8,)), CLASSES)
LINEAR = linear_regression(REALS, noise_scale=0.3)
INNER = InnerTraining(num_steps=4, learning_rate=0.1)
STILL = Isotropic(1e-6)  # noise is drawn by position, which a permutation of the points would change

# Of networks, which take expert snapshots; of a model with Gaussian posteriors.
NETWORKS = {
    "function_kl": lambda **k: function_kl(NETWORK, proxy=STILL, num_draws=2, inner_max_steps=5, **k),
    "function_kl_trajectory": lambda **k: function_kl(
        NETWORK, proxy=Trajectory(3, batch_size=16), num_draws=2, inner_max_steps=5, **k
    ),
    "function_kl_linearized": lambda **k: function_kl(
        NETWORK, proxy=Linearized("laplace"), num_draws=2, inner_max_steps=5, **k
    ),
    "reverse_kl": lambda **k: reverse_kl(NETWORK, inner=INNER, num_draws=4, **k),
    "reverse_kl_tempered": lambda **k: reverse_kl(NETWORK, inner=INNER, num_draws=4, target="tempered", **k),
    "reverse_kl_laplace": lambda **k: reverse_kl(NETWORK, proxy=Laplace("diagonal"), inner=INNER, num_draws=4, **k),
    "forward_kl": lambda **k: forward_kl(NETWORK, inner=INNER, num_draws=4, **k),
    "forward_kl_trajectory": lambda **k: forward_kl(
        NETWORK, proxy=Trajectory(4, batch_size=16, rank=2), inner=INNER, num_draws=4, **k
    ),
    "wasserstein": lambda **k: wasserstein(NETWORK, inner=INNER, **k),
    "trajectory_matching": lambda **k: trajectory_matching(NETWORK, inner=INNER, **k),
}
# Of networks that they draw themselves.
MATCHING = {
    "gradient_matching": lambda **k: gradient_matching(
        NETWORK, num_inner_steps=2, inner_learning_rate=0.1, num_outer=2, batch_size=8, **k
    ),
    "distribution_matching": lambda **k: distribution_matching(NETWORK, batch_size=8, **k),
    "bacon": lambda **k: bacon(NETWORK, variant="released", batch_size=8, **k),
}
GAUSSIANS = {
    "reverse_kl_conjugate": lambda **k: reverse_kl(LINEAR, num_draws=8, **k),
    "reverse_kl_dense_laplace": lambda **k: reverse_kl(LINEAR, proxy="laplace", num_draws=8, **k),
    "forward_kl_conjugate": lambda **k: forward_kl(LINEAR, num_draws=8, **k),
    "wasserstein_conjugate": lambda **k: wasserstein(LINEAR, **k),
}
CLASSIFIERS = NETWORKS | MATCHING
OBJECTIVES = CLASSIFIERS | GAUSSIANS
# Noise that is drawn by position, not by point.
BY_POSITION = {"function_kl_trajectory"}
LEAVES = {name: ("inputs", "targets", "weights") for name in OBJECTIVES}
LEAVES |= {name: ("inputs", "weights") for name in ("distribution_matching", "bacon")}  # of features, not of targets
# Of those with state; tests/test_fitting.py resumes one without.
RESUMED = ("wasserstein", "reverse_kl_dense_laplace", "gradient_matching")
# Weights enter through means alone: of all points, or of the points of a class.
MEANS = {"reverse_kl_tempered", "function_kl", "function_kl_trajectory", "forward_kl", "forward_kl_trajectory"}
MEANS |= {"wasserstein", "trajectory_matching"}
KEPT = {name: "kept" for name in NETWORKS} | {name: "kept by class" for name in MATCHING}


@pytest.fixture(scope="module")
def experts():
    return train_experts(
        NETWORK, CLASSES, num_experts=1, num_epochs=3, learning_rate=0.3, batch_size=15, key=jax.random.key(0),
        progress=False,
    )  # fmt: skip


def coreset_of(name, indices=(0, 1, 2, 3), weights=(1.0, 2.0, 0.5, 1.5)):
    data = CLASSES if name in CLASSIFIERS else REALS
    x, y = data.train.x[list(indices)], data.train.y[list(indices)]
    if name in CLASSIFIERS:
        y = np.eye(3, dtype=np.float32)[y] * 0.8 + 0.2 / 3
    return Rows(jnp.asarray(x), jnp.asarray(y), jnp.asarray(weights, jnp.float32))


@functools.cache
def compiled(name):
    """One compilation an objective: all laws are stated for four points."""
    objective = OBJECTIVES[name](free=LEAVES[name])
    # Matching by class reads off the targets how many points a class has, a shape.
    init = objective.init if name in MATCHING else jax.jit(objective.init)
    return objective, init, jax.jit(objective.gradient)


def gradient_of(name, experts, coreset):
    data = DeviceData.from_dataset(CLASSES if name in CLASSIFIERS else REALS)
    objective, init, gradient_fn = compiled(name)
    snapshots = ()
    if objective.window is not None:
        epochs = [1] if objective.window.ahead is None else [0, objective.window.ahead]
        snapshots = tuple(jax.tree.map(jnp.asarray, experts.snapshot(0, epoch)) for epoch in epochs)
    state = init(jax.random.key(0), coreset, data)
    gradient, _, info = gradient_fn(jax.random.key(1), state, coreset, data, snapshots)
    assert all(jnp.ndim(value) == 0 for value in info.values())
    return {leaf: np.asarray(value) for leaf, value in gradient.items()}


def close(one, other, rtol=2e-3):
    for leaf, value in one.items():
        np.testing.assert_allclose(value, other[leaf], rtol=rtol, atol=rtol * (np.abs(value).max() + 1e-6))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_fit_the_free_leaves_and_depend_on_the_key_alone(name, experts):
    coreset = coreset_of(name)
    gradient, again = gradient_of(name, experts, coreset), gradient_of(name, experts, coreset)
    assert set(gradient) == set(LEAVES[name])
    for leaf, value in gradient.items():
        assert value.shape == getattr(coreset, leaf).shape
        assert np.all(np.isfinite(value))
        np.testing.assert_array_equal(value, again[leaf])
    assert np.abs(gradient["inputs"]).max() > 0


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - BY_POSITION))
def test_order_halves_and_zeros(name, experts):
    """Points may come in any order; a point is two of half its weight; a point of no weight has no say."""
    order = [2, 0, 3, 1]
    coreset = coreset_of(name)
    moved = gradient_of(name, experts, jax.tree.map(lambda leaf: leaf[jnp.asarray(order)], coreset))
    close({leaf: value[order] for leaf, value in gradient_of(name, experts, coreset).items()}, moved)

    whole = gradient_of(name, experts, coreset_of(name, (0, 1, 2, 7), (1.0, 2.0, 0.5, 0.0)))
    other = gradient_of(name, experts, coreset_of(name, (0, 1, 2, 8), (1.0, 2.0, 0.5, 0.0)))
    close({leaf: value[:3] for leaf, value in whole.items()}, {leaf: value[:3] for leaf, value in other.items()})
    assert not whole["inputs"][3].any()
    assert "targets" not in whole or not whole["targets"][3].any()

    halves = gradient_of(name, experts, coreset_of(name, (0, 1, 2, 1), (1.0, 1.0, 0.5, 1.0)))
    for leaf in set(LEAVES[name]) - {"weights"}:
        joined = halves[leaf][:3].copy()
        joined[1] += halves[leaf][3]
        close({leaf: whole[leaf][:3]}, {leaf: joined})
    close({"weights": whole["weights"][[0, 1, 2, 1]]}, {"weights": halves["weights"]})


@pytest.mark.parametrize("name", sorted(MEANS | set(MATCHING)))
def test_the_mass_has_no_say_in_means(name, experts):
    """The gradient in the points is the same at three times the weights; of matching, of those of one class."""
    scale = np.where(np.arange(4) % 3 == 0, 3.0, 1.0) if name in MATCHING else np.full(4, 3.0)  # points 0, 3: class 0
    one = gradient_of(name, experts, coreset_of(name))
    other = gradient_of(name, experts, coreset_of(name, weights=scale * (1.0, 2.0, 0.5, 1.5)))
    close({"inputs": one["inputs"]}, other)


def test_the_mass_has_a_say_in_curvature(experts):
    """A Laplace covariance narrows as the mass grows, in function space too."""
    one = gradient_of("function_kl_linearized", experts, coreset_of("function_kl_linearized"))
    heavier = coreset_of("function_kl_linearized", weights=np.array([10.0, 20.0, 5.0, 15.0]))
    other = gradient_of("function_kl_linearized", experts, heavier)
    assert np.abs(one["inputs"] - other["inputs"]).max() > 0.02 * np.abs(one["inputs"]).max()


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("forward_kl", "gradient_matching", "reverse_kl_conjugate") else slow
        for name in OBJECTIVES
        for slow in [pytest.param(name, marks=pytest.mark.slow)]
    ],
)
def test_learned_weights_keep_a_mass_that_the_objective_does_not_determine(name, experts):
    """The weights move, and their sum with them where the objective determines it."""
    objective, _, _ = compiled(name)
    data = CLASSES if name in CLASSIFIERS else REALS
    start = Pseudocoreset.from_data(data, size=6, key=jax.random.key(3), mass="data")
    start = dataclasses.replace(start, weights=start.weights * np.float32([0.2, 1.0, 1.5, 0.5, 2.0, 0.8]))
    end = optimise(
        objective, data, coreset=start, key=jax.random.key(3), steps=30, optimizer=optax.adam(2.0),
        experts=None if objective.window is None else experts, progress=False,
    ).coreset  # fmt: skip
    assert objective.mass == KEPT.get(name, "learned")
    assert np.abs(end.weights - start.weights).max() > 1
    if objective.mass == "learned":
        assert abs(end.mass - start.mass) > 1
        return
    assert end.mass == pytest.approx(start.mass, rel=1e-5)
    if objective.mass == "kept by class":
        for label in np.unique(start.targets):
            own = start.targets == label
            assert np.sum(end.weights[own]) == pytest.approx(np.sum(start.weights[own]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_compilation_does_not_matter(name, experts):
    coreset = coreset_of(name)
    one = gradient_of(name, experts, coreset)
    with jax.disable_jit():
        close(one, gradient_of(name, experts, coreset), rtol=5e-3)


@pytest.mark.parametrize(
    "name", [name if name in RESUMED else pytest.param(name, marks=pytest.mark.slow) for name in OBJECTIVES]
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(name, experts, tmp_path):
    data = CLASSES if name in CLASSIFIERS else REALS
    objective, _, _ = compiled(name)
    optimizer = optax.adam(0.01)

    def run(directory=None, stop=None):
        return optimise(
            objective, data, size=4, key=jax.random.key(3), steps=4, block_size=2, optimizer=optimizer,
            experts=None if objective.window is None else experts, weights="data", checkpoint_dir=directory,
            callbacks=[lambda step, *_: step == stop], progress=False,
        )  # fmt: skip

    whole = run()
    assert run(tmp_path, stop=2).outcome is Outcome.STOPPED
    resumed = run(tmp_path)
    assert whole.outcome is resumed.outcome is Outcome.COMPLETED
    for field in dataclasses.fields(whole.coreset)[:3]:
        np.testing.assert_array_equal(getattr(whole.coreset, field.name), getattr(resumed.coreset, field.name))
    assert whole.coreset.mass == pytest.approx(90, rel=0.1)
    assert whole.history["mass"].shape == (4,)
