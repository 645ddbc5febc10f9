"""Diagonal Gaussian proxies of the two function posteriors at the coreset inputs (Kim et al. 2023, Eq. 15 and 16).

Both posteriors are N(g_theta(u), Psi) with theta a MAP solution: a snapshot of an expert for the full data, the
end of a short training for the coreset. A proxy says what the two covariances are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from pseudocoreset.device import DeviceData
from pseudocoreset.models import Model, Params
from pseudocoreset.validation import check_choice, check_integer, check_positive

__all__ = ["FunctionProxy", "Isotropic", "Scales", "Trajectory", "resolve_proxy"]

CoresetBatch = Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]]


class Scales(NamedTuple):
    """Standard deviations of the two proxies, (m, d) or scalars; no gradient flows through them."""

    data: jax.Array
    coreset: jax.Array


class FunctionProxy(Protocol):
    """What ``function_kl`` asks of a proxy."""

    def scales(
        self,
        key: jax.Array,
        model: Model,
        data_params: Params,
        coreset_params: Params,
        inputs: jax.Array,
        data: DeviceData,
        coreset_batch: CoresetBatch,
        data_view: Callable[[jax.Array, jax.Array], jax.Array],
    ) -> Scales:
        """Standard deviations at ``inputs`` around the two MAP solutions."""
        ...

    def describe(self) -> dict[str, Any]:
        """Name and settings, JSON-able."""
        ...


@dataclass(frozen=True)
class Isotropic:
    """The same standard deviation for every function value: FBPC-isotropic when it is one.

    Attributes:
        scale: standard deviation, positive.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.scale, "scale")

    def scales(self, *_: Any) -> Scales:
        """The constant, for both posteriors."""
        return Scales(jnp.asarray(self.scale), jnp.asarray(self.scale))

    def describe(self) -> dict[str, Any]:
        """Name and settings."""
        return {"proxy": "isotropic", "scale": self.scale}


@dataclass(frozen=True)
class Trajectory:
    """Empirical variances along further SGD steps from each MAP solution (Kim et al. 2023, Eq. 16).

    Psi = diag(mean_k g_k(u)^2 - (mean_k g_k(u))^2), g_k the network after k = 1..K more steps on the data
    (learning rate lambda_x) or on the coreset (lambda_u).

    Attributes:
        num_steps: K.
        data_learning_rate: lambda_x.
        coreset_learning_rate: lambda_u.
        batch_size: data a step on the full data.
    """

    num_steps: int = 30
    data_learning_rate: float = 0.05
    coreset_learning_rate: float = 0.01
    batch_size: int = 256

    def __post_init__(self) -> None:
        check_integer(self.num_steps, "num_steps", minimum=2)
        check_integer(self.batch_size, "batch_size")
        check_positive(self.data_learning_rate, "data_learning_rate")
        check_positive(self.coreset_learning_rate, "coreset_learning_rate")

    def scales(
        self,
        key: jax.Array,
        model: Model,
        data_params: Params,
        coreset_params: Params,
        inputs: jax.Array,
        data: DeviceData,
        coreset_batch: CoresetBatch,
        data_view: Callable[[jax.Array, jax.Array], jax.Array],
    ) -> Scales:
        """Standard deviations (m, d) along the two trajectories."""
        data_key, coreset_key = jax.random.split(key)

        def data_batch(k: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            batch_key, view_key = jax.random.split(k)
            x, y = data.sample(batch_key, self.batch_size)
            return data_view(view_key, x), y, jnp.ones(self.batch_size, x.dtype)

        def along(k: jax.Array, params: Params, batch: CoresetBatch, learning_rate: float) -> jax.Array:
            def loss_fn(p: Params, x: jax.Array, y: jax.Array, w: jax.Array) -> jax.Array:
                return -jnp.sum(w * model.log_likelihood(p, x, y)) / jnp.sum(w)

            # Deviations from the start keep the variance accurate when it is small beside the mean.
            start = model.apply(params, inputs)

            def step(carry: Any, step_key: jax.Array) -> tuple[Any, None]:
                p, first, second = carry
                gradient = jax.grad(loss_fn)(p, *batch(step_key))
                p = jax.tree.map(lambda a, g: a - learning_rate * g, p, gradient)
                deviation = model.apply(p, inputs) - start
                return (p, first + deviation, second + deviation**2), None

            zero = jnp.zeros_like(start)
            (_, first, second), _ = jax.lax.scan(step, (params, zero, zero), jax.random.split(k, self.num_steps))
            mean = first / self.num_steps
            # Psi = E[g^2] - E[g]^2
            return jnp.sqrt(jnp.maximum(second / self.num_steps - mean**2, 0.0))

        return Scales(
            along(data_key, data_params, data_batch, self.data_learning_rate),
            along(coreset_key, coreset_params, coreset_batch, self.coreset_learning_rate),
        )

    def describe(self) -> dict[str, Any]:
        """Name and settings."""
        return {
            "proxy": "trajectory",
            "num_steps": self.num_steps,
            "data_learning_rate": self.data_learning_rate,
            "coreset_learning_rate": self.coreset_learning_rate,
            "batch_size": self.batch_size,
        }


_NAMES: dict[str, Callable[[], FunctionProxy]] = {"trajectory": Trajectory, "isotropic": Isotropic}


def resolve_proxy(proxy: str | FunctionProxy) -> FunctionProxy:
    """The proxy that an argument means: ``"trajectory"``, ``"isotropic"``, or a proxy itself."""
    if isinstance(proxy, str):
        return _NAMES[check_choice(proxy, "proxy", _NAMES)]()
    if not hasattr(proxy, "scales"):
        raise TypeError(f"proxy must be one of {', '.join(map(repr, _NAMES))} or a proxy; got {proxy!r}")
    return proxy
