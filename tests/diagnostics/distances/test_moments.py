"""Moments of parameters of small models against closed forms, importance weights in a comparison, marginals."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from matplotlib import pyplot

from pseudocoreset import Dataset, Pseudocoreset
from pseudocoreset.diagnostics import compare_moments, compare_posteriors, plot_energy, plot_marginals, report
from pseudocoreset.inference import Posterior
from pseudocoreset.models import gaussian_location

RNG = np.random.default_rng(0)
X = RNG.normal(0.4, 1.0, size=(50, 2)).astype(np.float32)
DATA = Dataset.from_arrays(X, test=(X[:10], np.zeros(10, np.float32)))
MODEL = gaussian_location(DATA)  # of unit noise, prior N(0, 1)
SITE = next(iter(MODEL.init(jax.random.key(0))))
DEVIATION = np.array([0.5, 2.0])
SHIFT, RATIO = np.array([0.3, -1.0]), np.array([4.0, 0.25])


def made(
    mean: np.ndarray, deviation: np.ndarray, *, chains: int = 4, draws: int = 2000, **metadata: object
) -> Posterior:
    values = (mean + deviation * RNG.normal(size=(chains, draws, 2))).astype(np.float32)
    return Posterior(
        draws={SITE: values}, unconstrained={SITE: values}, function_values=None, log_likelihood=None,
        sample_stats={"lp": np.zeros((chains, draws))}, predict_on=None, metadata=dict(metadata), model=MODEL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pair() -> dict[str, Posterior]:
    """The second is shifted by SHIFT deviations of the first, with RATIO times its variances."""
    return {
        "full": made(np.zeros(2), DEVIATION),
        "small": made(SHIFT * DEVIATION, DEVIATION * np.sqrt(RATIO)),
    }


def test_shifts_ratios_and_divergences_are_the_closed_forms(pair: dict[str, Posterior]) -> None:
    found = compare_moments(pair["full"], pair["small"])
    assert found.names == (f"{SITE}[0]", f"{SITE}[1]")
    # 8,000 independent draws: the errors of a mean and of a variance ratio are known too
    np.testing.assert_allclose(found.shift_standard_error, np.sqrt((1 + RATIO) / 8000), rtol=0.1)
    np.testing.assert_allclose(found.variance_ratio_standard_error, RATIO * np.sqrt(2 * 2 / 8000), rtol=0.1)
    assert np.all(np.abs(found.shift - SHIFT) < 4.5 * found.shift_standard_error)
    assert np.all(np.abs(found.variance_ratio - RATIO) < 4.5 * found.variance_ratio_standard_error)
    assert found.largest == 1
    forward = 0.5 * (1 / RATIO + SHIFT**2 / RATIO - 1 + np.log(RATIO)).sum()
    reverse = 0.5 * (RATIO + SHIFT**2 - 1 - np.log(RATIO)).sum()
    wanted = (forward, reverse, np.sqrt((SHIFT**2).mean()), 1.0)
    # a jackknife over four groups of each has six degrees of freedom: twice as wide as 4.5 errors of the normal
    for value, error, true in zip(found.gaussian, found.gaussian_standard_error, wanted, strict=True):
        assert abs(value - true) < 9 * error
        assert 0 < error < 0.2


def test_errors_know_of_chains_that_disagree() -> None:
    full = made(np.zeros(2), DEVIATION, draws=100)
    apart = made(np.zeros(2), DEVIATION, draws=100)
    values = apart.unconstrained[SITE] + np.arange(4)[:, None, None]
    moved = dataclasses.replace(apart, unconstrained={SITE: values})
    near, far = compare_moments(full, apart), compare_moments(full, moved)
    assert np.all(far.shift_standard_error > 3 * near.shift_standard_error)
    assert far.gaussian_standard_error.mean_difference > 3 * near.gaussian_standard_error.mean_difference


def test_too_few_draws_leave_the_divergences_out() -> None:
    found = compare_moments(made(np.zeros(2), DEVIATION), made(SHIFT, DEVIATION, chains=1, draws=3))
    assert found.gaussian is None
    assert np.isfinite(found.shift).all()
    full, still = made(np.zeros(2), DEVIATION, draws=50), made(np.zeros(2), np.array([1.0, 0.0]), draws=50)
    assert compare_moments(full, still).gaussian is None
    (table,) = (t for t in compare_posteriors({"full": full, "a": still}, DATA.test).tables() if "KL(full, .)" in t[1])
    assert table[2][0][2:] == ["-"] * 4


def test_what_cannot_be_compared_is_refused(pair: dict[str, Posterior]) -> None:
    bare = dataclasses.replace(pair["small"], unconstrained=None)
    with pytest.raises(ValueError, match="other did not keep its weights"):
        compare_moments(pair["full"], bare)
    renamed = dataclasses.replace(pair["small"], unconstrained={"b": pair["small"].unconstrained[SITE]})
    with pytest.raises(ValueError, match="other has the sites"):
        compare_moments(pair["full"], renamed)


def coreset() -> Pseudocoreset:
    points = np.stack([X[:25].mean(0), X[25:].mean(0)]).astype(np.float32)
    start = Pseudocoreset.from_data(DATA, size=2, key=jax.random.key(0), mass="data")
    return dataclasses.replace(start, inputs=points, weights=np.array([20.0, 22.0], np.float32))


def exact(x: np.ndarray, w: np.ndarray) -> Posterior:
    variance = 1 / (1 + w.sum())
    return made(variance * w @ x, np.full(2, np.sqrt(variance)), draws=500)


def test_a_comparison_of_a_small_model(tmp_path) -> None:
    small = coreset()
    posteriors = {"full": exact(X, np.ones(50)), "small": exact(small.inputs, small.weights)}
    found = compare_posteriors(posteriors, DATA.test, sources={"full": DATA, "small": small})
    weights = found.reweighting["small"]
    assert weights.is_reliable
    text = str(found)
    assert "Importance weights to 'full'" in text
    assert "Importance weights can turn its draws into draws of 'full'" in text.replace("\n", " ")
    assert "Parameters against those of 'full'" in text
    row = found.moments["small"]
    ratio = 51 / 43
    assert np.all(np.abs(row.variance_ratio - ratio) < 4.5 * row.variance_ratio_standard_error)
    # two halves of one posterior: no shift beyond the error
    assert np.all(np.abs(found.moment_floor.shift) < 4.5 * found.moment_floor.shift_standard_error)
    content = found.as_dict()
    assert content["moments"]["small"]["shift"] == row.shift.tolist()
    assert content["reweighting"]["small"]["pareto_k"] == weights.pareto_k
    page = report(found, tmp_path / "r.html", posteriors=posteriors, model=MODEL).read_text()
    assert "Marginals under each posterior" in page
    assert f'<th scope="row">{SITE}[1]</th>' in page
    assert pyplot.get_fignums() == []


def test_sources_are_checked() -> None:
    pair = {name: made(np.zeros(2), DEVIATION, draws=20) for name in ("full", "small")}
    with pytest.raises(ValueError, match=r"sources names 'tiny'; the posteriors are \['full', 'small'\]"):
        compare_posteriors(pair, DATA.test, sources={"tiny": DATA, "full": DATA})
    with pytest.raises(ValueError, match="sources must hold the data of the reference, 'full'"):
        compare_posteriors(pair, DATA.test, sources={"small": DATA})
    cold = {**pair, "small": dataclasses.replace(pair["small"], metadata={"temperature": 0.5})}
    with pytest.raises(ValueError, match=r"'small' cannot be weighted to 'full': .* at temperature 0.5"):
        compare_posteriors(cold, DATA.test, sources={"small": DATA, "full": DATA})


def test_marginals_lie_over_each_other(pair: dict[str, Posterior]) -> None:
    collection = plot_marginals(pair)
    assert list(collection.viz["dist"].data_vars) == [f"{SITE}[0]", f"{SITE}[1]"]
    curves = collection.viz["dist"][f"{SITE}[0]"]
    for name, mean in (("full", 0.0), ("small", SHIFT[0] * DEVIATION[0])):
        x, density = curves.sel(model=name).item().get_data()
        assert np.average(x, weights=density - density.min()) == pytest.approx(mean, abs=0.05)
    figure = collection.viz["figure"].item()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["full", "small"]
    pyplot.close(figure)
    one = plot_marginals(pair, max_parameters=1, kind="hist")
    assert list(one.viz["dist"].data_vars) == [f"{SITE}[0]"]
    pyplot.close(one.viz["figure"].item())
    with pytest.raises(ValueError, match="'bare' kept no draws"):
        plot_marginals({**pair, "bare": dataclasses.replace(pair["full"], draws={})})
    with pytest.raises(ValueError, match="'other' has the sites"):
        plot_marginals({**pair, "other": dataclasses.replace(pair["full"], draws={"b": np.zeros((4, 2000))})})
    with pytest.raises(ValueError, match="posteriors is empty"):
        plot_marginals({})


def test_energies_are_drawn_where_the_kernel_has_them(pair: dict[str, Posterior]) -> None:
    energy = RNG.normal(size=(4, 2000))
    collection = plot_energy(dataclasses.replace(pair["full"], sample_stats={"energy": energy}))
    points = next(iter(collection.viz["bfmi_points"].data_vars.values())).values.ravel()
    shown = np.sort(np.concatenate([np.asarray(dots.get_offsets())[:, 0] for dots in points if dots is not None]))
    bfmi = (np.diff(energy) ** 2).mean(1) / energy.var(1)
    np.testing.assert_allclose(shown, np.sort(bfmi), rtol=1e-2)
    pyplot.close(collection.viz["figure"].item())
    with pytest.raises(ValueError, match="energy of each draw, which the kernel 'sghmc' does not report"):
        plot_energy(dataclasses.replace(pair["full"], metadata={"kernel": "sghmc"}))
