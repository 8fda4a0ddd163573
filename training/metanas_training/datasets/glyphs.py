"""Glyphs: few-shot classes from stroke fonts, drawn as by many hands, without a download.

Classes are the distinct characters of some twenty alphabets; each split has alphabets of
its own, and a shape that several alphabets share is a class once. Drawings are made, not
stored: drawing number n of a class is the same picture in every process, and another
number is another person's attempt.

    glyph_classes   split  ->  its classes
    draw_glyph      class, drawing number  ->  a picture

It does not know episodes, tensors or files. Alphabets come from alphabets.py, single-pen
strokes from centrelines.py, what counts as the same shape from shapes.py, the hand from hand.py.
Source: Lake et al., Human-level concept learning, Science 2015, for the shape of the data set (Omniglot).
"""

import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from metanas_training.datasets import hand
from metanas_training.datasets.alphabets import PAGES, page_strokes
from metanas_training.datasets.centrelines import Polyline, centre_lines
from metanas_training.datasets.shapes import SAME_SHAPE, far_apart

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class GlyphClass:
    """One character to learn to recognise."""

    name: str
    """Unique, ``alphabet/character``, for example ``greek/theta``."""
    alphabet: str
    """The alphabet it comes from; all of an alphabet is in one split."""
    strokes: tuple[Polyline, ...] = field(repr=False)
    """Ideal strokes inside the square from -0.5 to 0.5, the longer side being 1, y pointing down."""


def glyph_classes(split: str) -> tuple[GlyphClass, ...]:
    """The classes of a split, always in the same order.

    Args:
        split: ``train``, ``val`` or ``test``.

    Raises:
        ValueError: another split was asked for.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; glyphs has {', '.join(SPLITS)}")
    return _all_classes()[split]


def draw_glyph(glyph: GlyphClass, drawing: int, *, size: int = 105) -> NDArray[np.uint8]:
    """Draw a character as one more person would.

    Args:
        glyph: what to draw.
        drawing: number of the drawing, from 0. The same class and number give the same picture.
        size: side of the picture in pixels.

    Returns:
        ``(size, size)``: paper 255, ink 0, antialiased. The ink does not touch the border.
    """
    rng = np.random.default_rng([zlib.crc32(glyph.name.encode()), drawing])
    path = _path(glyph)
    return hand.ink(hand.write(path, rng), path.stroke, rng=rng, size=size)


@functools.lru_cache(maxsize=2048)
def _path(glyph: GlyphClass) -> hand.Path:
    return hand.path_of(glyph.strokes)


@functools.cache
def _all_classes() -> dict[str, tuple[GlyphClass, ...]]:
    """Build the classes of all splits at once: which shapes are new depends on those before."""
    candidates, splits = [], []
    for page, name, strokes in page_strokes(PAGES):
        lines = strokes if page.pen_units is None else centre_lines(strokes, pen_units=page.pen_units)
        candidates.append(GlyphClass(f"{page.alphabet}/{name}", page.alphabet, _normalised(lines)))
        splits.append(page.split)
    apart = far_apart([glyph.strokes for glyph in candidates])
    kept: list[int] = []
    for i in range(len(candidates)):
        if not kept or apart[i, kept].min() >= SAME_SHAPE:
            kept.append(i)
    return {split: tuple(candidates[i] for i in kept if splits[i] == split) for split in SPLITS}


def _normalised(strokes: Sequence[Polyline]) -> tuple[Polyline, ...]:
    """Move to the origin and scale the longer side to 1."""
    points = np.array([point for stroke in strokes for point in stroke], dtype=float)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = 1 / float((high - low).max())
    middle = (low + high) / 2
    return tuple(
        tuple((x, y) for x, y in ((np.array(stroke) - middle) * scale).round(4).tolist()) for stroke in strokes
    )
