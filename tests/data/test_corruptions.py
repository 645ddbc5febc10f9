"""Corruptions of images: closed forms and laws where they exist, and what every one of them keeps."""

import colorsys
import io

import jax
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from pseudocoreset.data import CORRUPTIONS, SEVERITIES, Preprocessing, Split, corrupt, corrupted

KEY = jax.random.key(0)
NAMES = (*CORRUPTIONS, "shot_noise", "speckle_noise")
CERTAIN = ("brightness", "defocus_blur", "gaussian_blur", "jpeg_compression", "pixelate")


def pictures(n=3, height=32, width=32, channels=3, seed=0):
    """Patches of colour under a little noise: edges, flat places and texture."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(30, 210, (n, -(-height // 5), -(-width // 5), channels))
    large = patches.repeat(5, 1).repeat(5, 2)[:, :height, :width]
    return np.clip(large + rng.normal(0, 8, large.shape), 0, 255).astype(np.uint8)


def delta(n=1, side=32, channels=1):
    images = np.zeros((n, side, side, channels), np.uint8)
    images[:, side // 2, side // 2] = 255
    return images


def gaussian_weights(sigma, radius):
    weights = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def within_rounding(found, wanted):
    return np.abs(found - np.asarray(wanted)).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("severity", "shift"), list(zip(SEVERITIES, (0.05, 0.1, 0.15, 0.2, 0.3), strict=True)))
def test_brightness_is_added_to_the_value_of_hsv(severity, shift):
    images = pictures(1, 8, 8)
    images[0, 0, 0] = 0  # black has neither hue nor saturation
    images[0, 0, 1] = (250, 5, 5)
    found = corrupt(images, "brightness", severity, KEY)
    for pixel, bright in zip(images.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        wanted = colorsys.hsv_to_rgb(hue, saturation, min(value + shift, 1))
        assert within_rounding(bright, 255 * np.array(wanted))


@pytest.mark.parametrize(
    ("side", "severity", "sigma"),
    [(32, 1, 0.4), (32, 2, 0.6), (32, 3, 0.7), (32, 4, 0.8), (32, 5, 1.0), (64, 5, 2.0), (16, 5, 0.5)],
)
def test_gaussian_blur_of_a_point(side, severity, sigma):
    found = corrupt(delta(side=side), "gaussian_blur", severity, KEY)[0, ..., 0]
    radius = int(4 * sigma + 0.5)
    kernel = gaussian_weights(sigma, radius)
    wanted = np.zeros((side, side))
    near = slice(side // 2 - radius, side // 2 + radius + 1)
    wanted[near, near] = 255 * np.outer(kernel, kernel)
    assert within_rounding(found, wanted)


def test_defocus_blur_of_a_point_is_a_disk():
    for severity, softness in ((1, 0.4), (2, 0.5), (3, 0.6)):
        kernel = gaussian_weights(softness, 1)
        wanted = np.pad(255 * np.outer(kernel, kernel), 1)  # a disk smaller than a pixel leaves its softness alone
        assert within_rounding(corrupt(delta(), "defocus_blur", severity, KEY)[0, 14:19, 14:19, 0], wanted)
    plus = np.array([[0, 51, 0], [51, 51, 51], [0, 51, 0]])
    assert within_rounding(corrupt(delta(), "defocus_blur", 4, KEY)[0, 15:18, 15:18, 0], plus)
    assert within_rounding(corrupt(delta(), "defocus_blur", 5, KEY)[0, 15:18, 15:18, 0], np.full((3, 3), 255 / 9))


@pytest.mark.parametrize(("severity", "radius", "sigma"), [(1, 6, 1), (2, 6, 1.5), (3, 6, 2), (4, 8, 2), (5, 9, 2.5)])
def test_motion_blur_smears_a_point_along_a_half_line(severity, radius, sigma):
    found = corrupt(delta(40), "motion_blur", severity, KEY)[..., 0].astype(float)
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    assert (found[:, 16, 16] == np.rint(255 * weights[0] / weights.sum())).all()
    touched = found > 0
    assert np.abs(found.sum((1, 2)) - 255).max() <= touched.sum((1, 2)).max() / 2
    _, rows, columns = np.nonzero(touched)
    assert (columns <= 16).all()
    assert (np.abs(rows - 16) <= 16 - columns).all()  # at most 45 degrees either way
    slopes = [np.polyfit(*np.nonzero(one)[::-1], 1, w=one[one > 0])[0] for one in found]
    assert min(slopes) < -0.5
    assert max(slopes) > 0.5


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("severity", "quality"), list(zip(SEVERITIES, (80, 65, 58, 50, 40), strict=True)))
def test_jpeg_is_pillows(severity, quality, channels):
    images = pictures(channels=channels)
    found = corrupt(images, "jpeg_compression", severity, KEY)
    for image, result in zip(images, found, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image.squeeze()).save(buffer, "JPEG", quality=quality)
        np.testing.assert_array_equal(result.squeeze(), np.asarray(Image.open(buffer)))


def test_pixelate_leaves_blocks_alone_that_are_wholly_kept():
    blocks = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    # Of 32 pixels 24 remain: each block of 8 becomes one of 6.
    np.testing.assert_array_equal(corrupt(blocks, "pixelate", 4, KEY), blocks)
    for severity, left in zip(SEVERITIES, (30, 28, 27, 24, 20), strict=True):
        found = corrupt(pictures(), "pixelate", severity, KEY).astype(int)
        for axis in (1, 2):
            changes = (np.diff(found, axis=axis) != 0).any((0, 3 - axis, 3))
            assert changes.sum() == left - 1


@pytest.mark.parametrize(("severity", "deviation"), list(zip(SEVERITIES, (0.06, 0.1, 0.12, 0.16, 0.2), strict=True)))
def test_speckle_noise_has_its_mean_and_variance(severity, deviation):
    level = 120
    found = corrupt(np.full((20, 32, 32, 3), level, np.uint8), "speckle_noise", severity, KEY).astype(float)
    variance = (level * deviation) ** 2 + 1 / 12  # of rounding
    assert abs(found.mean() - level) < 4.5 * np.sqrt(variance / found.size)
    assert abs(found.var() - variance) < 4.5 * variance * np.sqrt(2 / found.size)
    assert (corrupt(delta(), "speckle_noise", severity, KEY) > 0).sum() <= 1  # in proportion: black stays black


@pytest.mark.parametrize(("severity", "photons"), list(zip(SEVERITIES, (500, 250, 100, 75, 50), strict=True)))
def test_shot_noise_is_poissons(severity, photons):
    found = corrupt(np.full((20, 32, 32, 3), 102, np.uint8), "shot_noise", severity, KEY).astype(float)
    counts = np.arange(3 * photons)
    mass = scipy.stats.poisson(0.4 * photons).pmf(counts)
    values = np.rint(255 * np.minimum(counts / photons, 1))
    mean = mass @ values
    variance, fourth = mass @ (values - mean) ** 2, mass @ (values - mean) ** 4
    assert abs(found.mean() - mean) < 4.5 * np.sqrt(variance / found.size)
    assert abs(found.var() - variance) < 4.5 * np.sqrt((fourth - variance**2) / found.size)


def test_mild_elastic_transform_is_affine_with_uniformly_moved_corners():
    count, slope, jitter = 60, 8, 2.56
    ramps = slope * np.stack(np.indices((32, 32)), -1)
    images = np.concatenate([ramps, np.zeros((32, 32, 1))], -1).astype(np.uint8)[None].repeat(count, 0)
    found = corrupt(images, "elastic_transform", 1, KEY)[:, 10:22, 10:22, :2] / slope
    design = np.column_stack([np.ones(144), np.stack(np.indices((12, 12)), -1).reshape(-1, 2) + 10])
    corners = 16 + 10 * np.array([[1, 1], [1, -1], [-1, -1]])
    moves = []
    for one in found:
        fit, *_ = np.linalg.lstsq(design, one.reshape(-1, 2), rcond=None)
        assert np.abs(design @ fit - one.reshape(-1, 2)).max() < 1.1 / slope  # twice what rounding does
        moves.append((corners - fit[0]) @ np.linalg.inv(fit[1:]) - corners)
    moves = np.ravel(moves)
    assert np.abs(moves).max() < jitter + 0.1
    variance = jitter**2 / 3
    assert abs(moves.mean()) < 4.5 * np.sqrt(variance / moves.size)
    assert abs(moves.var() - variance) < 4.5 * variance * np.sqrt(0.8 / moves.size)  # a uniform law's kurtosis is 9/5


def test_strong_elastic_transform_bends_lines():
    ramps = (8 * np.indices((32, 32))[0])[None, ..., None].astype(np.uint8)
    found = corrupt(ramps, "elastic_transform", 5, KEY)[0, 10:22, 10:22, 0] / 8
    design = np.column_stack([np.ones(144), np.stack(np.indices((12, 12)), -1).reshape(-1, 2)])
    _, residual, *_ = np.linalg.lstsq(design, found.ravel(), rcond=None)
    assert np.sqrt(residual[0] / 144) > 3 * np.sqrt(1 / 12) / 8
    flat = np.full((1, 32, 32, 3), 77, np.uint8)
    np.testing.assert_array_equal(corrupt(flat, "elastic_transform", 5, KEY), flat)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_frost_is_added_to_a_share_of_the_image(severity):
    share = (1, 1, 0.9, 0.85, 0.75)[severity - 1]
    dark = pictures() // 2
    ice = corrupt(np.zeros_like(dark), "frost", severity, KEY).astype(float)
    np.testing.assert_allclose(corrupt(dark, "frost", severity, KEY), share * dark + ice, atol=1)
    assert ice.std() > 5
    assert (ice[..., 2] >= ice[..., 0]).all()  # blue


@pytest.mark.parametrize("severity", SEVERITIES)
def test_snow_falls_on_both_halves(severity):
    share = (0.95, 0.9, 0.9, 0.85, 0.8)[severity - 1]
    found = corrupt(np.zeros((10, 32, 32, 3), np.uint8), "snow", severity, KEY)
    np.testing.assert_array_equal(found, found[:, ::-1, ::-1])
    assert found.min() >= np.rint(255 * (1 - share) * 0.5)  # black becomes pale
    assert found.max() > 80


def test_water_is_pale_turquoise_and_mud_is_brown():
    black, white = np.zeros((10, 32, 32, 3), np.uint8), np.full((10, 32, 32, 3), 255, np.uint8)
    for severity in (1, 2, 3):
        water = corrupt(black, "spatter", severity, KEY)
        assert within_rounding(water.max((1, 2)), np.array([175, 238, 238]) / 2)
        wet = (water > 0).any(-1).mean()
        assert 0 < wet < 0.5
    for severity in (4, 5):
        mud = corrupt(white, "spatter", severity, KEY).astype(float)
        cover = (255 - mud) / (255 - np.array([63, 42, 20]))
        np.testing.assert_allclose(cover[..., :2], cover[..., 2:].repeat(2, -1), atol=0.006)
        assert ((cover < 0.01) | (cover > 0.79)).all()
        assert 0 < (cover > 0.5).mean() < 0.5


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("elastic_transform", "frost", "spatter")])
def test_severity_is_severe(name):
    # Not so by their constants: the jitter of elastic_transform falls, frost darkens, spatter turns to mud.
    images = pictures(20)
    errors = [((corrupt(images, name, severity, KEY) - images.astype(float)) ** 2).mean() for severity in SEVERITIES]
    assert (np.diff(errors) > 0).all()
    assert errors[0] > 0


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_corrupted_alike_alone_and_in_a_batch(name):
    images = pictures(4)
    before = images.copy()
    found = corrupt(images, name, 3, KEY)
    assert found.dtype == np.uint8
    assert found.shape == images.shape
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(corrupt(images[:1], name, 3, KEY), found[:1])
    np.testing.assert_array_equal(corrupt(images[:3], name, 3, KEY), found[:3])
    changed = images.copy()
    changed[0] = 9
    np.testing.assert_array_equal(corrupt(changed, name, 3, KEY)[1:], found[1:])


@pytest.mark.parametrize("name", NAMES)
def test_the_key_decides(name):
    images = np.repeat(pictures(1), 3, 0)
    found = corrupt(images, name, 4, KEY)
    np.testing.assert_array_equal(corrupt(images, name, 4, jax.random.key(0)), found)
    again = corrupt(images, name, 4, jax.random.key(1))
    pairs = ((found[0], again[0]), (found[0], found[1]), (found[0], found[2]), (found[1], found[2]))
    assert [np.array_equal(one, other) for one, other in pairs] == [name in CERTAIN] * 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2, 4, 7, 1), (2, 8, 8, 3), (1, 28, 28, 1), (1, 64, 48, 3)])
def test_other_sizes_and_grey_images(name, shape):
    images = pictures(*shape)
    for severity in (1, 5):
        assert corrupt(images, name, severity, KEY).shape == shape


@pytest.mark.parametrize(
    "name", ["brightness", "defocus_blur", "elastic_transform", "gaussian_blur", "motion_blur", "pixelate", "spatter"]
)
def test_grey_is_a_colour(name):
    grey = pictures(channels=1)
    colour = corrupt(grey.repeat(3, -1), name, 5, KEY)
    if name == "spatter":
        luminance = colour @ np.array([0.299, 0.587, 0.114])
        np.testing.assert_allclose(corrupt(grey, name, 5, KEY)[..., 0], luminance, atol=1.01)
    else:
        np.testing.assert_array_equal(colour, corrupt(grey, name, 5, KEY).repeat(3, -1))


def test_a_corrupted_split_keeps_all_but_its_images():
    images = pictures(6)
    labels = np.arange(6, dtype=np.int32)
    preprocessing = Preprocessing(scale=1 / 255, mean=np.full(3, 0.5), std=np.full(3, 0.2))
    found = corrupted(Split(images, labels, preprocessing), "snow", 3, KEY)
    np.testing.assert_array_equal(found.raw, corrupt(images, "snow", 3, KEY))
    np.testing.assert_array_equal(found.y, labels)
    assert found.preprocessing is preprocessing
    np.testing.assert_array_equal(found.x, preprocessing.apply(found.raw))


@pytest.mark.parametrize("scale", [1.0, 1 / 255, 1 / 16])
def test_floats_are_images_in_the_units_of_their_preprocessing(scale):
    images = pictures(2)
    raw = (images / (255 * scale)).astype(np.float32)
    found = corrupted(Split(raw, np.zeros(2, np.int32), Preprocessing(scale=scale)), "motion_blur", 2, KEY)
    assert found.raw.dtype == np.float32
    np.testing.assert_allclose(255 * scale * found.raw, corrupt(images, "motion_blur", 2, KEY), rtol=1e-6)


def test_floats_that_are_no_images_are_refused():
    values = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
    for shift in (-0.5, 0.5):
        split = Split(values + np.float32(shift), np.zeros(2, np.int32), Preprocessing())
        with pytest.raises(ValueError, match=r"split must hold images: .* floats in \[0, 1\]; its values run from "):
            corrupted(split, "frost", 1, KEY)
    with pytest.raises(TypeError, match=r"split must be a Split; got an array"):
        corrupted(values, "frost", 1, KEY)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(images=pictures().astype(float)), TypeError, "images must be uint8, 0 to 255; got float64"),
        (dict(images=pictures()[0]), ValueError, r"images must be \(n, h, w, c\).*got shape \(32, 32, 3\)"),
        (dict(images=pictures(channels=2)), ValueError, r"1 or 3 channels.*got shape \(3, 32, 32, 2\)"),
        (dict(images=pictures(height=3)), ValueError, "sides of 4 pixels"),
        (dict(images=pictures()[:0]), ValueError, "n >= 1"),
        (dict(name="sandstorm"), ValueError, "name='sandstorm' is unknown; use one of 'brightness'"),
        (dict(severity=0), ValueError, "severity must be at least 1; got 0"),
        (dict(severity=6), ValueError, "severity must be 1 to 5; got 6"),
        (dict(severity=2.0), TypeError, "severity must be an integer"),
        (dict(key=0), TypeError, "key must be a typed key"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = dict(images=pictures(), name="snow", severity=1, key=KEY)
    with pytest.raises(error, match=message):
        corrupt(**{**arguments, **change})
