"""Tables and regressions by defaults: every method that applies, beside random points of the same size.

    python benchmarks/tables.py --work DIR --out benchmarks/results/tables.json [--only poisson,bpc_rkl] [--rows 20000]

Columns have their raw scales, 0.1 to 100, and everything is left to defaults; ``curvature`` finds its own number of
points. For each problem and method: the largest and the median error of a posterior mean and the range of standard
deviations, in units of the posterior standard deviations of all data, by NUTS on the coreset against NUTS on all data
(networks: of the function at 200 training inputs and of the log of the noise); the divergence at the mode in nats
(Laplace); seconds. ``beside_random`` says of each method whether it is nearer than all of 15 random subsets, among
them, or farther than all, by nats, or where most of these are not known by the mismatch of score and curvature at the
mode; of networks, whose nats are not known, beside five random subsets by the root mean square error of the mean
function. Chains
on the 200,000 rows of the hierarchical problem take hours on a CPU: ``--laplace-only`` names problems without, and
``chains`` of the results says which had some. ``--work`` keeps what is done; ``--out`` is written after every cell.
"""

import argparse
import dataclasses
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
from pseudocoreset.proxies.divergence import divergence_at, mode_of_data

SCALES = np.array([0.1, 1.0, 10.0, 30.0, 100.0])
SIZE, GROUPS, NUM_RANDOM = 50, 40, 15
RANDOM = ("random", "random_2", "random_3", "random_4", "random_5")


def as_many_as_it_takes(model, data, *, size, **how):
    """Curvature matching, which finds its own number of points."""
    return pc.fit_curvature(model, data, **how)


METHODS = {
    "auto": pc.fit,
    "curvature": as_many_as_it_takes,
    **dict.fromkeys(RANDOM, pc.fit_random),
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


def start_of(data, model):
    """Where chains start: at the mode of all data. On raw scales likelihoods overflow at a start of order one."""
    if model.is_network:
        return None
    bound = model.bind(data.train.x, data.train.y)
    return bound.unflatten(np.asarray(mode_of_data(bound, data).position, np.float32))


def random_points(data, model):
    """The nats of NUM_RANDOM subsets, in order; where most are not known also their mismatch of score and curvature."""
    bound = model.bind(data.train.x, data.train.y)
    mode = mode_of_data(bound, data)
    found = [
        divergence_at(
            bound, mode, pc.Pseudocoreset.from_data(data, size=SIZE, key=jax.random.key(1000 + i), mass="data")
        )
        for i in range(NUM_RANDOM)
    ]
    nats = sorted(rounded(one.nats) for one in found if one.nats is not None)
    if 2 * len(nats) > NUM_RANDOM:
        return {"nats": nats}
    return {"nats": nats, "mismatch": sorted(rounded(one.mismatch) for one in found)}


def rounded(value):
    return None if value is None else float(f"{value:.3g}")


def moments(data, model, source):
    """Mean and standard deviation of every scalar of the posterior; of networks, of f at 200 inputs and the noise."""
    warmup, samples = (200, 100) if model.is_network else (400, 400)
    posterior = sample(
        model, source, kernel="nuts", num_chains=2, num_warmup=warmup, num_samples=samples, key=jax.random.key(7),
        init_params=start_of(data, model), keep="weights", progress=False, predict_on=None,
    )  # fmt: skip
    if not model.is_network:
        draws = np.concatenate(
            [a.reshape(a.shape[0] * a.shape[1], -1) for _, a in sorted(posterior.draws.items()) if a.dtype.kind == "f"],
            axis=1,
        )
        return draws.mean(axis=0), draws.std(axis=0)
    x = np.asarray(data.train.x[:200])
    draws = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), posterior.unconstrained)
    values = np.asarray(jax.lax.map(lambda p: model.apply(p, x)[:, 0], draws))
    values = np.concatenate([values, np.log(posterior.draws["noise"]).reshape(-1, 1)], axis=1)
    return values.mean(axis=0), values.std(axis=0)


def measure(problem, name, rows, reference):
    """The report of one method on one problem; ``reference`` None for no chains."""
    data, model = PROBLEMS[problem][0](rows)
    seed = 11 + (RANDOM.index(name) if name in RANDOM else 0)
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = METHODS[name](model, data, size=SIZE, key=jax.random.key(seed), progress=False, verdict=False)
    seconds = time.perf_counter() - began
    found = result.coreset.metadata.get("at_mode")
    if found is None and not model.is_network:
        found = dataclasses.asdict(divergence_at_mode(model, data, result.coreset))
    report = {
        "points": int(result.coreset.size),
        "mass": round(result.coreset.mass),
        "seconds": round(seconds, 1),
        "outcome": result.outcome.name,
        "nats": rounded((found or {}).get("nats")),
        "mismatch": rounded((found or {}).get("mismatch")),
        "kept": (found or {}).get("kept", "fitted"),
        "said": repr(result).splitlines()[1:],
        "warnings": sorted({str(w.message)[:120] for w in caught}),
    }
    if reference is None:
        return report
    mean, deviation = reference
    of_coreset = moments(data, model, result.coreset)
    errors, ratios = np.abs(of_coreset[0] - mean) / deviation, of_coreset[1] / deviation
    report |= {
        "sd_off": round(float(errors.max()), 2),
        "median_sd_off": round(float(np.median(errors)), 2),
        "sd_ratio": [round(float(r), 2) for r in (ratios.min(), ratios.max())],
    }
    if model.is_network:
        report |= {
            "rms_of_f": round(float(np.sqrt(np.mean((of_coreset[0] - mean)[:-1] ** 2))), 3),
            "noise": round(float(np.exp(of_coreset[0][-1])), 3),
            "noise_of_all_data": round(float(np.exp(mean[-1])), 3),
        }
    return report


def beside_random(reports, name, random):
    """Whether a method is nearer to the posterior of all data than all random points, among them, or farther."""
    measured = "rms_of_f" if random is None else "mismatch" if "mismatch" in random else "nats"
    values = (
        [reports[other].get(measured) for other in RANDOM if other in reports] if random is None else random[measured]
    )
    value = reports[name].get(measured)
    if value is None:
        return "not known"
    return "nearer" if value <= min(values) else "among them" if value <= max(values) else "farther"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--laplace-only", default="hierarchical", help="problems without chains, with commas between")
    parser.add_argument("--done", action="store_true", help="only what --work has")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    wanted = set(filter(None, args.only.split(",")))
    results: dict[str, dict] = {}
    for problem, (make, full) in PROBLEMS.items():
        if wanted & set(PROBLEMS) and problem not in wanted:
            continue
        rows = min(full, args.rows or full)
        chains = problem not in args.laplace_only.split(",")
        reference = random = None
        if problem != "network":
            path = args.work / f"{problem}-{rows}-random-points.json"
            if args.done and not path.exists():
                continue
            if not path.exists():
                path.write_text(json.dumps(random_points(*make(rows))))
            random = json.loads(path.read_text())
        reports: dict[str, dict] = {}
        for name in METHODS:
            if (wanted & set(METHODS) and name not in wanted) or (name in RANDOM[1:] and problem != "network"):
                continue
            kept = args.work / f"{problem}-{rows}-{name}{'' if chains else '-laplace'}.json"
            if args.done and not kept.exists():
                continue
            if not kept.exists():
                if reference is None and chains:
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
            reports[name] = json.loads(kept.read_text())
            print(problem, name, reports[name], flush=True)
            for one in reports:
                if one not in RANDOM and "points" in reports[one]:
                    reports[one]["beside_random"] = beside_random(reports, one, random)
            results[problem] = {"rows": rows, "chains": chains, "random_points": random, "methods": reports}
            if args.out:
                found = {"machine": describe_machine(), "size": SIZE, "problems": results}
                args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
