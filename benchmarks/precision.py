"""What the precision of a network's products changes in results.

    python benchmarks/precision.py --work DIR --out benchmarks/results/precision.json

``pseudocoreset demo`` with the network in float32; with convolutions and dense layers that round their factors, forward
and backward, to the 10 bits of TF32, sums and everything else in float32; and with ``ConvNet(dtype="bfloat16")``. The
second is the arithmetic of ``jax.default_matmul_precision("tensorfloat32")`` on a GPU, on any machine, and none of its
speed. Experts, coreset and the three posteriors all see it. A run goes on from the runs that are in ``--out``.
"""

import argparse
import functools
import json
import pathlib
from typing import Any

import flax.linen as nn
import jax
from machine import describe_machine

import pseudocoreset.demo
from pseudocoreset.demo import run_demo
from pseudocoreset.models import ConvNet
from pseudocoreset.models.layers import Conv, Dense

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
BITS = 10


def rounded(x: jax.Array) -> jax.Array:
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=BITS)


@jax.custom_vjp
def as_it_is(x: jax.Array) -> jax.Array:
    """Its cotangent, a factor of the products of the backward pass, is rounded."""
    return x


as_it_is.defvjp(lambda x: (x, None), lambda _, cotangent: (rounded(cotangent),))


class RoundingConvNet(ConvNet):
    """The reference network, the factors of its products rounded."""

    @nn.nowrap
    def apply(self, variables: Any, *arguments: Any, **named: Any) -> Any:
        def layer(call: Any, inputs: tuple, named_inputs: dict, context: nn.module.InterceptorContext) -> Any:
            if isinstance(context.module, Conv | Dense) and context.method_name == "__call__":
                return as_it_is(call(rounded(inputs[0]), **named_inputs))
            return call(*inputs, **named_inputs)

        def weight(path: Any, leaf: jax.Array) -> jax.Array:
            return rounded(leaf) if path[-1].key == "kernel" else leaf

        with nn.intercept_methods(layer):
            return super().apply(jax.tree_util.tree_map_with_path(weight, variables), *arguments, **named)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    args = parser.parse_args()
    networks = {
        "float32": ConvNet,
        "tensorfloat32": RoundingConvNet,
        "bfloat16": functools.partial(ConvNet, dtype="bfloat16"),
    }
    runs = json.loads(args.out.read_text())["runs"] if args.out.is_file() else []
    for seed in args.seeds:
        for precision in args.only:
            if any(run["seed"] == seed and run["precision"] == precision for run in runs):
                continue
            pseudocoreset.demo.ConvNet = networks[precision]
            found = run_demo(args.work / f"{precision}-{seed}", key=jax.random.key(seed), progress=False)
            runs.append({"seed": seed, "precision": precision, **found})
            scores = {name: (found[name]["accuracy"], found[name]["nll"]) for name in ("full", "fbpc", "random")}
            print(seed, precision, json.dumps(scores), flush=True)
            content = {"what": __doc__.split("\n\n")[2], "runs": runs, "machine": describe_machine()}
            args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
