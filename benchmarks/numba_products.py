"""The inner loop of the routines for convolutions, as LLVM that ``pseudocoreset.kernels`` emits and as loops in numba.

    python benchmarks/numba_products.py --out benchmarks/results/numba_products.json

Products of 28 transforms of tiles with the weights of each of 36 places, 128 channels and filters, float32, one core.
In numba ``plain`` are three loops, and ``unrolled`` has eight channels at a time in the inner one, which saves reading
and writing the sums. Needs numba, which the library does not. Billions of operations per second, the median of
interleaved repetitions, and the rates over that of the emitted form. Backs that the routines are not written in numba.
"""

import argparse
import ctypes
import json
import pathlib
import statistics
import time
from collections.abc import Callable

import numba
import numpy as np
from llvmlite import ir
from machine import describe_machine

from pseudocoreset.kernels.emitter import Pointer, Program
from pseudocoreset.kernels.processor import here
from pseudocoreset.kernels.products import Products, Strides

PLACES, TILES, CHANNELS, FILTERS, PANEL = 36, 28, 128, 128, 32
PANELS = FILTERS // PANEL
REPETITIONS = 100


def plain(a, factors, out):
    a, out = numba.carray(a, (TILES, CHANNELS)), numba.carray(out, (TILES, PANELS, PANEL))
    factors = numba.carray(factors, (PANELS, CHANNELS, PANEL))
    for p in range(PANELS):
        for r in range(TILES):
            out[r, p] = 0
            for k in range(CHANNELS):
                for j in range(PANEL):
                    out[r, p, j] += a[r, k] * factors[p, k, j]


def unrolled(a, factors, out):
    a, out = numba.carray(a, (TILES, CHANNELS)), numba.carray(out, (TILES, PANELS, PANEL))
    factors = numba.carray(factors, (PANELS, CHANNELS, PANEL))
    for p in range(PANELS):
        for r in range(TILES):
            out[r, p] = 0
            for k in range(0, CHANNELS, 8):
                a0, a1, a2, a3 = a[r, k], a[r, k + 1], a[r, k + 2], a[r, k + 3]
                a4, a5, a6, a7 = a[r, k + 4], a[r, k + 5], a[r, k + 6], a[r, k + 7]
                f = factors[p, k : k + 8]
                for j in range(PANEL):
                    total = out[r, p, j] + a0 * f[0, j] + a1 * f[1, j] + a2 * f[2, j] + a3 * f[3, j]
                    out[r, p, j] = total + a4 * f[4, j] + a5 * f[5, j] + a6 * f[6, j] + a7 * f[7, j]


def compiled(fn: Callable) -> Callable:
    address = numba.types.CPointer(numba.types.float32)
    made = numba.cfunc(numba.types.void(address, address, address), fastmath={"contract"})(fn)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(made.address)


def emitted() -> Callable:
    program = Program(32, here())
    strides = Strides(row=CHANNELS, step=1, factor_step=PANEL, out_row=FILTERS, adds=False)
    products = Products(program, "products", PANEL, strides)
    emitter, given = program.entry("all_panels")
    a, factors, out = (Pointer(emitter, emitter.load_address(given, 8 * i)) for i in range(3))
    zeros = Pointer(emitter, program.zeros("zeros", PANEL))
    emitter.repeat(
        PANELS,
        lambda p: products(
            emitter, TILES, a, factors + p * (CHANNELS * PANEL), zeros, out + p * PANEL, CHANNELS, 1, 0, 0
        ),
    )
    emitter.builder.ret(ir.Constant(ir.PointerType(), None))
    call = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(program.compiled("all_panels").value)

    def run(*addresses: int) -> None:
        structure = (ctypes.c_void_p * 3)(*addresses)
        call(ctypes.addressof(structure))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    a = rng.normal(size=(PLACES, TILES, CHANNELS)).astype(np.float32)
    factors = rng.normal(size=(PLACES, PANELS, CHANNELS, PANEL)).astype(np.float32)
    out = np.zeros((PLACES, TILES, FILTERS), np.float32)
    wanted = np.einsum("itk,ipkj->itpj", a, factors).reshape(out.shape)
    forms = {"plain": compiled(plain), "unrolled": compiled(unrolled), "emitted": emitted()}
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(REPETITIONS):
        for form, fn in forms.items():
            began = time.perf_counter()
            for place in zip(a, factors, out, strict=True):
                fn(*(array.ctypes.data for array in place))
            seconds[form].append(time.perf_counter() - began)
            assert np.abs(out - wanted).max() < 1e-3, form
    operations = 2 * PLACES * TILES * CHANNELS * FILTERS
    rates = {form: operations / statistics.median(each) / 1e9 for form, each in seconds.items()}
    found = {
        "machine": describe_machine(),
        "numba": numba.__version__,
        "billions_per_second": {form: round(rate, 1) for form, rate in rates.items()},
        "over_emitted": {form: round(rate / rates["emitted"], 3) for form, rate in rates.items()},
    }
    print(json.dumps(found, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
