"""The embedded data set: distinct classes, disjoint splits, repeatable and varied drawings."""

import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from metanas_training.datasets.centrelines import centre_lines, thin
from metanas_training.datasets.glyphs import SPLITS, GlyphClass, draw_glyph, glyph_classes
from metanas_training.datasets.shapes import SAME_SHAPE, far_apart

DIGEST_SCRIPT = """
import hashlib
from metanas_training.datasets.glyphs import draw_glyph, glyph_classes
digest = hashlib.sha256()
for glyph in glyph_classes("val")[::5]:
    digest.update(glyph.name.encode() + draw_glyph(glyph, 7).tobytes())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def every_class() -> tuple[GlyphClass, ...]:
    return tuple(itertools.chain.from_iterable(glyph_classes(split) for split in SPLITS))


@pytest.fixture(scope="module")
def first_drawings(every_class: tuple[GlyphClass, ...]) -> NDArray[np.uint8]:
    """``(classes, 3, 105, 105)``."""
    return np.stack([[draw_glyph(glyph, drawing) for drawing in range(3)] for glyph in every_class])


def test_there_are_at_least_500_classes_and_enough_in_each_split() -> None:
    train, val, test = (len(glyph_classes(split)) for split in SPLITS)
    assert train + val + test >= 500
    assert train >= 300
    assert val >= 60
    assert test >= 100


def test_names_are_unique_and_begin_with_the_alphabet(every_class: tuple[GlyphClass, ...]) -> None:
    assert len({glyph.name for glyph in every_class}) == len(every_class)
    assert all(glyph.name.startswith(f"{glyph.alphabet}/") for glyph in every_class)
    assert "greek/theta" in {glyph.name for glyph in every_class}


def test_no_alphabet_is_in_two_splits() -> None:
    alphabets = [{glyph.alphabet for glyph in glyph_classes(split)} for split in SPLITS]
    assert all(first.isdisjoint(second) for first, second in itertools.combinations(alphabets, 2))


def test_no_two_classes_of_any_splits_have_the_same_shape(every_class: tuple[GlyphClass, ...]) -> None:
    apart = far_apart([glyph.strokes for glyph in every_class])
    np.fill_diagonal(apart, np.inf)
    i, j = np.unravel_index(int(apart.argmin()), apart.shape)
    assert apart[i, j] >= SAME_SHAPE, f"{every_class[i].name} and {every_class[j].name} look the same"


def test_a_letter_that_greek_borrows_from_latin_is_one_class(every_class: tuple[GlyphClass, ...]) -> None:
    names = {glyph.name for glyph in every_class}
    assert "roman/A" in names
    assert "greek/Alpha" not in names


def test_shapes_differ_by_an_accent_but_not_by_slimness() -> None:
    ring = tuple((0.5 * np.cos(a), 0.5 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 40))
    slim = tuple((0.75 * x, y) for x, y in ring)
    bar = ((-0.3, 0.0), (0.3, 0.0))
    apart = far_apart([[ring], [slim], [ring, bar]])
    assert apart[0, 1] < SAME_SHAPE / 2
    assert apart[0, 2] > SAME_SHAPE
    assert apart[1, 2] > SAME_SHAPE
    np.testing.assert_array_equal(apart, apart.T)


def test_the_same_drawing_has_the_same_bytes_in_another_process() -> None:
    digest = hashlib.sha256()
    for glyph in glyph_classes("val")[::5]:
        digest.update(glyph.name.encode() + draw_glyph(glyph, 7).tobytes())
    other = subprocess.run([sys.executable, "-c", DIGEST_SCRIPT], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest.hexdigest()


def test_two_drawings_of_a_class_differ(first_drawings: NDArray[np.uint8]) -> None:
    for one, two in itertools.combinations(range(3), 2):
        assert (first_drawings[:, one] != first_drawings[:, two]).any(axis=(1, 2)).all()


def test_drawings_are_black_on_white_and_never_blank(first_drawings: NDArray[np.uint8]) -> None:
    assert first_drawings.dtype == np.uint8
    inked = (first_drawings < 128).mean(axis=(2, 3))
    assert inked.min() > 0.002
    assert inked.max() < 0.35
    assert first_drawings.min() == 0
    assert first_drawings.max() == 255


def test_ink_never_reaches_the_border(first_drawings: NDArray[np.uint8]) -> None:
    frame = np.ones((105, 105), dtype=bool)
    frame[1:-1, 1:-1] = False
    assert (first_drawings[:, :, frame] == 255).all()


@pytest.mark.parametrize("size", [28, 64])
def test_a_drawing_has_the_size_asked_for(size: int) -> None:
    picture = draw_glyph(glyph_classes("test")[0], 0, size=size)
    assert picture.shape == (size, size)
    assert picture.min() < 128


def test_the_nearest_other_drawing_is_of_the_same_class_far_more_often_than_by_chance() -> None:
    """Twenty-way, one shot, nearest neighbour on blurred pixels: chance is 0.05."""
    rng = np.random.default_rng(0)
    classes = glyph_classes("test")
    right = []
    for episode in range(12):
        chosen = rng.choice(len(classes), 20, replace=False)
        support, query = (
            np.stack([_blurred(draw_glyph(classes[i], 2 * episode + part)) for i in chosen]) for part in (0, 1)
        )
        distances = ((query[:, None] - support[None]) ** 2).sum(axis=2)
        right.append(distances.argmin(axis=1) == np.arange(20))
    assert 0.25 < np.mean(right) < 0.95


def test_an_unknown_split_is_refused_with_the_ones_there_are() -> None:
    with pytest.raises(ValueError, match="unknown split 'valid'; glyphs has train, val, test"):
        glyph_classes("valid")


def test_two_parallel_lines_become_one_in_their_middle() -> None:
    (line,) = centre_lines([((0.0, 0.0), (0.0, 20.0)), ((1.0, 0.0), (1.0, 20.0))], pen_units=2.2)
    xs, ys = np.array(line).T
    assert np.abs(xs - 0.5).max() < 0.5
    assert np.ptp(ys) > 17


def test_strokes_that_cross_run_straight_on() -> None:
    lines = centre_lines([((0.0, 0.0), (20.0, 0.0)), ((10.0, -10.0), (10.0, 10.0))], pen_units=2.2)
    assert sorted(np.ptp(np.array(line), axis=0).round().argmax() for line in lines) == [0, 1]


def test_thinning_leaves_no_block_of_four_pixels() -> None:
    ink = np.zeros((30, 40), dtype=bool)
    ink[8:20, 5:35] = True
    lines = thin(ink)
    assert lines.any()
    assert not (lines[1:, 1:] & lines[1:, :-1] & lines[:-1, 1:] & lines[:-1, :-1]).any()


def _blurred(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Cut to the ink, as unit vectors of 15 by 15 blocks' darkness."""
    ys, xs = np.nonzero(picture < 128)
    dark = 1 - picture / 255
    row, column = np.round([52 - (ys.min() + ys.max()) / 2, 52 - (xs.min() + xs.max()) / 2]).astype(int)
    blocks = np.roll(dark, (row, column), axis=(0, 1)).reshape(15, 7, 15, 7).mean(axis=(1, 3)).ravel()
    unit: NDArray[np.float64] = blocks / np.linalg.norm(blocks)
    return unit
