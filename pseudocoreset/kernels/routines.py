"""The two routines of 3x3 convolutions: the correlation of images with weights, and its gradient towards the weights.

Weights are a matrix (9 channels, filters), with one more row where there is a bias. Images of many channels are cut
into tiles as ``models.winograd`` has it, so few of them at a time that their transforms and products stay in the nearer
caches; images of few channels are multiplied as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from pseudocoreset.kernels.emitter import Integer, Pointer, Program, Vector
from pseudocoreset.kernels.products import Products, Strides
from pseudocoreset.kernels.sizes import PLACES, Sizes
from pseudocoreset.kernels.transforms import FILTER, INPUT, OUTPUT, TILE, combine, mirrored

__all__ = ["emit_correlation", "emit_gradient"]


@dataclass(frozen=True)
class _Images:
    """Images in memory, (n, height, width, channels)."""

    first: Pointer
    height: Integer
    width: Integer
    channels: int

    def tiles(self) -> tuple[Integer, Integer]:
        """Rows and columns of tiles."""
        return (self.height + (TILE - 1)) // TILE, (self.width + (TILE - 1)) // TILE

    def places(
        self, tile: Integer, size: int, before: int, outside: Pointer
    ) -> Callable[[Integer], Callable[[int, int], Pointer]]:
        """Where ``size`` x ``size`` pixels of a tile are, from ``before`` its corner on, by the first of the channels.

        Args:
            tile: its number among those of all images.
            size: of the square of pixels.
            before: pixels above and left of the tile.
            outside: what to take for a pixel that is not in the image.
        """
        rows, columns = self.tiles()
        image, inside = tile // (rows * columns), tile % (rows * columns)
        top, left = inside // columns * TILE - before, inside % columns * TILE - before
        is_row = [(top + i).is_below(self.height) for i in range(size)]
        is_column = [(left + j).is_below(self.width) for j in range(size)]
        builder = top.emitter.builder
        is_inside = [[builder.and_(a, b) for b in is_column] for a in is_row]
        corner = self.first + ((image * self.height + top) * self.width + left) * self.channels
        lines = [corner + self.width * (i * self.channels) for i in range(size)]

        def at(channel: Integer) -> Callable[[int, int], Pointer]:
            return lambda i, j: (lines[i] + channel + j * self.channels).where(is_inside[i][j], outside)

        return at


def _transform_both_ways(
    transform: Callable[[Sequence[Vector]], list[Vector]],
    size: int,
    load: Callable[[int, int], Vector],
    store: Callable[[int, int, Vector], None],
) -> None:
    """Transform the columns of a square, then its rows.

    Each is loaded just before and stored just after, for LLVM keeps the order, and a whole square fits in no registers.
    """
    columns = [transform([load(i, j) for i in range(size)]) for j in range(size)]
    for i, row in enumerate(zip(*columns, strict=True)):
        for j, value in enumerate(transform(row)):
            store(i, j, value)


def _cut(parts: Sequence[Vector]) -> list[Vector]:
    return mirrored(combine(INPUT, parts))


def _join(parts: Sequence[Vector]) -> list[Vector]:
    return combine(OUTPUT.T, mirrored(parts))


def _join_adjoint(parts: Sequence[Vector]) -> list[Vector]:
    return mirrored(combine(OUTPUT, parts))


class _Routine:
    """What the routines share: the function that is written, its sizes and its constants."""

    def __init__(self, program: Program, name: str, sizes: Sizes):
        self.sizes = sizes
        self.program = program
        self.name = name
        self.lanes = program.lanes
        # Filters that are multiplied together: one vector of them or two.
        self.panel = self.lanes * (2 if sizes.filters % (2 * self.lanes) == 0 else 1)
        self.num_panels = sizes.filters // self.panel
        self.panel_size = sizes.channels * self.panel
        self.emitter, pointers, self.shape = program.function(name, 4, 3)
        self.images, self.given, self.out, self.scratch = pointers
        self.zeros = Pointer(self.emitter, program.zeros(f"{name}_zeros", 2 * self.lanes))

    def products(self, strides: Strides) -> Products:
        """Functions that multiply by a panel."""
        return Products(self.program, f"{self.name}_products", self.panel, strides)

    def end(self) -> ir.Function:
        self.emitter.builder.ret_void()
        return self.emitter.function

    def image(self, first: Pointer, channels: int) -> _Images:
        return _Images(first, self.shape[1], self.shape[2], channels)

    def each_vector(self, numbers: int, body: Callable[[Integer], None]) -> None:
        """For the first index of every vector of a row."""
        self.emitter.repeat(numbers // self.lanes, lambda index: body(index * self.lanes))

    def each_weight(self, body: Callable[[Integer, Integer], None], panels: int = 1) -> None:
        """For every vector of weights of one place: its offset in rows of filters, and in panels, so many apart."""
        filters, apart = self.sizes.filters, panels * self.panel_size

        def vector(panel: Integer, channel: Integer, at: Integer) -> None:
            body(channel * filters + panel * self.panel + at, panel * apart + channel * self.panel + at)

        def channel(panel: Integer, channel: Integer) -> None:
            self.each_vector(self.panel, lambda at: vector(panel, channel, at))

        self.emitter.repeat(
            self.num_panels, lambda p: self.emitter.repeat(self.sizes.channels, lambda c: channel(p, c))
        )

    def each_block(self, body: Callable[[Integer, Integer], None]) -> None:
        """For every block of tiles: its first, and how many there are."""
        rows, columns = self.image(self.images, 1).tiles()
        total, most = self.shape[0] * rows * columns, self.sizes.tiles_at_once

        def block(index: Integer) -> None:
            first = index * most
            body(first, (total - first).at_most(most))

        self.emitter.repeat((total + (most - 1)) // most, block)

    def transform(
        self,
        first: Integer,
        count: Integer,
        images: _Images,
        size: int,
        before: int,
        by: Callable[[Sequence[Vector]], list[Vector]],
        out: Pointer,
    ) -> None:
        """Tiles of images, transformed, to (36, tiles, channels)."""
        apart = self.sizes.tiles_at_once * images.channels

        def vector(pixel: Callable[[int, int], Pointer], target: Pointer) -> None:
            _transform_both_ways(
                by,
                size,
                lambda i, j: pixel(i, j).load(),
                lambda i, j, value: (target + (6 * i + j) * apart).store(value),
            )

        def tile(index: Integer) -> None:
            places = images.places(first + index, size, before, self.zeros)
            self.each_vector(images.channels, lambda at: vector(places(at), out + index * images.channels + at))

        self.emitter.repeat(count, tile)

    def sum(self, first: Pointer, count: Integer, apart: int) -> Vector:
        """The sum of so many vectors, several at once, so that none waits for the one before."""
        emitter, at_once = self.emitter, 8

        def add(index: Integer, *totals: Vector) -> list[Vector]:
            group = first + index * (at_once * apart)
            return [total + (group + v * apart).load() for v, total in enumerate(totals)]

        totals = emitter.repeat(count // at_once, add, [emitter.constant(0.0)] * at_once)
        rest = first + count // at_once * (at_once * apart)
        totals[:1] = emitter.repeat(
            count % at_once, lambda index, total: [total + (rest + index * apart).load()], totals[:1]
        )
        while len(totals) > 1:
            totals = [one + other for one, other in zip(totals[::2], totals[1::2], strict=True)]
        return totals[0]

    def pad(self, out: Pointer) -> None:
        """All images, in a frame of one zero."""
        n, height, width = self.shape
        line = width * self.sizes.channels

        def copy(image: Integer, row: Integer) -> None:
            target = out + image * self.padded_size() + ((row + 1) * (width + 2) + 1) * self.sizes.channels
            self.emitter.copy(target, self.images + (image * height + row) * line, line)

        self.emitter.clear(out, n * self.padded_size())
        self.emitter.repeat(n, lambda image: self.emitter.repeat(height, lambda row: copy(image, row)))

    def padded_size(self) -> Integer:
        """Numbers of one image in its frame."""
        return (self.shape[1] + 2) * (self.shape[2] + 2) * self.sizes.channels


def emit_correlation(program: Program, name: str, sizes: Sizes) -> ir.Function:
    """A function of images, weights, the correlation of them, scratch memory, and n, height and width."""
    return (_tiled_correlation if sizes.is_tiled else _plain_correlation)(_Routine(program, name, sizes))


def emit_gradient(program: Program, name: str, sizes: Sizes) -> ir.Function:
    """A function of images, cotangents of the correlation, those of the weights, scratch, and n, height and width."""
    return (_tiled_gradient if sizes.is_tiled else _plain_gradient)(_Routine(program, name, sizes))


def _tiled_correlation(routine: _Routine) -> ir.Function:
    sizes, emitter = routine.sizes, routine.emitter
    channels, filters = sizes.channels, sizes.filters
    per_place, most = channels * filters, sizes.tiles_at_once
    multiply = routine.products(Strides(row=channels, step=1, factor_step=routine.panel, out_row=filters, adds=False))
    weights = routine.scratch
    cut = weights + PLACES * per_place
    products = cut + PLACES * most * channels
    nowhere = products + PLACES * most * filters
    bias = routine.given + 9 * per_place
    out = routine.image(routine.out, filters)

    def transform_weight(offset: Integer, in_panels: Integer) -> None:
        source, target = routine.given + offset, weights + in_panels
        _transform_both_ways(
            lambda parts: combine(FILTER, parts),
            3,
            lambda i, j: (source + (3 * i + j) * per_place).load(),
            lambda i, j, value: (target + (6 * i + j) * per_place).store(value),
        )

    def multiply_place(place: Integer, count: Integer) -> None:
        def panel(index: Integer) -> None:
            target = products + place * (most * filters) + index * routine.panel
            factors = weights + place * per_place + index * routine.panel_size
            multiply(emitter, count, cut + place * (most * channels), factors, routine.zeros, target, channels, 1, 0, 0)

        emitter.repeat(routine.num_panels, panel)

    def join_vector(pixel: Callable[[int, int], Pointer], source: Pointer, at: Integer) -> None:
        def load(i: int, j: int) -> Vector:
            product = (source + (6 * i + j) * (most * filters)).load()
            # What is added at this place is added to all of the tile.
            return product + (bias + at).load() if sizes.bias and (i, j) == (1, 1) else product

        _transform_both_ways(_join, 6, load, lambda i, j, value: pixel(i, j).store(value))

    def join(first: Integer, index: Integer) -> None:
        places = out.places(first + index, TILE, 0, nowhere)
        routine.each_vector(filters, lambda at: join_vector(places(at), products + index * filters + at, at))

    def block(first: Integer, count: Integer) -> None:
        routine.transform(first, count, routine.image(routine.images, channels), 6, 1, _cut, cut)
        emitter.repeat(PLACES, lambda place: multiply_place(place, count))
        emitter.repeat(count, lambda index: join(first, index))

    routine.each_weight(transform_weight)
    routine.each_block(block)
    return routine.end()


def _tiled_gradient(routine: _Routine) -> ir.Function:
    sizes, emitter = routine.sizes, routine.emitter
    channels, filters = sizes.channels, sizes.filters
    per_place, most = channels * filters, sizes.tiles_at_once
    multiply = routine.products(Strides(row=1, step=channels, factor_step=filters, out_row=routine.panel, adds=True))
    weights = routine.scratch
    cut = weights + PLACES * per_place
    cotangents = cut + PLACES * most * channels
    bias = routine.out + 9 * per_place

    def multiply_place(place: Integer, count: Integer) -> None:
        def panel(index: Integer) -> None:
            target = weights + place * per_place + index * routine.panel_size
            factors = cotangents + place * (most * filters) + index * routine.panel
            multiply(emitter, channels, cut + place * (most * channels), factors, target, target, count, 1, 0, 0)

        emitter.repeat(routine.num_panels, panel)

    def add_bias(at: Integer, count: Integer) -> None:
        # At this place the transform adds up a tile.
        total = routine.sum(cotangents + 7 * most * filters + at, count, filters)
        (bias + at).store((bias + at).load() + total)

    def block(first: Integer, count: Integer) -> None:
        routine.transform(first, count, routine.image(routine.images, channels), 6, 1, _cut, cut)
        routine.transform(first, count, routine.image(routine.given, filters), TILE, 0, _join_adjoint, cotangents)
        emitter.repeat(PLACES, lambda place: multiply_place(place, count))
        if sizes.bias:
            routine.each_vector(filters, lambda at: add_bias(at, count))

    def transform_weight(offset: Integer, in_panels: Integer) -> None:
        source, target = weights + in_panels, routine.out + offset
        _transform_both_ways(
            lambda parts: combine(FILTER.T, parts),
            6,
            lambda i, j: (source + (6 * i + j) * per_place).load(),
            lambda i, j, value: (target + (3 * i + j) * per_place).store(value),
        )

    emitter.clear(weights, PLACES * per_place)
    if sizes.bias:
        emitter.clear(bias, filters)
    routine.each_block(block)
    routine.each_weight(transform_weight)
    return routine.end()


def _plain_correlation(routine: _Routine) -> ir.Function:
    sizes, emitter = routine.sizes, routine.emitter
    channels, filters, panel = sizes.channels, sizes.filters, routine.panel
    n, height, width = routine.shape
    multiply = routine.products(Strides(row=channels, step=1, factor_step=panel, out_row=filters, adds=False))
    weights, padded = routine.scratch, routine.scratch + 9 * channels * filters

    def pack(offset: Integer, in_panels: Integer) -> None:
        # Panels one after the other, each of all nine places.
        for place in range(9):
            vector = (routine.given + offset + place * channels * filters).load()
            (weights + in_panels + place * routine.panel_size).store(vector)

    def multiply_row(index: Integer, image: Integer, row: Integer) -> None:
        start = routine.given + 9 * channels * filters + index * panel if sizes.bias else routine.zeros
        target = routine.out + (image * height + row) * width * filters + index * panel
        line = (width + 2) * channels
        multiply(
            emitter, width, padded + image * routine.padded_size() + row * line,
            weights + index * (9 * routine.panel_size), start, target,
            3 * channels, 3, line, 3 * routine.panel_size,
        )  # fmt: skip

    def multiply_panel(index: Integer) -> None:
        emitter.repeat(n, lambda image: emitter.repeat(height, lambda row: multiply_row(index, image, row)))

    routine.pad(padded)
    routine.each_weight(pack, panels=9)
    emitter.repeat(routine.num_panels, multiply_panel)
    return routine.end()


def _plain_gradient(routine: _Routine) -> ir.Function:
    sizes, emitter = routine.sizes, routine.emitter
    channels, filters = sizes.channels, sizes.filters
    n, height, width = routine.shape
    multiply = routine.products(Strides(row=1, step=channels, factor_step=filters, out_row=filters, adds=True))
    padded = routine.scratch
    line = (width + 2) * channels
    bias = routine.out + 9 * channels * filters

    def add(panel: Integer, row: Integer, image: Integer) -> None:
        target = routine.out + row * (3 * channels * filters) + panel * routine.panel
        factors = routine.given + image * height * width * filters + panel * routine.panel
        multiply(
            emitter, 3 * channels, padded + image * routine.padded_size() + row * line, factors, target, target,
            width, height, line, width * filters,
        )  # fmt: skip

    def add_row(panel: Integer, row: Integer) -> None:
        emitter.repeat(n, lambda image: add(panel, row, image))

    def add_bias(at: Integer) -> None:
        (bias + at).store(routine.sum(routine.given + at, n * height * width, filters))

    routine.pad(padded)
    emitter.clear(routine.out, 9 * channels * filters)
    emitter.repeat(routine.num_panels, lambda panel: emitter.repeat(3, lambda row: add_row(panel, row)))
    if sizes.bias:
        routine.each_vector(filters, add_bias)
    return routine.end()
