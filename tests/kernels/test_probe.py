"""The library without its routines: a network gives the same numbers, and one line of the log says why it is slower."""

import os
import subprocess
import sys

import pytest

from tests.marks import slow_but

# What is broken in a process before it convolves.
BROKEN = {
    "no llvmlite": "sys.modules['llvmlite'] = None",
    "no primitives in JAX": "import jax.interpreters.ad; del jax.interpreters.ad.defjvp",
    "unknown processor": "import platform; platform.machine = lambda: 'riscv64'",
    "other structures": """
import pathlib, tempfile, jax
header = "xla/ffi/api/c_api.h"
text = (pathlib.Path(jax.ffi.include_dir()) / header).read_text()
folder = pathlib.Path(tempfile.mkdtemp())
(folder / header).parent.mkdir(parents=True)
(folder / header).write_text(text.replace("int64_t* dims;", "int32_t* dims;"))
jax.ffi.include_dir = lambda: str(folder)
""",
    "wrong numbers": """
from pseudocoreset.kernels import transforms
transforms.OUTPUT[2, 1] = 2
""",
}
REASONS = {
    "no llvmlite": "ModuleNotFoundError: No module named 'llvmlite",
    "no primitives in JAX": "AttributeError",
    "unknown processor": "no routines for processors of the kind 'riscv64'",
    "other structures": "no member 'int64_t* dims' in XLA_FFI_Buffer",
    "wrong numbers": "ArithmeticError: values of a convolution are wrong by",
}

NETWORK = """
import logging
import jax
import jax.numpy as jnp
import numpy as np
from pseudocoreset.models import ConvNet, bnn

assert "llvmlite" not in sys.modules or sys.modules["llvmlite"] is None, "loaded before anything is compiled"
logging.basicConfig(level=logging.INFO, format="LOG %(levelname)s %(name)s %(message)s", stream=sys.stdout)
model = bnn(ConvNet(depth=2, width=16), input_shape=(8, 8, 3), num_outputs=3)
images = np.random.default_rng(0).normal(size=(30, 8, 8, 3)).astype(np.float32)
params = model.init(jax.random.key(0))
loss = lambda params: model.log_likelihood(params, images, jnp.arange(30) % 3).sum()
# Two programs, the first of them while JAX traces and maps.
jax.jit(jax.vmap(loss))(jax.tree.map(lambda a: jnp.stack([a, a]), params))
gradient = jax.jit(jax.grad(loss))(params)
print("NORM", float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(gradient))))
print("CALLS", "pseudocoreset_correlation" in jax.jit(loss).lower(params).as_text())
"""


def network(before="", **variables):
    """The size of a gradient, whether routines are called, and lines of the library's log, of a process of its own."""
    code = "import sys\n" + before + NETWORK
    environment = {k: v for k, v in os.environ.items() if k != "PSEUDOCORESET_KERNELS"} | variables
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.splitlines()
    (norm,) = (float(line.split()[1]) for line in said if line.startswith("NORM"))
    (calls,) = (line == "CALLS True" for line in said if line.startswith("CALLS"))
    return norm, calls, [line for line in said if line.startswith("LOG") and " pseudocoreset" in line]


@pytest.fixture(scope="module")
def with_routines():
    return network()


def test_routines_are_called_without_a_word(with_routines):
    _, calls, log = with_routines
    assert calls
    assert log == []


@pytest.mark.parametrize("broken", slow_but(BROKEN, "no llvmlite", "other structures", "wrong numbers"))
def test_whatever_is_broken_costs_speed_and_no_run(broken, with_routines):
    norm, calls, log = network(BROKEN[broken])
    assert norm == pytest.approx(with_routines[0], rel=1e-4)
    assert not calls
    assert len(log) == 1
    assert log[0].startswith("LOG WARNING pseudocoreset")
    assert REASONS[broken] in log[0]


def test_a_variable_switches_them_off(with_routines):
    norm, calls, log = network(PSEUDOCORESET_KERNELS="off")
    assert norm == pytest.approx(with_routines[0], rel=1e-4)
    assert not calls
    assert len(log) == 1
    assert log[0].startswith("LOG INFO pseudocoreset")
    assert "PSEUDOCORESET_KERNELS is off" in log[0]


def test_a_variable_with_another_value_is_refused():
    with pytest.raises(AssertionError, match="PSEUDOCORESET_KERNELS: wanted 'auto' or 'off', got 'no'"):
        network(PSEUDOCORESET_KERNELS="no")


def test_a_correlation_without_routines_is_refused():
    code = "import jax.numpy as jnp\nfrom pseudocoreset.kernels import correlate\n"
    code += "correlate(jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1)))"
    environment = os.environ | {"PSEUDOCORESET_KERNELS": "off"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "RuntimeError: correlate: this process has no routines" in ran.stderr
