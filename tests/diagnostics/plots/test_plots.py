"""Figures show the data they claim to show."""

from __future__ import annotations

import dataclasses
import io
import warnings
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from matplotlib import image, pyplot
from matplotlib.figure import Figure

from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.diagnostics import (
    Comparison,
    compare_posteriors,
    plot_agreement,
    plot_coreset,
    plot_ess,
    plot_forest,
    plot_history,
    plot_rank,
    plot_reliability,
    plot_trace,
)
from pseudocoreset.inference import Posterior
from pseudocoreset.models import Model


@pytest.fixture(scope="module")
def comparison(run: dict[str, Posterior], network: Model, images: Dataset) -> Comparison:
    return compare_posteriors(run, images.test, max_inputs=5)


def drawn(figure: Figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    return image.imread(buffer)


def pictures(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def test_coreset_beside_real_images(coreset: Pseudocoreset, images: Dataset) -> None:
    figure = plot_coreset(coreset, images)
    shown = pictures(figure)
    assert len(shown) == 12
    # first row: two real images of class 0, then the two points of class 0
    real = images.train.raw[images.train.y == 0][:2, ..., 0] / 255
    np.testing.assert_allclose(shown[0], real[0], atol=1e-5)
    np.testing.assert_allclose(shown[1], real[1], atol=1e-5)
    synthetic = np.asarray(coreset.preprocessing.invert(coreset.inputs))[..., 0]
    np.testing.assert_allclose(shown[2], synthetic[0], atol=1e-5)
    np.testing.assert_allclose(shown[11], synthetic[5], atol=1e-5)
    assert {axes.get_ylabel() for axes in figure.axes} >= {"top", "<middle>", "bottom & last"}
    assert drawn(figure).std() > 0
    assert pyplot.get_fignums() == []


def test_long_names_of_classes_leave_room_for_images(coreset: Pseudocoreset) -> None:
    names = ("salamander, " + 60 * "x", "bullfrog, Rana catesbeiana", 40 * "y")
    figure = plot_coreset(replace(coreset, class_names=names), max_per_class=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that fails is a warning
        drawn(figure)
    assert [axes.get_ylabel() for axes in figure.axes] == ["salamander", "bullfrog", 23 * "y" + "…"]
    assert min(axes.get_window_extent().width for axes in figure.axes) > 40


def test_values_outside_an_image_are_clipped_and_counted(coreset: Pseudocoreset) -> None:
    brighter = Pseudocoreset(
        inputs=np.where(np.arange(6)[:, None, None, None] < 3, 100.0, coreset.inputs).astype(np.float32),
        targets=np.eye(3, dtype=np.float32)[coreset.targets],
        weights=coreset.weights,
        preprocessing=coreset.preprocessing,
    )
    figure = plot_coreset(brighter)
    assert pictures(figure)[0].max() == 1.0
    assert "50.0% of synthetic values clipped" in figure.get_suptitle()


def test_what_is_left_out_is_said(coreset: Pseudocoreset, images: Dataset) -> None:
    figure = plot_coreset(coreset, images.train, max_per_class=1, max_classes=2)
    assert len(pictures(figure)) == 4
    assert "2 of 3 classes" in figure.get_suptitle()
    assert "1 of up to 2 points a class" in figure.get_suptitle()


@pytest.mark.parametrize("num_features", [1, 2])
def test_features_are_points(num_features: int) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((50, num_features)).astype(np.float32)
    data = Dataset.from_arrays(x, x[:, 0] * 2, name="line")
    coreset = Pseudocoreset.from_data(data, size=5, key=jax.random.key(0))
    axes = plot_coreset(coreset, data).axes[0]
    real, synthetic = (np.asarray(collection.get_offsets()) for collection in axes.collections)
    assert len(real) == 50
    np.testing.assert_allclose(synthetic[:, 0], coreset.inputs[:, 0], rtol=1e-6)
    second = coreset.targets if num_features == 1 else coreset.inputs[:, 1]
    np.testing.assert_allclose(synthetic[:, 1], second, rtol=1e-6)


def test_reliability_draws_accuracy_against_confidence() -> None:
    probabilities = np.array([[0.8, 0.2]] * 4 + [[0.45, 0.55]] * 2)
    y = [0, 0, 0, 1, 1, 0]
    figure = plot_reliability(probabilities, y, num_bins=10)
    curve = figure.axes[0].lines[1]
    np.testing.assert_allclose(curve.get_xdata(), [0.55, 0.8])
    np.testing.assert_allclose(curve.get_ydata(), [0.5, 0.75])
    # Wilson: the p with |p - a| = 1.96 sqrt(p (1 - p) / n)
    ends = [segment[:, 1] for segment in figure.axes[0].collections[0].get_segments()]
    for (low, high), a, n in zip(ends, (0.5, 0.75), (2, 4), strict=True):
        for p in (low, high):
            assert abs(p - a) == pytest.approx(1.959964 * np.sqrt(p * (1 - p) / n), rel=1e-6)
    assert drawn(figure).std() > 0
    with pytest.raises(ValueError, match="y is needed"):
        plot_reliability(probabilities)


def test_reliability_of_a_comparison_names_its_posteriors(comparison: Comparison) -> None:
    legend = plot_reliability(comparison).axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["coreset", "full"]


def test_agreement_draws_the_top_class_of_the_reference(comparison: Comparison) -> None:
    figure = plot_agreement(comparison)
    assert len(figure.axes) == 1
    axes = figure.axes[0]
    p = comparison.predictions["full"].probabilities
    q = comparison.predictions["coreset"].probabilities
    points = np.concatenate([np.asarray(c.get_offsets()) for c in axes.collections])
    np.testing.assert_allclose(np.sort(points[:, 0]), np.sort(p.max(-1)))
    np.testing.assert_allclose(np.sort(points[:, 1]), np.sort(q[np.arange(len(p)), p.argmax(-1)]))
    share = len(axes.collections[0].get_offsets()) / len(p)
    assert share == pytest.approx(comparison.agreement["coreset"].top1)


def test_agreement_needs_a_reference(run: dict[str, Posterior], network: Model, images: Dataset) -> None:
    alone = compare_posteriors(run, images.test, reference=None, max_inputs=2)
    with pytest.raises(ValueError, match="reference"):
        plot_agreement(alone)


@pytest.mark.parametrize("plot", [plot_trace, plot_rank, plot_ess])
def test_chains_are_plotted_where_predictions_vary(plot: object, run: dict[str, Posterior], network: Model) -> None:
    collection = plot(run["coreset"], num_inputs=2)
    figure = collection.viz["figure"].item()
    panels = collection.viz["plot"]["probability"]
    assert panels.sizes == {"input": 2}
    assert drawn(figure).std() > 0
    pyplot.close(figure)
    with pytest.raises(ValueError, match="num_inputs"):
        plot(run["coreset"], num_inputs=0)


def test_trace_is_the_probability_of_the_likeliest_class(
    softmax: tuple[Model, object], softmax_posterior: Posterior
) -> None:
    collection = plot_trace(softmax_posterior, num_inputs=1)
    at = int(collection.viz["plot"]["input"].values[0])
    logits = softmax_posterior.function_values[:, :, at] * softmax_posterior.draws["scale"][..., None]
    p = np.asarray(jax.nn.softmax(logits, axis=-1))
    expected = p[..., p.mean((0, 1)).argmax()]
    lines = collection.viz["trace"]["probability"].values.ravel()
    np.testing.assert_allclose(np.stack([line.get_ydata() for line in lines]), expected, rtol=1e-4)
    pyplot.close(collection.viz["figure"].item())


def test_effective_draws_by_number_of_draws(run: dict[str, Posterior], network: Model) -> None:
    collection = plot_ess(run["full"], num_inputs=1, kind="evolution")
    line = collection.viz["ess_bulk_line"]["probability"].values.ravel()[0]
    # independent draws: about as many effective ones as there are
    assert 0.5 < line.get_ydata()[-1] / (2 * 40) < 2
    pyplot.close(collection.viz["figure"].item())
    with pytest.raises(ValueError, match="kind"):
        plot_ess(run["full"], kind="local tail")
    few = dataclasses.replace(run["full"], function_values=run["full"].function_values[:, :7])
    few = dataclasses.replace(few, draws={}, sample_stats={"lp": np.zeros((2, 7))})
    with pytest.raises(ValueError, match="at least 8 draws a chain; posterior has 7"):
        plot_ess(few)


def test_forest_shows_one_class_of_every_posterior(
    softmax: tuple[Model, object], softmax_posterior: Posterior, tools: SimpleNamespace
) -> None:
    model, split = softmax
    draws = tools.random_draws(model, split, seed=9)
    other = tools.make_posterior(model, split, {**draws, "weights": -draws["weights"]})
    collection = plot_forest({"full": softmax_posterior, "other": other}, num_inputs=3)
    points = collection.viz["point_estimate"]["probability"]
    at = points["input"].values

    def probabilities(posterior: Posterior) -> np.ndarray:
        logits = posterior.function_values[:, :, at] * posterior.draws["scale"][..., None, None]
        return np.asarray(jax.nn.softmax(logits, axis=-1)).reshape(-1, 3, 3)

    likeliest = probabilities(softmax_posterior).mean(0).argmax(-1)
    for name, posterior in (("full", softmax_posterior), ("other", other)):
        shown = [float(np.ravel(dot.get_offsets())[0]) for dot in points.sel(model=name).values.ravel()]
        expected = probabilities(posterior)[:, np.arange(3), likeliest]
        np.testing.assert_allclose(shown, expected.mean(0), rtol=1e-3)
    figure = collection.viz["figure"].item()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["full", "other"]
    pyplot.close(figure)
    pyplot.close(plot_forest(other, num_inputs=2).viz["figure"].item())
    with pytest.raises(ValueError, match="'other' was evaluated on other held-out data than 'full'"):
        plot_forest({"full": softmax_posterior, "other": other.evaluate(split.head(20))})
    with pytest.raises(ValueError, match="posteriors is empty"):
        plot_forest({})


def test_regressions(tools: SimpleNamespace) -> None:
    random = np.random.default_rng(5)
    split = tools.make_split(random.standard_normal((40, 2)), random.standard_normal(40).astype(np.float32))
    model = Model.from_numpyro(tools.linear).bind(split.x, split.y)
    posterior = tools.make_posterior(model, split, tools.random_draws(model, split, seed=2))
    found = compare_posteriors({"coreset": posterior, "full": posterior}, split, max_inputs=5)
    points = np.asarray(plot_agreement(found).axes[0].collections[0].get_offsets())
    np.testing.assert_array_equal(points[:, 0], points[:, 1])
    with pytest.raises(ValueError, match="regression"):
        plot_reliability(found)
    collection = plot_trace(posterior, num_inputs=1)
    assert "mean" in collection.viz["plot"]
    pyplot.close(collection.viz["figure"].item())


def test_history() -> None:
    figure = plot_history({"step": np.array([10, 20]), "loss": np.array([2.0, 1.0]), "name": np.array(["a", "b"])})
    (axes,) = (axes for axes in figure.axes if axes.lines)
    assert axes.get_title() == "loss"
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[10, 2], [20, 1]])
    with pytest.raises(ValueError, match=r"\['name'\]"):
        plot_history({"name": np.array(["a"])})
