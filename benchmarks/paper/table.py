"""Tables of what ``run.py`` has measured, beside what the papers print.

    python benchmarks/paper/table.py --results benchmarks/results/paper --out benchmarks/paper/RESULTS.md

A row is one (method, images a class) of which at least one cell was run; what was not run has no row, and each table
says how many cells it lacks. A published figure stands beside ours only where data, network and protocol are those of
the table that it is from (``published.json``), and whether the settings are, the heading says. Below each table: the
pairs of methods that its papers put in an order, and in which of them ours is the same.
"""

import argparse
import itertools
import json
import math
import pathlib
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cells import GRIDS, METHODS, Scale, cells
from run import Results

PUBLISHED = pathlib.Path(__file__).with_name("published.json")
COMPARABLE = ("cifar10", "cifar100", "tiny_imagenet")  # scales of the papers' size
CLEAR = 2.0  # standard errors of a difference of means over seeds
PROTOCOLS = {
    "default": "the posterior of the coreset, sampled by SGHMC (ours)",
    "fbpc2023": "SGHMC as in the paper of FBPC",
    "kim2022": "SGHMC as in the code of Kim et al. 2022, no valid sampler",
    "distillation": "networks trained by SGD, each scored alone",
    "corruptions": "ten corruptions of CIFAR-10-C, averages over severities",
}


@dataclass(frozen=True)
class Row:
    """Means over seeds, and their standard deviations."""

    method: str
    images_per_class: int
    num_seeds: int
    metrics: dict[str, tuple[float, float | None]]
    published: dict[str, Any] | None

    @property
    def gap(self) -> float | None:
        """Our accuracy less the published one, in points."""
        if self.published is None:
            return None
        return 100 * self.metrics["accuracy"][0] - self.published["accuracy"][0]


def rows_of(records: Iterable[dict[str, Any]], published: Iterable[dict[str, Any]]) -> list[Row]:
    """A row a method and number of images a class, in the order of the methods."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for one in records:
        if "metrics" in one:
            groups.setdefault((one["images_per_class"], one["method"]), []).append(one["metrics"])
    order = list(METHODS)
    rows = []
    for (size, method), group in sorted(groups.items(), key=lambda item: (item[0][0], order.index(item[0][1]))):
        names = [name for name in group[0] if all(name in one for one in group)]
        metrics = {name: _mean(one[name][0] for one in group) for name in names}
        found = [one for one in published if (one["method"], one["images_per_class"]) == (method, size)]
        rows.append(Row(method, size, len(group), metrics, found[0] if found else None))
    return rows


def _mean(values: Iterable[float]) -> tuple[float, float | None]:
    every = list(values)
    return statistics.fmean(every), statistics.stdev(every) if len(every) > 1 else None


def order(rows: list[Row]) -> tuple[list[str], list[str], list[str]]:
    """Pairs that the papers put in an order: those in the same, in the opposite, and those too close to tell.

    The papers order a pair where their figures, from one source, differ by more than the sum of their spreads; ours are
    in an order where the difference is more than twice its standard error over seeds.
    """
    same, opposite, close = [], [], []
    for one, other in itertools.combinations(rows, 2):
        a, b = one.published, other.published
        if a is None or b is None or a["source"] != b["source"] or one.images_per_class != other.images_per_class:
            continue
        theirs = a["accuracy"][0] - b["accuracy"][0]
        if abs(theirs) <= (a["accuracy"][1] or 0.0) + (b["accuracy"][1] or 0.0):
            continue
        ours = one.metrics["accuracy"][0] - other.metrics["accuracy"][0]
        better, worse = (one, other) if theirs > 0 else (other, one)
        text = f"{METHODS[better.method].label} over {METHODS[worse.method].label} ({one.images_per_class})"
        spreads = [row.metrics["accuracy"][1] for row in (one, other)]
        if any(spread is None for spread in spreads):
            close.append(text)
            continue
        error = math.sqrt(sum(s**2 / row.num_seeds for s, row in zip(spreads, (one, other), strict=True)))
        (close if abs(ours) <= CLEAR * error else same if ours * theirs > 0 else opposite).append(text)
    return same, opposite, close


def table(scale: Scale, network: str, protocol: str, content: dict[str, Any], published: dict[str, Any]) -> list[str]:
    """Lines of one table; none where no cell of it was run."""
    wanted = [cell for cell in cells(scale) if (cell.network, cell.protocol) == (network, protocol)]
    records = [content[cell] for cell in wanted if cell in content]
    figures = [
        one
        for one in published["figures"]
        if (one["data"], one["network"], one["protocol"]) == (scale.data, network, protocol)
    ]
    rows = rows_of(records, figures)
    failed = [cell for cell in wanted if "failed" in content.get(cell, {})]
    if not rows and not failed:
        return []
    lines = [f"### {scale.data}, {network}, protocol `{protocol}`: {PROTOCOLS[protocol]}", ""]
    changed = {str(count or "all"): dict(chosen) for count, chosen in scale.protocols[protocol].items() if chosen}
    said = "; ".join(
        ("" if count == "all" else f"{count} a class: ") + ", ".join(f"{k} = {v}" for k, v in chosen.items())
        for count, chosen in changed.items()
    )
    lines.append(f"Settings other than the protocol's own: {said or 'none'}.")
    comparable = scale.name in COMPARABLE
    has_published = any(row.published for row in rows)
    if has_published and not comparable:
        lines.append(
            "Published figures are by this protocol, but with larger networks, more experts and more steps: a gap is "
            "no failure to reproduce."
        )
    lines.append("")
    batch = any("nll_batchmean" in row.metrics for row in rows)
    member = any("nll_member" in row.metrics for row in rows)
    heads = ["method", "images a class", "accuracy (%)", "NLL of the average"]
    heads += ["mean NLL of draws"] * member + ["NLL, published formula"] * batch
    heads += ["published accuracy", "published NLL", "gap (points)", "source"] * has_published + ["seeds"]
    lines += [_line(heads), _line(["---"] * len(heads))]
    for row in rows:
        line = [METHODS[row.method].label, str(row.images_per_class), _shown(row.metrics["accuracy"], 100.0, 1)]
        line.append(_shown(row.metrics.get("nll")))
        line += [_shown(row.metrics.get("nll_member"))] * member + [_shown(row.metrics.get("nll_batchmean"))] * batch
        if has_published:
            found = row.published
            line += ["", "", "", ""] if found is None else [
                _shown(found["accuracy"], 1.0, 2),
                _shown(found.get("nll")),
                f"{row.gap:+.1f}",
                f"{found['source']}, {found['where']}",
            ]  # fmt: skip
        lines.append(_line([*line, str(row.num_seeds)]))
    lines.append("")
    missing = sum(cell not in content for cell in wanted)
    if missing:
        lines.append(f"Not run yet: {missing} of {len(wanted)} cells.")
    if failed:
        lines.append(f"Left the finite numbers: {', '.join(map(str, failed))}.")
    if has_published:
        lines += _order_said(rows)
    return [*lines, ""]


def _order_said(rows: list[Row]) -> list[str]:
    same, opposite, close = order(rows)
    if not same and not opposite and not close:
        return []
    lines = [
        f"Of {len(same) + len(opposite) + len(close)} pairs that the papers put in an order, {len(same)} are in the "
        f"same here, {len(opposite)} in the opposite, {len(close)} too close to tell over these seeds."
    ]
    return lines + ([f"Opposite: {'; '.join(opposite)}."] if opposite else [])


def _line(parts: list[str]) -> str:
    return f"| {' | '.join(parts)} |"


def _shown(value: Any, factor: float = 1.0, digits: int = 2) -> str:
    if value is None:
        return ""
    mean, spread = value
    return f"{factor * mean:.{digits}f}" + ("" if spread is None else f" ± {factor * spread:.{digits}f}")


def document(results: pathlib.Path, published: dict[str, Any], grids: dict[str, tuple[Scale, ...]]) -> str:
    """All tables that have a row."""
    lines = [
        "# Beside the papers",
        "",
        "Made by `table.py` from the files of `run.py`; do not edit. Ours: mean and standard deviation over seeds, "
        "each with its own start, fit and evaluation. The NLL of the average is that of the model average; the mean "
        "NLL of draws is that of single draws; the published formula (`nll_batchmean`) is that of the code of Kim et "
        "al. 2022, close to the latter. Uniform prediction of ten classes has 2.303.",
        "",
    ]
    any_table, sources = False, set()
    for scales in grids.values():
        for scale in scales:
            content = Results(results / f"{scale.name}.json").done(scale)
            tables = [
                line
                for protocol in PROTOCOLS
                for network in scale.networks
                for line in table(scale, network, protocol, content, published)
            ]
            if tables:
                any_table = True
                lines += [f"## {scale.name}", "", scale.what[0].upper() + scale.what[1:] + ".", "", *tables]
                sources |= {one["source"] for one in published["figures"] if one["data"] == scale.data}
    if not any_table:
        lines += ["Nothing has been run yet.", ""]
    if sources:
        lines += ["## Sources", ""]
        lines += [f"- {name}: {published['sources'][name]}" for name in published["sources"] if name in sources]
        lines += ["", *(f"- {note}" for note in published["notes"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path(__file__).parents[1] / "results" / "paper")
    parser.add_argument("--out", type=pathlib.Path, help="print if none")
    args = parser.parse_args()
    text = document(args.results, json.loads(PUBLISHED.read_text()), GRIDS)
    if args.out is None:
        print(text)
    else:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
