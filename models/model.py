"""``Model``: everything a coreset or a sampler needs, derived from one NumPyro program.

A program ``program(x, y=None)`` whose likelihood is a sum over the data is all that a user writes. Densities are
evaluated by running it under NumPyro's own effect handlers, so they cannot drift from it; under ``jit`` the handlers
cost nothing.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions.transforms import biject_to

from pseudocoreset.arguments import checked
from pseudocoreset.compute.backends import full_precision
from pseudocoreset.layout import InputLayout, is_several
from pseudocoreset.models import proof
from pseudocoreset.models.arguments import (
    check_signature,
    has_no_values,
    integers_of,
    layout_of,
    length,
    packed_struct,
    widen,
)
from pseudocoreset.models.gaussian import Gaussian
from pseudocoreset.models.structure import (
    FEATURES_SITE,
    FUNCTION_SITE,
    Site,
    Structure,
    Term,
    class_log_probabilities,
    datum_shape,
    inspect_program,
    mask_of,
    plate_scale,
    scaled,
)

__all__ = ["Model", "Params"]

Params = dict[str, jax.Array]


class Parts(NamedTuple):
    """The log density of a program on some rows.

    rows
        (n,) log-likelihoods of every datum, by observed site and factor.
    prior
        By site.
    log_det
        Of the constraints.
    trace
        The sites of the run.
    """

    rows: dict[str, jax.Array]
    prior: dict[str, jax.Array]
    log_det: jax.Array
    trace: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Model:
    """A Bayesian model as a NumPyro program, with the pure functions derived from it.

    Build it with ``Model.from_numpyro(program)`` or ``bnn(network, data)``. Parameters are a flat dictionary
    ``{site: array}`` of *unconstrained* values; ``constrain`` maps them to the values the program sees.
    ``bind`` fixes the shape of a datum; ``sample`` and the ``fit_*`` functions call it themselves.

    Attributes:
        program: ``program(x, y=None)``; see ``from_numpyro``.
        is_network: made by ``bnn``.
        name: shown in logs and saved with coresets.
        conjugate: ``(x, y, weights) -> Gaussian``, the exact posterior where it is a Gaussian, else None.
        outputs_last: whether the last axis of a kernel counts its output units (flax) or the first (equinox).
        is_separable: whether the function value of a datum is known to depend on no other datum of its batch, so that
            a batch may be gone through a few data at a time.
        is_proved: whether the program is known to do what ``from_numpyro`` asks of it: ``bind`` has tried it on real
            rows, or it comes with this package.
        takes_any_target: whether every target of the right type has a likelihood.
    """

    program: Callable[..., Any]
    is_network: bool = False
    name: str = "model"
    initializer: Callable[[jax.Array], Params] | None = None
    structure: Structure | None = None
    conjugate: Callable[[jax.Array, jax.Array, jax.Array], Gaussian] | None = None
    outputs_last: bool = True
    is_separable: bool = False
    is_proved: bool = False
    takes_any_target: bool = False

    @classmethod
    @checked
    def from_numpyro(cls, program: Callable[..., Any], *, name: str | None = None) -> Model:
        """A model from a NumPyro program.

        What the program may do:

        * It takes ``x``, one array (n, ...) or a dictionary or tuple of arrays with that first axis, and ``y``
          (n, ...). Whatever else a row has (an offset, an exposure, a number of trials, a group) goes into ``x``.
          Arrays of integers and booleans arrive as such.
        * Its likelihood is one or more observed sites in a plate over the data, ``numpyro.plate("data", x.shape[0])``,
          and ``numpyro.factor`` of shape (n,). Rows may be masked (``handlers.mask``). The likelihood of a row may
          depend on everything in that row of ``x`` and ``y``, and on no other row.
        * Its latent sites are continuous, have proper priors, and are shared by all rows: groups have a plate of their
          own, of a size that the program knows. Priors, and factors of shape (), depend on neither ``x`` nor ``y``.
          Supports may depend on other sites.
        * A deterministic site ``"f"`` of shape (n,) or (n, d), through which the parameters act on the likelihood,
          gives the model function values; ``"features"`` of shape (n, d) gives it features, which distribution
          matching compares. The likelihood goes on with what ``numpyro.deterministic`` returns.
        * Handlers of NumPyro (``condition``, ``scale``, ``mask``, ``scope``, ``reparam``) may be around it. The scale
          of a plate with a ``subsample_size`` is divided out, for batches are drawn outside of the program.

        ``bind`` compares the program with this list on real rows, and names the site that does not fit.

        Args:
            program: ``program(x, y=None)``.
            name: shown in logs; the program's own name by default.

        Raises:
            TypeError: if ``program`` is not callable, or takes other arguments.

        Example:
            >>> def counts(x, y=None):
            ...     slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
            ...     with numpyro.plate("data", x["z"].shape[0]):
            ...         numpyro.sample("y", dist.Poisson(x["exposure"] * jnp.exp(slope * x["z"])), obs=y)
            >>> model = Model.from_numpyro(counts)
        """
        if not callable(program):
            raise TypeError(f"program must be a callable program(x, y=None); got {type(program).__name__}")
        check_signature(program)
        return cls(program=program, name=str(name or getattr(program, "__name__", "model")))

    @checked
    def bind(self, x: Any, y: Any, *, check: bool = True, learned_targets: bool = False) -> Model:
        """The same model with the shape of one datum fixed, and the program tried on the data.

        With arrays, about half a second is spent on four checks at several parameter values: the log density is
        NumPyro's own; a row has the same log-likelihood alone, among few and among many; the prior does not change with
        the data; every row has a finite log-likelihood. Shapes alone skip them.

        Args:
            x: inputs (n, ...), a dictionary or tuple of them, or their shapes (``jax.ShapeDtypeStruct``).
            y: targets (n, ...), or their shapes; hard ones, not class probabilities.
            check: whether to try the program on arrays.
            learned_targets: whether targets may be off the support of a discrete likelihood, as learned counts are.

        Raises:
            ProgramError: if the program does not fit the description in ``from_numpyro``; a ValueError.
            ValueError: if these data do not fit the model, naming the row.
        """
        if not has_no_values((x, y)) and np.ndim(y) and length(x) != y.shape[0]:
            raise ValueError(f"x has {length(x)} rows and y has {y.shape[0]}; every row needs a target")
        layout = self.structure.layout if self.structure is not None else layout_of(x)
        x_struct, y_struct = packed_struct(layout, x), datum_shape(y, "y")
        bound = self
        if self.structure is None:
            try:
                structure = inspect_program(self.program, x_struct, y_struct, layout, y.shape[0])
            except ValueError:
                integers = None if layout is not None else integers_of(x)
                if integers is None:
                    raise
                # A program that indexes with its inputs needs them as integers.
                layout, x_struct = integers, packed_struct(integers, x)
                structure = inspect_program(self.program, x_struct, y_struct, layout, y.shape[0])
            bound = replace(self, structure=structure)
            if bound.has_function and not self.is_network:
                rows = None if not check or has_no_values((x, y)) else proof.some_rows(bound, x, y)
                x_some, y_some = rows or bound._placeholders(2)
                # At ones where there are no rows: a likelihood may multiply f by an input, or take its logarithm.
                bound._check_function_is_used(x_some if rows else jnp.ones_like(x_some), y_some)
        else:
            if self.structure.x.shape != x_struct.shape:
                raise ValueError(
                    f"x has features of shape {x_struct.shape}; this model was made for {self.structure.x.shape}"
                )
            if self.structure.y.shape != y_struct.shape:
                raise ValueError(
                    f"y has targets of shape {y_struct.shape}; this model was made for {self.structure.y.shape}"
                )
        if self.is_network or not check or has_no_values((x, y)):
            return bound
        if not bound.is_proved:
            bound = replace(bound, structure=proof.check_program(bound, x, y), is_proved=True)
        if not bound.takes_any_target:
            proof.check_targets(bound, x, y, learned_targets)
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
    def sites(self) -> tuple[Site, ...]:
        """The latent sites."""
        return self._bound.sites

    @property
    def terms(self) -> tuple[Term, ...]:
        """The parts of the likelihood: observed sites, then factors."""
        return self._bound.terms

    @property
    def datum_structs(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Shape and type of one input, as the library keeps it, and of one target."""
        return self._bound.x, self._bound.y

    @property
    def deterministic(self) -> tuple[str, ...]:
        """Names of the deterministic sites that all data share; bound to data, of those that do not depend on them."""
        return self._bound.deterministic

    @property
    def datum_shape(self) -> tuple[int, ...]:
        """Shape of one input as the library keeps it: a dictionary or tuple is one row of a matrix."""
        return self._bound.x.shape

    @property
    def layout(self) -> InputLayout | None:
        """How inputs of several kinds, or integers, lie in a matrix; None where inputs are one array of floats."""
        return self._bound.layout

    @property
    def data_kinds(self) -> dict[str, str]:
        """What a fit does with each array among the inputs.

        ``"learned"``: floats, which an optimiser moves. ``"chosen"``: integers and booleans, which come from the data.
        """
        if self.layout is None:
            return {"x": "learned"}
        return {leaf.name: "learned" if leaf.is_float else "chosen" for leaf in self.layout.leaves}

    @property
    def num_params(self) -> int:
        """Number of unconstrained parameters."""
        return sum(math.prod(site.unconstrained_shape) for site in self.sites)

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
        """Number of classes where the one observed site is Bernoulli or categorical, else None."""
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
        keys = jax.random.split(key, len(self.sites))
        return {
            site.name: jax.random.uniform(k, site.unconstrained_shape, site.dtype, -2.0, 2.0)
            for k, site in zip(keys, self.sites, strict=True)
        }

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def log_prior(self, params: Params) -> jax.Array:
        """Log prior density of unconstrained parameters, log-determinant of the constraint included; scalar."""
        terms, log_det = self.prior_terms(params)
        return sum((jnp.sum(term) for term in terms.values()), log_det)

    def prior_terms(self, params: Params) -> tuple[dict[str, jax.Array], jax.Array]:
        """The log prior by site, and the log-determinant of the constraints: numbers that add up to ``log_prior``.

        An array has one number per element of its site where the elements are independent.

        Args:
            params: unconstrained parameters.
        """
        parts = self.at_placeholder(params)
        return parts.prior, parts.log_det

    def at_placeholder(self, params: Params) -> Parts:
        """``parts`` on one row of zeros, for what does not depend on the data."""
        return self.parts(params, *self._placeholders(1))

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def log_likelihood(self, params: Params, x: Any, y: jax.Array) -> jax.Array:
        """Log-likelihood of every datum.

        Args:
            params: unconstrained parameters.
            x: inputs (n, *feature_shape), or a dictionary or tuple of them.
            y: targets (n, ...), or class probabilities (n, num_classes), scored by their cross-entropy.

        Returns:
            Array (n,).
        """
        return self._score(y, length(x), lambda hard: self.trace(params, x, hard)[0])

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def apply(self, params: Params, x: Any) -> jax.Array:
        """Function values, the program's site ``"f"``.

        Args:
            params: unconstrained parameters.
            x: inputs (n, *feature_shape), or a dictionary or tuple of them.

        Returns:
            Array (n, d).

        Raises:
            ValueError: if the program has no site ``"f"``.
        """
        self._require_function()
        _, y = self._placeholders(length(x))
        trace, _ = self.trace(params, x, y)
        f = trace[FUNCTION_SITE]["value"]
        return f[:, None] if f.ndim == 1 else f

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def features(self, params: Params, x: Any) -> jax.Array:
        """Features, the program's site ``"features"``: of a network what its last layer is applied to.

        Args:
            params: unconstrained parameters.
            x: inputs (n, *feature_shape), or a dictionary or tuple of them.

        Returns:
            Array (n, d).

        Raises:
            ValueError: if the program has no such site.
        """
        self._require_features()
        _, y = self._placeholders(length(x))
        trace, _ = self.trace(params, x, y)
        return trace[FEATURES_SITE]["value"]

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def function_log_likelihood(self, params: Params, f: jax.Array, x: Any, y: jax.Array) -> jax.Array:
        """Log-likelihood of every datum given its function value, log p(y | f, x).

        The likelihood may read x beside f: an offset, an exposure, a known error, a number of trials.

        Args:
            params: unconstrained parameters of the likelihood (a noise scale, say); sites that act through ``f``
                only may be left out.
            f: function values (n, d).
            x: the inputs that they belong to.
            y: targets (n, ...), or class probabilities (n, num_classes).

        Returns:
            Array (n,).
        """
        return self._score(y, f.shape[0], lambda hard: self._function_trace(params, f, x, hard))

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def function_probabilities(self, params: Params, f: jax.Array, x: Any) -> jax.Array:
        """Class probabilities (n, num_classes) given function values ``f`` (n, d); see ``function_log_likelihood``."""
        observed = self._function_trace(params, f, x, None)[self._bound.observed]
        return jnp.exp(class_log_probabilities(observed["fn"], f.shape[0]))

    @functools.partial(jax.jit, static_argnums=(0, 2), inline=True)
    def constrain(self, params: Params, deterministic: bool = False) -> Params:
        """Values of the latent sites as the program sees them.

        Args:
            params: unconstrained parameters.
            deterministic: also those of deterministic sites that all data share.
        """
        trace, _ = self.trace(params, *self._placeholders(1))
        names = [site.name for site in self.sites] + (list(self.deterministic) if deterministic else [])
        return {name: trace[name]["value"] for name in names}

    @functools.partial(jax.jit, static_argnums=0)
    def sample_prior(self, key: jax.Array) -> Params:
        """Unconstrained parameters drawn from the prior.

        Args:
            key: one typed key.
        """
        program = handlers.seed(self.program, key)
        trace = handlers.trace(program).get_trace(*self.program_arguments(*self._placeholders(1)))
        return {
            site.name: biject_to(trace[site.name]["fn"].support).inv(trace[site.name]["value"]) for site in self.sites
        }

    def flatten(self, params: Params) -> jax.Array:
        """Unconstrained parameters as one vector (p,), sites in the order of their names."""
        return jnp.concatenate([jnp.ravel(params[name]) for name in sorted(params)])

    def unflatten(self, vector: jax.Array) -> Params:
        """The inverse of ``flatten``."""
        shapes = {site.name: site.unconstrained_shape for site in self.sites}
        params, start = {}, 0
        for name in sorted(shapes):
            size = math.prod(shapes[name])
            params[name] = vector[start : start + size].reshape(shapes[name])
            start += size
        return params

    def parts(self, params: Params, x: Any, y: jax.Array, *, seed: int = 0) -> Parts:
        """The log density of a run of the program, taken apart.

        Args:
            params: unconstrained parameters.
            x: inputs.
            y: hard targets.
            seed: as in ``trace``.
        """
        trace, log_det = self.trace(params, x, y, seed=seed)
        likelihood = {term.name for term in self._bound.terms}
        prior = {}
        for name, site in trace.items():
            if site["type"] == "sample" and name not in likelihood:
                elements = site["fn"]
                while isinstance(elements, dist.Independent):
                    elements = elements.base_dist
                with full_precision():
                    prior[name] = scaled(elements.log_prob(site["value"]), site)
        return Parts(self._terms(trace, length(x)), prior, log_det, trace)

    def _check_function_is_used(self, x: jax.Array, y: jax.Array) -> None:
        """Refuse a program whose likelihood does not see what is put at the site ``"f"``."""
        # Not zeros and ones: a softmax is the same of all f + c.
        values = np.random.default_rng(0).normal(size=(2, x.shape[0], self.num_outputs or 1))
        one, other = jnp.asarray(values, jnp.result_type(float))
        params = proof.two_params(self)[0]

        def likelihoods(f: jax.Array) -> list[Any]:
            trace = self._function_trace(params, f, x, y)
            terms = [trace[term.name] for term in self.terms]
            rows = [site["fn"].log_prob(site["value"]) for site in terms]
            return [*rows, *jax.tree.leaves([site["fn"] for site in terms])]

        with numpyro.validation_enabled(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of placeholders off the support of the likelihood
            pairs = list(zip(likelihoods(one), likelihoods(other), strict=True))
        # At placeholders everything may be without a number, which says nothing.
        if all(np.array_equal(a, b) for a, b in pairs) and np.all(np.isfinite(pairs[0][0])):
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
        """Inputs and targets for what depends on neither."""
        x, y = self._bound.x, self._bound.y
        return jnp.zeros((n, *x.shape), x.dtype), jnp.zeros((n, *y.shape), y.dtype)

    def program_arguments(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Inputs and targets as the program takes them."""
        layout, x = self._bound.layout, jax.tree.map(widen, x)
        if layout is None:
            x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(self._bound.x.dtype)
        elif not is_several(x) and jnp.issubdtype(x.dtype, jnp.floating):
            x = layout.unpack(x)
        return x, widen(y)

    def trace(
        self, params: Params, x: Any, y: jax.Array, f: jax.Array | None = None, *, seed: int = 0
    ) -> tuple[dict[str, Any], jax.Array]:
        """Run the program with its latent sites set; also the log-determinant of the constraints.

        Args:
            params: unconstrained parameters.
            x: inputs.
            y: targets.
            f: what to put at the site ``"f"``.
            seed: of the key for sites that have no value here. Nothing but the weights that ``random_flax_module``
                draws and replaces depends on it.
        """

        def value_of(site: dict[str, Any]) -> jax.Array | None:
            if f is not None and site["name"] == FUNCTION_SITE and site["type"] == "deterministic":
                return f
            if site["type"] != "sample" or site["is_observed"] or site["name"] not in params:
                return None
            return biject_to(site["fn"].support)(params[site["name"]])

        program = handlers.substitute(handlers.seed(self.program, jax.random.key(seed)), substitute_fn=value_of)
        with full_precision():
            trace = handlers.trace(program).get_trace(*self.program_arguments(x, y))
        # Afterwards, for a site inside a scan is seen one step at a time while the program runs.
        log_det = jnp.zeros(())
        for name, site in trace.items():
            if site["type"] == "sample" and not site["is_observed"] and name in params:
                transform = biject_to(site["fn"].support)
                own = transform.log_abs_det_jacobian(params[name], site["value"])
                log_det = log_det + jnp.sum(scaled(jnp.where(mask_of(site["fn"]), own, 0.0), site))
        return trace, log_det

    def _hard(self, y: jax.Array | None, n: int) -> jax.Array:
        """``y`` as the program takes it; a placeholder where there are class probabilities or nothing."""
        if y is None or jnp.ndim(y) != len(self._bound.y.shape) + 1:
            return self._placeholders(n)[1]
        return y

    def _function_trace(self, params: Params, f: jax.Array, x: Any, y: jax.Array | None) -> dict[str, Any]:
        self._require_function()
        absent = {
            site.name: jnp.zeros(site.unconstrained_shape, site.dtype) for site in self.sites if site.name not in params
        }
        native = f[:, 0] if self._bound.function_ndim == 1 else f
        trace, _ = self.trace({**absent, **params}, x, self._hard(y, f.shape[0]), f=native)
        return trace

    def _terms(self, trace: dict[str, Any], n: int) -> dict[str, jax.Array]:
        rows = {}
        for term in self._bound.terms:
            site = trace[term.name]
            # The program may observe its inputs, or a transform of y.
            with full_precision():
                values = scaled(site["fn"].log_prob(site["value"]), site)
            if term.is_subsampled:
                values = values / plate_scale(trace, site)
            rows[term.name] = jnp.sum(jnp.moveaxis(values, term.axis, 0).reshape(n, -1), axis=1)
        return rows

    def _score(self, y: jax.Array, n: int, trace_of: Callable[[jax.Array], dict[str, Any]]) -> jax.Array:
        """Log-likelihoods (n,) of targets, expected ones under class probabilities; ``trace_of`` takes hard targets."""

        def of_hard(hard: jax.Array) -> jax.Array:
            terms = list(self._terms(trace_of(hard), n).values())
            return sum(terms[1:], terms[0])

        if jnp.ndim(y) == len(self._bound.y.shape) + 1:
            return of_hard(y)
        if self.num_classes is None or y.shape[1:] != (self.num_classes,):
            raise ValueError(
                f"targets have shape {y.shape}; wanted (n, {', '.join(map(str, self._bound.y.shape))}) or, for a "
                f"likelihood with finitely many classes, probabilities (n, {self.num_classes})"
            )
        if self.is_network or self.takes_any_target:
            # All classes in one pass through the network.
            fn = trace_of(self._placeholders(n)[1])[self._bound.observed]["fn"]
            each = class_log_probabilities(fn, n)
        else:
            # The program may scale or mask a row by its target.
            labels = jnp.arange(self.num_classes, dtype=self._bound.y.dtype)
            each = jax.vmap(lambda label: of_hard(jnp.full(n, label)), out_axes=1)(labels)
        # 0 * -inf is not a number: a class of zero target probability has no say.
        return jnp.sum(jnp.where(y == 0, 0.0, y * each), axis=-1)
