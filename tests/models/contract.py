"""What ``Model.from_numpyro(program).bind(x, y)`` promises of a program that it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.util import constrain_fn, potential_energy

from pseudocoreset.models import Model

__all__ = ["REFUSALS", "assert_is_a_sentence", "check", "check_single_precision", "right_or_refused"]

REFUSALS = (ValueError, TypeError)
# Some special functions of JAX have no more digits than these.
SCIPY_DIGITS = 1e-5


def near(found: Any, expected: Any, what: str, rtol: float = 1e-9) -> None:
    np.testing.assert_allclose(
        np.asarray(found, float), np.asarray(expected, float), rtol=rtol, atol=rtol, err_msg=what
    )


def take(tree: Any, rows: Any) -> Any:
    return jax.tree.map(lambda a: a[rows], tree)


def floats(x: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The floating-point leaves of the inputs, and what puts them back."""
    leaves, tree = jax.tree.flatten(x)
    moved = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def join(parts: list[Any]) -> Any:
        whole = list(leaves)
        for i, part in zip(moved, parts, strict=True):
            whole[i] = part
        return jax.tree.unflatten(tree, whole)

    return [leaves[i] for i in moved], join


def widened(tree: Any) -> Any:
    """Small integers as default ones: of eight bits, NumPyro's own log-probabilities overflow."""
    return jax.tree.map(lambda a: a.astype(int) if jnp.issubdtype(a.dtype, jnp.integer) else a, tree)


def check(
    program: Callable[..., Any],
    x: Any,
    y: Any,
    *,
    rows: Callable[[Any], Any] | None = None,
    probabilities: Callable[[Any], Any] | None = None,
    reference: Callable[..., Any] | None = None,
    inputs_move: bool = True,
    proved: bool = True,
    seed: int = 0,
) -> Model:
    """Bind the program and check everything that the bound model promises, in double precision.

    Args:
        program: the program.
        x: inputs.
        y: targets.
        rows: ``values -> (n,)``, the log-likelihoods at constrained values of the sites.
        probabilities: ``values -> (n, classes)``.
        reference: what NumPyro runs, the same program by default.
        inputs_move: whether gradients in the inputs are compared.
        proved: whether ``bind`` tries the program on the data, which takes longer than all checks made here.
        seed: of the parameters.

    Raises:
        AssertionError: naming the promise that is broken.
        ValueError, TypeError: where the program is refused.
    """
    with jax.enable_x64():
        targets = y if proved else jax.ShapeDtypeStruct(y.shape, y.dtype)
        model = Model.from_numpyro(program).bind(x, targets)
        packed = None if model.layout is None else jnp.asarray(model.layout.pack(x))
        x, y = jax.tree.map(jnp.asarray, (x, y))
        if y.dtype == jnp.float32:
            # Log-gammas of such targets have single precision, whatever else is double.
            y = y.astype(float)
        at = [parameters(model, seed + i) for i in range(2)]
        results = [
            jax.tree.map(np.asarray, r) for r in evaluated(model, reference or program, at, x, y, packed, inputs_move)
        ]
    for ours, theirs in results:
        compare(ours, theirs, len(y), rows, probabilities)
    if probabilities is not None:
        wanted = probabilities(results[0][1]["values"]).shape[1]
        assert model.num_classes == wanted, f"num_classes is {model.num_classes}, wanted {wanted}"
    return model


def parameters(model: Model, seed: int) -> dict[str, np.ndarray]:
    """Unconstrained parameters of the shapes of ``init``, without its compilation."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return {name: rng.uniform(-1.5, 1.5, leaf.shape).astype(leaf.dtype) for name, leaf in shapes.items()}


def evaluated(model: Model, program: Any, at: Any, x: Any, y: Any, packed: Any, inputs_move: bool) -> list[Any]:
    """What the model says and what NumPyro says at each of some parameters, in one compiled call."""
    n = len(y)
    parts, join = floats(x) if inputs_move else ([], lambda _: x)
    order = np.concatenate([np.arange(n)[::-1], np.arange(n)])

    def joint(p: Any, parts: Any, y: Any) -> Any:
        each = model.log_likelihood(p, join(parts), y)
        return model.log_prior(p) + jnp.sum(each), each

    def potential(p: Any, parts: Any, y: Any) -> Any:
        return -potential_energy(program, widened((join(parts), y)), {}, p)

    def both(p: Any, parts: Any, y: Any) -> Any:
        x = join(parts)
        (total, each), gradients = jax.value_and_grad(joint, (0, 1), has_aux=True)(p, parts, y)
        ours = {"total": total, "each": each, "gradients": gradients, "values": model.constrain(p)}
        ours["alone"] = model.log_likelihood(p, take(x, slice(n - 1, n)), y[n - 1 :])
        ours["many"] = model.log_likelihood(p, take(x, order), y[order])[:n][::-1]
        if packed is not None:
            # As the library keeps inputs of several kinds.
            ours["packed"] = model.log_likelihood(p, packed, y)
        if model.has_function:
            ours |= given_function(model, p, x, y)
        total, gradients = jax.value_and_grad(potential, (0, 1))(p, parts, y)
        values = constrain_fn(program, widened((x, y)), {}, p, return_deterministic=True)
        return ours, {"total": total, "gradients": gradients, "values": values}

    # Chains run under vmap, too.
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *at)
    result = jax.jit(jax.vmap(both, (0, None, None)))(stacked, parts, y)
    return [take(result, i) for i in range(len(at))]


def given_function(model: Model, p: Any, x: Any, y: Any) -> dict[str, Any]:
    f = model.apply(p, x)
    one, moved, order = slice(1, 2), 1.2 * f + 0.3, np.arange(len(y))[::-1]
    found = {
        "apply": f,
        "given f": model.function_log_likelihood(p, f, x, y),
        "given moved f": model.function_log_likelihood(p, moved, x, y),
        "given moved f, turned": model.function_log_likelihood(p, moved[order], take(x, order), y[order])[::-1],
        "given one f": model.function_log_likelihood(p, f[one], take(x, one), y[one]),
    }
    if model.num_classes is not None:
        found["probabilities"] = model.function_probabilities(p, f, x)
    return found


def compare(ours: Any, theirs: Any, n: int, rows: Any, probabilities: Any) -> None:
    each, values = ours["each"], theirs["values"]
    assert each.shape == (n,), f"log_likelihood has shape {each.shape} for {n} rows"
    near(ours["total"], theirs["total"], "joint density")
    for name, gradient in theirs["gradients"][0].items():
        near(ours["gradients"][0][name], gradient, f"gradient in {name!r}", 1e-8)
    for i, (a, b) in enumerate(zip(ours["gradients"][1], theirs["gradients"][1], strict=True)):
        near(a, b, f"gradient in float leaf {i} of x", 1e-8)
    for name, value in ours["values"].items():
        near(value, values[name], f"constrain, site {name!r}")
    if rows is not None:
        near(each, rows(values), "log_likelihood against SciPy", SCIPY_DIGITS)
    near(ours["alone"], each[-1:], "the log-likelihood of a row alone")
    near(ours["many"], each, "log-likelihoods of rows among many in another order")
    if "packed" in ours:
        near(ours["packed"], each, "log-likelihoods of inputs as the library keeps them")
    if "apply" in ours:
        near(ours["apply"].reshape(n, -1), values["f"].reshape(n, -1), "apply")
        assert ours["apply"].ndim == 2, f"apply has shape {ours['apply'].shape}"
        near(ours["given f"], each, "function_log_likelihood")
        near(ours["given one f"], each[1:2], "function_log_likelihood of one row")
        near(ours["given moved f, turned"], ours["given moved f"], "function_log_likelihood at other function values")
        assert not np.allclose(ours["given moved f"], each), "function_log_likelihood does not see the function values"
        if probabilities is not None:
            near(ours["probabilities"], probabilities(values), "function_probabilities", SCIPY_DIGITS)


def check_single_precision(program: Callable[..., Any], x: Any, y: Any, seed: int = 0) -> None:
    """The joint density in single precision is NumPyro's, and a row's log-likelihood depends on no other row."""
    model = Model.from_numpyro(program).bind(x, y)
    x, y = jax.tree.map(jnp.asarray, (x, y))
    p = parameters(model, seed)

    @jax.jit
    def values(p: Any, x: Any, y: Any) -> Any:
        alone = model.log_likelihood(p, take(x, slice(1, 2)), y[1:2])
        wanted = -potential_energy(program, widened((x, y)), {}, p)
        return model.log_prior(p), model.log_likelihood(p, x, y), alone, wanted

    prior, each, alone, wanted = jax.tree.map(np.asarray, values(p, x, y))
    assert each.dtype == np.float32
    size = np.abs(each).sum() + abs(prior) + 1.0
    assert abs(prior + each.sum() - wanted) < 1e-4 * size, f"joint density {prior + each.sum()}, wanted {wanted}"
    near(alone, each[1:2], "the log-likelihood of a row alone", 1e-4)


def right_or_refused(program: Callable[..., Any], x: Any, y: Any, *words: str, **arguments: Any) -> Exception | None:
    """Check the promises, or that the refusal has one of the words; returns the refusal."""
    try:
        with jax.enable_x64():
            Model.from_numpyro(program).bind(x, y)
    except REFUSALS as error:
        refusal = error
    else:
        check(program, x, y, **arguments)
        return None
    assert_is_a_sentence(refusal)
    assert not words or any(word in str(refusal) for word in words), f"the refusal has none of {words}: {refusal}"
    return refusal


def assert_is_a_sentence(refusal: BaseException) -> None:
    """A refusal is the library's own, not an error of JAX that happens to be a TypeError."""
    assert not type(refusal).__module__.startswith("jax"), f"{type(refusal).__name__}: {str(refusal)[:300]}"
    assert len(str(refusal)) < 900, f"a refusal of {len(str(refusal))} characters"
