"""What each corruption does to one image; `corruptions` has the constants and the front doors.

Every function takes an image (h, w, c) of float64 in [0, 1], the constants of one severity, `scale` (the
shorter side over 32, by which lengths in pixels grow) and a generator, and returns an image of the same
shape that may leave [0, 1]: the caller clips. SciPy and Pillow do what they have; blurring along a line,
the textures of frost, snow and liquid, and Canny's edges are written here.
"""

import io
import math
from collections.abc import Callable

import numpy as np

__all__ = ["DISTORTIONS", "Distortion"]

Distortion = Callable[..., np.ndarray]

_LUMA = np.array([0.299, 0.587, 0.114])
_WATER = np.array([175.0, 238.0, 238.0]) / 255
_MUD = np.array([63.0, 42.0, 20.0]) / 255
_ICE = np.array([0.86, 0.95, 1.0])


def _grey(image: np.ndarray) -> np.ndarray:
    """(h, w, 1): luminance of a colour image, a grey one as it is."""
    return image if image.shape[-1] == 1 else (image @ _LUMA)[..., None]


def _tint(colour: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A colour for the channels that the image has."""
    return colour if image.shape[-1] == 3 else colour @ _LUMA[:, None]


def _bytes(image: np.ndarray) -> np.ndarray:
    """uint8, without the channel axis of a grey image, as Pillow wants it."""
    return np.rint(255 * (image[..., 0] if image.shape[-1] == 1 else image)).astype(np.uint8)


def _brightness(image: np.ndarray, shift: float, *, scale: float, generator: np.random.Generator) -> np.ndarray:
    # With hue and saturation kept, all channels grow in proportion to the largest, which is V of HSV.
    value = image.max(-1, keepdims=True)
    raised = np.minimum(value + shift, 1.0)
    return np.where(value > 0, image * (raised / np.where(value > 0, value, 1.0)), raised)


def _shot_noise(image: np.ndarray, photons: float, *, scale: float, generator: np.random.Generator) -> np.ndarray:
    return generator.poisson(image * photons) / photons


def _speckle_noise(image: np.ndarray, deviation: float, *, scale: float, generator: np.random.Generator) -> np.ndarray:
    return image + image * generator.normal(scale=deviation, size=image.shape)


def _gaussian_blur(image: np.ndarray, sigma: float, *, scale: float, generator: np.random.Generator) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, (sigma * scale, sigma * scale, 0), mode="nearest")


def _defocus_blur(
    image: np.ndarray, radius: float, softness: float, *, scale: float, generator: np.random.Generator
) -> np.ndarray:
    from scipy.ndimage import correlate, gaussian_filter1d

    radius, softness = radius * scale, softness * scale
    soft = max(1, round(scale))
    reach = math.floor(radius) + soft
    steps = np.arange(-reach, reach + 1)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.float64)
    for axis in (0, 1):
        disk = gaussian_filter1d(disk, softness, axis, mode="constant", radius=soft)
    return correlate(image, (disk / disk.sum())[..., None], mode="mirror")


def _streak(image: np.ndarray, radius: float, sigma: float, degrees: float) -> np.ndarray:
    """Blur along a half line: weights exp(-i^2 / 2 sigma^2) at i = 0 .. 2 radius pixels in one direction.

    This is ImageMagick's motion blur: each step goes to the nearest pixel, beyond the edge lies the edge.
    """
    height, width = image.shape[:2]
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    pad = len(steps)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), "edge")
    angle = math.radians(degrees)
    down = pad + np.ceil(steps * math.sin(angle) - 0.5).astype(int)
    right = pad + np.ceil(steps * math.cos(angle) - 0.5).astype(int)
    result = np.zeros_like(image)
    for weight, y, x in zip(weights, down, right, strict=True):
        result += weight * padded[y : y + height, x : x + width]
    return result


def _motion_blur(
    image: np.ndarray, radius: float, sigma: float, *, scale: float, generator: np.random.Generator
) -> np.ndarray:
    return _streak(image, radius * scale, sigma * scale, generator.uniform(-45, 45))


def _jpeg_compression(image: np.ndarray, quality: int, *, scale: float, generator: np.random.Generator) -> np.ndarray:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(_bytes(image)).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as picture:
        return np.asarray(picture).reshape(image.shape) / 255


def _pixelate(image: np.ndarray, share: float, *, scale: float, generator: np.random.Generator) -> np.ndarray:
    from PIL import Image

    height, width = image.shape[:2]
    small = Image.fromarray(_bytes(image)).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX)).reshape(image.shape) / 255


def _elastic_transform(
    image: np.ndarray,
    strength: float,
    smoothness: float,
    jitter: float,
    *,
    scale: float,
    generator: np.random.Generator,
) -> np.ndarray:
    from scipy.ndimage import affine_transform, gaussian_filter, map_coordinates

    strength, smoothness, jitter = strength * scale, smoothness * scale, jitter * scale
    size = image.shape[:2]
    reach = min(size) // 3
    corners = np.array(size) // 2 + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + generator.uniform(-jitter, jitter, size=(3, 2))
    # The affine map that takes the moved corners back, which tells where each pixel comes from.
    *matrix, offset = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)
    channels = [
        affine_transform(channel, np.transpose(matrix), offset, order=1, mode="mirror")
        for channel in np.moveaxis(image, -1, 0)
    ]
    fields = generator.uniform(-1, 1, size=(2, *size))
    if strength:
        sigma = (0, smoothness, smoothness)
        where = np.indices(size) + strength * gaussian_filter(fields, sigma, mode="reflect", truncate=3)
        channels = [map_coordinates(channel, where, order=1, mode="reflect") for channel in channels]
    return np.stack(channels, -1)


def _frost(image: np.ndarray, share: float, ice: float, *, scale: float, generator: np.random.Generator) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    # Needles in three directions 60 degrees apart, as ice grows, over patches of thin and thick ice. Both are
    # standardised, so that the texture has mean 0.45 and deviation 0.28, less what the clipping takes.
    height, width = image.shape[:2]
    radius = 8 * scale
    margin = 2 * math.ceil(radius) + 1  # what lies beyond the edge of the window is ice too
    noise = generator.normal(size=(height + 2 * margin, width + 2 * margin, 3))
    first = generator.uniform(0, 60)
    streaks = [_streak(noise[..., k : k + 1], radius, 5 * scale, first + 60 * k)[..., 0] for k in range(3)]
    needles = np.max(streaks, 0)[margin : margin + height, margin : margin + width]
    patches = gaussian_filter(generator.normal(size=(height, width)), 4 * scale, mode="reflect")
    texture = np.clip(0.45 + 0.2 * (_standard(needles) + _standard(patches)), 0, 1)
    return share * image + ice * texture[..., None] * _tint(_ICE, image)


def _standard(field: np.ndarray) -> np.ndarray:
    return (field - field.mean()) / field.std()


def _snow(
    image: np.ndarray,
    mean: float,
    deviation: float,
    size: float,
    threshold: float,
    radius: float,
    sigma: float,
    share: float,
    *,
    scale: float,
    generator: np.random.Generator,
) -> np.ndarray:
    from scipy.ndimage import zoom

    height, width = image.shape[:2]
    factor = max(1.0, size * scale)  # no flake is smaller than a pixel
    flakes = generator.normal(mean, deviation, size=(math.ceil(height / factor), math.ceil(width / factor)))
    if factor > 1:
        flakes = zoom(flakes, factor, order=1)
        top, left = (flakes.shape[0] - height) // 2, (flakes.shape[1] - width) // 2
        flakes = flakes[top : top + height, left : left + width]
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)[..., None]
    flakes = _streak(flakes, radius * scale, sigma * scale, generator.uniform(-135, -45))
    pale = share * image + (1 - share) * np.maximum(image, 1.5 * _grey(image) + 0.5)
    return pale + flakes + flakes[::-1, ::-1]


def _spatter(
    image: np.ndarray,
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: bool,
    *,
    scale: float,
    generator: np.random.Generator,
) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    liquid = gaussian_filter(generator.normal(mean, deviation, size=image.shape[:2]), sigma * scale, mode="nearest")
    if mud:
        cover = gaussian_filter((liquid > threshold).astype(np.float64), strength * scale, mode="nearest")[..., None]
        cover = np.where(cover < 0.8, 0, cover)
        return image * (1 - cover) + cover * _tint(_MUD, image)
    drops = np.floor(255 * np.where(liquid < threshold, 0, np.clip(liquid, 0, 1)))
    shine = drops * _relief(_edges(drops), scale)
    shine *= strength / max(shine.max(), 1.0)
    return image + shine[..., None] * _tint(_WATER, image)


def _edges(image: np.ndarray, low: float = 50, high: float = 150) -> np.ndarray:
    """Canny's edges of values 0..255: where the gradient is largest along itself, and large or joined to large."""
    from scipy.ndimage import label, sobel

    down, right = sobel(image, 0, mode="nearest"), sobel(image, 1, mode="nearest")
    size = np.abs(down) + np.abs(right)
    padded = np.pad(size, 1)

    def neighbour(y: int, x: int) -> np.ndarray:
        return padded[1 + y : 1 + y + image.shape[0], 1 + x : 1 + x + image.shape[1]]

    tangent = math.tan(math.pi / 8)
    sideways = np.abs(down) < tangent * np.abs(right)
    upright = np.abs(right) <= tangent * np.abs(down)
    rising = (size > neighbour(-1, 1)) & (size > neighbour(1, -1))
    falling = (size > neighbour(-1, -1)) & (size > neighbour(1, 1))
    largest = np.select(
        [sideways, upright, down * right < 0],
        [
            (size > neighbour(0, -1)) & (size >= neighbour(0, 1)),
            (size > neighbour(-1, 0)) & (size >= neighbour(1, 0)),
            rising,
        ],
        falling,
    )
    lines, _ = label(largest & (size > low), np.ones((3, 3)))
    return np.isin(lines, np.unique(lines[largest & (size > high)])) & (lines > 0)


def _relief(edges: np.ndarray, scale: float) -> np.ndarray:
    """Light on drops with these outlines: the distance to them, equalised and embossed; values 0..255."""
    from scipy.ndimage import correlate, distance_transform_edt, uniform_filter

    if not edges.any():
        return np.zeros(edges.shape)
    # Twenty pixels, of 32, are far from every outline.
    distance = np.minimum(distance_transform_edt(~edges), 20 * scale)
    # A mean that is whole may come out a little below.
    levels = np.floor(uniform_filter(distance, 3, mode="mirror") + 1e-6).astype(int)
    counts = np.bincount(levels.ravel())
    first = counts[levels.min()]
    rank = np.cumsum(counts) - first
    equal = np.rint(255 * rank / max(levels.size - first, 1))[levels]
    embossed = np.clip(correlate(equal, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror"), 0, 255)
    return np.rint(uniform_filter(embossed, 3, mode="mirror"))


DISTORTIONS: dict[str, Distortion] = {
    "brightness": _brightness,
    "defocus_blur": _defocus_blur,
    "elastic_transform": _elastic_transform,
    "frost": _frost,
    "gaussian_blur": _gaussian_blur,
    "jpeg_compression": _jpeg_compression,
    "motion_blur": _motion_blur,
    "pixelate": _pixelate,
    "shot_noise": _shot_noise,
    "snow": _snow,
    "spatter": _spatter,
    "speckle_noise": _speckle_noise,
}
"""By the names of the benchmark."""
