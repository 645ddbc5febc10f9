"""What a fit needs is known before it runs, a fit that cannot fit says so, and blocks are compiled once."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pseudocoreset as pc
from pseudocoreset import Dataset, Experts, estimate_memory
from pseudocoreset.compute.devices import Devices
from pseudocoreset.compute.limits import limited
from pseudocoreset.data.on_device import DeviceData
from pseudocoreset.experts.trajectory import Training
from pseudocoreset.fitting import loop, memory, optimise
from pseudocoreset.models import MLP, bnn, gaussian_location
from pseudocoreset.objectives import Objective

RNG = np.random.default_rng(0)
Y = (np.arange(90) % 3).astype(np.int32)
X = RNG.normal(size=(90, 4, 4, 1)).astype(np.float32)
DATA = Dataset.from_arrays(X, Y)
SHORT = dict(inner_max_steps=2, num_draws=2, step_size=1.0)
INNER = dict(num_inner_steps=2, step_size=1.0)
FRONT_DOORS = {
    "fbpc": (pc.fit_fbpc, SHORT | dict(proxy="isotropic"), True),
    "bpc_fkl": (pc.fit_bpc_fkl, INNER | dict(num_draws=2), True),
    "bpc_rkl": (pc.fit_bpc_rkl, INNER | dict(num_draws=2), True),
    "bpc_w": (pc.fit_bpc_w, INNER, True),
    "gradient_matching": (pc.fit_gradient_matching, INNER | dict(batch_size=4), False),
    "distribution_matching": (pc.fit_distribution_matching, dict(batch_size=4, step_size=1.0), False),
}


def small_model():
    """A model of its own, for which no other test can have compiled anything."""
    return bnn(MLP((4,)), DATA)


def stored_experts(model):
    sites = {site.name: list(site.unconstrained_shape) for site in model.sites}
    metadata = {"model": model.name, "num_params": model.num_params, "sites": sites}
    snapshots = [model.init(jax.random.key(epoch)) for epoch in range(4)]
    stacked = [{name: np.asarray(leaf)[None] for name, leaf in params.items()} for params in snapshots]
    return Experts(1, 3, metadata, (1,), memory={(0, epoch): params for epoch, params in enumerate(stacked)})


def arguments_of(name, model):
    front_door, settings, takes_experts = FRONT_DOORS[name]
    settings = settings | dict(images_per_class=2, key=jax.random.key(1), steps=20, augment=None)
    return front_door, settings | ({"experts": stored_experts(model)} if takes_experts else {})


@pytest.mark.parametrize("name", FRONT_DOORS)
def test_blocks_after_the_first_compile_nothing(name, caplog):
    model = small_model()
    front_door, settings = arguments_of(name, model)
    compiled = []

    def after_a_block(step, coreset, info):
        compiled.append([r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")])

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        front_door(model, DATA, progress=False, callbacks=[after_a_block], **settings)
    first, second = compiled
    assert sum("run_block" in message for message in first) == 1
    assert second == first


@pytest.mark.parametrize("name", ["fbpc", "bpc_w", "distribution_matching"])
def test_an_estimate_is_what_the_compiler_says_of_the_block_that_runs(name, monkeypatch):
    model = small_model()
    front_door, settings = arguments_of(name, model)
    estimate = estimate_memory(front_door, model, DATA, **settings)
    analyses = []
    real = memory.block_memory

    def noting(run_block, first, data, objectives):
        snapshots = tuple(memory._snapshot_shapes(o, 10) for o in objectives)
        analyses.append(run_block.lower(*first, snapshots, data).compile().memory_analysis())
        return real(run_block, first, data, objectives)

    monkeypatch.setattr(loop, "block_memory", noting)
    front_door(model, DATA, progress=False, **settings)
    (analysis,) = analyses
    assert estimate.temporaries == analysis.temp_size_in_bytes
    assert estimate.data == X.nbytes + Y.nbytes
    snapshots = {"fbpc": 1, "bpc_w": 2, "distribution_matching": 0}[name]
    assert estimate.snapshots == snapshots * 10 * 4 * model.num_params
    assert estimate.coreset > 2 * 6 * X[0].nbytes
    assert estimate.total == estimate.temporaries + estimate.data + estimate.coreset + estimate.snapshots


def test_an_estimate_needs_no_experts_and_leaves_nothing_behind(tmp_path):
    model = small_model()
    settings = SHORT | dict(proxy="isotropic", size=3, steps=4)
    estimate = estimate_memory(pc.fit_fbpc, model, DATA, checkpoint_dir=tmp_path / "run", **settings)
    assert re.fullmatch(
        r"[\d.]+ kB: [\d.]+ kB of temporaries, 6\.12 kB of data, [\d.]+ k?B of coreset and optimiser, "
        r"[\d.]+ kB of expert snapshots; the device has [\d.]+ [GT]B",
        str(estimate),
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("front_door", [pc.fit_herding, pc.fit_sparse_vi])
def test_front_doors_without_a_compiled_block_are_refused(front_door):
    vectors = Dataset.from_arrays(X.reshape(90, 16))
    with pytest.raises(ValueError, match="no compiled block"):
        estimate_memory(front_door, gaussian_location(vectors), vectors, size=2)


def test_a_fit_that_needs_more_than_the_device_has_is_refused_before_it_runs():
    model = small_model()
    front_door, settings = arguments_of("fbpc", model)
    message = r"the fit needs .*the device has 10 kB.*smaller images_per_class.*proxy='isotropic'.*num_draws=2"
    with limited(device_bytes=10_000):
        assert not estimate_memory(front_door, model, DATA, **settings).fits
        with pytest.raises(MemoryError, match=message):
            front_door(model, DATA, progress=False, callbacks=[lambda *_: pytest.fail("it ran")], **settings)


def test_running_out_of_memory_is_explained_and_other_errors_are_left_alone():
    model = small_model()
    front_door, settings = arguments_of("fbpc", model)

    def failing(text):
        def callback(step, coreset, info):
            raise jax.errors.JaxRuntimeError(text)

        return [callback]

    message = r"(?s)ran out of memory.*images_per_class.*num_draws=2.*RESOURCE_EXHAUSTED"
    with pytest.raises(MemoryError, match=message):
        front_door(model, DATA, progress=False, callbacks=failing("RESOURCE_EXHAUSTED: Out of memory."), **settings)
    with pytest.raises(jax.errors.JaxRuntimeError, match="some other reason"):
        front_door(model, DATA, progress=False, callbacks=failing("some other reason"), **settings)


def test_a_compiler_that_runs_out_of_memory_is_explained():
    model = small_model()

    def gradient(key, state, coreset, data, snapshots):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory.")

    objective = Objective("failing", model, lambda *_: (), gradient, None, {"batch_size": 7})
    with pytest.raises(MemoryError, match=r"(?s)ran out of memory.*batch_size=7"):
        optimise(objective, DATA, size=2, key=jax.random.key(0), steps=2, optimizer=optax.sgd(0.1), progress=False)


def test_experts_share_one_copy_of_the_data():
    model = small_model()
    x = jnp.zeros((6000, 4, 4, 1))
    data = DeviceData(x, jnp.zeros(6000, jnp.int32))
    training = Training(model, 0.1, 0.0, 0.0, 50, None)

    def temporaries(count):
        keys = jax.random.split(jax.random.key(0), count)
        lowered = Training.epoch.lower(training, training.start(keys, data), keys, data)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8) - temporaries(1) < x.nbytes
    copying = jax.jit(lambda keys: Devices().map(lambda k: x + jax.random.uniform(k), keys))
    eight = copying.lower(jax.random.split(jax.random.key(0), 8)).compile().memory_analysis()
    assert eight.temp_size_in_bytes + eight.output_size_in_bytes > 7 * x.nbytes  # what a copy for each would take
