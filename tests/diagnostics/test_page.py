"""The page: self-contained, well formed, escaped, true to the numbers, written whole; light imports."""

from __future__ import annotations

import dataclasses
import html.parser
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import pyplot

from pseudocoreset.coreset import Pseudocoreset
from pseudocoreset.data import Dataset
from pseudocoreset.diagnostics import Comparison, compare_posteriors, report
from pseudocoreset.inference import Posterior
from pseudocoreset.models import Model

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and collects text and references."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def comparison(run: dict[str, Posterior], network: Model, images: Dataset) -> Comparison:
    return compare_posteriors(run, images.test, max_inputs=10)


@pytest.fixture(scope="module")
def page(
    comparison: Comparison,
    run: dict[str, Posterior],
    network: Model,
    images: Dataset,
    coreset: Pseudocoreset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Page:
    path = tmp_path_factory.mktemp("report") / "new folder" / "report ü.html"
    written = report(
        comparison,
        path,
        coreset=coreset,
        data=images,
        history={"loss": np.array([2.0, 1.0])},
        posteriors=run,
        model=network,
        title="A <b>bold</b> title & more",
        details={"note": "<script>alert(1)</script>"},
    )
    assert written == path
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    return Page(path.read_text(encoding="utf-8"))


def test_it_needs_nothing_else(page: Page) -> None:
    assert page.references
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not {"script", "link", "iframe", "object"} & set(page.seen)
    assert "url(" not in page.text
    assert "@import" not in page.text


def test_everything_is_escaped(page: Page) -> None:
    assert "b" not in page.seen
    assert "A <b>bold</b> title & more" in page.text
    assert "<script>alert(1)</script>" in page.text


def test_it_says_the_numbers(page: Page, comparison: Comparison) -> None:
    scores = comparison.metrics["coreset"]
    assert f"{scores.accuracy:.3f} ±" in page.text
    assert f"'coreset' is right on {scores.accuracy:.1%} of held-out examples with NLL {scores.nll:.3f}" in page.text
    assert f"Both name the same class on {comparison.agreement['coreset'].top1:.1%}" in page.text
    noise = comparison.noise["coreset"].agreement.total_variation
    assert f"98 of 100 pairs of runs of one law stay below {noise:.3f}" in page.text
    assert "two runs of one law" in page.text
    assert "R-hat max" in page.text
    gap = comparison.differences["coreset"]
    assert f"{abs(gap.elpd):.3f} ± {gap.elpd_standard_error:.3f} nats over 30 examples" in page.text


def test_the_mass_is_always_said(page: Page) -> None:
    assert "The coreset has 6 points for 60 data (10.00%); the mass of the weights is 6, 0.100 times" in page.text
    assert "Total weight of the data behind each posterior: 'coreset' 6, 'full' 60." in page.text
    assert "'full' at temperature 0.5" in page.text


def test_it_has_its_pictures_and_its_provenance(page: Page) -> None:
    # coreset, at a glance, calibration, agreement, forest, trace, rank and ESS of two posteriors, history
    assert page.seen.count("img") == 12
    assert '"kernel": "sghmc"' in page.text
    assert '"blackjax"' in page.text
    assert pyplot.get_fignums() == []


def test_mass_of_the_full_data_is_recognised(
    comparison: Comparison, coreset: Pseudocoreset, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ValueError, match="path must name a file to write; got ''"):
        report(comparison, "")
    path = report(comparison, tmp_path / "r.html", coreset=coreset.with_mass("data"))
    assert "the mass of the weights is 60, the scale of the full-data posterior" in Page(path.read_text()).text


def test_verdict_follows_the_numbers(
    softmax: tuple[Model, object],
    softmax_posterior: Posterior,
    tools: SimpleNamespace,
    tmp_path: pathlib.Path,
) -> None:
    same = compare_posteriors({"coreset": softmax_posterior, "full": softmax_posterior}, softmax[1])
    text = Page(report(same, tmp_path / "same.html").read_text()).text
    assert "within the noise of sampling" in text
    assert "Both name the same class on 100.0%" in text
    draws = tools.random_draws(*softmax, seed=9)
    draws["weights"] = 30 * np.ones_like(draws["weights"]) * np.array([1, 0, -1])
    wrong = tools.make_posterior(*softmax, draws)
    poor = compare_posteriors({"coreset": wrong, "full": softmax_posterior}, softmax[1])
    text = Page(report(poor, tmp_path / "poor.html").read_text()).text
    assert "more than the noise of sampling" in text
    assert "no better than that of uniform guessing" in text
    good = dataclasses.replace(
        same,
        convergence={n: dataclasses.replace(c, rhat_max=1.0, ess_min=1e4) for n, c in same.convergence.items()},
    )
    text = Page(report(good, tmp_path / "good.html").read_text()).text
    assert "The chains of 'coreset', 'full' agree" in text
    assert "Not converged" not in text
    bad = dataclasses.replace(
        same,
        convergence={n: dataclasses.replace(c, rhat_max=1.7, num_divergences=2) for n, c in same.convergence.items()},
    )
    text = Page(report(bad, tmp_path / "bad.html").read_text()).text
    assert "Not converged by the usual standard: 'coreset' (R-hat up to 1.700" in text
    assert "Divergent transitions: 'coreset' 2, 'full' 2" in text


def test_regression_page(tools: SimpleNamespace, tmp_path: pathlib.Path) -> None:
    random = np.random.default_rng(5)
    split = tools.make_split(random.standard_normal((40, 2)), random.standard_normal(40).astype(np.float32))
    model = Model.from_numpyro(tools.linear).bind(split.x, split.y)
    posterior = tools.make_posterior(model, split, tools.random_draws(model, split, seed=2))
    found = compare_posteriors({"coreset": posterior, "full": posterior}, split, max_inputs=5)
    text = Page(report(found, tmp_path / "r.html").read_text()).text
    assert "RMSE" in text
    assert "0.000 standard deviations of 'full' away" in text
    assert "Calibration" not in text


def test_several_splits_have_their_sections(
    softmax: tuple[Model, object], softmax_posterior: Posterior, tmp_path: pathlib.Path
) -> None:
    _, split = softmax
    both = compare_posteriors({"full": softmax_posterior}, {"test": split, "less": split.head(20)}, max_inputs=5)
    text = Page(report(both, tmp_path / "r.html").read_text()).text
    for words in ("In short, on test", "In short, on less", "At a glance, on test", "At a glance, on less"):
        assert text.count(words) == 1
    assert text.index("Predictions on 60 held-out") < text.index("Predictions on 20 held-out")


def test_a_failed_write_leaves_the_old_page(
    comparison: Comparison, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        report(comparison, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_chains_need_the_model(comparison: Comparison, run: dict[str, Posterior], tmp_path: pathlib.Path) -> None:
    nameless = {name: dataclasses.replace(posterior, model=None) for name, posterior in run.items()}
    with pytest.raises(ValueError, match="the model is needed, and the posterior 'coreset' does not know it"):
        report(comparison, tmp_path / "r.html", posteriors=nameless)
    assert list(tmp_path.iterdir()) == []


def test_importing_is_light() -> None:
    code = (
        "import sys, pseudocoreset.diagnostics, jax;"
        "heavy = {'matplotlib', 'arviz_plots', 'arviz_base', 'arviz_stats', 'tensorflow_datasets', 'xarray'};"
        "print(sorted(heavy & set(sys.modules)), len(jax.live_arrays()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[] 0"
