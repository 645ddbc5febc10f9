"""Calls of the public functions with wrong things: each works, or is refused by the name of an argument.

    python tests/fuzz_arguments.py 10000 [seed]

Hypothesis chooses a function, one or two of its arguments, and what to give for them; the rest is right. A call ends
well where it returns, where it begins to compute (what is expensive is cut off there), or with a TypeError or
ValueError that names an argument of the function. Everything else is a bare error: an AttributeError from within, a
message about something that the caller did not write. The script prints these and counts them; ``test_arguments.py``
runs a few calls.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import inspect
import os
import pathlib
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import pseudocoreset
from pseudocoreset import (
    Dataset,
    Experts,
    Pseudocoreset,
    data,
    diagnostics,
    evaluation,
    fitting,
    inference,
    models,
    objectives,
)
from pseudocoreset.inference import Posterior

SECONDS = 60
KEY = jax.random.key(0)


class Reached(BaseException):
    """The checks are over and computing begins."""


def _reach(*_: Any, **__: Any) -> Any:
    raise Reached


@contextlib.contextmanager
def without_computing() -> Iterator[None]:
    """Long computations end where they begin."""
    import pseudocoreset.experts.training
    from pseudocoreset.evaluation import runs
    from pseudocoreset.fitting import loop
    from pseudocoreset.inference import sampling
    from pseudocoreset.subsets import by_features, sparse_vi
    from pseudocoreset.subsets.curvature import method

    places = [
        (loop, "block_memory"),
        (pseudocoreset.experts.training, "trajectory"),
        (sampling, "run_chains"),
        (runs, "progress_bar"),
        (by_features, "progress_bar"),
        (sparse_vi, "progress_bar"),
        (method, "full_posterior"),
    ]
    before = [(place, name, getattr(place, name)) for place, name in places]
    for place, name in places:
        setattr(place, name, _reach)
    try:
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


@functools.cache
def things() -> dict[str, Any]:
    """What calls are made of."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(40, 3)).astype(np.float32), np.arange(40) % 2
    table = Dataset.from_arrays(x, y, test=(x[:10], y[:10]), name="table")
    images = Dataset.from_arrays(
        generator.integers(0, 256, (40, 8, 8, 1), np.uint8), y, test=(np.zeros((10, 8, 8, 1), np.uint8), y[:10])
    )
    model = models.logistic_regression(num_classes=2).bind(table.train.struct, table.train.y)
    network = models.bnn(models.MLP((4,)), images)
    posterior = inference.sample(
        model,
        table,
        kernel="nuts",
        num_chains=2,
        num_warmup=10,
        num_samples=20,
        key=KEY,
        progress=False,
        keep="weights",
    )
    return {
        "table": table,
        "images": images,
        "model": model,
        "network": network,
        "posterior": posterior,
        "coreset": Pseudocoreset.from_data(table, size=4, key=KEY),
        "pictures": Pseudocoreset.from_data(images, images_per_class=1, key=KEY),
        "experts": Experts(1, 2, {"sites": {}}, (1,), memory={}),
        "comparison": diagnostics.compare_posteriors({"full": posterior, "b": posterior}, table.test),
        "probabilities": np.full((10, 2), 0.5, np.float32),
        "labels": y[:10],
        "predict": lambda x: np.full((len(x), 2), 0.5),
        "objective": objectives.distribution_matching(network),
    }


def calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Functions by name, and arguments with which they work."""
    t = things()
    fitted = {"model": t["network"], "data": t["images"], "images_per_class": 1, "key": KEY, "progress": False}
    subset = {"model": t["model"], "data": t["table"], "size": 4, "key": KEY}
    compared = {
        "posteriors": {"full": t["posterior"], "b": t["posterior"]},
        "split": t["table"].test,
    }
    pair = {"x": np.random.default_rng(0).normal(size=(20, 3)), "y": np.random.default_rng(1).normal(size=(20, 3))}
    arguments: dict[Any, dict[str, Any]] = {
        Dataset.from_arrays: {"x": np.zeros((6, 2)), "y": np.arange(6) % 2},
        Pseudocoreset: {
            "inputs": np.zeros((2, 3), np.float32), "targets": np.zeros(2, np.int32), "weights": np.ones(2, np.float32)
        },
        Pseudocoreset.from_data: {"data": t["table"], "size": 3, "key": KEY},
        Pseudocoreset.load: {"path": "nowhere"},
        t["coreset"].with_mass: {"mass": "data"},
        t["coreset"].save: {"path": "saved"},
        Experts.load: {"directory": "nowhere"},
        pseudocoreset.choose_mass: {
            "coreset": t["coreset"], "model": t["model"], "split": t["table"].test, "key": KEY, "masses": (1.0,),
            "kernel": "nuts",
        },
        pseudocoreset.estimate_memory: {
            "model": t["network"], "data": t["images"], "method": "distribution_matching", "images_per_class": 1
        },
        pseudocoreset.evaluate: {"coreset": t["pictures"], "model": t["network"], "data": t["images"], "key": KEY},
        pseudocoreset.fit: {
            "model": t["network"], "data": t["images"], "method": "distribution_matching", "images_per_class": 1,
            "key": KEY,
        },
        fitting.optimise: {
            "objective": t["objective"], "data": t["images"], "images_per_class": 1, "key": KEY, "steps": 1,
            "optimizer": __import__("optax").sgd(0.1),
        },
        **{
            getattr(pseudocoreset, f"fit_{name}"): fitted
            for name in (
                "bacon", "bpc_fkl", "bpc_rkl", "bpc_w", "distribution_matching", "fbpc", "gradient_matching",
                "trajectory_matching",
            )
        },
        **{
            getattr(pseudocoreset, f"fit_{name}"): subset
            for name in ("curvature", "giga", "herding", "k_centres", "random", "sparse_vi")
        },
        pseudocoreset.load_coreset: {"name": "digits-fbpc-1"},
        pseudocoreset.load_dataset: {"name": "digits"},
        pseudocoreset.train_experts: {
            "model": t["network"], "data": t["images"], "num_experts": 1, "num_epochs": 1, "key": KEY,
            "progress": False, "batch_size": 10,
        },
        models.bnn: {"network": models.MLP((4,)), "data": t["images"]},
        models.gaussian_location: {},
        models.linear_regression: {},
        models.logistic_regression: {"num_classes": 2},
        models.poisson_regression: {},
        models.Model.from_numpyro: {"program": t["model"].program},
        inference.sample: {"model": t["model"], "data": t["table"], "key": KEY, "kernel": "nuts", "progress": False},
        Posterior.load: {"path": "nowhere"},
        t["posterior"].evaluate: {"split": t["table"].test},
        t["posterior"].save: {"path": "saved"},
        t["posterior"].with_model: {"model": t["model"]},
        inference.schedules.Cyclical: {},
        inference.schedules.Polynomial: {},
        diagnostics.calibrate: {
            "model": t["model"], "x": t["table"].train.x, "key": KEY, "num_simulations": 10, "num_draws": 3,
            "kernel": "nuts",
        },
        diagnostics.compare_posteriors: compared,
        diagnostics.compare_moments: {"reference": t["posterior"], "other": t["posterior"]},
        diagnostics.detect_foreign: {"familiar": t["probabilities"], "foreign": t["probabilities"]},
        diagnostics.energy_distance: pair,
        diagnostics.maximum_mean_discrepancy: pair,
        diagnostics.sliced_wasserstein: {**pair, "key": KEY},
        diagnostics.gaussian_divergences: pair,
        diagnostics.expected_calibration_error: {"probabilities": t["probabilities"], "y": t["labels"]},
        diagnostics.predictive_metrics: {
            "posterior_or_probabilities": t["probabilities"], "y": t["labels"]
        },
        diagnostics.held_out_elpd: {"predictions": t["comparison"].predictions},
        diagnostics.reweight: {
            "posterior": t["posterior"], "source": t["table"], "target": t["table"]
        },
        diagnostics.robustness: {
            "posterior_or_predict": t["predict"], "split": t["images"].test, "key": KEY
        },
        diagnostics.to_arviz: {"posterior": t["posterior"]},
        diagnostics.report: {"comparison": t["comparison"], "path": "report.html"},
        diagnostics.plot_comparison: {"comparison": t["comparison"]},
        diagnostics.plot_coreset: {"coreset": t["pictures"]},
        diagnostics.plot_trace: {"posterior": t["posterior"]},
        diagnostics.plot_rank: {"posterior": t["posterior"]},
        diagnostics.plot_history: {"history": {"loss": np.zeros(3)}},
        data.Split: {
            "raw": np.zeros((3, 2), np.float32), "y": np.zeros(3, np.int32), "preprocessing": data.Preprocessing()
        },
        data.Preprocessing: {"mean": np.zeros(2), "std": np.ones(2)},
        data.corrupt: {"images": np.zeros((2, 8, 8, 1), np.uint8), "name": "snow", "severity": 1, "key": KEY},
        data.corrupted: {"split": t["images"].test, "name": "snow", "severity": 1, "key": KEY},
        evaluation.Default: {},
        evaluation.Kim2022: {},
        evaluation.FBPC2023: {},
        evaluation.Distillation: {},
        evaluation.ece_batch: {"probabilities": t["probabilities"], "y": t["labels"]},
        evaluation.nll_batchmean: {"log_likelihood": np.zeros((3, 10))},
        objectives.InnerTraining: {},
        objectives.Chains: {},
        **{
            getattr(objectives, name): {"model": t["network"]}
            for name in (
                "bacon", "distribution_matching", "forward_kl", "function_kl", "gradient_matching", "reverse_kl",
                "trajectory_matching", "wasserstein",
            )
        },
    }  # fmt: skip
    return {getattr(f, "__qualname__", repr(f)): (f, given) for f, given in arguments.items()}


def wrong_things() -> dict[str, Any]:
    """What people give by mistake, by a name."""
    simple = [
        None, True, 3, -1, 0, 2.5, float("nan"), float("inf"), "text", "", b"x", [], [1, "a"], (), (1, 2), {}, {"a": 1},
        set(), int, np.int64(2), np.float32(0.5), np.zeros(3), np.zeros((2, 2)), np.array("x"), np.array([None, "a"]),
        np.ma.masked_array(np.zeros(3), [0, 1, 0]), jnp.ones(2), pathlib.Path("somewhere"), 1j, range(3),
    ]  # fmt: skip
    named = {f"{type(value).__name__} {value!r}"[:50]: value for value in simple}
    return {**named, "object": object(), "function": len, "key": KEY, "keys": jax.random.split(KEY), **things()}


@st.composite
def changed_calls(draw: Any) -> tuple[str, dict[str, str]]:
    """A function, and wrong things for one or two of its arguments, by their names."""
    name = draw(st.sampled_from(sorted(calls())))
    function = calls()[name][0]
    parameters = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if not parameters:
        return name, {}
    chosen = draw(st.lists(st.sampled_from(parameters), min_size=1, max_size=2, unique=True))
    return name, {argument: draw(st.sampled_from(list(wrong_things()))) for argument in chosen}


def names_of(function: Callable[..., Any]) -> set[str]:
    """Names of its arguments; one that takes two things may be called by either."""
    return {word for name in inspect.signature(function).parameters for word in (name, *name.split("_or_"))}


def outcome_of(name: str, changes: dict[str, str]) -> str:
    """``"worked"``, ``"refused"``, ``"slow"``, or the bare error that it ends with."""
    function, arguments = calls()[name]
    values = {**arguments, **{argument: wrong_things()[thing] for argument, thing in changes.items()}}

    def late(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with without_computing(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**values)
        return "worked"
    except (Reached, FloatingPointError, MemoryError):
        return "worked"
    except TimeoutError:
        return "slow"
    except (TypeError, ValueError) as error:
        is_named = any(re.search(rf"\b{re.escape(word)}\b", str(error)) for word in names_of(function))
        return "refused" if is_named else _told(error)
    except (OSError, pseudocoreset.files.storage.CorruptFileError) as error:
        is_path = any("path" in argument or "director" in argument or argument.endswith("dir") for argument in values)
        return "refused" if is_path else _told(error)
    except Exception as error:
        return _told(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _told(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{pathlib.Path(place.filename).name}:{place.lineno}"
    return f"{type(error).__name__} at {where}: {str(error).splitlines()[0][:120] if str(error) else ''}"


def run(count: int, seed: int = 0, report: Callable[[str], Any] = str) -> tuple[collections.Counter[str], list[str]]:
    """How often calls ended how, and the bare errors with their calls."""
    outcomes: collections.Counter[str] = collections.Counter()
    bare: list[str] = []

    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(changed_calls())
    def call(chosen: tuple[str, dict[str, str]]) -> None:
        found = outcome_of(*chosen)
        outcomes[found if found in ("worked", "refused", "slow") else "bare"] += 1
        if found not in ("worked", "refused", "slow"):
            bare.append(f"{chosen[0]}({', '.join(f'{k}={v}' for k, v in chosen[1].items())}): {found}")
            report(bare[-1])
        if sum(outcomes.values()) % 500 == 0:
            report(str(dict(outcomes)))

    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            __import__("hypothesis").seed(seed)(call)()
        finally:
            os.chdir(here)
    return outcomes, bare


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "agg")
    number, seed = (*map(int, sys.argv[1:3]), 0)[:2]
    outcomes, bare = run(number, seed, lambda line: (sys.stdout.write(f"{line}\n"), sys.stdout.flush()))
    sys.stdout.write(f"{dict(outcomes)}\n")
    raise SystemExit(bool(bare))
