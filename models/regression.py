"""Regressions as NumPyro programs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from pseudocoreset.models.model import Model

__all__ = ["logistic_regression"]


def logistic_regression(data: Any = None, *, num_classes: int | None = None, prior_scale: float = 1.0) -> Model:
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
    if not prior_scale > 0:
        raise ValueError(f"prior_scale must be positive; got {prior_scale}")
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

    model = Model.from_numpyro(program, name="logistic_regression")
    return model if data is None else model.bind(data.train.x, data.train.y)
