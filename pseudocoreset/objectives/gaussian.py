"""The three divergences between Gaussians in closed form, differentiable."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pseudocoreset.models import Gaussian

__all__ = ["kl_divergence", "squared_wasserstein"]


def kl_divergence(p: Gaussian, q: Gaussian) -> jax.Array:
    """KL(p || q) = 1/2 [tr(Q^-1 P) + (m_q - m_p)^T Q^-1 (m_q - m_p) - k + ln det Q - ln det P]."""
    if p.scale.ndim < 2 and q.scale.ndim < 2:
        left, right = (jnp.broadcast_to(g.scale, g.mean.shape) for g in (p, q))
        ratio, shift = left / right, (q.mean - p.mean) / right
        return 0.5 * jnp.sum(ratio**2 + shift**2 - 1.0 - 2.0 * jnp.log(ratio))
    left, right = _factor(p), _factor(q)
    solved = jax.scipy.linalg.solve_triangular(right, left, lower=True)
    shift = jax.scipy.linalg.solve_triangular(right, q.mean - p.mean, lower=True)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(right)) - jnp.log(jnp.diagonal(left)))
    return 0.5 * (jnp.sum(solved**2) + shift @ shift - len(p.mean) + log_det)


def squared_wasserstein(p: Gaussian, q: Gaussian) -> jax.Array:
    """W_2^2 = |m_p - m_q|^2 + tr P + tr Q - 2 tr (Q^1/2 P Q^1/2)^1/2.

    With factors P = A A^T and Q = B B^T the last trace is the nuclear norm of B^T A.
    """
    if p.scale.ndim < 2 and q.scale.ndim < 2:
        left, right = (jnp.broadcast_to(g.scale, g.mean.shape) for g in (p, q))
        return jnp.sum((p.mean - q.mean) ** 2 + (left - right) ** 2)
    left, right = _factor(p), _factor(q)
    overlap = jnp.sum(jnp.linalg.svd(right.T @ left, compute_uv=False))
    return jnp.sum((p.mean - q.mean) ** 2) + jnp.sum(left**2) + jnp.sum(right**2) - 2 * overlap


def _factor(gaussian: Gaussian) -> jax.Array:
    scale = gaussian.scale
    return scale if scale.ndim == 2 else jnp.diag(jnp.broadcast_to(scale, gaussian.mean.shape))
