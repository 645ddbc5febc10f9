"""Tables and regressions by defaults: every method that applies, beside random points of the same size.

    python benchmarks/tables.py --work DIR --out benchmarks/results/tables.json [--only poisson,bpc_rkl] [--rows 20000]

Columns have their raw scales, 0.1 to 100, and everything is left to defaults. For each problem and method: the largest
error of a posterior mean and the range of standard deviations, in units of the posterior standard deviations of all
data, by NUTS on the coreset against NUTS on all data (networks: of the mean function at held-out inputs and its
standard deviation, by SGHMC); the divergence at the mode in nats (Laplace); seconds. ``--work`` keeps what is done.
"""

import argparse
import json
import pathlib
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from machine import describe_machine

import pseudocoreset as pc
from pseudocoreset import Dataset
from pseudocoreset.inference import sample
from pseudocoreset.models import MLP, Model, bnn, logistic_regression, poisson_regression
from pseudocoreset.proxies import divergence_at_mode

SCALES = np.array([0.1, 1.0, 10.0, 30.0, 100.0])
SIZE, GROUPS = 50, 40
METHODS = {
    "random": pc.fit_random,
    "herding": pc.fit_herding,
    "k_centres": pc.fit_k_centres,
    "giga": pc.fit_giga,
    "sparse_vi": pc.fit_sparse_vi,
    "bpc_rkl": pc.fit_bpc_rkl,
    "bpc_fkl": pc.fit_bpc_fkl,
    "bpc_w": pc.fit_bpc_w,
    "fbpc": pc.fit_fbpc,
    "gradient_matching": pc.fit_gradient_matching,
    "distribution_matching": pc.fit_distribution_matching,
    "trajectory_matching": pc.fit_trajectory_matching,
    "bacon": pc.fit_bacon,
}


def logistic(rows: int):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(rows, 5))
    y = (rng.uniform(size=rows) < 1 / (1 + np.exp(-z @ [1.0, -1.0, 0.5, 0.0, 0.3]))).astype(int)
    data = Dataset.from_arrays((z * SCALES).astype(np.float32), y, name="logistic")
    return data, logistic_regression(data, prior_scale=10.0)


def poisson(rows: int):
    rng = np.random.default_rng(1)
    z = rng.normal(size=(rows, 5))
    y = rng.poisson(np.exp(0.5 + z @ [0.5, -0.5, 0.3, 0.0, 0.2])).astype(np.float32)
    data = Dataset.from_arrays((z * SCALES).astype(np.float32), y, name="poisson")
    return data, poisson_regression(data, prior_scale=10.0)


def hierarchical(rows: int):
    """Eight columns, and a ninth that holds the group of each row, an index."""
    rng = np.random.default_rng(2)
    scales = np.array([0.1, 1.0, 10.0, 30.0, 100.0, 0.5, 5.0, 2.0])
    z, group = rng.normal(size=(rows, 8)), rng.integers(0, GROUPS, rows)
    effects = 0.7 * rng.normal(size=GROUPS)
    logits = z @ rng.normal(size=8) * 0.5 + effects[group] - 0.5
    y = (rng.uniform(size=rows) < 1 / (1 + np.exp(-logits))).astype(int)
    data = Dataset.from_arrays(np.c_[z * scales, group].astype(np.float32), y, name="hierarchical")

    def program(x, y=None):
        slopes = numpyro.sample("slopes", dist.Normal(0.0, 10.0).expand([8]).to_event(1))
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 5.0))
        spread = numpyro.sample("spread", dist.HalfNormal(1.0))
        unit = numpyro.sample("unit", dist.Normal(0.0, 1.0).expand([GROUPS]).to_event(1))
        f = x[:, :8] @ slopes + intercept + spread * unit[x[:, 8].astype(jnp.int32)]
        f = numpyro.deterministic("f", f)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Bernoulli(logits=f), obs=y)

    return data, Model.from_numpyro(program, name="hierarchical").bind(data.train.struct, data.train.y)


def heteroscedastic(rows: int):
    rng = np.random.default_rng(3)
    z = rng.normal(size=(rows, 2))
    y = 2.0 + z @ [1.5, -1.0] + np.exp(-0.5 + 0.6 * z[:, 0]) * rng.normal(size=rows)
    data = Dataset.from_arrays((z * [30.0, 0.1]).astype(np.float32), y.astype(np.float32), name="heteroscedastic")

    def program(x, y=None):
        prior = dist.Normal(0.0, 20.0).expand([3]).to_event(1)
        mean, noise = numpyro.sample("mean", prior), numpyro.sample("log_noise", prior)
        design = jnp.c_[jnp.ones_like(x[:, :1]), x]
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(design @ mean, jnp.exp(design @ noise)), obs=y)

    return data, Model.from_numpyro(program, name="heteroscedastic").bind(data.train.struct, data.train.y)


def network(rows: int):
    rng = np.random.default_rng(4)
    z = rng.normal(size=(rows, 4))
    y = np.sin(2 * z[:, 0]) + z[:, 1] * z[:, 2] + 0.3 * rng.normal(size=rows)
    data = Dataset.from_arrays((z * [1.0, 10.0, 0.1, 50.0]).astype(np.float32), y.astype(np.float32), name="network")
    return data, bnn(MLP(widths=(32,)), data, likelihood="gaussian")


PROBLEMS = {
    "logistic": (logistic, 20_000),
    "poisson": (poisson, 20_000),
    "hierarchical": (hierarchical, 200_000),
    "heteroscedastic": (heteroscedastic, 5_000),
    "network": (network, 5_000),
}


def moments(data, model, source):
    """Mean and standard deviation of every scalar of the posterior; of networks, of f at 200 inputs and the noise."""
    if not model.is_network:
        posterior = sample(
            model, source, kernel="nuts", num_chains=2, num_warmup=400, num_samples=400, key=jax.random.key(7),
            keep="weights", progress=False, predict_on=None,
        )  # fmt: skip
        draws = np.concatenate(
            [a.reshape(a.shape[0] * a.shape[1], -1) for _, a in sorted(posterior.draws.items()) if a.dtype.kind == "f"],
            axis=1,
        )
        return draws.mean(axis=0), draws.std(axis=0)
    posterior = sample(
        model, source, kernel="sghmc", num_chains=4, num_warmup=3000, num_samples=50, thinning=40,
        key=jax.random.key(7), keep="weights", progress=False,
    )  # fmt: skip
    x = np.asarray(data.train.x[:200])
    draws = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), posterior.unconstrained)
    values = np.asarray(jax.lax.map(lambda p: model.apply(p, x)[:, 0], draws))
    noise = np.log(posterior.draws["noise"]).reshape(-1, 1) if "noise" in posterior.draws else values[:, :0]
    values = np.concatenate([values, noise], axis=1)
    return values.mean(axis=0), values.std(axis=0)


def measure(problem, name, rows, reference, **settings):
    data, model = PROBLEMS[problem][0](rows)
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = METHODS[name](model, data, size=SIZE, key=jax.random.key(11), progress=False, **settings)
    seconds = time.perf_counter() - began
    report = {
        "points": int(result.coreset.size),
        "seconds": round(seconds, 1),
        "outcome": result.outcome.name,
        "divergence": str(divergence_at_mode(model, data, result.coreset)),
        "kept": result.coreset.metadata.get("at_mode"),
        "warnings": sorted({str(w.message)[:120] for w in caught}),
    }
    if reference is not None:
        mean, deviation = reference
        of_coreset = moments(data, model, result.coreset)
        errors, ratios = np.abs(of_coreset[0] - mean) / deviation, of_coreset[1] / deviation
        report |= {
            "sd_off": round(float(errors.max()), 2),
            "median_sd_off": round(float(np.median(errors)), 2),
            "sd_ratio": [round(float(r), 2) for r in (ratios.min(), ratios.max())],
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--laplace-only", action="store_true", help="no chains: the divergence at the mode alone")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    wanted = set(filter(None, args.only.split(",")))
    results: dict[str, dict] = {}
    for problem, (make, full) in PROBLEMS.items():
        if wanted & set(PROBLEMS) and problem not in wanted:
            continue
        rows = min(full, args.rows or full)
        reference = None
        for name in METHODS:
            if wanted & set(METHODS) and name not in wanted:
                continue
            kept = args.work / f"{problem}-{rows}-{name}{'-laplace' if args.laplace_only else ''}.json"
            if not kept.exists():
                if reference is None and not args.laplace_only:
                    path = args.work / f"{problem}-{rows}.npy"
                    if not path.exists():
                        data, model = make(rows)
                        np.save(path, np.stack(moments(data, model, data)))
                    reference = np.load(path)
                try:
                    report = measure(problem, name, rows, reference)
                except (ValueError, TypeError) as error:
                    report = {"refused": str(error)[:200]}
                except FloatingPointError as error:
                    report = {"failed": str(error)[:200]}
                kept.write_text(json.dumps(report))
            results.setdefault(problem, {"rows": rows})[name] = report = json.loads(kept.read_text())
            print(problem, name, report, flush=True)
    if args.out:
        args.out.write_text(json.dumps({"machine": describe_machine(), "size": SIZE, "problems": results}, indent=1))


if __name__ == "__main__":
    main()
