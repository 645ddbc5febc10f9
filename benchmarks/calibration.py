"""Simulation-based calibration of the shipped models, and of posteriors of coresets.

    python benchmarks/calibration.py --out benchmarks/results/calibration.json

First every model with its full data, and a logistic regression by every kernel: ranks are to be uniform. Then what is
known to be wrong, to show by how much: tempered posteriors, and subsets of the data drawn at random and
weighted to the mass of all of them, the coreset that every other has to beat. ``spread`` is the root mean square
distance of the truth from the posterior mean in posterior standard deviations: 1 if calibrated, 3 where posteriors are
three times too narrow.
"""

import argparse
import json
import pathlib
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from machine import describe_machine

from pseudocoreset.diagnostics import calibrate, plot_calibration
from pseudocoreset.models import (
    MLP,
    bnn,
    gaussian_location,
    linear_regression,
    logistic_regression,
    poisson_regression,
)

NUM_DATA = 40


def random_subset(size: int):
    """As many data as ``size``, weighted to the mass of all."""

    def coreset(key, x, y):
        rows = jax.random.choice(key, x.shape[0], (size,), replace=False)
        return x[rows], y[rows], jnp.full(size, x.shape[0] / size)

    return coreset


def cases() -> dict[str, tuple]:
    """Model and settings by name; a model that stands twice is compiled once for each shape of data."""
    x, zeros, labels = np.zeros((NUM_DATA, 2)), np.zeros(NUM_DATA), np.zeros(NUM_DATA, int)
    linear = linear_regression(noise_scale=0.7).bind(x, zeros)
    classes = logistic_regression(num_classes=2).bind(x, labels)
    mlp = bnn(MLP(widths=(8,)), input_shape=(2,), num_outputs=1, likelihood="gaussian", noise_scale=0.5)
    # Four adapted steps are about one and a half pi of a standard normal, far from where HMC would come back.
    hmc = {"kernel": "hmc", "num_integration_steps": 4}
    network = {"kernel": "sghmc", "step_size": 0.02, "friction": 2.0, "num_warmup": 2000, "thinning": 100}
    euler = {"kernel": "blackjax_sghmc", "step_size": 0.1, "friction": 0.3, "thinning": 50}
    found = {
        "gaussian_location": (gaussian_location(), hmc),
        "linear_regression, noise known": (linear, hmc),
        "linear_regression, noise inferred": (linear_regression(), hmc),
        "logistic_regression": (classes, hmc),
        "logistic_regression, 3 classes": (logistic_regression(num_classes=3), hmc),
        "poisson_regression": (poisson_regression(prior_scale=0.5), hmc),
        "MLP, 8 units": (mlp, network),
        "logistic_regression, nuts": (classes, {"kernel": "nuts"}),
        "logistic_regression, sghmc": (classes, {"kernel": "sghmc"}),
        "logistic_regression, sghmc, minibatches of 20": (classes, {"kernel": "sghmc", "batch_size": 20}),
        "logistic_regression, sgld": (classes, {"kernel": "sgld", "thinning": 400}),
        "linear_regression, temperature 0.3": (linear, {**hmc, "temperature": 0.3}),
    }
    for size in (20, 8):
        subset = {"coreset": random_subset(size)}
        found[f"linear_regression, random subset of {size}"] = (linear, {**hmc, **subset})
        found[f"logistic_regression, random subset of {size}"] = (classes, {**hmc, **subset})
    found["MLP, random subset of 8"] = (mlp, {**network, "step_size": 0.01, "coreset": random_subset(8)})
    found["logistic_regression, blackjax_sghmc, friction 0.3"] = (classes, euler)  # takes as long as all the others
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--simulations", type=int, default=300)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--figures", type=pathlib.Path, help="a folder for one picture a case")
    args = parser.parse_args()
    x = np.random.default_rng(0).normal(size=(NUM_DATA, 2))
    results = {}
    for name, (model, settings) in cases().items():
        if not name.startswith(args.only):
            continue
        began = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = calibrate(model, x, num_simulations=args.simulations, key=jax.random.key(0), **settings)
        print(f"{name} ({time.perf_counter() - began:.0f} s)\n{found}\n", flush=True)
        content = found.as_dict()
        del content["settings"]["key"]
        results[name] = content | {"warnings": [str(warning.message) for warning in caught]}
        if args.figures is not None:
            args.figures.mkdir(parents=True, exist_ok=True)
            plot_calibration(found).savefig(args.figures / f"{name}.png", dpi=100)
        # After every case, so that a run that is cut short leaves what it found.
        args.out.write_text(json.dumps({"results": results, "machine": describe_machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
