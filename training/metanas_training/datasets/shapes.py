"""Shapes: would a person call these two characters the same?

The ink of a character is a cloud of points, each with the direction of its stroke. Two
characters are as far apart as the worst-fitting part of either one's ink is from the
other's, in place and in direction: an accent, a tail or a gap counts even where all the
rest agrees, and strokes that cross do not pass for strokes that run along.

    far_apart     strokes of many characters  ->  distances between all pairs
    SAME_SHAPE    the distance below which they are one class

It does not know alphabets or classes, and it is too blunt to rank shapes that differ much.
Source: oriented chamfer matching, Shotton et al., Multiscale categorical object recognition, PAMI 2008.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from metanas_training.datasets.centrelines import Polyline
from metanas_training.datasets.hand import resample

# Found by looking at the pairs around it.
SAME_SHAPE = 0.16

_POINTS = 96
_WORST_POINTS = 8
# Two strokes at right angles count as this far apart, in units of a character's longer side.
_RIGHT_ANGLE = 0.2
# Pairs of which a tenth of the ink is further apart than this are not looked at again, and count as this far apart
# at least.
_CLEARLY_DIFFERENT = 0.12
_NOT_COMPARED = 0.25
_PAIRS_AT_ONCE = 256


def far_apart(shapes: Sequence[Sequence[Polyline]]) -> NDArray[np.float32]:
    """Distances between all pairs of characters, blind to moderate slimness.

    They are compared as drawn and stretched to a square (unless one is a line), and the smaller distance
    counts: a hand makes an O narrow as easily as wide.

    Args:
        shapes: strokes of each character, inside the square from -0.5 to 0.5.

    Returns:
        ``(characters, characters)``: symmetric, 0 on the diagonal, in units of the longer side.
    """
    places, directions = (np.stack(part) for part in zip(*map(_sampled, shapes), strict=True))
    spans = np.ptp(places, axis=1)
    squared = places / np.maximum(spans, 0.5)[:, None]
    slimness = np.log(np.maximum(spans[:, 0], 0.1) / np.maximum(spans[:, 1], 0.1))
    alike = np.abs(slimness[:, None] - slimness[None]) < np.log(1.6)
    drawn = _both_ways(places, directions, compared=np.ones_like(alike))
    return np.minimum(drawn, _both_ways(squared, directions, compared=alike))


def _sampled(strokes: Sequence[Polyline]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Points evenly on the ink and their directions, unit vectors of twice the angle: both ``(points, 2)``."""
    places, directions = [], []
    for stroke in strokes:
        points = resample(stroke, step=0.01)
        ahead = np.minimum(np.arange(len(points)) + 4, len(points) - 1)
        behind = np.maximum(np.arange(len(points)) - 4, 0)
        x, y = (points[ahead] - points[behind]).T
        length = np.maximum(x * x + y * y, 1e-12)
        places.append(points)
        directions.append(np.stack([x * x - y * y, 2 * x * y], axis=1) / length[:, None])
    everywhere, headings = np.concatenate(places), np.concatenate(directions)
    chosen = np.linspace(0, len(everywhere) - 1, _POINTS).round().astype(int)
    return everywhere[chosen].astype(np.float32), headings[chosen].astype(np.float32)


def _both_ways(
    places: NDArray[np.float32], directions: NDArray[np.float32], *, compared: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """``(characters, characters)``: how badly the worst of the ink fits, the worse way round; 1 where not compared."""
    rough = _by_place(places)
    rough = np.maximum(rough, rough.T)
    result = np.where(compared, np.maximum(rough, _NOT_COMPARED), np.float32(1))
    first, second = np.nonzero(np.triu(compared & (rough < _CLEARLY_DIFFERENT), k=1))
    features = np.concatenate([places, directions * np.float32(_RIGHT_ANGLE / 2)], axis=2)
    norms = (features**2).sum(axis=2)
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        i, j = first[start : start + _PAIRS_AT_ONCE], second[start : start + _PAIRS_AT_ONCE]
        squares = norms[i][:, :, None] + norms[j][:, None, :] - 2 * features[i] @ features[j].transpose(0, 2, 1)
        there, back = (_worst(squares.min(axis=axis)) for axis in (2, 1))
        result[i, j] = result[j, i] = np.maximum(there, back)
    np.fill_diagonal(result, 0)
    return result


def _worst(squares: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(pairs,)`` from ``(pairs, points)``: mean distance over the worst-fitting points."""
    worst = np.partition(squares, -_WORST_POINTS, axis=1)[:, -_WORST_POINTS:]
    mean: NDArray[np.float32] = np.sqrt(np.maximum(worst, 0)).mean(axis=1)
    return mean


def _by_place(places: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(from, to)``: distance in place of the point at the worst tenth, read off a coarse grid."""
    places = places[:, ::2]  # this only sorts out what need not be looked at again
    cells, reach = 32, 0.8
    axis = ((np.arange(cells) + 0.5) / cells * 2 - 1) * reach
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2).astype(np.float32)
    column, row = np.clip((places / reach + 1) / 2 * cells, 0, cells - 1).astype(int).transpose(2, 0, 1)
    flat = row * cells + column
    result = np.empty((len(places), len(places)), dtype=np.float32)
    for to, cloud in enumerate(places):
        squares = (grid**2).sum(1)[:, None] + (cloud**2).sum(1)[None] - 2 * grid @ cloud.T
        nearest = np.sqrt(np.maximum(squares.min(axis=1), 0))
        result[:, to] = np.partition(nearest[flat], -_POINTS // 20, axis=1)[:, -_POINTS // 20]
    return result
