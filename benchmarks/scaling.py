"""What sharing among devices costs and gains: experts, chains, draws, and the data of one expert and of one chain.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json

On 1, 2 and 4 devices that JAX makes of this machine's CPU (``jax_num_cpu_devices``). Each number has a process of its
own, which works as one that a user starts: JAX takes as many threads as there are cores or devices, whichever are more,
and threads that more devices have brought cost the operations of fewer. The processes take turns, since the rate of a
shared machine changes by tens of percent. Seconds are the difference of a long and a short run, which leaves out
setting up, the median of rounds; CPU seconds are those of all threads together, so that their ratio to one device is
what the sharing itself costs. Speed-ups are medians of ratios within a round. One device uses threads of other cores
too, where its operations are large enough. ``SCALING.md`` says what this can show.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from machine import describe_machine

from pseudocoreset import Dataset, load_dataset, train_experts
from pseudocoreset.fitting import optimise
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
        return optimise(
            objective, data, experts=trained, images_per_class=SETTINGS["images_per_class"], steps=steps,
            optimizer=optimizer, block_size=5, mesh=mesh, **common,
        )  # fmt: skip

    rng = np.random.default_rng(0)
    images = rng.normal(size=(SHARED["images"], SHARED["side"], SHARED["side"], 3)).astype(np.float32)
    noise = Dataset.from_arrays(images, np.arange(len(images)) % 10, name="noise")
    one_model = bnn(ConvNet(depth=SHARED["depth"], width=SHARED["width"]), noise)
    line = None if mesh is None else jax.sharding.Mesh(mesh.devices, ("data",))

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


def serve(count: int) -> None:
    """Run what each line asks for, a work and its length, and answer with its seconds, of the wall and of the CPU."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    each = works(None if count == 1 else jax.make_mesh((count,), ("devices",)))
    print(json.dumps({name: lengths for name, (_, *lengths) in each.items()}), flush=True)
    for line in sys.stdin:
        name, length = json.loads(line)
        began, used = time.perf_counter(), time.process_time()
        each[name][0](length)
        print(json.dumps((time.perf_counter() - began, time.process_time() - used)), flush=True)


def start(count: int) -> tuple[Callable[..., Any], dict[str, list[int]]]:
    """A process with so many devices: a function of a work and its length, and the two lengths of every work."""
    command = [sys.executable, __file__, "--serve", str(count)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert process.stdin is not None
    assert process.stdout is not None
    asked, answers = process.stdin, process.stdout

    def ask(*question: Any) -> Any:
        asked.write(json.dumps(question) + "\n")
        return json.loads(answers.readline())

    return ask, json.loads(answers.readline())


def measure() -> dict[str, dict[int, dict[str, float]]]:
    """By work and number of devices."""
    processes = {count: start(count) for count in COUNTS}
    found: dict[str, dict[int, dict[str, float]]] = {}
    for name in processes[1][1]:
        rounds: dict[int, list[np.ndarray]] = {count: [] for count in COUNTS}
        for repetition in range(-1, REPETITIONS):
            for count, (ask, lengths) in processes.items():
                short, long = (ask(name, length) for length in lengths[name])
                if repetition >= 0:  # the first round compiles
                    rounds[count].append(np.subtract(long, short))
        found[name] = {}
        for count, differences in rounds.items():
            seconds, cpu_seconds = np.median(differences, axis=0)
            speed_up, cpu_ratio = np.median(np.divide(rounds[1], differences), axis=0) ** (1, -1)
            values = {"seconds": seconds, "cpu_seconds": cpu_seconds, "speed_up": speed_up, "cpu_ratio": cpu_ratio}
            found[name][count] = {key: round(float(value), 3) for key, value in values.items()}
        print(name, json.dumps(found[name]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve)
        return
    if args.out is None:
        parser.error("give --out")
    content = {"settings": SETTINGS, "shared": SHARED, "repetitions": REPETITIONS, "results": measure()}
    content |= {"load_average": round(os.getloadavg()[0], 1), "machine": describe_machine()}
    args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
