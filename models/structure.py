"""What a NumPyro program is made of, read off one abstract run of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions.transforms import biject_to

__all__ = [
    "FEATURES_SITE",
    "FUNCTION_SITE",
    "Site",
    "Structure",
    "class_log_probabilities",
    "datum_shape",
    "inspect_program",
    "is_factor",
    "scaled",
]

FUNCTION_SITE = "f"
FEATURES_SITE = "features"


@dataclass(frozen=True)
class Site:
    """A latent site: shape of its unconstrained and constrained values."""

    name: str
    unconstrained_shape: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True)
class Structure:
    """What one abstract run of the program reveals."""

    sites: tuple[Site, ...]
    observed: str
    num_classes: int | None
    function_ndim: int | None
    function_size: int | None
    num_features: int | None
    x: jax.ShapeDtypeStruct  # one datum, no leading axis
    y: jax.ShapeDtypeStruct


def is_factor(site: dict[str, Any]) -> bool:
    """Whether a site is a ``numpyro.factor``."""
    return isinstance(site["fn"], dist.Unit)


def scaled(log_prob: jax.Array, site: dict[str, Any]) -> jax.Array:
    """The log-probability of a site under the scale that NumPyro's handlers gave it."""
    return log_prob if site.get("scale") is None else log_prob * site["scale"]


def datum_shape(array: Any, argument: str) -> jax.ShapeDtypeStruct:
    """Shape and type of one datum of ``x`` or ``y``, as the program sees it.

    Raises:
        TypeError, ValueError: naming the argument, for what has no leading axis.
    """
    if not hasattr(array, "shape"):
        raise TypeError(f"{argument} must be an array with a leading axis over data; got {type(array).__name__}")
    if len(array.shape) < 1:
        raise ValueError(f"{argument} must have a leading axis over data; got a scalar")
    # Stored images are uint8; a program always sees them as floats.
    dtype = jnp.result_type(float) if argument == "x" else jax.dtypes.canonicalize_dtype(array.dtype)
    return jax.ShapeDtypeStruct(tuple(array.shape[1:]), dtype)


def inspect_program(program: Callable[..., Any], x: jax.ShapeDtypeStruct, y: jax.ShapeDtypeStruct) -> Structure:
    """Run the program once on shapes alone and read off its sites."""
    found: dict[str, Any] = {}
    n = 3

    def run(x: jax.Array, y: jax.Array) -> None:
        seeded = handlers.seed(program, jax.random.key(0))
        found["trace"] = handlers.trace(seeded).get_trace(x, y)
        trace = found["trace"]
        found["observed"] = [
            site for site in trace.values() if site["type"] == "sample" and site["is_observed"] and not is_factor(site)
        ]
        if len(found["observed"]) == 1:
            site = found["observed"][0]
            found["log_prob_shape"] = jnp.shape(site["fn"].log_prob(site["value"]))

    inputs, targets = jax.ShapeDtypeStruct((n, *x.shape), x.dtype), jax.ShapeDtypeStruct((n, *y.shape), y.dtype)
    try:
        jax.eval_shape(run, inputs, targets)
    except NotImplementedError as error:
        raise ValueError(
            "the program has a site that cannot be drawn from, as numpyro.distributions.ImproperUniform; give it a "
            "proper prior, without which the posterior of a few points need not exist"
        ) from error
    observed = found["observed"]
    if len(observed) != 1:
        names = [site["name"] for site in observed]
        raise ValueError(
            f"the program must have exactly one observed site, numpyro.sample(..., obs=y); found {len(observed)} "
            f"{names}"
        )
    if found["log_prob_shape"] != (n,):
        raise ValueError(
            f"the observed site {observed[0]['name']!r} must have one log-probability a datum, shape (n,); with n={n} "
            f"it has {found['log_prob_shape']}. Put it in numpyro.plate('data', x.shape[0]), vector targets under "
            ".to_event(1)"
        )
    frames = {frame.name for frame in observed[0]["cond_indep_stack"]}
    sites = []
    for name, site in found["trace"].items():
        if site["type"] != "sample" or site["is_observed"]:
            continue
        if frames & {frame.name for frame in site["cond_indep_stack"]}:
            raise ValueError(
                f"the latent site {name!r} is inside the plate over the data; a coreset needs parameters that all "
                "data share"
            )
        if site["fn"].is_discrete:
            raise ValueError(f"the latent site {name!r} is discrete; gradients need continuous sites")
        shape = tuple(jnp.shape(site["value"]))
        unconstrained = tuple(biject_to(site["fn"].support).inverse_shape(shape))
        sites.append(Site(name, unconstrained, shape, jnp.result_type(site["value"])))
    if not sites:
        raise ValueError("the program has no latent site; there is nothing to infer")
    function = found["trace"].get(FUNCTION_SITE)
    function_shape = None if function is None else tuple(jnp.shape(function["value"]))
    if function_shape is not None and (len(function_shape) not in (1, 2) or function_shape[0] != n):
        raise ValueError(f"the site 'f' must have shape (n,) or (n, d); with n={n} it has {function_shape}")
    # A site of another kind or shape is the program's own business until somebody asks for features.
    features = found["trace"].get(FEATURES_SITE, {"type": None})
    features_shape = tuple(jnp.shape(features["value"])) if features["type"] == "deterministic" else ()
    return Structure(
        sites=tuple(sites),
        observed=observed[0]["name"],
        num_classes=_support_size(observed[0]["fn"]),
        function_ndim=None if function_shape is None else len(function_shape),
        function_size=None if function_shape is None else (1 if len(function_shape) == 1 else function_shape[1]),
        num_features=features_shape[1] if features_shape[:1] == (n,) and len(features_shape) == 2 else None,
        x=x,
        y=y,
    )


def _support_size(distribution: dist.Distribution) -> int | None:
    if not getattr(distribution, "has_enumerate_support", False) or distribution.event_shape:
        return None
    return jax.eval_shape(lambda: distribution.enumerate_support(expand=False)).shape[0]


def class_log_probabilities(distribution: dist.Distribution, n: int) -> jax.Array:
    """(n, num_classes) log-probabilities of a distribution with finite support and batch shape (n,)."""
    if isinstance(distribution, dist.CategoricalLogits):
        return jax.nn.log_softmax(distribution.logits, axis=-1)
    values = distribution.enumerate_support(expand=False)
    return jnp.broadcast_to(distribution.log_prob(values).T, (n, values.shape[0]))
