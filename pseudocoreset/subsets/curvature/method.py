"""``Curvature``: points that match score and curvature of the posterior at the mode of all data."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import numpy as np

from pseudocoreset.methods.base import Callback, Problem
from pseudocoreset.models import Model
from pseudocoreset.subsets.base import Choice, Chosen, one_model, subset_of
from pseudocoreset.subsets.curvature.density import Density
from pseudocoreset.subsets.curvature.features import features_for
from pseudocoreset.subsets.curvature.judge import Judge
from pseudocoreset.subsets.curvature.mode import FullPosterior, full_posterior
from pseudocoreset.subsets.curvature.predictor import NotLinearError
from pseudocoreset.subsets.curvature.real import SOLVED, real_points
from pseudocoreset.subsets.curvature.synthetic import synthetic_points
from pseudocoreset.validation import check_choice, check_integer

__all__ = ["Curvature"]

logger = logging.getLogger(__name__)
MAX_PARAMS = 2000
FORMS = ("auto", "real", "synthetic")


@dataclass(frozen=True, kw_only=True)
class Curvature(Chosen):
    """Curvature matching: the posterior of the points has the mode and the Laplace approximation of that of all data.

    With theta the mode of the posterior of all data, points u_j with weights w_j satisfy

        sum_j w_j grad log p(y_j | u_j, theta) = sum_i grad log p(y_i | x_i, theta)    and the same of the Hessian,

    so that both log densities agree to second order, whatever n is. The mode is found by Newton's method in float64
    on sums over chunks of rows; five or so passes over the data.

    Synthetic points are for likelihoods that depend on x through one linear predictor, the site ``"f"``: one point for
    each parameter that it has. What acts beside it (an offset, an exposure, a number of trials) is carried from a row
    of the data. Two classes have soft labels, counts have real targets. A likelihood with parameters beside the
    predictor, a noise scale say, has a few targets at each point. Of several arrangements the one is kept that agrees
    best with all data at draws of the Laplace approximation.

    Real points come from non-negative least squares on scores and curvatures of rows: at most d (d + 3) / 2 + 1 points
    for d parameters, for any model. They agree with the full posterior beyond second order too, as far as they are
    like the data. Where that is too many for one computation, the directions that the data determine best are matched,
    and the result says so.

    ``size`` may be left out: there are as many points as it takes. Fewer real points are the best of that number that
    were found; ``mismatch`` in the settings of the result says how good they are, in nats to second order.

    For one model of at most 2,000 parameters that is no network and whose posterior has one mode that matters.

    Attributes:
        form: ``"synthetic"`` or ``"real"`` points; ``"auto"`` takes synthetic ones where the likelihood has them and
            ``size`` is enough, and the settings of the result say why not elsewhere.
    """

    name: ClassVar[str] = "curvature"
    finds_size: ClassVar[bool] = True

    form: str = "auto"

    def check(self) -> None:
        check_choice(self.form, "form", FORMS)

    def choose(self, problem: Problem, callbacks: tuple[Callback, ...], progress: bool) -> Choice:
        model, size = _suitable(one_model(problem)), _size(problem)
        density = Density(model, problem.data)
        mode_key, key = jax.random.split(problem.key)
        posterior = full_posterior(density, mode_key)
        judge = Judge(density, posterior)
        seed = int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max))
        found, why = (None, "asked for") if self.form == "real" else self._synthetic(judge, size, seed)
        if found is None:
            found = _real(density, posterior, size, seed)
            found.settings["form"] = "real"
        found.settings["why"] = why
        found.settings["mismatch"] = judge.mismatch(found.coreset)
        found.settings["spread"] = judge.spread(found.coreset)
        _warn(found.settings, size)
        return found

    def _synthetic(self, judge: Judge, size: int | None, seed: int) -> tuple[Choice | None, str]:
        """Synthetic points, or why there are none."""
        name = judge.density.model.name
        try:
            found = synthetic_points(judge.density, judge.posterior, judge, size, seed)
        except NotLinearError as error:
            if self.form == "synthetic":
                raise ValueError(f"form='synthetic': model {name!r}: {error}; take form='real'") from error
            return None, f"no synthetic points: {error}"
        settings = {"form": "synthetic", "is_exact": True, "num_tried": found.num_tried, "mass": "matched"}
        history = {"points": np.asarray([found.coreset.size])}
        return Choice(found.coreset, history, settings), "the likelihood depends on x through one linear predictor"


def _suitable(model: Model) -> Model:
    """The model, if it may have one mode."""
    if model.is_network:
        raise ValueError(
            f"model {model.name!r} is a network, whose posterior has many modes, and no curvature at one tells of it; "
            "take method='fbpc'"
        )
    if model.num_params > MAX_PARAMS:
        raise ValueError(
            f"model {model.name!r} has {model.num_params} parameters; curvature is matched of at most {MAX_PARAMS}. "
            "Take method='bpc_rkl'"
        )
    return model


def _size(problem: Problem) -> int | None:
    """Points at most; None for what it takes."""
    if problem.images_per_class is not None:
        raise ValueError(
            f"images_per_class={problem.images_per_class}: the points of method='curvature' follow from the curvature, "
            "not class by class; give size, or leave both out"
        )
    if problem.size is None:
        return None
    if check_integer(problem.size, "size") > problem.data.train.num_data:
        raise ValueError(f"size={problem.size} is more than the {problem.data.train.num_data} training data")
    return problem.size


def _real(density: Density, posterior: FullPosterior, size: int | None, seed: int) -> Choice:
    features = features_for(density, posterior)
    found = real_points(features, size, np.random.default_rng(seed))
    coreset = subset_of(density.data, found.indices, found.weights)
    settings = {
        "is_exact": features.is_exact and found.residuals[-1] <= SOLVED,
        "matched_numbers": features.size,
        "has_all_numbers": features.is_exact,
        "num_candidates": found.num_candidates,
        "residual": found.residuals[-1],
    }
    # Weights keep their digits for those who compute in float64.
    return Choice(replace(coreset, weights=found.weights), {"residual": np.asarray(found.residuals)}, settings)


def _warn(settings: dict[str, Any], size: int | None) -> None:
    """Say what does not match."""
    if settings["is_exact"]:
        return
    if not settings["has_all_numbers"]:
        why = "the curvature has too many numbers, and was matched along the directions that the data determine best"
    elif size is not None:
        why = f"size={size} is fewer than it takes, up to {settings['matched_numbers']}; leave size out for that many"
    else:
        why = f"the {settings['num_candidates']} candidates have no exact solution"
    logger.warning(
        "score and curvature are not matched exactly: %s. %.3g nats are left to second order", why, settings["mismatch"]
    )
