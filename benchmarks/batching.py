"""How a convolutional network is best applied inside loops and to many parameter sets, on this machine.

    python benchmarks/batching.py --out benchmarks/results/batching.json

Gradients of a ConvNet (forward and backward): one network, one network as the body of a scan, four networks by ``vmap``
and by ``lax.map``; with convolutions by our own routine, in Winograd's form where they are large enough, all as an
unfolding and a matrix product, and all as ``lax.conv``. Medians of interleaved repetitions, as ratios to one network by
``lax.conv`` outside any loop. Then single 3x3 convolutions, forward and backward in a scan, in the first three forms;
with the largest error of the first in float32 over the largest output. Then steps of a ConvNet in a scan over batches,
biases added within the convolution and after it. Then 5x5 convolutions of colour images, forward and backward to the
filters, unfolded first along rows and in one step. Last what follows a convolution, instance norm, ReLU and average
pooling, forward and backward: together, as the layers of the library have it, one after the other as they have each for
itself, and as one would first: standardise, then scale, then the mean over windows. Backs
``pseudocoreset/compute/backends.py`` and ``pseudocoreset/models/layers.py``.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from machine import describe_machine

from pseudocoreset.compute import backends as batching
from pseudocoreset.kernels import correlate
from pseudocoreset.models import ConvNet, bnn, layers
from pseudocoreset.models.winograd import winograd

SHAPES = {"digits": ((8, 8, 1), 2, 32, 64), "cifar10": ((32, 32, 3), 3, 32, 64)}
NUM_NETWORKS = 4
FORMS = ("routine", "winograd", "product", "lax_conv")
# Images, side, channels and filters.
LAYERS = ((16, 16, 128, 128), (16, 8, 128, 128), (64, 16, 32, 32), (64, 14, 16, 16), (64, 16, 8, 8), (64, 4, 32, 32),
          (64, 4, 8, 8), (64, 2, 32, 32), (64, 16, 4, 4), (16, 32, 3, 128), (64, 32, 3, 32), (64, 8, 1, 16),
          (16, 4, 512, 512))  # fmt: skip
LAYER_STEPS = 8
CONVOLVE = layers.conv2d
# Images, side and filters, of three channels.
UNFOLDINGS = ((10, 32, 32), (5, 32, 128), (100, 32, 32))
# Images, side and channels.
BLOCKS = ((10, 32, 32), (100, 32, 32), (10, 32, 128), (100, 16, 128), (64, 8, 16))


def choose(form: str) -> None:
    """Have all convolutions written in this form; Winograd's only where the library would on a GPU."""

    def chosen(images: jax.Array, filters: jax.Array, padding: int, stride: int) -> str:
        if form == "winograd" and not batching.tiles_are_worth_it(images, filters):
            return "product"
        is_usual = (*filters.shape[:2], padding, stride) == (3, 3, 1, 1)
        return form if is_usual or form == "lax_conv" else "product"

    layers.convolution_form = chosen


def cases(shape: tuple[int, ...], depth: int, width: int, batch: int, name: str) -> dict[str, tuple]:
    choose(name)
    model = bnn(ConvNet(depth=depth, width=width), input_shape=shape, num_outputs=10)
    x = jax.random.normal(jax.random.key(0), (batch, *shape))
    y = jnp.zeros(batch, jnp.int32)
    stack = jax.vmap(model.init)(jax.random.split(jax.random.key(1), NUM_NETWORKS))
    one = jax.tree.map(lambda a: a[0], stack)
    gradient = jax.grad(lambda p: -model.log_likelihood(p, x, y).mean())

    def scanned(params):
        def step(p, _):
            return jax.tree.map(lambda a, g: a - 0.01 * g, p, gradient(p)), None

        return jax.lax.scan(step, params, None, length=NUM_NETWORKS)[0]

    forms = {
        "single": (gradient, one, 1),
        "scan": (scanned, one, NUM_NETWORKS),
        "vmap": (jax.vmap(gradient), stack, NUM_NETWORKS),
        "map": (lambda s: jax.lax.map(gradient, s), stack, NUM_NETWORKS),
    }
    return {f"{name}_{form}": (jax.jit(fn).lower(a).compile(), a, count) for form, (fn, a, count) in forms.items()}


def layer(size: tuple[int, int, int, int], form: str) -> tuple[Callable, Any]:
    """Forward and backward passes of one convolution, each depending on the one before."""
    images, kernel = arrays(size)
    convolve = {"routine": correlate, "winograd": winograd, "product": unfolded}[form]

    def step(carry: Any, _: None) -> tuple[Any, None]:
        x, k, cotangent = carry
        y, pull = jax.vjp(convolve, x, k)
        return jax.tree.map(lambda a, b: a + 1e-6 * b, carry, (*pull(cotangent), y)), None

    carry = images, kernel, jnp.ones((*images.shape[:3], size[3]))
    return jax.jit(lambda c: jax.lax.scan(step, c, length=LAYER_STEPS)[0]).lower(carry).compile(), carry


def arrays(size: tuple[int, int, int, int]) -> tuple[jax.Array, jax.Array]:
    number, side, channels, filters = size
    images = jax.random.normal(jax.random.key(0), (number, side, side, channels))
    return images, jax.random.normal(jax.random.key(1), (3, 3, channels, filters)) / (9 * channels) ** 0.5


def unfolded(x: jax.Array, kernel: jax.Array) -> jax.Array:
    choose("product")
    return layers.conv2d(x, kernel, 1)


def steps(shape: tuple[int, ...], depth: int, width: int, batch: int, convolve: Callable) -> tuple[Callable, Any]:
    """SGD on batches that lie in memory, with this convolution."""
    layers.conv2d = convolve
    model = bnn(ConvNet(depth=depth, width=width), input_shape=shape, num_outputs=10)
    batches = jax.random.normal(jax.random.key(0), (LAYER_STEPS, batch, *shape))
    y = jnp.zeros(batch, jnp.int32)

    def step(p: Any, x: jax.Array) -> tuple[Any, None]:
        gradient = jax.grad(lambda p: -model.log_likelihood(p, x, y).mean())(p)
        return jax.tree.map(lambda a, g: a - 0.01 * g, p, gradient), None

    params = model.init(jax.random.key(1))
    return jax.jit(lambda p: jax.lax.scan(step, p, batches)[0]).lower(params).compile(), params


def bias_after(
    x: jax.Array, kernel: jax.Array, padding: int, stride: int = 1, bias: jax.Array | None = None
) -> jax.Array:
    out = CONVOLVE(x, kernel, padding, stride)
    return out if bias is None else out + bias


def error(size: tuple[int, int, int, int]) -> float:
    """Of our routine in float32, against the direct sum in float64, relative to the largest output."""
    images, kernel = arrays(size)
    with jax.enable_x64():
        exact = jax.lax.conv_general_dilated(
            images.astype(float), kernel.astype(float), (1, 1), [(1, 1)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return float(jnp.abs(correlate(images, kernel) - exact).max() / jnp.abs(exact).max())


def first_layer(size: tuple[int, int, int], convolve: Callable) -> tuple[Callable, Any]:
    """Forward passes and gradients towards the kernel, each depending on the one before, of images that change."""
    number, side, filters = size
    batches, _ = arrays((LAYER_STEPS * number, side, 3, filters))
    kernel = jax.random.normal(jax.random.key(1), (5, 5, 3, filters)) / 75**0.5
    cotangent = jnp.ones((number, side, side, filters))

    def step(kernel: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
        y, pull = jax.vjp(lambda k: convolve(x, k, 2), kernel)
        return kernel + 1e-6 * pull(cotangent + 1e-6 * y)[0], None

    batches = batches.reshape(LAYER_STEPS, number, side, side, 3)
    return jax.jit(lambda k: jax.lax.scan(step, k, batches)[0]).lower(kernel).compile(), kernel


def in_one_step(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width, _, filters = kernel.shape
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    seen = [x[:, row : row + rows, column : column + columns] for row in range(height) for column in range(width)]
    patches = jnp.concatenate(seen, axis=-1)
    return (patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, filters)).reshape(*patches.shape[:3], filters)


def together(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return layers.Norm("instance").apply({"params": {"scale": scale, "bias": bias}}, x, pooled=True)


def apart(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    x = layers.Norm("instance").apply({"params": {"scale": scale, "bias": bias}}, x)
    return layers.average_pool(jax.nn.relu(x))


def plain(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    x = (x - x.mean((1, 2), keepdims=True)) * jax.lax.rsqrt(x.var((1, 2), keepdims=True) + 1e-5) * scale + bias
    n, height, width, channels = x.shape
    return jax.nn.relu(x).reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def block(size: tuple[int, int, int], form: Callable) -> tuple[Callable, Any]:
    """Forward and backward passes of one, each depending on the one before."""
    number, side, channels = size
    x = jax.random.normal(jax.random.key(0), (number, side, side, channels))
    cotangent = jax.random.normal(jax.random.key(1), (number, side // 2, side // 2, channels))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        out, pull = jax.vjp(form, *carry)
        return jax.tree.map(lambda a, b: a + 1e-6 * b, carry, pull(out + cotangent)), None

    carry = x, jnp.ones(channels), jnp.zeros(channels)
    return jax.jit(lambda c: jax.lax.scan(step, c, length=LAYER_STEPS)[0]).lower(carry).compile(), carry


def medians(compiled: dict[str, tuple], repetitions: int) -> dict[str, float]:
    """Seconds of each case, by its count, over interleaved repetitions."""
    seconds: dict[str, list[float]] = {case: [] for case in compiled}
    for _ in range(repetitions):
        for case, (fn, argument, count) in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(fn(argument))
            seconds[case].append((time.perf_counter() - began) / count)
    return {case: statistics.median(values) for case, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    results = {}
    for name, setting in SHAPES.items():
        compiled = {case: item for form in FORMS for case, item in cases(*setting, form).items()}
        median = medians(compiled, args.repetitions)
        results[name] = {
            case: {
                "ratio": round(value / median["lax_conv_single"], 2),
                "milliseconds_a_network": round(1000 * value, 2),
                "temporary_mebibytes": round(compiled[case][0].memory_analysis().temp_size_in_bytes / 2**20, 1),
            }
            for case, value in median.items()
        }
        print(name, json.dumps(results[name], indent=1), flush=True)
    convolutions = {}
    for size in LAYERS:
        median = medians({form: (*layer(size, form), LAYER_STEPS) for form in FORMS[:3]}, args.repetitions)
        name = "{} images {}x{}, {} channels, {} filters".format(size[0], size[1], *size[1:])
        convolutions[name] = {
            "milliseconds_routine": round(1000 * median["routine"], 3),
            "milliseconds_winograd": round(1000 * median["winograd"], 3),
            "milliseconds_unfolded": round(1000 * median["product"], 3),
            "times_as_fast_as_winograd": round(median["winograd"] / median["routine"], 2),
            "times_as_fast_as_unfolded": round(median["product"] / median["routine"], 2),
            "largest_error": float(f"{error(size):.1g}"),
        }
        print(name, json.dumps(convolutions[name]), flush=True)
    results["convolutions"] = convolutions
    biases = {}
    choose("routine")
    for name, setting in SHAPES.items():
        forms = {"within": CONVOLVE, "after": bias_after}
        compiled = {form: (*steps(*setting, fn), LAYER_STEPS) for form, fn in forms.items()}
        median = medians(compiled, 2 * args.repetitions)
        biases[name] = {f"milliseconds_{form}": round(1000 * value, 3) for form, value in median.items()}
        biases[name]["times_as_fast"] = round(median["after"] / median["within"], 2)
        print(name, json.dumps(biases[name]), flush=True)
    layers.conv2d = CONVOLVE
    results["biases"] = biases
    unfoldings = {}
    choose("product")
    for size in UNFOLDINGS:
        forms = {"by_rows_first": CONVOLVE, "in_one_step": in_one_step}
        compiled = {form: (*first_layer(size, fn), LAYER_STEPS) for form, fn in forms.items()}
        median = medians(compiled, 2 * args.repetitions)
        name = "{} images {}x{}, 3 channels, {} filters".format(size[0], size[1], *size[1:])
        unfoldings[name] = {f"milliseconds_{form}": round(1000 * value, 3) for form, value in median.items()}
        unfoldings[name]["times_as_fast"] = round(median["in_one_step"] / median["by_rows_first"], 2)
        print(name, json.dumps(unfoldings[name]), flush=True)
    results["unfoldings"] = unfoldings
    blocks = {}
    for size in BLOCKS:
        compiled = {fn.__name__: (*block(size, fn), LAYER_STEPS) for fn in (together, apart, plain)}
        median = medians(compiled, args.repetitions)
        name = "{} images {}x{}, {} channels".format(size[0], size[1], *size[1:])
        blocks[name] = {f"milliseconds_{form}": round(1000 * value, 3) for form, value in median.items()}
        for form in ("apart", "plain"):
            blocks[name][f"times_as_fast_as_{form}"] = round(median[form] / median["together"], 2)
        print(name, json.dumps(blocks[name]), flush=True)
    results["norm_relu_pool"] = blocks
    content = {"settings": SHAPES, "num_networks": NUM_NETWORKS, "results": results, "machine": describe_machine()}
    args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
