"""Small runs on one device or on four, of one process or of two, as a script: what ``test_devices.py`` compares."""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np
import optax

from pseudocoreset import Dataset, fit, fit_distribution_matching, train_experts
from pseudocoreset.checkpoint import Checkpointer
from pseudocoreset.inference import sample
from pseudocoreset.models import MLP, bnn, logistic_regression
from pseudocoreset.objectives import Chains, InnerTraining, forward_kl, function_kl, reverse_kl

RNG = np.random.default_rng(0)
X = RNG.normal(size=(45, 2)).astype(np.float32)  # four devices divide neither these nor the stacks below
Y = (X @ RNG.normal(size=(2, 3))).argmax(1).astype(np.int32)
DATA = Dataset.from_arrays(X, Y, test=(X[:3], Y[:3]))
NETWORK = bnn(MLP((4,)), DATA)
REGRESSION = logistic_regression(DATA)


class Stopped(BaseException):
    """Raised where a process could be killed."""


def line(many: bool) -> jax.sharding.Mesh | None:
    return jax.make_mesh((4,), ("devices",)) if many else None


def plane(many: bool) -> jax.sharding.Mesh | None:
    return jax.make_mesh((2, 2), ("chains", "data")) if many else None


def experts(many: bool, directory: Path | None = None):
    return train_experts(
        NETWORK, DATA, num_experts=5, num_epochs=3, learning_rate=0.1, momentum=0.9, batch_size=15, experts_per_group=3,
        key=jax.random.key(0), directory=directory, progress=False, mesh=line(many),
    )  # fmt: skip


def snapshots(many: bool, directory: Path | None = None) -> dict[str, np.ndarray]:
    return experts(many, directory).stack([(expert, epoch) for expert in range(5) for epoch in range(4)])


def draws(model, mesh, directory: Path | None = None, **settings) -> dict[str, np.ndarray]:
    posterior = sample(
        model, DATA, key=jax.random.key(1), keep="weights", directory=directory, progress=False, mesh=mesh, **settings
    )
    stats = {name: posterior.sample_stats[name] for name in ("lp", "lp_estimate") if name in posterior.sample_stats}
    return {**posterior.unconstrained, **stats, "log_likelihood": posterior.log_likelihood}


def sghmc(many: bool, directory: Path | None = None) -> dict[str, np.ndarray]:
    length = {"num_chains": 3, "num_warmup": 4, "num_samples": 6}
    return draws(NETWORK, line(many), directory, kernel="sghmc", batch_size=8, **length)


def network_hmc_with_split_data(many: bool) -> dict[str, np.ndarray]:
    length = {"num_chains": 3, "num_warmup": 0, "num_samples": 3, "trajectory_length": 0.3}
    return draws(NETWORK, plane(many), kernel="network_hmc", step_size=0.05, chunk_size=16, **length)


def hmc_with_split_data(many: bool) -> dict[str, np.ndarray]:
    length = {"num_chains": 2, "num_warmup": 0, "num_samples": 3}
    return draws(REGRESSION, plane(many), kernel="hmc", step_size=0.1, **length)


def points(result) -> dict[str, np.ndarray]:
    return {"inputs": result.coreset.inputs, "weights": result.coreset.weights, **result.history}


def fitted(objective, many: bool, seed: int, **settings) -> dict[str, np.ndarray]:
    result = fit(objective, DATA, key=jax.random.key(seed), mesh=line(many), progress=False, **settings)
    return {"inputs": result.coreset.inputs, "weights": result.coreset.weights, **result.history}


def forward_kl_of_two_models(many: bool, directory: Path | None = None) -> dict[str, np.ndarray]:
    """Draws over the devices."""
    objectives = [forward_kl(NETWORK, num_draws=5, inner=InnerTraining(num_steps=2)) for _ in range(2)]
    settings = {"images_per_class": 2, "steps": 4, "block_size": 1, "checkpoint_dir": directory}
    return fitted(objectives, many, 2, experts=[experts(False)] * 2, optimizer=optax.sgd(1.0), **settings)


def reverse_kl_of_chains(many: bool) -> dict[str, np.ndarray]:
    """Chains and draws over the devices."""
    objective = reverse_kl(REGRESSION, proxy=Chains(6, num_warmup=20, max_num_doublings=2), free=("weights",))
    return fitted(objective, many, 3, size=4, weights="data", steps=1, optimizer=optax.sgd(1e-3))


def linearised_function_kl(many: bool) -> dict[str, np.ndarray]:
    """Draws of function values over the devices."""
    objective = function_kl(NETWORK, proxy="linearized", num_draws=5, inner_max_steps=3)
    return fitted(objective, many, 4, experts=experts(False), images_per_class=1, steps=2, optimizer=optax.sgd(0.1))


def distribution_matching(many: bool) -> dict[str, np.ndarray]:
    """Classes over the devices."""
    settings = {"images_per_class": 2, "steps": 3, "batch_size": 8, "step_size": 0.1, "progress": False}
    result = fit_distribution_matching(NETWORK, DATA, key=jax.random.key(5), mesh=line(many), **settings)
    return {"inputs": result.coreset.inputs, **result.history}


# Those that keep files can be stopped and gone on with.
WITH_FILES = {run.__name__: run for run in (snapshots, sghmc, forward_kl_of_two_models)}
RUNS = WITH_FILES | {
    run.__name__: run
    for run in (
        network_hmc_with_split_data,
        hmc_with_split_data,
        reverse_kl_of_chains,
        linearised_function_kl,
        distribution_matching,
    )
}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--process", type=int, help="number of this process of two")
    parser.add_argument("--port", type=int)
    args = parser.parse_args()
    written = []

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).startswith(str(args.folder)):
            written.extend([arguments[0]] if set(str(arguments[1])) & set("wax+") else [])
        elif event in ("os.mkdir", "os.rename", "os.remove") and str(arguments[0]).startswith(str(args.folder)):
            written.append(arguments[0])

    if args.process is None:
        np.savez(args.folder / "runs.npz", **flat({name: run(True) for name, run in RUNS.items()}))
        np.savez(args.folder / "gone-on.npz", **flat(go_on(True, args.folder / "begun-on-one")))
        begin(True, args.folder / "begun-on-many")
        return
    sys.addaudithook(watch)
    jax.distributed.initialize(f"localhost:{args.port}", num_processes=2, process_id=args.process)
    results = flat({name: RUNS[name](True) for name in RUNS if name not in WITH_FILES} | go_on(True, args.folder))
    results["written"] = np.asarray([str(path) for path in written])
    np.savez(args.folder.parent / f"process-{args.process}.npz", **results)


if __name__ == "__main__":
    main()
