"""Training, a step of FBPC and chains beside the same work in eager PyTorch and beside the machine's matrix product.

    pip install torch
    python benchmarks/speed.py --out benchmarks/results/speed.json [--only NAME ...]

The yardstick is plain eager PyTorch, as the published codes of the field are written: images with channels first,
networks of ``torch.nn.functional`` calls over a list of tensors, one network after the other. Both sides do the same
arithmetic at the same sizes and in float32: SGD steps on batches that lie in memory; a step of FBPC with the
trajectory proxy whose inner training is cut to a fixed number of steps; steps of SGHMC and draws of HMC on a coreset,
ours through ``sample``, whose setting up is part of its time. Repetitions of the two alternate; figures are medians,
and their ratio the median of the ratios of neighbours. ``gigaflops`` counts the convolutions and the last layer as
direct sums, forward and backward: three times the forward pass, less what the first layer need not send back.
``of_matmul`` is that rate over the rate of a large matrix product in the same minutes; it can pass one, since
Winograd's form needs fewer multiplications. On a CPU each core is made a device, and several networks are shared among
them (``mesh=``), as are the data of one network, of one chain and of a step of FBPC at 32x32; what is smaller runs on
the first device, whose operations take threads of all cores. PyTorch uses all cores in every operation. With a GPU
both sides use it, ours and the product in float32, PyTorch's convolutions in TF32, which is its default; and the cases
of the papers' size join, in TF32 and with ``dtype="bfloat16"`` too, as their names then say. Every case is
written to ``--out`` as it is done; with ``--only`` those of others stay there.
"""

import argparse
import concurrent.futures
import functools
import json
import os
import pathlib
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import torch
from launches import launches
from machine import describe_machine
from yardstick import (
    CLASSES,
    Case,
    images,
    torch_apply,
    torch_descend,
    torch_gradient,
    torch_images,
    torch_parameters,
)

import pseudocoreset as pc
from pseudocoreset.compute.devices import Devices
from pseudocoreset.inference import sample
from pseudocoreset.objectives import function_kl
from pseudocoreset.proxies import Trajectory, mean_loss_and_gradient
from pseudocoreset.rows import Rows

COMPILERS = concurrent.futures.ThreadPoolExecutor(max_workers=4)
TRAINING = (
    Case(32, 3, 3, 128, 256),
    Case(32, 3, 3, 128, 100, networks=4, steps=1),
    Case(32, 3, 3, 32, 128, steps=4),
    Case(32, 3, 3, 32, 10, networks=8, steps=8),
    Case(8, 1, 2, 32, 64, networks=8, steps=10),
    Case(8, 1, 2, 16, 10, networks=16, steps=20),
)
FUNCTION_KL = (
    Case(32, 3, 3, 128, 10),
    Case(32, 3, 3, 32, 10),
    Case(32, 3, 3, 32, 10, networks=2),
    Case(32, 3, 3, 32, 100),
    Case(32, 3, 3, 32, 100, networks=2),
    Case(8, 1, 2, 16, 10),
)
# A repetition is to take a GPU long enough to be timed.
GPU_STEPS = 8
# Too long for a CPU: ten experts at once, and the step of FBPC of which the papers give the time; and its precisions.
GPU_TRAINING = (Case(32, 3, 3, 128, 256, networks=10),)
GPU_FUNCTION_KL = (Case(32, 3, 3, 128, 100),)
PRECISIONS = ("tensorfloat32", "bfloat16")
INNER_STEPS, TRAJECTORY, DRAWS, DATA_BATCH = 20, 10, 30, 64
SAMPLING = (Case(32, 3, 3, 32, 10, steps=200), Case(8, 1, 2, 16, 10, steps=200))
LEAPFROGS, STEP_SIZE = 10, 0.005


def training(case: Case) -> tuple[Callable[[], Any], Callable[[], Any], float]:
    """SGD steps of every network."""
    model = case.model()
    x, y = images(case, case.batch * case.steps)
    batches = jnp.asarray(x).reshape(case.steps, case.batch, *x.shape[1:]), jnp.asarray(y).reshape(case.steps, -1)
    stack = jax.vmap(model.init)(jax.random.split(jax.random.key(0), case.networks))
    devices = Devices.of(case.mesh()).sharing_rows(model)

    def one(params: Any, batches: Any) -> Any:
        def step(p: Any, batch: Any) -> tuple[Any, None]:
            _, gradient = mean_loss_and_gradient(model, p, Rows(*batch, jnp.ones(case.batch)), devices.within)
            return jax.tree.map(lambda a, g: a - 0.01 * g, p, gradient), None

        return jax.lax.scan(step, params, batches)[0]

    ours = jax.jit(lambda stack, batches: devices.map(one, stack, batches))
    stack = devices.lay_out(stack)
    batches = devices.replicate(batches)
    compiling = COMPILERS.submit(ours.lower(stack, batches).compile)
    theirs = [torch_parameters(case) for _ in range(case.networks)]
    split = list(zip(*(a.split(case.batch) for a in torch_images(x, y)), strict=True))

    def eager() -> None:
        for parameters in theirs:
            for batch in split:
                torch_descend(parameters, *batch, 0.01)

    operations = case.operations * case.networks * case.steps
    return lambda: jax.block_until_ready(compiling.result()(stack, batches)), eager, operations


def function_kl_step(case: Case) -> tuple[Callable[[], Any], Callable[[], Any], float]:
    """One update of FBPC, its inner training of a fixed number of steps; the mean over pairs of networks."""
    model = case.model()
    size = 2000
    data = pc.Dataset.from_arrays(*images(case, size), name="noise")
    start = pc.Pseudocoreset.from_data(data, size=case.batch, key=jax.random.key(0))
    objective = function_kl(
        model,
        proxy=Trajectory(num_steps=TRAJECTORY, batch_size=DATA_BATCH),
        num_draws=DRAWS,
        inner_loss=1e-9,
        inner_max_steps=INNER_STEPS,
        num_networks=case.networks,
    )
    device = pc.device.DeviceData.from_dataset(data, Devices.of(case.mesh()))
    arrays = Rows(*map(jnp.asarray, (start.inputs, start.targets, start.weights)))
    arrays = device.devices.replicate(arrays)
    expert = jax.vmap(model.init)(jax.random.split(jax.random.key(1), case.networks))
    expert = device.devices.replicate(expert if case.networks > 1 else jax.tree.map(lambda leaf: leaf[0], expert))
    ours = jax.jit(lambda key, arrays: objective.gradient(key, (), arrays, device, (expert,))[0])
    compiling = COMPILERS.submit(ours.lower(jax.random.key(2), arrays).compile)

    x, y = torch_images(*images(case, size))
    u, labels = torch_images(start.inputs, start.targets)
    full = [torch_parameters(case) for _ in range(case.networks)]

    def scales(parameters: list[torch.Tensor], draw: Callable[[], Any], rate: float) -> torch.Tensor:
        moving = [p.detach().clone().requires_grad_() for p in parameters]
        values = []
        for _ in range(TRAJECTORY):
            torch_descend(moving, *draw(), rate)
            with torch.no_grad():
                values.append(torch_apply(moving, u))
        return torch.stack(values).var(0, correction=0).sqrt()

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randint(0, size, (DATA_BATCH,))
        return x[chosen], y[chosen]

    def of_pair(expert: list[torch.Tensor]) -> torch.Tensor:
        small = torch_parameters(case)
        adam = torch.optim.Adam(small, lr=1e-3)
        for _ in range(INNER_STEPS):
            adam.zero_grad()
            torch.nn.functional.cross_entropy(torch_apply(small, u), labels).backward()
            adam.step()
        inputs = u.detach().clone().requires_grad_()
        losses = []
        for parameters, draw, rate in ((expert, batch, 0.05), (small, lambda: (u, labels), 0.01)):
            noise = scales(parameters, draw, rate) * torch.randn(DRAWS, len(u), CLASSES)
            f = torch_apply([p.detach() for p in parameters], inputs) + noise
            losses.append(torch.nn.functional.cross_entropy(f.flatten(0, 1), labels.repeat(DRAWS)))
        return torch.autograd.grad(losses[0] - losses[1], inputs)[0]

    def eager() -> torch.Tensor:
        return sum(of_pair(expert) for expert in full) / case.networks

    passes = (
        (INNER_STEPS + TRAJECTORY) * 3 + 2 * TRAJECTORY + 6
    )  # over the coreset, forward passes; backward counts twice
    of_data = 3 * TRAJECTORY * DATA_BATCH / case.batch
    return (
        lambda: jax.block_until_ready(compiling.result()(jax.random.key(3), arrays)),
        eager,
        case.operations * case.networks * (passes + of_data) / 3,
    )


def sampling(case: Case) -> tuple[Callable[[], Any], Callable[[], Any], float]:
    """Steps of SGHMC on all points, one chain, through the public function."""
    model = case.model()
    x, y = images(case, case.batch)
    mesh = case.mesh()
    settings = dict(kernel="sghmc", num_chains=1, num_warmup=0, num_samples=1, thinning=case.steps, progress=False)

    def ours() -> Any:
        return sample(model, (x, y), key=jax.random.key(0), step_size=0.01, friction=10.0, mesh=mesh, **settings)

    tx, ty = torch_images(x, y)
    parameters = torch_parameters(case)
    momentum = [torch.zeros_like(p) for p in parameters]

    def eager() -> None:
        for _ in range(case.steps):
            gradient = torch_gradient(parameters, tx, ty)
            with torch.no_grad():
                for p, m, g in zip(parameters, momentum, gradient, strict=True):
                    p += 0.01 * m
                    m.mul_(0.9).sub_(0.01 * (case.batch * g + p)).add_(torch.randn_like(m), alpha=(0.2 * 0.01) ** 0.5)

    return ours, eager, case.operations * case.steps


def hmc(case: Case) -> tuple[Callable[[], Any], Callable[[], Any], float]:
    """Draws of HMC on all points, one chain without adaptation, through the public function."""
    model = case.model()
    x, y = images(case, case.batch)
    mesh = case.mesh()
    draws = case.steps // LEAPFROGS
    settings = dict(kernel="hmc", num_chains=1, num_warmup=0, num_samples=draws, progress=False)
    settings |= dict(step_size=STEP_SIZE, num_integration_steps=LEAPFROGS)

    def ours() -> Any:
        return sample(model, (x, y), key=jax.random.key(0), mesh=mesh, **settings)

    tx, ty = torch_images(x, y)
    start = torch_parameters(case)

    def potential(parameters: list[torch.Tensor]) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(torch_apply(parameters, tx), ty, reduction="sum")
        return loss + sum((p * p).sum() for p in parameters) / 2

    def value_and_gradient(parameters: list[torch.Tensor]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        value = potential(parameters)
        return value.detach(), torch.autograd.grad(value, parameters)

    def energy(momentum: list[torch.Tensor]) -> torch.Tensor:
        return sum((m * m).sum() for m in momentum) / 2

    def eager() -> None:
        position = start
        value, gradient = value_and_gradient(position)
        for _ in range(draws):
            momentum = [torch.randn_like(p) for p in position]
            before = value + energy(momentum)
            proposal, slope = position, gradient
            for _ in range(LEAPFROGS):
                momentum = [m - STEP_SIZE / 2 * g for m, g in zip(momentum, slope, strict=True)]
                with torch.no_grad():
                    proposal = [p + STEP_SIZE * m for p, m in zip(proposal, momentum, strict=True)]
                proposal = [p.requires_grad_() for p in proposal]
                after, slope = value_and_gradient(proposal)
                momentum = [m - STEP_SIZE / 2 * g for m, g in zip(momentum, slope, strict=True)]
            if torch.rand(()) < torch.exp(before - after - energy(momentum)):
                position, value, gradient = proposal, after, slope

    return ours, eager, case.operations * draws * LEAPFROGS


@functools.cache
def matmul(precision: str) -> tuple[Callable[[], Any], float]:
    """A large product: for a CPU of the shape of a convolution, for a GPU large enough to show its rate."""
    on_gpu = jax.default_backend() == "gpu"
    rows, inner, columns, steps = (8192, 8192, 8192, 4) if on_gpu else (4096, 1152, 128, 8)
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    a = jax.random.normal(jax.random.key(0), (rows, inner), dtype)
    b = jax.random.normal(jax.random.key(1), (inner, columns), dtype)
    told = "tensorfloat32" if precision == "tensorfloat32" else "highest"

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        def step(_: int, c: jax.Array) -> jax.Array:
            return c + (1e-9 * jnp.mean(jnp.matmul(a, c, precision=told))).astype(dtype)

        return jax.lax.fori_loop(0, steps, step, b)

    compiled = jax.jit(product).lower(a, b).compile()
    return lambda: jax.block_until_ready(compiled(a, b)), 2.0 * steps * rows * inner * columns


def seconds(fn: Callable[[], Any]) -> float:
    began = time.perf_counter()
    fn()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def prepared(make: Callable[[Case], Any], case: Case) -> tuple[Callable[[], Any], Callable[[], Any], float]:
    """Ours, in the precision of the case, theirs, and the operations."""
    with case.arithmetic():
        ours, eager, operations = make(case)

    def in_precision() -> Any:
        with case.arithmetic():
            return ours()

    return in_precision, eager, operations


def measure(
    ours: Callable[[], Any], eager: Callable[[], Any], operations: float, precision: str, repetitions: int
) -> dict[str, float]:
    product, product_operations = matmul(precision)
    for fn in (ours, eager, product):
        fn()
    rounds = [(seconds(ours), seconds(eager), seconds(product)) for _ in range(repetitions)]
    mine, theirs, products = map(statistics.median, zip(*rounds, strict=True))
    return {
        "seconds": mine,
        "torch_seconds": theirs,
        "times_as_fast_as_torch": statistics.median(b / a for a, b, _ in rounds),
        "gigaflops": operations / mine / 1e9,
        "torch_gigaflops": operations / theirs / 1e9,
        "matmul_gigaflops": product_operations / products / 1e9,
        "of_matmul": statistics.median(operations / a * c / product_operations for a, _, c in rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="cases whose names begin so")
    parser.add_argument("--profiles", type=pathlib.Path, help="on a GPU, a folder for the kernels of each case")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    has_gpu = jax.default_backend() == "gpu"
    if has_gpu != torch.cuda.is_available():
        raise SystemExit("JAX and PyTorch must both have a GPU, or neither")
    if has_gpu:
        torch.set_default_device("cuda")
    torch.manual_seed(0)
    cases = {f"training: {case.name}": (training, case) for case in TRAINING}
    cases |= {f"function_kl: {case.name}": (function_kl_step, case) for case in FUNCTION_KL}
    cases |= {f"sghmc: {case.name}": (sampling, case) for case in SAMPLING}
    cases |= {f"hmc: {case.name}": (hmc, case) for case in SAMPLING}
    if has_gpu:
        large = [(training, replace(case, steps=GPU_STEPS)) for case in (TRAINING[0], *GPU_TRAINING)]
        large += [(function_kl_step, case) for case in (FUNCTION_KL[0], *GPU_FUNCTION_KL)]
        names = {training: "training", function_kl_step: "function_kl"}
        for precision in ("float32", *PRECISIONS):
            exact = [(make, replace(case, precision=precision)) for make, case in large]
            cases |= {f"{names[make]}: {case.name}": (make, case) for make, case in exact}
    threads = {"devices": jax.device_count(), "torch": torch.get_num_threads(), "cores": len(os.sched_getaffinity(0))}
    about = {"repetitions": args.repetitions, "threads": threads, "torch": torch.__version__}
    about["machine"] = describe_machine()
    known = json.loads(args.out.read_text())["results"] if args.out and args.only != [""] and args.out.is_file() else {}
    results: dict[str, Any] = dict(known)
    chosen = {name: item for name, item in cases.items() if name.startswith(tuple(args.only))}
    # Traced one after the other, compiled side by side, timed when all of that is over.
    made = {name: prepared(make, case) for name, (make, case) in chosen.items()}
    COMPILERS.shutdown()
    for name, item in made.items():
        results[name] = measure(*item, chosen[name][1].precision, args.repetitions)
        print(name, json.dumps({k: float(f"{v:.3g}") for k, v in results[name].items()}), flush=True)
        if args.profiles:
            args.profiles.mkdir(parents=True, exist_ok=True)
            file = args.profiles / (re.sub(r"[^\w]+", "_", name) + ".json")
            file.write_text(json.dumps({"seconds": results[name]["seconds"], "kernels": launches(item[0])}) + "\n")
        if args.out:
            args.out.write_text(json.dumps({"results": results} | about, indent=1) + "\n")


if __name__ == "__main__":
    main()
