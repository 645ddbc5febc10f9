"""How a convolutional network is best applied inside loops and to many parameter sets, on this machine.

    python benchmarks/batching.py --out benchmarks/results/batching.json

Gradients of a ConvNet (forward and backward): one network, one network as the body of a scan, four networks by
``vmap`` and by ``lax.map``; with the convolution as an unfolding and a matrix product, and as ``lax.conv``. Medians of
interleaved repetitions, as ratios to one network by ``lax.conv`` outside any loop. Backs ``pseudocoreset/batching.py``.
"""

import argparse
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
from machine import describe_machine

from pseudocoreset.models import ConvNet, bnn, layers

SHAPES = {"digits": ((8, 8, 1), 2, 32, 64), "cifar10": ((32, 32, 3), 3, 32, 64)}
NUM_NETWORKS = 4


def cases(shape: tuple[int, ...], depth: int, width: int, batch: int, by_matmul: bool) -> dict[str, tuple]:
    layers.convolves_by_matmul = lambda: by_matmul
    model = bnn(ConvNet(depth=depth, width=width), input_shape=shape, num_outputs=10)
    x = jax.random.normal(jax.random.key(0), (batch, *shape))
    y = jnp.zeros(batch, jnp.int32)
    stack = jax.vmap(model.init)(jax.random.split(jax.random.key(1), NUM_NETWORKS))
    one = jax.tree.map(lambda a: a[0], stack)
    gradient = jax.grad(lambda p: -model.log_likelihood(p, x, y).mean())

    def scanned(params):
        def step(p, _):
            return jax.tree.map(lambda a, g: a - 0.01 * g, p, gradient(p)), None

        return jax.lax.scan(step, params, None, length=NUM_NETWORKS)[0]

    forms = {
        "single": (gradient, one, 1),
        "scan": (scanned, one, NUM_NETWORKS),
        "vmap": (jax.vmap(gradient), stack, NUM_NETWORKS),
        "map": (lambda s: jax.lax.map(gradient, s), stack, NUM_NETWORKS),
    }
    name = "matmul" if by_matmul else "lax_conv"
    return {f"{name}_{form}": (jax.jit(fn).lower(a).compile(), a, count) for form, (fn, a, count) in forms.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    results = {}
    for name, setting in SHAPES.items():
        compiled = cases(*setting, by_matmul=True) | cases(*setting, by_matmul=False)
        seconds: dict[str, list[float]] = {case: [] for case in compiled}
        for _ in range(args.repetitions):
            for case, (fn, argument, count) in compiled.items():
                began = time.perf_counter()
                jax.block_until_ready(fn(argument))
                seconds[case].append((time.perf_counter() - began) / count)
        median = {case: statistics.median(values) for case, values in seconds.items()}
        results[name] = {
            case: {
                "ratio": round(value / median["lax_conv_single"], 2),
                "milliseconds_a_network": round(1000 * value, 2),
                "temporary_mebibytes": round(compiled[case][0].memory_analysis().temp_size_in_bytes / 2**20, 1),
            }
            for case, value in median.items()
        }
        print(name, json.dumps(results[name], indent=1), flush=True)
    content = {"settings": SHAPES, "num_networks": NUM_NETWORKS, "results": results, "machine": describe_machine()}
    args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
