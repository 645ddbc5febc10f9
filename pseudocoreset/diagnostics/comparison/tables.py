"""The tables that a comparison prints as, each with a note on how to read it."""

from __future__ import annotations

from typing import Any

import numpy as np

from pseudocoreset.diagnostics.comparison.findings import Findings
from pseudocoreset.diagnostics.distances.agreement import UNIFORM
from pseudocoreset.diagnostics.predictions.differences import compared_scores, held_out_elpd
from pseudocoreset.diagnostics.predictions.scores import SCORES
from pseudocoreset.formatting import MISSING, Table, number, with_error

__all__ = ["tables_with_notes"]

FLOOR = "two runs of one law"


def tables_with_notes(comparison: Findings) -> list[tuple[Table, str]]:
    """Tables of a comparison, those that have something to say, and a note on each.

    Args:
        comparison: What ``compare_posteriors`` returned.
    """
    tables = [_metrics(comparison)]
    if comparison.reference is not None:
        tables += [_agreement(comparison)]
    if comparison.differences:
        tables += [_differences(comparison)]
    if comparison.distances:
        tables += [_distances(comparison)]
    if comparison.moments:
        tables += [_moments(comparison)]
    if comparison.reweighting:
        tables += [_reweighting(comparison)]
    return [*tables, _convergence(comparison)]


def _cell(row: Any, name: str) -> str:
    return with_error(getattr(row, name), getattr(row, f"{name}_standard_error"))


def _metrics(comparison: Findings) -> tuple[Table, str]:
    heading = f"Predictions on {comparison.num_data} held-out examples, averaged over draws (± standard error)"
    held = comparison.metrics.values()
    titles = {name: score.title for name, score in SCORES.items() if any(name in row.scores for row in held)}
    rows = [
        [name, *(_cell(row, field) for field in titles), number(row.num_draws)]
        for name, row in comparison.metrics.items()
    ]
    note = (
        "Predictions are averaged over all draws of all chains before they are scored. NLL is the mean of "
        "-log of the probability given to the truth, in nats; lower is better. “NLL of one draw” is what a "
        "single draw scores on average. Standard errors are over the choice of held-out examples."
    )
    if comparison.is_classification:
        note += (
            f" ECE is the expected calibration error; “{UNIFORM}” gives every class the same probability: what is "
            "worth knowing has to beat it."
        )
    return (heading, [*titles.values(), "draws"], rows), note


def _with_floor(rows: dict[str, Any], floor: Any) -> dict[str, Any]:
    return rows if floor is None else {**rows, FLOOR: floor}


def _said_floor(floor: Any) -> str:
    return "" if floor is None else " (last row: the noise floor)"


def _agreement(comparison: Findings) -> tuple[Table, str]:
    titles = (
        {"top1": "same top class", "total_variation": "total variation", "kl": "KL"}
        if comparison.is_classification
        else {"mean_difference": "difference of means", "kl": "KL"}
    )
    named = _with_floor(comparison.agreement, comparison.noise_floor)
    rows = [[name, *(_cell(row, field) for field in titles)] for name, row in named.items()]
    note = (
        f"How close the predictions are to those of “{comparison.reference}”. The last row is what 98 of 100 pairs of "
        "runs of one law stay below (above, for the top class), with as many draws as the reference and, of these "
        "posteriors, the one whose draws leave most open: no coreset can be shown to do better."
    )
    return (
        f"Agreement with {comparison.reference!r}{_said_floor(comparison.noise_floor)}",
        [*titles.values()],
        rows,
    ), note


def _differences(comparison: Findings) -> tuple[Table, str]:
    held = comparison.differences.values()
    titles = {name: SCORES[name].title for name in compared_scores() if any(name in row.scores for row in held)}
    titles = {"elpd": "elpd", **titles}
    is_finite = all(np.isfinite(row.log_likelihood).all() for row in comparison.predictions.values())
    weights = held_out_elpd(comparison.predictions)["weight"] if is_finite else {}

    def weight(name: str) -> str:
        return number(float(weights[name])) if is_finite else MISSING

    rows = [
        [name, *(_cell(row, field) for field in titles), weight(name)] for name, row in comparison.differences.items()
    ]
    rows.append([str(comparison.reference), *(MISSING for _ in titles), weight(str(comparison.reference))])
    heading = f"Scores less those of {comparison.reference!r} on the same examples (± paired standard error)"
    note = (
        "elpd, the expected log predictive density, is the sum over the held-out examples of the log of the "
        "probability given to the truth: minus NLL, times their number, so that above zero is better. Errors are of "
        "the differences example by example. “weight” is the share of each in the mixture of all that predicts these "
        "examples best (stacking)."
    )
    return (heading, [*titles.values(), "weight"], rows), note


def _distances(comparison: Findings) -> tuple[Table, str]:
    titles = {"sliced_wasserstein": "sliced Wasserstein", "energy": "energy", "mmd": "MMD squared"}
    named = _with_floor(comparison.distances, comparison.distance_floor)
    rows = [[name, *(_cell(row, field) for field in titles)] for name, row in named.items()]
    heading = f"Distances of function values from {comparison.reference!r}, all inputs at once"
    note = (
        "Agreement is of averages over draws; these are distances of the draws themselves, whole functions at all "
        "inputs at once. A shift of every function value by one is a sliced Wasserstein distance of one. Estimates "
        "of the other two are unbiased, and may be a little below zero where posteriors are close. Standard errors are "
        "over draws, a chain or a part of one left out at a time. The last row is as for agreement."
    )
    return (heading + _said_floor(comparison.distance_floor), [*titles.values()], rows), note


def _moments(comparison: Findings) -> tuple[Table, str]:
    reference = comparison.reference
    columns = ["largest shift", "RMS shift", "variance ratio", f"KL({reference}, .)", f"KL(., {reference})"]
    rows = []
    floor = comparison.moment_floor
    halves = {} if floor is None else {f"{reference}, half against half": floor}
    for name, row in {**comparison.moments, **halves}.items():
        at = row.largest
        fit, error = row.gaussian, row.gaussian_standard_error
        fields = ("mean_difference", "variance_ratio", "forward", "reverse")
        rows.append(
            [
                name,
                with_error(float(row.shift[at]), float(row.shift_standard_error[at])),
                *(
                    with_error(
                        None if fit is None else getattr(fit, field), None if error is None else getattr(error, field)
                    )
                    for field in fields
                ),
            ]
        )
    heading = f"Parameters against those of {reference!r}, unconstrained"
    note = (
        "Shifts of means are in standard deviations of the reference: the largest of all parameters with its "
        "Monte-Carlo error, and the root mean square. The ratio of variances to those of the reference is a geometric "
        "mean; KL is between Gaussians of the same means and covariances, in nats. Errors of the last four leave out a "
        "chain or a part of one at a time; too few draws for the number of parameters leave a dash. The last row holds "
        "one half of the reference's chains against the other."
    )
    return (heading, columns, rows), note


def _reweighting(comparison: Findings) -> tuple[Table, str]:
    rows = [
        [
            name,
            with_error(row.pareto_k, row.pareto_k_standard_error),
            number(row.threshold),
            number(row.spread, 1),
            number(row.effective_draws, 1),
            number(row.log_weights.size),
            "yes" if row.is_reliable else "no",
        ]
        for name, row in comparison.reweighting.items()
    ]
    columns = ["Pareto k", "may be up to", "spread (nats)", "effective draws", "draws", "reliable"]
    note = (
        "Draws of a posterior can be weighted to be draws of the reference's. The tail index k of the weights says "
        "whether averages under them may be trusted; from 1 on the two posteriors hardly overlap where the draws "
        "are. The spread is the standard deviation of the log ratios over draws: posteriors tens of nats apart are far "
        "from each other."
    )
    return (f"Importance weights to {comparison.reference!r}", columns, rows), note


def _convergence(comparison: Findings) -> tuple[Table, str]:
    columns = ["R-hat max", "R-hat median", "ESS min", "ESS median", "MCSE max", "chains", "draws", "divergences"]
    rows = [
        [
            name,
            number(row.rhat_max),
            number(row.rhat_median),
            number(row.ess_min, 0),
            number(row.ess_median, 0),
            number(row.mcse_max),
            number(row.num_chains),
            number(row.num_draws),
            number(row.num_divergences),
        ]
        for name, row in comparison.convergence.items()
    ]
    note = (
        "Chains are judged by what they predict, not by weights, whose symmetries would hide agreement. "
        "R-hat near 1 means that chains agree; ESS is how many independent draws they are worth, and MCSE how far the "
        "average of an infinite run may still be from that of this one, for the prediction where it is largest."
    )
    return ("Convergence of predictions (good: R-hat at most 1.01, ESS at least 100 a chain)", columns, rows), note
