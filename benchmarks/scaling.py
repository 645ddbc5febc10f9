"""What sharing among devices costs and gains: experts, chains, draws, and the data of one expert and of one chain.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json

On 1, 2 and 4 devices of this machine: those that XLA makes of one CPU
(``--xla_force_host_platform_device_count``), one thread each (``--xla_cpu_multi_thread_eigen=false``), in a fresh
process for each number. Seconds are the difference of a long and a short run, which leaves out compilation, the median
of five; CPU seconds
are those of all threads together, so that their ratio to one device is what the sharing itself costs. ``SCALING.md``
says what this can show and what not.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
import optax
from machine import describe_machine

from pseudocoreset import Dataset, fit, load_dataset, train_experts
from pseudocoreset.inference import sample
from pseudocoreset.models import ConvNet, bnn
from pseudocoreset.objectives import InnerTraining, forward_kl

SETTINGS = {"data": "digits", "depth": 2, "width": 8, "stack": 8, "batch_size": 64, "images_per_class": 10}
SHARED = {"images": 2560, "side": 32, "depth": 3, "width": 32, "batch_size": 128, "points": 100}
COUNTS = (1, 2, 4)
REPETITIONS = 5


def works(mesh: jax.sharding.Mesh | None) -> dict[str, tuple[Callable[[int], object], int, int]]:
    """Each as (run of a length, short length, long length)."""
    data = load_dataset(SETTINGS["data"])
    model = bnn(ConvNet(depth=SETTINGS["depth"], width=SETTINGS["width"]), data)
    stack, batch_size, key = SETTINGS["stack"], SETTINGS["batch_size"], jax.random.key(0)
    common = {"key": key, "progress": False}
    trained = train_experts(model, data, num_experts=1, num_epochs=1, batch_size=batch_size, augment=None, **common)
    objective = forward_kl(model, num_draws=stack, inner=InnerTraining(num_steps=1))
    optimizer = optax.sgd(1.0)

    def experts(epochs: int) -> object:
        return train_experts(
            model, data, num_experts=stack, experts_per_group=stack, num_epochs=epochs, batch_size=batch_size,
            augment=None, mesh=mesh, **common,
        )  # fmt: skip

    def chains(thinning: int) -> object:
        return sample(
            model, data, kernel="sghmc", num_chains=stack, num_warmup=0, num_samples=5, thinning=thinning,
            batch_size=batch_size, predict_on=(data.test.x[:10], data.test.y[:10]), mesh=mesh, **common,
        )  # fmt: skip

    def draws(steps: int) -> object:
        return fit(
            objective, data, experts=trained, images_per_class=SETTINGS["images_per_class"], steps=steps,
            optimizer=optimizer, block_size=5, mesh=mesh, **common,
        )  # fmt: skip

    rng = np.random.default_rng(0)
    images = rng.normal(size=(SHARED["images"], SHARED["side"], SHARED["side"], 3)).astype(np.float32)
    noise = Dataset.from_arrays(images, np.arange(len(images)) % 10, name="noise")
    one_model = bnn(ConvNet(depth=SHARED["depth"], width=SHARED["width"]), noise)
    line = None if mesh is None else jax.make_mesh((mesh.size,), ("data",))

    def one_expert(epochs: int) -> object:
        return train_experts(
            one_model, noise, num_experts=1, num_epochs=epochs, batch_size=SHARED["batch_size"], augment=None,
            mesh=line, **common,
        )  # fmt: skip

    def one_chain(thinning: int) -> object:
        points = images[: SHARED["points"]], np.arange(SHARED["points"]) % 10
        return sample(
            one_model, points, kernel="sghmc", num_chains=1, num_warmup=0, num_samples=2, thinning=thinning, mesh=line,
            **common,
        )  # fmt: skip

    return {
        "experts": (experts, 1, 31),
        "chains": (chains, 2, 152),
        "draws": (draws, 5, 25),
        "one expert": (one_expert, 1, 6),
        "one chain": (one_chain, 2, 52),
    }


def measure(num_devices: int) -> None:
    mesh = None if num_devices == 1 else jax.make_mesh((num_devices,), ("devices",))
    found = {}
    for name, (work, short, long) in works(mesh).items():
        work(short)
        rounds = []
        for _ in range(REPETITIONS):
            taken = []
            for length in (short, long):
                began, used = time.perf_counter(), time.process_time()
                work(length)
                taken.append((time.perf_counter() - began, time.process_time() - used))
            rounds.append(np.subtract(taken[1], taken[0]))
        seconds, cpu_seconds = np.median(rounds, axis=0)
        found[name] = {"seconds": round(float(seconds), 3), "cpu_seconds": round(float(cpu_seconds), 3)}
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--measure", type=int, help="number of devices of this process")
    args = parser.parse_args()
    if args.measure:
        measure(args.measure)
        return
    if args.out is None:
        parser.error("give --out")
    results: dict[str, dict[int, dict[str, float]]] = {}
    for count in COUNTS:
        flags = f"--xla_force_host_platform_device_count={count} --xla_cpu_multi_thread_eigen=false"
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {
                "XLA_FLAGS": flags,
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": cache,
            }
            command = [sys.executable, __file__, "--measure", str(count)]
            answer = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        for name, values in json.loads(answer.stdout.splitlines()[-1]).items():
            results.setdefault(name, {})[count] = values
    for by_count in results.values():
        for values in by_count.values():
            values["speed_up"] = round(by_count[1]["seconds"] / values["seconds"], 2)
            values["cpu_ratio"] = round(values["cpu_seconds"] / by_count[1]["cpu_seconds"], 2)
    load = round(os.getloadavg()[0], 1)
    content = {
        "settings": SETTINGS,
        "shared": SHARED,
        "results": results,
        "load_average": load,
        "machine": describe_machine(),
    }
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
