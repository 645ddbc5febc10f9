"""Means, variances and Gaussian fits of the parameters, for models of few of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pseudocoreset.arguments import checked
from pseudocoreset.diagnostics.distances.gaussian import GaussianDivergences, gaussian_divergences
from pseudocoreset.diagnostics.distances.groups import draw_groups, halves, jackknife
from pseudocoreset.formatting import Table, json_values, text_table, with_error
from pseudocoreset.inference.posterior.model import model_of

if TYPE_CHECKING:
    from pseudocoreset.inference import Posterior

__all__ = ["MAX_PARAMETERS", "Moments", "compare_moments", "moments_of_all", "parameter_names"]

MAX_PARAMETERS = 200


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Moments of parameters under one posterior against those under the reference, on the unconstrained scale.

    Standard errors are Monte-Carlo errors of the finite chains; NaN where a parameter does not move.

    Attributes:
        names: (k,) parameters, ``site[index]``.
        shift: (k,) mean less that of the reference, in standard deviations of the reference.
        shift_standard_error: (k,).
        variance_ratio: (k,) variance over that of the reference.
        variance_ratio_standard_error: (k,).
        gaussian: KL divergences between the Gaussians of the same moments (``forward`` from the reference), the root
            mean square of the shifts, and the geometric mean of the ratios; None for too few draws.
        gaussian_standard_error: By leaving out chains; None for too few draws.
    """

    names: tuple[str, ...]
    shift: np.ndarray
    shift_standard_error: np.ndarray
    variance_ratio: np.ndarray
    variance_ratio_standard_error: np.ndarray
    gaussian: GaussianDivergences | None
    gaussian_standard_error: GaussianDivergences | None

    @property
    def largest(self) -> int:
        """Position of the parameter whose mean is shifted most."""
        return int(np.argmax(np.abs(np.nan_to_num(self.shift))))

    @checked
    def table(self, heading: str = "Parameters: shifts of means in standard deviations of the reference") -> Table:
        """One row a parameter."""
        columns = zip(
            self.names,
            self.shift,
            self.shift_standard_error,
            self.variance_ratio,
            self.variance_ratio_standard_error,
            strict=True,
        )
        rows = [[name, with_error(a, b), with_error(c, d)] for name, a, b, c, d in columns]
        return heading, ["shift of the mean", "ratio of variances"], rows

    def as_dict(self) -> dict[str, Any]:
        """The values by name, ready for JSON."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("gaussian", "gaussian_standard_error"):
            content[name] = None if content[name] is None else content[name]._asdict()
        return json_values(content)

    def __str__(self) -> str:
        return text_table(self.table())

    __repr__ = __str__


def parameter_names(sites: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """``site[index]`` of every element of (chain, draw, ...) arrays, in the order of the sites."""
    names: list[str] = []
    for site, array in sites.items():
        for index in np.ndindex(array.shape[2:]):
            names.append(site + (f"[{', '.join(map(str, index))}]" if index else ""))
    return tuple(names)


@checked
def compare_moments(
    reference: Posterior,
    other: Posterior,
    *,
    parts: tuple[tuple[slice, slice], tuple[slice, slice]] = ((slice(None), slice(None)),) * 2,
) -> Moments:
    """Moments of the parameters of one posterior against those of another.

    Args:
        reference: Draws that kept their weights.
        other: Draws of the same sites.
        parts: Chains and draws used, of either.

    Raises:
        ValueError: The weights were not kept, or the sites differ.
    """
    for name, posterior in (("reference", reference), ("other", other)):
        if posterior.unconstrained is None:
            raise ValueError(f"{name} did not keep its weights; sample with keep='weights'")
    sites = {site: np.asarray(array) for site, array in sorted((reference.unconstrained or {}).items())}
    others = {site: np.asarray(array) for site, array in sorted((other.unconstrained or {}).items())}
    shapes, other_shapes = ({site: a.shape[2:] for site, a in group.items()} for group in (sites, others))
    if shapes != other_shapes:
        raise ValueError(f"other has the sites {other_shapes}; those of the reference are {shapes}")

    x, y = (_flat(group, *part) for group, part in zip((sites, others), parts, strict=True))
    flat_x, flat_y = (draws.reshape(-1, draws.shape[-1]) for draws in (x, y))
    deviation = flat_x.std(0, ddof=1) if len(flat_x) > 1 else np.full(flat_x.shape[1], np.nan)
    other_deviation = flat_y.std(0, ddof=1) if len(flat_y) > 1 else np.full(flat_x.shape[1], np.nan)
    errors, deviation_errors = zip(*map(_monte_carlo_errors, (x, y)), strict=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (other_deviation / deviation) ** 2
        # d log variance = 2 d deviation / deviation
        relative = 2 * np.hypot(deviation_errors[0] / deviation, deviation_errors[1] / other_deviation)
        shift = (flat_y.mean(0) - flat_x.mean(0)) / deviation
        shift_error = np.hypot(*errors) / deviation
    gaussian, gaussian_error = _gaussian(flat_x, flat_y, (draw_groups(*x.shape[:2]), draw_groups(*y.shape[:2])))
    return Moments(
        names=parameter_names(sites),
        shift=shift,
        shift_standard_error=shift_error,
        variance_ratio=ratio,
        variance_ratio_standard_error=ratio * relative,
        gaussian=gaussian,
        gaussian_standard_error=gaussian_error,
    )


def moments_of_all(posteriors: Mapping[str, Posterior], reference: str) -> tuple[dict[str, Moments], Moments | None]:
    """Moments of all posteriors against those of the reference, and of its second half against its first.

    Empty for networks, whose weights have symmetries, for more than ``MAX_PARAMETERS`` parameters, and where the
    reference did not keep its weights; a posterior that did not, or has one draw, is left out.
    """
    full = posteriors[reference]

    def usable(posterior: Posterior) -> bool:
        return posterior.unconstrained is not None and posterior.num_chains * posterior.num_draws > 1

    if model_of(full).is_network or not usable(full) or len(parameter_names(full.unconstrained or {})) > MAX_PARAMETERS:
        return {}, None
    found = {
        name: compare_moments(full, posterior)
        for name, posterior in posteriors.items()
        if name != reference and usable(posterior)
    }
    parts = halves(full)
    return found, None if parts is None else compare_moments(full, full, parts=(parts[0], parts[1]))


def _flat(sites: Mapping[str, np.ndarray], chains: slice, draws: slice) -> np.ndarray:
    """(chain, draw, parameter), float64."""
    parts = [array[chains, draws] for array in sites.values()]
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=-1).astype(np.float64)


def _monte_carlo_errors(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Monte-Carlo standard errors of the means and of the standard deviations, by arviz-stats."""
    import arviz_base
    import arviz_stats

    tree = arviz_base.from_dict({"posterior": {"parameter": draws}}, check_conventions=False)
    # a parameter that never moves has none
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, deviation = (np.asarray(arviz_stats.mcse(tree, method=kind)["parameter"]) for kind in ("mean", "sd"))
    return mean, deviation


def _gaussian(
    x: np.ndarray, y: np.ndarray, groups: tuple[np.ndarray, np.ndarray]
) -> tuple[GaussianDivergences | None, GaussianDivergences | None]:
    """Gaussian fits and their errors; None for too few draws, or a parameter that does not move."""
    least = x.shape[1] + 1
    if min(len(x), len(y)) <= least:
        return None, None

    def values(keep_x: np.ndarray, keep_y: np.ndarray) -> np.ndarray:
        return np.array(gaussian_divergences(x[keep_x[groups[0]]], y[keep_y[groups[1]]]))

    left = min(len(draws) - np.bincount(labels).max() for draws, labels in zip((x, y), groups, strict=True))
    try:
        whole = gaussian_divergences(x, y)
        errors = jackknife(values, groups) if left > least else None
    except np.linalg.LinAlgError:  # a covariance without inverse
        return None, None
    return whole, None if errors is None else GaussianDivergences(*errors.tolist())
