"""What a NumPyro program is made of, read off abstract runs of it at two numbers of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions.transforms import biject_to

from pseudocoreset.layout import InputLayout

__all__ = [
    "FEATURES_SITE",
    "FUNCTION_SITE",
    "ProgramError",
    "Site",
    "Structure",
    "Term",
    "class_log_probabilities",
    "datum_shape",
    "inspect_program",
    "is_factor",
    "mask_of",
    "plate_scale",
    "scaled",
    "widened",
    "without_mask",
]

FUNCTION_SITE = "f"
FEATURES_SITE = "features"
LOOKS_AT_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
SIZES = (5, 7)  # numbers of data of the two runs: what has another shape in the second follows the data


@dataclass(frozen=True)
class Site:
    """A latent site: shape of its unconstrained and constrained values."""

    name: str
    unconstrained_shape: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True)
class Term:
    """A part of the likelihood with a log-probability for each datum.

    Attributes:
        name: of the site.
        is_factor: a ``numpyro.factor`` rather than an observed site.
        axis: of the log-probability that counts the data, from the end.
        is_subsampled: whether a plate with a ``subsample_size`` scales it. That scale is divided out: the library
            weights the data, not the plate.
    """

    name: str
    is_factor: bool
    axis: int
    is_subsampled: bool


@dataclass(frozen=True)
class Structure:
    """What two abstract runs of the program reveal.

    Attributes:
        sites: latent sites.
        terms: the parts of the likelihood; observed sites before factors.
        deterministic: names of deterministic sites whose shape does not follow the data.
        num_classes: of an only observed site with classes.
        function_ndim: axes of the site ``"f"``, None without one.
        function_size: width of the function values.
        num_features: width of the site ``"features"``.
        x: one datum as the library keeps it, no leading axis.
        y: one target.
        layout: how ``x`` becomes what the program takes; None where it takes one array of floats.
    """

    sites: tuple[Site, ...]
    terms: tuple[Term, ...]
    deterministic: tuple[str, ...]
    num_classes: int | None
    function_ndim: int | None
    function_size: int | None
    num_features: int | None
    x: jax.ShapeDtypeStruct
    y: jax.ShapeDtypeStruct
    layout: InputLayout | None

    @property
    def observed(self) -> str:
        """The first observed site."""
        return self.terms[0].name


class ProgramError(ValueError):
    """A program that cannot be used as a model. The text names the site and says what to change."""


@dataclass(frozen=True)
class _Seen:
    """A site in one abstract run."""

    kind: str  # "sample" or "deterministic"
    is_observed: bool
    is_factor: bool
    is_discrete: bool
    shape: tuple[int, ...]
    dtype: Any
    unconstrained_shape: tuple[int, ...]
    log_prob_shape: tuple[int, ...]
    plates: Mapping[str, int]  # sizes by name
    plate_scale: float
    num_classes: int | None


def is_factor(site: dict[str, Any]) -> bool:
    """Whether a site is a ``numpyro.factor``, under a mask or in a plate too."""
    distribution = site["fn"]
    while isinstance(distribution, dist.ExpandedDistribution | dist.MaskedDistribution | dist.Independent):
        distribution = distribution.base_dist
    return isinstance(distribution, dist.Unit)


def scaled(log_prob: jax.Array, site: dict[str, Any]) -> jax.Array:
    """The log-probability of a site under the scale that NumPyro's handlers gave it."""
    return log_prob if site.get("scale") is None else log_prob * site["scale"]


def without_mask(distribution: dist.Distribution) -> dist.Distribution:
    """The distribution under a mask: what a datum without a target would have been drawn from."""
    if isinstance(distribution, dist.MaskedDistribution):
        return without_mask(distribution.base_dist)
    if isinstance(distribution, dist.ExpandedDistribution) and mask_of(distribution) is not True:
        return without_mask(distribution.base_dist).expand(distribution.batch_shape)
    return distribution


def mask_of(distribution: dist.Distribution) -> Any:
    """Where a distribution is not masked, True or an array of its batch shape."""
    mask: Any = True
    while isinstance(distribution, dist.MaskedDistribution | dist.ExpandedDistribution):
        if isinstance(distribution, dist.MaskedDistribution):
            mask = mask & distribution._mask
        distribution = distribution.base_dist
    return mask


def plate_scale(trace: Mapping[str, Any], site: Mapping[str, Any]) -> float:
    """What subsampling plates multiply the log-probability of a site by."""
    scale = 1.0
    for frame in site["cond_indep_stack"]:
        plate = trace.get(frame.name)
        if plate is not None and plate["type"] == "plate" and plate["args"][0] != frame.size:
            scale *= plate["args"][0] / frame.size
    return scale


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
    dtype = jnp.result_type(float) if argument == "x" else widened(jax.dtypes.canonicalize_dtype(array.dtype))
    return jax.ShapeDtypeStruct(tuple(array.shape[1:]), dtype)


def widened(dtype: Any) -> Any:
    """The type in which a program computes with integers: in eight bits -3 is 253."""
    return jnp.result_type(int) if jnp.issubdtype(dtype, jnp.integer) else dtype


def inspect_program(
    program: Callable[..., Any],
    x: jax.ShapeDtypeStruct,
    y: jax.ShapeDtypeStruct,
    layout: InputLayout | None,
    num_data: int,
) -> Structure:
    """Run the program on the shapes of 5 and of 7 data and read off its sites.

    Args:
        program: ``program(x, y)``.
        x: one datum, as kept.
        y: one target.
        layout: what turns ``x`` into what the program takes.
        num_data: the number of data at hand, at which the program is tried if it runs at no other.

    Raises:
        ProgramError: naming the site that does not fit ``Model.from_numpyro``, and what would.
    """

    def run(n: int) -> dict[str, _Seen]:
        inputs = jax.ShapeDtypeStruct((n, *x.shape), x.dtype) if layout is None else layout.structs(n)
        return _run(program, inputs, jax.ShapeDtypeStruct((n, *y.shape), y.dtype))

    runs = []
    for n in SIZES:
        try:
            runs.append(run(n))
        except ProgramError:
            raise
        except Exception as error:  # whatever a program of the user raises
            raise ProgramError(_why_it_fails(error, run, n, num_data)) from error
    first, second = runs
    if set(first) != set(second):
        raise ProgramError(
            f"the program has the sites {sorted(first)} for {SIZES[0]} data and {sorted(second)} for {SIZES[1]}; its "
            "sites must not depend on the number of data"
        )
    terms = _terms(first, second)
    data_plates = {
        plate
        for term in terms
        for plate, size in first[term.name].plates.items()
        if size != second[term.name].plates[plate]
    }
    sites = [
        _latent(name, seen, second[name], data_plates.intersection(seen.plates))
        for name, seen in first.items()
        if seen.kind == "sample" and not seen.is_observed
    ]
    if not sites:
        raise ProgramError("the program has no latent site; there is nothing to infer")
    function_shape = _function_shape(first, second)
    # A site of another kind or shape is the program's own business until somebody asks for features.
    features = first.get(FEATURES_SITE)
    width = features.shape[1:] if features is not None and features.kind == "deterministic" else ()
    return Structure(
        sites=tuple(sites),
        terms=tuple(terms),
        deterministic=tuple(
            name
            for name, seen in first.items()
            if seen.kind == "deterministic" and seen.shape == second[name].shape and name != FEATURES_SITE
        ),
        num_classes=first[terms[0].name].num_classes if len(terms) == 1 else None,
        function_ndim=None if function_shape is None else len(function_shape),
        function_size=None if function_shape is None else (1 if len(function_shape) == 1 else function_shape[1]),
        num_features=width[0] if len(width) == 1 and features is not None and features.shape[0] == SIZES[0] else None,
        x=x,
        y=y,
        layout=layout,
    )


def _terms(first: Mapping[str, _Seen], second: Mapping[str, _Seen]) -> list[Term]:
    """The parts of the likelihood, observed sites before factors."""
    terms, shared = [], []
    for name, seen in first.items():
        if not seen.is_observed:
            continue
        axis = _data_axis(name, seen, second[name])
        if axis is None:
            shared.append(name)
        else:
            is_subsampled = seen.plate_scale != 1.0 or second[name].plate_scale != 1.0
            terms.append(Term(name, seen.is_factor, axis, is_subsampled))
    terms.sort(key=lambda term: term.is_factor)
    if not terms or terms[0].is_factor:
        found = f"; found {shared}, with one log-probability for all data" if shared else "; found none"
        raise ProgramError(
            "the program must have an observed site, numpyro.sample(..., obs=y), with one log-probability per datum, "
            f"in numpyro.plate('data', x.shape[0]){found}. Put vector targets under .to_event(1)"
        )
    return terms


def _function_shape(first: Mapping[str, _Seen], second: Mapping[str, _Seen]) -> tuple[int, ...] | None:
    """Of the site ``"f"`` in the first run; None without one."""
    if FUNCTION_SITE not in first:
        return None
    shape, other = first[FUNCTION_SITE].shape, second[FUNCTION_SITE].shape
    if len(shape) not in (1, 2) or shape[0] != SIZES[0] or other[0] != SIZES[1]:
        raise ProgramError(f"the site 'f' must have shape (n,) or (n, d); with n={SIZES[0]} it has {shape}")
    return shape


def _run(program: Callable[..., Any], x: Any, y: jax.ShapeDtypeStruct) -> dict[str, _Seen]:
    """The sites of one abstract run; everything is computed while it is traced, for supports may hold its values."""
    found: dict[str, _Seen] = {}

    def run(x: Any, y: jax.Array) -> None:
        trace = handlers.trace(handlers.seed(program, jax.random.key(0))).get_trace(x, y)
        for name, site in trace.items():
            if site["type"] == "param":
                _check_param(name, site["value"], trace)
            if site["type"] in ("sample", "deterministic"):
                found[name] = _look(name, site, trace)

    jax.eval_shape(run, x, y)
    return found


def _check_param(name: str, value: Any, trace: Mapping[str, Any]) -> None:
    """Refuse a ``numpyro.param``, but for that of a module whose weights all have priors."""
    module = name.removesuffix("$params")
    weights = [other for other in trace if other.startswith(f"{module}/") and trace[other]["type"] == "sample"]
    if module == name or len(weights) < len(jax.tree.leaves(value)):
        what = "is a numpyro.param" if module == name else "has weights without a prior, as flax_module makes them"
        raise ProgramError(
            f"the site {name!r} {what}, which have no posterior; make them numpyro.sample sites (random_flax_module "
            "with a prior for every weight), or constants"
        )


def _look(name: str, site: dict[str, Any], trace: Mapping[str, Any]) -> _Seen:
    is_sample = site["type"] == "sample"
    is_observed = is_sample and bool(site["is_observed"])
    shape, dtype = tuple(jnp.shape(site["value"])), jnp.result_type(site["value"])
    unconstrained, is_discrete = shape, False
    if is_sample and not is_observed:
        is_discrete = bool(site["fn"].is_discrete)
        if not is_discrete:
            try:
                unconstrained = tuple(biject_to(site["fn"].support).inverse_shape(shape))
            except NotImplementedError as error:
                raise ProgramError(
                    f"the latent site {name!r} has the support {site['fn'].support}, which NumPyro cannot map to "
                    "unconstrained values; reparametrise it"
                ) from error
    return _Seen(
        kind=site["type"],
        is_observed=is_observed,
        is_factor=is_observed and is_factor(site),
        is_discrete=is_discrete,
        shape=shape,
        dtype=dtype,
        unconstrained_shape=unconstrained,
        log_prob_shape=tuple(jnp.shape(site["fn"].log_prob(site["value"]))) if is_observed else (),
        plates={frame.name: frame.size for frame in site["cond_indep_stack"]},
        plate_scale=plate_scale(trace, site),
        num_classes=_num_classes(site["fn"]) if is_observed else None,
    )


def _data_axis(name: str, seen: _Seen, other: _Seen) -> int | None:
    """The axis, from the end, of a log-probability that counts the data; None for one that all data share."""
    one, two = seen.log_prob_shape, other.log_prob_shape
    what = "factor" if seen.is_factor else "observed site"
    axes = [i for i in range(len(one)) if one[i] != two[i]] if len(one) == len(two) else [-1, -1]
    if len(axes) > 1:
        raise ProgramError(
            f"the {what} {name!r} has a log-probability of shape {one} for {SIZES[0]} data, and {two} for {SIZES[1]}: "
            "it couples every datum with every other. Look for shapes (n,) and (n, 1) that meet; the posterior of a "
            "coreset needs one log-probability per datum"
        )
    if axes:
        if (one[axes[0]], two[axes[0]]) != SIZES:
            raise ProgramError(
                f"the {what} {name!r} has a log-probability of shape {one} for {SIZES[0]} data; wanted one "
                "log-probability per datum"
            )
        return axes[0] - len(one)
    if seen.plate_scale != 1.0 and not seen.is_factor:
        raise ProgramError(
            f"the observed site {name!r} is in a plate that takes a subsample of the data by itself; write "
            "numpyro.plate('data', x.shape[0]), for batches are drawn outside of the program"
        )
    if seen.shape != other.shape:
        raise ProgramError(
            f"the {what} {name!r} must have one log-probability per datum, shape (n,); with n={SIZES[0]} it has {one}. "
            "Put it in numpyro.plate('data', x.shape[0]), vector targets under .to_event(1)"
        )
    return None


def _latent(name: str, seen: _Seen, other: _Seen, data_plates: set[str]) -> Site:
    if data_plates:
        raise ProgramError(
            f"the latent site {name!r} is inside the plate over the data; a coreset needs parameters that all data "
            "share"
        )
    if seen.shape != other.shape:
        raise ProgramError(
            f"the latent site {name!r} has shape {seen.shape} for {SIZES[0]} data and {other.shape} for {SIZES[1]}; a "
            "coreset needs parameters that all data share, and has fewer data"
        )
    if seen.is_discrete:
        raise ProgramError(f"the latent site {name!r} is discrete; gradients need continuous sites")
    return Site(name, seen.unconstrained_shape, seen.shape, seen.dtype)


def _why_it_fails(error: Exception, run: Callable[[int], Any], n: int, num_data: int) -> str:
    """Why the program did not run on ``n`` data, in a sentence."""
    if isinstance(error, NotImplementedError):
        return (
            "the program has a site that cannot be drawn from, as numpyro.distributions.ImproperUniform; give it a "
            "proper prior, without which the posterior of a few points need not exist"
        )
    if isinstance(error, LOOKS_AT_VALUES):
        return (
            "the program looks at the values of its arguments while it is traced, as np.unique(x), int(x.max()), "
            "x[x > 0] or an if on x do. Compute such things before, and let the program close over them; inside it use "
            f"jax.numpy. JAX said: {str(error).splitlines()[0]}"
        )
    message = str(error)
    if num_data not in SIZES:
        try:
            run(num_data)
        except Exception:  # the same at the size at hand: what the program said is the reason
            return _failed(error)
        return (
            f"the program runs with the {num_data} data at hand, but not with {n}; a coreset has fewer. Take the "
            f"number of data from its arguments: numpyro.plate('data', x.shape[0]). It said: {message.splitlines()[0]}"
        )
    return _failed(error)


def _failed(error: Exception) -> str:
    remedy = ""
    if isinstance(error, TypeError) and "integer" in str(error):
        remedy = ". Arrays of integers reach the program as integers in a dictionary: x = {'group': ids, ...}"
    return f"the program cannot be run on these shapes: {type(error).__name__}: {error}{remedy}"


def _num_classes(distribution: dist.Distribution) -> int | None:
    """The number of classes of a Bernoulli or categorical distribution of one label, else None."""
    while isinstance(distribution, dist.MaskedDistribution | dist.ExpandedDistribution):
        distribution = distribution.base_dist
    if len(distribution.batch_shape) > 1 or distribution.event_shape:
        return None
    if isinstance(distribution, dist.BernoulliLogits | dist.BernoulliProbs):
        return 2
    if isinstance(distribution, dist.CategoricalLogits):
        return jnp.shape(distribution.logits)[-1]
    if isinstance(distribution, dist.CategoricalProbs):
        return jnp.shape(distribution.probs)[-1]
    return None


def class_log_probabilities(distribution: dist.Distribution, n: int) -> jax.Array:
    """(n, num_classes) log-probabilities of a distribution with finite support and batch shape (n,)."""
    distribution = without_mask(distribution)
    if isinstance(distribution, dist.CategoricalLogits):
        return jnp.broadcast_to(jax.nn.log_softmax(distribution.logits, axis=-1), (n, distribution.logits.shape[-1]))
    values = distribution.enumerate_support(expand=False)
    return jnp.broadcast_to(distribution.log_prob(values).T, (n, values.shape[0]))
