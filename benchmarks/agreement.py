"""How close is the posterior of a coreset to that of all the data, when both are sampled by HMC?

    python benchmarks/agreement.py --work DIR --out benchmarks/results/agreement.json [--data-dir DIR]
        [--settings digits_mlp digits_convnet mnist_mlp mnist_tenth_mlp] [--seeds 0 1]
    python benchmarks/agreement.py --table benchmarks/results/agreement.json

``--work`` keeps the reference chains, experts, coresets and finished cells; a run that was stopped goes on there.
``--data-dir`` is a tensorflow-datasets folder, for MNIST and CIFAR-10; ConvNets on these want a GPU. A setting is a
data set and a network with its prior. Its reference is HMC or NUTS on all training data; a cell is one (method,
images a class, mass, seed): the coreset, learned without augmentation from random real images (the same ones for
every method of a seed), its weights rescaled to the mass, the same program sampled on it by the same kernel, and both
compared on the test images. The mass is m ("ones": as the network papers evaluate), n ("data": the scale of the full
posterior), or their geometric mean ("middle"). The last cells turn the other knobs of two coresets: temperature, the
scale of the prior, and four times the mass. Step sizes are the best of two or three by the NLL of SGHMC draws on
training images, with another seed.
"""

import argparse
import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from machine import describe_machine

import pseudocoreset as pc
from pseudocoreset.diagnostics import compare_posteriors
from pseudocoreset.diagnostics.distances.agreement import agreement_of
from pseudocoreset.diagnostics.distances.groups import halves
from pseudocoreset.diagnostics.predictions.predictive import predict
from pseudocoreset.inference import Posterior, sample
from pseudocoreset.models import MLP, ConvNet, Model, bnn
from pseudocoreset.objectives import Chains
from pseudocoreset.proxies import Trajectory

SIZES = (1, 10)
MASSES = ("ones", "middle", "data")
PRIOR_FACTORS = (0.5, 2.0)
TEMPERATURES = (0.1, 0.01)


@dataclass(frozen=True)
class Setting:
    """Data, network, and how much work.

    Attributes:
        data: name of the data set.
        network: flax module.
        experts: arguments of ``train_experts``.
        reference: arguments of ``sample`` on all data.
        chains: arguments of ``sample`` on a coreset.
        num_train: training images, the first ones; all if None.
        num_test: test images that are compared on.
        steps: updates of the coresets, for methods whose steps are cheap and dear.
        exact: whether the divergences are also minimised with chains in the place of proxies.
    """

    data: str
    network: Any
    experts: dict[str, Any]
    reference: dict[str, Any]
    chains: dict[str, Any]
    num_train: int | None = None
    num_test: int = 360
    steps: tuple[int, int] = (150, 60)
    exact: bool = False


NUTS = dict(kernel="nuts", num_chains=4, max_num_doublings=7)
SETTINGS = {
    "digits_mlp": Setting(
        "digits",
        MLP(widths=(32,)),
        dict(num_experts=8, num_epochs=10, learning_rate=0.05, batch_size=64, augment=None),
        NUTS | dict(num_warmup=500, num_samples=500, max_num_doublings=8),
        NUTS | dict(num_warmup=200, num_samples=200),
        steps=(300, 60),
        exact=True,
    ),
    "digits_convnet": Setting(
        "digits",
        ConvNet(depth=2, width=8),
        dict(num_experts=8, num_epochs=10, learning_rate=0.1, batch_size=64, augment=None),
        NUTS | dict(num_warmup=150, num_samples=100, max_num_doublings=6),
        NUTS | dict(num_warmup=150, num_samples=100, max_num_doublings=6),
    ),
    "mnist_mlp": Setting(
        "mnist",
        MLP(widths=(32,)),
        dict(num_experts=4, num_epochs=4, learning_rate=0.05, batch_size=128, augment=None),
        NUTS | dict(num_chains=2, num_warmup=80, num_samples=60, max_num_doublings=5, chunk_size=2000),
        NUTS | dict(num_chains=2, num_warmup=150, num_samples=150, max_num_doublings=6),
        num_test=2000,
        steps=(150, 60),
    ),
    # A tenth of MNIST, whose chains can be run for long.
    "mnist_tenth_mlp": Setting(
        "mnist",
        MLP(widths=(32,)),
        dict(num_experts=4, num_epochs=10, learning_rate=0.05, batch_size=64, augment=None),
        NUTS | dict(num_warmup=200, num_samples=200, max_num_doublings=6, chunk_size=2000),
        NUTS | dict(num_warmup=150, num_samples=150, max_num_doublings=6),
        num_train=6000,
        num_test=1000,
    ),
    "mnist_convnet": Setting(
        "mnist",
        ConvNet(depth=3, width=16),
        dict(num_experts=4, num_epochs=4, learning_rate=0.02, batch_size=128, augment=None),
        dict(kernel="network_hmc", num_chains=3, num_warmup=20, num_samples=60),
        dict(kernel="network_hmc", num_chains=3, num_warmup=50, num_samples=100),
        num_test=2000,
    ),
    "cifar10_convnet": Setting(
        "cifar10",
        ConvNet(depth=3, width=32),
        dict(num_experts=4, num_epochs=10, learning_rate=0.01, batch_size=128, augment=None),
        dict(kernel="network_hmc", num_chains=3, num_warmup=20, num_samples=60),
        dict(kernel="network_hmc", num_chains=3, num_warmup=50, num_samples=100),
        num_test=2000,
        steps=(150, 60),
    ),
}
ON_CPU = ("digits_mlp", "digits_convnet", "mnist_mlp", "mnist_tenth_mlp")


@dataclass(frozen=True)
class Method:
    """A front door, its arguments, and whether its steps are dear or need the experts or the reference's draws."""

    fit: Callable[..., pc.FitResult]
    arguments: dict[str, Any] = field(default_factory=dict)
    is_dear: bool = False
    experts: bool = True
    draws: bool = False
    exact: bool = False


FBPC = dict(inner_learning_rate=0.01, inner_loss=0.1, inner_max_steps=200, first_epoch=1)
METHODS = {
    "random": Method(pc.fit_random, experts=False),
    "function_kl": Method(pc.fit_fbpc, FBPC | dict(step_size=1.0, proxy=Trajectory(num_steps=10, batch_size=64))),
    "function_kl_isotropic": Method(pc.fit_fbpc, FBPC | dict(step_size=1.0, proxy="isotropic")),
    "reverse_kl": Method(
        pc.fit_bpc_rkl, dict(step_size=0.01, proxy="isotropic", num_inner_steps=20, inner_learning_rate=0.05), True
    ),
    "forward_kl": Method(
        pc.fit_bpc_fkl, dict(step_size=30.0, num_draws=5, num_inner_steps=20, inner_learning_rate=0.05), True
    ),
    "wasserstein": Method(pc.fit_bpc_w, dict(step_size=3.0, num_inner_steps=20, inner_learning_rate=0.05), True),
    "distribution_matching": Method(pc.fit_distribution_matching, dict(step_size=0.1, batch_size=64), experts=False),
    # The divergences themselves: chains on the coreset at every step, and HMC draws of the full posterior.
    "reverse_kl_chains": Method(
        pc.fit_bpc_rkl, dict(proxy=Chains(max_num_doublings=5), step_size=0.03, weights="learned"), exact=True,
        experts=False,
    ),
    "forward_kl_chains": Method(
        pc.fit_bpc_fkl, dict(proxy=Chains(max_num_doublings=5), step_size=0.03, weights="learned", num_draws=32),
        draws=True, exact=True, experts=False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """One setting, set up."""

    setting: Setting
    data: pc.Dataset
    test: Any
    model: Model
    work: pathlib.Path
    progress: bool = False

    @classmethod
    def setup(cls, name: str, data_dir: str | None, work: pathlib.Path) -> "Bench":
        setting = SETTINGS[name]
        data = pc.load_dataset(setting.data, data_dir=data_dir)
        if setting.num_train is not None:
            data = replace(data, train=data.train.head(setting.num_train))
        model = bnn(setting.network, data)
        assert data.test is not None
        return cls(setting, data, data.test.head(setting.num_test), model, work / name)

    def reference(self) -> Posterior:
        """Chains on all training data, started where stochastic gradient descent ended."""
        experts = self.experts()
        num_chains = self.setting.reference["num_chains"]
        ends = [experts.snapshot(i, experts.num_epochs) for i in range(num_chains)]
        starts = {site: np.stack([end[site] for end in ends]) for site in ends[0]}
        return sample(
            self.model,
            self.data,
            init_params=starts,
            predict_on=self.test,
            keep="weights",
            key=jax.random.key(1),
            directory=self.work / "reference",
            progress=self.progress,
            **self.setting.reference,
        )

    def experts(self) -> pc.Experts:
        return pc.train_experts(
            self.model, self.data, key=jax.random.key(0), directory=self.work / "experts", progress=False,
            **self.setting.experts,
        )  # fmt: skip

    def coreset(self, name: str, size: int, seed: int) -> pc.Pseudocoreset:
        folder = self.work / f"{name}-{size}-{seed}"
        if folder.is_dir():
            return pc.Pseudocoreset.load(folder)
        method = METHODS[name]
        start_key, fit_key, _ = keys(size, seed)
        arguments = dict(method.arguments)
        if name == "random":
            result = method.fit(self.model, self.data, images_per_class=size, key=start_key)
        else:
            if method.experts:
                arguments["experts"] = self.experts()
            if method.draws:
                arguments["data_draws"] = self.reference()
            if name != "distribution_matching":
                arguments["augment"] = None
            # Weights that are learned start at the scale of the full posterior.
            mass = "data" if method.exact else "ones"
            start = pc.Pseudocoreset.from_data(self.data, images_per_class=size, key=start_key, mass=mass)
            result = method.fit(
                self.model,
                self.data,
                images_per_class=size,
                key=fit_key,
                steps=self.setting.steps[method.is_dear],
                coreset=start,
                progress=False,
                **arguments,
            )
        result.coreset.save(folder)
        return result.coreset

    def sampled(self, coreset: pc.Pseudocoreset, size: int, seed: int, **changes: Any) -> Posterior:
        arguments = self.setting.chains | changes
        model = arguments.pop("model", self.model)
        return sample(
            model, coreset, predict_on=self.test, keep="functions", key=keys(size, seed)[2], progress=False, **arguments
        )

    def compared(self, posterior: Posterior) -> dict[str, Any]:
        found = compare_posteriors({"full": self.reference(), "coreset": posterior}, self.test).as_dict()
        return {
            "metrics": found["metrics"]["coreset"],
            "agreement": found["agreement"]["coreset"],
            "distances": found["distances"].get("coreset"),
            "convergence": found["convergence"]["coreset"],
        }


def keys(size: int, seed: int) -> jax.Array:
    """Keys of the start, of the fit and of the chains."""
    return jax.random.split(jax.random.fold_in(jax.random.key(2000 + seed), size), 3)


def with_mass(coreset: pc.Pseudocoreset, mass: str) -> pc.Pseudocoreset:
    size, num_data = coreset.size, coreset.num_data
    masses = {"middle": (size * num_data) ** 0.5, "four_times": 4.0 * num_data}
    return coreset if mass == "as_learned" else coreset.with_mass(masses.get(mass, mass))


def scaled_prior(setting: Setting, data: pc.Dataset, factor: float) -> Model:
    """The network with every standard deviation of its prior times a factor."""
    plain = bnn(setting.network, data)
    scales = prior_scales(plain)
    return bnn(setting.network, data, prior_scale=lambda site, shape: factor * scales[site])


def prior_scales(model: Model) -> dict[str, float]:
    """Standard deviation of each site's prior, from the curvature of its log density."""
    zeros = jax.tree.map(np.zeros_like, model.init(jax.random.key(0)))
    ones = jax.tree.map(np.ones_like, zeros)
    _, product = jax.jvp(jax.grad(model.log_prior), (zeros,), (ones,))
    return {site: float(np.ravel(-leaf)[0] ** -0.5) for site, leaf in product.items()}


def cells(setting: Setting, seeds: list[int]) -> list[dict[str, Any]]:
    """All cells: the table, then the knobs, at ten images a class and the mass of the data."""
    names = [name for name, method in METHODS.items() if setting.exact or not method.exact]
    table = []
    for seed in seeds:
        for size in SIZES:
            for name in names:
                masses = ("as_learned",) if METHODS[name].exact else MASSES
                table += [dict(method=name, images_per_class=size, mass=mass, seed=seed) for mass in masses]
    knobs = []
    for name in ("random", "forward_kl"):
        cell = dict(method=name, images_per_class=10, seed=seeds[0])
        knobs.append(dict(**cell, mass="four_times"))
        knobs += [dict(**cell, mass="ones", temperature=t) for t in TEMPERATURES]
        knobs += [dict(**cell, mass="data", prior_factor=f) for f in PRIOR_FACTORS]
    return table + knobs


def run_cell(bench: Bench, cell: dict[str, Any]) -> dict[str, Any]:
    size, seed = cell["images_per_class"], cell["seed"]
    coreset = with_mass(bench.coreset(cell["method"], size, seed), cell["mass"])
    changes: dict[str, Any] = {}
    if "temperature" in cell:
        changes["temperature"] = cell["temperature"]
    if "prior_factor" in cell:
        changes["model"] = scaled_prior(bench.setting, bench.data, cell["prior_factor"])
    posterior = bench.sampled(coreset, size, seed, **changes)
    return {**cell, "total_weight": float(coreset.weights.sum()), **bench.compared(posterior)}


def run_setting(name: str, args: argparse.Namespace) -> dict[str, Any]:
    bench = replace(Bench.setup(name, args.data_dir, args.work), progress=True)
    reference = bench.reference()
    records = []
    for cell in cells(bench.setting, args.seeds):
        if args.methods and cell["method"] not in args.methods:
            continue
        label = "-".join(f"{value:g}" if isinstance(value, float) else str(value) for value in cell.values())
        file = bench.work / f"cell-{label}{'-prior' if 'prior_factor' in cell else ''}.json"
        if not file.is_file() and args.finished:
            continue
        if not file.is_file():
            file.write_text(json.dumps(run_cell(bench, cell)))
        records.append(json.loads(file.read_text()))
        found = records[-1]
        print(
            name, label, f"total weight {found['total_weight']:.0f}",
            *(f"{key} {found['agreement'][key]:.3f}" for key in ("top1", "total_variation", "kl")),
            f"accuracy {found['metrics']['accuracy']:.3f} NLL {found['metrics']['nll']:.3f}", flush=True,
        )  # fmt: skip
    parts = halves(reference)
    assert parts is not None
    of_halves = [predict(reference, chains=c, draws=d) for c, d in parts]
    uniform = compare_posteriors({"full": reference}, bench.test, reference="full").as_dict()
    return {
        "reference": {
            "metrics": uniform["metrics"]["full"],
            "convergence": uniform["convergence"]["full"],
            "agreement_of_halves": agreement_of(*of_halves).as_dict(),
            "distance_noise": uniform["distance_floor"],
            "settings": {k: v for k, v in reference.metadata.items() if k != "seconds"},
        },
        "num_train": bench.data.train.num_data,
        "num_test": bench.test.num_data,
        "num_params": bench.model.num_params,
        "cells": records,
    }


def table(content: dict[str, Any]) -> str:
    """Markdown: total variation from the reference at the masses m and n, a row a method, best at n and ten first."""
    lines = []
    for name, found in content["settings"].items():
        floor, convergence = found["reference"]["agreement_of_halves"], found["reference"]["convergence"]
        lines += [
            f"{name}: {found['num_train']} images, {found['num_params']} weights; two halves of the reference differ "
            f"by {floor['total_variation']:.3f}, R-hat up to {convergence['rhat_max']:.2f}, median "
            f"{convergence['rhat_median']:.2f}",
            "",
            "| | 1 image a class, mass m | mass n | 10 images a class, mass m | mass n |",
            "|---|---|---|---|---|",
        ]
        values: dict[str, dict[tuple[int, str], float]] = {}
        for cell in found["cells"]:
            if not {"temperature", "prior_factor"} & set(cell):
                mass = "data" if cell["mass"] == "as_learned" else cell["mass"]
                row = values.setdefault(cell["method"], {})
                row[cell["images_per_class"], mass] = cell["agreement"]["total_variation"]
        for method, row in sorted(values.items(), key=lambda item: item[1].get((10, "data"), 2.0)):
            columns = [row.get((size, mass)) for size in SIZES for mass in ("ones", "data")]
            lines.append(f"| {method} | " + " | ".join("" if v is None else f"{v:.3f}" for v in columns) + " |")
        lines += ["", "Other knobs, at ten images a class:", ""]
        for cell in found["cells"]:
            knobs = {k: cell[k] for k in ("mass", "temperature", "prior_factor") if k in cell}
            if len(knobs) > 1 or cell["mass"] == "four_times":
                said = ", ".join(f"{k} {v}" for k, v in knobs.items())
                lines.append(f"- {cell['method']}, {said}: {cell['agreement']['total_variation']:.3f}")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--table", type=pathlib.Path, help="print what is in this file of results, and run nothing")
    parser.add_argument("--finished", action="store_true", help="write what is finished, and run no further cell")
    parser.add_argument("--settings", nargs="+", default=list(ON_CPU), choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS))
    args = parser.parse_args()
    if args.table is not None:
        print(table(json.loads(args.table.read_text())))
        return
    if args.work is None:
        parser.error("--work is needed to run")
    for name in args.settings:
        found = {"machine": describe_machine(), **run_setting(name, args)}
        if args.out:
            # Other settings of the file stay as they are.
            content = json.loads(args.out.read_text()) if args.out.is_file() else {"settings": {}}
            content["settings"][name] = found
            args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
