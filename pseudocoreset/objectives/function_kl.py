"""Forward KL divergence between function posteriors: FBPC (Kim, Lee and Lee 2023).

Proposition 3.1, the gradient with respect to the coreset inputs u of KL(nu_x || nu_u):

    - grad_u E_{[nu_x]_u} log p(y | f_u) + E_{[nu_u]_u} grad_u log p(y | f_u)

with f_u the function values at u. Each step of Algorithm 1 takes a full-data MAP solution from an expert, trains
a fresh network on the coreset for the other, puts a Gaussian around each (``pseudocoreset.proxies``) and
estimates the gradient from draws (Eq. 17).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pseudocoreset.arguments import checked
from pseudocoreset.compute.devices import Devices
from pseudocoreset.data.augmentation import Augmentation
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.models import Model, Params
from pseudocoreset.objectives.base import (
    Gradient,
    Objective,
    SnapshotWindow,
    check_free,
    differentiate,
)
from pseudocoreset.proxies import BatchFn, Covariance, Side, mean_loss_and_gradient, resolve_covariance
from pseudocoreset.rows import Rows
from pseudocoreset.validation import check_integer, check_positive

__all__ = ["function_kl", "function_kl_surrogate"]

FunctionDraws = Callable[[jax.Array], jax.Array]


@checked
def function_kl_surrogate(
    model: Model,
    params: Params,
    data_draws: FunctionDraws,
    coreset_draws: FunctionDraws,
    inputs: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    coreset_params: Params | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """A scalar whose gradient in ``inputs`` estimates Proposition 3.1, divided by the mass of the weights.

    (1/S) sum_s sum_j w_j [ log p(y_j | f^u_s(u_j)) - log p(y_j | f^x_s(u_j)) ] / sum_j w_j

    with f^x_s and f^u_s draws from the two posteriors *as functions*, so that the gradient goes through u at fixed
    draws; likewise in targets and weights. The division, by a constant as far as the gradient is concerned, makes
    step sizes independent of m, as in the published recipes.

    Args:
        model: gives log p(y | f, u).
        params: unconstrained parameters of the likelihood under nu_x, and under nu_u by default; may be empty for a
            categorical one.
        data_draws: draws from nu_x: ``inputs (m, ...) -> (S, m, d)``.
        coreset_draws: draws from nu_u, likewise.
        inputs: (m, *feature_shape).
        targets: (m,) or (m, num_classes).
        weights: (m,).
        coreset_params: parameters of the likelihood under nu_u.

    Returns:
        The scalar, and the mean negative log-likelihoods under nu_x and nu_u.
    """
    mass = jax.lax.stop_gradient(jnp.sum(weights))
    data_loss, coreset_loss = (
        _expected_loss(model, params, draws(inputs), inputs, targets, weights) / mass
        for params, draws in (
            (params, data_draws),
            (params if coreset_params is None else coreset_params, coreset_draws),
        )
    )
    return data_loss - coreset_loss, (data_loss, coreset_loss)


def _expected_loss(
    model: Model, params: Params, values: jax.Array, inputs: jax.Array, targets: jax.Array, weights: jax.Array
) -> jax.Array:
    """-(1/S) sum_s sum_j w_j log p(y_j | f_s(u_j), u_j), of draws (S, m, d) of the function values."""
    each = jax.vmap(lambda f: model.function_log_likelihood(params, f, inputs, targets))(values)
    return -jnp.sum(weights * jnp.mean(each, axis=0))


class View(NamedTuple):
    """How a coreset is seen: augmented, and some of its points at a time.

    augment
        Of images; None for none.
    batch_size
        B, points per batch; None for all.
    """

    augment: Augmentation | None
    batch_size: int | None

    def seen(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Images (b, ...) after augmentation."""
        return images if self.augment is None else self.augment(key, images)

    def shows_all(self, coreset: Rows) -> bool:
        """Whether every batch has all points."""
        return self.batch_size is None or self.batch_size >= coreset.inputs.shape[0]

    def is_fixed(self, coreset: Rows) -> bool:
        """Whether every batch is the same."""
        return self.augment is None and self.shows_all(coreset)

    def choose(self, key: jax.Array, coreset: Rows) -> Rows:
        """The points of a batch, as they are."""
        if self.shows_all(coreset):
            return coreset
        assert self.batch_size is not None
        chosen = jax.random.choice(key, coreset.inputs.shape[0], (self.batch_size,), replace=False)
        return coreset.take(chosen)

    def batches(self, coreset: Rows) -> BatchFn:
        """Batches of a coreset."""

        def batch(key: jax.Array) -> Rows:
            choice_key, view_key = jax.random.split(key)
            points = self.choose(choice_key, coreset)
            return points._replace(inputs=self.seen(view_key, points.inputs))

        return batch

    def batches_of_data(self, data: DeviceData, size: int) -> BatchFn:
        """Batches of so many data."""

        def batch(key: jax.Array) -> Rows:
            batch_key, view_key = jax.random.split(key)
            x, y = data.sample(batch_key, size)
            return Rows(self.seen(view_key, x), y, jnp.ones(x.shape[0], x.dtype))

        return batch


class _Map(NamedTuple):
    """A coreset MAP solution in training."""

    params: Params
    optimizer: Any
    loss: jax.Array
    steps: jax.Array


def train_on_coreset(
    key: jax.Array,
    model: Model,
    batch: BatchFn,
    stop_at: float,
    learning_rate: float,
    max_steps: int,
    devices: Devices,
) -> _Map:
    """theta_u: a fresh network, trained by Adam until the loss of a batch is at most ``stop_at``.

    Args:
        key: one typed key.
        model: a bound model.
        batch: of the coreset.
        stop_at: gamma, a mean loss.
        learning_rate: of Adam.
        max_steps: its cap, since a loss under augmentation may never come down to gamma.
        devices: that may share each batch.
    """
    adam = optax.adam(learning_rate)
    init_key, step_key = jax.random.split(key)

    def unfinished(state: _Map) -> jax.Array:
        return (state.loss > stop_at) & (state.steps < max_steps)

    def step(state: _Map) -> _Map:
        points = batch(jax.random.fold_in(step_key, state.steps))
        loss, gradient = mean_loss_and_gradient(model, state.params, points, devices)
        updates, optimizer = adam.update(gradient, state.optimizer)
        # The loss belongs to the parameters before the update: once it is small enough they are kept.
        params = jax.tree.map(lambda p, u: jnp.where(loss > stop_at, p + u, p), state.params, updates)
        return _Map(params, optimizer, loss.astype(state.loss.dtype), state.steps + 1)

    params = model.init(init_key)
    start = _Map(params, adam.init(params), jnp.asarray(jnp.inf, jnp.result_type(float)), jnp.asarray(0))
    return jax.lax.while_loop(unfinished, step, start)


@dataclass(frozen=True, eq=False)
class _FunctionKL:
    """The objective with its settings; ``function_kl`` documents them."""

    model: Model
    covariance: Covariance
    view: View
    num_draws: int
    num_networks: int
    inner_loss: float
    inner_learning_rate: float
    inner_max_steps: int
    free: tuple[str, ...]

    def init(self, key: jax.Array, coreset: Rows, data: DeviceData) -> tuple[()]:
        return ()

    def gradient(
        self, key: jax.Array, state: tuple[()], coreset: Rows, data: DeviceData, snapshots: tuple[Params, ...]
    ) -> Gradient:
        (snapshot,) = snapshots
        devices = data.devices.sharing_rows(self.model)
        if self.num_networks == 1 and devices.rows == "whole":
            leaves, info = self._of_network(key, snapshot, coreset, data)
            return leaves, state, info

        def of_pair(item: tuple[jax.Array, Params], coreset: Rows, data: DeviceData) -> Any:
            return self._of_network(*item, coreset, data)

        # The devices share the pairs; of what is inside of one they share batches, where they do, and nothing else.
        if self.num_networks == 1:
            pairs = jax.tree.map(lambda leaf: leaf[None], (key, snapshot))
        else:
            pairs = (jax.random.split(key, self.num_networks), snapshot)
        each, info = devices.map(of_pair, pairs, coreset, replace(data, devices=devices.within))
        leaves = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each)
        capped = jnp.any(info.pop("inner_capped"))
        return leaves, state, {name: jnp.mean(value) for name, value in info.items()} | {"inner_capped": capped}

    def _of_network(
        self, key: jax.Array, snapshot: Params, coreset: Rows, data: DeviceData
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The gradient of one pair of networks, and what to report of it."""
        map_key, choice_key, view_key, data_key, coreset_key = jax.random.split(key, 5)
        batch = self.view.batches(coreset)
        solution = train_on_coreset(
            map_key, self.model, batch, self.inner_loss, self.inner_learning_rate, self.inner_max_steps, data.devices
        )

        def look(leaves: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], Rows]:
            """The points of this step as they are seen: their free leaves, and all leaves."""
            points = self.view.choose(choice_key, coreset._replace(**leaves))
            seen = points._replace(inputs=self.view.seen(view_key, points.inputs))
            return {name: getattr(seen, name) for name in self.free}, seen

        _, pull_back, seen = jax.vjp(look, {name: getattr(coreset, name) for name in self.free}, has_aux=True)
        of_data = self.view.batches_of_data(data, self.covariance.batch_size)
        full = Side(snapshot, of_data, data.num_data, True, data.devices)
        small = full._replace(
            params=solution.params,
            batch=batch,
            mass=jnp.sum(coreset.weights),
            is_data=False,
            fixed=self.view.is_fixed(coreset),
        )
        noise = [
            self.covariance.noise(k, self.model, side, seen.inputs, self.num_draws)
            for k, side in ((data_key, full), (coreset_key, small))
        ]
        sides = jax.tree.map(lambda *leaves: jnp.stack(leaves), (snapshot, noise[0]), (solution.params, noise[1]))
        (data_loss, coreset_loss), each = jax.lax.map(lambda one: self._of_side(one, seen, data.devices), sides)
        (leaves,) = pull_back({name: leaf[0] - leaf[1] for name, leaf in each.items()})
        info = {
            "loss": data_loss - coreset_loss,
            "data_loss": data_loss,
            "coreset_loss": coreset_loss,
            "data_scale": jnp.sqrt(jnp.mean(noise[0] ** 2)),
            "coreset_scale": jnp.sqrt(jnp.mean(noise[1] ** 2)),
            "inner_steps": solution.steps,
            "inner_loss": solution.loss,
            "inner_capped": solution.loss > self.inner_loss,
        }
        return leaves, info

    def _of_side(
        self, side: tuple[Params, jax.Array], seen: Rows, devices: Devices
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Expected loss of the points under one of the two posteriors, and its gradient in their leaves."""
        (params, deviations), mass = side, jnp.sum(seen.weights)

        def of_points(points: Rows, their: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            def loss_fn(arrays: Rows) -> tuple[jax.Array, None]:
                # f = g(u) + Psi^(1/2) eps
                values = self.model.apply(params, arrays.inputs)[None] + jnp.moveaxis(their, 1, 0)
                # Each side has its own parameters of the likelihood, a noise scale say.
                return _expected_loss(self.model, params, values, *arrays) / mass, None

            (loss, _), leaves = differentiate(loss_fn, points, self.free)
            return loss, leaves

        devices = devices.for_rows_of(self.model)
        loss, leaves = devices.sum_rows(of_points, seen, jnp.moveaxis(deviations, 1, 0), has_aux=True)
        return loss, devices.gather(leaves, len(seen.weights))


@checked
def function_kl(
    model: Model,
    *,
    proxy: str | Covariance = "trajectory",
    num_draws: int = 30,
    num_networks: int = 1,
    first_epoch: int = 1,
    last_epoch: int | None = None,
    inner_loss: float = 0.1,
    inner_learning_rate: float = 1e-3,
    inner_max_steps: int = 500,
    coreset_batch_size: int | None = None,
    augment: Augmentation | None = None,
    free: str | Sequence[str] = ("inputs",),
) -> Objective:
    """FBPC's objective for one model (Kim et al. 2023, Algorithm 1 and Eq. 17).

    Args:
        model: a model with function values (a site ``"f"``).
        proxy: ``"trajectory"`` (Eq. 16), ``"isotropic"`` (unit variance), ``"linearized"`` (Eq. 11 to 13), or a proxy
            of ``pseudocoreset.proxies``.
        num_draws: S, draws of the function values per step.
        num_networks: pairs of an expert and a network trained on the coreset, over which each step averages; devices of
            a mesh share them, and those along its axis ``"data"`` the batches of each. One as published.
        first_epoch: T, the earliest epoch that an expert snapshot is taken from.
        last_epoch: the latest; the last there is by default.
        inner_loss: gamma; the network trained on the coreset stops at this mean loss.
        inner_learning_rate: Adam step size of that training.
        inner_max_steps: its cap, since a loss under augmentation may never come down to gamma.
        coreset_batch_size: B, coreset points used per step; all by default.
        augment: augmentation of coreset and data, one draw for both proxies; none by default.
        free: leaves of the coreset to differentiate.

    Raises:
        ValueError: for arguments out of range, or a model without function values.
    """
    if not model.has_function:
        raise ValueError(f"function_kl needs function values; the program {model.name!r} has no site 'f'")
    check_integer(num_draws, "num_draws")
    check_integer(num_networks, "num_networks")
    check_integer(first_epoch, "first_epoch", minimum=0)
    check_integer(inner_max_steps, "inner_max_steps")
    check_positive(inner_loss, "inner_loss")
    check_positive(inner_learning_rate, "inner_learning_rate")
    if coreset_batch_size is not None:
        check_integer(coreset_batch_size, "coreset_batch_size")
    free = check_free(free)
    covariance = resolve_covariance(proxy)
    bound = _FunctionKL(
        model=model,
        covariance=covariance,
        view=View(augment, coreset_batch_size),
        num_draws=num_draws,
        num_networks=num_networks,
        inner_loss=inner_loss,
        inner_learning_rate=inner_learning_rate,
        inner_max_steps=inner_max_steps,
        free=free,
    )
    settings = {
        **covariance.describe(),
        "num_draws": num_draws,
        "num_networks": num_networks,
        "first_epoch": first_epoch,
        "last_epoch": last_epoch,
        "inner_loss": inner_loss,
        "inner_learning_rate": inner_learning_rate,
        "inner_max_steps": inner_max_steps,
        "coreset_batch_size": coreset_batch_size,
        "augment": None if augment is None else augment.strategy,
    }
    window = SnapshotWindow(first_epoch, last_epoch, per_step=None if num_networks == 1 else num_networks)
    # The network trained on the coreset minimises a mean loss: nothing here determines the sum of the weights.
    return Objective("function_kl", model, bound.init, bound.gradient, window, settings, free, "kept")
