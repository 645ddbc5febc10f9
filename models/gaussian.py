"""A Gaussian over the flattened unconstrained parameters of a model."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pseudocoreset.arguments import checked

__all__ = ["Gaussian"]


class Gaussian(NamedTuple):
    """N(mean, L L^T + D^T D) over a vector of p parameters (``Model.flatten``); a pytree.

    mean
        (p,).
    scale
        L: standard deviations, one () or (p,), or a lower triangular factor (p, p).
    deviations
        D (rank, p), None for no low-rank part.
    """

    mean: jax.Array
    scale: jax.Array
    deviations: jax.Array | None = None

    @classmethod
    @checked
    def from_covariance(cls, mean: jax.Array, covariance: jax.Array) -> Gaussian:
        """From a dense covariance (p, p)."""
        return cls(mean, jnp.linalg.cholesky(covariance))

    @property
    def covariance(self) -> jax.Array:
        """Dense covariance (p, p)."""
        if self.scale.ndim == 2:
            dense = self.scale @ self.scale.T
        else:
            dense = jnp.diag(jnp.broadcast_to(self.scale**2, self.mean.shape))
        return dense if self.deviations is None else dense + self.deviations.T @ self.deviations

    @checked
    def sample(self, key: jax.Array) -> jax.Array:
        """One draw (p,). The same key gives draws of two Gaussians from the same standard normal numbers."""
        noise_key, rank_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, self.mean.shape, self.mean.dtype)
        draw = self.mean + (self.scale @ noise if self.scale.ndim == 2 else self.scale * noise)
        if self.deviations is None:
            return draw
        return draw + jax.random.normal(rank_key, self.deviations.shape[:1], draw.dtype) @ self.deviations
