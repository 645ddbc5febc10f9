"""Common corruptions of images (Hendrycks and Dietterich 2019): what CIFAR-10-C is made with.

The constants of the five severities are those of the publishers' script for images of 32 x 32,
`ImageNet-C/create_c/make_cifar_c.py` of github.com/hendrycks/robustness; they are milder than those for ImageNet.
They have not been compared with the released files, which may have been made otherwise.
"""

import zlib
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from pseudocoreset.arguments import checked
from pseudocoreset.data.corruption.distortions import DISTORTIONS
from pseudocoreset.data.dataset import Split
from pseudocoreset.validation import check_choice, check_integer, check_key

__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupt", "corrupted"]

CORRUPTIONS: tuple[str, ...] = (
    "brightness",
    "defocus_blur",
    "elastic_transform",
    "frost",
    "gaussian_blur",
    "jpeg_compression",
    "motion_blur",
    "pixelate",
    "snow",
    "spatter",
)
"""The ten of Table 3 of Kim et al. 2023, in its order: BN, DB, ET, FT, GB, JPEG, MB, PIX, SN, SP.

The paper does not spell them out. Two letters are the initials of two words elsewhere in the table, so SN and SP
are read as the single words snow and spatter; `corrupt` also knows the other readings, "shot_noise" and
"speckle_noise".
"""

SEVERITIES: tuple[int, ...] = (1, 2, 3, 4, 5)
"""From mild to strong."""

_SIDE = 32

# Lengths are in pixels of an image of 32 x 32.
_CONSTANTS: dict[str, tuple[tuple[float, ...], ...]] = {
    # added to V of HSV
    "brightness": ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
    # radius of the disk, deviation of the Gaussian that softens it
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    # largest displacement, deviation of the Gaussian that smooths it, jitter of the affine map's corners
    "elastic_transform": (
        (0, 0, 2.56),
        (1.6, 6.4, 2.24),
        (2.56, 1.92, 1.92),
        (3.2, 1.28, 1.6),
        (3.2, 0.96, 0.96),
    ),
    # weights of the image and of the ice
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    # deviation
    "gaussian_blur": ((0.4,), (0.6,), (0.7,), (0.8,), (1.0,)),
    # quality
    "jpeg_compression": ((80,), (65,), (58,), (50,), (40,)),
    # radius, deviation
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    # share of the pixels that is left of a side
    "pixelate": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
    # photons of a white pixel
    "shot_noise": ((500,), (250,), (100,), (75,), (50,)),
    # mean, deviation, size and threshold of flakes; radius and deviation of their fall; what is left of the image
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    # mean, deviation, smoothing and threshold of the liquid; its strength, or smoothing if it is mud; mud or water
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, False),
        (0.65, 0.1, 0.8, 0.7, 0.5, False),
        (0.65, 0.3, 1, 0.69, 0.5, False),
        (0.65, 0.1, 0.7, 0.69, 0.6, True),
        (0.65, 0.1, 0.5, 0.68, 0.6, True),
    ),
    # deviation of the factor
    "speckle_noise": ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,)),
}


@checked
def corrupt(images: np.ndarray, name: str, severity: int, key: jax.Array) -> np.ndarray:
    """Apply one common corruption (Hendrycks and Dietterich 2019, section 3) to every image.

    Constants are the publishers' for 32 x 32 (CIFAR-10-C). For another size every length in pixels (radii,
    deviations of blurs, displacements, flakes) is multiplied by the shorter side over 32, so that pictures of two
    sizes look alike. What differs from the published files: the draws; results are rounded, not cut off, to whole
    values; frost is a procedural texture of needles and patches, because the publishers' photographs of frost are
    no part of this package, so its figures are not comparable with published ones; the water of spatter uses
    exact distances where OpenCV approximates them.

    The random numbers of an image depend on the key, the name, the severity and the place of the image in
    `images`, not on how many images there are or what they show. The same key gives the same bits as long as
    numpy, SciPy and Pillow stay the same.

    Args:
        images: (n, h, w, c) uint8 with c = 1 or 3 and h, w >= 4.
        name: one of `CORRUPTIONS`, "shot_noise" or "speckle_noise".
        severity: 1 (mild) to 5.
        key: a key from `jax.random.key`; one may serve all names and severities.

    Returns:
        (n, h, w, c) uint8. A grey image stays grey: colours become their luminance.

    Raises:
        TypeError: images that are not uint8, a severity that is no integer, or something else than a typed key.
        ValueError: an unknown name, a severity out of range, or another shape.
    """
    images = _check_images(images)
    check_choice(name, "name", DISTORTIONS)
    if check_integer(severity, "severity") > len(SEVERITIES):
        raise ValueError(f"severity must be 1 to {len(SEVERITIES)}; got {severity}")
    # Plain integers: the seeds of numpy take words of any size.
    words = np.asarray(jax.random.key_data(check_key(key))).ravel().tolist()
    stream = [*words, zlib.crc32(name.encode()), int(severity)]
    distort, constants = DISTORTIONS[name], _CONSTANTS[name][severity - 1]
    scale = min(images.shape[1:3]) / _SIDE
    result = np.empty_like(images)
    for index, image in enumerate(images):
        generator = np.random.default_rng([*stream, index])
        distorted = distort(image / 255, *constants, scale=scale, generator=generator)
        result[index] = np.rint(255 * np.clip(distorted, 0, 1))
    return result


@checked
def corrupted(split: Split, name: str, severity: int, key: jax.Array) -> Split:
    """A split of the same data with corrupted images, the same targets and the same preprocessing.

    Args:
        split: Images as uint8, or as float32 that `preprocessing.scale` brings into [0, 1]: these pass through 8
            bits and come back as float32 in their own units.
        name: as for `corrupt`.
        severity: 1 to 5.
        key: as for `corrupt`.

    Returns:
        A split with as many data.

    Raises:
        TypeError: as `corrupt`, or `split` is no Split.
        ValueError: as `corrupt`, or float data outside [0, 1] after `preprocessing.scale`.
    """
    if not isinstance(split, Split):
        raise TypeError(f"split must be a pseudocoreset.data.Split; got {type(split).__name__}")
    raw = split.raw[:]
    if raw.dtype == np.uint8:
        return replace(split, raw=corrupt(raw, name, severity, key))
    scale = split.preprocessing.scale
    levels = raw.astype(np.float64) * scale
    # Scales such as 1 / 255 round; a thousandth of a grey level is no other picture.
    if levels.min() < -1e-5 or levels.max() > 1 + 1e-5:
        raise ValueError(
            f"split must hold images: uint8, or floats in [0, {1 / scale:g}]; "
            f"its values run from {raw.min():g} to {raw.max():g}"
        )
    quantised = np.rint(255 * np.clip(levels, 0, 1)).astype(np.uint8)
    pixels = corrupt(quantised, name, severity, key)
    return replace(split, raw=(pixels / (255 * scale)).astype(np.float32))


def _check_images(images: Any) -> np.ndarray:
    array = np.asarray(images)
    if array.dtype != np.uint8:
        raise TypeError(f"images must be uint8, 0 to 255; got {array.dtype}")
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or min(array.shape[1:3]) < 4 or not len(array):
        raise ValueError(
            f"images must be (n, h, w, c) with 1 or 3 channels, sides of 4 pixels or more and n >= 1; "
            f"got shape {array.shape}"
        )
    return array
