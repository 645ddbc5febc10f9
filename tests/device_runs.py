"""Small runs on one device or on four, of one process or of two, as a script: what ``test_devices.py`` compares."""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax

from pseudocoreset import Dataset, Pseudocoreset, fit_distribution_matching, train_experts
from pseudocoreset.diagnostics import calibrate
from pseudocoreset.evaluation import evaluate
from pseudocoreset.files.checkpoints import Checkpointer
from pseudocoreset.fitting import optimise
from pseudocoreset.inference import sample
from pseudocoreset.models import MLP, ConvNet, bnn, logistic_regression
from pseudocoreset.objectives import Chains, InnerTraining, forward_kl, function_kl, reverse_kl
from pseudocoreset.proxies import Trajectory

RNG = np.random.default_rng(0)
X = RNG.normal(size=(45, 2)).astype(np.float32)  # four devices divide neither these nor the stacks below
Y = (X @ RNG.normal(size=(2, 3))).argmax(1).astype(np.int32)
DATA = Dataset.from_arrays(X, Y, test=(X[:3], Y[:3]))
SGD = optax.sgd(1.0)


# Made when they are asked for: ``jax.distributed`` must be there before the first device is.
@functools.cache
def network():
    return bnn(MLP((4,)), DATA)


@functools.cache
def divergence_of_networks():
    return forward_kl(network(), num_draws=5, inner=InnerTraining(num_steps=2))


class Stopped(BaseException):
    """Raised where a process could be killed."""


def line(many: bool) -> jax.sharding.Mesh | None:
    return jax.make_mesh((4,), ("devices",)) if many else None


def plane(many: bool) -> jax.sharding.Mesh | None:
    return jax.make_mesh((2, 2), ("chains", "data")) if many else None


def experts(many: bool, directory: Path | None = None):
    return train_experts(
        network(), DATA, key=jax.random.key(0), num_experts=5, experts_per_group=3, num_epochs=3, batch_size=15,
        learning_rate=0.1, momentum=0.9, directory=directory, progress=False, mesh=line(many),
    )  # fmt: skip


@functools.cache
def given_experts():
    return experts(False)


def snapshots(many: bool, directory: Path | None = None) -> dict[str, np.ndarray]:
    return experts(many, directory).stack([(expert, epoch) for expert in range(5) for epoch in range(4)])


def experts_of_shared_batches(many: bool) -> dict[str, np.ndarray]:
    """Experts over one axis; of each minibatch, whose size it does not divide, over the other."""
    trained = train_experts(
        network(), DATA, key=jax.random.key(10), num_experts=3, num_epochs=2, batch_size=15, learning_rate=0.1,
        progress=False, mesh=plane(many),
    )  # fmt: skip
    return trained.stack([(expert, epoch) for expert in range(3) for epoch in range(3)])


def dependent_batches(many: bool) -> dict[str, np.ndarray]:
    """Experts and a chain with batch norm, whose data are not shared."""
    images = np.random.default_rng(1).normal(size=(12, 4, 4, 1)).astype(np.float32)
    data = Dataset.from_arrays(images, np.arange(12) % 2)
    model = bnn(ConvNet(depth=1, width=2, norm="batch"), data)
    trained = train_experts(
        model, data, key=jax.random.key(12), num_experts=3, num_epochs=1, batch_size=5, augment=None, progress=False,
        mesh=plane(many),
    )  # fmt: skip
    chain = sample(
        model, data, kernel="hmc", num_chains=1, num_warmup=0, num_samples=2, step_size=0.01, keep="weights",
        key=jax.random.key(13), progress=False, mesh=plane(many),
    )  # fmt: skip
    return trained.stack([(expert, 1) for expert in range(3)]) | {
        f"{k} of chain": v for k, v in chain.unconstrained.items()
    }


def draws(model, mesh, directory: Path | None = None, **settings) -> dict[str, np.ndarray]:
    posterior = sample(
        model, DATA, key=jax.random.key(1), keep="weights", directory=directory, progress=False, mesh=mesh, **settings
    )
    stats = {name: posterior.sample_stats[name] for name in ("lp", "lp_estimate") if name in posterior.sample_stats}
    return {**posterior.unconstrained, **stats, "log_likelihood": posterior.log_likelihood}


def sghmc(many: bool) -> dict[str, np.ndarray]:
    length = {"num_chains": 3, "num_warmup": 4, "num_samples": 6}
    return draws(network(), line(many), kernel="sghmc", batch_size=8, **length)


def network_hmc_with_split_data(many: bool) -> dict[str, np.ndarray]:
    length = {"num_chains": 3, "num_warmup": 0, "num_samples": 3, "trajectory_length": 0.3}
    return draws(network(), plane(many), kernel="network_hmc", step_size=0.05, chunk_size=16, **length)


def hmc_with_split_data(many: bool, directory: Path | None = None) -> dict[str, np.ndarray]:
    length = {"num_chains": 3, "num_warmup": 0, "num_samples": 4}
    return draws(logistic_regression(DATA), plane(many), directory, kernel="hmc", step_size=0.1, **length)


def points(result) -> dict[str, np.ndarray]:
    return {"inputs": result.coreset.inputs, "weights": result.coreset.weights, **result.history}


def fitted(objective, many: bool, seed: int, **settings) -> dict[str, np.ndarray]:
    result = optimise(objective, DATA, key=jax.random.key(seed), mesh=line(many), progress=False, **settings)
    return {"inputs": result.coreset.inputs, "weights": result.coreset.weights, **result.history}


def divergence(many: bool, directory: Path | None = None) -> dict[str, np.ndarray]:
    """Draws over the devices."""
    settings = {"images_per_class": 2, "steps": 4, "block_size": 1, "checkpoint_dir": directory}
    return fitted(divergence_of_networks(), many, 2, experts=given_experts(), optimizer=SGD, **settings)


def reverse_kl_of_chains(many: bool) -> dict[str, np.ndarray]:
    """Chains and draws over the devices."""
    objective = reverse_kl(
        logistic_regression(DATA), proxy=Chains(6, num_warmup=20, max_num_doublings=2), free=("weights",)
    )
    return fitted(objective, many, 3, size=4, weights="data", steps=1, optimizer=optax.sgd(1e-3))


def linearised_function_kl(many: bool) -> dict[str, np.ndarray]:
    """Draws of function values over the devices."""
    objective = function_kl(network(), proxy="linearized", num_draws=5, inner_max_steps=3)
    return fitted(objective, many, 4, experts=given_experts(), images_per_class=1, steps=2, optimizer=SGD)


def networks_of_function_kl(many: bool) -> dict[str, np.ndarray]:
    """Experts and networks trained on the coreset over the devices, inside of which nothing is shared once more."""
    objective = function_kl(network(), proxy="linearized", num_draws=3, num_networks=5, inner_max_steps=3)
    return fitted(objective, many, 9, experts=given_experts(), images_per_class=1, steps=3, optimizer=SGD)


def function_kl_of_shared_batches(many: bool) -> dict[str, np.ndarray]:
    """Every batch, and the function values of six points, over four devices; pairs over two."""
    found = {}
    four = jax.make_mesh((4,), ("data",)) if many else None
    short = Trajectory(num_steps=2, batch_size=7)
    kinds = {"one": (short, 1, four), "two": (short, 2, plane(many)), "linearized": ("linearized", 1, four)}
    for name, (proxy, count, mesh) in kinds.items():
        objective = function_kl(network(), proxy=proxy, num_draws=3, num_networks=count, inner_max_steps=3)
        settings = {"images_per_class": 2, "steps": 2, "optimizer": SGD, "progress": False}
        result = optimise(objective, DATA, key=jax.random.key(11), experts=given_experts(), mesh=mesh, **settings)
        found |= {f"{key} of {name}": value for key, value in points(result).items()}
    return found


def distribution_matching(many: bool) -> dict[str, np.ndarray]:
    """Classes over the devices."""
    settings = {"images_per_class": 2, "steps": 3, "batch_size": 8, "step_size": 0.1, "progress": False}
    result = fit_distribution_matching(network(), DATA, key=jax.random.key(5), mesh=line(many), **settings)
    return {"inputs": result.coreset.inputs, **result.history}


def figures(metrics) -> dict[str, np.ndarray]:
    return {name: np.asarray(one.values) for name, one in metrics.items()}


def evaluated(many: bool) -> dict[str, np.ndarray]:
    """Repeats over the devices, by a published protocol; chains, by our own."""
    coreset = Pseudocoreset.from_data(DATA, images_per_class=2, key=jax.random.key(6))
    common = {"key": jax.random.key(7), "split": "test", "mesh": line(many), "progress": False}
    published = evaluate(
        coreset, network(), DATA, protocol="fbpc2023", num_repeats=3, num_epochs=30, sample_every=10, **common
    )
    ours = evaluate(coreset, network(), DATA, num_chains=3, num_warmup=4, num_samples=3, **common)
    return {f"published {k}": v for k, v in figures(published.metrics).items()} | figures(ours.metrics)


def calibrated(many: bool) -> dict[str, np.ndarray]:
    """Simulations over the devices."""
    settings = {"kernel": "sghmc", "step_size": 0.02, "num_simulations": 10, "num_draws": 4, "num_warmup": 5}
    found = calibrate(logistic_regression(DATA), X[:6], thinning=20, key=jax.random.key(8), mesh=line(many), **settings)
    return {"ranks": found.ranks, "truths": found.truths, "means": found.means}


def by_name(*runs: Callable) -> dict[str, Callable]:
    return {run.__name__: run for run in runs}


WITH_FILES = by_name(snapshots, hmc_with_split_data, divergence)  # they can be stopped and gone on with
RUNS = WITH_FILES | by_name(
    experts_of_shared_batches, dependent_batches, sghmc, distribution_matching, networks_of_function_kl,
    function_kl_of_shared_batches, evaluated, calibrated,
)  # fmt: skip
SLOW_RUNS = by_name(network_hmc_with_split_data, reverse_kl_of_chains, linearised_function_kl)


def begin(many: bool, folder: Path) -> None:
    """Runs that stop at their third checkpoint."""
    save, calls = Checkpointer.save, []

    def stopping(*arguments) -> None:
        calls.append(save(*arguments))
        if len(calls) == 3:
            raise Stopped

    Checkpointer.save = stopping
    try:
        for name, run in WITH_FILES.items():
            calls.clear()
            try:
                run(many, folder / name)
            except Stopped:
                continue
            raise AssertionError(f"{name} ended before it was stopped")
    finally:
        Checkpointer.save = save


def go_on(many: bool, folder: Path) -> dict[str, dict[str, np.ndarray]]:
    return {name: run(many, folder / name) for name, run in WITH_FILES.items()}


def flat(results: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {f"{run}/{name}": np.asarray(array) for run, arrays in results.items() for name, array in arrays.items()}


def watch(folder: Path) -> list[str]:
    """What this process writes under a folder from now on."""
    written: list[str] = []

    def hook(event: str, arguments: tuple) -> None:
        writes = event in ("os.mkdir", "os.rename", "os.remove") or (
            event == "open" and bool(set(str(arguments[1])) & set("wax+"))
        )
        if writes and str(arguments[0]).startswith(str(folder)):
            written.append(str(arguments[0]))

    sys.addaudithook(hook)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--process", type=int, help="number of this process of two")
    parser.add_argument("--port", type=int)
    args = parser.parse_args()
    if args.process is not None:
        written = watch(args.folder / "shared")
        jax.distributed.initialize(f"localhost:{args.port}", num_processes=2, process_id=args.process)
        results = flat(go_on(True, args.folder / "shared"))
        np.savez(args.folder / f"process-{args.process}.npz", written=np.asarray(written), **results)
        return
    runs = SLOW_RUNS if args.slow else RUNS
    np.savez(args.folder / "runs.npz", **flat({name: run(True) for name, run in runs.items()}))
    if not args.slow:
        np.savez(args.folder / "gone-on.npz", **flat(go_on(True, args.folder / "begun-on-one")))
        begin(True, args.folder / "begun-on-many")


if __name__ == "__main__":
    main()
