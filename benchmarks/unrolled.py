"""Seconds and memory of the gradient through a training on the coreset, by what is kept for the backward pass.

    python benchmarks/unrolled.py --out benchmarks/results/unrolled.json

A ConvNet of the size of CIFAR-10 (depth 3, 32 channels), augmented points, plain gradient descent: reverse mode
through the loop that keeps everything, or computes every step again (``jax.checkpoint``), or keeps every sqrt(L)-th
parameters only; against the backward sweep of ``pseudocoreset.objectives.unrolled``. Medians of interleaved
repetitions; memory is that of the compiled program's temporaries.
"""

import argparse
import json
import math
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
from machine import describe_machine

from pseudocoreset.data.augmentation import resolve_augmentation
from pseudocoreset.models import ConvNet, bnn
from pseudocoreset.objectives.unrolled import descend_through

SETTINGS = {"1 image a class, 20 steps": (10, 20), "10 images a class, 10 steps": (100, 10)}


def programs(num_points: int, num_steps: int) -> tuple[dict, tuple]:
    model = bnn(ConvNet(depth=3, width=32), input_shape=(32, 32, 3), num_outputs=10)
    augment = resolve_augmentation("auto", (32, 32, 3), "cifar10")
    start = model.init(jax.random.key(1))
    target = model.init(jax.random.key(2))
    keys = jax.random.split(jax.random.key(3), num_steps)
    y = jnp.arange(num_points) % 10

    def loss(key, params, inputs, fixed):
        return -jnp.mean(model.log_likelihood(params, augment(key, inputs), y))

    def reverse_mode(wrap, segments: int):
        def train(inputs, step_size):
            def step(params, key):
                gradient = jax.grad(loss, 1)(key, params, inputs, None)
                return jax.tree.map(lambda p, g: p - step_size * g, params, gradient), None

            if segments == 1:
                return jax.lax.scan(wrap(step), start, keys)[0]
            part = wrap(lambda params, some: jax.lax.scan(wrap(step), params, some))
            return jax.lax.scan(lambda p, k: (part(p, k)[0], None), start, keys.reshape(segments, -1))[0]

        return train

    def sweep(kept: str):
        return lambda inputs, step_size: descend_through(loss, start, inputs, step_size, None, keys, kept)

    segments = next(d for d in range(math.isqrt(num_steps), 0, -1) if num_steps % d == 0)
    trainings = {
        "reverse_mode": reverse_mode(lambda f: f, 1),
        "reverse_mode_step": reverse_mode(jax.checkpoint, 1),
        "reverse_mode_sqrt": reverse_mode(jax.checkpoint, segments),
        "sweep_step": sweep("step"),
        "sweep_sqrt": sweep("sqrt"),
    }

    def distance(train):
        def of(inputs, step_size):
            gaps = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), train(inputs, step_size), target)
            return sum(jax.tree.leaves(gaps))

        return of

    inputs = jax.random.normal(jax.random.key(0), (num_points, 32, 32, 3))
    arguments = (inputs, jnp.float32(0.02))
    compiled = {
        name: jax.jit(jax.grad(distance(train), (0, 1))).lower(*arguments).compile()
        for name, train in trainings.items()
    }
    return compiled, arguments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    results = {}
    for setting, sizes in SETTINGS.items():
        compiled, arguments = programs(*sizes)
        seconds: dict[str, list[float]] = {name: [] for name in compiled}
        gradients = {name: program(*arguments)[0] for name, program in compiled.items()}
        for _ in range(args.repetitions):
            for name, program in compiled.items():
                began = time.perf_counter()
                jax.block_until_ready(program(*arguments))
                seconds[name].append(time.perf_counter() - began)
        exact = gradients["reverse_mode"]
        results[setting] = {
            name: {
                "seconds": round(statistics.median(seconds[name]), 3),
                "ratio": round(statistics.median(seconds[name]) / statistics.median(seconds["reverse_mode"]), 2),
                "temporary_mebibytes": round(program.memory_analysis().temp_size_in_bytes / 2**20, 1),
                "relative_difference": float(jnp.linalg.norm(gradients[name] - exact) / jnp.linalg.norm(exact)),
            }
            for name, program in compiled.items()
        }
        print(setting, json.dumps(results[setting], indent=1), flush=True)
    args.out.write_text(json.dumps({"results": results, "machine": describe_machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
