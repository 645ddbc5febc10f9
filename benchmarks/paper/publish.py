"""The coresets that come with the package: learned by ``run.py``, with cards that say how and what they are worth.

    python benchmarks/paper/publish.py --data-dir DIR --work DIR [--grid paper]

Takes coresets from the ``--work`` folder of ``run.py`` and scores from ``--results``, and writes
``benchmarks/coresets``: a folder a coreset, which ``load_coreset`` reads by its name, and a table of all. Which ones is
not chosen by score on test images: the methods and the seed are fixed here.
"""

import argparse
import pathlib
from dataclasses import replace
from typing import Any

from cells import GRIDS, METHODS, Cell, Scale, grid, settings
from run import Bench, Results

import pseudocoreset as pc

HERE = pathlib.Path(__file__).resolve().parent
SEED = 0
# What learns, by the name that a coreset is called.
CHOSEN = {
    "fbpc": "function_kl",
    "fbpc-isotropic": "function_kl_isotropic",
    "fbpc-norms": "function_kl_norms",
    "dm": "distribution_matching",
}
HEADING = """# Coresets that come with the package

Made by `benchmarks/paper/publish.py`; do not edit. `pseudocoreset.load_coreset(name)` reads one, `coreset_names()`
lists them. Learned on CPU cores with small networks in tens of steps: good starts and test objects, far from the
best that the methods reach. Accuracy and NLL are those of the posterior, sampled by SGHMC (protocol `default`), on test
images that took no part in learning; one seed, not chosen by its score. Each folder has its card.

"""
TABLE = """| name | method | network | points | accuracy (%) | NLL |
|---|---|---|---|---|---|
"""


def card(cell: Cell, scale: Scale, record: dict[str, Any]) -> dict[str, Any]:
    """What the coreset of a cell was learned with, and how it was scored."""
    found = settings(scale, cell)
    network = found["scored"]["network"]
    return {
        "method": METHODS[cell.method].label,
        "network": f"{network['class']} {network['depth']}x{network['width']}",
        "learned_with": {name: found[name] for name in ("coreset", "experts") if name in found},
        "scored_by": found["scored"],
        "scores": {name: value[0] for name, value in record["metrics"].items()},
        "seconds_of_fit": record["fit"]["seconds"],
    }


def row(name: str, coreset: pc.Pseudocoreset) -> str:
    """Of the table."""
    about = coreset.metadata["card"]
    scores = about["scores"]
    return (
        f"| `{name}` | {about['method']} | {about['network']} | {coreset.size} | {100 * scores['accuracy']:.1f} | "
        f"{scores['nll']:.2f} |\n"
    )


def page(name: str, coreset: pc.Pseudocoreset) -> str:
    """The card of one coreset."""
    about = coreset.metadata["card"]
    scores = "\n".join(f"- {metric}: {value}" for metric, value in about["scores"].items())
    scored = about["scored_by"]
    return (
        f"# {name}\n\n{TABLE}{row(name, coreset)}\n`pseudocoreset.load_coreset({name!r})`. Its weights sum to "
        f"{coreset.mass:g}. By the protocol `{scored['protocol']}`, with `mass={scored['mass']!r}`:\n\n{scores}\n\n"
        "How it was learned and scored is under `card` in the metadata of `coreset.json`.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", default="cpu", choices=list(GRIDS))
    parser.add_argument("--data-dir")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--results", type=pathlib.Path, default=HERE.parent / "results" / "paper")
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent / "coresets")
    args = parser.parse_args()
    for scale in grid(args.grid):
        done = Results(args.results / f"{scale.name}.json").done(scale)
        bench = Bench(scale, args.data_dir, args.work / scale.name)
        for short, method in CHOSEN.items():
            for size in scale.sizes:
                cell = Cell(scale.name, method, size, next(iter(scale.networks)), "default", SEED)
                if cell not in done:
                    continue
                name = f"{scale.name.replace('_', '-')}-{short}-{size}"
                coreset, _ = bench.coreset(cell)
                coreset = replace(coreset, metadata={**coreset.metadata, "card": card(cell, scale, done[cell])})
                coreset.save(args.out / name)
                (args.out / name / "README.md").write_text(page(name, coreset))
                print(row(name, coreset), end="", flush=True)
    every = {path.parent.name: pc.Pseudocoreset.load(path.parent) for path in sorted(args.out.glob("*/coreset.json"))}
    (args.out / "README.md").write_text(HEADING + TABLE + "".join(row(*item) for item in every.items()))


if __name__ == "__main__":
    main()
