"""What options of XLA's compiler for CPUs do to a step of FBPC and to SGD, and what they cost in compilation.

    python benchmarks/compiler_flags.py --out benchmarks/results/compiler_flags.json

Each set of ``XLA_FLAGS`` has a process of its own, all of them on one core, and their repetitions take turns; ratios
are medians of the ratios of neighbours. A step of FBPC is cut to 20 steps of inner training and 10 of the trajectory.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

CASES = {
    "function_kl, ConvNet 3x32, ten images": ("function_kl", 32, 10),
    "function_kl, ConvNet 3x128, ten images": ("function_kl", 128, 10),
    "SGD, ConvNet 3x32, batch of 128": ("sgd", 32, 128),
}
OLD_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
FLAGS = {
    "none": "",
    "old_emitters": OLD_EMITTERS,
    "vectors_of_512": "--xla_cpu_prefer_vector_width=512",
    "old_emitters, vectors_of_512": f"{OLD_EMITTERS} --xla_cpu_prefer_vector_width=512",
}
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
INNER_STEPS, TRAJECTORY, DRAWS, DATA_BATCH, SIZE, SGD_STEPS = 20, 10, 30, 64, 2000, 2


def program(what: str, width: int, batch: int) -> tuple[Any, tuple[Any, ...]]:
    """A lowered computation, and its arguments."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import pseudocoreset as pc
    from pseudocoreset.models import ConvNet, bnn
    from pseudocoreset.objectives import function_kl
    from pseudocoreset.proxies import Trajectory, mean_loss_and_gradient
    from pseudocoreset.rows import Rows

    model = bnn(ConvNet(width=width), input_shape=(32, 32, 3), num_outputs=10)
    params = model.init(jax.random.key(0))
    images = np.random.default_rng(0).normal(size=(SIZE, 32, 32, 3)).astype(np.float32)
    labels = np.arange(SIZE, dtype=np.int32) % 10
    if what == "function_kl":
        data = pc.Dataset.from_arrays(images, labels, name="noise")
        start = pc.Pseudocoreset.from_data(data, size=batch, key=jax.random.key(1))
        arrays = Rows(*map(jnp.asarray, (start.inputs, start.targets, start.weights)))
        device = pc.device.DeviceData.from_dataset(data)
        proxy = Trajectory(num_steps=TRAJECTORY, batch_size=DATA_BATCH)
        limits = {"num_draws": DRAWS, "inner_loss": 1e-9, "inner_max_steps": INNER_STEPS}
        objective = function_kl(model, proxy=proxy, **limits)
        given = jax.random.key(2), arrays, params
        return jax.jit(lambda key, a, p: objective.gradient(key, (), a, device, (p,))[0]).lower(*given), given

    def descend(params: Any, batches: Any) -> Any:
        def step(p: Any, batch: Any) -> tuple[Any, None]:
            _, gradient = mean_loss_and_gradient(model, p, Rows(*batch, jnp.ones(len(batch[1]))))
            return jax.tree.map(lambda a, g: a - 0.01 * g, p, gradient), None

        return jax.lax.scan(step, params, batches)[0]

    parts = (jnp.asarray(a[: SGD_STEPS * batch]).reshape(SGD_STEPS, batch, *a.shape[1:]) for a in (images, labels))
    given = params, tuple(parts)
    return jax.jit(descend).lower(*given), given


def work(case: str) -> None:
    """Compile, print the seconds of it, then one line of seconds for each line read."""
    import jax

    lowered, given = program(*CASES[case])
    began = time.perf_counter()
    compiled = lowered.compile()
    print(time.perf_counter() - began, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        jax.block_until_ready(compiled(*given))
        print(time.perf_counter() - began, flush=True)


def started(case: str, flags: str) -> subprocess.Popen[str]:
    environment = os.environ | {"XLA_FLAGS": f"{flags} {ONE_THREAD}", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = ["taskset", "-c", "0", sys.executable, __file__, "--case", case]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def turn(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def measure(case: str, repetitions: int) -> dict[str, dict[str, float]]:
    processes, compiling = {}, {}
    for name, flags in FLAGS.items():
        processes[name] = started(case, flags)
        compiling[name] = float(processes[name].stdout.readline())
        turn(processes[name])
    seconds: dict[str, list[float]] = {name: [] for name in FLAGS}
    for _ in range(repetitions):
        for name, process in processes.items():
            seconds[name].append(turn(process))
    for process in processes.values():
        process.communicate()
    return {
        name: {
            "seconds": round(statistics.median(values), 4),
            "times_as_fast": round(statistics.median(a / b for a, b in zip(seconds["none"], values, strict=True)), 2),
            "compile_seconds": round(compiling[name], 1),
        }
        for name, values in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        return work(args.case)
    if args.out is None:
        parser.error("--out is wanted")
    from machine import describe_machine

    results = {}
    for case in CASES:
        results[case] = measure(case, args.repetitions)
        print(case, json.dumps(results[case]), flush=True)
        content = {"flags": FLAGS, "repetitions": args.repetitions, "results": results, "machine": describe_machine()}
        args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
