"""Regressions and the Gaussian location model as NumPyro programs, with conjugate posteriors where they exist."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from pseudocoreset.arguments import checked
from pseudocoreset.models.gaussian import Gaussian
from pseudocoreset.models.model import Model
from pseudocoreset.rows import ModelInputs

if TYPE_CHECKING:
    from pseudocoreset.data import Dataset

__all__ = ["gaussian_location", "linear_regression", "logistic_regression", "poisson_regression"]


def _positive(value: float, argument: str) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{argument} must be a positive number; got {value!r}")
    return float(value)


def _bound(model: Model, data: Dataset | None) -> Model:
    return model if data is None else model.bind(ModelInputs.of(data.train), data.train.y)


@checked
def logistic_regression(
    data: Dataset | None = None, *, num_classes: int | None = None, prior_scale: float = 1.0
) -> Model:
    """Logistic regression, binary or softmax, with Gaussian priors on coefficients and intercept.

    Two classes give one coefficient vector and a Bernoulli likelihood, more a softmax with one vector a class.
    Inputs of any shape are flattened.

    Args:
        data: ``Dataset`` that the number of classes and the shape of an input are taken from.
        num_classes: number of classes, where ``data`` is not given.
        prior_scale: standard deviation of coefficients and intercept, positive.

    Raises:
        ValueError: if neither ``data`` nor ``num_classes`` says how many classes there are, or if
            ``prior_scale`` is not positive.
    """
    classes = num_classes if num_classes is not None else getattr(data, "num_classes", None)
    if classes is None or classes < 2:
        raise ValueError(f"num_classes must be at least 2, given here or by a classification data set; got {classes}")
    prior_scale = _positive(prior_scale, "prior_scale")
    outputs = 1 if classes == 2 else classes

    def program(x: jax.Array, y: jax.Array | None = None) -> None:
        flat = x.reshape(x.shape[0], -1)
        prior = dist.Normal(0.0, prior_scale)
        coefficients = numpyro.sample("coefficients", prior.expand((flat.shape[1], outputs)).to_event(2))
        intercept = numpyro.sample("intercept", prior.expand((outputs,)).to_event(1))
        f = numpyro.deterministic("f", flat @ coefficients + intercept)
        likelihood = dist.Bernoulli(logits=jnp.squeeze(f, -1)) if outputs == 1 else dist.Categorical(logits=f)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", likelihood, obs=y)

    return _bound(Model.from_numpyro(program, name="logistic_regression"), data)


@checked
def poisson_regression(data: Dataset | None = None, *, prior_scale: float = 1.0) -> Model:
    """Poisson regression of counts with a log link, Gaussian priors on coefficients and intercept.

    Args:
        data: ``Dataset`` of counts (float targets) that the shape of an input is taken from.
        prior_scale: standard deviation of coefficients and intercept, positive.

    Raises:
        ValueError: if ``prior_scale`` is not positive.
    """
    prior_scale = _positive(prior_scale, "prior_scale")

    def program(x: jax.Array, y: jax.Array | None = None) -> None:
        flat = x.reshape(x.shape[0], -1)
        prior = dist.Normal(0.0, prior_scale)
        coefficients = numpyro.sample("coefficients", prior.expand((flat.shape[1],)).to_event(1))
        intercept = numpyro.sample("intercept", prior)
        f = numpyro.deterministic("f", flat @ coefficients + intercept)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Poisson(jnp.exp(f)), obs=y)

    return _bound(Model.from_numpyro(program, name="poisson_regression"), data)


@checked
def linear_regression(
    data: Dataset | None = None,
    *,
    noise_scale: float | None = None,
    prior_mean: float = 0.0,
    prior_scale: float = 1.0,
    intercept: bool = True,
) -> Model:
    """Linear regression with Gaussian noise and Gaussian priors; conjugate where the noise is known.

    Args:
        data: ``Dataset`` of real targets that the shape of an input is taken from.
        noise_scale: standard deviation of the noise; None infers it with a half-normal(1) prior.
        prior_mean: of coefficients and intercept.
        prior_scale: their standard deviation, positive.
        intercept: whether there is one; leave it out where the inputs hold a column of ones.

    Raises:
        ValueError: if ``noise_scale`` or ``prior_scale`` is not positive.
    """
    prior_scale = _positive(prior_scale, "prior_scale")
    known = None if noise_scale is None else _positive(noise_scale, "noise_scale")

    def program(x: jax.Array, y: jax.Array | None = None) -> None:
        flat = x.reshape(x.shape[0], -1)
        prior = dist.Normal(prior_mean, prior_scale)
        coefficients = numpyro.sample("coefficients", prior.expand((flat.shape[1],)).to_event(1))
        f = flat @ coefficients
        if intercept:
            f = f + numpyro.sample("intercept", prior)
        f = numpyro.deterministic("f", f)
        noise = numpyro.sample("noise", dist.HalfNormal(1.0)) if known is None else known
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(f, noise), obs=y)

    def conjugate(x: jax.Array, y: jax.Array, weights: jax.Array) -> Gaussian:
        assert known is not None
        flat = x.reshape(x.shape[0], -1)
        design = jnp.concatenate([flat, jnp.ones_like(flat[:, :1])], axis=1) if intercept else flat
        weighted = design.T * (weights / known**2)
        precision = weighted @ design + jnp.eye(design.shape[1], dtype=design.dtype) / prior_scale**2
        covariance = jnp.linalg.inv(precision)
        mean = covariance @ (weighted @ y + prior_mean / prior_scale**2)
        return Gaussian.from_covariance(mean, (covariance + covariance.T) / 2)

    model = Model.from_numpyro(program, name="linear_regression")
    return _bound(model if known is None else replace(model, conjugate=conjugate), data)


@checked
def gaussian_location(data: Dataset | None = None, *, noise_scale: float = 1.0, prior_scale: float = 1.0) -> Model:
    """Data x_i ~ N(theta, noise_scale^2 I) with an unknown mean theta ~ N(0, prior_scale^2 I); conjugate.

    The program observes its inputs; targets have no part in it (``Dataset.from_arrays(x)``).

    Args:
        data: ``Dataset`` that the shape of a datum is taken from.
        noise_scale: standard deviation of the data, positive.
        prior_scale: standard deviation of the prior, positive.

    Raises:
        ValueError: if a scale is not positive.
    """
    noise_scale, prior_scale = _positive(noise_scale, "noise_scale"), _positive(prior_scale, "prior_scale")

    def program(x: jax.Array, y: jax.Array | None = None) -> None:
        del y
        flat = x.reshape(x.shape[0], -1)
        theta = numpyro.sample("theta", dist.Normal(0.0, prior_scale).expand((flat.shape[1],)).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.Normal(theta, noise_scale).to_event(1), obs=flat)

    def conjugate(x: jax.Array, y: jax.Array, weights: jax.Array) -> Gaussian:
        del y
        flat = x.reshape(x.shape[0], -1)
        variance = 1.0 / (1.0 / prior_scale**2 + jnp.sum(weights) / noise_scale**2)
        mean = variance * (weights @ flat) / noise_scale**2
        return Gaussian(mean, jnp.full_like(mean, jnp.sqrt(variance)))

    return _bound(replace(Model.from_numpyro(program, name="gaussian_location"), conjugate=conjugate), data)
