"""Seconds of a step of every objective at 1, 10 and 50 images a class: ConvNet 3x128, CIFAR-10 shapes.

    python benchmarks/steps.py --out benchmarks/results/steps.json [--sizes 1 10] [--only NAME ...]

The trainings inside a step are cut to ten steps, draws to five and batches of data to 64, so that objectives can be
told from one another; what a step of a published recipe takes goes with its own numbers. Experts were never trained:
the work is the same. Each cell is a process of its own; seconds are the median over steps, each a compiled block, after
the first, which compiles. A run goes on from the cells that are in ``--out``. Beside PyTorch: ``speed.py``.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import optax
from machine import describe_machine
from memory import CONVNET, SIZES, cifar10_shapes, stored_experts

import pseudocoreset as pc
from pseudocoreset.fitting import optimise
from pseudocoreset.models import bnn
from pseudocoreset.objectives import (
    InnerTraining,
    bacon,
    distribution_matching,
    forward_kl,
    function_kl,
    gradient_matching,
    reverse_kl,
    wasserstein,
)
from pseudocoreset.proxies import Laplace, Linearized, Trajectory

STEPS = 4
SHORT = dict(num_draws=5, inner_max_steps=10, inner_loss=1e-9)
INNER = InnerTraining(num_steps=10)
OBJECTIVES = {
    "function_kl": lambda m: function_kl(m, proxy=Trajectory(num_steps=10, batch_size=64), **SHORT),
    "function_kl_isotropic": lambda m: function_kl(m, proxy="isotropic", **SHORT),
    "function_kl_linearized": lambda m: function_kl(m, proxy=Linearized(Laplace("diagonal")), **SHORT),
    "forward_kl": lambda m: forward_kl(m, num_draws=5, inner=INNER),
    "reverse_kl": lambda m: reverse_kl(m, proxy="isotropic", num_draws=5, inner=INNER),
    "wasserstein": lambda m: wasserstein(m, inner=INNER),
    "gradient_matching": lambda m: gradient_matching(m, batch_size=64, num_inner_steps=10),
    "distribution_matching": lambda m: distribution_matching(m, batch_size=64),
    "bacon": lambda m: bacon(m, batch_size=64),
}


def measure(name: str, size: int) -> dict[str, Any]:
    data = cifar10_shapes()
    model = bnn(CONVNET, data)
    objective = OBJECTIVES[name](model)
    times = [time.perf_counter()]

    def clock(step: int, coreset: pc.Pseudocoreset, info: dict[str, float]) -> bool:
        times.append(time.perf_counter())
        return False

    optimise(
        objective, data, images_per_class=size, experts=None if objective.window is None else stored_experts(model),
        key=jax.random.key(0), steps=STEPS + 1, block_size=1, optimizer=optax.sgd(1e-3), callbacks=[clock],
        progress=False,
    )  # fmt: skip
    first, *steps = (after - before for before, after in itertools.pairwise(times))
    return {"seconds": round(statistics.median(steps), 3), "first": round(first, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--only", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(measure(args.cell[0], int(args.cell[1]))))
        return
    if args.out is None:
        parser.error("give --out")
    cells = json.loads(args.out.read_text())["cells"] if args.out.is_file() else {}
    for size, name in itertools.product(args.sizes, args.only):
        cell = f"{name}-{size}"
        if cell in cells:
            continue
        command = [sys.executable, __file__, "--cell", name, str(size)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        cells[cell] = json.loads(printed.splitlines()[-1]) | {"load": round(os.getloadavg()[0], 1)}
        print(cell, json.dumps(cells[cell]), flush=True)
        content = {"what": __doc__.split("\n\n")[2], "cells": cells, "machine": describe_machine()}
        args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
