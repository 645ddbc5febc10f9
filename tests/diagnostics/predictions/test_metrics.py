"""Scores against definitions in plain NumPy, and the laws that any score of a model average obeys."""

from __future__ import annotations

import dataclasses
import itertools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from pseudocoreset.compute.limits import limited
from pseudocoreset.diagnostics import Metrics, expected_calibration_error, predictive_metrics
from pseudocoreset.inference import Posterior
from pseudocoreset.models import Model, gaussian_location

CHAINS, DRAWS, N, C = 2, 3, 200, 4


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return 3 * np.random.default_rng(0).standard_normal((CHAINS, DRAWS, N, C))


@pytest.fixture(scope="module")
def y() -> np.ndarray:
    return np.random.default_rng(1).integers(0, C, N)


def softmax_of(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(-1, keepdims=True)


def defined_metrics(stack: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Scores of probabilities (S, n, C), one example at a time."""
    num_draws, n, num_classes = stack.shape
    p = stack.mean(0)
    nll = [-np.log(p[i, y[i]]) for i in range(n)]
    right = [float(max(range(num_classes), key=lambda c, i=i: p[i, c]) == y[i]) for i in range(n)]
    edges, ece, gaps = np.linspace(0, 1, 16), 0.0, []
    for low, high in itertools.pairwise(edges):
        inside = [i for i in range(n) if low < p[i].max() <= high]
        ece += abs(sum(right[i] - p[i].max() for i in inside)) / n
        if inside:
            sign = np.sign(sum(right[i] - p[i].max() for i in inside))
            gaps += [sign * (right[i] - p[i].max()) for i in inside]
    brier = [sum((p[i, c] - (c == y[i])) ** 2 for c in range(num_classes)) for i in range(n)]
    entropy = [-sum(q * np.log(q) for q in p[i]) for i in range(n)]
    members = [-np.mean([np.log(stack[s, i, y[i]]) for s in range(num_draws)]) for i in range(n)]

    def error(values: list[float]) -> float:
        return np.std(values, ddof=1) / np.sqrt(n)

    return {
        "num_data": n,
        "num_draws": num_draws,
        "nll": np.mean(nll),
        "nll_standard_error": error(nll),
        "nll_member": np.mean([-np.log(stack[s, i, y[i]]) for s in range(num_draws) for i in range(n)]),
        "accuracy": np.mean(right),
        "accuracy_standard_error": np.sqrt(np.mean(right) * (1 - np.mean(right)) / n),
        "brier": np.mean(brier),
        "ece": ece,
        "entropy": np.mean(entropy),
        "rmse": None,
        "nll_member_standard_error": error(members),
        "brier_standard_error": error(brier),
        "ece_standard_error": error(gaps),
        "entropy_standard_error": error(entropy),
        "rmse_standard_error": None,
    }


def assert_same(left: dict[str, float], right: dict[str, float], tolerance: float = 1e-12) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value == (right[name] if value is None else pytest.approx(right[name], rel=tolerance)), name


def test_every_score_is_its_definition(logits: np.ndarray, y: np.ndarray) -> None:
    probabilities = softmax_of(logits)
    expected = defined_metrics(probabilities.reshape(-1, N, C), y)
    assert_same(predictive_metrics(probabilities, y).as_dict(), expected)
    assert_same(predictive_metrics(np.log(probabilities), y, log=True).as_dict(), expected)


def test_one_distribution_may_come_without_chains_and_draws(logits: np.ndarray, y: np.ndarray) -> None:
    one = softmax_of(logits[0, 0])
    assert_same(predictive_metrics(one, y).as_dict(), defined_metrics(one[None], y))


def test_two_inputs_two_classes_by_hand() -> None:
    # draws (0.9, 0.1), (0.5, 0.5) and (0.2, 0.8), (0.4, 0.6); averages (0.7, 0.3) and (0.3, 0.7)
    probabilities = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.4, 0.6]]])[None]
    scores = predictive_metrics(probabilities, [0, 0])
    assert scores.nll == pytest.approx(-(np.log(0.7) + np.log(0.3)) / 2)
    assert scores.nll_member == pytest.approx(-(np.log(0.9) + np.log(0.5) + np.log(0.2) + np.log(0.4)) / 4)
    assert scores.accuracy == 0.5
    assert scores.brier == pytest.approx((0.18 + 0.98) / 2)
    # both in the bin (10/15, 11/15]: mean confidence 0.7, accuracy 0.5
    assert scores.ece == pytest.approx(0.2)


def test_nll_is_not_the_one_of_batch_means(logits: np.ndarray, y: np.ndarray) -> None:
    # What published code computes: the likelihood of a batch, to the power 1 / batch, averaged over draws.
    probabilities = softmax_of(logits)
    member = np.log(probabilities.reshape(-1, N, C)[:, np.arange(N), y])
    batch_mean = -np.log(np.exp(member.mean(1)).mean())
    scores = predictive_metrics(probabilities, y)
    assert batch_mean == pytest.approx(scores.nll_member, abs=0.1)
    assert scores.nll < batch_mean - 0.5


def test_order_of_examples_and_draws_does_not_matter(logits: np.ndarray, y: np.ndarray) -> None:
    probabilities = softmax_of(logits)
    expected = predictive_metrics(probabilities, y).as_dict()
    order = np.random.default_rng(2).permutation(N)
    assert_same(predictive_metrics(probabilities[:, :, order], y[order]).as_dict(), expected)
    assert_same(predictive_metrics(probabilities[::-1, ::-1], y).as_dict(), expected)
    relabelled = np.random.default_rng(3).permutation(C)
    renamed = np.argsort(relabelled)[y]
    assert_same(predictive_metrics(probabilities[..., relabelled], renamed).as_dict(), expected)


def test_a_posterior_is_scored_as_its_probabilities_in_any_blocks(
    softmax: tuple[Model, object], softmax_posterior: Posterior
) -> None:
    _, split = softmax
    # The scale is a site of the likelihood; the weights act through f.
    logits = softmax_posterior.function_values * softmax_posterior.draws["scale"][..., None, None]
    expected = defined_metrics(softmax_of(logits.astype(float)).reshape(-1, *logits.shape[2:]), split.y)
    whole = predictive_metrics(softmax_posterior).as_dict()
    assert_same(whole, expected, tolerance=1e-5)
    with limited(scored_elements=7 * 3 * split.num_data):
        assert_same(predictive_metrics(softmax_posterior).as_dict(), whole, tolerance=1e-6)


def test_weights_that_were_not_kept_are_not_needed(
    softmax: tuple[Model, object], softmax_posterior: Posterior, tools: SimpleNamespace
) -> None:
    bare = tools.without_weights(softmax_posterior)
    fewer = type(bare)(**{**vars(bare), "draws": {"scale": bare.draws["scale"]}})
    assert predictive_metrics(fewer) == predictive_metrics(softmax_posterior)


def test_a_program_without_function_values_is_scored_from_its_draws(tools: SimpleNamespace) -> None:
    random = np.random.default_rng(4)
    split = tools.make_split(random.standard_normal((30, 2)), random.integers(0, 2, 30).astype(np.int32))
    model = Model.from_numpyro(tools.functionless).bind(split.x, split.y)
    posterior = tools.make_posterior(model, split, tools.random_draws(model, split, seed=1))
    assert posterior.function_values is None
    logit = np.einsum("csk,nk->csn", posterior.draws["weights"].astype(float), split.x)
    positive = 1 / (1 + np.exp(-logit))
    stack = np.stack([1 - positive, positive], -1).reshape(-1, 30, 2)
    scores = predictive_metrics(posterior).as_dict()
    assert_same(scores, defined_metrics(stack, split.y), tolerance=1e-5)
    with pytest.raises(ValueError, match="no draws of weights"):
        predictive_metrics(type(posterior)(**{**vars(posterior), "draws": {}}))


def test_confident_draws_do_not_underflow(tools: SimpleNamespace) -> None:
    # probability of the label e^-400 under every draw: zero in float32
    split = tools.make_split([[1.0, 0.0]], np.array([1], np.int32))
    model = Model.from_numpyro(tools.softmax).bind(split.x, split.y)
    weights = np.tile(np.array([[400.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), (1, 2, 1, 1))
    posterior = tools.make_posterior(model, split, {"weights": weights, "scale": np.zeros((1, 2))})
    scores = predictive_metrics(posterior)
    assert scores.nll == pytest.approx(400, rel=1e-6)
    assert scores.nll_member == pytest.approx(400, rel=1e-6)
    assert scores.entropy == pytest.approx(0, abs=1e-6)
    deep = predictive_metrics(np.array([[[[0.0, -2000.0]]]]), [1], log=True)
    assert deep.nll == pytest.approx(2000)


def test_impossible_label_is_infinite_and_json_says_so() -> None:
    scores = predictive_metrics(np.array([[1.0, 0.0], [0.5, 0.5]]), [1, 0])
    assert scores.nll == np.inf
    assert scores.as_dict()["nll"] == "inf"
    json.dumps(scores.as_dict(), allow_nan=False)


def test_uniform_prediction_scores_chance_whatever_the_labels() -> None:
    scores = predictive_metrics(np.full((10, 5), 0.2), np.zeros(10, int))
    assert scores.accuracy == pytest.approx(0.2)
    assert scores.nll == pytest.approx(np.log(5))
    assert scores.nll_standard_error == pytest.approx(0, abs=1e-12)
    assert scores.ece == pytest.approx(0, abs=1e-12)


def test_calibrated_predictions_have_no_calibration_error() -> None:
    # of 10 predictions with confidence k / 10, k are right
    probabilities, y = [], []
    for k in range(6, 11):
        for example in range(10):
            probabilities.append([k / 10, 1 - k / 10])
            y.append(0 if example < k else 1)
    assert expected_calibration_error(probabilities, y) == pytest.approx(0, abs=1e-12)
    # the same confidences with everything right: mean gap 1 - 0.8
    assert expected_calibration_error(probabilities, np.zeros(50, int)) == pytest.approx(0.2)


def test_bins_hold_their_upper_edge() -> None:
    # 0.6 = 9/15 is in the bin below 0.65, so the two gaps do not cancel
    probabilities = [[0.6, 0.4], [0.65, 0.35]]
    assert expected_calibration_error(probabilities, [0, 1]) == pytest.approx((0.4 + 0.65) / 2)


def test_calibration_error_is_not_a_mean_over_batches(logits: np.ndarray) -> None:
    p = softmax_of(logits[0, 0])
    drawn = np.array([np.random.default_rng(i).choice(C, p=row) for i, row in enumerate(p)])
    batches = [expected_calibration_error(p[i : i + 10], drawn[i : i + 10]) for i in range(0, N, 10)]
    assert np.mean(batches) > 2 * expected_calibration_error(p, drawn)


def test_regression_by_definition(tools: SimpleNamespace) -> None:
    random = np.random.default_rng(5)
    split = tools.make_split(random.standard_normal((40, 2)), random.standard_normal(40).astype(np.float32))
    model = Model.from_numpyro(tools.linear).bind(split.x, split.y)
    posterior = tools.make_posterior(model, split, tools.random_draws(model, split, seed=2))
    f = posterior.function_values[..., 0].astype(float)
    density = stats.norm.pdf(split.y, f, posterior.draws["noise"][..., None]).reshape(-1, 40)
    scores = predictive_metrics(posterior)
    assert scores.nll == pytest.approx(-np.log(density.mean(0)).mean(), rel=1e-5)
    assert scores.nll_member == pytest.approx(-np.log(density).mean(), rel=1e-5)
    assert scores.rmse == pytest.approx(np.sqrt(np.mean((f.mean((0, 1)) - split.y) ** 2)), rel=1e-5)
    assert scores.accuracy is scores.brier is scores.ece is scores.entropy is None


def test_error_of_counts_is_on_the_scale_of_counts(tools: SimpleNamespace) -> None:
    random = np.random.default_rng(6)
    split = tools.make_split(random.standard_normal((40, 2)), random.poisson(2, 40).astype(np.float32))
    model = Model.from_numpyro(tools.poisson).bind(split.x, split.y)
    posterior = tools.make_posterior(model, split, tools.random_draws(model, split, seed=3))
    rate = np.exp(posterior.function_values[..., 0].astype(float)).mean((0, 1))
    scores = predictive_metrics(posterior)
    assert scores.rmse == pytest.approx(np.sqrt(np.mean((rate - split.y) ** 2)), rel=1e-5)


@pytest.mark.parametrize("num_dimensions", [1, 2])
def test_error_of_a_model_of_inputs_is_that_of_the_inputs(num_dimensions: int, tools: SimpleNamespace) -> None:
    x = 3 + np.random.default_rng(7).standard_normal((20, num_dimensions))
    split = tools.make_split(x, np.zeros(20, np.float32))
    draws = {"theta": np.random.default_rng(8).standard_normal((2, 5, num_dimensions))}
    scores = predictive_metrics(tools.make_posterior(gaussian_location(), split, draws))
    assert scores.rmse == pytest.approx(np.sqrt(np.mean((draws["theta"].mean((0, 1)) - x) ** 2)), rel=1e-5)


@pytest.mark.parametrize("depends_on_parameters", [False, True])
def test_error_of_a_transform_is_on_its_own_scale(depends_on_parameters: bool, tools: SimpleNamespace) -> None:
    """Or there is none, where the transform is itself inferred."""

    def program(x: jax.Array, y: jax.Array | None = None) -> None:
        rate = numpyro.sample("rate", dist.Normal(0, 1))
        observed = None if y is None else jnp.log(y) * (rate if depends_on_parameters else 1.0)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("log_y", dist.Normal(rate * x[:, 0], 1), obs=observed)

    random = np.random.default_rng(9)
    split = tools.make_split(random.standard_normal((20, 1)), random.gamma(2.0, size=20).astype(np.float32))
    model = Model.from_numpyro(program)
    draws = {"rate": random.standard_normal((2, 5))}
    rmse = predictive_metrics(tools.make_posterior(model, split, draws)).rmse
    error = draws["rate"].mean() * split.x[:, 0] - np.log(split.y)
    assert rmse == (None if depends_on_parameters else pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-5))


@pytest.mark.parametrize(
    ("probabilities", "labels", "error", "message"),
    [
        (np.full((2, 3), 0.5), [0, 1], ValueError, "sum to one"),
        (np.array([[1.5, -0.5]]), [0], ValueError, "log=True"),
        (np.full((2, 2, 2), 0.5), [0, 1], ValueError, "chain, draw, n, C"),
        (np.full((0, 2), 0.5), [], ValueError, "empty"),
        (np.full((2, 2), 0.5), [0, 2], ValueError, r"y\[1\] = 2"),
        (np.full((2, 2), 0.5), [-1, 0], ValueError, r"y\[0\] = -1"),
        (np.full((2, 2), 0.5), [0.5, 0], ValueError, r"y\[0\] = 0.5"),
        (np.full((2, 2), 0.5), ["a", "b"], TypeError, "integer class labels"),
        (np.full((2, 2), 0.5), [0], ValueError, r"shape \(2,\)"),
        (np.full((2, 2), 0.5), None, ValueError, "y is needed"),
        (np.full((2, 2), np.nan), [0, 1], ValueError, "non-negative"),
    ],
)
def test_bad_arguments(probabilities: np.ndarray, labels: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        predictive_metrics(probabilities, labels)


def test_bad_posteriors(softmax: tuple[Model, object], softmax_posterior: Posterior, tools: SimpleNamespace) -> None:
    _, split = softmax
    with pytest.raises(ValueError, match="model is needed"):
        predictive_metrics(dataclasses.replace(softmax_posterior, model=None))
    unevaluated = type(softmax_posterior)(**{**vars(softmax_posterior), "predict_on": None})
    with pytest.raises(ValueError, match="predict_on"):
        predictive_metrics(unevaluated)
    with pytest.raises(ValueError, match="num_bins"):
        predictive_metrics(softmax_posterior, num_bins=0)
    wider = Model.from_numpyro(tools.softmax).bind(np.zeros((len(split.y), 5)), split.y)
    with pytest.raises(ValueError, match="features of shape"):
        predictive_metrics(dataclasses.replace(softmax_posterior, model=wider))


def test_labels_may_be_given(softmax: tuple[Model, object], softmax_posterior: Posterior) -> None:
    _, split = softmax
    shifted = (split.y + 1) % 3
    scores = predictive_metrics(softmax_posterior, shifted)
    assert isinstance(scores, Metrics)
    assert scores.entropy == predictive_metrics(softmax_posterior).entropy
    assert scores.nll != predictive_metrics(softmax_posterior).nll


def test_scores_of_a_real_run_are_finite(run: dict[str, Posterior], network: Model) -> None:
    for posterior in run.values():
        scores = predictive_metrics(posterior)
        assert np.isfinite([value for value in scores.as_dict().values() if value is not None]).all()
        f = posterior.function_values.astype(float)
        stack = np.asarray(jax.nn.softmax(f, axis=-1)).reshape(-1, *f.shape[2:])
        assert scores.nll == pytest.approx(defined_metrics(stack, posterior.predict_on.y)["nll"], rel=1e-5)
