"""Paired differences of scores and held-out elpd: definitions, laws, and what the errors are worth."""

from __future__ import annotations

import json
from types import SimpleNamespace

import arviz_plots
import numpy as np
import pytest
from matplotlib import pyplot

from pseudocoreset.diagnostics import (
    Comparison,
    Comparisons,
    compare_posteriors,
    held_out_elpd,
    plot_comparison,
    predictive_metrics,
)
from pseudocoreset.diagnostics.predictions.predictive import predict_from_probabilities
from pseudocoreset.inference import Posterior
from pseudocoreset.models import Model


@pytest.fixture(scope="module")
def other(softmax: tuple[Model, object], tools: SimpleNamespace) -> Posterior:
    return tools.make_posterior(*softmax, tools.random_draws(*softmax, seed=5, spread=1.0))


@pytest.fixture(scope="module")
def comparison(softmax: tuple[Model, object], softmax_posterior: Posterior, other: Posterior) -> Comparison:
    return compare_posteriors({"other": other, "full": softmax_posterior}, softmax[1], max_inputs=5)


def test_differences_are_paired(comparison: Comparison) -> None:
    p, q = (comparison.predictions[name] for name in ("full", "other"))
    n = comparison.num_data
    found = comparison.differences["other"]
    gap = q.log_likelihood - p.log_likelihood
    assert found.elpd == pytest.approx(gap.sum())
    assert found.elpd_standard_error == pytest.approx(np.sqrt(n) * gap.std(ddof=1))
    one_hot = np.eye(3)[p.y]
    brier = ((q.probabilities - one_hot) ** 2).sum(-1) - ((p.probabilities - one_hot) ** 2).sum(-1)
    assert (found.brier, found.brier_standard_error) == pytest.approx((brier.mean(), brier.std(ddof=1) / np.sqrt(n)))
    for name in ("accuracy", "brier", "ece"):
        scores = [getattr(comparison.metrics[row], name) for row in ("other", "full")]
        assert getattr(found, name) == pytest.approx(scores[0] - scores[1])
    assert comparison.differences.keys() == {"other", "uniform"}
    uniform = comparison.differences["uniform"]
    assert uniform.elpd == pytest.approx(-n * np.log(3) - p.log_likelihood.sum())


def test_equal_predictions_differ_by_nothing_for_certain(
    softmax: tuple[Model, object], softmax_posterior: Posterior
) -> None:
    same = compare_posteriors({"same": softmax_posterior, "full": softmax_posterior}, softmax[1], max_inputs=5)
    found = same.differences["same"]
    assert (found.elpd, found.elpd_standard_error, found.ece, found.ece_standard_error) == (0, 0, 0, 0)
    assert same.metrics["same"].nll_standard_error > 0
    assert "cannot be told apart: a difference of 0.000 ± 0.000 nats over 60 examples" in str(same).replace("\n", " ")


def test_elpd_is_arviz_s_table(comparison: Comparison) -> None:
    table = comparison.elpd()
    assert {"rank", "elpd", "p", "elpd_diff", "weight", "se", "dse"} <= set(table.columns)
    n = comparison.num_data
    for name, row in comparison.predictions.items():
        assert table.loc[name, "elpd"] == pytest.approx(row.log_likelihood.sum())
        assert table.loc[name, "se"] == pytest.approx(np.sqrt(n) * row.log_likelihood.std())
    assert table["elpd"].is_monotonic_decreasing
    best = comparison.predictions[table.index[0]].log_likelihood
    worst = comparison.predictions[table.index[-1]].log_likelihood
    assert abs(table["elpd_diff"].iloc[-1]) == pytest.approx((best - worst).sum())
    assert table["dse"].iloc[-1] == pytest.approx(np.sqrt(n) * (best - worst).std())
    collection = arviz_plots.plot_compare(table, backend="matplotlib")
    pyplot.close(collection.viz["figure"].item())


def test_stacking_weights_do_not_underflow() -> None:
    """Of two predictions, each right half of the time, whatever the densities are multiplied by."""
    y = np.arange(40) % 2
    left = np.tile([0.9, 0.1], (40, 1))
    rows = {"left": predict_from_probabilities(left, y), "right": predict_from_probabilities(left[:, ::-1], y)}
    tiny = {
        name: type(row)(**{**vars(row), "log_likelihood": row.log_likelihood - 2000.0}) for name, row in rows.items()
    }
    for table in (held_out_elpd(rows), held_out_elpd(tiny)):
        np.testing.assert_allclose(table["weight"], 0.5, atol=1e-4)
        np.testing.assert_allclose(table["elpd_diff"], 0.0, atol=1e-9)
    assert held_out_elpd(tiny)["elpd"].iloc[0] == pytest.approx(20 * np.log(0.09) - 80_000)


def test_a_probability_of_zero_has_no_elpd(tools: SimpleNamespace) -> None:
    impossible = predict_from_probabilities(np.array([[0.0, 1.0], [0.5, 0.5]]), [0, 1])
    with pytest.raises(ValueError, match="'sure' gives held-out examples a probability of zero"):
        held_out_elpd({"sure": impossible})


def test_standard_errors_of_the_calibration_error_and_its_difference_are_true() -> None:
    """Against the spread over 1,000 data sets of 500 examples; confidence is too high, so that no gap is near zero.

    Errors a fifth too small would be found in 97 % of cases.
    """
    random = np.random.default_rng(0)
    scores, errors = [], []
    for _ in range(1000):
        confidence = random.choice([0.7, 0.8, 0.9], 500)
        y = (random.uniform(size=500) > confidence - 0.2).astype(int)  # class 0 is right 0.2 less often
        found = predictive_metrics(np.stack([confidence, 1 - confidence], -1), y)
        scores.append(found.ece)
        errors.append(found.ece_standard_error)
    # the standard deviation of 1,000 is known to 1 / sqrt(2 * 1000) of itself
    assert np.mean(errors) / np.std(scores) == pytest.approx(1, abs=4.5 / np.sqrt(2000))
    assert np.mean(scores) == pytest.approx(0.2, abs=4.5 * np.std(scores) / np.sqrt(1000))


def test_standard_error_of_rmse_is_true(tools: SimpleNamespace) -> None:
    random = np.random.default_rng(1)
    split = tools.make_split(random.standard_normal((300, 1)), random.standard_normal(300).astype(np.float32))
    model = Model.from_numpyro(tools.linear).bind(split.x, split.y)
    posterior = tools.make_posterior(model, split, tools.random_draws(model, split, seed=2, num_draws=2))
    found = compare_posteriors({"full": posterior}, split, reference=None, max_inputs=5)
    row = found.predictions["full"]
    squares = ((row.mean[:, 0] - split.y) ** 2).astype(float)
    resampled = np.sqrt(squares[random.integers(0, 300, (4000, 300))].mean(1))  # the bootstrap
    # the linearisation is good to a few hundredths at 300 examples, and the bootstrap to 1 / sqrt(8000)
    assert found.metrics["full"].rmse_standard_error == pytest.approx(resampled.std(), rel=0.1)


def test_several_splits(softmax: tuple[Model, object], softmax_posterior: Posterior, other: Posterior, tools) -> None:
    _, split = softmax
    shifted = (split.raw[:20] + 1.0, split.y[:20])
    posteriors = {"other": other, "full": softmax_posterior}
    both = compare_posteriors(posteriors, {"test": split, "shifted": shifted}, max_inputs=5)
    assert isinstance(both, Comparisons)
    assert list(both) == ["test", "shifted"]
    assert len(both) == 2
    assert (
        both["shifted"].as_dict()["metrics"]
        == (compare_posteriors(posteriors, shifted, max_inputs=5).as_dict()["metrics"])
    )
    assert both["shifted"].num_data == 20
    # parameters do not depend on the split
    assert both["test"].moments.keys() == {"other"}
    assert both["shifted"].moments == {}
    text = str(both)
    assert text.index("==== test ====") < text.index("on 60 held-out") < text.index("==== shifted ====")
    assert text.index("==== shifted ====") < text.index("on 20 held-out")
    assert "<h3>shifted</h3>" in both._repr_html_()
    assert any(line.startswith("On 'shifted': 'other' is right on ") for line in both.verdict())
    assert json.loads(json.dumps(both.as_dict(), allow_nan=False)).keys() == {"test", "shifted"}
    labels = [text.get_text() for text in both.plot().axes[0].get_legend().get_texts()]
    assert labels == ["test", "shifted"]
    bare = {"other": tools.without_weights(other), "full": softmax_posterior}
    with pytest.raises(ValueError, match=r"'other' has no predictions on the split 'shifted'.*keep='weights'"):
        compare_posteriors(bare, {"test": split, "shifted": shifted})
    with pytest.raises(ValueError, match="split is empty"):
        compare_posteriors(posteriors, {})
    with pytest.raises(ValueError, match="by_split is empty"):
        Comparisons({})


def test_the_plot_shows_the_numbers_and_their_intervals(comparison: Comparison) -> None:
    panels = {axes.get_title(): axes for axes in comparison.plot().axes}
    assert panels.keys() == {
        "accuracy",
        "NLL",
        "ECE",
        "elpd less the reference's",
        "total variation",
        "sliced Wasserstein",
    }
    axes = panels["NLL"]
    dots = axes.lines[0]
    scores = comparison.metrics
    np.testing.assert_allclose(dots.get_xdata().astype(float), [row.nll for row in scores.values()])
    # one axis of names for all panels
    assert [label.get_text() for label in panels["accuracy"].get_yticklabels()] == ["other", "full", "uniform"]
    (bars,) = axes.collections
    ends = np.array([segment[:, 0] for segment in bars.get_segments()], float)
    widths = [2 * 1.96 * row.nll_standard_error for row in scores.values()]
    np.testing.assert_allclose(ends[:, 1] - ends[:, 0], widths, rtol=1e-4, atol=1e-12)
    floor = panels["total variation"].lines[-1]
    assert floor.get_xdata()[0] == comparison.noise_floor.total_variation
    alone = plot_comparison(
        type(comparison)(**{**vars(comparison), "agreement": {}, "differences": {}, "distances": {}})
    )
    assert [axes.get_title() for axes in alone.axes] == ["accuracy", "NLL", "ECE"]


def test_every_number_has_its_error(comparison: Comparison) -> None:
    heads = {heading.split(" ")[0]: rows for heading, _, rows in comparison.tables()}
    for heading in ("Predictions", "Agreement", "Distances", "Parameters"):
        for row in heads[heading]:
            if row[0] == "two runs of one law":  # a quantile of noise
                continue
            cells = row[1:-1] if heading == "Predictions" else row[1:]
            assert all(" ± " in cell for cell in cells), row
    assert all(" ± " in cell for cell in heads["Scores"][0][1:-1])
    sentence = next(line for line in comparison.verdict() if line.startswith("'other' is right"))
    for text in ("NLL", "(elpd)", "sliced Wasserstein distance of", "standard deviations of 'full'"):
        assert text in sentence
    assert sentence.count("±") >= 6
