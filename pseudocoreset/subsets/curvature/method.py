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
from pseudocoreset.subsets.curvature.features import Features, features_for
from pseudocoreset.subsets.curvature.judge import Judge
from pseudocoreset.subsets.curvature.mode import full_posterior
from pseudocoreset.subsets.curvature.predictor import NotLinearError
from pseudocoreset.subsets.curvature.real import real_points
from pseudocoreset.subsets.curvature.synthetic import synthetic_points
from pseudocoreset.validation import check_choice, check_integer

__all__ = ["Curvature"]

logger = logging.getLogger(__name__)
MAX_PARAMS = 2000
EXACT = 1e-10  # nats to second order
FAR = 1.0  # nats that the log densities of matched points differ by over draws
ATTEMPTS = 4  # at real points, of which the nearest are kept ...
SEVERAL = 200  # ... where at most so many numbers are matched
MOST_DRAWS = 64  # that more points than it takes match
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

    ``size`` may be left out: there are as many points as it takes. More real points match the log-likelihoods at draws
    too. Fewer are the best of that number that were found; ``mismatch`` in the settings of the result says how good
    they are: 0 where score and curvature are matched.

    For one model of at most 2,000 parameters that is no network and whose posterior has one mode that matters.

    Attributes:
        form: ``"synthetic"`` or ``"real"`` points; ``"auto"`` takes synthetic ones where the likelihood has them and
            ``size`` is enough, real ones elsewhere and where ``size`` has room for those and they are nearer. The
            settings of the result say why.
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
        d = density.num_params
        if found is None:
            found = _real(judge, size, seed)
        elif self.form == "auto" and size is not None and size > d + d * (d + 1) // 2 + 1:
            # Room for real points that agree with all data beyond second order.
            real = _real(judge, size, seed)
            if real.settings["is_exact"] and real.settings["spread"] < found.settings["spread"]:
                found, why = real, f"they are nearer at draws than {found.coreset.size} synthetic points"
        found.settings["why"] = why
        advice = _advice(found.settings, size)
        if advice:
            logger.warning(advice)
        return found._replace(advice=advice, posterior=posterior)

    def _synthetic(self, judge: Judge, size: int | None, seed: int) -> tuple[Choice | None, str]:
        """Synthetic points, or why there are none."""
        name = judge.density.model.name
        try:
            found = synthetic_points(judge.density, judge.posterior, judge, size, seed)
        except NotLinearError as error:
            if self.form == "synthetic":
                raise ValueError(f"form='synthetic': model {name!r}: {error}; take form='real'") from error
            return None, f"no synthetic points: {error}"
        settings = {
            "form": "synthetic",
            "is_exact": True,
            "num_tried": found.num_tried,
            "mass": "matched",
            "mismatch": judge.mismatch(found.coreset),
            "spread": judge.spread(found.coreset),
        }
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


def _real(judge: Judge, size: int | None, seed: int) -> Choice:
    """Real points; of several solutions the nearest at draws."""
    features = features_for(judge.density, judge.posterior)
    if size is not None and size > features.size:
        # Points beyond those that second order takes match log-likelihoods at draws, other ones than the judge's.
        draws = judge.draws_of(min(size - features.size, MOST_DRAWS), 1)
        found = _nearest(judge, replace(features, draws=draws), size, seed)
        if found.settings["is_exact"]:
            return found
    return _nearest(judge, features, size, seed)


def _nearest(judge: Judge, features: Features, size: int | None, seed: int) -> Choice:
    best: Choice | None = None
    attempts = 1 if features.size > SEVERAL else ATTEMPTS // 2 if len(features.draws) else ATTEMPTS
    for attempt in range(attempts):
        points = real_points(features, size, np.random.default_rng([seed, attempt]))
        coreset = subset_of(judge.density.data, points.indices, points.weights)
        # Weights keep their digits for those who compute in float64.
        coreset = replace(coreset, weights=points.weights)
        mismatch, far = judge.mismatch(coreset), judge.spread(coreset)
        settings = {
            "form": "real",
            "is_exact": features.is_exact and mismatch <= EXACT,
            "matched_numbers": features.size,
            "has_all_numbers": features.is_exact,
            "num_candidates": points.num_candidates,
            "residual": points.residual,
            "mismatch": mismatch,
            "spread": far,
        }
        choice = Choice(coreset, {"residual": np.asarray(points.residuals)}, settings)
        if best is None or (settings["is_exact"], -far) > (best.settings["is_exact"], -best.settings["spread"]):
            best = choice
        if points.num_candidates == judge.density.num_data:
            break  # the candidates were no choice: another attempt is the same
    assert best is not None
    return best


def _advice(settings: dict[str, Any], size: int | None) -> str:
    """What is not matched, and what to do; empty where all is."""
    if settings["is_exact"]:
        if settings["spread"] <= FAR:
            return ""
        return (
            f"Score and curvature are matched, but the log densities differ by {settings['spread']:.3g} nats over "
            "draws about the mode: the posterior is far from a Gaussian there, and the points may be far from it. "
            "Give a larger size, which matches draws too, or narrower priors."
        )
    if not settings["has_all_numbers"]:
        why = "the curvature has too many numbers, and was matched along the directions that the data determine best"
    elif size is not None and size < settings["matched_numbers"]:
        why = f"size={size} is fewer than it takes, up to {settings['matched_numbers']}; leave size out for that many"
    else:
        why = f"the {settings['num_candidates']} candidates have no exact solution"
    return (
        f"Score and curvature are not matched exactly: {why}. They differ by {settings['mismatch']:.3g} in units of "
        "the posterior, where 0 is right."
    )
