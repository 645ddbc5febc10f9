"""One self-contained HTML page that says how good a coreset is, to somebody who has not seen one before."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from pseudocoreset.arguments import checked
from pseudocoreset.diagnostics.comparison.pictures import plot_agreement, plot_comparison, plot_reliability
from pseudocoreset.diagnostics.comparison.result import Comparison, Comparisons
from pseudocoreset.diagnostics.comparison.tables import tables_with_notes
from pseudocoreset.diagnostics.comparison.verdict import sentences_of
from pseudocoreset.diagnostics.distances.agreement import UNIFORM
from pseudocoreset.diagnostics.plots.chains import (
    MIN_DRAWS,
    plot_energy,
    plot_ess,
    plot_forest,
    plot_marginals,
    plot_rank,
    plot_trace,
)
from pseudocoreset.diagnostics.plots.coreset import plot_coreset
from pseudocoreset.diagnostics.plots.history import plot_history
from pseudocoreset.formatting import html_table, json_values
from pseudocoreset.inference.posterior.arviz import check_coreset
from pseudocoreset.inference.posterior.likelihoods import same_data
from pseudocoreset.inference.posterior.model import accepts_model, held_out, model_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pseudocoreset.coreset import Pseudocoreset
    from pseudocoreset.data import Dataset, Split
    from pseudocoreset.inference import Posterior

__all__ = ["report"]

_STYLE = """
:root { --ink: #1d2733; --soft: #5b6875; --line: #dde3e9; --tint: #f5f7f9; --accent: #1f5fa8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--tint); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
section { background: white; border: 1px solid var(--line); border-radius: 10px; margin: 1rem 0;
  padding: 1.2rem 1.4rem; }
section.verdict { border-left: 5px solid var(--accent); font-size: 1.08rem; }
section.verdict p { margin: .4rem 0; }
p.note, figcaption { color: var(--soft); font-size: .9rem; margin: .4rem 0 .8rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .5rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; }
th[scope=row] { text-align: left; font-weight: 600; }
tbody tr:last-child > * { border-bottom: 0; }
figure { margin: .5rem 0; }
img { max-width: 100%; height: auto; }
details summary { cursor: pointer; font-weight: 600; }
pre { background: var(--tint); padding: .8rem; border-radius: 6px; overflow-x: auto; font-size: .82rem; }
"""


@accepts_model
@checked
def report(
    comparison: Comparison | Comparisons,
    path: str | os.PathLike[str],
    *,
    coreset: Pseudocoreset | None = None,
    data: Dataset | Split | None = None,
    history: Mapping[str, ArrayLike] | None = None,
    posteriors: Mapping[str, Posterior] | None = None,
    title: str = "Pseudocoreset report",
    details: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Write a comparison as one HTML file that needs nothing else; it appears whole or not at all.

    Args:
        comparison: What ``compare_posteriors`` returned; of several splits, each gets its sections.
        path: The file to write; an existing one is replaced.
        coreset: Shown beside real data, with its size and the mass of its weights.
        data: The real data; a ``Dataset`` gives its train split.
        history: The course of the fit, series by name (``FitResult.history``).
        posteriors: The posteriors that were compared, for plots of their chains, of predictions side by side, and of
            the marginals of few parameters.
        title: Heading of the page.
        details: Anything more to record, JSON-able.

    Returns:
        The path.

    Raises:
        ValueError: A path without a name, a posterior that does not know its model, or a ``coreset`` that none of the
            posteriors was sampled on.
    """
    if not pathlib.Path(path).name:
        raise ValueError(f"path must name a file to write; got {os.fspath(path)!r}")
    for name, posterior in (posteriors or {}).items():
        model_of(posterior, f"the posterior {name!r}")
    if coreset is not None:
        comparisons = [comparison] if isinstance(comparison, Comparison) else comparison.values()
        check_coreset(coreset, [settings for one in comparisons for settings in one.settings.values()])
    by_split = {"": comparison} if isinstance(comparison, Comparison) else dict(comparison)
    where = {split: f", on {split}" if split else "" for split in by_split}
    main, *others = by_split
    first = by_split[main]
    parts = [_verdict(first, coreset, where[main])]
    parts += [_verdict(by_split[split], None, where[split]) for split in others]
    if coreset is not None:
        caption = "The coreset beside real data." if data is not None else "The coreset."
        parts.append(_section("What the coreset looks like", _figure(plot_coreset(coreset, data), caption)))
    parts += [_findings(found, posteriors or {}, where[split]) for split, found in by_split.items()]
    chains = _chains(posteriors or {})
    if chains:
        parts.append(_section("Chains", chains))
    if history:
        parts.append(_section("Course of the fit", _figure(plot_history(history), "Recorded at each step.")))
    parts.append(_how_it_was_made(first, coreset, details))
    heading = html.escape(title)
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{heading}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><main><h1>{heading}</h1>{''.join(parts)}</main></body></html>\n"
    )
    return _write_atomically(pathlib.Path(path), page)


def _section(title: str, content: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f"<section{attribute}><h2>{html.escape(title)}</h2>{content}</section>"


def _verdict(comparison: Comparison, coreset: Pseudocoreset | None, where: str) -> str:
    paragraphs = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences_of(comparison, coreset))
    return _section(f"In short{where}", paragraphs, "verdict")


def _findings(comparison: Comparison, posteriors: Mapping[str, Posterior], where: str = "") -> str:
    """Figures and tables of one split."""
    caption = "Lines are 95 % intervals; a broken line is the noise floor, two halves of the reference."
    parts = [_section(f"At a glance{where}", _figure(plot_comparison(comparison), caption)), _tables(comparison)]
    parts.append(_calibration_and_agreement(comparison))
    if comparison.moments:
        parts.append(_parameters(comparison, posteriors))
    return "".join(parts)


def _tables(comparison: Comparison) -> str:
    return "".join(
        f'<section><div class="wide">{html_table(table)}</div><p class="note">{html.escape(note)}</p></section>'
        for table, note in tables_with_notes(comparison)
    )


def _parameters(comparison: Comparison, posteriors: Mapping[str, Posterior]) -> str:
    """Every parameter of a small model: shifts and ratios, and the marginals over each other."""
    content = ""
    compared = {
        name: posteriors[name] for name in (str(comparison.reference), *comparison.moments) if name in posteriors
    }
    if compared:
        with _closing(plot_marginals(compared)) as figure:
            content += _figure(figure, "Marginals under each posterior, of a dozen parameters at most.")
    for name, row in comparison.moments.items():
        table = html_table(row.table(f"{name}: shifts of means in standard deviations of {comparison.reference}"))
        content += f'<details><summary>{html.escape(name)}</summary><div class="wide">{table}</div></details>'
    return _section("Parameters", content)


def _calibration_and_agreement(comparison: Comparison) -> str:
    parts = []
    if comparison.is_classification:
        figure = plot_reliability(comparison)
        caption = "Calibrated predictions lie on the diagonal: of those made with confidence 0.8, 80% are right."
        parts.append(_section("Calibration", _figure(figure, caption)))
    has_predictions = comparison.is_classification or all(
        row.mean is not None for row in comparison.predictions.values()
    )
    if comparison.reference is not None and len(comparison.predictions) > 1 and has_predictions:
        others = [name for name in comparison.agreement if name != UNIFORM]
        if others:
            caption = "One dot a held-out example; posteriors that agree lie on the diagonal."
            parts.append(_section("Agreement with the reference", _figure(plot_agreement(comparison), caption)))
    return "".join(parts)


def _chains(posteriors: Mapping[str, Posterior]) -> str:
    content = ""
    evaluated = {name: posterior for name, posterior in posteriors.items() if posterior.predict_on is not None}
    if not evaluated:
        return content
    first = next(iter(evaluated.values()))
    alike = {name: row for name, row in evaluated.items() if same_data(held_out(first), held_out(row))}
    with _closing(plot_forest(alike)) as figure:
        content += _figure(figure, "Predictions and their spread at the held-out inputs where they vary most.")
    for name, posterior in evaluated.items():
        plots = [(plot_trace(posterior), "trace"), (plot_rank(posterior), "rank plot")]
        if posterior.num_draws >= MIN_DRAWS:
            plots.append(
                (
                    plot_ess(posterior, kind="evolution"),
                    "effective draws (blue: bulk, orange: tail) as more draws come in,",
                )
            )
        for collection, what in plots:
            with _closing(collection) as figure:
                caption = f"{name}: {what} of predictions at the held-out inputs where they vary most."
                content += _figure(figure, caption)
        if "energy" in posterior.sample_stats and posterior.num_draws >= MIN_DRAWS:
            with _closing(plot_energy(posterior)) as figure:
                content += _figure(figure, f"{name}: energies of the draws, and their changes from draw to draw.")
    return content


@contextlib.contextmanager
def _closing(collection: Any) -> Any:
    """The figure of a plot by arviz-plots, which registers it with pyplot; closed afterwards."""
    from matplotlib import pyplot

    figure = collection.viz["figure"].item()
    try:
        yield figure
    finally:
        pyplot.close(figure)


def _how_it_was_made(comparison: Comparison, coreset: Pseudocoreset | None, details: Mapping[str, Any] | None) -> str:
    record: dict[str, Any] = {f"posterior {name}": made for name, made in comparison.settings.items()}
    if coreset is not None:
        record["coreset"] = {"size": coreset.size, "mass": coreset.mass, **coreset.metadata}
    if details:
        record["details"] = dict(details)
    blocks = "".join(
        f"<details><summary>{html.escape(name)}</summary><pre>"
        f"{html.escape(json.dumps(json_values(content), indent=2, ensure_ascii=False))}</pre></details>"
        for name, content in record.items()
    )
    return _section("How it was made", blocks)


def _figure(figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    text = html.escape(caption)
    image = f'<img src="data:image/png;base64,{encoded}" alt="{text}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _write_atomically(path: pathlib.Path, text: str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
