"""The findings of a comparison in sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pseudocoreset.diagnostics.comparison.findings import Findings
from pseudocoreset.diagnostics.distances.agreement import UNIFORM
from pseudocoreset.formatting import number, with_error

if TYPE_CHECKING:
    from pseudocoreset.coreset import Pseudocoreset

__all__ = ["sentences_of"]


def sentences_of(comparison: Findings, coreset: Pseudocoreset | None = None) -> list[str]:
    """The findings in sentences, each derived from the numbers.

    Args:
        comparison: What ``compare_posteriors`` returned.
        coreset: For its size and mass.

    Returns:
        One sentence or two for each finding.
    """
    sentences = [_size_and_mass(coreset)] if coreset is not None else []
    sentences += _targets(comparison)
    for name in comparison.convergence:
        if name != comparison.reference:
            sentences.append(_quality(comparison, name))
    sentences += [_convergence_sentence(comparison)]
    return [sentence for sentence in sentences if sentence]


def _size_and_mass(coreset: Pseudocoreset) -> str:
    size = f"{coreset.size} points"
    mass = f"the mass of the weights is {coreset.mass:g}"
    if not coreset.num_data:
        return f"The coreset has {size}; {mass}."
    share = coreset.size / coreset.num_data
    scale = coreset.mass / coreset.num_data
    meaning = (
        "the scale of the full-data posterior"
        if abs(scale - 1) < 0.01
        else f"{number(scale)} times the scale of the full-data posterior, so this posterior is "
        + ("wider than" if scale < 1 else "narrower than")
        + " the full-data one can be expected to be"
    )
    return f"The coreset has {size} for {coreset.num_data} data ({share:.2%}); {mass}, {meaning}."


def _targets(comparison: Findings) -> list[str]:
    """What each posterior is a posterior of: total weight of its data, and temperature."""
    sentences = []
    weights = {name: made["total_weight"] for name, made in comparison.settings.items() if "total_weight" in made}
    if weights:
        listed = ", ".join(f"{name!r} {value:g}" for name, value in weights.items())
        sentences.append(f"Total weight of the data behind each posterior: {listed}.")
    tempered = {
        name: made["temperature"] for name, made in comparison.settings.items() if made.get("temperature", 1.0) != 1.0
    }
    if tempered:
        listed = ", ".join(f"{name!r} at temperature {value:g}" for name, value in tempered.items())
        sentences.append(f"Not sampled at temperature 1, the Bayesian posterior: {listed}.")
    return sentences


def _quality(comparison: Findings, name: str) -> str:
    scores = comparison.metrics[name]
    reference = comparison.reference
    against = None if reference is None else comparison.metrics[reference]
    if scores.accuracy is None:
        said = f"{name!r} predicts held-out targets with NLL {with_error(scores.nll, scores.nll_standard_error)}"
        said += "" if scores.rmse is None else f" and RMSE {with_error(scores.rmse, scores.rmse_standard_error)}"
        said += "" if against is None else f" ({reference!r}: NLL {number(against.nll)})"
        found = comparison.agreement.get(name)
        if found is not None and found.mean_difference is not None:
            said += (
                f"; its predicted means are {number(found.mean_difference)} standard deviations of {reference!r} away"
            )
            noise = comparison.noise.get(name)
            if noise is not None and noise.agreement.mean_difference is not None:
                said += "; " + _held_against(found.mean_difference, noise.agreement.mean_difference)
        return " ".join([said + ".", *_against(comparison, name)])
    said = f"{name!r} is right on {scores.accuracy:.1%} of held-out examples with NLL "
    said += with_error(scores.nll, scores.nll_standard_error)
    if against is not None:
        said += f"; {reference!r} on {against.accuracy:.1%} with NLL {number(against.nll)}"
    said += "."
    uniform = comparison.metrics.get(UNIFORM)
    if uniform is not None and scores.nll >= uniform.nll:
        said += f" Its NLL is no better than that of uniform guessing ({number(uniform.nll)})."
    closeness = comparison.agreement.get(name)
    if closeness is not None and closeness.top1 is not None and closeness.total_variation is not None:
        said += f" Both name the same class on {closeness.top1:.1%}"
        if closeness.top1_standard_error is not None and math.isfinite(closeness.top1_standard_error):
            said += f" (± {closeness.top1_standard_error:.1%})"
        said += (
            " of the examples; their probabilities differ by "
            f"{with_error(closeness.total_variation, closeness.total_variation_standard_error)} in total variation"
        )
        noise = comparison.noise.get(name)
        if noise is not None and noise.agreement.total_variation is not None:
            said += "; " + _held_against(closeness.total_variation, noise.agreement.total_variation)
        said += "."
    return " ".join([said, *_against(comparison, name)])


def _held_against(value: float, noise: float) -> str:
    """What two runs of one law would give, and on which side of it this is."""
    side = "within" if value <= noise else "more than"
    return f"98 of 100 pairs of runs of one law stay below {number(noise)}: {side} the noise of sampling"


def _against(comparison: Findings, name: str) -> list[str]:
    """What else is known of one posterior against the reference."""
    return [
        sentence(comparison, name)
        for sentence, rows in (
            (_paired, comparison.differences),
            (_distance, comparison.distances),
            (_moments, comparison.moments),
            (_reweighting, comparison.reweighting),
        )
        if name in rows
    ]


def _paired(comparison: Findings, name: str) -> str:
    gap = comparison.differences[name]
    size = f"{with_error(abs(gap.elpd), gap.elpd_standard_error)} nats over {comparison.num_data} examples"
    if not math.isfinite(gap.elpd) or not math.isfinite(gap.elpd_standard_error):
        return f"Its log predictive density (elpd) differs by {size}."
    noise = comparison.noise.get(name)
    # Over the choice of examples, and over the draws of both.
    if abs(gap.elpd) <= math.hypot(2 * gap.elpd_standard_error, 0.0 if noise is None else noise.elpd):
        runs = "" if noise is None else f", where two runs of one law may differ by {number(noise.elpd)}"
        return f"Their log predictive densities (elpd) cannot be told apart: a difference of {size}{runs}."
    return f"Its log predictive density (elpd) is {'higher' if gap.elpd > 0 else 'lower'} by {size}, error paired."


def _distance(comparison: Findings, name: str) -> str:
    found, noise = comparison.distances[name], comparison.noise.get(name)
    said = (
        "As whole functions, its draws are at a sliced Wasserstein distance of "
        f"{with_error(found.sliced_wasserstein, found.sliced_wasserstein_standard_error)}"
    )
    if noise is None or noise.distances is None:
        return said + "."
    held = _held_against(found.energy, noise.distances.energy)
    return said + f" and an energy distance of {number(found.energy)}; {held}."


def _moments(comparison: Findings, name: str) -> str:
    found = comparison.moments[name]
    at = found.largest
    said = (
        f"Of {len(found.names)} parameters the mean of {found.names[at]} is shifted most, by "
        f"{with_error(float(found.shift[at]), float(found.shift_standard_error[at]))} standard deviations of "
        f"{comparison.reference!r}"
    )
    if found.gaussian is not None:
        error = found.gaussian_standard_error
        said += (
            "; variances are "
            f"{with_error(found.gaussian.variance_ratio, None if error is None else error.variance_ratio)} times those "
            f"of {comparison.reference!r}"
        )
    return said + "."


def _reweighting(comparison: Findings, name: str) -> str:
    found = comparison.reweighting[name]
    can = "can" if found.is_reliable else "cannot"
    return (
        f"Importance weights {can} turn its draws into draws of {comparison.reference!r}: Pareto k "
        f"{with_error(found.pareto_k, found.pareto_k_standard_error)}, up to {number(found.threshold)} may be trusted; "
        f"{number(found.effective_draws, 1)} effective draws of {found.log_weights.size}; the log ratios spread by "
        f"{number(found.spread, 1)} nats."
    )


def _convergence_sentence(comparison: Findings) -> str:
    good = [name for name, row in comparison.convergence.items() if row.is_good]
    unknown = [name for name, row in comparison.convergence.items() if row.is_good is None]
    poor = [name for name in comparison.convergence if name not in good and name not in unknown]
    said = []
    if good:
        said.append(f"The chains of {', '.join(map(repr, good))} agree (R-hat at most 1.01, ESS 100 a chain or more).")
    if poor:
        worst = ", ".join(
            f"{name!r} (R-hat up to {number(comparison.convergence[name].rhat_max)}, "
            f"ESS from {number(comparison.convergence[name].ess_min, 0)})"
            for name in poor
        )
        said.append(
            f"Not converged by the usual standard: {worst}. Read the numbers as those of these runs, not of "
            "the posteriors."
        )
    if unknown:
        said.append(
            f"Convergence cannot be judged for {', '.join(map(repr, unknown))}: it takes two chains or more, "
            "of four draws or more, whose predictions vary."
        )
    divergent = {name: row.num_divergences for name, row in comparison.convergence.items() if row.num_divergences}
    if divergent:
        counts = ", ".join(f"{name!r} {count}" for name, count in divergent.items())
        said.append(f"Divergent transitions: {counts}.")
    errors = {name: row.mcse_max for name, row in comparison.convergence.items() if row.mcse_max is not None}
    if errors:
        listed = ", ".join(f"{name!r} {number(error)}" for name, error in errors.items())
        said.append(f"Largest Monte-Carlo error of an average prediction: {listed}.")
    return " ".join(said)
