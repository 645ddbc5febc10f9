"""The coresets that come with the package: learned by ``run.py``, with cards that say how and what they are worth.

    python benchmarks/paper/publish.py --data-dir DIR --work DIR

Takes coresets from the ``--work`` folder of ``run.py`` and scores from ``--results``, and writes
``benchmarks/coresets``: a folder a coreset, which ``load_coreset`` reads by its name, and a table of all. Which ones is
not chosen by score on test images: the methods and the seed are fixed here.
"""

import argparse
import pathlib
from dataclasses import replace
from typing import Any

from cells import METHODS, Cell, grid, settings
from run import Bench, Results

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
lists them. Learned on two CPU cores with small networks in tens of steps: good starts and test objects, far from the
best that the methods reach. Accuracy and NLL are those of the posterior, sampled by SGHMC (protocol `default`), on test
images that took no part in learning; one seed, not chosen by its score. Each folder has its card.

| name | method | network | points | accuracy (%) | NLL |
|---|---|---|---|---|---|
"""


def card(cell: Cell, scale: Any, record: dict[str, Any]) -> dict[str, Any]:
    found = settings(scale, cell)
    return {
        "method": METHODS[cell.method].label,
        "learned_with": {name: found[name] for name in ("coreset", "experts") if name in found},
        "scored_by": found["scored"],
        "scores": {name: value[0] for name, value in record["metrics"].items()},
        "seconds_of_fit": record["fit"]["seconds"],
    }


def page(name: str, about: dict[str, Any], line: str) -> str:
    scores = "\n".join(f"- {metric}: {value}" for metric, value in about["scores"].items())
    return (
        f"# {name}\n\n{HEADING[HEADING.index('| name') :]}{line}\n\n"
        f"`pseudocoreset.load_coreset({name!r})`. By the protocol `{about['scored_by']['protocol']}`:\n\n{scores}\n\n"
        "How it was learned and scored is under `card` in the metadata of `coreset.json`.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--results", type=pathlib.Path, default=HERE.parent / "results" / "paper")
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent / "coresets")
    args = parser.parse_args()
    lines = []
    for scale in grid("cpu"):
        done = Results(args.results / f"{scale.name}.json").done(scale)
        bench = Bench(scale, args.data_dir, args.work / scale.name)
        network = next(iter(scale.networks))
        for short, method in CHOSEN.items():
            for size in scale.sizes:
                cell = Cell(scale.name, method, size, network, "default", SEED)
                if cell not in done:
                    continue
                name = f"{scale.data}-{short}-{size}"
                about = card(cell, scale, done[cell])
                coreset, _ = bench.coreset(cell)
                scores = about["scores"]
                module = scale.networks[network]
                line = (
                    f"| `{name}` | {about['method']} | ConvNet {module.depth}x{module.width} | {coreset.size} | "
                    f"{100 * scores['accuracy']:.1f} | {scores['nll']:.2f} |"
                )
                replace(coreset, metadata={**coreset.metadata, "card": about}).save(args.out / name)
                (args.out / name / "README.md").write_text(page(name, about, line))
                lines.append(line)
                print(line, flush=True)
    (args.out / "README.md").write_text(HEADING + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
