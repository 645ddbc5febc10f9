"""What is chosen per backend."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

import pseudocoreset as pc
from pseudocoreset.compute.backends import convolution_form, full_precision
from pseudocoreset.compute.devices import Devices
from pseudocoreset.inference import sample
from pseudocoreset.models import ConvNet, bnn

SHAPE = (8, 8, 1)
X = np.random.default_rng(0).normal(size=(12, *SHAPE)).astype(np.float32)
MODEL = bnn(ConvNet(depth=1, width=4), input_shape=SHAPE, num_outputs=3)


@pytest.fixture
def chooses_as_on(monkeypatch):
    """Choices as on another backend. No program of one backend is kept for the other."""

    def change(backend):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        jax.clear_caches()

    yield change
    jax.clear_caches()


@pytest.fixture
def accelerator(chooses_as_on):
    chooses_as_on("tpu")


@pytest.fixture
def gpu(chooses_as_on):
    chooses_as_on("gpu")


def equations(fn, *arguments):
    """Of a program and of what it calls."""

    def look(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from look(inner)

    return list(look(jax.make_jaxpr(fn)(*arguments).jaxpr))


def precisions(fn, *arguments):
    """Of the products in a program and in what it calls."""
    return {e.params["precision"] for e in equations(fn, *arguments) if "precision" in e.params}


def gradient(params):
    return jax.grad(lambda p: MODEL.log_likelihood(p, X, np.arange(12) % 3).sum())(params)


HIGHEST, HIGH = (2 * (precision,) for precision in (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGH))


def test_an_accelerator_multiplies_in_single_precision_unless_told(accelerator):
    params = MODEL.init(jax.random.key(0))
    assert precisions(gradient, params) == {HIGHEST}
    with jax.default_matmul_precision("tensorfloat32"):
        assert precisions(gradient, params) == {HIGH}
    assert precisions(gradient, params) == {HIGHEST}


def test_so_does_all_that_the_front_doors_compile(accelerator, monkeypatch):
    """What is multiplied outside of the model too; as is seen by what is in force when the model is called."""
    seen = []
    original = type(MODEL).trace

    def spy(self, *arguments, **named):
        seen.append(jax.default_matmul_precision.value)
        return original(self, *arguments, **named)

    monkeypatch.setattr(type(MODEL), "trace", spy)
    data = pc.Dataset.from_arrays(X, np.arange(12) % 3)
    experts = pc.train_experts(MODEL, data, num_experts=1, num_epochs=1, batch_size=4, key=jax.random.key(0))
    settings = {"images_per_class": 1, "steps": 1, "inner_max_steps": 1}
    pc.fit_fbpc(MODEL, data, experts=experts, key=jax.random.key(1), progress=False, **settings)
    sample(
        MODEL, data, key=jax.random.key(2), kernel="hmc", num_chains=1, num_warmup=0, num_samples=1, step_size=0.01,
        progress=False,
    )  # fmt: skip
    assert set(seen) == {"highest"}


def test_a_cpu_is_left_alone():
    assert precisions(gradient, MODEL.init(jax.random.key(0))) == {None}


def test_a_cpu_convolves_by_routines():
    made = [e.primitive.name for e in equations(gradient, MODEL.init(jax.random.key(0)))]
    assert {"correlation_3x3", "correlation_3x3_gradient"} <= set(made)
    assert "conv_general_dilated" not in made


@pytest.mark.parametrize(
    ("backend", "images", "filters", "form"),
    [
        ("cpu", (64, 4, 4, 512), (3, 3, 512, 512), "routine"),
        ("cpu", (16, 4, 4, 512), (3, 3, 512, 512), "product"),  # few pixels meet many weights
        ("cpu", (64, 4, 4, 32), (5, 5, 32, 32), "product"),
        ("gpu", (64, 4, 4, 32), (3, 3, 32, 32), "winograd"),
        ("gpu", (64, 2, 2, 32), (3, 3, 32, 32), "library"),
        ("gpu", (64, 4, 4, 3), (3, 3, 3, 32), "product"),
        ("gpu", (64, 4, 4, 32), (5, 5, 32, 32), "library"),
        ("tpu", (64, 4, 4, 32), (3, 3, 32, 32), "library"),
        ("tpu", (64, 4, 4, 3), (3, 3, 3, 32), "library"),
    ],
)
def test_each_backend_has_its_forms_of_convolutions(backend, images, filters, form, chooses_as_on):
    chooses_as_on(backend)
    single = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (images, filters)]
    with full_precision():
        assert convolution_form(*single, padding=1, stride=1) == form
        assert convolution_form(*single, padding=1, stride=2) in ("product", "library")


@pytest.mark.parametrize(("backend", "form"), [("cpu", "product"), ("gpu", "library"), ("tpu", "library")])
def test_half_precision_has_no_form_of_our_own(backend, form, chooses_as_on):
    chooses_as_on(backend)
    half = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((64, 4, 4, 32), (3, 3, 32, 32))]
    with full_precision():
        assert convolution_form(*half, padding=1, stride=1) == form


DEEP = bnn(ConvNet(depth=2, width=8), input_shape=SHAPE, num_outputs=3)


def convolutions(fn, *arguments):
    """Channels of the images that the compiler's own convolutions take."""
    made = equations(fn, *arguments)
    return [e.invars[0].aval.shape[3] for e in made if e.primitive.name == "conv_general_dilated"]


def test_a_gpu_convolves_in_winograds_form_in_single_precision_alone(gpu):
    params = DEEP.init(jax.random.key(0))

    def values(params, model=DEEP):
        return model.apply(params, X)

    assert convolutions(values, params) == []
    with jax.default_matmul_precision("tensorfloat32"):
        assert convolutions(values, params) == [8]
    half = bnn(ConvNet(depth=2, width=8, dtype="bfloat16"), input_shape=SHAPE, num_outputs=3)
    assert convolutions(lambda p: values(p, half), params) == [8]


def test_its_forms_give_what_a_cpu_s_do(gpu, monkeypatch):
    params = DEEP.init(jax.random.key(0))

    def gradient_now():
        return jax.jit(lambda p: jax.grad(lambda p: DEEP.log_likelihood(p, X, np.arange(12) % 3).sum())(p))(params)

    found = gradient_now()
    with jax.default_matmul_precision("tensorfloat32"):  # a CPU rounds nothing, whatever it is told
        library = gradient_now()
    monkeypatch.undo()
    jax.clear_caches()
    expected = gradient_now()
    for form in (found, library):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), form, expected)


def test_images_are_written_out_before_they_are_unfolded_on_a_gpu(gpu, monkeypatch):
    params = DEEP.init(jax.random.key(0))

    def barriers():
        made = equations(lambda p, x: DEEP.apply(p, 2.0 * x), params, X)
        return [e.invars[0].aval.shape for e in made if e.primitive.name == "optimization_barrier"]

    assert barriers() == [X.shape]
    monkeypatch.undo()
    jax.clear_caches()
    assert barriers() == []


@pytest.mark.parametrize(("fills", "rounds"), [(1, 5), (2, 3), (4, 2), (5, None), (99, None)])
def test_an_accelerator_takes_as_many_networks_at_once_as_keep_it_busy(accelerator, fills, rounds):
    """Arrays of 64 MiB together do; the largest of one network is 4 times as large as its parameters here."""

    def mapped(stack):
        return Devices().map(outer, stack, 1.0)

    stack = jax.ShapeDtypeStruct((5, 2**26 // fills // 16), jnp.float32)
    scans = [e.params["length"] for e in equations(mapped, stack) if e.primitive.name == "scan"]
    # A last round that is smaller is not in the loop.
    assert scans == ([] if rounds is None else [rounds - (5 % -(-5 // rounds) > 0)])


def outer(params, offset):
    return jnp.outer(jnp.arange(4.0), params).sum(0) + offset


@pytest.mark.parametrize("size", [7, 2**21])
def test_networks_that_go_together_are_each_by_itself(size, accelerator):
    """All five, or in rounds of two."""
    stack = np.random.default_rng(0).normal(size=(5, size)).astype(np.float32)
    np.testing.assert_allclose(Devices().map(outer, stack, 1.0), 6 * stack + 1, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3])
def test_networks_go_one_by_one_on_a_cpu(size):
    stack = np.ones((size, 7), np.float32)
    made = equations(lambda stack: Devices().map(lambda params: params @ jnp.eye(7), stack), stack)
    assert [e.params["length"] for e in made if e.primitive.name == "scan"] == [size]
    assert {e.invars[0].aval.shape for e in made if e.primitive.name == "dot_general"} == {(7,)}
