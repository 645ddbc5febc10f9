"""Two runs of one law are called so, and a shift is not: posteriors made of draws of known autocorrelation.

Power: of 50 comparisons of one law at most 6 may say "more than the noise": a share of 0.02 exceeds that with
probability 2e-5, a share of 0.3 (noise of half the right size has more) passes with probability 0.003. Four hundred
comparisons of each size here said so of any of the three scores in 2.0 to 2.5 % of them.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from pseudocoreset.data import Split
from pseudocoreset.diagnostics import compare_posteriors
from pseudocoreset.diagnostics.comparison.noise import distance_noise, parts_of, prediction_noise
from pseudocoreset.diagnostics.distances.between import PairedSamples, energy_distance, maximum_mean_discrepancy
from pseudocoreset.diagnostics.distances.samples import Sample, autocorrelation_time
from pseudocoreset.diagnostics.predictions.metrics import metrics_of
from pseudocoreset.diagnostics.predictions.predictive import predict
from pseudocoreset.inference import Posterior
from pseudocoreset.models import Model

RNG = np.random.default_rng(0)
N = 12


def chains(decay: float, shape: tuple[int, int], dimension: int = 2) -> np.ndarray:
    """(chain, draw, dimension) of mean 0 and variance 1, each a step of ``decay`` after the one before."""
    noise = RNG.normal(size=(*shape, dimension))
    draws = noise.copy()
    for step in range(1, shape[1]):
        draws[:, step] = decay * draws[:, step - 1] + np.sqrt(1 - decay**2) * noise[:, step]
    return draws


@pytest.fixture(scope="module")
def setting(tools) -> tuple[Model, Split]:
    split = tools.make_split(RNG.normal(size=(N, 2)), RNG.integers(0, 2, N).astype(np.int32))
    return Model.from_numpyro(tools.functionless).bind(split.x, split.y), split


def run(setting: tuple[Model, Split], draws: np.ndarray) -> Posterior:
    """A posterior of a logistic regression with these weights."""
    model, split = setting
    logits = np.einsum("ni,csi->csn", split.x, draws)
    likelihood = -np.logaddexp(0, np.where(split.y == 1, -logits, logits))
    return Posterior(
        draws={"weights": draws.astype(np.float32)}, function_values=None, log_likelihood=likelihood, sample_stats={},
        predict_on=split, metadata={}, unconstrained={"weights": draws.astype(np.float32)},
        model=model,
    )  # fmt: skip


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1, 400), (2, 200), (4, 100)])
def test_within_sample_terms_pair_independent_draws(decay: float, shape: tuple[int, int]) -> None:
    """Zero between two samples of one law; paired within one chain, AR(1) of 0.9 gave 0.12."""
    energy, mmd = [], []
    for _ in range(30):
        x, y = chains(decay, shape, 3), chains(0.0, (1, 200), 3)
        x = x[0] if len(x) == 1 else x
        energy.append(energy_distance(x, y[0]))
        mmd.append(maximum_mean_discrepancy(x, y[0], bandwidth=1.7))
    for values, scale in ((energy, 0.01), (mmd, 0.003)):  # a single chain is too short to be without any bias
        assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(30) + (scale if shape[0] == 1 else 0.0)
    assert autocorrelation_time(chains(decay, (4, 2000))) == pytest.approx((1 + decay) / (1 - decay), rel=0.25)


SIZES = {
    "independent, five times as many": ((0.0, (4, 100)), (0.0, (1, 80))),
    "autocorrelated, three times as many": ((0.9, (4, 240)), (0.9, (4, 80))),
    "one of either": ((0.5, (4, 60)), (0.9, (2, 200))),
}


SLOW = ("independent, five times as many", "autocorrelated, three times as many")


@pytest.mark.parametrize("size", [pytest.param(size, marks=pytest.mark.slow if size in SLOW else ()) for size in SIZES])
def test_two_runs_of_one_law_are_within_the_noise(setting: tuple[Model, Split], size: str) -> None:
    beyond = np.zeros(3)
    for seed in range(50):
        beyond += findings(setting, *(chains(*of) for of in SIZES[size]), seed)
    assert beyond.max() <= 6, beyond


@pytest.mark.parametrize("size", ["independent, five times as many"])
def test_a_shift_is_detected(setting: tuple[Model, Split], size: str) -> None:
    """Of one standard deviation of every weight: in 17 of 20 comparisons or more."""
    found = np.zeros(3)
    for seed in range(20):
        full, other = (chains(*of) for of in SIZES[size])
        found += findings(setting, full, other + 1.0, seed)
    assert found[:2].min() >= 17, found


def findings(setting: tuple[Model, Split], full: np.ndarray, other: np.ndarray, seed: int) -> np.ndarray:
    """Whether predictions, functions and scores are further apart than their noise; what the sentences go by."""
    posteriors = run(setting, full), run(setting, other)
    logits = [np.einsum("ni,csi->csn", setting[1].x, draws) for draws in (full, other)]
    parts = parts_of(logits[0]), parts_of(logits[1])
    noise = prediction_noise(posteriors, parts, jax.random.key(seed))
    samples = [
        Sample(values.reshape(-1, N), np.repeat(np.arange(len(values)), values.shape[1]), part.labels)
        for values, part in zip(logits, parts, strict=True)
    ]
    pairs = PairedSamples(*samples, jax.random.key(seed))
    distances = distance_noise(pairs, parts, jax.random.key(seed))
    left, right = (predict(posterior) for posterior in posteriors)
    gap = np.abs(left.probabilities - right.probabilities).sum(-1).mean() / 2
    elpd = N * abs(metrics_of(left).nll - metrics_of(right).nll)
    energy = energy_distance(logits[0], logits[1]) / np.sqrt(N)
    assert noise is not None
    assert distances is not None
    return np.array([gap > noise.agreement.total_variation, energy > distances.energy, elpd > noise.elpd])


def test_the_sentences_go_by_the_noise_of_both(setting: tuple[Model, Split]) -> None:
    _, split = setting
    full = run(setting, chains(0.5, (4, 400)))
    posteriors = {
        "full": full,
        "same": run(setting, chains(0.0, (2, 20))),
        "far": run(setting, chains(0, (4, 100)) + 2),
    }
    found = compare_posteriors(posteriors, split)
    few, many = found.noise["same"].agreement.total_variation, found.noise["far"].agreement.total_variation
    assert few > 1.3 * many  # 40 draws, 400 draws
    assert found.noise_floor.total_variation == few
    sentences = {
        name: next(s for s in found.verdict() if s.startswith(f"{name!r} is right")) for name in ("same", "far")
    }
    assert sentences["same"].count("within the noise of sampling") == 2
    assert sentences["far"].count("more than the noise of sampling") == 2


def test_distances_are_of_inputs_spread_over_a_sorted_split(tools) -> None:
    """Two posteriors that differ on the second half of a split alone."""
    x = np.repeat(np.eye(2), 20, axis=0)
    split = tools.make_split(x, np.repeat([0, 1], 20).astype(np.int32))
    model = Model.from_numpyro(tools.functionless).bind(split.x, split.y)
    draws = chains(0.0, (4, 50))
    posteriors = {"full": run((model, split), draws), "moved": run((model, split), draws + np.array([0.0, 3.0]))}
    found = compare_posteriors(posteriors, split, max_inputs=10)
    assert found.distances["moved"].sliced_wasserstein > 0.5
