"""CIFAR-10, ten images a class: FBPC learned with one network, and the random images it started from, given to others.

    python benchmarks/transfer.py --data-dir DIR --work DIR --out benchmarks/results/transfer.json

``--data-dir`` is a tensorflow-datasets folder with CIFAR-10 prepared (or to be downloaded into); ``--work`` keeps
experts and coreset. The coreset is learned once, as ``cifar10_fbpc.py`` does (seed 0), on ConvNet 3x32, instance norm.
Each cell trains one network from scratch on a coreset by the protocol "distillation" with fewer epochs, the same for
all, and scores it on the first test images. A run goes on where one before it had come to, while the settings at the
top of ``--out`` are the same. No seconds are recorded: the run may share its cores.
"""

import argparse
import json
import pathlib
from dataclasses import asdict, replace
from typing import Any

import jax
from cifar10_fbpc import CELLS, EXPERTS, WIDTH, learn, random_images, setup
from machine import describe_machine

from pseudocoreset import Dataset, Pseudocoreset, evaluate, load_dataset
from pseudocoreset.models import VGG11, AlexNet, ConvNet, LeNet, ResNet18, ResNet34, bnn

SEED = 0
NUM_TEST = 2000
# Half of the steps, and a quarter of the training of experts, of ``cifar10_fbpc.py``.
CELL = replace(next(cell for cell in CELLS if cell.images_per_class == 10), steps=30)
LESS_TRAINING = {"num_experts": 2, "num_epochs": 2}
PROTOCOL = {"num_epochs": 300, "num_networks": 1}
NETWORKS = {
    **{f"ConvNet, {norm}": ConvNet(width=WIDTH, norm=norm) for norm in ("instance", "group", "layer", "batch", "none")},
    "LeNet": LeNet(),
    "VGG11": VGG11(width=16),
    "ResNet18": ResNet18(width=8),
    "ResNet34": ResNet34(width=8),
    "AlexNet": AlexNet(),
}
# AlexNet has sixty times as many multiplications an image as ConvNet 3x32.
ON_CPU = [name for name in NETWORKS if name not in ("ResNet34", "AlexNet")]
WHAT = (
    "Means and standard errors over the first test images, of one network a cell, trained on a hundred images; uniform "
    "prediction has NLL 2.3026. FBPC was learned with the ConvNet with instance norm, in half as many steps as in "
    "cifar10_fbpc.json and from experts trained a quarter as long. VGG11 and ResNet18 have a quarter and an eighth of "
    "their published width, 64, so that all fit half an hour of one core; ResNet34 and AlexNet, whose width is fixed, "
    "do not and are left out (--networks names them)."
)


def coresets(data_dir: str | None, work: pathlib.Path) -> tuple[Dataset, dict[str, Pseudocoreset]]:
    folder = work / f"fbpc-{CELL.images_per_class}-{SEED}"
    if not folder.is_dir():
        data, model, experts = setup(data_dir, work, **LESS_TRAINING)
        start = random_images(data, CELL, SEED)
        learn(data, model, experts, start, CELL, "fbpc", SEED).coreset.save(folder)
    data = load_dataset("cifar10", data_dir=data_dir)
    return data, {"random": random_images(data, CELL, SEED), "fbpc": Pseudocoreset.load(folder)}


def described(network: Any) -> dict[str, Any]:
    fields = ("depth", "width", "norm")
    return {"class": type(network).__name__} | {
        name: getattr(network, name) for name in fields if name in vars(network)
    }


def markdown(cells: dict[str, Any]) -> str:
    """Accuracy in percent and its standard error over the test images."""
    lines = ["| network | random images | FBPC |", "|---|---|---|"]
    for name, row in cells.items():
        columns = []
        for coreset in ("random", "fbpc"):
            accuracy = row[coreset]["accuracy"] if coreset in row else None
            columns.append("" if accuracy is None else "{:.1f} ± {:.1f} %".format(*(100 * value for value in accuracy)))
        lines.append(f"| {name} | {' | '.join(columns)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--networks", nargs="+", default=ON_CPU, choices=list(NETWORKS))
    args = parser.parse_args()
    settings = {
        "learning": asdict(CELL),
        "seed": SEED,
        "experts": EXPERTS | LESS_TRAINING,
        "protocol": {"name": "distillation", **PROTOCOL},
        "num_test": NUM_TEST,
        "networks": {name: described(network) for name, network in NETWORKS.items()},
    }
    settings, machine, cells = json.loads(json.dumps(settings)), describe_machine(), {}
    if args.out.exists():
        content = json.loads(args.out.read_text())
        if (content["settings"], content["machine"]) != (settings, machine):
            parser.error(f"{args.out} was measured with other settings or elsewhere; name another --out")
        cells = content["cells"]
    data, every_coreset = coresets(args.data_dir, args.work)
    data = replace(data, test=data.test.head(NUM_TEST))
    for name in args.networks:
        # One model for both coresets, which then share a compilation.
        model = bnn(NETWORKS[name], data)
        for coreset_name, coreset in every_coreset.items():
            if coreset_name in cells.get(name, {}):
                continue
            found = evaluate(
                coreset, {name: model}, data, protocol="distillation", split="test", key=jax.random.key(SEED),
                progress=False, **PROTOCOL,
            )[name]  # fmt: skip
            scores = {
                key: [one.mean, one.standard_error] for key, one in found.metrics.items() if "ensemble" not in key
            }
            cells.setdefault(name, {})[coreset_name] = scores | {"num_params": found.settings["num_params"]}
            print(name, coreset_name, scores, flush=True)
            ordered = {name: cells[name] for name in NETWORKS if name in cells}
            content = {"what": WHAT, "settings": settings, "cells": ordered, "machine": machine}
            args.out.write_text(json.dumps(content, indent=1) + "\n")
    print(markdown(cells))


if __name__ == "__main__":
    main()
