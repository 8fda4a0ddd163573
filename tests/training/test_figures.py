"""Figures are there as PNG and as SVG, say what they should, and do not depend on when they are drawn."""

import io
import re
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metanas.genotypes import GENOTYPES
from metanas.space import CELL_TYPES, DEFAULT_OPERATIONS, EdgeOperation, SearchSpace
from metanas_training.cell_drawing import draw_cell, node_depths
from metanas_training.figures import (
    COLUMN,
    TIMES,
    accuracy_curve,
    model_sizes,
    save_figure,
    short_name,
    size_bins,
    weight_maps,
)
from metanas_training.scores import Estimate
from metanas_training.trajectory import CurvePoint, Frame

SPACE = SearchSpace()


def _frame(step: int, winner: int) -> Frame:
    """One operation has all the weight on every edge, all inputs have the same."""
    row = [float(index == winner) for index in range(len(SPACE.operations))]
    return Frame(
        step=step,
        temperature=1.0,
        operations={cell_type: [row] * len(SPACE.edges) for cell_type in CELL_TYPES},
        inputs={cell_type: [0.5] * len(SPACE.edges) for cell_type in CELL_TYPES},
    )


CURVE = [
    CurvePoint(step, pruned, Estimate(0.5 + step / 300, 0.02))
    for pruned, step in [(False, 0), (False, 5), (False, 10), (True, 10), (True, 15)]
]
DRAWINGS = {
    "model_sizes": partial(model_sizes, {"seed 0": [80_000, 81_000, 81_000], "seed 1": [82_000] * 3}),
    "accuracy_curve": partial(accuracy_curve, {"seed 0": CURVE}),
    "weight_maps": partial(weight_maps, [_frame(0, 1), _frame(1, 2)], SPACE, "reduction"),
    "cell": partial(draw_cell, GENOTYPES["autometa"].normal, "Normal cell, in 83 % of the tasks"),
}


def _texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text()]


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_written_as_png_and_svg_that_are_not_empty_and_always_the_same(name: str, tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        save_figure(tmp_path / folder, name, DRAWINGS[name])
    with Image.open(tmp_path / "one" / f"{name}.png") as picture:
        pixels = np.asarray(picture.convert("L"))
        assert picture.width > 300 * 2.5  # inches
    assert 0.02 < (pixels < 200).mean() < 0.9
    svg = (tmp_path / "one" / f"{name}.svg").read_text()
    assert svg.count("<path") > 20
    for suffix in (".png", ".svg"):
        one, other = ((tmp_path / folder / f"{name}{suffix}").read_bytes() for folder in ("one", "other"))
        assert one == other


def test_a_histogram_counts_every_task_once_in_its_runs_colour() -> None:
    axis = model_sizes({"seed 0": [80_000, 81_000, 81_000], "seed 1": [82_000] * 3}).axes[0]
    heights = [[patch.get_height() for patch in container] for container in axis.containers]
    assert [sum(one) for one in heights] == [3, 3]
    assert max(heights[0]) == 2
    assert len({container[0].get_facecolor() for container in axis.containers}) == 2
    assert "(thousands)" in axis.get_xlabel()


@pytest.mark.parametrize("counts", [[84_160] * 6, [80_000, 80_001], [10, 500_000], [1]])
def test_every_size_lies_inside_of_the_bins_and_they_are_at_most_25(counts: list[int]) -> None:
    edges = size_bins(counts)
    assert edges[0] <= min(counts)
    assert max(counts) < edges[-1]
    assert 1 < len(edges) <= 26


def test_the_curve_is_in_percent_has_a_shade_and_marks_the_pruning_once() -> None:
    figure = accuracy_curve({"seed 0": CURVE, "seed 1": CURVE})
    axis = figure.axes[0]
    drawn = [line for line in axis.lines if len(line.get_xdata()) > 2]
    assert list(drawn[0].get_xdata()) == [0, 5, 10]
    assert drawn[0].get_ydata() == pytest.approx([50.0, 51.6667, 53.3333], abs=1e-3)
    assert _texts(figure).count("pruned") == 1
    assert len(axis.collections) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["seed 0", "seed 1"]


def test_no_legend_hides_what_is_drawn_and_steps_are_whole_numbers() -> None:
    for figure in (
        accuracy_curve({"seed 0": CURVE, "seed 1": CURVE}),
        model_sizes({"seed 0": [800], "seed 1": [900]}),
    ):
        figure.savefig(io.BytesIO())
        legend, axis = figure.legends[0].get_window_extent(), figure.axes[0]
        assert not legend.overlaps(axis.get_window_extent())
        assert not [text for text in axis.texts if legend.overlaps(text.get_window_extent())]
    few = [replace(point, step=number // 2) for number, point in enumerate(CURVE)]
    steps = accuracy_curve({"seed 0": few}).axes[0].get_xticks()
    assert all(step == round(step) for step in steps)


def test_heat_maps_have_a_row_for_each_operation_and_a_column_for_each_step() -> None:
    figure = weight_maps([_frame(0, 1), _frame(1, 2), _frame(2, 2)], SPACE, "normal")
    maps = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert [one.shape for one in maps].count((7, 3)) == len(SPACE.edges)
    inputs = [one for one in maps if one.shape != (7, 3)]
    assert [one.shape for one in inputs] == [(2, 3), (3, 3), (4, 3)]
    assert np.array_equal(maps[0][1], [1, 0, 0])
    assert np.array_equal(maps[0][2], [0, 1, 1])
    assert "node 4 ← node 3" in _texts(figure)


def test_a_drawing_of_a_cell_has_a_box_for_every_operation_and_node() -> None:
    cell = GENOTYPES["metanas_omniglot"].reduction
    texts = [text.replace("\n", " ") for text in _texts(draw_cell(cell, "Reduction cell"))]
    convolutions = (f"sep conv 3{TIMES}3", f"conv 3{TIMES}3", f"dil conv 3{TIMES}3", f"conv 1{TIMES}5, 5{TIMES}1")
    for name in ("skip", *convolutions, "2", "3", "4", "concatenation"):
        assert name in texts
    assert texts.count(f"dil conv 3{TIMES}3") == 2


def test_a_drawing_says_the_weights_that_are_not_about_one() -> None:
    cell = ((EdgeOperation(0, "conv_1x5_5x1", 0.43), EdgeOperation(1, "conv_3x3", 0.97)),)
    texts = _texts(draw_cell(cell, ""))
    assert f"conv · 0.43\n1{TIMES}5, 5{TIMES}1" in texts
    assert f"conv\n3{TIMES}3" in texts


@pytest.mark.parametrize(("name", "cell_type"), product(GENOTYPES, CELL_TYPES))
def test_no_two_boxes_of_a_cell_overlap(name: str, cell_type: str) -> None:
    axis = draw_cell(GENOTYPES[name].cell(cell_type), "").axes[0]
    boxes = [patch.get_bbox() for patch in axis.patches if hasattr(patch, "get_boxstyle")]
    assert len(boxes) >= 10
    for index, one in enumerate(boxes):
        for other in boxes[:index]:
            apart = one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0
            assert apart


def test_a_cell_whose_nodes_all_read_its_inputs_fits_a_column_and_a_chain_is_as_deep_as_it_is_long() -> None:
    edges = tuple(EdgeOperation(source, "conv_3x3", 1.0) for source in (0, 1))
    assert draw_cell((edges, edges, edges), "").get_figwidth() < COLUMN
    chain = tuple((EdgeOperation(source, "conv_3x3", 1.0),) for source in (1, 2, 3))
    assert node_depths(chain) == [1, 2, 3]


def test_every_operation_has_a_short_name_without_underscores() -> None:
    names = [short_name(name) for name in (*DEFAULT_OPERATIONS, "sep_conv_5x5")]
    assert names[-1] == f"sep conv 5{TIMES}5"
    assert not [name for name in names if re.search(r"_|\dx\d", name)]
    assert len(set(names)) == len(names)
