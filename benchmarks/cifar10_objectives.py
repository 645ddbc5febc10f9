"""CIFAR-10, small ConvNet, 2 CPU cores: every objective side by side, on the same experts and the same evaluation.

    python benchmarks/cifar10_objectives.py --data-dir DIR --work DIR --out benchmarks/results/cifar10_objectives.json
    python benchmarks/cifar10_objectives.py --data-dir DIR --work DIR --cost benchmarks/results/cifar10_cost.json

``--data-dir`` is a tensorflow-datasets folder with CIFAR-10 prepared (or to be downloaded into); ``--work`` keeps
experts, coresets and finished cells: a run that was stopped goes on there. A cell is one (method, images a class,
seed): the coreset starts from the same random real images for every method of a seed, and SGHMC with the same settings
(augmented, as the papers evaluate) scores it on the first test images by the average of the draws. Step sizes are
the best of the few tried on training images with another seed (``--tune``), or ten times those published for a hundred
times as many steps. The second form measures seconds and peak memory of one step, every method in a process of its own,
one after the other; the first records no seconds, it may share its cores.
"""

import argparse
import itertools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cifar10_fbpc import EXPERTS, WIDTH, keys, setup
from machine import describe_machine

import pseudocoreset as pc
from pseudocoreset.diagnostics import predictive_metrics
from pseudocoreset.inference import sample
from pseudocoreset.models import Model
from pseudocoreset.proxies import Laplace, Linearized, Trajectory

SIZES = (1, 10)
NUM_TEST = 2000
WEIGHT = 100.0  # of each point; chosen on training images among 20, 100, 500, 5000
EVALUATION = {
    1: dict(num_chains=1, num_warmup=300, num_samples=10, thinning=50, augment="auto"),
    10: dict(num_chains=1, num_warmup=150, num_samples=10, thinning=15, augment="auto"),
}
COST_BLOCKS = 4


@dataclass(frozen=True)
class Method:
    """A front door and its settings; ``by_size`` has those that depend on the images a class.

    Attributes:
        fit: the front door.
        settings: its arguments.
        by_size: arguments at each number of images a class, step size and steps first of all.
        expected: accuracy (%) of the method's paper at 1 and 10 images a class, on the 3x128 ConvNet.
        learns: whether the start is learned from, and its steps can be counted.
        experts: whether it is given the experts.
    """

    fit: Callable[..., pc.FitResult]
    by_size: dict[int, dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    expected: tuple[float, float] | None = None
    learns: bool = True
    experts: bool = True


def sizes(one: dict[str, Any], ten: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {1: one, 10: ten}


FBPC = dict(inner_learning_rate=5e-3, inner_max_steps=200, first_epoch=1)
FBPC_LOSS = ({"inner_loss": 0.1}, {"inner_loss": 0.2})
# As many steps as 25 s at one image a class and 40 s at ten allow, by the table of costs.
METHODS = {
    "random": Method(pc.fit_random, sizes({}, {}), expected=(14.4, 26.0), learns=False, experts=False),
    "herding": Method(pc.fit_herding, sizes({}, {}), expected=(21.5, 31.6), learns=False, experts=False),
    "k_centres": Method(pc.fit_k_centres, sizes({}, {}), learns=False, experts=False),
    "gradient_matching": Method(
        pc.fit_gradient_matching,
        sizes(dict(steps=25, step_size=1.0), dict(steps=32, step_size=1.0)),
        dict(batch_size=64, num_inner_steps=5, num_outer=10),
        (28.8, 52.1),
        experts=False,
    ),
    "distribution_matching": Method(
        pc.fit_distribution_matching,
        sizes(dict(steps=150, step_size=10.0), dict(steps=150, step_size=10.0)),
        dict(batch_size=64),
        (26.0, 48.9),
        experts=False,
    ),
    "bacon": Method(
        pc.fit_bacon, sizes(dict(steps=125, step_size=20.0), dict(steps=160, step_size=20.0)), dict(batch_size=64)
    ),
    "wasserstein": Method(
        pc.fit_bpc_w,
        sizes(
            dict(steps=50, step_size=300.0, num_inner_steps=20, inner_learning_rate=0.02),
            dict(steps=16, step_size=300.0, num_inner_steps=10, inner_learning_rate=0.03),
        ),
        dict(expert_epochs=1),
        (46.3, 65.3),
    ),
    "reverse_kl": Method(
        pc.fit_bpc_rkl,
        sizes(dict(steps=20, step_size=0.1), dict(steps=12, step_size=0.1)),
        dict(proxy="isotropic", num_inner_steps=20),
    ),
    "reverse_kl_tempered": Method(
        pc.fit_bpc_rkl,
        sizes(dict(steps=24, step_size=1000.0), dict(steps=12, step_size=1000.0)),
        dict(proxy="isotropic", target="tempered", num_inner_steps=20),
        (20.4, 37.9),
    ),
    "forward_kl": Method(
        pc.fit_bpc_fkl,
        sizes(dict(steps=100, step_size=300.0), dict(steps=16, step_size=300.0)),
        dict(num_draws=5, num_inner_steps=20),
        (34.5, 56.2),
    ),
    "function_kl": Method(
        pc.fit_fbpc,
        sizes(*(dict(steps=n, step_size=1000.0) | loss for n, loss in zip((60, 12), FBPC_LOSS, strict=True))),
        FBPC | dict(proxy=Trajectory(num_steps=10, batch_size=32)),
        (35.5, 62.3),
    ),
    "function_kl_isotropic": Method(
        pc.fit_fbpc,
        sizes(*(dict(steps=n, step_size=1000.0) | loss for n, loss in zip((350, 20), FBPC_LOSS, strict=True))),
        FBPC | dict(proxy="isotropic"),
        (32.0, 61.4),
    ),
    "function_kl_linearized": Method(
        pc.fit_fbpc,
        sizes(*(dict(steps=n, step_size=1000.0) | loss for n, loss in zip((40, 8), FBPC_LOSS, strict=True))),
        FBPC | dict(proxy=Linearized(Laplace(structure="diagonal"))),
    ),
}


@dataclass(frozen=True)
class Bench:
    data: pc.Dataset
    model: Model
    experts: pc.Experts

    @classmethod
    def setup(cls, data_dir: str | None, work: pathlib.Path) -> "Bench":
        data, model, experts = setup(data_dir, work)
        return cls(data, model.bind(data.train.raw, data.train.y), experts)

    def fit(self, name: str, size: int, seed: int, **changes: Any) -> pc.FitResult:
        """The coreset of one cell; ``changes`` override settings."""
        method = METHODS[name]
        start_key, fit_key, _ = keys(size, seed)
        start = pc.Pseudocoreset.from_data(self.data, images_per_class=size, key=start_key)
        settings = method.settings | method.by_size[size] | changes
        if name == "random":
            return pc.fit_random(self.model, self.data, images_per_class=size, key=start_key)
        if name in ("herding", "k_centres"):
            params = self.experts.snapshot(0, self.experts.num_epochs)
            settings |= dict(features=lambda x: self.model.features(params, x))
        if method.experts:
            settings |= dict(experts=self.experts)
        if method.learns:
            settings |= dict(coreset=start)
        return method.fit(self.model, self.data, images_per_class=size, key=fit_key, progress=False, **settings)

    def score(self, coreset: pc.Pseudocoreset, split: Any, size: int, seed: int) -> dict[str, Any]:
        posterior = sample(
            self.model,
            coreset.with_mass(WEIGHT * coreset.size),
            kernel="sghmc",
            key=keys(size, seed)[2],
            predict_on=split,
            progress=False,
            **EVALUATION[size],
        )
        return predictive_metrics(posterior).as_dict()


def run_cell(bench: Bench, name: str, size: int, seed: int, work: pathlib.Path) -> dict[str, Any]:
    folder = work / f"{name}-{size}-{seed}"
    history: dict[str, Any] = {}
    if folder.is_dir():
        coreset = pc.Pseudocoreset.load(folder)
    else:
        result = bench.fit(name, size, seed)
        coreset = result.coreset
        coreset.save(folder)
        history = {
            key: [float(np.mean(values[:10])), float(np.mean(values[-10:]))] for key, values in result.history.items()
        }
    scores = bench.score(coreset, bench.data.test.head(NUM_TEST), size, seed)
    return {"method": name, "images_per_class": size, "seed": seed, **scores, "history_first_last_10": history}


def tune(bench: Bench, names: list[str], size: int, step_sizes: list[float], steps: int | None) -> None:
    """Accuracy and NLL on training images of a seed that is not measured with, for each step size."""
    for name in names:
        for step_size in step_sizes:
            changes: dict[str, Any] = {"step_size": step_size} | ({} if steps is None else {"steps": steps})
            coreset = bench.fit(name, size, 100, **changes).coreset
            scores = bench.score(coreset, bench.data.train.head(NUM_TEST), size, 100)
            print(name, size, changes, round(scores["accuracy"], 4), round(scores["nll"], 3), flush=True)


def cost(bench: Bench, name: str, size: int) -> dict[str, Any]:
    """Seconds a step, median over compiled blocks of two after the first, and peak memory beyond that before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [time.perf_counter()]

    def clock(step: int, coreset: pc.Pseudocoreset, info: dict[str, float]) -> bool:
        times.append(time.perf_counter())
        return len(times) > COST_BLOCKS + 1

    bench.fit(name, size, 0, steps=22, callbacks=[clock])  # 22 = 11 blocks of 2, stopped early
    blocks = [after - earlier for earlier, after in itertools.pairwise(times[1:])]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "seconds": statistics.median(blocks) / 2,
        "peak_mib": peak / 1024,
        "first_block_seconds": times[1] - times[0],
    }


def cost_table(args: argparse.Namespace) -> dict[str, Any]:
    """Every method in its own process, twice: the second finds its compiled program in a cache."""
    table: dict[str, Any] = {}
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(args.work / "compiled")}
    for size in args.images_per_class:
        for name in args.methods:
            if METHODS[name].learns:
                command = [sys.executable, __file__, "--work", str(args.work), "--cost-of", name, str(size)]
                command += ["--data-dir", args.data_dir] if args.data_dir else []
                for _ in range(2):
                    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                entry = json.loads(printed.stdout.splitlines()[-1])
                table[f"{name}-{size}"] = entry
                print(name, size, entry, flush=True)
    return table


def summarise(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    summary = []
    for size in SIZES:
        for name, method in METHODS.items():
            rows = [r for r in records if r["method"] == name and r["images_per_class"] == size]
            if not rows:
                continue
            entry: dict[str, Any] = {"method": name, "images_per_class": size, "seeds": len(rows)}
            for metric in ("accuracy", "nll", "brier", "ece"):
                values = np.array([r[metric] for r in rows])
                entry[metric] = [round(float(v), 4) for v in (values.mean(), values.std(ddof=min(1, len(rows) - 1)))]
            entry["published_accuracy"] = method.expected and method.expected[SIZES.index(size)]
            summary.append(entry)
    return summary


def markdown(summary: list[dict[str, Any]]) -> str:
    """The summary as a table, accuracies in percent."""
    lines = ["| | 1 image: accuracy | NLL | 10 images: accuracy | NLL |", "|---|---|---|---|---|"]
    for name in METHODS:
        cells = {entry["images_per_class"]: entry for entry in summary if entry["method"] == name}
        columns = []
        for size in SIZES:
            entry = cells.get(size)
            if entry is None:
                columns += ["", ""]
                continue
            mean, spread = (100 * value for value in entry["accuracy"])
            columns += [f"{mean:.1f} ± {spread:.1f} %", "{:.2f} ± {:.2f}".format(*entry["nll"])]
        lines.append(f"| {name} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, help="measure, and write here")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images-per-class", type=int, nargs="+", default=SIZES, choices=SIZES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--tune", type=float, nargs="+", metavar="STEP_SIZE", help="try step sizes on training images")
    parser.add_argument("--steps", type=int, help="with --tune")
    parser.add_argument("--cost", type=pathlib.Path, help="measure seconds and memory a step, and write here")
    parser.add_argument("--cost-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cost:
        known = json.loads(args.cost.read_text())["steps"] if args.cost.is_file() else {}
        table = known | cost_table(args)
        write(args.cost, {"what": cost.__doc__, "steps": table, "machine": describe_machine()})
        return
    bench = Bench.setup(args.data_dir, args.work)
    if args.cost_of:
        print(json.dumps(cost(bench, args.cost_of[0], int(args.cost_of[1]))))
        return
    if args.tune:
        for size in args.images_per_class:
            tune(bench, args.methods, size, args.tune, args.steps)
        return
    records = []
    for seed in args.seeds:
        for size in args.images_per_class:
            for name in args.methods:
                file = args.work / f"objective-{name}-{size}-{seed}.json"
                if not file.is_file():
                    file.write_text(json.dumps(run_cell(bench, name, size, seed, args.work)))
                records.append(json.loads(file.read_text()))
                print(seed, size, name, records[-1]["accuracy"], records[-1]["nll"], flush=True)
    content = {
        "what": "mean, standard deviation over seeds; uniform prediction has NLL 2.3026",
        "summary": summarise(records),
        "methods": {
            name: {"settings": describe(m.settings), "by_images_per_class": describe(m.by_size)}
            for name, m in METHODS.items()
        },
        "evaluation": EVALUATION,
        "weight_of_a_point": WEIGHT,
        "num_test": NUM_TEST,
        "experts": EXPERTS,
        "network": {"depth": 3, "width": WIDTH, "norm": "instance"},
        "records": records,
        "machine": describe_machine(),
    }
    if args.out:
        write(args.out, content)
    print(markdown(content["summary"]))


def describe(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {str(key): describe(value) for key, value in settings.items()}
    return settings.describe() if hasattr(settings, "describe") else settings


def write(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
