"""The routines of convolutions on a CPU: their forms and sizes in single precision; derivatives are in models/."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pseudocoreset.kernels import correlate
from pseudocoreset.kernels import processor as processor_module
from pseudocoreset.kernels.processor import Processor
from pseudocoreset.kernels.sizes import Sizes


def arrays(n, height, width, channels, filters):
    rng = np.random.default_rng(0)
    shapes = (n, height, width, channels), (3, 3, channels, filters), (filters,), (n, height, width, filters)
    return [rng.normal(size=shape) for shape in shapes]


@jax.jit
def everything(x, filters, bias, cotangent):
    value, transposed = jax.vjp(correlate, x, filters, bias)
    return value, *transposed(cotangent)


def exact(x, filters, bias, cotangent):
    """Value and gradients, summed place by place in double precision by NumPy."""
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    value = np.broadcast_to(bias, cotangent.shape).copy()
    of_x, of_filters = np.zeros_like(padded), np.zeros_like(filters)
    for i in range(3):
        for j in range(3):
            seen = np.s_[:, i : i + height, j : j + width]
            value += padded[seen] @ filters[i, j]
            of_x[seen] += cotangent @ filters[i, j].T
            of_filters[i, j] = np.tensordot(padded[seen], cotangent, ([0, 1, 2], [0, 1, 2]))
    return value, of_x[:, 1:-1, 1:-1], of_filters, cotangent.sum((0, 1, 2))


@pytest.mark.parametrize(
    "sizes",
    [
        (3, 32, 32, 3, 32),
        (2, 28, 28, 1, 16),
        (5, 5, 9, 7, 48),
        (5, 16, 16, 32, 32),
        (10, 8, 8, 16, 16),
        (7, 13, 15, 48, 80),
        (1, 64, 64, 16, 32),
        (2, 4, 4, 128, 128),
        (30, 4, 4, 128, 64),
        (40, 2, 2, 64, 64),
        (3, 8, 8, 32, 3),
        (1, 1, 1, 1, 1),
    ],
    ids=str,
)
def test_values_and_gradients_are_sums_over_places(sizes):
    *given, cotangent = arrays(*sizes)
    wanted = exact(*given, cotangent)

    single = [jnp.asarray(a, jnp.float32) for a in (*given, cotangent)]
    for a, b in zip(everything(*single), wanted, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() < 2e-5 * np.abs(b).max()


@pytest.fixture
def on(monkeypatch):
    """Have routines compiled for another processor, and shared by another number of threads."""

    def change(threads=None, **processor):
        jax.clear_caches()  # no program of the processor before is kept
        if threads:
            monkeypatch.setattr(processor_module, "threads_of_a_device", lambda: threads)
        if processor:
            monkeypatch.setattr(processor_module, "here", lambda: Processor(**processor))

    yield change
    jax.clear_caches()


@pytest.mark.parametrize(("vector_bits", "registers"), [(256, 16), (128, 32), (128, 16)])
def test_processors_with_shorter_vectors_do_the_same(vector_bits, registers, on):
    on(vector_bits=vector_bits, registers=registers)
    for sizes in ((3, 12, 12, 32, 48), (2, 9, 8, 3, 48)):
        *given, cotangent = arrays(*sizes)
        x, filters, bias, single = (jnp.asarray(a, jnp.float32) for a in (*given, cotangent))
        found = everything(x, filters, bias, single)
        for a, b in zip(found, exact(*given, cotangent), strict=True):
            assert np.abs(a - b).max() < 2e-5 * np.abs(b).max()


def test_images_in_numbers_of_any_size_are_as_good():
    """Nothing that is read beside an image, or beyond the last tile, gets into it: not even what is no number."""
    x, filters, bias, _ = (jnp.asarray(a, jnp.float32) for a in arrays(9, 9, 10, 16, 16))
    expected = correlate(x, filters, bias)
    for broken in (jnp.nan, jnp.inf):
        found = correlate(x.at[4].set(broken), filters, bias)
        others = np.arange(9) != 4
        np.testing.assert_array_equal(found[others], expected[others])
        assert not np.isfinite(found[4]).any()


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-13)])
def test_threads_share_images(threads, dtype, tolerance, on):
    """In any number, more than there are, or than images: each image and each part of a sum once."""
    on(threads=threads)
    for sizes in ((7, 40, 24, 32, 32), (7, 60, 48, 7, 16)):  # seven parts that are each worth a thread
        *given, cotangent = arrays(*sizes)
        with jax.enable_x64():
            typed = [jnp.asarray(a, dtype) for a in (*given, cotangent)]
            found = everything(*typed)
            for _ in range(20):  # some of which find the threads of the pool busy
                jax.tree.map(np.testing.assert_array_equal, everything(*typed), found)
        for a, b in zip(found, exact(*given, cotangent), strict=True):
            assert np.abs(np.asarray(a) - b).max() < tolerance * np.abs(b).max()


def test_threads_compile_and_run_at_once():
    def gradient(channels):
        x, filters, bias, cotangent = (jnp.asarray(a, jnp.float32) for a in arrays(4, 12, 12, channels, 24))
        return jax.jit(lambda *a: jax.vjp(correlate, *a)[1](cotangent))(x, filters, bias)

    channels = [1, 2, 16, 32] * 2
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(gradient, channels))
    for one, other in zip(found[:4], found[4:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    ("x", "filters", "bias"),
    [
        (((2, 5, 5, 2), "float32"), ((3, 3, 1, 4), "float32"), ((4,), "float32")),
        (((2, 5, 5, 1), "float32"), ((3, 3, 1, 4), "float64"), ((4,), "float64")),
        (((2, 5, 5, 1), "float32"), ((3, 3, 1, 4), "float32"), ((4,), "float64")),
        (((2, 5, 5, 1), "int32"), ((3, 3, 1, 4), "int32"), ((4,), "int32")),
        (((5, 5, 1), "float32"), ((3, 3, 1, 4), "float32"), ((4,), "float32")),
    ],
    ids=["channels", "types", "type of the bias", "integers", "no batch"],
)
def test_what_does_not_fit_is_refused(x, filters, bias):
    with jax.enable_x64(), pytest.raises(TypeError, match="wanted images"):
        correlate(*(jnp.zeros(*a) for a in (x, filters, bias)))


def test_few_tiles_of_many_channels_are_not_transformed():
    """At 512 channels the transforms of the weights take longer than the products of ten tiles."""
    assert not Sizes.of((10, 4, 4, 512), 512, bias=False, bits=32).is_tiled
    assert Sizes.of((10, 16, 16, 32), 32, bias=True, bits=32).is_tiled
