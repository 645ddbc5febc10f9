"""Agreement of posteriors: hand-worked values, laws, convergence diagnostics, and what the table prints."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import arviz_stats
import numpy as np
import pytest

from pseudocoreset.diagnostics import Agreement, compare_posteriors, predictive_metrics, to_arviz
from pseudocoreset.inference import Posterior
from pseudocoreset.models import Model


def with_probabilities(tools: SimpleNamespace, probabilities: np.ndarray, y: list[int]) -> tuple:
    """Model, split, and a posterior that predicts probabilities (chain, draw, n, 3) at n unit inputs."""
    n = probabilities.shape[2]
    split = tools.make_split(np.eye(n), np.asarray(y, np.int32))
    model = Model.from_numpyro(tools.softmax).bind(split.x, split.y)
    draws = {"weights": np.log(probabilities), "scale": np.zeros(probabilities.shape[:2])}
    return model, split, tools.make_posterior(model, split, draws)


@pytest.fixture(scope="module")
def other(softmax: tuple[Model, object], tools: SimpleNamespace) -> Posterior:
    return tools.make_posterior(*softmax, tools.random_draws(*softmax, seed=5, spread=1.0))


def test_two_inputs_by_hand(tools: SimpleNamespace) -> None:
    # averages: reference (0.6, 0.3, 0.1), (0.2, 0.7, 0.1); coreset (0.5, 0.3, 0.2), (0.6, 0.2, 0.2)
    reference = np.array([[[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]], [[0.5, 0.4, 0.1], [0.2, 0.7, 0.1]]])[:, None]
    coreset = np.array([[[0.5, 0.3, 0.2], [0.6, 0.2, 0.2]]])[:, None]
    _, split, full = with_probabilities(tools, reference, [0, 1])
    _, _, small = with_probabilities(tools, coreset, [0, 1])
    found = compare_posteriors({"coreset": small, "full": full}, split)

    closeness = found.agreement["coreset"]
    assert closeness.top1 == 0.5
    assert closeness.total_variation == pytest.approx((0.1 + 0.5) / 2, rel=1e-5)
    first = 0.6 * np.log(0.6 / 0.5) + 0.1 * np.log(0.1 / 0.2)
    second = 0.2 * np.log(0.2 / 0.6) + 0.7 * np.log(0.7 / 0.2) + 0.1 * np.log(0.1 / 0.2)
    assert closeness.kl == pytest.approx((first + second) / 2, rel=1e-5)
    # of two values the standard deviation is their distance over sqrt(2)
    assert closeness.top1_standard_error == pytest.approx(0.5)
    assert closeness.total_variation_standard_error == pytest.approx((0.5 - 0.1) / 2, rel=1e-5)
    assert closeness.kl_standard_error == pytest.approx(abs(first - second) / 2, rel=1e-5)
    assert found.noise_floor is None  # two draws do not tell what draws leave open
    assert found.agreement["uniform"].top1 == pytest.approx(1 / 3)
    assert found.metrics["uniform"].accuracy == pytest.approx(1 / 3)
    assert "full" not in found.agreement
    assert found.num_data == 2


def test_a_posterior_agrees_with_itself(softmax: tuple[Model, object], softmax_posterior: Posterior) -> None:
    found = compare_posteriors({"same": softmax_posterior, "full": softmax_posterior}, softmax[1])
    assert found.agreement["same"] == Agreement(top1=1.0, total_variation=0.0, kl=0.0)
    assert found.metrics["same"] == found.metrics["full"] == predictive_metrics(softmax_posterior)


def test_noise_floor_lies_below_a_real_difference_and_above_zero(
    softmax: tuple[Model, object], softmax_posterior: Posterior, other: Posterior
) -> None:
    found = compare_posteriors({"other": other, "full": softmax_posterior}, softmax[1])
    assert found.noise_floor is not None
    assert 0 < found.noise_floor.kl < found.agreement["other"].kl
    assert 0 < found.noise_floor.total_variation < found.agreement["other"].total_variation


def test_distances_of_function_values(
    softmax: tuple[Model, object], softmax_posterior: Posterior, other: Posterior
) -> None:
    found = compare_posteriors(
        {"other": other, "same": softmax_posterior, "full": softmax_posterior}, softmax[1], max_inputs=4
    )
    assert found.distances.keys() == {"other", "same"}
    same, far, floor = found.distances["same"], found.distances["other"], found.distance_floor
    assert floor is not None
    assert same.sliced_wasserstein == pytest.approx(0.0, abs=1e-9)
    # Unbiased estimates of zero: what a draw has with itself is left out of each sample, but not between equal ones.
    assert same.energy < 0
    assert 0 < floor.sliced_wasserstein < far.sliced_wasserstein
    assert abs(floor.energy) < far.energy
    assert abs(floor.mmd) < far.mmd
    assert "sliced Wasserstein" in str(found)


SHIFT = np.array([1.0, -1.0, 0.0])


def test_a_shift_of_the_function_is_its_own_size(tools: SimpleNamespace) -> None:
    """Two draws a posterior; log-probabilities centred over classes move by (1, -1, 0) at the one input."""
    logits = np.array([[0.3, -0.2, 0.1], [0.0, 0.4, -0.5]])
    softened = [np.exp(values) / np.exp(values).sum(-1, keepdims=True) for values in (logits, logits + SHIFT)]
    _, split, full = with_probabilities(tools, softened[0][None, :, None], [0])
    _, _, small = with_probabilities(tools, softened[1][None, :, None], [0])
    found = compare_posteriors({"small": small, "full": full}, split)
    assert found.distance_floor is None  # of two draws
    moved = found.distances["small"]
    assert moved.sliced_wasserstein == pytest.approx(np.sqrt(2 / 3), rel=0.1)  # of 200 directions
    within = 2 * np.linalg.norm(centred(logits[0]) - centred(logits[1]))
    gaps = [np.linalg.norm(centred(a) - centred(b) - SHIFT) for a in logits for b in logits]
    assert moved.energy == pytest.approx((2 * np.mean(gaps) - within) / np.sqrt(3), rel=1e-4)


def centred(logits: np.ndarray) -> np.ndarray:
    return logits - logits.mean()


def test_noise_floor_of_one_chain_comes_from_its_draws(tools: SimpleNamespace) -> None:
    random = np.random.default_rng(3)
    one_chain = random.dirichlet((20.0, 10.0, 5.0), (1, 400, 1))
    _, split, full = with_probabilities(tools, one_chain, [0])
    found = compare_posteriors({"full": full}, split)
    again = 0.5 * np.abs(
        random.dirichlet((20.0, 10.0, 5.0), (500, 400)).mean(1)
        - random.dirichlet((20.0, 10.0, 5.0), (500, 400)).mean(1)
    ).sum(-1)
    assert found.noise_floor is not None
    assert found.noise_floor.total_variation == pytest.approx(np.quantile(again, 0.98), rel=0.25)
    assert found.convergence["full"].rhat_max is None
    _, split, single = with_probabilities(tools, one_chain[:, :1], [0])
    alone = compare_posteriors({"full": single}, split)
    assert alone.noise_floor is None
    assert "one law" not in str(alone)


def test_kl_survives_probabilities_that_float32_calls_zero(tools: SimpleNamespace) -> None:
    model, split, full = with_probabilities(tools, np.full((1, 1, 1, 3), 1 / 3), [0])
    draws = {"weights": np.array([[[[0.0, -300.0, 0.0]]]]), "scale": np.zeros((1, 1))}
    confident = tools.make_posterior(model, split, draws)
    found = compare_posteriors({"confident": confident, "full": full}, split)
    expected = (2 * np.log((1 / 3) / 0.5) + np.log(1 / 3) + 300 + np.log(2)) / 3
    assert found.agreement["confident"].kl == pytest.approx(expected, rel=1e-5)


def test_regression_by_definition(tools: SimpleNamespace) -> None:
    random = np.random.default_rng(5)
    split = tools.make_split(random.standard_normal((40, 2)), random.standard_normal(40).astype(np.float32))
    model = Model.from_numpyro(tools.linear).bind(split.x, split.y)
    full = tools.make_posterior(model, split, tools.random_draws(model, split, seed=2))
    small = tools.make_posterior(model, split, tools.random_draws(model, split, seed=3, spread=0.6))
    found = compare_posteriors({"coreset": small, "full": full}, split)
    p, q = (values.function_values[..., 0].astype(float) for values in (full, small))
    gap = p.mean((0, 1)) - q.mean((0, 1))
    ratio = p.var((0, 1)) / q.var((0, 1))
    kl = 0.5 * (ratio - 1 - np.log(ratio) + gap**2 / q.var((0, 1)))
    closeness = found.agreement["coreset"]
    assert closeness.mean_difference == pytest.approx(np.mean(np.abs(gap) / p.std((0, 1))), rel=1e-4)
    assert closeness.kl == pytest.approx(kl.mean(), rel=1e-4)
    assert closeness.top1 is None
    assert set(found.metrics) == {"coreset", "full"}
    assert "RMSE" in str(found)
    assert "accuracy" not in str(found)
    itself = compare_posteriors({"same": full, "full": full}, split)
    assert itself.agreement["same"].mean_difference == 0
    assert itself.agreement["same"].kl == pytest.approx(0, abs=1e-12)


def test_a_posterior_from_another_split_is_evaluated_again(
    softmax: tuple[Model, object], softmax_posterior: Posterior, other: Posterior, tools: SimpleNamespace
) -> None:
    _, split = softmax
    part = split.head(20)
    direct = compare_posteriors({"other": other.evaluate(part), "full": softmax_posterior.evaluate(part)}, part)
    again = compare_posteriors({"other": other, "full": softmax_posterior}, part)
    pair = compare_posteriors({"other": other, "full": softmax_posterior}, (part.raw, part.y))
    assert direct.as_dict() == again.as_dict() == pair.as_dict()
    assert again.num_data == 20
    bare = tools.without_weights(other)
    # an equal copy of the split it was evaluated on is no other split
    copy = split.subset(np.arange(split.num_data))
    assert compare_posteriors({"bare": bare}, copy, reference=None).num_data == split.num_data
    with pytest.raises(ValueError, match=r"'bare'.*keep='weights'"):
        compare_posteriors({"bare": bare, "full": softmax_posterior}, part)


def test_same_inputs_with_other_labels_are_another_split(
    softmax: tuple[Model, object], other: Posterior, tools: SimpleNamespace
) -> None:
    _, split = softmax
    relabelled = tools.make_split(split.raw, ((split.y + 1) % 3).astype(np.int32))
    with pytest.raises(ValueError, match="'bare'"):
        compare_posteriors({"bare": tools.without_weights(other)}, relabelled, reference=None)
    scores = compare_posteriors({"other": other}, relabelled, reference=None).metrics["other"]
    assert scores == predictive_metrics(other, relabelled.y)


def test_convergence_is_what_arviz_says(softmax: tuple[Model, object], softmax_posterior: Posterior) -> None:
    found = compare_posteriors({"full": softmax_posterior}, softmax[1]).convergence["full"]
    tree = to_arviz(softmax_posterior)
    probabilities = tree["posterior/probabilities"]
    # the two most probable of three classes
    order = np.argsort(-probabilities.mean(("chain", "draw")).values, axis=-1)[:, :2]
    doubles = probabilities.astype(float).to_dataset()
    rhat = np.take_along_axis(arviz_stats.rhat(doubles)["probabilities"].values, order, -1)
    mcse = np.take_along_axis(arviz_stats.mcse(doubles)["probabilities"].values, order, -1)
    ess = np.take_along_axis(arviz_stats.ess(doubles)["probabilities"].values, order, -1)
    assert found.rhat_max == pytest.approx(rhat.max(), rel=1e-4)
    assert found.rhat_median == pytest.approx(np.median(rhat), rel=1e-4)
    assert found.ess_min == pytest.approx(ess.min(), rel=1e-4)
    assert found.ess_median == pytest.approx(np.median(ess), rel=1e-4)
    assert found.mcse_max == pytest.approx(mcse.max(), rel=1e-4)
    assert found.mcse_median == pytest.approx(np.median(mcse), rel=1e-4)
    assert found.num_quantities == 120
    # independent draws
    assert found.rhat_max < 1.1


def test_chains_that_never_meet_are_found_out(softmax: tuple[Model, object], tools: SimpleNamespace) -> None:
    draws = tools.random_draws(*softmax, seed=1)
    draws["weights"][0] += 4.0 * np.array([1, 0, -1])
    found = compare_posteriors({"full": tools.make_posterior(*softmax, draws)}, softmax[1]).convergence["full"]
    assert found.rhat_max is not None
    assert found.rhat_max > 1.5
    assert found.is_good is False


def test_constant_predictions_are_counted_and_stuck_chains_found_out(
    softmax: tuple[Model, object], tools: SimpleNamespace
) -> None:
    draws = {name: np.repeat(v[:, :1], 20, 1) for name, v in tools.random_draws(*softmax, seed=1).items()}
    stuck = compare_posteriors({"full": tools.make_posterior(*softmax, draws)}, softmax[1]).convergence["full"]
    assert stuck.rhat_max is not None
    assert stuck.rhat_max > 1e6
    assert stuck.is_good is False
    still = {name: np.repeat(v[:1], 4, 0) for name, v in draws.items()}
    found = compare_posteriors({"full": tools.make_posterior(*softmax, still)}, softmax[1]).convergence["full"]
    assert found.num_constant == found.num_quantities
    assert found.rhat_max is None
    assert found.is_good is None


def test_divergences_are_counted(softmax: tuple[Model, object], tools: SimpleNamespace) -> None:
    draws = tools.random_draws(*softmax, seed=1)
    diverging = np.zeros((4, 50), bool)
    diverging[1, 3:6] = True
    posterior = tools.make_posterior(*softmax, draws, sample_stats={"diverging": diverging})
    assert compare_posteriors({"full": posterior}, softmax[1]).convergence["full"].num_divergences == 3


def test_without_reference_there_are_scores_alone(softmax: tuple[Model, object], softmax_posterior: Posterior) -> None:
    found = compare_posteriors({"mine": softmax_posterior}, softmax[1], reference=None)
    assert found.agreement == {}
    assert found.noise_floor is None
    assert "Agreement" not in str(found)
    assert set(found.metrics) == {"mine", "uniform"}


def test_what_is_printed(run: dict[str, Posterior], network: Model, images: object) -> None:
    found = compare_posteriors(run, images.test)
    text = str(found)
    lines = text.splitlines()
    assert repr(found) == text
    header = next(i for i, line in enumerate(lines) if "accuracy" in line)
    # numbers are aligned to the right under their columns
    assert len({len(line) for line in lines[header : header + 4]}) == 1
    assert [line.split()[0] for line in lines[header + 1 : header + 4]] == ["coreset", "full", "uniform"]
    assert f"{found.metrics['coreset'].accuracy:.3f} ± " in text
    assert "two runs of one law" in text
    assert max(len(line) for line in lines) <= 110
    table = found._repr_html_()
    assert table.count("<table>") == 5
    assert f"{found.metrics['full'].nll:.3f}" in table


def test_json_holds_everything_but_predictions(run: dict[str, Posterior], network: Model, images: object) -> None:
    found = compare_posteriors(run, images.test)
    content = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert content["metrics"]["full"]["nll"] == found.metrics["full"].nll
    assert content["agreement"]["coreset"]["kl"] == found.agreement["coreset"].kl
    assert content["noise_floor"]["kl"] == found.noise_floor.kl == found.noise["coreset"].agreement.kl
    assert content["convergence"]["full"]["num_chains"] == 2
    assert content["settings"]["coreset"]["kernel"] == run["coreset"].metadata["kernel"]


def test_bad_arguments(softmax: tuple[Model, object], softmax_posterior: Posterior, images: object) -> None:
    _, split = softmax
    with pytest.raises(ValueError, match=r"reference='full'.*\['mine'\].*reference=None"):
        compare_posteriors({"mine": softmax_posterior}, split)
    with pytest.raises(ValueError, match="empty"):
        compare_posteriors({}, split)
    with pytest.raises(ValueError, match="'uniform' is taken"):
        compare_posteriors({"uniform": softmax_posterior}, split, reference=None)
    with pytest.raises(TypeError, match=r"Split.*got Dataset"):
        compare_posteriors({"full": softmax_posterior}, images)


def test_posteriors_of_another_model_are_refused(
    softmax: tuple[Model, object], softmax_posterior: Posterior, tools: SimpleNamespace
) -> None:
    _, split = softmax
    named = replace(softmax_posterior, metadata={"model": "probit"})
    with pytest.raises(ValueError, match=r"'full' is of the model 'probit'.*as one of 'softmax_program'"):
        compare_posteriors({"full": named}, split)
    sites = replace(softmax_posterior, metadata={"sites": {"weights": [3, 3]}}, unconstrained=None)
    with pytest.raises(ValueError, match=r"with the sites \{'weights': \[3, 3\]\}"):
        compare_posteriors({"full": sites}, split)
