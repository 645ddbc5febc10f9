"""The figures of ``pseudocoreset demo``, for the record.

python benchmarks/digits_demo.py --seeds 3 --work DIR --out benchmarks/results/digits_demo.json
"""

import argparse
import json
import pathlib

import jax
from machine import describe_machine

from pseudocoreset.demo import run_demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    runs = [
        {"seed": seed, **run_demo(args.work / f"seed-{seed}", key=jax.random.key(seed), progress=False)}
        for seed in range(args.seeds)
    ]
    args.out.write_text(json.dumps({"runs": runs, "machine": describe_machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
