"""What turns stored arrays into model inputs, and back into pictures."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from pseudocoreset.arguments import checked_class, described
from pseudocoreset.data.sources.records import Inputs

__all__ = ["ZCA_EPSILON", "Preprocessing", "are_same", "channel_moments", "fit_preprocessing"]

# Moments of the same data differ in their last digits from one machine to another.
SAME_WITHIN = 1e-3

ZCA_EPSILON = 0.1
"""What is added to the eigenvalues of the covariance before their inverse root, as the MTT family does."""

_ARRAY_NAMES = ("mean", "std", "zca_mean", "zca_matrix")
_CHUNK = 5000


# The arrays are arguments and not captured constants: a compiler would embed (and fold) a 3072 x 3072 matrix.
@jax.jit
def _forward(
    raw: jax.Array,
    scale: jax.Array,
    mean: jax.Array | None,
    std: jax.Array | None,
    zca_mean: jax.Array | None,
    zca_matrix: jax.Array | None,
) -> jax.Array:
    x = raw.astype(jnp.float32) * scale
    if mean is not None and std is not None:
        x = (x - mean) / std
    if zca_mean is not None and zca_matrix is not None:
        flat = x.reshape(x.shape[0], -1) - zca_mean
        # The default precision of accelerators keeps about 10 bits of a product, too few for whitening.
        x = jnp.matmul(flat, zca_matrix, precision=jax.lax.Precision.HIGHEST).reshape(x.shape)
    return x


@jax.jit
def _backward(
    x: jax.Array,
    mean: jax.Array | None,
    std: jax.Array | None,
    zca_mean: jax.Array | None,
    zca_inverse: jax.Array | None,
) -> jax.Array:
    x = x.astype(jnp.float32)
    if zca_mean is not None and zca_inverse is not None:
        flat = jnp.matmul(x.reshape(x.shape[0], -1), zca_inverse, precision=jax.lax.Precision.HIGHEST)
        x = (flat + zca_mean).reshape(x.shape)
    if mean is not None and std is not None:
        x = x * std + mean
    return x


def _frozen(name: str, value: Any, rank: int) -> np.ndarray | None:
    if value is None:
        return None
    # Moments of values far from zero need their doubles: float32 would move the mean by many deviations.
    is_double = name in ("mean", "std") and getattr(value, "dtype", None) == np.float64
    try:
        array = np.array(value, dtype=np.float64 if is_double else np.float32)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold real numbers; got {described(value)}") from error
    if array.ndim != rank:
        raise ValueError(f"{name} must have {rank} axes, got shape {array.shape}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite, got {array}")
    array.setflags(write=False)
    return array


@checked_class
@dataclasses.dataclass(frozen=True, eq=False)
class Preprocessing:
    """Turns stored arrays into model inputs: scale, per-channel normalisation, ZCA whitening.

    `x = W (flatten((scale * raw - mean) / std) - zca_mean)`, each step only where its arrays are given. `W`
    is the symmetric `U diag(1 / sqrt(s + eps)) U^T` of the covariance `U diag(s) U^T` of the normalised
    train data.

    Args:
        scale: multiplied first, e.g. 1/255 for uint8 images.
        mean: float32 or float64, one entry a channel (the trailing axis of the data) or one for all; with `std` or
            not at all.
        std: float32 or float64, the shape of `mean`, positive.
        zca_mean: float32, one entry a feature of the flattened datum; with `zca_matrix` or not at all.
        zca_matrix: float32, square, features x features.
        is_known: False for arrays that came as model inputs, whose preprocessing nobody told: it is compared with none.

    Raises:
        ValueError: an array has the wrong shape, comes without its partner, is not finite, or `std` is not
            positive.
    """

    scale: float = 1.0
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    zca_mean: np.ndarray | None = None
    zca_matrix: np.ndarray | None = None
    is_known: bool = True

    def __post_init__(self) -> None:
        scale = float(self.scale)
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be positive and finite, got {self.scale}")
        object.__setattr__(self, "scale", scale)
        for name, rank in zip(_ARRAY_NAMES, (1, 1, 1, 2), strict=True):
            object.__setattr__(self, name, _frozen(name, getattr(self, name), rank))
        for first, second in (("mean", "std"), ("zca_mean", "zca_matrix")):
            if (getattr(self, first) is None) != (getattr(self, second) is None):
                raise ValueError(f"{first} and {second} are given together or not at all")
        if self.mean is not None and self.std is not None:
            if self.mean.shape != self.std.shape:
                raise ValueError(f"mean and std differ in shape: {self.mean.shape} and {self.std.shape}")
            if np.any(self.std <= 0):
                raise ValueError(f"std must be positive, got {self.std}")
        if self.zca_mean is not None and self.zca_matrix is not None:
            size = self.zca_mean.shape[0]
            if self.zca_matrix.shape != (size, size):
                raise ValueError(f"zca_matrix must be {(size, size)} like zca_mean, got {self.zca_matrix.shape}")

    def _check(self, name: str, array: ArrayLike) -> None:
        shape = np.shape(array)
        if len(shape) < 2:
            raise ValueError(f"{name} must be (n, *feature_shape), got shape {shape}")
        if self.mean is not None and self.mean.shape[0] not in (1, shape[-1]):
            raise ValueError(f"{name} {shape} has {shape[-1]} channels, mean has {self.mean.shape[0]}")
        num_features = math.prod(shape[1:])
        if self.zca_mean is not None and num_features != self.zca_mean.shape[0]:
            raise ValueError(f"{name} {shape} has {num_features} features, ZCA {self.zca_mean.shape[0]}")

    def apply(self, raw: ArrayLike) -> jax.Array:
        """Turn stored values into model inputs; may be called under `jax.jit`.

        Arrays of float64 or of integers of 32 bits and more are centred in float64, before they are rounded: all but
        those that `jax.jit` traces.

        Args:
            raw: (n, *feature_shape), any real dtype, e.g. uint8 images.

        Returns:
            (n, *feature_shape) float32.

        Raises:
            ValueError: the shape does not fit the channels or features of the preprocessing.
        """
        self._check("raw", raw)
        scale, mean, std = np.float32(self.scale), self.mean, self.std
        if mean is not None and std is not None:
            if not isinstance(raw, jax.Array):
                raw = np.asarray(raw)
            # float32 holds all floats of its own size, but not all integers of that.
            is_wide = raw.dtype.itemsize > {"i": 2, "u": 2, "f": 4}.get(raw.dtype.kind, 8)
            if is_wide and not isinstance(raw, jax.core.Tracer):
                raw = ((np.asarray(raw) * self.scale - mean) / std).astype(np.float32)
                scale, mean, std = np.float32(1.0), None, None
            else:
                mean, std = mean.astype(np.float32), std.astype(np.float32)
        return _forward(jnp.asarray(raw), scale, mean, std, self.zca_mean, self.zca_matrix)

    def apply_in_chunks(self, raw: Inputs) -> np.ndarray:
        """Do what `apply` does, a few thousand data at a time, and return a numpy array.

        Args:
            raw: (n, *feature_shape).

        Returns:
            (n, *feature_shape) float32.

        Raises:
            ValueError: as `apply`.
        """
        self._check("raw", raw[:0])
        x = np.empty(raw.shape, np.float32)
        for start in range(0, len(raw), _CHUNK):
            # Inside somebody's jit too this is a computation on concrete arrays.
            with jax.ensure_compile_time_eval():
                x[start : start + _CHUNK] = self.apply(raw[start : start + _CHUNK])
        return x

    @functools.cached_property
    def _zca_inverse(self) -> np.ndarray | None:
        if self.zca_matrix is None:
            return None
        return np.linalg.inv(self.zca_matrix.astype(np.float64)).astype(np.float32)

    def invert(self, x: ArrayLike) -> jax.Array:
        """Undo whitening and normalisation, for pictures; `invert(apply(raw))` is `scale * raw`.

        Args:
            x: (n, *feature_shape) model inputs.

        Returns:
            (n, *feature_shape) float32, in [0, 1] for what came from images; not clipped.

        Raises:
            ValueError: the shape does not fit the channels or features of the preprocessing.
        """
        self._check("x", x)
        mean, std = (None if entry is None else entry.astype(np.float32) for entry in (self.mean, self.std))
        return _backward(jnp.asarray(x), mean, std, self.zca_mean, self._zca_inverse)

    @functools.cached_property
    def summary(self) -> dict[str, Any] | None:
        """What tells two preprocessings apart, fit for JSON; None where it is not known."""
        if not self.is_known:
            return None
        found: dict[str, Any] = {"scale": self.scale}
        if self.mean is not None and self.std is not None:
            found |= {"mean": self.mean.tolist(), "std": self.std.tolist()}
        if self.zca_mean is not None and self.zca_matrix is not None:
            matrix = self.zca_matrix
            numbers = (np.linalg.norm(self.zca_mean), np.linalg.norm(matrix), np.trace(matrix), matrix[0].sum())
            found["zca"] = [len(self.zca_mean), *map(float, numbers)]
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that are in use, by name; the other half is `metadata`."""
        return {name: getattr(self, name) for name in _ARRAY_NAMES if getattr(self, name) is not None}

    def metadata(self) -> dict[str, Any]:
        """Return what is no array, fit for JSON: the scale, and the names of the arrays that belong to it."""
        unknown = {} if self.is_known else {"is_known": False}
        return {"scale": self.scale, "arrays": sorted(self.arrays()), **unknown}

    @classmethod
    def from_parts(cls, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> "Preprocessing":
        """Put together again what `arrays` and `metadata` took apart.

        Args:
            arrays: as `arrays()` returned them.
            metadata: as `metadata()` returned it.

        Returns:
            A preprocessing with the same values, bit for bit.

        Raises:
            ValueError: a part is missing, is unknown, or does not fit the others.
        """
        if "scale" not in metadata or "arrays" not in metadata:
            raise ValueError(f"metadata must have 'scale' and 'arrays', got {sorted(metadata)}")
        if sorted(arrays) != sorted(metadata["arrays"]) or not set(arrays) <= set(_ARRAY_NAMES):
            raise ValueError(f"metadata speaks of the arrays {metadata['arrays']}, got {sorted(arrays)}")
        return cls(scale=metadata["scale"], is_known=metadata.get("is_known", True), **arrays)

    def __repr__(self) -> str:
        if not self.is_known:
            return "Preprocessing(not known)"
        parts = [f"scale={self.scale:.6g}"]
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None:
                shown = ", ".join(f"{entry:.4g}" for entry in value[:4]) + (", ..." if len(value) > 4 else "")
                parts.append(f"{name}=({shown})")
        if self.zca_mean is not None:
            parts.append(f"zca={len(self.zca_mean)} features")
        return f"Preprocessing({', '.join(parts)})"


def are_same(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether two preprocessings, given by their `summary`, make the same model inputs; yes where one is not known."""
    if one is None or other is None:
        return True
    if one.keys() != other.keys():
        return False
    for name in one:
        first, second = np.atleast_1d(one[name]), np.atleast_1d(other[name])
        # Means are compared in deviations: a shift of many of these is small beside the mean of timestamps.
        size = np.asarray(one["std"]) if name == "mean" else np.abs(first)
        if first.shape != second.shape or np.any(np.abs(first - second) > SAME_WITHIN * size):
            return False
    return True


def channel_moments(raw: np.ndarray, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard deviation of every channel of `scale * raw`.

    A channel that never varies (an intercept column) gets mean 0 and deviation 1: normalising leaves it as
    it is.

    Args:
        raw: (n, *feature_shape), n >= 1; the trailing axis is the channel.
        scale: multiplied first.

    Returns:
        Mean and population standard deviation, one entry a channel: float32, or float64 where raw is.
    """
    # Two passes: the difference of two large sums would lose the deviation of data far from zero.
    axes = tuple(range(raw.ndim - 1))
    count = raw.size // raw.shape[-1]
    chunks = range(0, len(raw), _CHUNK)
    total = sum(raw[i : i + _CHUNK].sum(axis=axes, dtype=np.float64) for i in chunks)
    mean = np.asarray(total) / count
    squares = sum(np.square(raw[i : i + _CHUNK] - mean).sum(axis=axes) for i in chunks)
    std = np.sqrt(np.asarray(squares) / count)
    flat = raw.reshape(-1, raw.shape[-1])
    varies = flat.max(axis=0) > flat.min(axis=0)
    mean, std = np.where(varies, mean * scale, 0.0), np.where(varies, std * scale, 1.0)
    dtype = np.float64 if raw.dtype == np.float64 else np.float32
    return mean.astype(dtype), std.astype(dtype)


def fit_preprocessing(
    raw: Inputs,
    *,
    scale: float = 1.0,
    mean: Sequence[float] | np.ndarray | None = None,
    std: Sequence[float] | np.ndarray | None = None,
    zca: bool = False,
) -> Preprocessing:
    """Build a preprocessing; with `zca`, fit the whitening on the (normalised) training data.

    `W = U diag(1 / sqrt(s + eps)) U^T` with `U diag(s) U^T` the unbiased covariance of the flattened data and
    eps = 0.1, as in kornia. For d features it takes O(n d^2 + d^3) operations and a few d x d float64 arrays:
    one or two minutes for CIFAR (d = 3,072), but 64 times that and 5 GiB for Tiny-ImageNet (d = 12,288).

    Args:
        raw: (n, *feature_shape) training data.
        scale: multiplied first.
        mean: one entry a channel, or None.
        std: one entry a channel, or None.
        zca: whether to whiten.

    Returns:
        The preprocessing.

    Raises:
        ValueError: `zca` with fewer than 2 training data.
    """
    plain = Preprocessing(
        scale=scale,
        mean=mean if isinstance(mean, np.ndarray | None) else np.asarray(mean, np.float32),
        std=std if isinstance(std, np.ndarray | None) else np.asarray(std, np.float32),
    )
    if not zca:
        return plain
    num_data = len(raw)
    if num_data < 2:
        raise ValueError(f"zca needs at least 2 training data to fit a covariance, got {num_data}")

    def flat_chunks() -> Iterator[np.ndarray]:
        for start in range(0, num_data, _CHUNK):
            chunk = np.asarray(plain.apply(raw[start : start + _CHUNK]))
            yield chunk.reshape(len(chunk), -1)

    num_features = int(np.prod(raw.shape[1:]))
    zca_mean = np.zeros(num_features)
    for chunk in flat_chunks():
        zca_mean += chunk.sum(axis=0, dtype=np.float64)
    zca_mean = (zca_mean / num_data).astype(np.float32)
    covariance = np.zeros((num_features, num_features))
    for chunk in flat_chunks():
        centred = chunk - zca_mean
        covariance += centred.T @ centred
    covariance /= num_data - 1
    eigenvalues, vectors = np.linalg.eigh(covariance)
    # Rounding can leave eigenvalues of a singular covariance a little below zero.
    root = 1.0 / np.sqrt(np.maximum(eigenvalues, 0.0) + ZCA_EPSILON)
    matrix = (vectors * root) @ vectors.T
    return dataclasses.replace(plain, zca_mean=zca_mean, zca_matrix=matrix)
