"""The demonstration: the whole road on bundled real digits, from experts to a report, in a few minutes on a laptop."""

from __future__ import annotations

import logging
import math
import os
import pathlib
import time
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset, Split, load_dataset
from pseudocoreset.diagnostics import Comparison, compare_posteriors, plot_coreset, report, to_arviz
from pseudocoreset.experts import train_experts
from pseudocoreset.files.storage import write_json
from pseudocoreset.fitting import FitResult, fit_fbpc
from pseudocoreset.inference import Posterior, sample
from pseudocoreset.models import ConvNet, Model, bnn
from pseudocoreset.proxies import Trajectory
from pseudocoreset.validation import check_key

__all__ = ["DemoSettings", "run_demo"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DemoSettings:
    """How much work the demonstration does.

    Attributes:
        depth: blocks of the ConvNet.
        width: filters of the ConvNet.
        num_experts: experts trained.
        num_expert_epochs: their epochs.
        expert_learning_rate: their SGD step size.
        images_per_class: size of the coresets.
        steps: FBPC updates.
        step_size: of SGD on the inputs.
        inner_learning_rate: Adam step size of the networks trained on the coreset.
        proxy_steps: further SGD steps that the proxies' variances are taken along.
        num_chains: SGHMC chains of each posterior.
        num_warmup: SGHMC steps before the first draw.
        num_samples: draws kept of each chain.
        thinning: SGHMC steps between draws.
        sghmc_step: step size of SGHMC, times the square root of the total weight of the data.
        batch_size: data a step of SGHMC on the full data; the coresets are used whole.
        mass: total weight of the coresets.
    """

    depth: int = 2
    width: int = 32
    num_experts: int = 4
    num_expert_epochs: int = 10
    expert_learning_rate: float = 0.1
    images_per_class: int = 1
    steps: int = 150
    step_size: float = 100.0
    inner_learning_rate: float = 0.01
    proxy_steps: int = 10
    num_chains: int = 4
    num_warmup: int = 1000
    num_samples: int = 50
    thinning: int = 20
    sghmc_step: float = 0.2
    batch_size: int = 64
    mass: str = "data"


def run_demo(
    out: str | os.PathLike[str],
    *,
    key: jax.Array,
    settings: DemoSettings | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train experts, fit FBPC, sample three posteriors with SGHMC, compare them, and write it all down.

    The posteriors are those of the full training data, of the FBPC coreset, and of the random real images that the
    coreset started from.

    Args:
        out: folder for ``coreset/``, ``random/``, ``coreset.png``, ``<name>.nc``, ``report.html``, ``metrics.json``.
        key: one typed key.
        settings: how much work to do.
        progress: show progress bars.

    Returns:
        What is in ``metrics.json``: ``fbpc``, ``random``, ``full`` (metrics), ``agreement``, ``seconds``.
    """
    check_key(key)
    chosen = settings or DemoSettings()
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[name] = round(now - clock, 2)
        clock = now

    expert_key, start_key, fit_key, *sample_keys = jax.random.split(key, 6)
    data = load_dataset("digits")
    assert data.test is not None
    model = bnn(ConvNet(depth=chosen.depth, width=chosen.width), data)
    experts = train_experts(
        model,
        data,
        num_experts=chosen.num_experts,
        num_epochs=chosen.num_expert_epochs,
        key=expert_key,
        learning_rate=chosen.expert_learning_rate,
        batch_size=64,
        progress=progress,
    )
    lap("experts")
    start = Pseudocoreset.from_data(data, images_per_class=chosen.images_per_class, key=start_key, mass=chosen.mass)
    fitted = fit_fbpc(
        model,
        data,
        images_per_class=chosen.images_per_class,
        coreset=start,
        key=fit_key,
        steps=chosen.steps,
        experts=experts,
        step_size=chosen.step_size,
        inner_learning_rate=chosen.inner_learning_rate,
        proxy=Trajectory(num_steps=chosen.proxy_steps, batch_size=64),
        progress=progress,
    )
    lap("fbpc")
    posteriors: dict[str, Posterior] = {}
    sources: dict[str, Dataset | Pseudocoreset] = {"full": data, "fbpc": fitted.coreset, "random": start}
    for (name, source), sample_key in zip(sources.items(), sample_keys, strict=True):
        posteriors[name] = _sampled(model, source, data.test, chosen, sample_key, progress)
        lap(f"sghmc_{name}")
    comparison = compare_posteriors(posteriors, data.test, reference="full")
    lap("comparison")
    _write(folder, data, fitted, start, posteriors, comparison, chosen)
    lap("files")
    seconds["total"] = round(sum(seconds.values()), 2)
    metrics = _metrics(comparison, seconds, chosen)
    write_json(folder / "metrics.json", metrics)
    return metrics


def _sampled(
    model: Model,
    source: Dataset | Pseudocoreset,
    held_out: Split,
    settings: DemoSettings,
    key: jax.Array,
    progress: bool,
) -> Posterior:
    """Draws of the posterior of all data, by minibatches, or of a coreset."""
    weight = source.mass if isinstance(source, Pseudocoreset) else source.train.num_data
    return sample(
        model,
        source,
        kernel="sghmc",
        num_chains=settings.num_chains,
        num_warmup=settings.num_warmup,
        num_samples=settings.num_samples,
        thinning=settings.thinning,
        step_size=settings.sghmc_step / math.sqrt(weight),
        batch_size=None if isinstance(source, Pseudocoreset) else settings.batch_size,
        key=key,
        predict_on=held_out,
        progress=progress,
    )


def _metrics(comparison: Comparison, seconds: dict[str, float], settings: DemoSettings) -> dict[str, Any]:
    table = comparison.as_dict()
    return {
        **{name: table["metrics"][name] for name in ("fbpc", "random", "full")},
        "agreement": {name: table["agreement"][name] for name in ("fbpc", "random")},
        "noise_floor": table.get("noise_floor"),
        "seconds": seconds,
        "settings": asdict(settings),
    }


def _write(
    folder: pathlib.Path,
    data: Any,
    fitted: FitResult,
    start: Pseudocoreset,
    posteriors: dict[str, Posterior],
    comparison: Comparison,
    settings: DemoSettings,
) -> None:
    fitted.coreset.save(folder / "coreset")
    start.save(folder / "random")
    plot_coreset(fitted.coreset, data).savefig(folder / "coreset.png", dpi=120)
    coresets = {"fbpc": fitted.coreset, "random": start, "full": None}
    for name, posterior in posteriors.items():
        to_arviz(posterior, coreset=coresets[name]).to_netcdf(folder / f"{name}.nc", engine="h5netcdf")
    report(
        comparison,
        folder / "report.html",
        coreset=fitted.coreset,
        data=data,
        history={name: np.asarray(values) for name, values in fitted.history.items()},
        posteriors=posteriors,
        title="FBPC on handwritten digits",
        details=asdict(settings),
    )
