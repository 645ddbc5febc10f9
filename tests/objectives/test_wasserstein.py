"""The unrolled distance: gradients against finite differences in float64, and what rematerialisation may not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.models import MLP, bnn
from pseudocoreset.objectives import InnerTraining, Rows, trajectory_matching, wasserstein
from pseudocoreset.objectives.unrolled import KEPT, descend_through

RNG = np.random.default_rng(0)
U = RNG.normal(size=(3, 4))
V = np.eye(3) * 0.7 + 0.1
W = np.array([1.0, 2.0, 0.5])


def setup(**settings):
    """Objective, gradient function and snapshots of a small network in float64."""
    model = bnn(MLP((5,)), input_shape=(4,), num_outputs=3)
    objective = wasserstein(
        model, inner=InnerTraining(num_steps=6, learning_rate=0.2), free=("inputs", "targets", "weights"), **settings
    )
    snapshots = tuple(
        jax.tree.map(lambda a: a.astype(jnp.float64), model.init(jax.random.key(seed))) for seed in (0, 1)
    )
    data = DeviceData(jnp.asarray(U), jnp.asarray(np.arange(3)))
    coreset = Rows(*map(jnp.asarray, (U, V, W)))
    return objective, data, coreset, snapshots


def evaluate(objective, data, coreset, snapshots, state=None):
    state = objective.init(jax.random.key(0), coreset, data) if state is None else state
    return jax.jit(objective.gradient)(jax.random.key(2), state, coreset, data, snapshots)


@pytest.mark.parametrize("rematerialise", KEPT)
def test_gradients_flow_through_the_whole_training(rematerialise):
    with jax.enable_x64(True):
        objective, data, coreset, snapshots = setup(rematerialise=rematerialise)
        gradient, _, _ = evaluate(objective, data, coreset, snapshots)
        for leaf, index in (("inputs", (1, 2)), ("targets", (0, 1)), ("weights", (2,))):
            ends = []
            for sign in (1, -1):
                moved = getattr(coreset, leaf).at[index].add(sign * 1e-5)
                ends.append(evaluate(objective, data, coreset._replace(**{leaf: moved}), snapshots)[2]["loss"])
            np.testing.assert_allclose(gradient[leaf][index], (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-9)


def test_the_step_size_is_learned_and_stays_positive():
    """Adam's first step goes down the slope by its step size; from a step size near zero it can only grow."""
    with jax.enable_x64(True):
        objective, data, coreset, snapshots = setup(learn_step_size=0.1)
        state = objective.init(jax.random.key(0), coreset, data)
        ends = [
            evaluate(objective, data, coreset, snapshots, state._replace(log_value=state.log_value + shift))[2]["loss"]
            for shift in (1e-4, -1e-4)
        ]
        _, moved, info = evaluate(objective, data, coreset, snapshots)
        np.testing.assert_allclose(info["step_size"], 0.2)
        np.testing.assert_allclose(moved.log_value - state.log_value, -0.1 * np.sign(ends[0] - ends[1]), rtol=1e-6)
        for _ in range(30):
            _, state, info = evaluate(objective, data, coreset, snapshots, state)
            assert info["step_size"] > 0
        fixed, data, coreset, snapshots = setup(learn_step_size=0)
        begin = fixed.init(jax.random.key(0), coreset, data)
        _, same, _ = evaluate(fixed, data, coreset, snapshots, begin)
        assert same.log_value == begin.log_value


def test_trajectory_matching_is_the_same_thing():
    """Kim et al. 2022: the Wasserstein distance between Gaussians of equal isotropic covariance is MTT's loss."""
    with jax.enable_x64(True):
        objective, data, coreset, snapshots = setup()
        inner = InnerTraining(num_steps=6, learning_rate=0.2)
        other = trajectory_matching(objective.model, inner=inner, free=objective.free)
        one, _, first = evaluate(objective, data, coreset, snapshots)
        two, _, second = evaluate(other, data, coreset, snapshots)
    assert first["loss"] == second["loss"]
    for leaf, value in one.items():
        np.testing.assert_array_equal(value, two[leaf])
        assert np.any(value)


@pytest.mark.parametrize("kept", KEPT)
def test_the_backward_sweep_is_reverse_mode_through_the_loop(kept):
    """In the start, two leaves and the step size, with a loss that differs from step to step."""

    def loss(key, params, leaves, fixed):
        noise = jax.random.normal(key, params["a"].shape)
        values = jnp.tanh(fixed @ (params["a"] + 0.1 * noise) + params["b"])
        return jnp.sum(leaves["w"] * (values - leaves["u"]) ** 2)

    def looped(params, leaves, step_size, fixed, keys):
        for key in keys:
            gradient = jax.grad(loss, 1)(key, params, leaves, fixed)
            params = {name: params[name] - step_size * gradient[name] for name in params}
        return params

    def swept(*arguments):
        return descend_through(loss, *arguments, kept)

    with jax.enable_x64(True):
        start = {"a": jnp.asarray(U[0]), "b": jnp.asarray(0.3)}
        leaves = {"u": jnp.asarray(U[:, 1]), "w": jnp.asarray(W)}
        arguments = (start, leaves, jnp.asarray(0.05), jnp.asarray(U), jax.random.split(jax.random.key(4), 6))
        ends, found = [], []
        for train in (looped, swept):
            train = jax.jit(train)
            ends.append(train(*arguments))
            summed = jax.grad(lambda *a, train=train: sum(jnp.sum(v**3) for v in train(*a).values()), (0, 1, 2))
            found.append(summed(*arguments))
    for one, other in zip(*map(jax.tree.leaves, (ends[0], ends[1])), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-12)
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-9)
        assert np.any(np.asarray(one) != 0)
