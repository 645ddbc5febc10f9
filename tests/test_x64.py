"""Everything runs where JAX computes in float64."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

import pseudocoreset
from pseudocoreset import Dataset, Pseudocoreset, choose_mass, compare_posteriors, evaluate, train_experts
from pseudocoreset.inference import sample
from pseudocoreset.inference.kernels import KERNELS
from pseudocoreset.models import MLP, ConvNet, Model, bnn, linear_regression, logistic_regression

KEY = jax.random.key(0)
Y = np.repeat(np.arange(2), 15)
X = np.random.default_rng(0).normal(size=(30, 3)) + Y[:, None]
IMAGES = np.random.default_rng(1).integers(0, 256, size=(30, 8, 8, 1)).astype(np.uint8)
QUIET: dict[str, Any] = {"key": KEY, "progress": False}
EXPERTS = {"num_experts": 1, "num_expert_epochs": 3, "first_epoch": 0, "last_epoch": 1}
SAMPLING: dict[str, Any] = {"num_chains": 2, "num_warmup": 20, "num_samples": 5, **QUIET}
FITS = [name for name in pseudocoreset.__all__ if name.startswith("fit_")]
POINTWISE = ("fit_curvature", "fit_giga", "fit_sparse_vi")  # for models of few parameters


def classes() -> Dataset:
    return Dataset.from_arrays(X, Y, test=(X, Y))


def pictures() -> Dataset:
    return Dataset.from_arrays(IMAGES, Y, test=(IMAGES, Y), normalize=True)


def fit_with(name: str, model: Model, data: Dataset, **arguments: Any) -> None:
    fit = getattr(pseudocoreset, name)
    offered: dict[str, Any] = {"steps": 2, "num_weight_steps": 3, **EXPERTS}
    taken = {key: value for key, value in offered.items() if key in inspect.signature(fit).parameters}
    if "num_experts" not in taken:
        taken = {key: value for key, value in taken.items() if key not in EXPERTS}
    coreset = fit(model, data, **taken, **arguments, **QUIET).coreset
    assert np.all(np.isfinite(coreset.inputs))
    assert np.all(np.isfinite(coreset.weights))


def network() -> Model:
    return bnn(MLP(widths=(4,)), input_shape=(3,), num_outputs=2)


def points() -> Pseudocoreset:
    return Pseudocoreset.from_data(classes(), images_per_class=2, key=KEY)


def draws(kernel: str, model: Model) -> Any:
    return sample(model, points(), kernel=kernel, predict_on=classes().test, **SAMPLING)


CALLS: dict[str, Callable[[], Any]] = {
    **{
        f"{name}, images": lambda name=name: fit_with(
            name, bnn(ConvNet(depth=1, width=4), pictures()), pictures(), images_per_class=1
        )
        for name in FITS
        if name not in POINTWISE
    },
    **{
        f"{name}, all leaves": lambda name=name: fit_with(
            name, network(), classes(), images_per_class=1, weights="learned", targets="learned"
        )
        for name in ("fit_fbpc", "fit_bpc_rkl", "fit_bpc_fkl", "fit_bpc_w", "fit_gradient_matching")
    },
    **{
        f"{name}, logistic": lambda name=name: fit_with(name, logistic_regression(num_classes=2), classes(), size=3)
        for name in (*POINTWISE, "fit_bpc_rkl", "fit_bpc_fkl", "fit_bpc_w")
    },
    **{
        f"{name}, linear": lambda name=name: fit_with(
            name, linear_regression(noise_scale=0.5), Dataset.from_arrays(X, X[:, 0]), size=3
        )
        for name in (*POINTWISE, "fit_bpc_rkl", "fit_bpc_fkl", "fit_bpc_w")
    },
    **{f"{kernel}, network": lambda kernel=kernel: draws(kernel, network()) for kernel in KERNELS},
    **{
        f"{kernel}, logistic": lambda kernel=kernel: draws(kernel, logistic_regression(num_classes=2))
        for kernel in KERNELS
        if kernel != "network_hmc"
    },
    **{
        f"evaluate, {protocol}": lambda protocol=protocol: evaluate(
            points(), network(), classes(), protocol=protocol, key=KEY, progress=False
        )
        for protocol in ("default", "kim2022", "fbpc2023", "distillation")
    },
    "train_experts": lambda: train_experts(network(), classes(), num_experts=2, num_epochs=1, batch_size=10, **QUIET),
    "compare_posteriors": lambda: compare_posteriors(
        {"full": draws("sghmc", network()), "coreset": draws("sghmc", network())}, classes().test
    ),
    "choose_mass": lambda: choose_mass(network(), points(), classes().test, masses=[2.0, 4.0], **SAMPLING),
}
QUICK = ("fit_distribution_matching, images", "sghmc, network", "train_experts")
MARKED = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CALLS]


@pytest.mark.filterwarnings("ignore")  # of chains too short to say anything
@pytest.mark.parametrize(
    "call", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CALLS]
)
def test_runs_in_double_precision(call: str) -> None:
    with jax.enable_x64(True):
        CALLS[call]()
