"""The two posteriors over weights that ``reverse_kl``, ``forward_kl`` and ``wasserstein`` compare.

Three families, one interface:

* of models with a conjugate posterior (``"conjugate"``) or any model of some hundreds of parameters (``"laplace"``):
  Gaussians that are functions of the coreset;
* draws of the coreset posterior from BlackJAX chains that are kept warm from step to step (``"chains"``);
* around MAP solutions of networks (``"isotropic"``, ``"trajectory"``, and ``"laplace"`` for large models; Kim et al.
  2022): an expert snapshot at some epoch is the start of a short training on the coreset, the snapshot some epochs
  later is the MAP solution of the full data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from pseudocoreset.arguments import checked_class, described
from pseudocoreset.data.augmentation import Augmentation
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.models import Gaussian, Model, Params
from pseudocoreset.objectives.base import Gradient, Objective, SnapshotWindow, differentiate
from pseudocoreset.objectives.chains import Chains
from pseudocoreset.proxies import BatchFn, Covariance, Isotropic, Laplace, Side, Trajectory, descend
from pseudocoreset.proxies.laplace import (
    DENSE_LIMIT,
    NUM_STARTS,
    best_mode,
    coreset_potential,
    data_potential,
    laplace,
    starts_of_search,
)
from pseudocoreset.rows import Rows
from pseudocoreset.validation import check_choice, check_integer, check_positive

__all__ = [
    "NO_REMEDY",
    "PROXIES",
    "InnerTraining",
    "NoModeError",
    "Posteriors",
    "WeightDraws",
    "bind_posteriors",
    "closed_form",
    "gaussian_posteriors",
]

PROXIES = ("conjugate", "laplace", "chains", "isotropic", "trajectory")
NO_REMEDY = "tighter priors, or fit_bpc_rkl(proxy='chains'), which needs no mode"
WEIGHT_SCALE = 0.01  # sigma of Kim et al. 2022


@checked_class
@dataclass(frozen=True)
class InnerTraining:
    """The short training on the coreset from an expert snapshot (Kim et al. 2022).

    Attributes:
        num_steps: L, steps of plain gradient descent on all points.
        learning_rate: alpha.
        expert_epochs: E, epochs from the snapshot it starts from to the MAP solution of the full data.
        first_epoch: the earliest start.
        last_epoch: the latest start; the last that leaves E epochs by default.
        augment: of the coreset, a new one each step; None for none.
    """

    num_steps: int = 30
    learning_rate: float = 0.03
    expert_epochs: int = 1
    first_epoch: int = 0
    last_epoch: int | None = None
    augment: Augmentation | None = None

    def __post_init__(self) -> None:
        check_integer(self.num_steps, "num_steps")
        check_positive(self.learning_rate, "learning_rate")
        check_integer(self.expert_epochs, "expert_epochs")
        check_integer(self.first_epoch, "first_epoch", minimum=0)

    @property
    def window(self) -> SnapshotWindow:
        """The snapshots that it takes."""
        return SnapshotWindow(self.first_epoch, self.last_epoch, self.expert_epochs)

    def batches(self, coreset: Rows) -> BatchFn:
        """All points of the coreset, augmented."""

        def batch(key: jax.Array) -> Rows:
            return coreset if self.augment is None else coreset._replace(inputs=self.augment(key, coreset.inputs))

        return batch

    def train(self, key: jax.Array, model: Model, start: Params, coreset: Rows) -> Params:
        """Parameters after the steps from ``start``."""
        params, _ = descend(
            model,
            start,
            key,
            self.batches(coreset),
            num_steps=self.num_steps,
            learning_rate=self.learning_rate,
        )
        return params

    def describe(self) -> dict[str, Any]:
        """Settings, JSON-able."""
        return {
            "num_inner_steps": self.num_steps,
            "inner_learning_rate": self.learning_rate,
            "expert_epochs": self.expert_epochs,
            "first_epoch": self.first_epoch,
            "last_epoch": self.last_epoch,
            "augment": None if self.augment is None else self.augment.strategy,
        }


class WeightDraws(NamedTuple):
    """Draws of unconstrained parameters, made one by one: ``to_params`` of each item of a stack.

    Items are keys for a Gaussian, so that memory does not grow with the number of draws; equal keys give draws of two
    Gaussians from the same random numbers.
    """

    items: Any  # leading axis S
    to_params: Partial  # a pytree, so that it can be passed to other devices


def gaussian_draws(model: Model, gaussian: Gaussian, keys: jax.Array) -> WeightDraws:
    """One draw a key."""
    return WeightDraws(keys, Partial(lambda g, key: model.unflatten(g.sample(key)), gaussian))


class Posteriors(NamedTuple):
    """What an objective asks of a proxy bound to a model.

    init
        ``(key, coreset, data) -> state``.
    draws
        ``(key, state, coreset, data, snapshots, num_draws) -> (of the coreset, of the full data or None, state,
        info)``; no gradient flows through them.
    gaussians
        ``(state, coreset) -> (of the coreset, of the full data)``, differentiable in the coreset; None where the
        posteriors are not Gaussians in closed form.
    window
        Expert snapshots that ``draws`` takes.
    settings
        JSON-able.
    mass
        ``Objective.mass`` of an objective that compares them: ``"kept"`` around MAP solutions, which minimise a mean
        loss that does not depend on the sum of the weights.
    """

    init: Callable[..., Any]
    draws: Callable[..., Any]
    gaussians: Callable[..., tuple[Gaussian, Gaussian]] | None
    window: SnapshotWindow | None
    settings: dict[str, Any]
    mass: str = "learned"


def bind_posteriors(
    model: Model,
    proxy: str | Covariance | Chains | None,
    inner: InnerTraining,
    *,
    wants_data: bool = True,
    remedy: str = NO_REMEDY,
) -> Posteriors:
    """The posteriors that a ``proxy`` argument means for a model.

    Args:
        model: a bound model.
        proxy: a name, a covariance of ``pseudocoreset.proxies``, ``Chains``, or None: ``"isotropic"`` for networks,
            ``"conjugate"`` where there is a conjugate posterior, ``"laplace"`` up to 2,000 parameters, else chains.
        inner: the training that gives networks their MAP solution.
        wants_data: whether draws of the full-data posterior are needed.
        remedy: what to do where there is no mode for a Laplace approximation, a clause; said in the error.

    Raises:
        ValueError: for an unknown name, or a proxy that this model does not have.
    """
    if proxy is None:
        proxy = _default(model)
    if isinstance(proxy, str):
        check_choice(proxy, "proxy", PROXIES)
    elif not isinstance(proxy, Laplace | Chains) and not hasattr(proxy, "around"):
        kinds = ", ".join(map(repr, PROXIES))
        raise TypeError(f"proxy must be one of {kinds}, a proxy, or None; got {described(proxy)}")
    if proxy == "conjugate":
        if model.conjugate is None:
            raise ValueError(f"proxy='conjugate': {model.name!r} has no conjugate posterior; use proxy='laplace'")
        return _conjugate(model)
    if proxy == "laplace":
        proxy = Laplace()
    if isinstance(proxy, Laplace) and proxy.is_dense(model):
        return _laplace(model, remedy)
    if proxy == "chains":
        proxy = Chains()
    if isinstance(proxy, Chains):
        if wants_data:
            raise ValueError("proxy='chains' has no draws of the full-data posterior; give them as data_draws")
        return _chains(model, proxy)
    if isinstance(proxy, str):
        named: dict[str, Covariance] = {"isotropic": Isotropic(WEIGHT_SCALE), "trajectory": Trajectory()}
        return _around_maps(model, named[proxy], inner, wants_data)
    return _around_maps(model, proxy, inner, wants_data)


def _default(model: Model) -> str:
    if model.is_network:
        return "isotropic"
    if model.conjugate is not None:
        return "conjugate"
    return "laplace" if Laplace().is_dense(model) else "chains"


def _closed_form(
    model: Model,
    init: Callable[..., Any],
    coreset_gaussian: Callable[[Any, Rows], Gaussian],
    settings: dict[str, Any],
) -> Posteriors:
    """Of a state that begins with the Gaussian of the full data."""

    def draws(key: jax.Array, state: Any, coreset: Rows, data: Any, snapshots: Any, num_draws: int) -> Any:
        gaussian = coreset_gaussian(state, coreset)
        keys = jax.random.split(key, num_draws)
        state = (state[0], gaussian.mean)  # where the search for the mode starts next time
        return gaussian_draws(model, gaussian, keys), gaussian_draws(model, state[0], keys), state, {}

    def gaussians(state: Any, coreset: Rows) -> tuple[Gaussian, Gaussian]:
        return coreset_gaussian(state, coreset), state[0]

    return Posteriors(init, draws, gaussians, None, settings)


def _conjugate(model: Model) -> Posteriors:
    conjugate = model.conjugate
    assert conjugate is not None

    def init(key: jax.Array, coreset: Rows, data: DeviceData) -> tuple[Gaussian, jax.Array]:
        x, y = data.batch(jnp.arange(data.num_data))
        full = conjugate(x, y, jnp.ones(data.num_data, x.dtype))
        return full, full.mean

    return _closed_form(model, init, lambda _, c: conjugate(*c), {"proxy": "conjugate"})


class NoModeError(ValueError):
    """There is no mode to put a Gaussian around."""


def _laplace(model: Model, remedy: str) -> Posteriors:
    def around(starts: jax.Array, data: DeviceData) -> tuple[Gaussian, jax.Array]:
        def potential(vector: jax.Array) -> jax.Array:
            return data_potential(model, data)(vector)

        found, is_mode = best_mode(potential, starts)
        return laplace(potential, found), is_mode

    def init(key: jax.Array, coreset: Rows, data: DeviceData) -> tuple[Gaussian, jax.Array]:
        full, is_mode = jax.jit(around)(starts_of_search(model, key), data)
        if not isinstance(is_mode, jax.core.Tracer) and not (is_mode and bool(jnp.all(jnp.isfinite(full.scale)))):
            raise NoModeError(
                f"the posterior of {model.name!r} on all data has no mode with a positive definite curvature that "
                f"Newton's method finds from {NUM_STARTS} starts, so it has no Laplace approximation: it may have "
                "directions that the data say nothing of, a funnel, or no finite likelihood at the starts. Take "
                f"{remedy}"
            )
        return full, full.mean

    def coreset_gaussian(state: Any, coreset: Rows) -> Gaussian:
        return laplace(lambda v, points: coreset_potential(model, points)(v), state[1], coreset)

    return _closed_form(model, init, coreset_gaussian, {"proxy": "laplace", "structure": "dense"})


def _chains(model: Model, chains: Chains) -> Posteriors:
    def init(key: jax.Array, coreset: Rows, data: DeviceData) -> Any:
        return chains.init(key, model, coreset_potential(model, coreset), data.devices)

    def draws(key: jax.Array, state: Any, coreset: Rows, data: Any, snapshots: Any, num_draws: int) -> Any:
        del num_draws  # as many as there are chains
        state, info = chains.advance(key, state, coreset_potential(model, coreset), data.devices)
        return WeightDraws(state.positions, Partial(model.unflatten)), None, state, info

    return Posteriors(init, draws, None, None, chains.describe())


def _around_maps(model: Model, covariance: Covariance, inner: InnerTraining, wants_data: bool) -> Posteriors:
    def init(key: jax.Array, coreset: Rows, data: DeviceData) -> tuple[()]:
        return ()

    def draws(key: jax.Array, state: Any, coreset: Rows, data: DeviceData, snapshots: Any, num_draws: int) -> Any:
        start, target = snapshots
        training_key, coreset_key, data_key, draw_key = jax.random.split(key, 4)
        solution = inner.train(training_key, model, start, coreset)
        side = Side(solution, inner.batches(coreset), jnp.sum(coreset.weights), False, data.devices)
        small = covariance.around(coreset_key, model, side)
        # The same random numbers for both, which cancel in part; the reference draws them apart.
        keys = jax.random.split(draw_key, num_draws)
        moved = model.flatten(solution) - model.flatten(target)
        info = {"distance": jnp.linalg.norm(moved)}
        full = None
        if wants_data:

            def data_batch(k: jax.Array) -> Rows:
                x, y = data.sample(k, covariance.batch_size)
                return Rows(x, y, jnp.ones(x.shape[0], x.dtype))

            around = covariance.around(data_key, model, Side(target, data_batch, data.num_data, True, data.devices))
            full = gaussian_draws(model, around, keys)
        return gaussian_draws(model, small, keys), full, state, info

    return Posteriors(init, draws, None, inner.window, {**covariance.describe(), **inner.describe()}, "kept")


def gaussian_posteriors(model: Model, proxy: str | None, argument: str, instead: str = "") -> Posteriors:
    """The two posteriors of a model as Gaussians in closed form.

    Args:
        model: a bound model.
        proxy: ``"conjugate"``, ``"laplace"`` (at most 2,000 parameters), or None for the first that the model has.
        argument: what the user calls ``proxy``; errors name it.
        instead: what else there is where a model has no mode, a clause of that error.

    Raises:
        ValueError: for a model without such posteriors.
    """
    if proxy is not None:
        check_choice(proxy, argument, ("conjugate", "laplace"))
    remedy = f"{instead}, or {NO_REMEDY}" if instead else NO_REMEDY
    posteriors = bind_posteriors(model, proxy, InnerTraining(), wants_data=False, remedy=remedy)
    if posteriors.gaussians is None:
        raise ValueError(
            f"{argument} must be a conjugate posterior or a dense Laplace approximation, for models of at most "
            f"{DENSE_LIMIT} parameters; {model.name!r} has {model.num_params}, and networks have none unless asked for"
        )
    return posteriors


def closed_form(
    name: str,
    model: Model,
    posteriors: Posteriors,
    divergence: Callable[[Gaussian, Gaussian], jax.Array],
    free: tuple[str, ...],
    settings: Mapping[str, Any] | None = None,
) -> Objective:
    """The objective ``divergence(of the coreset, of the full data)`` between Gaussian posteriors, exact: no draws.

    Args:
        name: of the objective.
        model: a bound model.
        posteriors: those of the model, as ``gaussian_posteriors`` gives them.
        divergence: of two ``Gaussian``, differentiable; see ``objectives.gaussian``.
        free: leaves of the coreset to differentiate.
        settings: saved with the coreset beside those of the posteriors.

    Raises:
        ValueError: if the posteriors are not Gaussian in closed form.
    """
    if posteriors.gaussians is None:
        raise ValueError(
            "estimator='closed_form' needs Gaussian posteriors, proxy='conjugate' or a dense 'laplace'; got "
            f"{posteriors.settings['proxy']!r}"
        )
    gaussians = posteriors.gaussians

    def gradient(
        key: jax.Array, state: Any, coreset: Rows, data: DeviceData, snapshots: tuple[Params, ...]
    ) -> Gradient:
        def loss_fn(arrays: Rows) -> tuple[jax.Array, jax.Array]:
            small, full = gaussians(state, arrays)
            return divergence(small, full), small.mean

        (loss, mean), leaves = differentiate(loss_fn, coreset, free)
        return leaves, (state[0], jax.lax.stop_gradient(mean)), {"loss": loss}

    saved = {**posteriors.settings, **(settings or {})}
    return Objective(name, model, posteriors.init, gradient, None, saved, free, loss_is_value=True)
