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
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.distributions.transforms import biject_to

from pseudocoreset.batching import full_precision
from pseudocoreset.models.gaussian import Gaussian
from pseudocoreset.models.structure import (
    FEATURES_SITE,
    FUNCTION_SITE,
    Structure,
    class_log_probabilities,
    datum_shape,
    inspect_program,
    is_factor,
    scaled,
)

__all__ = ["Model", "Params"]

Params = dict[str, jax.Array]


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
        outputs_last: whether the last axis of a kernel counts its output units (flax) or the first (equinox).
        is_separable: whether the function value of a datum is known to depend on no other datum of its batch, so that
            a batch may be gone through a few data at a time.
    """

    program: Callable[..., Any]
    is_network: bool = False
    name: str = "model"
    initializer: Callable[[jax.Array], Params] | None = None
    structure: Structure | None = None
    conjugate: Callable[[jax.Array, jax.Array, jax.Array], Gaussian] | None = None
    outputs_last: bool = True
    is_separable: bool = False

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
        x_shape, y_shape = datum_shape(x, "x"), datum_shape(y, "y")
        if self.structure is not None:
            if self.structure.x.shape != x_shape.shape:
                raise ValueError(
                    f"x has features of shape {x_shape.shape}; this model was made for {self.structure.x.shape}"
                )
            return self
        bound = replace(self, structure=inspect_program(self.program, x_shape, y_shape))
        if bound.has_function and not self.is_network:
            bound._check_function_is_used()
        return bound

    @property
    def is_bound(self) -> bool:
        """Whether the shape of a datum is known."""
        return self.structure is not None

    @property
    def _bound(self) -> Structure:
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

    @functools.partial(jax.jit, static_argnums=0, inline=True)
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

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def log_prior(self, params: Params) -> jax.Array:
        """Log prior density of unconstrained parameters, log-determinant of the constraint included; scalar."""
        trace, log_det = self._trace(params, *self._placeholders(1))
        total = log_det
        for site in trace.values():
            if site["type"] == "sample" and (not site["is_observed"] or is_factor(site)):
                total = total + jnp.sum(scaled(site["fn"].log_prob(site["value"]), site))
        return total

    @functools.partial(jax.jit, static_argnums=0, inline=True)
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

    @functools.partial(jax.jit, static_argnums=0, inline=True)
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

    @functools.partial(jax.jit, static_argnums=0, inline=True)
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

    @functools.partial(jax.jit, static_argnums=0, inline=True)
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

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def function_probabilities(self, params: Params, f: jax.Array) -> jax.Array:
        """Class probabilities (n, num_classes) given function values ``f`` (n, d); see ``function_log_likelihood``."""
        observed = self._function_trace(params, f, None)[self._bound.observed]
        return jnp.exp(class_log_probabilities(observed["fn"], f.shape[0]))

    @functools.partial(jax.jit, static_argnums=0, inline=True)
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
        with full_precision():
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
            return scaled(site["fn"].log_prob(site["value"]), site)
        if self.num_classes is None or y.shape[1:] != (self.num_classes,):
            raise ValueError(
                f"targets have shape {y.shape}; wanted (n, {', '.join(map(str, self._bound.y.shape))}) or, for a "
                f"likelihood with finitely many classes, probabilities (n, {self.num_classes})"
            )
        log_probabilities = class_log_probabilities(site["fn"], y.shape[0])
        # 0 * -inf is not a number: a class of zero target probability has no say.
        return scaled(jnp.sum(jnp.where(y == 0, 0.0, y * log_probabilities), axis=-1), site)
