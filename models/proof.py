"""A program held against what ``Model.from_numpyro`` asks of it, on real rows, before anything is learned or sampled.

Each check answers one question that a wrong posterior would otherwise answer too late:

* Is our log density, taken apart into a prior and rows, NumPyro's own?
* Does the log-likelihood of a row depend on the rows beside it?
* Does the prior depend on the data?
* Has every row a finite log-likelihood somewhere?
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer.util import potential_energy

from pseudocoreset.compute.backends import full_precision
from pseudocoreset.models.structure import ProgramError, Structure, plate_scale, without_mask

if TYPE_CHECKING:
    from pseudocoreset.models.model import Model

__all__ = ["check_program", "check_targets", "some_rows"]

NUM_TRIED = 7  # parameter values at one of which every row must have a likelihood
ROWS = 12  # the rows of the first three checks
CHUNK_ELEMENTS = 2**22
TOLERANCE = 1e-3  # relative; what a batch computes differs from what a row computes by rounding alone


@full_precision()
def check_program(model: Model, x: Any, y: Any) -> Structure:
    """Compare a bound model with NumPyro and with itself on a few rows.

    Args:
        model: a bound model.
        x: inputs (n, ...) as the library keeps them, or in the form of the user.
        y: targets (n, ...).

    Returns:
        The structure of the model, without the deterministic sites that depend on the rows, and without classes where
        the program observes something else than its targets.

    Raises:
        ProgramError: naming the site that couples rows, or whose prior depends on the data.
    """
    x, y = some_rows(model, x, y)
    all_x = jnp.concatenate([x, _moved(model, x)])

    def everything(stack: Any) -> dict[str, Any]:
        return jax.vmap(lambda params: _evaluated(model, params, x, y, all_x))(stack)

    found = jax.device_get(_quickly(everything)(_stacked(two_params(model))))
    for name, versions in found["prior"].items():
        _check_prior(model, f"the site {name!r}", versions)
    _check_prior(model, "the support of a latent site", found["log_det"])
    for name, together in found["together"].items():
        _check_randomness(model, name, together, found["reseeded"][name])
        for how in ("alone", "half"):
            other = found[how][name]
            _check_rows(model, name, together[:, : other.shape[1]], other, how)
    ours, theirs, size = found["ours"], found["theirs"], found["size"]
    with np.errstate(invalid="ignore"):
        differs = np.isfinite(ours) & np.isfinite(theirs) & (np.abs(ours - theirs) > TOLERANCE * (1 + size))
    if np.any(differs):
        i = int(np.argmax(differs))
        raise ProgramError(
            f"the log density of {model.name!r} is {ours[i]:.6g} as the sum of its prior and its rows, and "
            f"{theirs[i]:.6g} by NumPyro on the same rows; the program does something that cannot be taken apart in "
            "this way. Does it draw random numbers by itself?"
        )
    structure = model.structure
    assert structure is not None
    same = [name for name, values in found["deterministic"].items() if _is_same(values)]
    classes = structure.num_classes if found["observes_targets"].all() else None
    return replace(structure, deterministic=tuple(same), num_classes=classes)


def check_targets(model: Model, x: Any, y: Any, learned: bool = False) -> None:
    """Check that every row has a finite log-likelihood at one of a few parameter values at least.

    Args:
        model: a bound model.
        x: inputs (n, ...).
        y: targets (n, ...).
        learned: whether targets may be off the support of a discrete likelihood.

    Raises:
        ValueError: naming the first row that has none, its target and the support.
    """
    zeros = {site.name: np.zeros(site.unconstrained_shape, site.dtype) for site in model.sites}
    stack = _stacked([zeros, *two_params(model)])
    bad = _unlikely(model, stack, x, y, np.arange(len(y)), learned)
    if not bad:
        return
    # Draws of a prior compile for longer, and few programs need them.
    keys = jax.random.split(jax.random.key(1), NUM_TRIED - 3)
    stack = jax.jit(jax.vmap(model.sample_prior))(keys)
    rows = np.unique(np.concatenate(list(bad.values())))
    still = _unlikely(model, stack, x, y, rows, learned)
    for name in bad:
        both = np.intersect1d(bad[name], still.get(name, []))
        if len(both):
            row = int(both[0])
            _refuse_row(model, name, row, _taken(x, slice(row, row + 1)), y)


def _unlikely(model: Model, stack: Any, x: Any, y: Any, rows: np.ndarray, learned: bool) -> dict[str, np.ndarray]:
    """Those of ``rows`` that have a finite log-likelihood at none of the stacked parameters, by site."""

    def fits(x: Any, y: jax.Array) -> dict[str, jax.Array]:
        each = jax.vmap(lambda params: _fits(model, params, x, y, learned))(stack)
        return jax.tree.map(lambda leaf: leaf.any(axis=0), each)

    check = _quickly(fits)
    size = max(16, min(len(rows), CHUNK_ELEMENTS // max(1, NUM_TRIED * int(np.prod(model.datum_shape)))))
    bad: dict[str, list[np.ndarray]] = {}
    for first in range(0, len(rows), size):
        # The last chunk is as long as the others, so that one compiled program serves all.
        chunk = rows[np.arange(first, first + size) % len(rows)]
        for name, have in check(_taken(x, chunk), jnp.asarray(np.asarray(y)[chunk])).items():
            bad.setdefault(name, []).append(chunk[~np.asarray(have)])
    return {name: np.unique(np.concatenate(found)) for name, found in bad.items() if any(map(len, found))}


def _quickly(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled without optimisation, for what runs once."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


def two_params(model: Model) -> list[Any]:
    """Two starting points, the second near zero."""
    if model.initializer is not None:
        points = [jax.device_get(model.init(jax.random.key(seed))) for seed in range(2)]
    else:
        # By numpy: to compile the random numbers of JAX takes as long as everything else here.
        rng = np.random.default_rng(0)
        points = [
            {site.name: rng.uniform(-2.0, 2.0, site.unconstrained_shape).astype(site.dtype) for site in model.sites}
            for _ in range(2)
        ]
    return [points[0], jax.tree.map(lambda leaf: leaf * np.asarray(0.1, leaf.dtype), points[1])]


def _stacked(points: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *points)


def some_rows(model: Model, x: Any, y: Any) -> tuple[Any, jax.Array]:
    """A few rows of the data, spread over them; more than once where there are few."""
    n = len(y)
    index = np.unique(np.linspace(0, n - 1, min(n, ROWS)).astype(int))
    rows = jnp.asarray(_packed(model, _taken(x, index)))
    targets = jnp.asarray(np.asarray(y)[index])
    if len(index) >= 4:
        return rows, targets
    repeats = -(-ROWS // len(index))
    return jnp.concatenate([rows] * repeats), jnp.concatenate([targets] * repeats)


def _evaluated(model: Model, params: Any, x: jax.Array, y: jax.Array, all_x: jax.Array) -> dict[str, Any]:
    """Everything that is compared, at one parameter value; ``all_x`` begins with ``x``."""
    all_y = jnp.concatenate([y, y])
    whole, some = model.parts(params, all_x, all_y), model.parts(params, x, y)
    alone = jax.vmap(
        lambda one, target: jax.tree.map(lambda leaf: leaf[0], model.parts(params, one[None], target[None]).rows)
    )(all_x, all_y)
    scales = {term.name: plate_scale(whole.trace, whole.trace[term.name]) for term in model.terms}
    seeded = handlers.seed(model.program, jax.random.key(0))
    likelihood = [scales[name] * leaf for name, leaf in whole.rows.items()]
    log_prior = [*(jnp.sum(leaf) for leaf in whole.prior.values()), whole.log_det]
    _, prior, log_det, placeholder = model.at_placeholder(params)
    runs = [(prior, log_det), (whole.prior, whole.log_det), (some.prior, some.log_det)]
    return {
        "together": whole.rows,
        "alone": alone,
        "half": some.rows,
        "reseeded": model.parts(params, all_x, all_y, seed=1).rows,
        "prior": {name: jnp.stack([jnp.sum(run[name]) for run, _ in runs]) for name in prior},
        "log_det": jnp.stack([of_run for _, of_run in runs]),
        "deterministic": {
            name: jnp.stack([run[name]["value"] for run in (whole.trace, some.trace, placeholder)])
            for name in model.deterministic
        },
        "observes_targets": _observes(whole.trace, model.terms[0].name, all_y),
        "ours": sum(log_prior) + sum(jnp.sum(leaf) for leaf in likelihood),
        "theirs": -potential_energy(seeded, model.program_arguments(all_x, all_y), {}, params),
        "size": sum(jnp.abs(leaf) for leaf in log_prior) + sum(jnp.sum(jnp.abs(leaf)) for leaf in likelihood),
    }


def _moved(model: Model, x: jax.Array) -> jax.Array:
    """Rows with all floats changed a little: a column that does not vary in the data varies in a coreset."""
    noise = jnp.asarray(np.random.default_rng(2).uniform(size=x.shape), x.dtype)
    moved = x * (1 + 0.05 * noise) + 0.01 * noise
    return moved if model.layout is None else jnp.where(jnp.asarray(model.layout.is_learned()), moved, x)


def _check_randomness(model: Model, name: str, one: np.ndarray, other: np.ndarray) -> None:
    if not np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        raise ProgramError(
            f"the log-likelihood at the site {name!r} of {model.name!r} depends on random numbers that the program "
            "draws by itself, as dropout does, or weights without a prior: it is another function in every run. Leave "
            "dropout out, and give every weight a prior"
        )


def _check_prior(model: Model, what: str, versions: np.ndarray) -> None:
    """A part of the log prior (parameters, runs) must be the same in all runs."""
    same = np.isclose(versions, versions[:, :1], rtol=1e-4, atol=1e-4, equal_nan=True)
    if same.all():
        return
    i = int(np.argwhere(~same)[0, 0])
    raise ProgramError(
        f"{what} of {model.name!r} depends on x or y: its log density is {versions[i, 1]:.6g} with some rows and "
        f"{versions[i, 2]:.6g} with others. A prior must not change with the data, for a coreset has other rows. "
        "Compute what it needs before and let the program close over it; a factor that belongs to rows has shape (n,)"
    )


def _is_same(values: np.ndarray) -> bool:
    """Whether values (parameters, runs, ...) are those of the first run in every run."""
    return bool(np.allclose(values, values[:, :1], rtol=1e-4, atol=1e-5, equal_nan=True))


def _check_rows(model: Model, name: str, together: np.ndarray, other: np.ndarray, how: str) -> None:
    """The log-likelihoods (parameters, rows) must not depend on the other rows."""
    finite = np.isfinite(together) & np.isfinite(other)
    with np.errstate(invalid="ignore"):
        differs = finite & (np.abs(together - other) > TOLERANCE * (1 + np.abs(together)))
    # A row that is finite among others and not alone, as after a division by a standard deviation of zero.
    differs |= np.isfinite(together) != np.isfinite(other)
    if not differs.any():
        return
    i, row = (int(k) for k in np.argwhere(differs)[0])
    beside = {"alone": "alone", "half": "among half of them"}[how]
    raise ProgramError(
        f"the log-likelihood of a row at the site {name!r} of {model.name!r} depends on the rows beside it: "
        f"{together[i, row]:.6g} among {together.shape[1]} rows, {other[i, row]:.6g} {beside}. Means, ranges, ranks or "
        "lags of x or y inside the program do that. Compute them before, from all data, and put the result into x or "
        "let the program close over it"
    )


def _fits(model: Model, params: Any, x: Any, y: jax.Array, learned: bool) -> dict[str, jax.Array]:
    """Which rows (n,) have a finite log-likelihood, and observed values within the support, by site."""
    rows, _, _, trace = model.parts(params, x, y)
    found = {}
    for term in model.terms:
        fits = jnp.isfinite(rows[term.name])
        site = trace[term.name]
        if not term.is_factor and not (learned and site["fn"].is_discrete):
            fits = fits & _is_in_support(site, term.axis, len(fits))
        found[term.name] = fits
    return found


def _is_in_support(site: dict[str, Any], axis: int, n: int) -> jax.Array:
    inside = _inside(site["fn"], site["value"])
    inside = jnp.broadcast_to(inside, jnp.shape(site["fn"].log_prob(site["value"])))
    return jnp.all(jnp.moveaxis(inside, axis, 0).reshape(n, -1), axis=1)


def _inside(distribution: Any, value: jax.Array) -> jax.Array:
    """Which values, of the batch shape, are in the support or masked."""
    if isinstance(distribution, dist.MaskedDistribution):
        return _inside(distribution.base_dist, value) | ~jnp.asarray(distribution._mask)
    if isinstance(distribution, dist.ExpandedDistribution):
        return _inside(distribution.base_dist, value)
    if isinstance(distribution, dist.Independent):
        each = _inside(distribution.base_dist, value)
        return jnp.all(each, axis=tuple(range(-distribution.reinterpreted_batch_ndims, 0)))
    support = _support(distribution)
    # Where nothing can be asked of a support, the log-likelihood alone decides.
    if support is None:
        return jnp.ones(jnp.shape(value)[: jnp.ndim(value) - distribution.event_dim], bool)
    return support(value)


def _support(distribution: Any) -> Any:
    """The support of a distribution; None where it does not say, as a distribution of a user's own may not."""
    try:
        support = distribution.support
    except NotImplementedError:
        return None
    return None if isinstance(support, type(constraints.dependent)) else support


def _observes(trace: dict[str, Any], name: str, y: jax.Array) -> jax.Array:
    """Whether a site observes the targets as they are."""
    value = trace[name]["value"]
    return jnp.all(value == y) if jnp.shape(value) == y.shape else jnp.asarray(False)


def _refuse_row(model: Model, name: str, row: int, x: Any, y: Any) -> None:
    with numpyro.validation_enabled(False):
        trace, _ = model.trace(model.init(jax.random.key(0)), x, jnp.asarray(y[row : row + 1]))
    site = trace[name]
    value = np.array2string(np.asarray(y[row]), precision=6, threshold=8)
    if next(term for term in model.terms if term.name == name).is_factor:
        raise ValueError(
            f"data: row {row}, with y = {value}, has no finite value of the factor {name!r} of {model.name!r} at any "
            f"of {NUM_TRIED} parameter values; check what the factor computes of that row"
        )
    support = _support(without_mask(site["fn"]))
    within = "" if support is None else f" with support {_in_words(support)}"
    raise ValueError(
        f"data: row {row} has no likelihood at the site {name!r} of {model.name!r}: y = {value}, which "
        f"{_family(site['fn'])}{within} gives no probability at any of {NUM_TRIED} parameter values. "
        "Correct or drop such rows, or take another likelihood; check x in that row too, and the prior where the "
        "support depends on a parameter"
    )


def _in_words(support: Any) -> str:
    text = type(support).__name__.strip("_")
    bounds = {
        name: float(np.ravel(jax.device_get(value))[0])
        for name in ("lower_bound", "upper_bound")
        if (value := getattr(support, name, None)) is not None
    }
    return text + (f" {bounds}" if bounds else "")


def _family(distribution: Any) -> str:
    while hasattr(distribution, "base_dist") and type(distribution).__name__ in (
        "ExpandedDistribution",
        "MaskedDistribution",
        "Independent",
    ):
        distribution = distribution.base_dist
    return f"a {type(distribution).__name__}"


def _taken(x: Any, index: Any) -> Any:
    if isinstance(x, dict):
        return {name: np.asarray(leaf)[index] for name, leaf in x.items()}
    return tuple(np.asarray(leaf)[index] for leaf in x) if isinstance(x, tuple) else x[index]


def _packed(model: Model, x: Any) -> Any:
    layout = model.layout
    if layout is not None and (isinstance(x, dict | tuple) or np.asarray(x).dtype.kind in "iub"):
        return layout.pack(x)
    return jnp.asarray(x, jnp.result_type(float)) if layout is None else x
