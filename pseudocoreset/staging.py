"""A function of data in two stages: what it makes of the data alone, and the rest.

In a loop over parameters at fixed data the first stage is the same in every turn. The compiler takes it out of the loop
where it sees it; inside a second loop over chunks of the data, whose slices change from turn to turn, it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Var, jaxpr_as_fun

__all__ = ["staged"]


def staged(fn: Callable[..., Any], *data: Any) -> tuple[Callable[..., list[jax.Array]], Callable[..., Any], int]:
    """``first`` and ``second`` such that ``second(first(*data))`` is ``fn(*data)``.

    Args:
        fn: function of data that closes over arrays; what depends on these is left to the second stage, as are side
            effects. Nested ``jit``s are opened.
        *data: pytrees of arrays or of their shapes.

    Returns:
        ``first``, from data like these to what the second stage needs of them; ``second``, from that to the results;
        and the bytes that lie between.
    """
    leaves, structure = jax.tree.flatten(data)
    traced, shapes = jax.make_jaxpr(lambda *flat: fn(*jax.tree.unflatten(structure, flat)), return_shape=True)(*leaves)
    closed = jax.make_jaxpr(lambda *flat: _opened(traced.jaxpr, traced.consts, flat))(*leaves)
    whole = closed.jaxpr
    of_data: set[Var] = set(whole.invars)
    of_rest: set[Var] = set(whole.constvars)
    before, after = [], []
    for equation in whole.eqns:
        taken = {v for v in equation.invars if isinstance(v, Var)}
        if taken & of_rest or equation.effects:
            of_rest.update(equation.outvars)
            after.append(equation)
        elif taken & of_data:
            of_data.update(equation.outvars)
            before.append(equation)
        else:  # a constant, as cheap to make again as to keep
            before.append(equation)
            after.append(equation)
    wanted = [*(v for equation in after for v in equation.invars), *whole.outvars]
    kept = list(dict.fromkeys(v for v in wanted if isinstance(v, Var) and v in of_data))

    first = whole.replace(constvars=[], outvars=kept, eqns=before, effects=set())
    second = whole.replace(invars=kept, eqns=after)
    run_first = jaxpr_as_fun(ClosedJaxpr(first, []))
    run_second = jaxpr_as_fun(ClosedJaxpr(second, closed.consts))
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.eval_shape(run_first, *leaves))
    return (
        lambda *data: run_first(*jax.tree.leaves(data)),
        lambda between: jax.tree.unflatten(jax.tree.structure(shapes), run_second(*between)),
        size,
    )


def _opened(jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """What ``jaxpr`` computes, its nested ``jit``s as if they were written out in it: each may be of both stages."""
    values: dict[Var, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def value(atom: Any) -> Any:
        return values[atom] if isinstance(atom, Var) else atom.val

    for equation in jaxpr.eqns:
        taken = [value(atom) for atom in equation.invars]
        if equation.primitive.name in ("jit", "pjit"):
            inner = equation.params["jaxpr"]
            results = _opened(inner.jaxpr, inner.consts, taken)
        else:
            results = equation.primitive.bind(*taken, **equation.primitive.get_bind_params(equation.params))
            if not equation.primitive.multiple_results:
                results = [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [value(atom) for atom in jaxpr.outvars]
