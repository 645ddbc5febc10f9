"""Augmentation against direct definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from pseudocoreset.data.augmentation import DIGITS_STRATEGY, FULL_STRATEGY, Augmentation, resolve_augmentation

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(6, 16, 16, 3)).astype(np.float32))
GROUPS = FULL_STRATEGY.split("_")
KEYS = [jax.random.key(i) for i in range(40)]


@pytest.mark.parametrize("group", GROUPS)
def test_shapes_determinism_and_independence_of_images(group):
    augment = Augmentation(group)
    one = augment(KEYS[0], IMAGES)
    assert one.shape == IMAGES.shape
    np.testing.assert_array_equal(one, augment(KEYS[0], IMAGES))
    same = jnp.broadcast_to(IMAGES[:1], IMAGES.shape)
    # Compiling fuses the arithmetic otherwise for other shapes; equality is to rounding.
    shared = np.asarray(augment(KEYS[1], same, shared=True))
    np.testing.assert_allclose(shared, np.broadcast_to(shared[:1], shared.shape), atol=1e-5)
    assert any(np.abs(np.diff(np.asarray(augment(k, same)), axis=0)).max() > 1e-3 for k in KEYS[:5])


@pytest.mark.parametrize("group", GROUPS)
def test_the_gradient_is_that_of_finite_differences(group):
    with jax.enable_x64(True):
        images = jnp.asarray(np.asarray(IMAGES[:2], np.float64))
        direction = jnp.asarray(RNG.normal(size=images.shape))
        target = jnp.asarray(RNG.normal(size=images.shape))

        def loss(x):
            return jnp.sum(target * Augmentation(group)(KEYS[2], x) ** 2)

        exact = jnp.vdot(jax.grad(loss)(images), direction)
        step = 1e-6
        numeric = (loss(images + step * direction) - loss(images - step * direction)) / (2 * step)
    np.testing.assert_allclose(exact, numeric, rtol=1e-6)


def test_crop_is_a_shift_with_zeros_let_in():
    seen = set()
    for key in KEYS:
        for image, moved in zip(IMAGES, Augmentation("crop")(key, IMAGES), strict=True):
            matches = [
                (down, right)
                for down in range(-2, 3)
                for right in range(-2, 3)
                if np.array_equal(moved, ndimage.shift(np.asarray(image), (-down, -right, 0), order=0, cval=0.0))
            ]
            assert len(matches) == 1
            seen.update(matches)
    assert len(seen) == 25


# A side, an eighth and a half of it, int(x + 0.5) as in the reference: Python rounds others at 5, 9, 13, 20 and 36.
ODD_SIDES = [
    (5, 1, 3),
    (7, 1, 4),
    (9, 1, 5),
    (12, 2, 6),
    (13, 2, 7),
    (20, 3, 10),
    (27, 3, 14),
    (28, 4, 14),
    (36, 5, 18),
]


@pytest.mark.parametrize(("side", "most", "size"), ODD_SIDES)
def test_shifts_and_cutouts_of_odd_sides_are_those_of_the_reference(side, most, size):
    ramp = 1.0 + jnp.arange(side, dtype=jnp.float32)
    column = jnp.broadcast_to(ramp[:, None, None], (1000, side, 2, 1))  # so that both groups act on one axis
    moved = np.asarray(Augmentation("crop")(KEYS[0], column)).max(2)[..., 0]
    shifts = {int(row[row > 0][0] - (np.flatnonzero(row)[0] + 1)) for row in moved if row.any()}
    assert shifts == set(range(-most, most + 1))
    cut = np.asarray(Augmentation("cutout")(KEYS[0], column)) == 0
    places = {tuple(np.flatnonzero(rows)) for rows in cut.any((2, 3))}
    wanted = set()
    for centre in range(side + 1 - size % 2):
        wanted.add(tuple(np.unique(np.clip(np.arange(size) + centre - size // 2, 0, side - 1))))
    assert places - {()} == wanted


def test_cutout_is_one_rectangle_of_half_the_sides():
    for key in KEYS[:10]:
        for image, cut in zip(np.asarray(IMAGES), np.asarray(Augmentation("cutout")(key, IMAGES)), strict=True):
            gone = (cut == 0).all(-1)
            rows, columns = np.flatnonzero(gone.any(1)), np.flatnonzero(gone.any(0))
            assert gone.sum() == len(rows) * len(columns)
            assert 4 <= len(rows) <= 8
            assert 4 <= len(columns) <= 8
            np.testing.assert_array_equal(cut[~gone], image[~gone])


@pytest.mark.parametrize("shape", [(20, 40), (31, 17)])
def test_oblong_images_are_turned_not_sheared(shape):
    """Against scipy's rotation of the picture about its centre, at the angle that a ramp of columns tells."""
    height, width = shape
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    image = np.sin(0.4 * rows + 0.2) * np.cos(0.3 * columns)
    stack = jnp.asarray(np.stack([rows - (height - 1) / 2, columns - (width - 1) / 2, image], -1), jnp.float32)[None]
    inner = np.s_[height // 2 - 3 : height // 2 + 3, width // 2 - 3 : width // 2 + 3]
    angles = []
    for key in KEYS[:8]:
        out = np.asarray(Augmentation("rotate")(key, stack, shared=True))[0]
        # Near the centre the ramps show where each pixel comes from, (row, column) = R (row, column).
        found = np.linalg.lstsq(
            np.asarray(stack[0, ..., :2])[inner].reshape(-1, 2), out[..., :2][inner].reshape(-1, 2), rcond=None
        )[0].T
        np.testing.assert_allclose(found @ found.T, np.eye(2), atol=1e-4)
        angle = np.degrees(np.arctan2(found[0, 1], found[0, 0]))
        turned = ndimage.rotate(np.pad(image, 1), angle, reshape=False, order=1)[1:-1, 1:-1]
        np.testing.assert_allclose(out[2:-2, 2:-2, 2], turned[2:-2, 2:-2], atol=1e-3)
        angles.append(angle)
    assert np.ptp(angles) > 8
    assert np.max(np.abs(angles)) <= 15.01


def test_flip_is_left_for_right():
    flipped = 0
    for key in KEYS:
        for image, out in zip(IMAGES, Augmentation("flip")(key, IMAGES), strict=True):
            is_flipped = np.array_equal(out, image[:, ::-1])
            assert is_flipped or np.array_equal(out, image)
            flipped += is_flipped
    total = len(KEYS) * len(IMAGES)
    assert abs(flipped - total / 2) < 5 * np.sqrt(total) / 2


def test_rotation_and_scale_agree_with_scipy():
    """Bilinear resampling at the same grid, by an independent library; the matrix is recovered from a ramp image."""
    size = 16
    grid = np.linspace(-1, 1, size)
    # Bilinear interpolation reproduces a linear image exactly wherever it does not look outside.
    ramps = np.stack([*np.meshgrid(grid, grid, indexing="xy"), np.ones((size, size))], -1).astype(np.float32)
    for group in ("rotate", "scale"):
        for key in KEYS[:6]:
            out = np.asarray(Augmentation(group)(key, jnp.asarray(ramps)[None], shared=True))[0]
            centre = out[6:10, 6:10].reshape(-1, 3)
            points = ramps[6:10, 6:10, :2].reshape(-1, 2)
            matrix = np.linalg.lstsq(points, centre[:, :2], rcond=None)[0].T
            if group == "rotate":
                np.testing.assert_allclose(matrix @ matrix.T, np.eye(2), atol=1e-3)
                assert abs(np.degrees(np.arcsin(matrix[0, 1]))) <= 15.01
            else:
                np.testing.assert_allclose(matrix - np.diag(np.diag(matrix)), 0, atol=1e-4)
                assert np.all((np.diag(matrix) >= 1 / 1.2 - 1e-4) & (np.diag(matrix) <= 1.2 + 1e-4))
            ys, xs = np.meshgrid(grid, grid, indexing="ij")
            source = np.einsum("ij,hwj->hwi", matrix, np.stack([xs, ys], -1))
            coordinates = np.stack([(source[..., 1] + 1) * (size - 1) / 2, (source[..., 0] + 1) * (size - 1) / 2])
            image = np.asarray(IMAGES[0, :, :, 0])
            padded = np.pad(image, 1)  # scipy treats what is just outside as constant; pad to blend with zeros
            wanted = ndimage.map_coordinates(padded, coordinates + 1, order=1, mode="constant", cval=0.0)
            ours = Augmentation(group)(key, IMAGES[:1, :, :, :1], shared=True)[0, :, :, 0]
            np.testing.assert_allclose(ours, wanted, atol=2e-3)


def test_color_is_brightness_saturation_contrast_in_that_order():
    """Each is affine, so a picture of one colour and one of noise identify the three draws."""
    grey = jnp.full((1, 4, 4, 3), 0.3)
    for key in KEYS[:8]:
        out = np.asarray(Augmentation("color")(key, grey))
        # Saturation and contrast leave an even grey alone; brightness moves it.
        assert np.ptp(out) < 1e-5
        assert -0.5 - 1e-5 <= out.mean() - 0.3 <= 0.5 + 1e-5
    striped = IMAGES[:1] - IMAGES[:1].mean((1, 2, 3), keepdims=True)
    for key in KEYS[:8]:
        out = np.asarray(Augmentation("color")(key, striped))
        before, after = np.asarray(striped).mean(-1), out.mean(-1)
        contrast = np.std(after) / np.std(before)
        assert 0.5 - 1e-3 <= contrast <= 1.5 + 1e-3
        within = np.std(out - out.mean(-1, keepdims=True)) / np.std(striped - striped.mean(-1, keepdims=True))
        assert within <= 2.0 * contrast + 1e-3


def test_all_groups_of_a_strategy_are_drawn():
    augment = jax.jit(Augmentation("flip_cutout"))
    kinds = {bool((np.asarray(augment(k, IMAGES)) == 0).any()) for k in KEYS}
    assert kinds == {True, False}


def test_auto_depends_on_the_data():
    assert resolve_augmentation("auto", (32, 32, 3), "cifar10") == Augmentation(FULL_STRATEGY)
    assert resolve_augmentation("auto", (28, 28, 1), "mnist") == Augmentation(DIGITS_STRATEGY)
    assert resolve_augmentation("auto", (8, 8, 1), "digits") is None
    assert resolve_augmentation("auto", (3,)) is None
    with pytest.raises(ValueError, match="needs images"):
        resolve_augmentation("flip", (3,))
    with pytest.raises(TypeError, match="augment"):
        resolve_augmentation(3, (32, 32, 3), "cifar10")
    with pytest.raises(ValueError, match="unknown groups"):
        Augmentation("flip_sharpen")
