"""The findings of a comparison in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pseudocoreset.diagnostics.agreement import UNIFORM, Comparison
from pseudocoreset.diagnostics.formatting import number

if TYPE_CHECKING:
    from pseudocoreset.coreset import Pseudocoreset

__all__ = ["verdict"]


def verdict(comparison: Comparison, coreset: Pseudocoreset | None = None) -> list[str]:
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


def _targets(comparison: Comparison) -> list[str]:
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


def _quality(comparison: Comparison, name: str) -> str:
    scores = comparison.metrics[name]
    reference = comparison.reference
    against = None if reference is None else comparison.metrics[reference]
    if scores.accuracy is None:
        said = f"{name!r} predicts held-out targets with NLL {number(scores.nll)}"
        said += "" if scores.rmse is None else f" and RMSE {number(scores.rmse)}"
        said += "" if against is None else f" ({reference!r}: NLL {number(against.nll)})"
        difference = None if reference is None else comparison.agreement[name].mean_difference
        if difference is not None:
            said += f"; its predicted means are {number(difference)} standard deviations of {reference!r} away"
        return said + "."
    said = f"{name!r} is right on {scores.accuracy:.1%} of held-out examples with NLL {number(scores.nll)}"
    if against is not None:
        said += f"; {reference!r} on {against.accuracy:.1%} with NLL {number(against.nll)}"
    said += "."
    uniform = comparison.metrics.get(UNIFORM)
    if uniform is not None and scores.nll >= uniform.nll:
        said += f" Its NLL is no better than that of uniform guessing ({number(uniform.nll)})."
    closeness = comparison.agreement.get(name)
    if closeness is not None and closeness.top1 is not None and closeness.total_variation is not None:
        said += (
            f" Both name the same class on {closeness.top1:.1%} of the examples; their probabilities "
            f"differ by {number(closeness.total_variation)} in total variation"
        )
        floor = comparison.noise_floor
        if floor is not None and floor.total_variation is not None:
            said += f", where two halves of {reference!r} differ by {number(floor.total_variation)}: " + (
                "within the noise of sampling"
                if closeness.total_variation <= floor.total_variation
                else "more than the noise of sampling"
            )
        said += "."
    return said


def _convergence_sentence(comparison: Comparison) -> str:
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
    return " ".join(said)
