"""No kernel of this package consumes a random key twice, by JAX's own checker."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.errors import KeyReuseError

from pseudocoreset.inference import sample
from pseudocoreset.inference.engine.blocks import keys_of_step
from pseudocoreset.inference.kernels import KERNELS
from tests.inference.targets import REGRESSION, density

MODEL, SITE = REGRESSION.model, REGRESSION.site


def start_and_step(name: str) -> None:
    kernel = KERNELS[name]()
    target = density(REGRESSION, name, 5 if kernel.uses_minibatches else None)
    numbers = {"temperature": 1.0, "step_size": 0.01, "friction": 1.0}
    tuning = {name: jnp.asarray(value) for name, value in numbers.items()}

    @jax.jit
    def one(key: jax.Array) -> jax.Array:
        position_key, init_key, step_key, adapt_key = jax.random.split(key, 4)
        position, tuned = MODEL.init(position_key), tuning
        state = kernel.init(init_key, position, tuned, target)
        if kernel.adapts:
            state, tuned = kernel.adapt(adapt_key, position, tuned, target, 20)
        keys = keys_of_step(kernel, step_key, 0)
        rows = target.minibatch(keys.rows) if kernel.uses_minibatches else target.data
        state, _ = kernel.step(keys.move, state, {**tuned, "is_warmup": False}, target, rows)
        return kernel.position(state)[SITE]

    assert np.all(np.isfinite(one(jax.random.key(0))))


@pytest.mark.parametrize("name", ["hmc", "nuts", "sghmc", "sgld"])
def test_a_chain_uses_no_key_twice(name: str) -> None:
    """Start, adaptation where there is one, and a step."""
    with jax.debug_key_reuse(True):
        start_and_step(name)


def test_sghmc_of_blackjax_does() -> None:
    """Its trajectories draw the momentum and split the noise from one key; one more reason for our own."""
    with jax.debug_key_reuse(True), pytest.raises(KeyReuseError):
        start_and_step("blackjax_sghmc")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sghmc", {"num_warmup": 5, "batch_size": 5}),
        ("sgld", {"num_warmup": 5, "batch_size": 5}),
        ("hmc", {"num_warmup": 0, "step_size": 0.01}),
    ],
)
def test_a_run_uses_no_key_twice(name: str, settings: dict) -> None:
    """All chains at once: starts, warmup and draws."""
    with jax.debug_key_reuse(True):
        posterior = sample(
            MODEL, REGRESSION.data, kernel=name, key=jax.random.key(0), num_chains=2, num_samples=2, thinning=2,
            progress=False, **settings,
        )  # fmt: skip
    assert np.all(np.isfinite(posterior.draws[SITE]))


def test_why_nuts_and_adaptation_are_checked_one_chain_at_a_time() -> None:
    """JAX 0.10 takes any branch of a vectorised condition for a second use of the keys that enter it."""

    def draw(key: jax.Array, is_random: jax.Array) -> jax.Array:
        return jax.lax.cond(is_random, lambda: jax.random.normal(key), lambda: 0.0)

    with jax.debug_key_reuse(True):
        assert np.isfinite(jax.jit(draw)(jax.random.key(0), True))
        with pytest.raises(KeyReuseError):
            jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0)), jnp.array([True, False]))
