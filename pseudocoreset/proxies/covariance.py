"""Gaussians around a MAP solution, in weight space: isotropic, along a trajectory, or from the curvature.

One family serves both spaces. ``around`` gives the Gaussian over weights, ``noise`` draws of the function values
around the network's own at given inputs: of unit-variance noise, with the empirical variances along the trajectory
(Kim et al. 2023, Eq. 16), or pushed forward through the Jacobian (Eq. 11 to 13).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from pseudocoreset.compute.devices import Devices
from pseudocoreset.models import Gaussian, Model, Params
from pseudocoreset.proxies.laplace import DENSE_LIMIT, coreset_potential, diagonal_laplace
from pseudocoreset.proxies.training import BatchFn, descend
from pseudocoreset.validation import check_choice, check_integer, check_positive

__all__ = ["Covariance", "Isotropic", "Laplace", "Linearized", "Side", "Trajectory", "resolve_covariance"]


class Side(NamedTuple):
    """One of the two posteriors, as a proxy sees it."""

    params: Params  # the MAP solution
    batch: BatchFn  # batches of its data, of one fixed size
    mass: jax.Array | float  # number of data that a batch stands for: n, or the sum of the weights
    is_data: bool  # the full data, not the coreset
    devices: Devices  # that share draws, or batches and inputs
    fixed: bool = False  # whether every batch is the same, the points that function values are wanted at


class Covariance(Protocol):
    """A Gaussian around a MAP solution.

    Attributes:
        batch_size: data that it wants in a batch of the full data.
    """

    @property
    def batch_size(self) -> int:
        """Data in a batch of the full data."""
        ...

    def around(self, key: jax.Array, model: Model, side: Side) -> Gaussian:
        """Over the flattened weights."""
        ...

    def noise(self, key: jax.Array, model: Model, side: Side, inputs: jax.Array, num_draws: int) -> jax.Array:
        """Draws (num_draws, m, d) of the function values at ``inputs`` less those of the MAP solution."""
        ...

    def describe(self) -> dict[str, Any]:
        """Name and settings, JSON-able."""
        ...


@dataclass(frozen=True)
class Isotropic:
    """The same standard deviation for every weight, or for every function value: FBPC-isotropic when it is one.

    Attributes:
        scale: standard deviation, positive; 1 fits function values, 0.01 weights (Kim et al. 2022).
    """

    scale: float = 1.0
    batch_size: ClassVar[int] = 1  # it looks at no data

    def __post_init__(self) -> None:
        check_positive(self.scale, "scale")

    def around(self, key: jax.Array, model: Model, side: Side) -> Gaussian:
        """N(theta, scale^2 I)."""
        del key
        mean = model.flatten(side.params)
        return Gaussian(mean, jnp.asarray(self.scale, mean.dtype))

    def noise(self, key: jax.Array, model: Model, side: Side, inputs: jax.Array, num_draws: int) -> jax.Array:
        """Independent normal noise."""
        del side
        assert model.num_outputs is not None
        return self.scale * _normal(key, (num_draws, inputs.shape[0], model.num_outputs), inputs.dtype)

    def describe(self) -> dict[str, Any]:
        """Name and settings."""
        return {"proxy": "isotropic", "scale": self.scale}


@dataclass(frozen=True)
class Trajectory:
    """Empirical variances along further SGD steps from each MAP solution.

    In function space Psi = diag(mean_k g_k(u)^2 - (mean_k g_k(u))^2), g_k the network after k = 1..K more steps on the
    data (learning rate lambda_x) or on the coreset (lambda_u) (Kim et al. 2023, Eq. 16). In weight space the same of
    the weights; with a ``rank`` half of it is replaced by the covariance of the last deviations (SWAG; Maddox et al.
    2019).

    Attributes:
        num_steps: K.
        data_learning_rate: lambda_x.
        coreset_learning_rate: lambda_u.
        batch_size: data a step on the full data.
        rank: deviations kept in weight space.
    """

    num_steps: int = 30
    data_learning_rate: float = 0.05
    coreset_learning_rate: float = 0.01
    batch_size: int = 256
    rank: int = 0

    def __post_init__(self) -> None:
        check_integer(self.num_steps, "num_steps", minimum=2)
        check_integer(self.batch_size, "batch_size")
        check_integer(self.rank, "rank", minimum=0)
        check_positive(self.data_learning_rate, "data_learning_rate")
        check_positive(self.coreset_learning_rate, "coreset_learning_rate")
        if self.rank == 1 or self.rank > self.num_steps:
            raise ValueError(f"rank must be 0 or from 2 to num_steps={self.num_steps}; got {self.rank}")

    def _descend(self, key: jax.Array, model: Model, side: Side, visited: Any, **calls: Any) -> Any:
        rate = self.data_learning_rate if side.is_data else self.coreset_learning_rate
        return descend(
            model,
            side.params,
            key,
            side.batch,
            num_steps=self.num_steps,
            learning_rate=rate,
            visited=visited,
            devices=side.devices,
            **calls,
        )

    def _deviations(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """sqrt(E[g^2] - E[g]^2)."""
        mean = first / self.num_steps
        return jnp.sqrt(jnp.maximum(second / self.num_steps - mean**2, 0.0))

    def around(self, key: jax.Array, model: Model, side: Side) -> Gaussian:
        """N(theta, Psi), or theta with half of Psi and half of the covariance of the last ``rank`` deviations."""
        start = model.flatten(side.params)
        kept = jnp.zeros((self.rank, start.shape[0]), start.dtype)

        def visit(seen: Any, params: Params) -> Any:
            # Deviations from the start keep the variance accurate when it is small beside the mean.
            first, second, last = seen
            deviation = model.flatten(params) - start
            last = jnp.concatenate([last[1:], deviation[None]]) if self.rank else last
            return first + deviation, second + deviation**2, last

        zero = jnp.zeros_like(start)
        _, (first, second, last) = self._descend(key, model, side, (zero, zero, kept), visit=visit)
        scale = self._deviations(first, second)
        if not self.rank:
            return Gaussian(start, scale)
        centred = last - first / self.num_steps
        return Gaussian(start, scale / math.sqrt(2.0), centred / math.sqrt(2.0 * (self.rank - 1)))

    def scales(self, key: jax.Array, model: Model, side: Side, inputs: jax.Array) -> jax.Array:
        """Standard deviations (m, d) of the function values at ``inputs``."""
        devices = side.devices.for_rows_of(model)

        def values(params: Params) -> jax.Array:
            return devices.map_rows(functools.partial(model.apply, params), inputs)

        def add(seen: Any, values: jax.Array) -> Any:
            # Deviations from the first values keep the variance accurate when it is small beside the mean.
            reference, first, second, count = seen
            reference = jnp.where(count == 0, values, reference)
            deviation = values - reference
            return reference, first + deviation, second + deviation**2, count + 1

        shape = jax.eval_shape(values, side.params)
        zero = jnp.zeros(shape.shape, shape.dtype)
        start = (zero, zero, zero, jnp.zeros((), jnp.int32))
        if side.fixed:
            # The values after one step are those that the next begins with; the very first are the reference.
            last, seen = self._descend(key, model, side, start, look=add)
            _, first, second, _ = add(seen, values(last))
        else:
            _, seen = self._descend(key, model, side, start, visit=lambda seen, params: add(seen, values(params)))
            _, first, second, _ = seen
        deviations = self._deviations(first, second)
        # Devices that share the inputs exchange what they found once.
        return devices.gather(deviations, len(inputs))

    def noise(self, key: jax.Array, model: Model, side: Side, inputs: jax.Array, num_draws: int) -> jax.Array:
        """Independent normal noise of these standard deviations."""
        trajectory_key, noise_key = jax.random.split(key)
        scales = self.scales(trajectory_key, model, side, inputs)
        return scales * _normal(noise_key, (num_draws, *scales.shape), scales.dtype)

    def describe(self) -> dict[str, Any]:
        """Name and settings."""
        settings = {
            "proxy": "trajectory",
            "num_steps": self.num_steps,
            "data_learning_rate": self.data_learning_rate,
            "coreset_learning_rate": self.coreset_learning_rate,
            "batch_size": self.batch_size,
        }
        return settings | ({"rank": self.rank} if self.rank else {})


@dataclass(frozen=True)
class Laplace:
    """The inverse curvature at each MAP solution as covariance.

    For the posteriors themselves of a small model (``reverse_kl`` and its like search the mode then), and around the
    MAP solutions of networks.

    Attributes:
        structure: ``"dense"`` (the Hessian; at most 2,000 parameters), ``"diagonal"`` (of the generalised
            Gauss-Newton matrix), or ``"auto"``, dense where it can be.
        batch_size: data that the curvature of the full data is estimated from, around MAP solutions.
    """

    structure: str = "auto"
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_choice(self.structure, "structure", ("auto", "dense", "diagonal"))
        check_integer(self.batch_size, "batch_size")

    def is_dense(self, model: Model) -> bool:
        """Whether the covariance of this model is dense.

        Raises:
            ValueError: if it should be and is too large.
        """
        if self.structure == "dense" and model.num_params > DENSE_LIMIT:
            raise ValueError(
                f"structure='dense' is for at most {DENSE_LIMIT} parameters; {model.name!r} has {model.num_params}"
            )
        return self.structure == "dense" or (self.structure == "auto" and model.num_params <= DENSE_LIMIT)

    def around(self, key: jax.Array, model: Model, side: Side) -> Gaussian:
        """N(theta, H^-1), H from one batch, scaled to the mass."""
        batch = side.batch(key)
        scale = side.mass / jnp.sum(batch.weights)
        if not self.is_dense(model):
            return diagonal_laplace(model, side.params, batch, scale)
        mean = model.flatten(side.params)
        hessian = jax.hessian(coreset_potential(model, batch._replace(weights=scale * batch.weights)))(mean)
        # Away from the mode the Hessian need not be positive: its eigenvalues by their size.
        values, vectors = jnp.linalg.eigh(hessian)
        floor = jnp.finfo(mean.dtype).eps * jnp.max(jnp.abs(values))
        covariance = (vectors / jnp.maximum(jnp.abs(values), floor)) @ vectors.T
        return Gaussian.from_covariance(mean, covariance)

    def noise(self, key: jax.Array, model: Model, side: Side, inputs: jax.Array, num_draws: int) -> jax.Array:
        """Through the Jacobian, as ``Linearized`` of it."""
        return Linearized(self).noise(key, model, side, inputs, num_draws)

    def describe(self) -> dict[str, Any]:
        """Name and settings."""
        return {"proxy": "laplace", "structure": self.structure, "batch_size": self.batch_size}


@dataclass(frozen=True)
class Linearized:
    """Function values of the network linearised in its weights, N(g(u), J Sigma J^T) (Kim et al. 2023, Eq. 11 to 13).

    Sigma is a covariance over the weights. Draws are Jacobian-vector products with draws of the weights: the whole
    covariance between inputs and outputs, and no dense Jacobian.

    Attributes:
        weights: ``"laplace"`` (curvature), ``"trajectory"`` (variances along further steps), ``"low_rank"`` (with the
            covariance of the last 10 deviations), ``"isotropic"`` (0.01), or one of the classes themselves.
    """

    weights: Any = "laplace"

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", _WEIGHTS[self.weights]() if self.weights in _NAMES else self.weights)
        if not hasattr(self.weights, "around"):
            raise ValueError(f"weights={self.weights!r} is unknown; use one of {', '.join(map(repr, _NAMES))}")

    @property
    def batch_size(self) -> int:
        """That of the covariance over the weights."""
        return self.weights.batch_size

    def around(self, key: jax.Array, model: Model, side: Side) -> Gaussian:
        """The Gaussian over the weights."""
        return self.weights.around(key, model, side)

    def noise(self, key: jax.Array, model: Model, side: Side, inputs: jax.Array, num_draws: int) -> jax.Array:
        """J delta for draws delta of the weights less their mean."""
        around_key, draw_key = jax.random.split(key)
        gaussian = self.around(around_key, model, side)._replace(mean=jnp.zeros(model.num_params, inputs.dtype))

        within = side.devices.within.for_rows_of(model)

        def draw(k: jax.Array, gaussian: Gaussian, params: Params, at: jax.Array) -> jax.Array:
            direction = model.unflatten(gaussian.sample(k))

            def along(x: jax.Array) -> jax.Array:
                return jax.jvp(lambda p: model.apply(p, x), (params,), (direction,))[1]

            return within.gather(within.map_rows(along, at), len(at))

        # One after the other: a direction is as large as the network.
        one_by_one = side.devices.taking(1)
        return one_by_one.map(draw, jax.random.split(draw_key, num_draws), gaussian, side.params, inputs)

    def describe(self) -> dict[str, Any]:
        """Name and settings."""
        inner = self.weights.describe()
        return {"proxy": "linearized", "weights": inner.pop("proxy"), **inner}


_WEIGHTS: dict[str, Callable[[], Covariance]] = {
    "laplace": lambda: Laplace("diagonal"),
    "trajectory": Trajectory,
    "low_rank": lambda: Trajectory(rank=10),
    "isotropic": lambda: Isotropic(0.01),
}
_NAMES = tuple(_WEIGHTS)
_FUNCTION: dict[str, Callable[[], Covariance]] = {
    "trajectory": Trajectory,
    "isotropic": Isotropic,
    "linearized": Linearized,
}


def resolve_covariance(proxy: str | Covariance) -> Covariance:
    """The proxy in function space that an argument means: a name, or a proxy itself."""
    if isinstance(proxy, str):
        return _FUNCTION[check_choice(proxy, "proxy", _FUNCTION)]()
    if not hasattr(proxy, "noise"):
        raise TypeError(f"proxy must be one of {', '.join(map(repr, _FUNCTION))} or a proxy; got {proxy!r}")
    return proxy


def _normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """``jax.random.normal``, drawn flat: over a short last axis the compiler of a CPU unrolls the generator."""
    return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)
