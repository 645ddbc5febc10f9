"""What ``Devices`` does on one device; ``tests/test_devices.py`` compares several with it."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.compute.devices import Devices
from pseudocoreset.compute.limits import limited, limits
from pseudocoreset.models import MLP, bnn
from pseudocoreset.rows import Rows

STACK = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
MODEL = bnn(MLP((4,)), input_shape=(3,), num_outputs=2)
ROWS = Rows(jnp.asarray(STACK), jnp.zeros(7, int), jnp.arange(7.0))


def norm(item, scale):
    return {"norm": scale * jnp.sum(item**2), "item": item}


def loops(fn, *arguments):
    """Lengths of the loops in a program."""

    def look(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "scan":
                yield equation.params["length"]
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from look(inner)

    return list(look(jax.make_jaxpr(fn)(*arguments).jaxpr))


@pytest.mark.parametrize(("at_once", "turns"), [(1, [7]), (3, [2]), (7, []), ("all", [])])
def test_a_stack_goes_as_it_is_told(at_once, turns):
    devices = Devices().taking(at_once)
    mapped = functools.partial(devices.map, norm)
    found = mapped(STACK, 2.0)
    np.testing.assert_allclose(found["norm"], 2 * (STACK**2).sum(1), rtol=1e-6)
    np.testing.assert_array_equal(found["item"], STACK)
    assert loops(mapped, STACK, 2.0) == turns


@pytest.mark.parametrize(("at_once", "turns"), [("busy", [7]), ("all", [])])
def test_the_sum_over_a_stack_holds_one_item_or_all(at_once, turns):
    summed = functools.partial(Devices().taking(at_once).sum, norm)
    found = summed(STACK, 2.0)
    np.testing.assert_allclose(found["norm"], 2 * (STACK**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(found["item"], STACK.sum(0), rtol=1e-5)
    assert loops(summed, STACK, 2.0) == turns


@pytest.mark.parametrize("chunk", [None, 2, 3, 7, 100])
def test_sums_over_rows_and_results_of_each_are_the_same_in_any_chunks(chunk):
    devices = Devices().in_chunks_of(chunk)

    def fn(rows, beside):
        return jnp.sum(rows.weights * beside), rows.inputs[:, 0] * beside

    beside = jnp.arange(7.0) ** 2
    total, each = devices.sum_rows(fn, ROWS, beside, has_aux=True)
    np.testing.assert_allclose(total, np.sum(np.arange(7.0) ** 3))
    np.testing.assert_array_equal(devices.gather(each, 7), STACK[:, 0] * beside)
    np.testing.assert_array_equal(devices.map_rows(lambda rows: 2 * rows.inputs, ROWS), 2 * STACK)


def test_without_an_axis_for_data_rows_are_whole():
    line = Devices.of(jax.make_mesh((1,), ("devices",)))
    assert line.sharing_rows(MODEL) == line == line.splitting_rows()
    assert Devices().sharing_rows(MODEL) == Devices()
    data = Devices.of(jax.make_mesh((1,), ("data",)))
    assert (data.sharing_rows(MODEL).rows, data.splitting_rows().rows) == ("shared", "split")


def test_no_program_of_other_limits_is_taken():
    @functools.partial(jax.jit, static_argnums=0)
    def chunks(devices):
        seen = []
        devices.for_rows_of(MODEL).map_rows(lambda rows: seen.append(len(rows.weights)) or rows.weights, ROWS)
        return jnp.asarray(seen[0])

    before = limits()
    assert chunks(Devices()) == 7
    with limited(rows=2) as now:
        assert limits() == now != before
        assert chunks(Devices()) == 2
    assert limits() == before
    assert chunks(Devices()) == 7


def test_limits_are_as_before_after_an_error():
    before = limits()
    with pytest.raises(ZeroDivisionError), limited(rows=2):
        1 / 0  # noqa: B018
    assert limits() == before
