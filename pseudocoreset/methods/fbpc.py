"""FBPC: function-space Bayesian pseudocoresets (Kim, Lee and Lee 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from pseudocoreset.methods.base import Learned, Optimizer, Problem
from pseudocoreset.methods.optimizers import published_sgd
from pseudocoreset.methods.recipes import nearest
from pseudocoreset.models import Model
from pseudocoreset.objectives import Objective, function_kl
from pseudocoreset.proxies import Covariance, Trajectory
from pseudocoreset.validation import check_integer

__all__ = ["FBPC", "FBPCRecipe", "fbpc_recipe"]


class FBPCRecipe(NamedTuple):
    """A row of Table 4 of Kim et al. 2023.

    Attributes:
        first_epoch: T, the earliest expert epoch.
        inner_loss: gamma.
        data_learning_rate: lambda_x.
        coreset_learning_rate: lambda_u.
        steps: N.
        step_size: alpha, of SGD on the inputs.
        coreset_batch_size: B.
    """

    first_epoch: int
    inner_loss: float
    data_learning_rate: float
    coreset_learning_rate: float
    steps: int
    step_size: float
    coreset_batch_size: int | None


_TABLE_4 = {
    ("cifar10", 1): FBPCRecipe(1, 0.01, 0.05, 0.01, 1000, 100.0, 10),
    ("cifar10", 10): FBPCRecipe(2, 0.1, 0.05, 0.01, 1000, 1000.0, 100),
    ("cifar10", 50): FBPCRecipe(10, 0.2, 0.05, 0.01, 1000, 1000.0, 500),
    ("cifar100", 1): FBPCRecipe(2, 0.1, 0.1, 0.1, 5000, 1000.0, 100),
    ("cifar100", 10): FBPCRecipe(40, 0.1, 0.1, 0.1, 5000, 1000.0, 1000),
    ("cifar100", 50): FBPCRecipe(20, 0.2, 0.01, 0.01, 300, 1000.0, 5000),
    ("tiny_imagenet", 1): FBPCRecipe(2, 0.1, 0.1, 3.0, 5000, 1000.0, 100),
    ("tiny_imagenet", 10): FBPCRecipe(40, 1.0, 0.1, 3.0, 500, 1000.0, 100),
    ("tiny_imagenet", 50): FBPCRecipe(40, 1.0, 0.1, 3.0, 500, 1000.0, 100),
}
_ELSEWHERE = FBPCRecipe(1, 0.1, 0.05, 0.01, 1000, 100.0, None)


def fbpc_recipe(data_name: str, images_per_class: float | None) -> FBPCRecipe:
    """The published recipe for a data set, at the nearest published number of images per class; sensible elsewhere.

    Args:
        data_name: the name of the data set.
        images_per_class: None for coresets that are not counted by class.
    """
    return nearest(_TABLE_4, data_name, images_per_class, _ELSEWHERE)


@dataclass(frozen=True, kw_only=True)
class FBPC(Learned):
    """Function-space Bayesian pseudocoreset (FBPC; Kim, Lee and Lee 2023, Algorithm 1).

    It goes down the gradient of KL(nu_x || nu_u), the divergence of the posterior over functions nu_u of the coreset u
    from that of the data nu_x (Proposition 3.1):

        - grad_u E_{nu_x} log p(y | f_u) + E_{nu_u} grad_u log p(y | f_u)

    For models with function values, networks above all. A step costs one short training of a network on the coreset.
    Settings that are None come from Table 4 of the paper for the data sets that it names, at its nearest number of
    images per class (1, 10 or 50), and are sensible elsewhere.

    Attributes:
        steps: N, updates of the coreset.
        proxy: ``"trajectory"`` (Eq. 16), ``"isotropic"`` (unit variance), ``"linearized"`` (Eq. 11 to 13), or one of
            ``pseudocoreset.proxies``.
        optimizer: acts on the free leaves, or one for each leaf by name. By default SGD of step ``step_size``, and
            Adam of step 0.01 on targets and weights where they are learned; for tables Adam in units of each column.
        step_size: alpha; of Adam for tables, 0.1, and 0.01 with networks.
        weights: mass of the weights, ``"ones"`` (as published) or ``"data"``, n, which is carried by the coreset into
            its posterior; None takes ones for networks and n elsewhere, and keeps that of a ``coreset``. With n, of
            models that are no networks, the start comes back where it is nearer to the posterior of all data: points
            whose functions are right under experts need not have the right posterior. The fit itself, whose gradient is
            divided by the mass, does not depend on it, but for a covariance from the curvature
            (``proxy="linearized"``, Laplace), which narrows as the mass grows. Or ``"learned"`` from n / m each, which
            keeps their mass n: the objective does not determine it.
        num_draws: S, draws of the function values per step.
        num_networks: pairs of an expert and a network trained on the coreset, over which each step averages: one as
            published; more make a step less noisy and as many times as long, unless devices share them.
        first_epoch: T, the earliest expert epoch used.
        last_epoch: the latest.
        inner_loss: gamma, the loss at which the training of a network on the coreset stops.
        inner_learning_rate: its Adam step size.
        inner_max_steps: its cap; a log line says when it is hit.
        coreset_batch_size: B, points used per step.
    """

    name: ClassVar[str] = "fbpc"
    takes: ClassVar[frozenset[str]] = Learned.takes | {"experts", "num_experts", "num_expert_epochs"}
    learns_weights: ClassVar[bool] = False

    steps: int | None = None
    proxy: str | Covariance = "trajectory"
    num_draws: int = 30
    num_networks: int = 1
    first_epoch: int | None = None
    last_epoch: int | None = None
    inner_loss: float | None = None
    inner_learning_rate: float = 1e-3
    inner_max_steps: int = 500
    coreset_batch_size: int | None = None

    def check(self) -> None:
        if self.first_epoch is not None:
            check_integer(self.first_epoch, "first_epoch", minimum=0)

    def recipe(self, problem: Problem) -> dict[str, Any]:
        row = fbpc_recipe(problem.data.name, problem.points_per_class)
        names = ("steps", "first_epoch", "inner_loss", "coreset_batch_size")
        return {name: getattr(row, name) for name in names}

    def objective(self, model: Model, problem: Problem) -> Objective:
        row = fbpc_recipe(problem.data.name, problem.points_per_class)
        assert self.first_epoch is not None
        assert self.inner_loss is not None
        proxy = self.proxy
        if proxy == "trajectory":
            proxy = Trajectory(
                data_learning_rate=row.data_learning_rate,
                coreset_learning_rate=row.coreset_learning_rate,
                batch_size=min(256, problem.data.train.num_data),
            )
        return function_kl(
            model,
            proxy=proxy,
            num_draws=self.num_draws,
            num_networks=self.num_networks,
            first_epoch=self.first_epoch,
            last_epoch=self.last_epoch,
            inner_loss=self.inner_loss,
            inner_learning_rate=self.inner_learning_rate,
            inner_max_steps=self.inner_max_steps,
            coreset_batch_size=self.coreset_batch_size,
            augment=self.augmentation,
            free=self.free,
        )

    def default_optimizer(self, problem: Problem) -> Optimizer:
        row = fbpc_recipe(problem.data.name, problem.points_per_class)
        return published_sgd(self, problem, row.step_size, momentum=0.0)

    def least_epochs(self) -> int:
        return self.first_epoch or 0
