"""What a routine is compiled for, and the memory that it needs; nothing here needs a compiler."""

from __future__ import annotations

from dataclasses import dataclass

from pseudocoreset.kernels.transforms import TILE

__all__ = ["FILTERS", "PLACES", "Sizes"]

# Filters are padded to a multiple of it, the widest vector of float32 that there is.
FILTERS = 16
PLACES = 36
# Transforms of tiles in work at once: a part of a second cache, but not fewer than pay for reading the weights.
TILES_BYTES = 512 * 1024
LEAST_TILES = 28
# Tiles in all below which the transforms of the weights, and reading them, cost more than the products that they save.
FEWEST_TILES = 24
# Multiplications for which it is worth waking a thread: some tens of microseconds.
PART_PRODUCTS = 2_000_000


@dataclass(frozen=True)
class Sizes:
    """What a routine is compiled for.

    Attributes:
        channels: of the images.
        filters: a multiple of ``FILTERS``.
        bias: whether the weights have a row more, (9 channels + 1, filters).
        is_tiled: whether images are cut into tiles; channels are a multiple of ``FILTERS`` then.
        bits: of a number, 32 or 64.
    """

    channels: int
    filters: int
    bias: bool
    is_tiled: bool
    bits: int

    @classmethod
    def of(cls, images: tuple[int, ...], filters: int, bias: bool, bits: int) -> Sizes:
        """For images of a shape (n, height, width, channels), in the form that takes less time."""
        n, height, width, channels = images
        num_tiles = n * -(-height // TILE) * -(-width // TILE)
        is_tiled = channels % FILTERS == 0 and min(height, width) >= TILE and num_tiles >= FEWEST_TILES
        return cls(channels, filters, bias, is_tiled, bits)

    @property
    def tiles_at_once(self) -> int:
        """Tiles whose transforms are in memory at once."""
        fitting = TILES_BYTES * 8 // (self.bits * PLACES * (self.channels + self.filters))
        return max(LEAST_TILES, fitting // LEAST_TILES * LEAST_TILES)

    @property
    def weights(self) -> int:
        """Numbers of the weights."""
        return (9 * self.channels + self.bias) * self.filters

    def parts(self, n: int, height: int, width: int, threads: int) -> int:
        """In how many parts images are worth being shared out to threads."""
        products = n * height * width * 9 * self.channels * self.filters // (4 if self.is_tiled else 1)
        return max(1, min(threads, n, products // PART_PRODUCTS))

    def scratch(self, n: int, height: int, width: int) -> int:
        """Numbers of memory for n images: weights as they are multiplied, images or tiles, and a sum of gradients."""
        if self.is_tiled:
            per_place = self.channels * self.filters + self.tiles_at_once * (self.channels + self.filters)
            return PLACES * per_place + FILTERS + self.weights
        return 9 * self.channels * self.filters + n * (height + 2) * (width + 2) * self.channels + self.weights
