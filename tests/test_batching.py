"""What is chosen per backend."""

import jax
import jax.extend
import numpy as np
import pytest

import pseudocoreset as pc
from pseudocoreset.inference import sample
from pseudocoreset.models import ConvNet, bnn

SHAPE = (8, 8, 1)
X = np.random.default_rng(0).normal(size=(12, *SHAPE)).astype(np.float32)
MODEL = bnn(ConvNet(depth=1, width=4), input_shape=SHAPE, num_outputs=3)


@pytest.fixture
def accelerator(monkeypatch):
    """Choices as on an accelerator. No program of one kind of backend is kept for the other."""
    monkeypatch.setattr("pseudocoreset.batching._on_cpu", lambda: False)
    jax.clear_caches()
    yield
    jax.clear_caches()


def precisions(fn, *arguments):
    """Of the products in a program and in what it calls."""
    found = set()

    def look(jaxpr):
        for equation in jaxpr.eqns:
            if "precision" in equation.params:
                found.add(equation.params["precision"])
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                look(inner)

    look(jax.make_jaxpr(fn)(*arguments).jaxpr)
    return found


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
    original = type(MODEL)._trace

    def spy(self, *arguments, **named):
        seen.append(jax.default_matmul_precision.value)
        return original(self, *arguments, **named)

    monkeypatch.setattr(type(MODEL), "_trace", spy)
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
