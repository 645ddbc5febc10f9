"""``bnn``: a network of flax linen, flax nnx or equinox as a NumPyro program with Gaussian priors."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from pseudocoreset.arguments import blaming, checked
from pseudocoreset.models.model import Model, Params
from pseudocoreset.validation import check_integer

if TYPE_CHECKING:
    from pseudocoreset.data import Dataset

__all__ = ["bnn"]

LIKELIHOODS = ("categorical", "gaussian")
PriorScale = float | str | Callable[[str, tuple[int, ...]], float]


class _Network(NamedTuple):
    """A network as pure functions of a pytree of weights."""

    name: str
    init: Callable[[jax.Array], Any]
    apply: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array | None]]  # outputs, and features if it has any
    outputs_last: bool  # kernels are (..., inputs, outputs) rather than (outputs, inputs, ...)


@checked
def bnn(
    network: Any,
    data: Dataset | None = None,
    *,
    input_shape: tuple[int, ...] | None = None,
    num_outputs: int | None = None,
    likelihood: str | None = None,
    prior_scale: PriorScale = "fan_in",
    noise_scale: float | None = None,
    separable: bool | None = None,
) -> Model:
    """A Bayesian neural network: Gaussian priors on all weights, function values at the site ``"f"``.

    Every weight array is a site ``network/<path>``. With ``prior_scale="fan_in"`` a kernel has prior
    N(0, 2 / fan_in), biases and norm shifts N(0, 0.25), norm scales N(1, 0.25): function values of order one
    at any width (He et al. 2015). ``model.init`` draws from the network's own initialiser. A network with a method
    ``features(x)`` (for a linen module one that its ``__call__`` calls) has features, at the site ``"features"``.

    Args:
        network: a flax linen module (the ones of this package take their ``num_outputs`` from ``data``), a flax
            nnx or equinox module, or a function ``key -> module`` making one of the latter two. A module that was
            made already is re-initialised by permuting the entries of each of its arrays. equinox modules see one
            input at a time, the others a batch.
        data: ``Dataset`` that gives the shape of an input, the number of outputs and the likelihood.
        input_shape: shape of one input, where ``data`` is not given.
        num_outputs: number of outputs, where ``data`` is not given.
        likelihood: ``"categorical"`` (softmax of the function values; default for classes) or ``"gaussian"``
            (default for real targets), whose targets are (n,) for one output and (n, d) for d of them. Targets (n, 1)
            are those of ``data`` alone.
        prior_scale: ``"fan_in"``, one positive standard deviation around zero for all, or a function
            ``(site, shape) -> standard deviation``.
        noise_scale: standard deviation of a Gaussian likelihood, the same for all outputs; None infers one for each
            output with half-normal(1) priors.
        separable: whether the output for one input depends on no other input of its batch, which lets large batches
            through a few at a time. By default it does not, unless the network has an attribute ``norm="batch"``.

    Raises:
        TypeError: if ``network`` is none of these.
        ValueError: for a network with mutable state (running batch statistics), an unknown likelihood, or shapes
            that cannot be told from the arguments.
    """
    classes = getattr(data, "num_classes", None)
    if likelihood is None:
        likelihood = "gaussian" if data is not None and classes is None else "categorical"
    _check_settings(likelihood, prior_scale, noise_scale)
    if input_shape is None:
        if data is None:
            raise ValueError("give data, or input_shape and num_outputs: the shape of an input is not known")
        input_shape = tuple(data.train.feature_shape)
    target_shape = () if data is None else tuple(data.train.y.shape[1:])
    if len(target_shape) > 1:
        raise ValueError(f"a network has targets (n,) or (n, d); each of data has shape {target_shape}")
    if num_outputs is not None:
        check_integer(num_outputs, "num_outputs")
    else:
        real = math.prod(target_shape) if likelihood == "gaussian" else None
        num_outputs = real if classes is None else classes

    pure = _as_network(network, input_shape, num_outputs)
    shapes = jax.eval_shape(pure.init, jax.random.key(0))
    batch = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)
    output, _ = jax.eval_shape(pure.apply, shapes, batch)
    if data is None and likelihood == "gaussian" and output.ndim and output.shape[-1] > 1:
        target_shape = (output.shape[-1],)
    _check_outputs(output.shape, batch.shape, num_outputs, likelihood, target_shape)

    paths, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    names = ["network/" + jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    centred_at_one = _constant_one_leaves(pure, names)
    priors = {
        name: _prior(name, leaf.shape, prior_scale, pure.outputs_last, name in centred_at_one)
        for name, (_, leaf) in zip(names, paths, strict=True)
    }

    observation = _observation(likelihood, target_shape, noise_scale)

    def program(x: jax.Array, y: jax.Array | None = None) -> None:
        leaves = [
            numpyro.sample(name, dist.Normal(loc, scale).expand(leaf.shape).to_event(len(leaf.shape)))
            for (name, (loc, scale)), (_, leaf) in zip(priors.items(), paths, strict=True)
        ]
        outputs, features = pure.apply(jax.tree.unflatten(treedef, leaves), x)
        # A network may compute in half precision; the posterior is not made of that.
        if features is not None:
            numpyro.deterministic("features", _at_least(x, features.reshape(x.shape[0], -1)))
        f = numpyro.deterministic("f", _at_least(x, outputs))
        targets = observation(f)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", targets, obs=y)

    def initializer(key: jax.Array) -> Params:
        # Modules make float32 weights where JAX computes in float64 too, and steps on them would change their type.
        leaves = [
            leaf.astype(jnp.result_type(float)) if leaf.dtype == jnp.float32 else leaf
            for leaf in jax.tree.leaves(pure.init(key))
        ]
        params = dict(zip(names, leaves, strict=True))
        if likelihood == "gaussian" and noise_scale is None:
            params["noise"] = jnp.zeros(target_shape)  # unit noise on the unconstrained scale
        return params

    model = Model(
        program=program,
        is_network=True,
        name=pure.name,
        initializer=initializer,
        outputs_last=pure.outputs_last,
        is_separable=getattr(network, "norm", None) != "batch" if separable is None else separable,
    )
    target = jax.ShapeDtypeStruct((1, *target_shape), jnp.int32 if likelihood == "categorical" else jnp.float32)
    return model.bind(batch, target)


def _observation(
    likelihood: str, target_shape: tuple[int, ...], noise_scale: float | None
) -> Callable[[jax.Array], dist.Distribution]:
    """The distribution of targets given function values (n, d), inside a program: a noise scale is a site of it."""
    if likelihood == "categorical":
        return lambda f: dist.Categorical(logits=f)
    noise_prior: dist.Distribution = dist.HalfNormal(1.0)
    if target_shape:
        noise_prior = noise_prior.expand(target_shape).to_event(1)

    def gaussian(f: jax.Array) -> dist.Distribution:
        noise = numpyro.sample("noise", noise_prior) if noise_scale is None else noise_scale
        return dist.Normal(f if target_shape else f[:, 0], noise).to_event(len(target_shape))

    return gaussian


def _check_settings(likelihood: str, prior_scale: PriorScale, noise_scale: float | None) -> None:
    """Refuse settings that are out of range, by name."""
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood={likelihood!r} is unknown; use one of {', '.join(map(repr, LIKELIHOODS))}")
    if isinstance(prior_scale, str) and prior_scale != "fan_in":
        raise ValueError(f"prior_scale={prior_scale!r} is unknown; use 'fan_in', a positive number or a function")
    if isinstance(prior_scale, int | float) and not prior_scale > 0:
        raise ValueError(f"prior_scale must be positive; got {prior_scale}")
    if noise_scale is not None and not noise_scale > 0:
        raise ValueError(f"noise_scale must be positive; got {noise_scale}")


def _check_outputs(
    outputs: tuple[int, ...],
    inputs: tuple[int, ...],
    num_outputs: int | None,
    likelihood: str,
    target_shape: tuple[int, ...],
) -> None:
    """Refuse outputs of a network that do not fit its inputs, or the targets."""
    if outputs != (2, outputs[-1]) or (num_outputs is not None and outputs[-1] != num_outputs):
        raise ValueError(f"the network maps inputs {inputs} to {outputs}; wanted (n, {num_outputs or 'outputs'})")
    if likelihood == "gaussian" and outputs[-1] != math.prod(target_shape):
        raise ValueError(f"the network has {outputs[-1]} outputs for targets (n, {math.prod(target_shape)})")
    if likelihood == "categorical" and target_shape:
        raise ValueError(
            f"likelihood='categorical' takes one label a datum; each target of data has shape {target_shape}"
        )


def _at_least(x: jax.Array, values: jax.Array) -> jax.Array:
    return values.astype(jnp.promote_types(x.dtype, values.dtype))


def _prior(
    name: str, shape: tuple[int, ...], prior_scale: PriorScale, outputs_last: bool, at_one: bool
) -> tuple[float, float]:
    """(mean, standard deviation) of the prior of one weight array."""
    if callable(prior_scale):
        with blaming("prior_scale(name, shape)"):
            scale = float(prior_scale(name, shape))
        if not 0 < scale < math.inf:
            raise ValueError(f"prior_scale(name, shape) must be positive; got {scale} for {name!r}, {shape}")
        return 0.0, scale
    if not isinstance(prior_scale, str):
        return 0.0, float(prior_scale)
    if len(shape) < 2 or name.rpartition(".")[2] in ("scale", "bias"):
        return (1.0 if at_one else 0.0), 0.5
    fan_in = math.prod(shape[:-1] if outputs_last else shape[1:])
    return 0.0, math.sqrt(2.0 / fan_in)


def _constant_one_leaves(pure: _Network, names: list[str]) -> set[str]:
    """Norm scales: the arrays that are initialised to ones."""
    leaves = jax.tree.leaves(jax.jit(pure.init)(jax.random.key(0)))
    return {name for name, leaf in zip(names, leaves, strict=True) if bool(jnp.all(leaf == 1))}


def _as_network(network: Any, input_shape: tuple[int, ...], num_outputs: int | None) -> _Network:
    linen = sys.modules.get("flax.linen")
    nnx, equinox = sys.modules.get("flax.nnx"), sys.modules.get("equinox")
    if linen is not None and isinstance(network, linen.Module):
        return _from_linen(network, input_shape, num_outputs)
    factory = None
    module = network
    if not _is_module(network, nnx, equinox):
        if not callable(network):
            raise TypeError(
                "network must be a flax linen, flax nnx or equinox module, or a function key -> module; got "
                f"{type(network).__name__}"
            )
        factory = network
        try:
            module = network(jax.random.key(0))
        except Exception as error:  # whatever a function of the user raises
            raise TypeError(f"network(jax.random.key(0)) failed, with {type(error).__name__}: {error}") from error
        # The factory may be what imported its framework.
        nnx, equinox = sys.modules.get("flax.nnx"), sys.modules.get("equinox")
    if nnx is not None and isinstance(module, nnx.Module):
        return _from_nnx(module, factory)
    if equinox is not None and isinstance(module, equinox.Module):
        return _from_equinox(module, factory)
    raise TypeError(f"network(key) must return a flax nnx or equinox module; got {type(module).__name__}")


def _is_module(network: Any, nnx: Any, equinox: Any) -> bool:
    kinds = tuple(framework.Module for framework in (nnx, equinox) if framework is not None)
    return isinstance(network, kinds)


def _from_linen(network: Any, input_shape: tuple[int, ...], num_outputs: int | None) -> _Network:
    if getattr(network, "num_outputs", 0) is None and num_outputs is not None:
        network = network.clone(num_outputs=num_outputs)
    example = jnp.zeros((1, *input_shape), jnp.float32)
    collections = jax.eval_shape(network.init, jax.random.key(0), example)
    _refuse_state(sorted(set(collections) - {"params"}))

    def init(key: jax.Array) -> Any:
        return network.init(key, jnp.zeros((1, *input_shape), jnp.float32))["params"]

    def apply(weights: Any, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        if not _has_features(network):
            return network.apply({"params": weights}, x), None
        # One pass gives both: what the method returns is captured on the way to the outputs.
        outputs, captured = network.apply(
            {"params": weights},
            x,
            capture_intermediates=lambda _, method: method == "features",
            mutable=["intermediates"],
        )
        return outputs, captured.get("intermediates", {}).get("features", (None,))[0]

    return _Network(type(network).__name__, init, apply, True)


def _has_features(module: Any) -> bool:
    """Whether it has a method ``features``, rather than a number or a layer of that name."""
    return inspect.isfunction(getattr(type(module), "features", None))


def _from_nnx(module: Any, factory: Callable[[jax.Array], Any] | None) -> _Network:
    from flax import nnx

    graph, *states = nnx.split(module, nnx.Param, ...)
    weights, rest = states
    _refuse_state(sorted({type(leaf).__name__ for leaf in jax.tree.leaves(rest, is_leaf=_is_variable)}))

    def init(key: jax.Array) -> Any:
        return _permuted(key, values) if factory is None else pure(nnx.split(factory(key), nnx.Param, ...)[1])

    def pure(state: Any) -> Any:
        return nnx.to_pure_dict(state)

    def apply(values: Any, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        whole = nnx.merge(graph, jax.tree.unflatten(structure, jax.tree.leaves(values)), rest)
        return whole(x), whole.features(x) if _has_features(whole) else None

    values, structure = pure(weights), jax.tree.structure(weights)
    return _Network(type(module).__name__, init, apply, True)


def _is_variable(leaf: Any) -> bool:
    from flax import nnx

    return isinstance(leaf, nnx.Variable)


def _from_equinox(module: Any, factory: Callable[[jax.Array], Any] | None) -> _Network:
    import equinox

    weights, static = equinox.partition(module, equinox.is_inexact_array)

    def init(key: jax.Array) -> Any:
        if factory is None:
            return _permuted(key, weights)
        return equinox.filter(factory(key), equinox.is_inexact_array)

    def apply(values: Any, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        whole = equinox.combine(values, static)
        return jax.vmap(whole)(x), jax.vmap(whole.features)(x) if _has_features(whole) else None

    return _Network(type(module).__name__, init, apply, False)


def _permuted(key: jax.Array, weights: Any) -> Any:
    """Another initialisation from the same law: the entries of every array in a random order."""
    leaves, treedef = jax.tree.flatten(weights)
    keys = jax.random.split(key, len(leaves))
    shuffled = [
        jax.random.permutation(k, leaf.ravel()).reshape(leaf.shape) for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, shuffled)


def _refuse_state(collections: list[str]) -> None:
    if collections:
        raise ValueError(
            f"the network keeps mutable state besides its weights ({', '.join(collections)}); a posterior over "
            "weights needs a function of weights and inputs alone. Use group or layer norm, or "
            "ConvNet(norm='batch'), which normalises by the batch at hand, and no dropout"
        )
