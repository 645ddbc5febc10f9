"""Memory and compilation of one block of steps, for every objective at the sizes of the papers.

    nice python benchmarks/memory.py --work DIR --out benchmarks/results/memory.json

Depth 3, width 128, CIFAR-10 shapes (50,000 images of 32x32x3), defaults of the front doors, unless a cell says
otherwise. Every cell is a process of its own, one after the other; a run that was stopped goes on from the cells in
``--out``. Nothing runs but what ``estimate_memory`` does: the block is traced and compiled with XLA's default flags,
and a second process loads the compiled program from JAX's persistent cache in ``--work``. Seconds are of the wall and
of the processor, with the load of the machine beside them.

``measured`` cells also run a block, twice, and compare the growth of the resident memory of the process during the
second with the estimate; short trainings and few draws, on which the memory does not depend. ``chunks`` cells time the
gradient of the loss of all points at once and a few at a time.
"""

import argparse
import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import monitoring
from machine import describe_machine

import pseudocoreset as pc
from pseudocoreset.compute.backends import convolution_form
from pseudocoreset.fitting import optimise, prepare
from pseudocoreset.models import ConvNet, Model, ResNet18, bnn
from pseudocoreset.objectives import (
    InnerTraining,
    distribution_matching,
    forward_kl,
    function_kl,
    wasserstein,
)
from pseudocoreset.proxies import Trajectory, mean_loss_and_gradient
from pseudocoreset.rows import Rows

SIZES = (1, 10, 50)
CONVNET, RESNET = ConvNet(depth=3, width=128), ResNet18()
CELLS: dict[str, tuple[Any, Any, dict[str, Any], tuple[int, ...]]] = {
    "function_kl": (pc.fit_fbpc, CONVNET, {}, SIZES),
    "function_kl_resnet18": (pc.fit_fbpc, RESNET, {}, (10,)),
    "function_kl_isotropic": (pc.fit_fbpc, CONVNET, dict(proxy="isotropic"), SIZES),
    "function_kl_linearized": (pc.fit_fbpc, CONVNET, dict(proxy="linearized"), SIZES),
    "wasserstein": (pc.fit_bpc_w, CONVNET, {}, SIZES),
    "wasserstein_1_inner_step": (pc.fit_bpc_w, CONVNET, dict(num_inner_steps=1), SIZES),
    "forward_kl": (pc.fit_bpc_fkl, CONVNET, {}, SIZES),
    "forward_kl_2_draws": (pc.fit_bpc_fkl, CONVNET, dict(num_draws=2), (10,)),
    "forward_kl_100_draws": (pc.fit_bpc_fkl, CONVNET, dict(num_draws=100), (10,)),
    "reverse_kl": (pc.fit_bpc_rkl, CONVNET, {}, SIZES),
    "gradient_matching": (pc.fit_gradient_matching, CONVNET, {}, SIZES),
    "distribution_matching": (pc.fit_distribution_matching, CONVNET, {}, SIZES),
    "bacon": (pc.fit_bacon, CONVNET, {}, SIZES),
}
TWO_STEPS = InnerTraining(num_steps=2)
MEASURED = {
    "measured_function_kl": (
        lambda model: function_kl(model, proxy=Trajectory(num_steps=2), num_draws=2, inner_max_steps=2),
        SIZES,
    ),
    "measured_forward_kl": (lambda model: forward_kl(model, num_draws=2, inner=TWO_STEPS), (10,)),
    "measured_wasserstein": (lambda model: wasserstein(model, inner=TWO_STEPS), (1, 10)),
    "measured_distribution_matching": (lambda model: distribution_matching(model), (10,)),
}


def _form() -> str:
    """How the layers of width 128 convolve here."""
    images, filters = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((10, 16, 16, 128), (3, 3, 128, 128)))
    return convolution_form(images, filters, padding=1, stride=1)


def cifar10_shapes() -> pc.Dataset:
    """Noise in the shape of CIFAR-10."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50_000, 32, 32, 3), np.uint8)
    return pc.Dataset.from_arrays(images, np.arange(50_000, dtype=np.int32) % 10, name="cifar10")


CHUNKS = {"chunks_function_kl": SIZES, "chunks_function_kl_resnet18": (10,)}
REPETITIONS = 9


def kind(name: str) -> Callable[[str, int], dict[str, Any]]:
    return compile_cell if name in CELLS else measure_cell if name in MEASURED else chunks_cell


def sizes_of(name: str) -> tuple[int, ...]:
    return CELLS[name][-1] if name in CELLS else MEASURED[name][-1] if name in MEASURED else CHUNKS[name]


def describe(estimate: pc.MemoryEstimate) -> dict[str, float]:
    parts = ("temporaries", "data", "coreset", "snapshots", "total")
    return {f"{part}_megabytes": round(getattr(estimate, part) / 1e6, 2) for part in parts}


def compile_cell(name: str, size: int) -> dict[str, Any]:
    """Estimate, and seconds of tracing and of compiling the block."""
    front_door, network, settings, _ = CELLS[name]
    data = cifar10_shapes()
    model = bnn(network, data)
    seconds: dict[str, list[float]] = {}
    monitoring.register_event_duration_secs_listener(
        lambda event, value, **_: seconds.setdefault(event, []).append(value)
    )
    began, processor = time.perf_counter(), time.process_time()
    estimate = pc.estimate_memory(front_door, model, data, images_per_class=size, **settings)
    wall, used = time.perf_counter() - began, time.process_time() - processor
    compiling = max(seconds["/jax/core/compile/backend_compile_duration"])
    return {
        **describe(estimate),
        "seconds": round(wall, 1),
        "processor_seconds": round(used, 1),
        "compile_seconds": round(compiling, 1),
        "load": [round(os.getloadavg()[0], 1), os.cpu_count()],
        "convolution": _form(),
    }


def stored_experts(model: Model) -> pc.Experts:
    """Two snapshots of one expert that was never trained."""
    sites = {site.name: list(site.unconstrained_shape) for site in model.sites}
    metadata = {"model": model.name, "num_params": model.num_params, "sites": sites}
    memory = {}
    for epoch in range(2):
        params = model.init(jax.random.key(epoch))
        memory[0, epoch] = {name: np.asarray(leaf)[None] for name, leaf in params.items()}
    return pc.Experts(1, 1, metadata, (1,), memory=memory)


def resident(field: str) -> int:
    """Bytes of ``VmRSS`` or ``VmHWM`` of this process."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure_cell(name: str, size: int) -> dict[str, Any]:
    """Estimate, and growth of the resident memory during a fit whose program is compiled already."""
    data = cifar10_shapes()
    model = bnn(CONVNET, data)
    objective = MEASURED[name][0](model)
    experts = None if objective.window is None else stored_experts(model)
    start = pc.Pseudocoreset.from_data(data, images_per_class=size, key=jax.random.key(0))
    settings = dict(coreset=start, steps=1, optimizer=optax.sgd(1.0), key=jax.random.key(1), experts=experts)
    experts = settings.pop("experts")
    plan = prepare(objective, data, **settings)
    estimate = plan.memory()
    optimise(objective, data, progress=False, experts=experts, **settings)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    optimise(objective, data, progress=False, experts=experts, **settings)
    grown = resident("VmHWM") - before
    return {
        **describe(estimate),
        "measured_megabytes": round(grown / 1e6, 2),
        "measured_over_estimated": round(grown / estimate.total, 3),
    }


def chunks_cell(name: str, size: int) -> dict[str, Any]:
    """Seconds of the gradient of the mean loss over all points at once, and a few at a time: medians, interleaved."""
    model = bnn(CELLS[name.removeprefix("chunks_")][1], input_shape=(32, 32, 3), num_outputs=10)
    params = model.init(jax.random.key(0))
    count = 10 * size
    x = jax.random.normal(jax.random.key(1), (count, 32, 32, 3))
    batch = Rows(x, jnp.arange(count) % 10, jnp.ones(count))
    compiled, seconds = {}, {"whole": [], "chunks": []}
    for way, one in (("whole", replace(model, is_separable=False)), ("chunks", model)):
        gradient = jax.jit(lambda p, b, one=one: mean_loss_and_gradient(one, p, b))
        compiled[way] = gradient.lower(params, batch).compile()
        jax.block_until_ready(compiled[way](params, batch))
    for _ in range(REPETITIONS):
        for way, program in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(program(params, batch))
            seconds[way].append(time.perf_counter() - began)
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    return {
        **{f"{way}_seconds": round(value, 4) for way, value in medians.items()},
        **{f"{way}_megabytes": round(p.memory_analysis().temp_size_in_bytes / 1e6, 1) for way, p in compiled.items()},
        "chunks_over_whole": round(statistics.median(np.divide(seconds["chunks"], seconds["whole"])), 2),
        "load": [round(os.getloadavg()[0], 1), os.cpu_count()],
    }


def in_a_process(name: str, size: int, work: pathlib.Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--cell", name, str(size)]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(work / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    if name in MEASURED:
        # Freed memory goes back to the system, so that its growth can be seen; it makes what runs slower.
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    environment.pop("XLA_FLAGS", None)
    printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(printed.stdout.splitlines()[-1])


def main() -> None:
    names = [*CELLS, *MEASURED, *CHUNKS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, help="keeps compiled programs")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--only", nargs="+", default=names, choices=names)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--again", action="store_true", help="do not keep the cells that are in --out")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        name, size = args.cell[0], int(args.cell[1])
        print(json.dumps(kind(name)(name, size)))
        return
    known = json.loads(args.out.read_text())["cells"] if args.out.is_file() else {}
    for size in args.sizes:
        for name in args.only:
            cell = f"{name}-{size}"
            if size not in sizes_of(name) or (cell in known and not args.again):
                continue
            known[cell] = in_a_process(name, size, args.work)
            if name in CELLS:
                known[cell]["seconds_from_cache"] = in_a_process(name, size, args.work)["seconds"]
            print(cell, json.dumps(known[cell]), flush=True)
            content = {"what": __doc__.split("\n\n")[2], "cells": known, "machine": describe_machine()}
            args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
