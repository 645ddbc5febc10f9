"""What compiled gradients need for their temporaries, by the compiler's own account; nothing is run."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.compute.limits import limited
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.models import MLP, ConvNet, bnn
from pseudocoreset.objectives import InnerTraining, Rows, forward_kl, function_kl, reverse_kl, wasserstein
from pseudocoreset.proxies import Trajectory
from tests.marks import slow_but

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(64, 16, 16, 3)), jnp.float32)
LABELS = jnp.asarray(np.arange(64) % 10, jnp.int32)
DATA = DeviceData(IMAGES, LABELS)
POINTS = Rows(IMAGES[:20], LABELS[:20], jnp.ones(20))
CONVNET = bnn(ConvNet(depth=1, width=8), input_shape=(16, 16, 3), num_outputs=10)


def temporaries(objective, points=POINTS, data=DATA):
    """Bytes beyond arguments and results."""
    params = objective.model.init(jax.random.key(0))
    snapshots = (params,) if objective.window.ahead is None else (params, params)
    state = objective.init(jax.random.key(0), points, data)
    lowered = jax.jit(objective.gradient).lower(jax.random.key(1), state, points, data, snapshots)
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("build", [forward_kl, reverse_kl])
def test_draws_cost_no_memory(build):
    few, many = (temporaries(build(CONVNET, num_draws=n, inner=InnerTraining(num_steps=2))) for n in (2, 40))
    assert many < 1.01 * few


def test_thirty_inner_steps_take_the_memory_of_few():
    one, thirty = (temporaries(wasserstein(CONVNET, inner=InnerTraining(num_steps=n))) for n in (1, 30))
    assert thirty < 2.5 * one  # the weights on the way are kept, thirty times those of a network this small


@pytest.mark.parametrize("proxy", slow_but(["trajectory", "isotropic", "linearized"], "isotropic"))
def test_function_kl_takes_the_memory_of_a_few_points(proxy):
    """Twenty times the points and a large batch of data take a few copies of the points, and what a chunk may take.

    A model whose data depend on one another takes all of them at once, and more than twice that.
    """
    model = bnn(ConvNet(depth=2, width=32), input_shape=(16, 16, 3), num_outputs=10)
    named = {"trajectory": Trajectory(num_steps=2, batch_size=256)}
    many = Rows(*(jnp.tile(leaf, (20,) + (1,) * (leaf.ndim - 1)) for leaf in POINTS))
    some, whole = (
        function_kl(one, proxy=named.get(proxy, proxy), num_draws=2, inner_max_steps=2)
        for one in (model, replace(model, is_separable=False))
    )
    activations = 6 * 2**20
    most = 4 * many.inputs.nbytes + activations
    with limited(activation_bytes=activations):
        data = DeviceData(IMAGES, LABELS)
        assert temporaries(some, many, data) - temporaries(some, POINTS, data) < most
        assert temporaries(whole, many, data) > 2 * most


def test_no_jacobian_of_a_network_is_formed():
    model = bnn(MLP((400, 400)), input_shape=(50,), num_outputs=10)
    x = jnp.asarray(RNG.normal(size=(40, 50)), jnp.float32)
    points = Rows(x, LABELS[:40], jnp.ones(40))
    objective = function_kl(model, proxy="linearized", num_draws=3, inner_max_steps=2)
    jacobian = 4 * 40 * 10 * model.num_params
    assert temporaries(objective, points, DeviceData(x, LABELS[:40])) < jacobian / 8
