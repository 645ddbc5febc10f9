"""Inverse mass matrices and their units, and target acceptance rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from pseudocoreset.arguments import described
from pseudocoreset.validation import check_positive

if TYPE_CHECKING:
    from blackjax.types import Array, ArrayTree

__all__ = ["Factor", "check_acceptance_rate", "given_metric", "into_units", "metric_or_ones", "out_of_units"]


def check_acceptance_rate(rate: Any) -> None:
    """Raise ``ValueError`` unless it lies between 0 and 1."""
    if check_positive(rate, "target_acceptance_rate") >= 1:
        raise ValueError(f"target_acceptance_rate must lie between 0 and 1; got {rate}")


def given_metric(matrix: Any, num_params: int, kernel: str, *, takes_dense: bool = False) -> np.ndarray | None:
    """A positive diagonal (d,) or a symmetric positive definite matrix (d, d); None where none is given.

    Args:
        matrix: as given.
        num_params: d.
        kernel: the kernel's name, for the error.
        takes_dense: whether the kernel takes a matrix.

    Raises:
        TypeError, ValueError: naming ``inverse_mass_matrix``.
    """
    if matrix is None:
        return None
    try:
        array = np.asarray(matrix, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"inverse_mass_matrix must be an array of numbers; got {described(matrix)}") from error
    if array.shape not in ((num_params,), (num_params, num_params)):
        raise ValueError(
            f"inverse_mass_matrix has shape {array.shape}; wanted ({num_params},) or ({num_params}, {num_params})"
        )
    if array.ndim == 1:
        valid = bool(np.all(np.isfinite(array) & (array > 0)))
    else:
        valid = bool(np.all(np.isfinite(array))) and np.allclose(array, array.T)
        valid = valid and bool(np.all(np.linalg.eigvalsh(array) > 0))
    if not valid:
        raise ValueError("inverse_mass_matrix must be positive: a positive diagonal, or symmetric positive definite")
    if array.ndim == 2 and not takes_dense:
        raise ValueError(f"inverse_mass_matrix: kernel {kernel!r} takes a diagonal, shape ({num_params},)")
    return array


def metric_or_ones(matrix: np.ndarray | None, num_params: int, step_size: float | None) -> dict[str, np.ndarray]:
    """The inverse mass matrix as tuning: ones where the step size alone is given, nothing where both are adapted."""
    if matrix is None and step_size is None:
        return {}
    return {"inverse_mass_matrix": np.ones(num_params) if matrix is None else matrix}


class Factor(NamedTuple):
    """A dense inverse mass by its factor.

    matrix
        L (d, d) with M^-1 = L L^T, of the position as the vector that ``ravel_pytree`` makes of it.
    """

    matrix: Array


def into_units(gradient: ArrayTree, inverse_mass: ArrayTree | None) -> ArrayTree:
    """L^T times a gradient, M^-1 = L L^T: that of the log density in L^-1 theta."""
    if inverse_mass is None:
        return gradient
    if isinstance(inverse_mass, Factor):
        return _times(inverse_mass.matrix.T, gradient)
    return jax.tree.map(lambda leaf, inverse: jnp.sqrt(inverse) * leaf, gradient, inverse_mass)


def out_of_units(move: ArrayTree, inverse_mass: ArrayTree | None) -> ArrayTree:
    """L times a move of L^-1 theta, M^-1 = L L^T: that of theta."""
    if inverse_mass is None:
        return move
    if isinstance(inverse_mass, Factor):
        return _times(inverse_mass.matrix, move)
    return jax.tree.map(lambda leaf, inverse: jnp.sqrt(inverse) * leaf, move, inverse_mass)


def _times(matrix: jax.Array, tree: ArrayTree) -> ArrayTree:
    flat, unravel = ravel_pytree(tree)
    return unravel((matrix @ flat).astype(flat.dtype))
