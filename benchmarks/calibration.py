"""Simulation-based calibration of the shipped models, and of posteriors of coresets.

    python benchmarks/calibration.py --out benchmarks/results/calibration.json

First every model with its full data, and a logistic regression by every kernel: ranks are to be uniform. Then what is
known to be wrong, to show by how much: tempered posteriors, and subsets of the data drawn at random and
weighted to the mass of all of them, the coreset that every other has to beat. ``spread`` is the root mean square
distance of the truth from the posterior mean in posterior standard deviations: 1 if calibrated, 3 where posteriors are
three times too narrow.

A run goes on where one before it had come to: a case whose result is in ``--out`` is left as it is while its settings
are the same.
"""

import argparse
import json
import pathlib
import time
import warnings
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from machine import describe_machine

from pseudocoreset.diagnostics import calibrate, plot_calibration
from pseudocoreset.models import (
    MLP,
    Model,
    bnn,
    gaussian_location,
    linear_regression,
    logistic_regression,
    poisson_regression,
)

NUM_DATA = 40


@dataclass(frozen=True)
class RandomSubset:
    """As many data as ``size``, weighted to the mass of all."""

    size: int

    def __call__(self, key, x, y):
        rows = jax.random.choice(key, x.shape[0], (self.size,), replace=False)
        return x[rows], y[rows], jnp.full(self.size, x.shape[0] / self.size)


def cases() -> dict[str, tuple]:
    """Model and settings by name; a model that stands twice is compiled once for each shape of data."""
    x, zeros, labels = np.zeros((NUM_DATA, 2)), np.zeros(NUM_DATA), np.zeros(NUM_DATA, int)
    linear = linear_regression(noise_scale=0.7).bind(x, zeros)
    classes = logistic_regression(num_classes=2).bind(x, labels)
    mlp = bnn(MLP(widths=(8,)), input_shape=(2,), num_outputs=1, likelihood="gaussian", noise_scale=0.5)
    # Four adapted steps are about one and a half pi of a standard normal, far from where HMC would come back.
    hmc = {"kernel": "hmc", "num_integration_steps": 4}
    network = {"kernel": "sghmc", "step_size": 0.02, "friction": 2.0, "num_warmup": 2000, "thinning": 100}
    long = {"num_warmup": 2000}  # of which the tuning of MCLMC takes most; a step is one or a few gradients
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
        "logistic_regression, sgld": (classes, {"kernel": "sgld", "thinning": 2000}),
        "logistic_regression, network_hmc": (classes, {"kernel": "network_hmc", "trajectory_length": 1.0}),
        "logistic_regression, mclmc": (classes, {"kernel": "mclmc", **long}),
        "logistic_regression, adjusted_mclmc": (classes, {"kernel": "adjusted_mclmc", **long}),
        "MLP, network_hmc": (mlp, {"kernel": "network_hmc"}),
        "MLP, mclmc": (mlp, {"kernel": "mclmc", **long}),
        "MLP, adjusted_mclmc": (mlp, {"kernel": "adjusted_mclmc", **long}),
        "linear_regression, temperature 0.3": (linear, {**hmc, "temperature": 0.3}),
    }
    for size in (20, 8):
        subset = {"coreset": RandomSubset(size)}
        found[f"linear_regression, random subset of {size}"] = (linear, {**hmc, **subset})
        found[f"logistic_regression, random subset of {size}"] = (classes, {**hmc, **subset})
    found["MLP, random subset of 8"] = (mlp, {**network, "step_size": 0.01, "coreset": RandomSubset(8)})
    found["logistic_regression, blackjax_sghmc, friction 0.3"] = (classes, euler)  # takes as long as all the others
    return found


def asked_for(settings: dict[str, object], num_simulations: int) -> dict[str, object]:
    """What a result depends on beside the model, in JSON."""
    asked = {"num_data": NUM_DATA, "num_simulations": num_simulations, **settings}
    return {name: repr(value) if isinstance(value, RandomSubset) else value for name, value in asked.items()}


def run_case(name: str, model: Model, settings: dict[str, object], args: argparse.Namespace) -> dict[str, object]:
    x = np.random.default_rng(0).normal(size=(NUM_DATA, 2))
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = calibrate(model, x, num_simulations=args.simulations, key=jax.random.key(0), **settings)
    print(f"{name} ({time.perf_counter() - began:.0f} s)\n{found}\n", flush=True)
    content = found.as_dict()
    del content["settings"]["key"]
    if args.figures is not None:
        args.figures.mkdir(parents=True, exist_ok=True)
        plot_calibration(found).savefig(args.figures / f"{name}.png", dpi=100)
    return content | {"warnings": [str(warning.message) for warning in caught]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--simulations", type=int, default=300)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--figures", type=pathlib.Path, help="a folder for one picture a case that is run")
    args = parser.parse_args()
    machine, results = describe_machine(), {}
    if args.out.exists():
        content = json.loads(args.out.read_text())
        if content["machine"] != machine:
            parser.error(f"{args.out} was measured on another machine or with other versions; name another --out")
        results = content["results"]
    every_case = cases()
    for name, (model, settings) in every_case.items():
        asked = asked_for(settings, args.simulations)
        if not name.startswith(args.only) or results.get(name, {}).get("asked") == asked:
            continue
        results[name] = {"asked": asked} | run_case(name, model, settings, args)
        # After every case, so that a run that is cut short leaves what it found.
        ordered = {name: results[name] for name in every_case if name in results}
        args.out.write_text(json.dumps({"results": ordered, "machine": machine}, indent=1) + "\n")


if __name__ == "__main__":
    main()
