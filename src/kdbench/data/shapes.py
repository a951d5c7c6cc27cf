"""`shapes`: 10 or 100 classes of 32x32 colour images drawn by code, for a first run without any data set on disk.

A sample of 10 classes is one figure on a textured ground, with distracting marks behind it, occluding marks in front of
it and noise over everything. Eight figures differ in their outline and two in the pattern that fills a patch; position,
size, rotation, squeeze and colours have the same distribution for all ten figures.

A sample of 100 classes has two smaller figures, and its class is their ordered pair: the first lies in the upper left
quarter, the second in the lower right. A horizontal flip keeps the order readable, as the first stays the upper one.

The same seed gives the same bytes on every machine. Random numbers come from `RandomState`, whose streams are frozen,
and pass through correctly rounded operations only (+ - * / sqrt abs floor min max sort), one ufunc each: no sin, no sum
and no BLAS, whose last bits depend on the library and the processor.

Axes: N samples of a block, H = W = 32 pixels, C = 3 channels (red, green, blue). Drawing is in NCHW, where numpy's
inner loops are long, with colours in fractions of 255; only finished images are NHWC.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

SIDE = 32  # pixels
BLOCK = 100  # samples drawn at once from one random stream, a multiple of 100; another block size is other data

Field = NDArray[np.floating]  # always float32; numpy's stubs lose the width where a Python float takes part


# Figures: the signed distance from the outline, roughly, negative inside; the figure spans about [-1, 1] in x and y.


def disk(x: Field, y: Field) -> Field:
    """Return the distance from a disk."""
    return _radius(x, y) - 0.9


def ring(x: Field, y: Field) -> Field:
    """Return the distance from a ring."""
    return abs(_radius(x, y) - 0.7) - 0.22


def crescent(x: Field, y: Field) -> Field:
    """Return the distance from a crescent: a disk without a second disk."""
    return np.maximum(_radius(x, y) - 0.95, 0.8 - _radius(x - 0.5, y))


def square(x: Field, y: Field) -> Field:
    """Return the distance from a square."""
    return np.maximum(abs(x), abs(y)) - 0.8


def frame(x: Field, y: Field) -> Field:
    """Return the distance from a square frame."""
    return abs(np.maximum(abs(x), abs(y)) - 0.62) - 0.2


def triangle(x: Field, y: Field) -> Field:
    """Return the distance from an equilateral triangle."""
    return np.maximum(y, 0.866 * abs(x) - 0.5 * y) - 0.52


def star(x: Field, y: Field) -> Field:
    """Return the distance from a star: the points in at least four of the five half planes of a pentagon."""
    normals = ((0.0, 1.0), (0.951, 0.309), (0.588, -0.809), (-0.588, -0.809), (-0.951, 0.309))
    sides = np.stack([a * x + b * y for a, b in normals])
    return np.sort(sides, axis=0)[3] - 0.34


def plus(x: Field, y: Field) -> Field:
    """Return the distance from a plus sign."""
    long, short = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
    return np.maximum(long - 0.95, short - 0.28)


def stripes(x: Field, y: Field) -> Field:
    """Return the distance from the stripes of a patch."""
    return np.maximum(_patch(x, y), _wave(x))


def checkers(x: Field, y: Field) -> Field:
    """Return the distance from the dark squares of a checkered patch."""
    either, both = np.minimum(_wave(x), _wave(y)), np.maximum(_wave(x), _wave(y))
    return np.maximum(_patch(x, y), np.maximum(either, -both))


def _radius(x: Field, y: Field) -> Field:
    """Return the distance from the origin."""
    return np.sqrt(x * x + y * y)


def _patch(x: Field, y: Field) -> Field:
    """Return the distance from a square with cut corners, the outline of the two patterned classes."""
    return np.maximum(np.maximum(abs(x), abs(y)) - 0.9, (abs(x) + abs(y)) * 0.707 - 1.0)


def _wave(x: Field) -> Field:
    """Return the signed distance from evenly spaced bars: a triangle wave of period 0.6 and range [-0.15, 0.15]."""
    phase = x / 0.6
    return abs(phase - np.floor(phase) - 0.5) * 0.6 - 0.15


FIGURES: tuple[Callable[[Field, Field], Field], ...] = (
    disk,
    ring,
    crescent,
    square,
    frame,
    triangle,
    star,
    plus,
    stripes,
    checkers,
)


class Layout(NamedTuple):
    """Places and sizes of what an image shows, in pixels; each figure lies in a square of its own."""

    middles: tuple[float, ...]  # x and y of the middle of each square, in the order in which figures make up a class
    half: float  # half the side of the squares
    figure_radius: tuple[float, float]  # least and greatest
    mark_radius: tuple[float, float]  # of the marks in front; at about 2/5 of a figure's radius they hide few figures


LAYOUTS = {  # by number of classes
    10: Layout(middles=(15.5,), half=16.0, figure_radius=(7.0, 12.0), mark_radius=(2.0, 5.0)),
    100: Layout(middles=(7.5, 23.5), half=8.0, figure_radius=(6.0, 8.5), mark_radius=(1.4, 3.5)),
}


def class_names(num_classes: int) -> tuple[str, ...]:
    """Return the names of the classes in the order of the labels: "disk", ... for 10, "disk-disk", ... for 100.

    Raises:
        ValueError: `num_classes` is neither 10 nor 100.
    """
    _check_num_classes(num_classes)
    figures = [figure.__name__ for figure in FIGURES]
    return tuple("-".join(names) for names in product(figures, repeat=len(LAYOUTS[num_classes].middles)))


def draw_shapes(count: int, seed: int, num_classes: int = 10) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw the first `count` samples of the endless sequence of a seed and a number of classes.

    A shorter draw is a prefix of a longer one, and every `num_classes` consecutive samples from the start hold each
    class once. Training and test sets need different seeds, not different parts of one sequence.

    Args:
        count: number of samples, at least 1.
        seed: seed in 0..2**32-1.
        num_classes: 10, or 100 for pairs of figures with label 10 * first + second.

    Returns:
        Images [count, 32, 32, 3] uint8 (height, width, RGB) and labels [count] int64, indices into `class_names`.

    Raises:
        ValueError: `count`, `seed` or `num_classes` is out of range.
    """
    if count < 1:
        raise ValueError(f"count is {count}; it must be any whole number from 1")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; it must be any whole number from 0 to {2**32 - 1}")
    _check_num_classes(num_classes)
    blocks = [_draw_block(RandomState([seed, block]), num_classes) for block in range(-(-count // BLOCK))]
    images, labels = (np.concatenate(parts)[:count] for parts in zip(*blocks, strict=True))
    return images, labels


def _check_num_classes(num_classes: int) -> None:
    if num_classes not in LAYOUTS:
        raise ValueError(f"num_classes is {num_classes}; it must be 10 or 100")


def _draw_block(random: RandomState, num_classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw images and labels of one block."""
    order = random.random_sample((BLOCK // num_classes, num_classes))
    labels = np.argsort(order, axis=1, kind="stable").reshape(BLOCK)
    ground = _uniform(random, 0.0, 0.5, BLOCK, 3, 1, 1)
    ink = ground + _uniform(random, 0.15, 0.6, BLOCK, 3, 1, 1)

    canvas = ground + _texture(random)
    for _ in range(2):
        _paint_mark(random, canvas, ink, radius=(1.5, 4.0))
    layout = LAYOUTS[num_classes]
    figures = np.unravel_index(labels, (len(FIGURES),) * len(layout.middles))
    for middle, indices in zip(layout.middles, figures, strict=True):
        _paint_figure(random, canvas, ink, indices, layout, middle)
    for _ in range(2):
        _paint_mark(random, canvas, ground, layout.mark_radius)
    canvas += _uniform(random, -0.12, 0.12, BLOCK, 3, SIDE, SIDE)

    is_negative = _uniform(random, 0.0, 1.0, BLOCK, 1, 1, 1) < 0.5  # so that the figure is not always the lighter part
    canvas = np.clip(np.where(is_negative, 1.0 - canvas, canvas), 0.0, 1.0)
    pixels = (canvas * 255.0 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels


def _texture(random: RandomState) -> Field:
    """Return offsets of the ground [N, C, H, W]: mosaics of three cell sizes, and soft stripes across them."""
    x, _, _ = _place(random, radius=(5.0, 15.0))
    texture = _wave(x)[:, None] * _uniform(random, -0.6, 0.6, BLOCK, 3, 1, 1)
    for cell in (2, 4, 8):
        mosaic = _uniform(random, -0.05, 0.05, BLOCK, 3, SIDE // cell, SIDE // cell)
        texture += mosaic.repeat(cell, axis=2).repeat(cell, axis=3)
    return texture


def _paint_figure(
    random: RandomState, canvas: Field, colour: Field, indices: NDArray[np.int64], layout: Layout, middle: float
) -> None:
    """Paint one figure per image around the middle, by its index into FIGURES."""
    x, y, radius = _place(random, layout.figure_radius, middle, layout.half)
    distance = np.empty_like(x)
    for index, figure in enumerate(FIGURES):
        chosen = indices == index
        distance[chosen] = figure(x[chosen], y[chosen])
    _paint(canvas, distance * radius, colour)


def _paint_mark(random: RandomState, canvas: Field, colour: Field, radius: tuple[float, float]) -> None:
    """Paint a bar or a blob per image, in roughly the given colour."""
    x, y, size = _place(random, radius)
    y = y * _uniform(random, 1.0, 4.0, BLOCK, 1, 1)
    is_bar = _uniform(random, 0.0, 1.0, BLOCK, 1, 1) < 0.5
    distance: Field = np.where(is_bar, np.maximum(abs(x), abs(y)), _radius(x, y)) - 1.0
    _paint(canvas, distance * size, colour + _uniform(random, -0.3, 0.3, BLOCK, 3, 1, 1))


def _paint(canvas: Field, distance: Field, colour: Field) -> None:
    """Cover the canvas [N, C, H, W] where the distance [N, H, W], in pixels, is negative; edges blend over a pixel."""
    cover = np.clip(0.5 - distance, 0.0, 1.0)[:, None]
    canvas += cover * (colour - canvas)


def _place(
    random: RandomState, radius: tuple[float, float], middle: float = (SIDE - 1) / 2, half: float = SIDE / 2
) -> tuple[Field, Field, Field]:
    """Return pixel coordinates x, y [N, H, W] relative to a random place, rotation and squeeze, and a random radius.

    Coordinates are in units of the radius [N, 1, 1], which is in pixels. The centre is at least 3/4 of the radius away
    from the border of the square that `middle` and `half` describe, as in Layout.
    """
    size = _uniform(random, *radius, BLOCK, 1, 1)
    centre = middle + _uniform(random, -1.0, 1.0, 2, BLOCK, 1, 1) * (half - 0.75 * size)
    pixel = np.arange(SIDE, dtype=np.float32)
    right, down = (pixel - centre[0]) / size, (pixel[:, None] - centre[1]) / size
    # A direction without sin and cos; drawn from a square, whose corners make diagonals a little more likely.
    direction = _uniform(random, -1.0, 1.0, 2, BLOCK, 1, 1)
    cosine, sine = direction / _radius(*direction)
    squeeze = _uniform(random, 1.0, 1.3, BLOCK, 1, 1)
    return (cosine * right + sine * down) * squeeze, cosine * down - sine * right, size


def _uniform(random: RandomState, low: float, high: float, *shape: int) -> Field:
    """Draw float32 numbers uniformly in [low, high)."""
    return low + (high - low) * random.random_sample(shape).astype(np.float32)
