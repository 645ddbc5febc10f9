"""Which choices move the result of FBPC most: one changed at a time, on validation images of CIFAR-10.

    python benchmarks/choices.py --data-dir DIR --work DIR --out benchmarks/results/choices.json

A tenth of the training images is held out of everything and scored on; no test image is looked at. ConvNet of 3 blocks
of 32, experts as in ``cifar10_fbpc.py``. Every arm starts from the same random images of its seed and takes the same
number of steps as ``base`` unless it says so, then SGHMC scores it by the average
of its draws. ``--work`` keeps experts and finished cells: a run that was stopped goes on there.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import optax
from cifar10_fbpc import WIDTH, keys
from machine import describe_machine

import pseudocoreset as pc
from pseudocoreset.diagnostics import predictive_metrics
from pseudocoreset.inference import sample
from pseudocoreset.models import ConvNet, Model, bnn
from pseudocoreset.proxies import Trajectory

STEPS, STEP_SIZE = 150, 1000.0
EXPERTS = dict(num_experts=6, num_epochs=4, learning_rate=0.01, batch_size=128, augment=None, experts_per_group=1)
BASE: dict[str, Any] = dict(
    proxy="isotropic", steps=STEPS, inner_learning_rate=5e-3, inner_max_steps=200, inner_loss=0.1, first_epoch=1
)
NUM_VALIDATION = 2000
WEIGHT = 100.0
EVALUATION = dict(num_chains=1, num_warmup=300, num_samples=10, thinning=50, augment="auto")


@dataclass(frozen=True)
class Arm:
    """What is changed against the base.

    Attributes:
        settings: arguments of ``fit_fbpc``.
        optimizer: of the inputs; SGD of step ``STEP_SIZE`` if None.
        others: optimisers of other free leaves, by name.
        num_experts: so many of the experts; all if None.
        average: whether the coreset is the mean of the iterates of the second half.
        mass: weight of a point; ``WEIGHT`` if None.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    optimizer: Callable[[], optax.GradientTransformation] | None = None
    others: dict[str, optax.GradientTransformation] = field(default_factory=dict)
    num_experts: int | None = None
    average: bool = False
    mass: float | None = None


def cosine(peak: float, steps: int = STEPS) -> optax.GradientTransformation:
    return optax.sgd(optax.cosine_decay_schedule(peak, steps))


ARMS = {
    "base": Arm(),
    # The step size on the inputs.
    "step_300": Arm(optimizer=lambda: optax.sgd(300.0)),
    "step_3000": Arm(optimizer=lambda: optax.sgd(3000.0)),
    "cosine": Arm(optimizer=lambda: cosine(STEP_SIZE)),
    "cosine_3000": Arm(optimizer=lambda: cosine(3000.0)),
    "momentum": Arm(optimizer=lambda: optax.sgd(500.0, momentum=0.5)),
    "adam": Arm(optimizer=lambda: optax.adam(0.05)),
    "adam_cosine": Arm(optimizer=lambda: optax.adam(optax.cosine_decay_schedule(0.1, STEPS))),
    # Averaging.
    "average": Arm(average=True),
    "average_3000": Arm(optimizer=lambda: optax.sgd(3000.0), average=True),
    # Experts.
    "one_expert": Arm(num_experts=1),
    "young_experts": Arm({"last_epoch": 2}),
    "old_experts": Arm({"first_epoch": 4}),
    # The training on the coreset.
    "inner_to_0.02": Arm({"inner_loss": 0.02}),
    "inner_to_0.5": Arm({"inner_loss": 0.5}),
    "inner_slow": Arm({"inner_learning_rate": 1e-3, "inner_max_steps": 500}),
    "inner_fast": Arm({"inner_learning_rate": 2e-2}),
    # Proxy, draws and images.
    "trajectory": Arm({"proxy": Trajectory(num_steps=10, batch_size=32)}),
    "300_draws": Arm({"num_draws": 300}),
    "plain_images": Arm({"augment": None}),
    # Targets and weights.
    "soft_targets": Arm({"targets": "learned"}, others={"targets": optax.adam(0.02)}),
    "learned_weights": Arm({"weights": "learned"}, others={"weights": optax.adam(0.02)}),
    "weight_30": Arm(mass=30.0),
    "weight_300": Arm(mass=300.0),
    # As many networks in fewer steps, each the average over four.
    "four_networks": Arm({"num_networks": 4, "steps": 38}, optimizer=lambda: optax.sgd(3000.0)),
    # More of the same.
    "steps_450": Arm({"steps": 450}),
}


@dataclass(frozen=True)
class Bench:
    data: pc.Dataset
    model: Model
    experts: pc.Experts

    @classmethod
    def setup(cls, data_dir: str | None, work: pathlib.Path) -> "Bench":
        data = pc.load_dataset("cifar10", data_dir=data_dir).split_validation(0.1, jax.random.key(0))
        model = bnn(ConvNet(depth=3, width=WIDTH), data)
        experts = pc.train_experts(model, data, key=jax.random.key(0), directory=work / "experts", **EXPERTS)
        return cls(data, model, experts)

    def fit(self, arm: Arm, size: int, seed: int) -> pc.Pseudocoreset:
        start_key, fit_key, _ = keys(size, seed)
        start = pc.Pseudocoreset.from_data(self.data, images_per_class=size, key=start_key)
        settings = BASE | arm.settings
        inputs = optax.sgd(STEP_SIZE) if arm.optimizer is None else arm.optimizer()
        kept: list[np.ndarray] = []

        def keep(step: int, coreset: pc.Pseudocoreset, info: dict[str, float]) -> bool:
            if step > settings["steps"] / 2:
                kept.append(coreset.inputs)
            return False

        fitted = pc.fit_fbpc(
            self.model, self.data, images_per_class=size, key=fit_key, coreset=start, progress=False,
            experts=self.experts if arm.num_experts is None else some(self.experts, arm.num_experts),
            optimizer={"inputs": inputs, **arm.others}, callbacks=[keep], **settings,
        ).coreset  # fmt: skip
        return dataclasses.replace(fitted, inputs=np.mean(kept, axis=0)) if arm.average else fitted

    def score(self, coreset: pc.Pseudocoreset, size: int, seed: int, weight: float) -> dict[str, Any]:
        assert self.data.validation is not None
        posterior = sample(
            self.model, coreset.with_mass(weight * coreset.size), kernel="sghmc", key=keys(size, seed)[2],
            predict_on=self.data.validation.head(NUM_VALIDATION), progress=False, **EVALUATION,
        )  # fmt: skip
        return predictive_metrics(posterior).as_dict()


def some(experts: pc.Experts, count: int) -> pc.Experts:
    """The first experts, in memory."""
    epochs = range(experts.num_epochs + 1)
    memory = {(0, epoch): experts.stack([(i, epoch) for i in range(count)]) for epoch in epochs}
    return pc.Experts(count, experts.num_epochs, experts.metadata, (count,), memory=memory)


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over seeds, and the mean difference from the base with its standard error, seed by seed."""
    summary = {}
    for name in ARMS:
        rows = {r["seed"]: r for r in records if r["arm"] == name}
        base = {r["seed"]: r for r in records if r["arm"] == "base"}
        if not rows:
            continue
        entry: dict[str, Any] = {"seeds": len(rows)}
        for metric in ("accuracy", "nll"):
            entry[metric] = float(np.mean([r[metric] for r in rows.values()]))
            gains = [rows[seed][metric] - base[seed][metric] for seed in rows if seed in base]
            if name != "base" and len(gains) > 1:
                error = float(np.std(gains, ddof=1) / len(gains) ** 0.5)
                entry[f"{metric}_gain"] = [float(np.mean(gains)), error]
        summary[name] = entry
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images-per-class", type=int, default=1)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    args = parser.parse_args()
    bench = Bench.setup(args.data_dir, args.work)
    size = args.images_per_class
    for seed in args.seeds:
        for name in args.arms:
            file = args.work / f"choice-{name}-{size}-{seed}.json"
            if not file.is_file():
                arm = ARMS[name]
                coreset = bench.fit(arm, size, seed)
                scores = bench.score(coreset, size, seed, arm.mass or WEIGHT)
                file.write_text(json.dumps({"arm": name, "images_per_class": size, "seed": seed, **scores}))
            records = [json.loads(path.read_text()) for path in sorted(args.work.glob(f"choice-*-{size}-*.json"))]
            entry = summarise(records)[name]
            print(seed, name, json.dumps(entry), flush=True)
            content = {"images_per_class": size, "summary": summarise(records), "cells": records}
            args.out.write_text(json.dumps(content | {"machine": describe_machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
