"""Another person's hand: one drawing of a character from its ideal strokes.

Each drawing has a writer: a slant, a size, proportions, a place on the page, a pen. The
writer bends the whole character a little, moves and turns each stroke on its own, starts
and stops early or late, rounds corners and trembles slowly; a pen of slightly varying
width leaves the ink. Lengths are in units of the character's size, 1 being its longer side.

    path_of       polylines  ->  evenly spaced points, sharp and rounded
    write         points, a random generator  ->  the same points as some hand places them
    ink           points  ->  grey pixels, black on white

Nothing here knows which character it draws, or keeps state.
Source: the factors follow the motor programs of Lake et al., Human-level concept learning, Science 2015.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from metanas_training.datasets.centrelines import Polyline

_STEP = 0.03
_ROUNDING_STEPS = 4
# Pen width in units of the page: Omniglot's pen is 2 to 4 of its 105 pixels.
_PEN_WIDTH = 0.034
_MARGIN = 0.025


@dataclass(frozen=True)
class Path:
    """Evenly spaced points of all strokes, one stroke after the other."""

    sharp: NDArray[np.float64]
    """``(points, 2)``: on the ideal strokes."""
    rounded: NDArray[np.float64]
    """``(points, 2)``: the same with corners rounded as far as a quick hand would."""
    stroke: NDArray[np.intp]
    """``(points,)``: which stroke each point belongs to."""
    travelled: NDArray[np.float64]
    """``(points,)``: length from the start of its stroke."""
    remaining: NDArray[np.float64]
    """``(points,)``: length to the end of its stroke."""
    tangents: NDArray[np.float64]
    """``(strokes, 2, 2)``: unit directions that point out of the start and out of the end."""
    centres: NDArray[np.float64]
    """``(strokes, 2)``: mean point of each stroke."""


def resample(stroke: Sequence[tuple[float, float]], *, step: float) -> NDArray[np.float64]:
    """Place points along a polyline at most ``step`` apart, both ends included: ``(points, 2)``."""
    corners = np.array(stroke, dtype=float).reshape(-1, 2)
    lengths = np.hypot(*np.diff(corners, axis=0).T)
    reached = np.concatenate([[0.0], np.cumsum(lengths)])
    places = np.linspace(0, reached[-1], max(2, int(np.ceil(reached[-1] / step)) + 1))
    return np.stack([np.interp(places, reached, corners[:, axis]) for axis in (0, 1)], axis=1)


def _rounded(points: NDArray[np.float64], *, steps: int) -> NDArray[np.float64]:
    """Average neighbours a few times, ends fixed."""
    for _ in range(steps):
        points = np.concatenate([points[:1], (points[:-2] + 2 * points[1:-1] + points[2:]) / 4, points[-1:]])
    return points


def path_of(strokes: Sequence[Polyline]) -> Path:
    """Prepare ideal strokes for writing.

    Args:
        strokes: polylines inside the square from -0.5 to 0.5, y pointing down.

    Returns:
        Their points about 0.03 apart.
    """
    sharp = [resample(stroke, step=_STEP) for stroke in strokes]
    rounded = [_rounded(points, steps=_ROUNDING_STEPS) for points in sharp]
    travelled, remaining, tangents = [], [], []
    for points in sharp:
        along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
        travelled.append(along)
        remaining.append(along[-1] - along)
        near = min(3, len(points) - 1)
        out = np.stack([points[0] - points[near], points[-1] - points[-1 - near]])
        tangents.append(out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9))
    return Path(
        sharp=np.concatenate(sharp),
        rounded=np.concatenate(rounded),
        stroke=np.repeat(np.arange(len(sharp)), [len(points) for points in sharp]),
        travelled=np.concatenate(travelled),
        remaining=np.concatenate(remaining),
        tangents=np.stack(tangents),
        centres=np.stack([points.mean(axis=0) for points in sharp]),
    )


def write(path: Path, rng: np.random.Generator) -> NDArray[np.float64]:
    """Place the points of a character as some hand would.

    Args:
        path: what to write.
        rng: where this drawing's chances come from; the same state gives the same drawing.

    Returns:
        ``(points, 2)`` on a page from 0 to 1, y pointing down; with the pen's width they stay inside it.
    """
    count = len(path.centres)
    haste = rng.uniform(0, 1)
    care = rng.uniform(0.6, 1.4)  # how far this writer strays: small for the careful
    points = path.sharp + haste * (path.rounded - path.sharp)

    # Each stroke on its own: ends, then size and angle about its middle, then place.
    stretch = care * np.clip(rng.normal(0.004, 0.03, (count, 2)), -0.06, 0.1)
    length = path.travelled + path.remaining
    fade = np.minimum(0.25, 0.5 * length) + 1e-9
    for end, distance in ((0, path.travelled), (1, path.remaining)):
        pull = np.clip(1 - distance / fade, 0, 1) * np.clip(length / 0.3, 0, 1)
        points = points + pull[:, None] * (stretch[:, end, None] * path.tangents[:, end])[path.stroke]
    angle = care * rng.normal(0, 0.05, count)
    scale = 1 + care * rng.normal(0, 0.05, count)
    shift = care * rng.normal(0, 0.014, (count, 2))
    arm = points - path.centres[path.stroke]
    turned = np.stack([arm[:, 0] - angle[path.stroke] * arm[:, 1], arm[:, 1] + angle[path.stroke] * arm[:, 0]], axis=1)
    points = path.centres[path.stroke] + scale[path.stroke, None] * turned + shift[path.stroke]

    # A slow tremor along each stroke.
    for waves_per_length, size in ((0.7, 0.014), (1.6, 0.009), (4.5, 0.0035)):
        phase = rng.uniform(0, 2 * np.pi, (count, 2))
        pace = waves_per_length * rng.uniform(0.7, 1.3, (count, 2))
        swing = care * size * rng.normal(0, 1, (count, 2))
        points = points + swing[path.stroke] * np.sin(
            2 * np.pi * pace[path.stroke] * path.travelled[:, None] + phase[path.stroke]
        )

    # The character as a whole: bent, slanted, proportioned, turned.
    x, y = points[:, 0], points[:, 1]
    terms = np.stack([x * x, x * y, y * y, x * x * y, x * y * y], axis=1)
    points = points + terms @ (care * rng.normal(0, 0.09, (5, 2)))
    slant, turn = rng.normal(-0.06, 0.11), rng.normal(0, 0.06)
    wide = np.exp(rng.normal(0, 0.09))
    shear = np.array([[wide, slant], [0.0, 1 / wide]])
    points = points @ (np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ shear).T
    return _placed(points, rng)


def _placed(points: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Size the character and put it somewhere on the page."""
    low, high = points.min(axis=0), points.max(axis=0)
    room = 1 - 2 * (_MARGIN + _PEN_WIDTH)
    size = min(float(np.clip(rng.normal(0.64, 0.09), 0.42, 0.86)), room / float((high - low).max()))
    half = size * (high - low) / 2
    middle = np.clip(rng.normal(0.5, 0.05, 2), 0.5 - room / 2 + half, 0.5 + room / 2 - half)
    placed: NDArray[np.float64] = middle + size * (points - (low + high) / 2)
    return placed


def ink(
    points: NDArray[np.float64], stroke: NDArray[np.intp], *, rng: np.random.Generator, size: int
) -> NDArray[np.uint8]:
    """Draw the points with a pen.

    Args:
        points: ``(points, 2)`` on a page from 0 to 1.
        stroke: ``(points,)``: which stroke each point belongs to.
        rng: where the pen's width and its changes come from.
        size: side of the picture in pixels.

    Returns:
        ``(size, size)``: paper 255, ink 0, grey at the edges.
    """
    fineness = max(2, -(-210 // size))
    side = size * fineness
    width = _PEN_WIDTH * float(np.clip(rng.normal(1, 0.1), 0.8, 1.25))
    waver = 0.13 * np.sin(np.arange(len(points)) * rng.uniform(0.1, 0.3) + rng.uniform(0, 2 * np.pi))
    # Rounding to an eighth of a pixel hides the last bits, in which one machine's sine differs from another's.
    spots = (np.round(points * side * 8) / 8).tolist()
    widths = np.maximum(1, np.round(width * side * (1 + waver))).astype(int).tolist()
    page = Image.new("L", (side, side), 255)
    draw = ImageDraw.Draw(page)
    strokes = stroke.tolist()
    for i, ((x, y), pen) in enumerate(zip(spots, widths, strict=True)):
        half = (pen - 1) / 2  # Pillow counts both edge pixels of an ellipse
        draw.ellipse((x - half, y - half, x + half, y + half), fill=0)
        if i and strokes[i] == strokes[i - 1]:
            draw.line((*spots[i - 1], x, y), fill=0, width=pen)
    return np.asarray(page.reduce(fineness), dtype=np.uint8)
