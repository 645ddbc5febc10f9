"""What the evaluation of Kim, Lee and Lee 2023 was: readings of its equation 27 against its figures for random images.

    python benchmarks/fbpc2023_readings.py --data-dir DIR --out benchmarks/results/fbpc2023_readings.json

The paper gives theta <- theta + v, v <- v - eta grad U - alpha v + N(0, 2 d), eta = 0.03, alpha = 0.1, d = 0.01 / m,
1,000 epochs and a draw every 100, but neither U nor where a network starts. Random images need no fit, so its figures
for them tell readings apart. All here start as the earlier code of the same group does and have its prior,
``weight_decay`` times the norm; they differ in whether U is the mean of the losses or their sum, and in whether the
position moves by v or by eta v, as in that code. ConvNet 3x128, images augmented, the first 2,000 test images. Cells
that are in ``--out`` are kept; ``--data-dir`` is a tensorflow-datasets folder with CIFAR-10. What is committed has
``--sizes 1``, ``--sizes 10 --seeds 0``, and ``--sizes 50 --seeds 0`` of the reading that the library has.
"""

import argparse
import json
import pathlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
from machine import describe_machine

from pseudocoreset import Pseudocoreset, evaluate, load_dataset
from pseudocoreset.evaluation import FBPC2023, Kim2022
from pseudocoreset.models import ConvNet, bnn

NUM_TEST = 2000
METRICS = ("accuracy", "nll", "nll_batchmean", "nll_member")
ETA, ALPHA, D = 0.03, 0.1, 0.01


def sghmc(step_size: float, diffusion: float) -> Kim2022:
    """The earlier code: theta <- theta + eps p, p <- (1 - alpha) p - eps grad (sum of losses) + N(0, 2 diffusion)."""
    settings = dict(num_iterations=10, num_steps=100, num_burn_in=0, num_repeats=1, weight_decay=0.1)
    return Kim2022(step_size=step_size, friction=ALPHA, noise=diffusion / ALPHA, **settings)


# For m points. Where the position moves by v itself, v is eps p with eps the root of the learning rate of the sum.
READINGS: dict[str, Callable[[int], Any]] = {
    "theta + v, mean of losses": lambda m: sghmc((ETA / m) ** 0.5, D / ETA),
    "theta + v, sum of losses": lambda m: sghmc(ETA**0.5, D / m / ETA),
    "theta + eta v, mean of losses": lambda m: sghmc(ETA / m**0.5, D),
    "theta + eta v, sum of losses": lambda m: FBPC2023(num_repeats=1),
    "theta + eta v, sum of losses, no prior": lambda m: FBPC2023(num_repeats=1, weight_decay=0.0),
    "theta + eta v, sum of losses, weight decay 1": lambda m: FBPC2023(num_repeats=1, weight_decay=1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 10])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--readings", nargs="+", default=list(READINGS), choices=list(READINGS))
    args = parser.parse_args()
    data = load_dataset("cifar10", data_dir=args.data_dir)
    data = replace(data, test=data.test.head(NUM_TEST))
    model = bnn(ConvNet(depth=3, width=128), data)
    content: dict[str, Any] = {"what": __doc__, "cells": []}
    if args.out.is_file():
        content = json.loads(args.out.read_text())
    for size in args.sizes:
        for seed in args.seeds:
            start_key, run_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), size))
            coreset = Pseudocoreset.from_data(data, images_per_class=size, key=start_key)
            for name in args.readings:
                cell = {"images_per_class": size, "reading": name, "seed": seed}
                if any(cell.items() <= known.items() for known in content["cells"]):
                    continue
                protocol = READINGS[name](coreset.size)
                found = evaluate(coreset, model, data, protocol=protocol, key=run_key, split="test", progress=False)
                cell |= {metric: float(found.metrics[metric].mean) for metric in METRICS}
                print(json.dumps(cell), flush=True)
                content["cells"].append(cell)
                content["machine"] = describe_machine()
                args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
