"""A function in two stages is the function; the first stage knows nothing but the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.models import ConvNet, bnn
from pseudocoreset.staging import staged

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(6, 8, 8, 3)), jnp.float32)
LABELS = jnp.asarray(np.arange(6) % 3, jnp.int32)
MODEL = bnn(ConvNet(depth=2, width=8), input_shape=(8, 8, 3), num_outputs=3)


def test_gradients_of_a_network_are_the_same_and_its_images_are_unfolded_first():
    params = MODEL.init(jax.random.key(0))

    def at(params, one_stage):
        def fn(x, y):
            return jax.value_and_grad(lambda p: -jnp.sum(MODEL.log_likelihood(p, x, y)))(params)

        if one_stage:
            return fn(IMAGES, LABELS)
        first, second, size = staged(fn, IMAGES, LABELS)
        between = first(IMAGES, LABELS)
        assert size == sum(leaf.nbytes for leaf in between)
        shapes = {leaf.shape for leaf in between}
        assert IMAGES.shape not in shapes
        assert (6 * 8 * 8, 28) in shapes  # 9 x 3 numbers at every place, and a one for the bias
        return second(between)

    expected, found = (jax.jit(at, static_argnums=1)(params, one) for one in (True, False))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def test_a_nested_jit_that_takes_both_is_opened():
    """As some versions of JAX leave them under a gradient."""
    scale = jnp.arange(3.0)

    @jax.jit
    def inner(scale, x):
        return scale * jax.jit(jnp.sin)(x), jnp.cos(scale)

    first, second, size = staged(lambda x: inner(scale, x), jnp.ones((4, 3)))
    (between,) = first(jnp.full((4, 3), 0.5))
    assert size == between.nbytes
    np.testing.assert_allclose(between, np.sin(np.full((4, 3), 0.5)), rtol=1e-6)
    products, cosines = second([between])
    np.testing.assert_allclose(products, np.arange(3.0) * np.sin(np.full((4, 3), 0.5)), rtol=1e-6)
    np.testing.assert_allclose(cosines, np.cos(np.arange(3.0)), rtol=1e-6)


def test_nothing_that_the_function_closes_over_is_taken_for_data():
    """Concrete arrays too: what depends on them may be large and change."""
    scale = jnp.arange(3.0)
    first, second, _ = staged(lambda x: {"sum": (scale * jnp.sin(x)).sum(), "one": jnp.ones(2)}, jnp.ones((4, 3)))
    (between,) = first(jnp.full((4, 3), 0.5))
    np.testing.assert_allclose(between, np.sin(np.full((4, 3), 0.5)), rtol=1e-6)
    result = second([between])
    np.testing.assert_allclose(result["sum"], 12 * np.sin(0.5), rtol=1e-6)
    np.testing.assert_array_equal(result["one"], np.ones(2))


def test_side_effects_stay_where_they_are():
    seen = []

    def fn(x):
        jax.debug.callback(lambda value: seen.append(float(value)), x.sum())
        return x + 1

    first, second, _ = staged(fn, jnp.ones(3))
    between = jax.block_until_ready(first(jnp.ones(3)))
    jax.effects_barrier()
    assert seen == []
    jax.block_until_ready(second(between))
    jax.effects_barrier()
    assert seen == [pytest.approx(3.0)]
