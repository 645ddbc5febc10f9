"""The reverse KL divergence between weight posteriors: PSVI and BPC-rKL."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from pseudocoreset.methods.base import Optimizer, Problem
from pseudocoreset.methods.inner import PUBLISHED_STEP_SIZE, FromExperts, bpc_recipe
from pseudocoreset.methods.optimizers import adam, published_sgd
from pseudocoreset.models import Model
from pseudocoreset.objectives import Chains, Objective, reverse_kl
from pseudocoreset.proxies import Covariance

__all__ = ["BPCReverseKL"]

ALL_DATA_UP_TO, BATCH_BEYOND = 10_000, 1_000


@dataclass(frozen=True, kw_only=True)
class BPCReverseKL(FromExperts):
    """Reverse KL: PSVI (Manousakas et al. 2020) for any model, BPC-rKL (Kim et al. 2022) for networks.

    It goes down KL(pi_u || pi_x), whose gradient is a covariance under the posterior pi_u of the coreset
    (``objectives.reverse_kl``). Settings for networks that are None are those of the reference code at its nearest
    number of points of each class (1, 10 or 20), which it runs for 5,000 steps; with ``target="tempered"`` the rest is
    the reference's too.

    Attributes:
        proxy: where draws of the coreset posterior come from: ``"conjugate"`` (exact, where there is one),
            ``"laplace"``, ``"chains"`` (NUTS, warm from step to step, or ``Chains(...)``), for networks
            ``"isotropic"``, ``"trajectory"`` or one of ``pseudocoreset.proxies``; by default the first of conjugate,
            Laplace and chains that the model has, isotropic for networks.
        optimizer: acts on the free leaves, or one for each leaf by name. By default Adam (second-moment decay 0.9) on
            all of them with steps ``step_size`` * cosine decay, of tables in units of each column; with
            ``target="tempered"`` SGD on the inputs of images.
        step_size: of the optimiser; 0.1, for networks on tables 0.01, or 1,000 with ``target="tempered"``.
        augment: of the coreset in the training of networks; ``"auto"``, a strategy, an ``Augmentation`` or None.
        weights: ``"learned"`` (from n / m each), ``"data"`` (n / m each) or ``"ones"``; None learns them, and takes
            ones for networks (Kim et al. 2022). Learned weights keep their mass, n, where the objective does not
            determine it: around MAP solutions of networks, and with ``target="tempered"``.
        num_draws: S, draws per step; 100, and 10 or 30 for networks.
        batch_size: B, data that the residual is estimated from in a step. By default all of them up to 10,000 and
            1,000 beyond, always 1,000 for networks; the noise of a batch keeps the divergence from zero.
        estimator: ``"monte_carlo"``, or ``"closed_form"`` where both posteriors are Gaussian.
        target: ``"posterior"``, or ``"tempered"``, as published for networks; see ``objectives.reverse_kl``.
    """

    name: ClassVar[str] = "bpc_rkl"

    proxy: str | Covariance | Chains | None = None
    num_draws: int | None = None
    batch_size: int | None = None
    estimator: str = "monte_carlo"
    target: str = "posterior"

    def objective(self, model: Model, problem: Problem) -> Objective:
        row = bpc_recipe(problem.points_per_class)
        batch_size = self.batch_size
        if batch_size is None and (model.is_network or problem.data.train.num_data > ALL_DATA_UP_TO):
            batch_size = BATCH_BEYOND
        draws = row.reverse_kl_draws if model.is_network else 100
        return reverse_kl(
            model,
            proxy=self.proxy,
            num_draws=draws if self.num_draws is None else self.num_draws,
            batch_size=batch_size,
            estimator=self.estimator,
            target=self.target,
            inner=self.inner,
            free=self.free,
        )

    def default_optimizer(self, problem: Problem) -> Optimizer:
        if self.target == "tempered":
            return published_sgd(self, problem, PUBLISHED_STEP_SIZE, momentum=0.0)
        return adam(self, problem)

    def without_mode(self, problem: Problem, progress: bool) -> tuple[str, Self] | None:
        if self.proxy is not None or self.estimator != "monte_carlo":
            return None
        return "Chains of the coreset posterior take its place.", replace(self, proxy="chains")
