"""What cells will cost, for the list: from cells that were measured, or by counting multiplications."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from cells import METHODS, Cell, Scale, settings

from pseudocoreset.methods.fbpc import fbpc_recipe
from pseudocoreset.methods.gradient_matching import gradient_matching_recipe
from pseudocoreset.methods.inner import bpc_recipe
from pseudocoreset.methods.trajectory_matching import trajectory_recipe
from pseudocoreset.models import ConvNet

__all__ = ["expert_seconds", "fit_seconds", "score_seconds"]

# Training images, side, channels, classes, test images.
SHAPES = {
    "digits": (1437, 8, 1, 10, 360),
    "mnist": (60_000, 28, 1, 10, 10_000),
    "cifar10": (50_000, 32, 3, 10, 10_000),
    "cifar100": (50_000, 32, 3, 100, 10_000),
    "tiny_imagenet": (100_000, 64, 3, 200, 10_000),
}
BACKWARD = 3  # a gradient, in forward passes
TYPICAL_INNER_STEPS = 100  # that FBPC's network takes until its loss is small
LINEARISED_PASSES = 50


def multiplications(network: Any, data: str) -> float | None:
    """Of one forward pass of one image; None for networks that are not counted."""
    if not isinstance(network, ConvNet):
        return None
    _, side, channels, _, _ = SHAPES[data]
    total = 0.0
    for _ in range(network.depth):
        total += side * side * 9 * channels * network.width
        side, channels = side // 2, network.width
    return total


def fit_seconds(scale: Scale, cell: Cell, records: Iterable[Mapping[str, Any]]) -> float | None:
    """Of learning the coreset of a cell."""
    measured = [
        one["fit"]["seconds"]
        for one in records
        if (one["method"], one["images_per_class"]) == (cell.method, cell.images_per_class) and one["fit"]["seconds"]
    ]
    if measured:
        return statistics.median(measured)
    method, chosen = METHODS[cell.method], settings(scale, cell)["coreset"]
    if not method.learns:
        return 5.0
    per_step = _images_a_step(scale, cell, chosen)
    networks = [multiplications(scale.networks[name], scale.data) or 0.0 for name in method.networks]
    default = fbpc_recipe(scale.data, cell.images_per_class).steps
    return chosen.get("steps", default) * per_step * BACKWARD * sum(networks) / scale.rate


def _images_a_step(scale: Scale, cell: Cell, chosen: Mapping[str, Any]) -> float:
    """Images that pass forward and backward through the network at a step on the coreset."""
    size = cell.images_per_class
    classes = SHAPES[scale.data][3]
    points, batch = size * classes, chosen.get("batch_size", 256)
    inner = chosen.get("num_inner_steps", bpc_recipe(size).num_inner_steps)
    draws = chosen.get("num_draws", 10)
    match chosen["fit"]:
        case "fit_bpc_rkl":
            return inner * points + draws * (points + batch)
        case "fit_bpc_fkl":
            return inner * points + 2 * draws * points
        case "fit_bpc_w":
            return 3 * inner * points
        case "fit_trajectory_matching":
            return 3 * chosen.get("num_inner_steps", trajectory_recipe(scale.data, size).num_inner_steps) * points
        case "fit_gradient_matching":
            return 2 * (classes * batch + points) + points * gradient_matching_recipe(size)[1]
        case "fit_fbpc":
            trajectories = 30 * (points + 256)
            extra = {"function_kl_isotropic": 0, "function_kl_linearized": LINEARISED_PASSES * points}
            return TYPICAL_INNER_STEPS * points + extra.get(cell.method, trajectories)
        case _:
            return classes * batch + points


def score_seconds(scale: Scale, cell: Cell, records: Iterable[Mapping[str, Any]]) -> float | None:
    """Of scoring it."""
    alike = ("network", "protocol", "images_per_class")
    measured = [one["seconds"] for one in records if all(one[name] == getattr(cell, name) for name in alike)]
    if measured:
        return statistics.median(measured)
    work = multiplications(scale.networks[cell.network], scale.data)
    if work is None:
        return None
    chosen = settings(scale, cell)["scored"]
    classes, num_test = SHAPES[scale.data][3], chosen["num_test"] or SHAPES[scale.data][4]
    points = cell.images_per_class * classes
    match cell.protocol:
        case "distillation":
            runs, steps, predictions = chosen.get("num_networks", 5), chosen.get("num_epochs", 1001), 1
        case "fbpc2023":
            runs, steps = chosen.get("num_repeats", 5), chosen.get("num_epochs", 1000)
            predictions = steps // chosen.get("sample_every", 100)
        case "kim2022":
            runs, steps, predictions = chosen.get("num_repeats", 10), 500, 50
        case _:
            runs, predictions = chosen.get("num_chains", 4), chosen.get("num_samples", 50)
            steps = chosen.get("num_warmup", 500) + predictions * chosen.get("thinning", 10)
            predictions *= 51 if cell.protocol == "corruptions" else 1
    return runs * (steps * points * BACKWARD + predictions * num_test) * work / scale.rate


def expert_seconds(scale: Scale, network: str) -> float | None:
    """Of training the experts of one network."""
    work = multiplications(scale.networks[network], scale.data)
    if work is None:
        return None
    passes = scale.experts["num_experts"] * scale.experts["num_epochs"] * SHAPES[scale.data][0]
    return passes * BACKWARD * work / scale.rate
