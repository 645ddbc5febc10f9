"""The forward KL divergence between weight posteriors: BPC-fKL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from pseudocoreset.data import Dataset
from pseudocoreset.data.doors import check_preprocessing
from pseudocoreset.data.fingerprints import fingerprint
from pseudocoreset.methods.base import Optimizer, Problem
from pseudocoreset.methods.inner import PUBLISHED_STEP_SIZE, FromExperts
from pseudocoreset.methods.optimizers import distillation_sgd
from pseudocoreset.models import Model, Params
from pseudocoreset.objectives import Chains, Objective, forward_kl
from pseudocoreset.objectives.forward_kl import check_draws
from pseudocoreset.proxies import Covariance

__all__ = ["BPCForwardKL"]


@dataclass(frozen=True, kw_only=True)
class BPCForwardKL(FromExperts):
    """Forward KL: BPC-fKL (Kim et al. 2022), for networks and for any other model.

    It goes down KL(pi_x || pi_u) from the posterior pi_x of the data to that of the coreset, pi_u:

        grad_u KL = E_{pi_u}[ grad_u sum_j w_j l(theta; u_j) ] - E_{pi_x}[ grad_u sum_j w_j l(theta; u_j) ]

    Attributes:
        proxy: as in ``BPCReverseKL``; ``"chains"`` takes the draws of the full data from ``data_draws``.
        data_draws: draws of the full-data posterior instead of the proxy's: a ``Posterior`` that kept its weights, or
            unconstrained parameters with a leading axis over draws. A ``Posterior`` of a coreset, of another number of
            data or of inputs with another preprocessing is refused.
        optimizer: SGD with momentum 0.5 on the images of networks by default, Adam elsewhere as in ``BPCReverseKL``.
        step_size: of the optimiser; 1,000 for networks, 0.1 elsewhere.
        augment: of the coreset, in the training of networks and, one per draw, in both terms of the gradient.
        weights: ``"learned"``, ``"data"`` or ``"ones"``; None learns them, and takes ones for networks. Learned weights
            keep their mass where the objective does not determine it (around MAP solutions of networks).
        num_draws: S, draws per step; memory does not grow with it.
        estimator: ``"monte_carlo"``, or ``"closed_form"`` where both posteriors are Gaussian.
    """

    name: ClassVar[str] = "bpc_fkl"

    proxy: str | Covariance | Chains | None = None
    data_draws: Any = None
    num_draws: int = 30
    estimator: str = "monte_carlo"

    def objective(self, model: Model, problem: Problem) -> Objective:
        return forward_kl(
            model,
            proxy=self.proxy,
            data_draws=_stacked(self.data_draws, problem.data, model),
            num_draws=self.num_draws,
            estimator=self.estimator,
            augment=self.augmentation if model.is_network else None,
            inner=self.inner,
            free=self.free,
        )

    def default_optimizer(self, problem: Problem) -> Optimizer:
        return distillation_sgd(self, problem, PUBLISHED_STEP_SIZE)

    def without_mode(self, problem: Problem, progress: bool) -> tuple[str, Self] | None:
        given = self.proxy is not None or self.data_draws is not None
        if given or self.estimator != "monte_carlo" or len(problem.models) > 1:
            return None
        # BlackJAX puts an array on the device when it is imported.
        from pseudocoreset.inference import sample

        draw_key = jax.random.fold_in(problem.key, 1)
        draws = sample(problem.models[0], problem.data, kernel="nuts", key=draw_key, progress=progress)
        words = "Draws by NUTS of both posteriors take its place."
        return words, replace(self, proxy="chains", data_draws=_stacked(draws, problem.data, problem.models[0]))


def _stacked(draws: Any, data: Dataset, model: Model) -> Params | None:
    """Unconstrained draws of the posterior of ``data`` with one leading axis, from a ``Posterior`` or as they are."""
    if draws is None:
        return None
    if isinstance(draws, dict):
        stacked = {name: jnp.asarray(leaf) for name, leaf in draws.items()}
    else:
        unconstrained = getattr(draws, "unconstrained", None)
        if unconstrained is None:
            raise ValueError(
                "data_draws must be a Posterior that kept its weights (keep='weights'), or unconstrained parameters "
                f"with a leading axis over draws; got {draws!r}"
            )
        _check_is_of(data, draws.metadata)
        stacked = {name: jnp.asarray(np.reshape(a, (-1, *a.shape[2:]))) for name, a in unconstrained.items()}
    check_draws(model, stacked)
    return stacked


def _check_is_of(data: Dataset, metadata: Mapping[str, Any]) -> None:
    """Refuse draws whose metadata say that their posterior is of something other than all the training data."""
    remedy = "Take sample(model, data, kernel='nuts', keep='weights', ...) of the data that the coreset is learned from"
    if metadata.get("coreset") is not None:
        raise ValueError(f"data_draws are of the posterior of a coreset, not of all data. {remedy}")
    count = metadata.get("num_data", data.train.num_data)
    if count != data.train.num_data:
        raise ValueError(f"data_draws are of the posterior of {count} data, data has {data.train.num_data}. {remedy}")
    check_preprocessing(metadata.get("preprocessing"), data.preprocessing.summary, "data_draws", "data", remedy)
    # Pairs of arrays, and posteriors of earlier versions, have none.
    if metadata.get("data_fingerprint") not in (None, fingerprint(data)):
        raise ValueError(f"data_draws are of the posterior of other data, though of as many. {remedy}")
