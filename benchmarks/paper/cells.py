"""The grids of the comparison with the papers, as values: what is learned, on what, with what, and how it is scored."""

import hashlib
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# The other benchmarks are scripts one folder up, and hold the settings that were tuned for the small CIFAR-10.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from cifar10_fbpc import EXPERTS as SMALL_EXPERTS
from cifar10_fbpc import WIDTH as SMALL_WIDTH
from cifar10_objectives import EVALUATION as SMALL_SGHMC
from cifar10_objectives import METHODS as SMALL_METHODS
from cifar10_objectives import WEIGHT as SMALL_WEIGHT

from pseudocoreset.models import VGG11, AlexNet, ConvNet, ResNet18, ResNet34
from pseudocoreset.proxies import Laplace, Linearized, Trajectory

__all__ = ["GRIDS", "METHODS", "NORMS", "Cell", "Method", "Scale", "cells", "describe", "digest", "grid", "settings"]

MAIN = "ConvNet"  # with instance norm: what the papers learn with, and mean by the name
NORMS = (MAIN, "ConvNet, group", "ConvNet, layer", "ConvNet, batch")
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """A front door.

    Attributes:
        fit: its name in ``pseudocoreset``.
        label: in tables.
        learns: whether points are learned, from a start, in steps.
        experts: whether it is given experts.
        networks: what it learns with; all others learn with the first network of their scale.
        settings: arguments that make it this method, at every scale.
    """

    fit: str
    label: str
    learns: bool = True
    experts: bool = True
    networks: tuple[str, ...] = (MAIN,)
    settings: Settings = field(default_factory=dict)


METHODS = {
    "random": Method("fit_random", "random images", learns=False, experts=False),
    "herding": Method("fit_herding", "herding", learns=False),
    # With the target of the published code; the untempered one is in cifar10_objectives.py.
    "reverse_kl": Method("fit_bpc_rkl", "BPC-rKL", settings={"proxy": "isotropic", "target": "tempered"}),
    "forward_kl": Method("fit_bpc_fkl", "BPC-fKL"),
    "wasserstein": Method("fit_bpc_w", "BPC-W"),
    "function_kl_isotropic": Method("fit_fbpc", "FBPC, isotropic", settings={"proxy": "isotropic"}),
    "function_kl": Method("fit_fbpc", "FBPC"),
    "function_kl_linearized": Method(
        "fit_fbpc", "FBPC, linearised", settings={"proxy": Linearized(Laplace(structure="diagonal"))}
    ),
    "function_kl_norms": Method("fit_fbpc", "FBPC, four norms", networks=NORMS),
    "bacon": Method("fit_bacon", "BACON"),
    "gradient_matching_plain": Method("fit_gradient_matching", "DC", experts=False, settings={"augment": None}),
    "gradient_matching": Method("fit_gradient_matching", "DSA", experts=False),
    "distribution_matching": Method("fit_distribution_matching", "DM", experts=False),
    "trajectory_matching": Method("fit_trajectory_matching", "MTT"),
}


@dataclass(frozen=True)
class Scale:
    """One data set, at one size of networks and amount of work.

    Attributes:
        name: of the scale and of its file of results.
        data: name of the data set.
        networks: flax modules; the first is learned with and scored.
        experts: arguments of ``train_experts``.
        learning: for each method, the settings at each number of images a class; what is not here is not measured.
        protocols: settings of each protocol of ``evaluate``, by name, at each number of images a class; those of None
            are for all. ``"corruptions"`` are the scores under the ten corruptions of CIFAR-10-C of draws as for
            ``"default"``.
        protocol_methods: the methods that a protocol is for; it is for all where it is not here.
        transfer: methods whose coresets are also given to the other networks.
        transfer_protocol: by which.
        sizes: images a class.
        seeds: of start, fit and evaluation.
        num_test: test images, None for all.
        rate: multiply-adds a second that the estimates of costs assume.
        what: in what it differs from the papers, for the heading of its tables.
    """

    name: str
    data: str
    networks: Mapping[str, Any]
    experts: Settings
    learning: Mapping[str, Mapping[int, Settings]]
    protocols: Mapping[str, Mapping[int | None, Settings]]
    protocol_methods: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    transfer: tuple[str, ...] = ()
    transfer_protocol: str = "fbpc2023"
    sizes: tuple[int, ...] = (1, 10)
    seeds: tuple[int, ...] = (0, 1, 2)
    num_test: int | None = None
    rate: float = 1e10
    what: str = ""


@dataclass(frozen=True)
class Cell:
    """One coreset, given to one network by one protocol."""

    scale: str
    method: str
    images_per_class: int
    network: str
    protocol: str
    seed: int

    def __str__(self) -> str:
        parts = (self.scale, self.method, self.images_per_class, self.network, self.protocol, self.seed)
        return "/".join(map(str, parts))


def cells(scale: Scale) -> Iterator[Cell]:
    """All cells, seed by seed, so that what is there when a run is stopped is balanced over methods."""
    for seed in scale.seeds:
        for size in scale.sizes:
            for method, by_size in scale.learning.items():
                if size not in by_size:
                    continue
                for protocol, by_count in scale.protocols.items():
                    if method not in scale.protocol_methods.get(protocol, (method,)) or not {None, size} & set(
                        by_count
                    ):
                        continue
                    yield Cell(scale.name, method, size, next(iter(scale.networks)), protocol, seed)
                if method in scale.transfer:
                    for network in list(scale.networks)[1:]:
                        yield Cell(scale.name, method, size, network, scale.transfer_protocol, seed)


def describe(value: Any) -> Any:
    """As JSON: modules and proxies as their fields."""
    if isinstance(value, Mapping):
        return {str(key): describe(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [describe(one) for one in value]
    if hasattr(value, "describe"):
        return describe(value.describe())
    if hasattr(value, "__dataclass_fields__"):
        fields = [name for name in value.__dataclass_fields__ if name not in ("name", "parent")]
        return {"class": type(value).__name__} | {name: describe(getattr(value, name)) for name in fields}
    return value


def settings(scale: Scale, cell: Cell) -> dict[str, Any]:
    """All that decides a cell but its seed: how its coreset is learned, and how that is scored."""
    method = METHODS[cell.method]
    by_protocol = scale.protocols[cell.protocol]
    found: dict[str, Any] = {
        "data": scale.data,
        "coreset": {"fit": method.fit, **method.settings, **scale.learning[cell.method][cell.images_per_class]},
        "scored": {
            "protocol": cell.protocol,
            **by_protocol.get(None, {}),
            **by_protocol.get(cell.images_per_class, {}),
            "network": scale.networks[cell.network],
            "num_test": scale.num_test,
        },
    }
    if method.learns or method.experts:
        found["coreset"]["networks"] = [scale.networks[name] for name in method.networks]
    if method.experts:
        found["experts"] = scale.experts
    return describe(found)


def digest(content: Any) -> str:
    """A short name of settings, by their content."""
    return hashlib.sha256(json.dumps(describe(content), sort_keys=True).encode()).hexdigest()[:12]


def sizes(one: Settings, ten: Settings, **common: Any) -> dict[int, Settings]:
    return {1: common | dict(one), 10: common | dict(ten)}


def convnets(depth: int, width: int) -> dict[str, Any]:
    norms = ("instance", "group", "layer", "batch")
    return {name: ConvNet(depth=depth, width=width, norm=norm) for name, norm in zip(NORMS, norms, strict=True)}


def steps(one: int, ten: int, step_size: float, of_ten: float | None = None, **common: Any) -> dict[int, Settings]:
    second = step_size if of_ten is None else of_ten
    return sizes(dict(steps=one, step_size=step_size), dict(steps=ten, step_size=second), **common)


def fbpc(counts: tuple[int, int], *step_sizes: float, **common: Any) -> dict[int, Settings]:
    common = dict(inner_learning_rate=5e-3, inner_max_steps=200, first_epoch=1) | common
    found = steps(*counts, *step_sizes, **common)
    return {size: {**found[size], "inner_loss": loss} for size, loss in ((1, 0.1), (10, 0.2))}


SHORT = Trajectory(num_steps=10, batch_size=32)
SUBSETS: dict[str, dict[int, Settings]] = {"random": sizes({}, {}), "herding": sizes({}, {})}
INNER = dict(num_inner_steps=20, inner_learning_rate=0.05)
QUICK = dict(num_inner_steps=20, inner_learning_rate=0.1)
SLOW = dict(num_inner_steps=20, inner_learning_rate=0.02)
GENTLE = dict(inner_learning_rate=0.01, inner_max_steps=100)
MATCHING = dict(batch_size=64, num_inner_steps=5, num_outer=10)
# Step sizes: the best of two or three on training images, with another seed (``run.py --tune``).
DIGITS = Scale(
    name="digits",
    data="digits",
    networks=convnets(2, 8),
    experts=dict(num_experts=4, num_epochs=10, learning_rate=0.1, batch_size=64, augment=None),
    learning=SUBSETS
    | {
        "reverse_kl": steps(30, 30, 1000.0, 100.0, **INNER),
        "forward_kl": steps(60, 40, 100.0, num_draws=5, **INNER),
        "wasserstein": steps(40, 30, 10.0, expert_epochs=1, **INNER),
        "function_kl_isotropic": fbpc((60, 40), 30.0, **GENTLE),
        "function_kl": fbpc((60, 30), 100.0, 30.0, proxy=SHORT, **GENTLE),
        "function_kl_linearized": fbpc((30, 15), 30.0, **GENTLE),
        "function_kl_norms": fbpc((30, 15), 30.0, proxy=SHORT, **GENTLE),
        "bacon": steps(100, 100, 1.0, batch_size=64),
        "gradient_matching_plain": steps(30, 30, 1.0, 0.3, **MATCHING),
        "gradient_matching": steps(30, 30, 0.3, augment="crop_scale_rotate", **MATCHING),
        "distribution_matching": steps(100, 100, 1.0, batch_size=64),
        "trajectory_matching": steps(40, 30, 10.0, expert_epochs=2, last_epoch=5, **INNER),
    },
    protocols={
        "default": {None: dict(mass="data", num_chains=2, num_warmup=300, num_samples=20, thinning=15)},
        "fbpc2023": {None: dict(num_repeats=1)},
        "distillation": {None: dict(num_networks=1)},
    },
    transfer=("random", "function_kl", "function_kl_norms"),
    what="ConvNet 2x8, 4 experts of 10 epochs, images of 8 x 8, not augmented but for DSA; there are no published "
    "figures",
)
MNIST = Scale(
    name="mnist",
    data="mnist",
    networks=convnets(3, 16),
    experts=dict(num_experts=2, num_epochs=3, learning_rate=0.02, batch_size=128, augment=None),
    learning=SUBSETS
    | {
        "reverse_kl": steps(24, 12, 3000.0, **QUICK),
        "forward_kl": steps(100, 24, 30.0, num_draws=5, **QUICK),
        "wasserstein": steps(50, 16, 10.0, expert_epochs=1, **SLOW),
        "function_kl_isotropic": fbpc((150, 30), 30.0),
        "function_kl": fbpc((60, 20), 100.0, proxy=SHORT),
        "function_kl_linearized": fbpc((40, 12), 30.0),
        "function_kl_norms": fbpc((20, 8), 30.0, proxy=SHORT),
        "bacon": steps(125, 160, 3.0, batch_size=64),
        "gradient_matching_plain": steps(75, 32, 3.0, **MATCHING),
        "gradient_matching": steps(75, 32, 10.0, **MATCHING),
        "distribution_matching": steps(150, 150, 3.0, batch_size=64),
        "trajectory_matching": steps(50, 16, 30.0, expert_epochs=2, last_epoch=1, **SLOW),
    },
    protocols={
        "default": {
            None: dict(mass="data", num_chains=1, num_warmup=300, num_samples=10, thinning=30),
        },
        "fbpc2023": {None: dict(num_repeats=1, num_epochs=500, sample_every=50)},
        "distillation": {None: dict(num_networks=1, num_epochs=300)},
    },
    transfer=("random", "function_kl", "function_kl_norms"),
    num_test=5000,
    what="ConvNet 3x16, 2 experts of 3 epochs, tens of steps, the first 5,000 test images; published: 3x128, 100 "
    "experts of 50 epochs, thousands of steps",
)


def small_cifar10(name: str, **changes: Any) -> dict[int, Settings]:
    """What ``cifar10_objectives.py`` learns a method with."""
    found = SMALL_METHODS[name]
    return {size: {**found.settings, **by_size, **changes} for size, by_size in found.by_size.items()}


CIFAR10_SMALL = Scale(
    name="cifar10_small",
    data="cifar10",
    networks=convnets(3, SMALL_WIDTH),
    experts=SMALL_EXPERTS,
    learning=SUBSETS
    | {
        "reverse_kl": small_cifar10("reverse_kl_tempered"),
        "forward_kl": small_cifar10("forward_kl"),
        "wasserstein": small_cifar10("wasserstein"),
        "function_kl_isotropic": small_cifar10("function_kl_isotropic"),
        "function_kl": small_cifar10("function_kl"),
        "function_kl_linearized": small_cifar10("function_kl_linearized"),
        "function_kl_norms": fbpc((15, 3), 1000.0, proxy=SHORT),
        "bacon": small_cifar10("bacon"),
        "gradient_matching_plain": small_cifar10("gradient_matching"),
        "gradient_matching": small_cifar10("gradient_matching"),
        "distribution_matching": small_cifar10("distribution_matching"),
        "trajectory_matching": small_cifar10("wasserstein"),
    },
    protocols={
        "default": {size: {**SMALL_SGHMC[size], "mass": SMALL_WEIGHT * 10 * size} for size in (1, 10)},
        "fbpc2023": {None: dict(num_repeats=1, num_epochs=300, sample_every=30)},
        "distillation": {None: dict(num_networks=1, num_epochs=300)},
    },
    transfer=("random", "function_kl", "function_kl_norms"),
    num_test=2000,
    what="ConvNet 3x32, 4 experts of 4 epochs, tens of steps, the first 2,000 test images; published: 3x128, 100 "
    "experts of 50 epochs, thousands of steps",
)

# What the front doors leave to the published recipes (pseudocoreset/recipes.py) is not repeated here.
PAPER_EXPERTS = dict(num_experts=10, num_epochs=50, learning_rate=0.01, batch_size=256, augment="auto")
PAPER_SIZES = (1, 10, 50)
PAPER_PROTOCOLS: dict[str, dict[int | None, Settings]] = {
    "fbpc2023": {None: dict(num_repeats=1)},
    "default": {
        None: dict(num_chains=2, num_warmup=300, num_samples=10, thinning=100, augment="auto"),
        **{size: dict(mass=1000.0 * size) for size in PAPER_SIZES},
    },
    "distillation": {None: dict(num_networks=1)},
}


def everywhere(**changes: Any) -> dict[int, Settings]:
    return dict.fromkeys(PAPER_SIZES, changes)


def starts(*last: int, **common: Any) -> dict[int, Settings]:
    """The window of the starts in the code of Kim et al. 2022, whose end it excludes."""
    return {size: {**common, "last_epoch": end} for size, end in zip(PAPER_SIZES, last, strict=True)}


PAPER_LEARNING: dict[str, dict[int, Settings]] = {
    "random": everywhere(),
    "function_kl": everywhere(),
    "function_kl_isotropic": everywhere(),
    "forward_kl": starts(1, 19, 29, steps=5000, step_size=1000.0, num_draws=30),
    "wasserstein": starts(1, 19, 29, steps=5000, step_size=1000.0, expert_epochs=2),
    "reverse_kl": starts(1, 19, 29, steps=5000, step_size=1000.0, num_draws=10),
    "herding": everywhere(),
    "function_kl_linearized": everywhere(),
    "function_kl_norms": everywhere(),
    "bacon": everywhere(steps=20_000, formation=2),
    "gradient_matching_plain": {
        size: dict(steps=1000 * outer, start="noise") for size, outer in zip(PAPER_SIZES, (1, 10, 50), strict=True)
    },
    "gradient_matching": {size: dict(steps=1000 * outer) for size, outer in zip(PAPER_SIZES, (1, 10, 50), strict=True)},
    "distribution_matching": everywhere(steps=20_000),
    "trajectory_matching": everywhere(steps=5000),
}
CIFAR10 = Scale(
    name="cifar10",
    data="cifar10",
    networks=convnets(3, 128)
    | {"ResNet18": ResNet18(), "ResNet34": ResNet34(), "VGG11": VGG11(), "AlexNet": AlexNet()},
    experts=PAPER_EXPERTS,
    learning=PAPER_LEARNING,
    protocols=PAPER_PROTOCOLS
    | {"corruptions": {10: dict(mass=10_000.0, num_chains=1, num_warmup=300, thinning=100, augment="auto")}},
    protocol_methods={"corruptions": ("random", "forward_kl", "function_kl")},
    transfer=("function_kl", "function_kl_norms"),
    sizes=PAPER_SIZES,
    seeds=(0, 1, 2, 3, 4),
    rate=1.4e13,  # of a step of FBPC with 100 images in float32, results/speed_gpu.json
    what="the papers' network and steps, with 10 experts of their 100",
)
CIFAR100 = replace(
    CIFAR10,
    name="cifar100",
    data="cifar100",
    networks={MAIN: ConvNet(depth=3, width=128)},
    learning={name: PAPER_LEARNING[name] for name in ("random", "function_kl", "forward_kl", "herding")},
    protocols=PAPER_PROTOCOLS
    | {"default": PAPER_PROTOCOLS["default"] | {size: dict(mass=10_000.0 * size) for size in PAPER_SIZES}},
    transfer=(),
    seeds=(0, 1, 2),
)
TINY_IMAGENET = replace(
    CIFAR100,
    name="tiny_imagenet",
    data="tiny_imagenet",
    networks={MAIN: ConvNet(depth=4, width=128)},
    protocols=PAPER_PROTOCOLS
    | {"default": PAPER_PROTOCOLS["default"] | {size: dict(mass=20_000.0 * size) for size in PAPER_SIZES}},
)
GRIDS: dict[str, tuple[Scale, ...]] = {
    "cpu": (DIGITS, MNIST, CIFAR10_SMALL),
    "paper": (CIFAR10, CIFAR100, TINY_IMAGENET),
}


def grid(name: str) -> tuple[Scale, ...]:
    """The scales of a grid."""
    return GRIDS[name]
