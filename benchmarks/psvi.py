"""The experiments of Manousakas et al. 2020: divergence of the coreset posterior against coreset size.

    python benchmarks/psvi.py --data-dir DIR --work DIR --out benchmarks/results/psvi.json

Gaussian mean (d = 200 and 500), linear regression with 101 parameters, and logistic regression of the parity of the
60,000 training digits of MNIST on 50 whitened principal components (51 parameters). For each size and trial: a uniform
subset, GIGA, SparseVI, and pseudocoresets under reverse KL with learned weights (and targets, for the regressions,
where the original learns the joint point). Reverse and forward KL between Gaussians in float64 NumPy: exact posteriors,
or dense Laplace fits for the logistic regression. ``--work`` keeps finished trials: a run that was stopped goes on.

For the linear regression there is also the least reverse KL that any m points can reach: they add a matrix of rank m to
the precision of the prior, so that 101 - m directions keep their prior variance.
"""

import argparse
import json
import pathlib
import time

import jax
import numpy as np
import optax
from machine import describe_machine

from pseudocoreset import Dataset, Pseudocoreset, fit_giga, fit_sparse_vi, load_dataset
from pseudocoreset.fitting import optimise
from pseudocoreset.models import gaussian_location, linear_regression, logistic_regression
from pseudocoreset.objectives import reverse_kl

METHODS = ("uniform", "giga", "sparse_vi", "pseudocoreset")
ATTAINABLE = "attainable"


def gaussian_problem(dimension: int):
    def make(trial: int, _: str | None):
        rng = np.random.default_rng(trial)
        x = rng.normal(1.0, 1.0, (1000, dimension)).astype(np.float32)
        data = Dataset.from_arrays(x, name=f"gaussian_{dimension}")

        def posterior(x, y, w):
            variance = 1 / (1 + w.sum())
            return variance * (w @ x), variance * np.ones(dimension)

        return data, gaussian_location(data), posterior, ("inputs", "weights")

    return make


def linear_problem(trial: int, _: str | None):
    rng = np.random.default_rng(100 + trial)
    x = np.c_[rng.normal(size=(2000, 100)), np.ones(2000)]
    y = x @ rng.normal(size=101) + 0.1 * rng.normal(size=2000)
    noise, mean = y.std(), y.mean()
    scale = np.sqrt(y.var() + mean**2)
    data = Dataset.from_arrays(x.astype(np.float32), y.astype(np.float32), name="linear_101")
    model = linear_regression(
        data, noise_scale=float(noise), prior_mean=float(mean), prior_scale=float(scale), intercept=False
    )

    def posterior(x, y, w):
        covariance = np.linalg.inv(np.eye(101) / scale**2 + (x.T * w) @ x / noise**2)
        return covariance @ ((x.T * w) @ y / noise**2 + mean / scale**2), covariance

    return data, model, posterior, ("inputs", "targets", "weights")


def logistic_problem(trial: int, data_dir: str | None):
    digits = load_dataset("mnist", data_dir=data_dir).train
    flat = digits.raw.reshape(len(digits), -1).astype(np.float64) / 255
    flat -= flat.mean(0)
    values, vectors = np.linalg.eigh(flat.T @ flat / len(flat))
    features = flat @ (vectors[:, -50:] / np.sqrt(values[-50:]))
    data = Dataset.from_arrays(features.astype(np.float32), digits.y % 2, name="mnist_parity")
    model = logistic_regression(data)

    def posterior(x, y, w):
        design = np.c_[x, np.ones(len(x))]
        target = y[:, 1] if y.ndim == 2 else y
        t = np.zeros(design.shape[1])
        potential = np.inf
        step = 1.0
        for _ in range(200):
            p = 1 / (1 + np.exp(-design @ t))
            gradient = t + design.T @ (w * (p - target))
            hessian = np.eye(len(t)) + (design.T * (w * p * (1 - p))) @ design
            direction = np.linalg.solve(hessian, gradient)
            step = 1.0
            f = design @ t
            potential = 0.5 * t @ t + np.sum(w * (np.logaddexp(0, f) - target * f))
            while step > 1e-8:
                trial_t = t - step * direction
                f = design @ trial_t
                if 0.5 * trial_t @ trial_t + np.sum(w * (np.logaddexp(0, f) - target * f)) <= potential:
                    break
                step /= 2
            t = t - step * direction
            if gradient @ direction < 1e-10:
                break
        p = 1 / (1 + np.exp(-design @ t))
        return t, np.linalg.inv(np.eye(len(t)) + (design.T * (w * p * (1 - p))) @ design)

    return data, model, posterior, ("inputs", "targets", "weights")


PROBLEMS = {
    # name: (problem, sizes, steps, step size, estimator)
    "gaussian_200": (gaussian_problem(200), (1, 5, 20, 50, 100, 200), 500, 0.1, "closed_form"),
    "gaussian_500": (gaussian_problem(500), (1, 5, 20, 50, 100, 200), 500, 0.1, "closed_form"),
    "linear_101": (linear_problem, (5, 20, 50, 100, 200), 1000, 0.1, "closed_form"),
    "mnist_parity": (logistic_problem, (5, 20, 50, 100), 500, 0.1, "monte_carlo"),
}
# The greedy methods take seconds a point: fewer trials, and for SparseVI fewer points and updates of the weights.
GREEDY_TRIALS = 3
SPARSE_VI_UP_TO = 20
SPARSE_VI_STEPS = 100


def divergences(p, q):
    """(KL(p || q), KL(q || p)) of Gaussians with dense or diagonal covariances."""

    def kl(a, b):
        (m0, s0), (m1, s1) = a, b
        if s0.ndim == 1:
            return 0.5 * np.sum(s0 / s1 + (m1 - m0) ** 2 / s1 - 1 - np.log(s0 / s1))
        inverse = np.linalg.inv(s1)
        determinants = np.linalg.slogdet(s1)[1] - np.linalg.slogdet(s0)[1]
        return 0.5 * (np.sum(inverse * s0) + (m1 - m0) @ inverse @ (m1 - m0) - len(m0) + determinants)

    return kl(p, q), kl(q, p)


def attainable(problem: str, trial: int, size: int) -> dict:
    """The least reverse KL of ``size`` points; the forward KL of the same coreset, which is not the least of that."""
    data, _, posterior, _ = PROBLEMS[problem][0](trial, None)
    _, covariance = posterior(*_doubles(data.train.x, data.train.y, np.ones(len(data.train))))
    _, prior = posterior(*_doubles(data.train.x, data.train.y, np.zeros(len(data.train))))
    # The prior is isotropic, so the best points match the directions that the data say most about, exactly.
    ratios = np.sort(prior[0, 0] / np.linalg.eigvalsh(covariance))[: max(len(prior) - size, 0)]
    return {
        "reverse_kl": float(0.5 * np.sum(ratios - 1 - np.log(ratios))),
        "forward_kl": float(0.5 * np.sum(1 / ratios - 1 + np.log(ratios))),
    }


class Bench:
    """Problems as they are needed, one at a time, and their exact full-data posteriors."""

    def __init__(self, data_dir: str | None) -> None:
        self.data_dir = data_dir
        self.current: tuple = ()

    def load(self, problem: str, trial: int) -> tuple:
        if self.current[:2] != (problem, trial):
            data, model, posterior, free = PROBLEMS[problem][0](trial, self.data_dir)
            full = posterior(*_doubles(data.train.x, data.train.y, np.ones(len(data.train))))
            self.current = (problem, trial, data, model, posterior, free, full)
        return self.current[2:]

    def score(self, problem: str, trial: int, coreset: Pseudocoreset, seconds: float) -> dict:
        _, _, posterior, _, full = self.load(problem, trial)
        reverse, forward = divergences(posterior(*_doubles(coreset.inputs, coreset.targets, coreset.weights)), full)
        return {"reverse_kl": reverse, "forward_kl": forward, "mass": coreset.mass, "seconds": round(seconds, 2)}

    def run(self, method: str, problem: str, trial: int, sizes: tuple[int, ...]) -> dict[int, dict]:
        """Scores by size. SparseVI gives all sizes in one run."""
        data, model, _, free, _ = self.load(problem, trial)
        found = {}
        if method == "sparse_vi":
            began = time.perf_counter()

            def note(count: int, coreset: Pseudocoreset, info: dict) -> None:
                if count in sizes:
                    found[count] = self.score(problem, trial, coreset, time.perf_counter() - began)

            fit_sparse_vi(
                model, data, size=max(sizes), key=jax.random.key(trial), num_weight_steps=SPARSE_VI_STEPS,
                callbacks=[note], progress=False,
            )  # fmt: skip
            return found
        for size in sizes:
            start_key, fit_key = jax.random.split(jax.random.fold_in(jax.random.key(trial), size))
            coreset = Pseudocoreset.from_data(data, size=size, key=start_key, mass="data")
            began = time.perf_counter()
            if method == "giga":
                coreset = fit_giga(model, data, size=size, key=fit_key, progress=False).coreset
            elif method == "pseudocoreset":
                _, _, steps, step_size, estimator = PROBLEMS[problem]
                objective = reverse_kl(model, estimator=estimator, num_draws=100, batch_size=200, free=free)
                optimizer = optax.adam(optax.cosine_decay_schedule(step_size, steps), b2=0.9)
                coreset = optimise(
                    objective, data, coreset=coreset, key=fit_key, steps=steps, optimizer=optimizer, block_size=100,
                    progress=False,
                ).coreset  # fmt: skip
            found[size] = self.score(problem, trial, coreset, time.perf_counter() - began)
        return found


def _doubles(*arrays) -> tuple:
    return tuple(np.asarray(a, np.float64) for a in arrays)


def plot(summary: list[dict], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["problem"] for row in summary))
    figure, axes = plt.subplots(2, len(names), figsize=(4 * len(names), 6), squeeze=False, layout="constrained")
    lines: dict = {}
    for column, name in enumerate(names):
        for row, kind in enumerate(("reverse_kl", "forward_kl")):
            axis = axes[row, column]
            for method in (*METHODS, ATTAINABLE):
                cells = [r for r in summary if r["problem"] == name and method in r]
                if not cells:
                    continue
                low, middle, high = np.array([r[method][kind] for r in cells]).T
                sizes = [r["size"] for r in cells]
                middle = np.where(middle > 0, middle, np.nan)  # a logarithmic axis has no zero
                (line,) = axis.plot(sizes, middle, marker="o", markersize=3, label=method)
                axis.fill_between(sizes, low, high, color=line.get_color(), alpha=0.2)
                lines.setdefault(method, line)
            axis.set(xscale="log", yscale="log", xlabel="coreset size", ylabel=kind.replace("_", " "), title=name)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines))
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="tensorflow-datasets folder with MNIST")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--trials", type=int, default=10)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.data_dir)
    summary = []
    for problem in args.problems:
        sizes = PROBLEMS[problem][1]
        records = {size: {} for size in sizes}
        for method in args.methods:
            greedy = method in ("giga", "sparse_vi")
            wanted = tuple(size for size in sizes if method != "sparse_vi" or size <= SPARSE_VI_UP_TO)
            for trial in range(min(args.trials, GREEDY_TRIALS) if greedy else args.trials):
                file = args.work / f"{problem}-{method}-{trial}.json"
                if not file.is_file():
                    file.write_text(json.dumps(bench.run(method, problem, trial, wanted)))
                    print(problem, method, trial, flush=True)
                for size, record in json.loads(file.read_text()).items():
                    records[int(size)].setdefault(method, []).append(record)
        if problem == "linear_101":
            for size in sizes:
                records[size][ATTAINABLE] = [attainable(problem, trial, size) for trial in range(args.trials)]
        for size in sizes:
            entry: dict = {"problem": problem, "size": size}
            for method, rows in records[size].items():
                entry[method] = {
                    kind: [float(f"{v:.4g}") for v in np.quantile([r[kind] for r in rows], (0.25, 0.5, 0.75))]
                    for kind in ("reverse_kl", "forward_kl")
                } | {"trials": len(rows)}
            summary.append(entry)
    content = {
        "what": "quartiles over trials in nats: reverse KL(coreset || full), forward KL(full || coreset)",
        "summary": summary,
        "settings": {name: dict(zip(("steps", "step_size", "estimator"), PROBLEMS[name][2:], strict=True))
                     for name in args.problems},
        "sparse_vi_weight_steps": SPARSE_VI_STEPS,
        "machine": describe_machine(),
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    plot(summary, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
