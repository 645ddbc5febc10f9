"""``Model``: everything a coreset or a sampler needs, derived from one NumPyro program.

A program ``program(x, y=None)`` with one observed site inside a plate over the data is the only thing that a
user writes. Densities are evaluated by running it under NumPyro's own effect handlers, so they cannot drift
from it; under ``jit`` the handlers cost nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.distributions.transforms import biject_to

from pseudocoreset.models.gaussian import Gaussian

__all__ = ["Model", "Params"]

Params = dict[str, jax.Array]
FUNCTION_SITE = "f"
FEATURES_SITE = "features"


@dataclass(frozen=True)
class _Site:
    """A latent site: shape of its unconstrained and constrained values."""

    name: str
    unconstrained_shape: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True)
class _Structure:
    """What one abstract run of the program reveals."""

    sites: tuple[_Site, ...]
    observed: str
    num_classes: int | None
    function_ndim: int | None
    function_size: int | None
    num_features: int | None
    x: jax.ShapeDtypeStruct  # one datum, no leading axis
    y: jax.ShapeDtypeStruct


def _is_factor(site: dict[str, Any]) -> bool:
    return isinstance(site["fn"], dist.Unit)


def _scaled(log_prob: jax.Array, site: dict[str, Any]) -> jax.Array:
    return log_prob if site.get("scale") is None else log_prob * site["scale"]


@dataclass(frozen=True, eq=False)
class Model:
    """A Bayesian model as a NumPyro program, with the pure functions derived from it.

    Build it with ``Model.from_numpyro(program)`` or ``bnn(network, data)``. Parameters are a flat dictionary
    ``{site: array}`` of *unconstrained* values; ``constrain`` maps them to the values the program sees.
    ``bind`` fixes the shape of a datum; ``sample`` and the ``fit_*`` functions call it themselves.

    Attributes:
        program: ``program(x, y=None)`` with one observed site in a plate over the data.
        is_network: made by ``bnn``.
        name: shown in logs and saved with coresets.
        conjugate: ``(x, y, weights) -> Gaussian``, the exact posterior where it is a Gaussian, else None.
    """

    program: Callable[..., Any]
    is_network: bool = False
    name: str = "model"
    initializer: Callable[[jax.Array], Params] | None = None
    structure: _Structure | None = None
    conjugate: Callable[[jax.Array, jax.Array, jax.Array], Gaussian] | None = None

    @classmethod
    def from_numpyro(cls, program: Callable[..., Any], *, name: str | None = None) -> Model:
        """A model from any NumPyro program.

        Args:
            program: ``program(x, y=None)``; ``x`` (n, ...) and ``y`` (n, ...) arrays. It has exactly one observed
                site, whose log-probability is one number a datum, and latent sites shared by all data whose
                priors do not depend on the values of ``x``. A deterministic site ``"f"`` of shape (n,) or (n, d),
                through which the parameters act on the likelihood, gives it function values; one ``"features"`` of
                shape (n, d) gives it features, which distribution matching compares.
            name: shown in logs; the program's own name by default.

        Raises:
            TypeError: if ``program`` is not callable.
        """
        if not callable(program):
            raise TypeError(f"program must be a callable program(x, y=None); got {type(program).__name__}")
        return cls(program=program, name=str(name or getattr(program, "__name__", "model")))

    def bind(self, x: ArrayLike | jax.ShapeDtypeStruct, y: ArrayLike | jax.ShapeDtypeStruct) -> Model:
        """The same model with the shape of one datum fixed.

        Args:
            x: inputs (n, *feature_shape), or their shapes.
            y: targets (n, ...), or their shapes; hard ones, not class probabilities.

        Raises:
            ValueError: if the program does not fit the description in ``from_numpyro`` or these data.
        """
        x_shape, y_shape = _datum_shape(x, "x"), _datum_shape(y, "y")
        if self.structure is not None:
            if self.structure.x.shape != x_shape.shape:
                raise ValueError(
                    f"x has features of shape {x_shape.shape}; this model was made for {self.structure.x.shape}"
                )
            return self
        bound = replace(self, structure=_inspect(self.program, x_shape, y_shape))
        if bound.has_function and not self.is_network:
            bound._check_function_is_used()
        return bound

    @property
    def is_bound(self) -> bool:
        """Whether the shape of a datum is known."""
        return self.structure is not None

    @property
    def _bound(self) -> _Structure:
        if self.structure is None:
            raise ValueError("the model does not know the shape of its data yet; call model.bind(x, y) first")
        return self.structure

    @property
    def num_params(self) -> int:
        """Number of unconstrained parameters."""
        return sum(math.prod(site.unconstrained_shape) for site in self._bound.sites)

    @property
    def has_function(self) -> bool:
        """Whether the program has a deterministic site ``"f"``."""
        return self._bound.function_ndim is not None

    @property
    def num_outputs(self) -> int | None:
        """Width d of the function values, None without a site ``"f"``."""
        return self._bound.function_size

    @property
    def has_features(self) -> bool:
        """Whether the program has a deterministic site ``"features"`` of shape (n, d)."""
        return self._bound.num_features is not None

    @property
    def num_classes(self) -> int | None:
        """Number of values of the observed site if they are finitely many, else None."""
        return self._bound.num_classes

    def init(self, key: jax.Array) -> Params:
        """Starting parameters: the network's initialiser, or uniform(-2, 2) on the unconstrained scale.

        Args:
            key: one typed key.

        Returns:
            ``{site: array}`` of unconstrained values.
        """
        if self.initializer is not None:
            return self.initializer(key)
        keys = jax.random.split(key, len(self._bound.sites))
        return {
            site.name: jax.random.uniform(k, site.unconstrained_shape, site.dtype, -2.0, 2.0)
            for k, site in zip(keys, self._bound.sites, strict=True)
        }

    @functools.partial(jax.jit, static_argnums=0)
    def log_prior(self, params: Params) -> jax.Array:
        """Log prior density of unconstrained parameters, log-determinant of the constraint included; scalar."""
        trace, log_det = self._trace(params, *self._placeholders(1))
        total = log_det
        for site in trace.values():
            if site["type"] == "sample" and (not site["is_observed"] or _is_factor(site)):
                total = total + jnp.sum(_scaled(site["fn"].log_prob(site["value"]), site))
        return total

    @functools.partial(jax.jit, static_argnums=0)
    def log_likelihood(self, params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        """Log-likelihood of every datum.

        Args:
            params: unconstrained parameters.
            x: inputs (n, *feature_shape).
            y: targets (n, ...), or class probabilities (n, num_classes), scored by their cross-entropy.

        Returns:
            Array (n,).
        """
        trace, _ = self._trace(params, x, self._hard(y, x.shape[0]))
        return self._score(trace, y)

    @functools.partial(jax.jit, static_argnums=0)
    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        """Function values, the program's site ``"f"``.

        Args:
            params: unconstrained parameters.
            x: inputs (n, *feature_shape).

        Returns:
            Array (n, d).

        Raises:
            ValueError: if the program has no site ``"f"``.
        """
        self._require_function()
        _, y = self._placeholders(x.shape[0])
        trace, _ = self._trace(params, x, y)
        f = trace[FUNCTION_SITE]["value"]
        return f[:, None] if f.ndim == 1 else f

    @functools.partial(jax.jit, static_argnums=0)
    def features(self, params: Params, x: jax.Array) -> jax.Array:
        """Features, the program's site ``"features"``: of a network what its last layer is applied to.

        Args:
            params: unconstrained parameters.
            x: inputs (n, *feature_shape).

        Returns:
            Array (n, d).

        Raises:
            ValueError: if the program has no such site.
        """
        self._require_features()
        _, y = self._placeholders(x.shape[0])
        trace, _ = self._trace(params, x, y)
        return trace[FEATURES_SITE]["value"]

    @functools.partial(jax.jit, static_argnums=0)
    def function_log_likelihood(self, params: Params, f: jax.Array, y: jax.Array) -> jax.Array:
        """Log-likelihood of every datum given its function value, log p(y | f).

        Args:
            params: unconstrained parameters of the likelihood (a noise scale, say); sites that act through ``f``
                only may be left out.
            f: function values (n, d).
            y: targets (n, ...), or class probabilities (n, num_classes).

        Returns:
            Array (n,).
        """
        return self._score(self._function_trace(params, f, y), y)

    @functools.partial(jax.jit, static_argnums=0)
    def function_probabilities(self, params: Params, f: jax.Array) -> jax.Array:
        """Class probabilities (n, num_classes) given function values ``f`` (n, d); see ``function_log_likelihood``."""
        observed = self._function_trace(params, f, None)[self._bound.observed]
        return jnp.exp(_class_log_probabilities(observed["fn"], f.shape[0]))

    @functools.partial(jax.jit, static_argnums=0)
    def constrain(self, params: Params) -> Params:
        """Values of the latent sites as the program sees them."""
        trace, _ = self._trace(params, *self._placeholders(1))
        return {site.name: trace[site.name]["value"] for site in self._bound.sites}

    def flatten(self, params: Params) -> jax.Array:
        """Unconstrained parameters as one vector (p,), sites in the order of their names."""
        return jnp.concatenate([jnp.ravel(params[name]) for name in sorted(params)])

    def unflatten(self, vector: jax.Array) -> Params:
        """The inverse of ``flatten``."""
        shapes = {site.name: site.unconstrained_shape for site in self._bound.sites}
        params, start = {}, 0
        for name in sorted(shapes):
            size = math.prod(shapes[name])
            params[name] = vector[start : start + size].reshape(shapes[name])
            start += size
        return params

    def _check_function_is_used(self) -> None:
        """Refuse a program whose likelihood does not see what is put at the site ``"f"``."""
        assert self.num_outputs is not None
        zeros = jnp.zeros((2, self.num_outputs))
        likelihoods = [self._function_trace({}, f, None)[self._bound.observed]["fn"] for f in (zeros, zeros + 1.0)]
        if all(bool(jnp.all(a == b)) for a, b in zip(*map(jax.tree.leaves, likelihoods), strict=True)):
            raise ValueError(
                f"the likelihood of {self.name!r} does not depend on its site 'f'; use what the site returns: "
                "f = numpyro.deterministic('f', f), then the likelihood of f"
            )

    def _require_function(self) -> None:
        if not self.has_function:
            raise ValueError(
                f"the program {self.name!r} has no function values; add numpyro.deterministic('f', ...) of shape "
                "(n,) or (n, d) through which the parameters act on the likelihood"
            )

    def _require_features(self) -> None:
        if not self.has_features:
            raise ValueError(
                f"the program {self.name!r} has no features; add numpyro.deterministic('features', ...) of shape "
                "(n, d), or give bnn a network with a method features(x)"
            )

    def _placeholders(self, n: int) -> tuple[jax.Array, jax.Array]:
        x, y = self._bound.x, self._bound.y
        return jnp.zeros((n, *x.shape), x.dtype), jnp.zeros((n, *y.shape), y.dtype)

    def _trace(
        self, params: Params, x: jax.Array, y: jax.Array, f: jax.Array | None = None
    ) -> tuple[dict[str, Any], jax.Array]:
        """Run the program with its latent sites set; also the log-determinant of the constraints."""
        log_det = jnp.zeros(())

        def value_of(site: dict[str, Any]) -> jax.Array | None:
            nonlocal log_det
            if f is not None and site["name"] == FUNCTION_SITE and site["type"] == "deterministic":
                return f
            if site["type"] != "sample" or site["name"] not in params:
                return None
            unconstrained = params[site["name"]]
            transform = biject_to(site["fn"].support)
            value = transform(unconstrained)
            log_det = log_det + jnp.sum(transform.log_abs_det_jacobian(unconstrained, value))
            return value

        # Modules such as random_flax_module ask for a key to make the parameters that are replaced here.
        program = handlers.substitute(handlers.seed(self.program, jax.random.key(0)), substitute_fn=value_of)
        return handlers.trace(program).get_trace(x, y), log_det

    def _hard(self, y: jax.Array | None, n: int) -> jax.Array:
        """``y`` as the program takes it; a placeholder where there are class probabilities or nothing."""
        if y is None or jnp.ndim(y) != len(self._bound.y.shape) + 1:
            return self._placeholders(n)[1]
        return y

    def _function_trace(self, params: Params, f: jax.Array, y: jax.Array | None) -> dict[str, Any]:
        self._require_function()
        absent = {
            site.name: jnp.zeros(site.unconstrained_shape, site.dtype)
            for site in self._bound.sites
            if site.name not in params
        }
        native = f[:, 0] if self._bound.function_ndim == 1 else f
        x, _ = self._placeholders(f.shape[0])
        trace, _ = self._trace({**absent, **params}, x, self._hard(y, f.shape[0]), f=native)
        return trace

    def _score(self, trace: dict[str, Any], y: jax.Array) -> jax.Array:
        site = trace[self._bound.observed]
        if jnp.ndim(y) == len(self._bound.y.shape) + 1:
            # The program may observe its inputs, or a transform of y.
            return _scaled(site["fn"].log_prob(site["value"]), site)
        if self.num_classes is None or y.shape[1:] != (self.num_classes,):
            raise ValueError(
                f"targets have shape {y.shape}; wanted (n, {', '.join(map(str, self._bound.y.shape))}) or, for a "
                f"likelihood with finitely many classes, probabilities (n, {self.num_classes})"
            )
        log_probabilities = _class_log_probabilities(site["fn"], y.shape[0])
        # 0 * -inf is not a number: a class of zero target probability has no say.
        return _scaled(jnp.sum(jnp.where(y == 0, 0.0, y * log_probabilities), axis=-1), site)


def _class_log_probabilities(distribution: dist.Distribution, n: int) -> jax.Array:
    """(n, num_classes) log-probabilities of a distribution with finite support and batch shape (n,)."""
    if isinstance(distribution, dist.CategoricalLogits):
        return jax.nn.log_softmax(distribution.logits, axis=-1)
    values = distribution.enumerate_support(expand=False)
    return jnp.broadcast_to(distribution.log_prob(values).T, (n, values.shape[0]))


def _datum_shape(array: Any, argument: str) -> jax.ShapeDtypeStruct:
    if not hasattr(array, "shape"):
        raise TypeError(f"{argument} must be an array with a leading axis over data; got {type(array).__name__}")
    if len(array.shape) < 1:
        raise ValueError(f"{argument} must have a leading axis over data; got a scalar")
    # Stored images are uint8; a program always sees them as floats.
    dtype = jnp.result_type(float) if argument == "x" else jax.dtypes.canonicalize_dtype(array.dtype)
    return jax.ShapeDtypeStruct(tuple(array.shape[1:]), dtype)


def _inspect(program: Callable[..., Any], x: jax.ShapeDtypeStruct, y: jax.ShapeDtypeStruct) -> _Structure:
    """Run the program once on shapes alone and read off its sites."""
    found: dict[str, Any] = {}
    n = 3

    def run(x: jax.Array, y: jax.Array) -> None:
        seeded = handlers.seed(program, jax.random.key(0))
        found["trace"] = handlers.trace(seeded).get_trace(x, y)
        trace = found["trace"]
        found["observed"] = [
            site for site in trace.values() if site["type"] == "sample" and site["is_observed"] and not _is_factor(site)
        ]
        if len(found["observed"]) == 1:
            site = found["observed"][0]
            found["log_prob_shape"] = jnp.shape(site["fn"].log_prob(site["value"]))

    jax.eval_shape(run, jax.ShapeDtypeStruct((n, *x.shape), x.dtype), jax.ShapeDtypeStruct((n, *y.shape), y.dtype))
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
        sites.append(_Site(name, unconstrained, shape, jnp.result_type(site["value"])))
    if not sites:
        raise ValueError("the program has no latent site; there is nothing to infer")
    function = found["trace"].get(FUNCTION_SITE)
    function_shape = None if function is None else tuple(jnp.shape(function["value"]))
    if function_shape is not None and (len(function_shape) not in (1, 2) or function_shape[0] != n):
        raise ValueError(f"the site 'f' must have shape (n,) or (n, d); with n={n} it has {function_shape}")
    # A site of another kind or shape is the program's own business until somebody asks for features.
    features = found["trace"].get(FEATURES_SITE, {"type": None})
    features_shape = tuple(jnp.shape(features["value"])) if features["type"] == "deterministic" else ()
    return _Structure(
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
