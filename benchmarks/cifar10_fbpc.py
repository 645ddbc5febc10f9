"""CIFAR-10, small ConvNet, 2 CPU cores: FBPC against the random real images that it started from.

    python benchmarks/cifar10_fbpc.py --data-dir DIR --work DIR --out benchmarks/results/cifar10_fbpc.json

``--data-dir`` is a tensorflow-datasets folder with CIFAR-10 prepared (or to be downloaded into), ``--work`` keeps
experts, coresets and finished cells: a run that was stopped goes on there. Every cell is one (images a class, seed): a
coreset of random real images, FBPC learned from it, and SGHMC on all with the same settings (augmented, as the papers
evaluate), scored on the first 5,000 test images by the average of the draws. Step sizes, weights and spacing of the
draws were chosen with another seed, by accuracy and NLL on 2,000 training images; no test image was looked at. No
seconds are recorded: the run shares its cores.
"""

import argparse
import json
import pathlib
from dataclasses import asdict, dataclass, replace

import jax
import numpy as np
from machine import describe_machine

from pseudocoreset import Dataset, FitResult, Pseudocoreset, fit_fbpc, load_dataset, train_experts
from pseudocoreset.diagnostics import predictive_metrics
from pseudocoreset.inference import sample
from pseudocoreset.models import ConvNet, Model, bnn
from pseudocoreset.proxies import Isotropic, Trajectory


@dataclass(frozen=True)
class Cell:
    """Settings of one cell; the defaults are those of one image a class."""

    images_per_class: int = 1
    steps: int = 100
    step_size: float = 1000.0
    methods: tuple[str, ...] = ("fbpc", "fbpc_isotropic")
    inner_loss: float = 0.1
    inner_learning_rate: float = 5e-3
    inner_max_steps: int = 200
    first_epoch: int = 1
    augment: str | None = "auto"
    weight: float = 100.0  # of each point; chosen on training images among 20, 100, 500, 5000
    sghmc_warmup: int = 300
    sghmc_draws: int = 10
    sghmc_thinning: int = 100
    sghmc_chains: int = 2
    sghmc_augment: str | None = "auto"


CELLS = (
    Cell(),
    Cell(images_per_class=10, steps=60, inner_loss=0.2, methods=("fbpc",), sghmc_thinning=50),
)
PROXIES = {"fbpc": Trajectory(num_steps=10, batch_size=32), "fbpc_isotropic": Isotropic()}
NUM_TEST = 5000
EXPERTS = dict(num_experts=4, num_epochs=4, learning_rate=0.01, batch_size=128, augment=None, experts_per_group=1)
WIDTH = 32


def setup(data_dir: str | None, work: pathlib.Path, **changes: object) -> tuple[Dataset, Model, object]:
    """Data, network and experts; ``changes`` are of the experts."""
    data = load_dataset("cifar10", data_dir=data_dir)
    model = bnn(ConvNet(depth=3, width=WIDTH), data)
    experts = train_experts(model, data, key=jax.random.key(0), directory=work / "experts", **EXPERTS | changes)
    return data, model, experts


def keys(size: int, seed: int) -> jax.Array:
    """Keys of the start, of the fit and of the evaluation."""
    return jax.random.split(jax.random.fold_in(jax.random.key(1000 + seed), size), 3)


def random_images(data: Dataset, cell: Cell, seed: int) -> Pseudocoreset:
    """What is learned from."""
    size = cell.images_per_class
    start = Pseudocoreset.from_data(data, images_per_class=size, key=keys(size, seed)[0])
    return start.with_mass(cell.weight * start.size)


def learn(
    data: Dataset, model: Model, experts: object, start: Pseudocoreset, cell: Cell, method: str, seed: int
) -> FitResult:
    """FBPC from these images."""
    return fit_fbpc(
        model, data, coreset=start, images_per_class=cell.images_per_class, key=keys(cell.images_per_class, seed)[1],
        steps=cell.steps, experts=experts, proxy=PROXIES[method], step_size=cell.step_size, inner_loss=cell.inner_loss,
        inner_learning_rate=cell.inner_learning_rate, inner_max_steps=cell.inner_max_steps,
        first_epoch=cell.first_epoch, augment=cell.augment, progress=False,
    )  # fmt: skip


def score(model: Model, coreset: Pseudocoreset, split: object, cell: Cell, key: jax.Array) -> dict[str, object]:
    posterior = sample(
        model, coreset, kernel="sghmc", num_chains=cell.sghmc_chains, num_warmup=cell.sghmc_warmup,
        num_samples=cell.sghmc_draws, thinning=cell.sghmc_thinning, augment=cell.sghmc_augment, key=key,
        predict_on=split, progress=False,
    )  # fmt: skip
    return predictive_metrics(posterior).as_dict()


def run_cell(
    data: Dataset, model: Model, experts: object, cell: Cell, seed: int, split: object
) -> tuple[dict[str, object], dict[str, Pseudocoreset]]:
    score_key = keys(cell.images_per_class, seed)[2]
    start = random_images(data, cell, seed)
    record: dict[str, object] = {"seed": seed, "images_per_class": cell.images_per_class}
    record["random"] = score(model, start, split, cell, score_key)
    coresets = {}
    for method in cell.methods:
        result = learn(data, model, experts, start, cell, method, seed)
        history = result.history
        record[method] = {
            **score(model, result.coreset, split, cell, score_key),
            "outcome": result.outcome.name,
            "inner_steps_mean": float(np.mean(history["inner_steps"])),
            "inner_capped_share": float(np.mean(history["inner_capped"])),
            "data_loss_first_last": [float(np.mean(history["data_loss"][s])) for s in (slice(10), slice(-10, None))],
        }
        coresets[method] = result.coreset
    return record, coresets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images-per-class", type=int, nargs="+", help="only these of the cells")
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
    args = parser.parse_args()
    data, model, experts = setup(args.data_dir, args.work)
    records = []
    cells = [c for c in CELLS if args.images_per_class is None or c.images_per_class in args.images_per_class]
    for cell in cells:
        chosen = replace(cell, steps=2, sghmc_warmup=10, sghmc_draws=2, sghmc_thinning=2) if args.smoke else cell
        for seed in range(args.seeds):
            file = args.work / f"cell-{chosen.images_per_class}-{seed}.json"
            if file.is_file():
                records.append(json.loads(file.read_text()))
                continue
            record, coresets = run_cell(data, model, experts, chosen, seed, data.test.head(NUM_TEST))
            for method, coreset in coresets.items():
                coreset.save(args.work / f"{method}-{chosen.images_per_class}-{seed}")
            file.write_text(json.dumps(record))
            records.append(record)
            print(json.dumps(record), flush=True)
    summary = []
    for cell in cells:
        rows = [r for r in records if r["images_per_class"] == cell.images_per_class]
        entry = {"images_per_class": cell.images_per_class, "seeds": len(rows)}
        for name in ("random", *cell.methods):
            for metric in ("accuracy", "nll", "brier", "ece"):
                values = np.array([r[name][metric] for r in rows])
                entry[f"{name}_{metric}"] = [
                    round(float(values.mean()), 4),
                    round(float(values.std(ddof=1)), 4),
                ]
        summary.append(entry)
    content = {
        "what": "mean, standard deviation over seeds; uniform prediction has NLL 2.3026",
        "summary": summary,
        "cells": [asdict(c) for c in cells],
        "experts": EXPERTS,
        "num_test": NUM_TEST,
        "proxies": {name: proxy.describe() for name, proxy in PROXIES.items()},
        "network": {"depth": 3, "width": WIDTH, "norm": "instance"},
        "records": records,
        "machine": describe_machine(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    for entry in summary:
        print(entry)


if __name__ == "__main__":
    main()
