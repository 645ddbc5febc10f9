"""Many devices: the numbers of one, from four in a process and from two processes, whatever was begun where."""

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import pseudocoreset
from pseudocoreset import Experts, Pseudocoreset, train_experts
from pseudocoreset.diagnostics import calibrate
from pseudocoreset.evaluation import evaluate
from pseudocoreset.fitting import optimise
from pseudocoreset.inference import Posterior, sample

SCRIPT = Path(__file__).with_name("device_runs.py")
PACKAGE = Path(pseudocoreset.__file__).parent
FILED = ("snapshots", "hmc_with_split_data", "divergence")
# Each item of a stack is computed by itself on one device as on many; sums over a stack, or over rows, are not.
SAME_BITS = ("snapshots", "sghmc")


@pytest.fixture(scope="module")
def runs() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def start(folder: Path, *arguments: str, devices: int) -> subprocess.Popen[str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), *arguments],
        # The same package as here, whatever else is installed.
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(PACKAGE.parent)},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> None:
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(errors)


@pytest.fixture(scope="module")
def on_one(runs) -> dict[str, np.ndarray]:
    return runs.flat({name: run(False) for name, run in runs.RUNS.items()})


@pytest.fixture(scope="module")
def on_four(runs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    runs.begin(False, folder / "begun-on-one")
    finish(start(folder, devices=4))
    return folder


def assert_as_on_one(found: dict[str, np.ndarray], on_one: dict[str, np.ndarray], name: str) -> None:
    names = [key for key in on_one if key.startswith(f"{name}/")]
    assert names
    assert names == [key for key in found if key.startswith(f"{name}/")]
    for key in names:
        if name in SAME_BITS:
            np.testing.assert_array_equal(found[key], on_one[key], err_msg=key)
        else:
            np.testing.assert_allclose(found[key], on_one[key], rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize(
    "name",
    [
        *FILED,
        "experts_of_shared_batches",
        "sghmc",
        "distribution_matching",
        "networks_of_function_kl",
        "function_kl_of_shared_batches",
        "dependent_batches",
        "evaluated",
        "calibrated",
    ],
)
def test_four_devices_give_the_numbers_of_one(name, on_four, on_one):
    assert_as_on_one(np.load(on_four / "runs.npz"), on_one, name)


@pytest.mark.parametrize("name", FILED)
def test_a_run_begun_on_one_device_goes_on_with_four(name, on_four, on_one):
    assert_as_on_one(np.load(on_four / "gone-on.npz"), on_one, name)


@pytest.mark.parametrize("name", FILED)
def test_a_run_begun_on_four_devices_goes_on_with_one(name, on_four, on_one, runs):
    found = runs.flat({name: runs.WITH_FILES[name](False, on_four / "begun-on-many" / name)})
    assert_as_on_one(found, on_one, name)


@pytest.mark.slow
def test_other_stacks_give_the_numbers_of_one_device(runs, tmp_path):
    """Terms of network HMC with split data, NUTS chains that follow a coreset, draws of function values."""
    finish(start(tmp_path, "--slow", devices=4))
    on_one = runs.flat({name: run(False) for name, run in runs.SLOW_RUNS.items()})
    found = np.load(tmp_path / "runs.npz")
    for name in runs.SLOW_RUNS:
        assert_as_on_one(found, on_one, name)


@pytest.fixture(scope="module")
def two_processes(runs, tmp_path_factory) -> Path:
    """Two processes of two devices each go on with what one began."""
    folder = tmp_path_factory.mktemp("two")
    runs.begin(False, folder / "shared")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    finish(*(start(folder, "--process", str(index), "--port", port, devices=2) for index in range(2)))
    return folder


@pytest.mark.parametrize("name", FILED)
def test_two_processes_hold_the_numbers_of_one_device(name, two_processes, on_one):
    for index in range(2):
        assert_as_on_one(np.load(two_processes / f"process-{index}.npz"), on_one, name)


def test_the_first_process_alone_writes_files(two_processes):
    written = [len(np.load(two_processes / f"process-{index}.npz")["written"]) for index in range(2)]
    assert written[0] > 0
    assert written[1] == 0
    assert Experts.load(two_processes / "shared" / "snapshots").num_experts == 5
    assert Posterior.load(two_processes / "shared" / "hmc_with_split_data").num_chains == 3


def test_what_is_no_mesh_is_refused(runs):
    common = {"key": jax.random.key(0), "progress": False, "mesh": jax.devices()}
    calls = (
        lambda: train_experts(runs.network(), runs.DATA, num_experts=1, batch_size=15, **common),
        lambda: sample(runs.network(), runs.DATA, **common),
        lambda: evaluate(
            Pseudocoreset.from_data(runs.DATA, size=3, key=common["key"]), runs.network(), runs.DATA, **common
        ),
        lambda: calibrate(runs.network(), runs.X, key=common["key"], mesh=common["mesh"]),
        lambda: optimise(runs.divergence_of_networks(), runs.DATA, size=1, steps=1, optimizer=runs.SGD, **common),
    )
    for call in calls:
        with pytest.raises(TypeError, match=r"mesh must be a .*Mesh.*got list"):
            call()
