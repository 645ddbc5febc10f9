"""In which form a GPU applies a convolutional network to one and to many parameter sets, at which precision.

    python benchmarks/batching_gpu.py --out benchmarks/results/batching_gpu.json [--profiles FOLDER] [--minutes 4]

SGD steps of a ConvNet in a scan, forward and backward: one network, ten by ``vmap`` and one after the other by
``lax.map``; convolutions as ``lax.conv``, as that but for the first layer as unfolding and one product ("mixed"), all
as the latter, and in Winograd's form where there are enough channels; in float32, with factors in TF32, and with
``dtype="bfloat16"``. Medians of interleaved repetitions, in milliseconds a step and network, and how far the weights
are from those of ``lax.conv`` in float32 after the steps, relative to how far they went. Beside them the same step in
eager PyTorch, and what the device does in a large matrix product and in a large copy. Backs the choices for GPUs in
``pseudocoreset/compute/backends.py``.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import torch
from launches import launches
from machine import describe_machine
from yardstick import CLASSES, Case, images, torch_descend, torch_images, torch_parameters

from pseudocoreset.compute import backends as batching
from pseudocoreset.models import ConvNet, bnn, layers

STEPS = 16
CASES = (
    Case(32, 3, 3, 128, 100),
    Case(32, 3, 3, 128, 256),
    Case(32, 3, 3, 128, 10),
    Case(32, 3, 3, 32, 100),
    Case(32, 3, 3, 128, 10, networks=10),
    Case(32, 3, 3, 32, 10, networks=10),
    Case(8, 1, 2, 16, 10, networks=10),
    Case(32, 3, 3, 128, 100, networks=10),
)
REFERENCE = "lax_conv, float32"
SINGLE = (REFERENCE, "mixed, float32", "tiles, float32", "lax_conv, tensorfloat32", "mixed, tensorfloat32",
          "matmul, tensorfloat32", "mixed, bfloat16", "matmul, bfloat16")  # fmt: skip
SEVERAL = (
    "map, lax_conv, float32", "map, tiles, float32", "vmap, tiles, float32", "map, mixed, tensorfloat32",
    "vmap, matmul, tensorfloat32", "map, mixed, bfloat16", "vmap, mixed, bfloat16", "vmap, matmul, bfloat16",
)  # fmt: skip


@contextlib.contextmanager
def written(form: str, precision: str) -> Iterator[None]:
    """Networks traced within have their convolutions in this form and precision."""

    def chosen(images: jax.Array, filters: jax.Array, padding: int, stride: int) -> str:
        if form == "tiles" and batching.tiles_are_worth_it(images, filters):
            return "winograd"
        few = form in ("mixed", "tiles") and images.shape[-1] <= batching.FEW_CHANNELS
        return "product" if form == "matmul" or few else "library"

    layers.convolution_form = chosen
    with jax.default_matmul_precision("tensorfloat32" if precision == "tensorfloat32" else "highest"):
        yield
    layers.convolution_form = batching.convolution_form


def training(case: Case, stacked: str, precision: str) -> tuple[Callable, tuple]:
    """SGD steps, and their arguments: networks, and the batches of each."""
    network = ConvNet(depth=case.depth, width=case.width, dtype="bfloat16" if precision == "bfloat16" else None)
    model = bnn(network, input_shape=(case.side, case.side, case.channels), num_outputs=CLASSES)
    x, y = images(case, STEPS * case.batch)
    batches = jnp.asarray(x).reshape(STEPS, case.batch, *x.shape[1:]), jnp.asarray(y).reshape(STEPS, case.batch)

    def one(params: Any, batches: Any) -> Any:
        def step(p: Any, batch: Any) -> tuple[Any, None]:
            gradient = jax.grad(lambda p: -model.log_likelihood(p, *batch).mean())(p)
            return jax.tree.map(lambda a, g: a - 0.01 * g, p, gradient), None

        return jax.lax.scan(step, params, batches)[0]

    stack = jax.vmap(model.init)(jax.random.split(jax.random.key(0), case.networks))
    if case.networks == 1:
        return one, (jax.tree.map(lambda leaf: leaf[0], stack), batches)
    own = jax.tree.map(lambda a: jnp.stack([jnp.roll(a, i, axis=0) for i in range(case.networks)]), batches)
    if stacked == "vmap":
        return jax.vmap(one), (stack, own)
    return lambda stack, own: jax.lax.map(lambda item: one(*item), (stack, own)), (stack, own)


def distance(start: Any, end: Any, reference: Any) -> float:
    """Of two ends of a training, relative to its length."""

    def squares(a: Any, b: Any) -> float:
        return float(sum(jnp.sum((x - y) ** 2) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)))

    return (squares(end, reference) / squares(start, reference)) ** 0.5


def ceilings() -> dict[str, float]:
    """Rates of a large product and of a copy."""
    side, repeats = 8192, 5
    a, b = (jax.random.normal(jax.random.key(i), (side, side)) for i in range(2))
    found = {}
    for precision, type_, told in (
        ("float32", jnp.float32, "highest"),
        ("tensorfloat32", jnp.float32, "tensorfloat32"),
        ("bfloat16", jnp.bfloat16, "default"),
    ):
        product = (
            jax.jit(functools.partial(jnp.matmul, precision=told)).lower(a.astype(type_), b.astype(type_)).compile()
        )
        found[f"teraflops_{precision}"] = (
            2e-12 * side**3 / median(lambda p=product, t=type_: p(a.astype(t), b.astype(t)), repeats)
        )
    copy = jax.jit(lambda c: c + 1).lower(jnp.zeros(2**28)).compile()
    c = jnp.ones(2**28)
    found["terabytes_a_second"] = 8e-12 * 2**28 / median(lambda: copy(c), repeats)
    return found


def median(fn: Callable[[], Any], repeats: int) -> float:
    jax.block_until_ready(fn())
    return statistics.median(once(fn) for _ in range(repeats))


def once(fn: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - began


def eager(case: Case, repeats: int) -> dict[str, float]:
    """Milliseconds of a step of PyTorch, as it comes and with its choice of algorithms by trial."""
    x, y = torch_images(*images(case, STEPS * case.batch))
    batches = list(zip(x.split(case.batch), y.split(case.batch), strict=True))
    parameters = torch_parameters(case)
    found = {}
    settings = {"torch_default": (True, False), "torch_benchmark": (True, True), "torch_float32": (False, False)}
    for name, (tf32, benchmark) in settings.items():
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = tf32, benchmark

        def run() -> None:
            for batch in batches:
                torch_descend(parameters, *batch, 0.01)
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        run()
        found[name] = 1000 * statistics.median(once(run) for _ in range(repeats)) / STEPS
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument(
        "--profiles", type=pathlib.Path, help="where to put the kernels of some cases and their programs"
    )
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=60.0, help="after which nothing more is compiled")
    parser.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)))
    args = parser.parse_args()
    if torch.cuda.is_available():
        torch.set_default_device("cuda")
    end = time.monotonic() + 60 * args.minutes
    about = {"steps": STEPS, "torch": torch.__version__, "xla_flags": os.environ.get("XLA_FLAGS", "")}
    about["machine"] = describe_machine()
    results: dict[str, Any] = {"ceilings": {k: float(f"{v:.3g}") for k, v in ceilings().items()}}
    print(results["ceilings"], flush=True)
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=min(6, os.cpu_count() or 1))
    for case in (CASES[i] for i in args.cases):
        if time.monotonic() > end:
            break
        lowered = {}
        for name in SEVERAL if case.networks > 1 else SINGLE:
            *stacked, form, precision = name.split(", ")
            with written(form, precision):
                fn, arguments = training(case, "".join(stacked), precision)
                lowered[name] = jax.jit(fn).lower(*arguments)
        began = time.monotonic()
        done = {name: pool.submit(item.compile) for name, item in lowered.items()}
        executables = {}
        found: dict[str, Any] = {}
        for name, future in done.items():
            try:
                executables[name] = future.result(timeout=max(1.0, end - time.monotonic()))
            # A form that the device refuses, or that takes too long, is a finding.
            except (TimeoutError, jax.errors.JaxRuntimeError) as error:
                found[name] = f"{type(error).__name__}: {str(error)[:300]}"
        found["seconds_to_compile_all"] = round(time.monotonic() - began, 1)
        seconds: dict[str, list[float]] = {name: [] for name in executables}
        ends = {name: jax.block_until_ready(executable(*arguments)) for name, executable in executables.items()}
        reference = next((name for name in ends if name.endswith(REFERENCE)), None)
        apart = {
            name: float(f"{distance(arguments[0], end, ends[reference]):.2g}")
            for name, end in ends.items()
            if reference not in (None, name)
        }
        for _ in range(args.repetitions):
            for name, executable in executables.items():
                seconds[name].append(once(functools.partial(executable, *arguments)))
        for name, values in seconds.items():
            found[name] = round(1000 * statistics.median(values) / STEPS / case.networks, 4)
        found |= {name: round(value, 4) for name, value in eager(case, args.repetitions).items()}
        found["relative_distance"] = apart
        found["gigaflop"] = round(case.operations / 1e9, 3)
        results[case.name] = found
        print(case.name, json.dumps(found), flush=True)
        args.out.write_text(json.dumps({"milliseconds_a_step_and_network": results} | about, indent=1) + "\n")
        if args.profiles:
            by_precision = {p: [n for n in seconds if n.endswith(p)] for p in ("float32", "bfloat16")}
            for names in filter(None, by_precision.values()):
                name = min(names, key=lambda name: statistics.median(seconds[name]))
                label = f"{case.name}, {name}".replace(" ", "_").replace(",", "")
                args.profiles.mkdir(parents=True, exist_ok=True)
                table = launches(functools.partial(executables[name], *arguments), STEPS)
                (args.profiles / f"{label}.json").write_text(json.dumps(table))
                (args.profiles / f"{label}.hlo").write_text(executables[name].as_text())
                print(label, sum(row[2] for row in table), "launches", sum(row[1] for row in table), "us", flush=True)
                for row in table[:8]:
                    print("   ", row, flush=True)


if __name__ == "__main__":
    main()
