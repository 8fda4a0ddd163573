"""The figures of an evaluation: each as PNG, as SVG and as the CSV that it was drawn from.

    save_figure      a drawing  ->  NAME.png, NAME.svg
    model_sizes      histogram of task networks' sizes, one colour a run           (Figure 5)
    accuracy_curve   accuracy against adaptation steps, with intervals
    weight_maps      weights of operations and inputs while the temperature falls  (Figure 2)

Sizes are those of a paper: 3.35 inches for a column, 7 for a page. Colours are Okabe and Ito's,
which the colour-blind can tell apart. Cells are drawn by ``cell_drawing``. Needs matplotlib, which
is imported when something is drawn; nothing here touches its global state.

Source: Elsken et al., CVPR 2020, Figures 2 and 5.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metanas.space import CELL_INPUTS, SearchSpace
from metanas_training.trajectory import CurvePoint, Frame

COLUMN, PAGE = 3.35, 7.0
"""Widths in inches."""
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
WEIGHT_COLOURS = ("#FFFFFF", "#6BAED6", "#08306B")
DOTS_PER_INCH = 300
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "metanas",
}

TIMES, MINUS = "\u00d7", "\u2212"
SHORT_NAMES = {"skip_connect": "skip", "conv_1x5_5x1": f"conv 1{TIMES}5, 5{TIMES}1"}
"""Where ``short_name`` would not do."""


def save_figure(folder: Path, name: str, draw: Callable[[], Any]) -> None:
    """Draw, and write ``name.png`` and ``name.svg`` into ``folder``: the same bytes for the same data."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = draw()
        figure.savefig(folder / f"{name}.png", dpi=DOTS_PER_INCH, metadata={"Software": None})
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def new_figure(width: float, height: float, *, layout: Any = "constrained") -> Any:
    """A figure of so many inches; without ``layout`` axes stay where they are put."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def model_sizes(sizes: Mapping[str, Sequence[int]]) -> Any:
    """Histogram of the parameters of task networks.

    Args:
        sizes: for each run its tasks' numbers of parameters.
    """
    figure = new_figure(COLUMN, 2.0)
    axis = figure.subplots()
    edges = size_bins([count for counts in sizes.values() for count in counts]) / 1000
    axis.hist(
        [np.asarray(counts) / 1000 for counts in sizes.values()],
        bins=edges,
        color=[COLOURS[index % len(COLOURS)] for index in range(len(sizes))],
        label=list(sizes),
        rwidth=0.9,
    )
    axis.set(xlabel="parameters of the task network (thousands)", ylabel="number of tasks", xlim=(edges[0], edges[-1]))
    axis.xaxis.get_major_locator().set_params(nbins=7, steps=[1, 2, 5, 10])
    axis.yaxis.get_major_locator().set_params(nbins=5, integer=True)
    if len(sizes) > 1:
        # Above: inside, it would hide bars.
        figure.legend(loc="outside upper right", ncols=min(len(sizes), 4), handlelength=1.0, columnspacing=1.2)
    return figure


def size_bins(counts: Sequence[int]) -> Any:
    """Edges of about 20 bins of a round width, 500 at least, with one empty bin at each side."""
    low, high = min(counts), max(counts)
    width = max(500.0, _round_up((high - low) / 20))
    first, last = math.floor(low / width) - 1, math.floor(high / width) + 2
    return width * np.arange(max(first, 0), last + 1)


def _round_up(value: float) -> float:
    """The next number of the form 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))


def accuracy_curve(curves: Mapping[str, Sequence[CurvePoint]]) -> Any:
    """Inductive accuracy against adaptation steps; the shade is the 95 % interval over tasks.

    Args:
        curves: for each run ``trajectory.mean_curve``.
    """
    figure = new_figure(COLUMN, 2.2)
    axis = figure.subplots()
    pruned_at = set()
    for index, (name, points) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        phases = [[point for point in points if point.pruned is pruned] for pruned in (False, True)]
        if all(phases):
            pruned_at.add(phases[1][0].step)
        for phase in phases:
            if not phase:
                continue
            steps = [point.step for point in phase]
            means = np.array([100 * point.accuracy.mean for point in phase])
            widths = np.array([100 * point.accuracy.half_width for point in phase])
            # One label a run, for the part that every run has.
            axis.plot(steps, means, color=colour, marker=".", markersize=3.5, label=name if phase[0].pruned else None)
            axis.fill_between(steps, means - widths, means + widths, color=colour, alpha=0.18, linewidth=0)
    for step in pruned_at:
        axis.axvline(step, color="#666666", linewidth=0.8, linestyle=(0, (3, 2)), zorder=0)
        axis.annotate(
            "pruned", (step, 1.0), xycoords=("data", "axes fraction"), fontsize=6.5, color="#444444", ha="center",
            va="bottom",
        )  # fmt: skip
    axis.set(xlabel="gradient steps of adaptation", ylabel="inductive accuracy (%)")
    axis.margins(x=0.02)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylim(top=min(axis.get_ylim()[1], 100.5))  # an interval may reach beyond what can be
    if len(curves) > 1:
        # Above: inside, it would hide curves or their intervals.
        figure.legend(loc="outside upper right", ncols=min(len(curves), 4), handlelength=1.4, columnspacing=1.2)
    return figure


def weight_maps(frames: Sequence[Frame], space: SearchSpace, cell_type: str) -> Any:
    """Heat maps of one cell type: a row for each node, a column for each of its inputs and one for their weights.

    Args:
        frames: of one task, from the first architecture step to the last.
    """
    inputs = CELL_INPUTS + space.nodes - 1
    operations = np.array([frame.operations[cell_type] for frame in frames])
    sources = np.array([frame.inputs[cell_type] for frame in frames])
    ratios = [0.35 + 0.115 * max(len(space.operations), 3)] * space.nodes
    figure = new_figure(PAGE, 0.55 + sum(ratios))
    grid = figure.add_gridspec(space.nodes, inputs + 1, width_ratios=[1] * inputs + [1])
    image = None
    for node in range(space.nodes):
        edges = range(len(space.edges))[space.node_edges(node)]
        for edge in edges:
            source = space.edges[edge][1]
            axis = figure.add_subplot(grid[node, source])
            image = _heat_map(axis, operations[:, edge].T, frames)
            axis.set_title(f"node {CELL_INPUTS + node} ← {input_name(source)}", pad=3)
            _label(axis, [short_name(name) for name in space.operations] if source == 0 else None)
            _bottom(axis, node == space.nodes - 1)
        axis = figure.add_subplot(grid[node, inputs])
        _heat_map(axis, sources[:, edges.start : edges.stop].T, frames)
        axis.set_title(f"node {CELL_INPUTS + node}: inputs", pad=3)
        axis.yaxis.tick_right()
        _label(axis, [input_name(space.edges[edge][1]) for edge in edges])
        _bottom(axis, node == space.nodes - 1)
    bar = figure.colorbar(image, ax=figure.axes, location="right", fraction=0.015, pad=0.01, aspect=35)
    bar.set_label("weight")
    bar.outline.set_linewidth(0.6)
    figure.supxlabel("architecture step", fontsize=7.5)
    return figure


def input_name(source: int) -> str:
    """What an input of a cell is called in figures: one of the two cells before, or a node."""
    return f"cell k{MINUS}{CELL_INPUTS - source}" if source < CELL_INPUTS else f"node {source}"


def short_name(operation: str) -> str:
    """What an operation is called in figures."""
    return SHORT_NAMES.get(operation) or re.sub(r"(\d)x(\d)", rf"\1{TIMES}\2", operation.replace("_", " "))


def _heat_map(axis: Any, weights: Any, frames: Sequence[Frame]) -> Any:
    """``(rows, frames)``, each frame a column at its step."""
    from matplotlib.colors import LinearSegmentedColormap

    first, last = frames[0].step, frames[-1].step
    for spine in axis.spines.values():
        spine.set_visible(True)
    for row in range(1, len(weights)):
        axis.axhline(row - 0.5, color="#DDDDDD", linewidth=0.4)
    return axis.imshow(
        weights,
        aspect="auto",
        interpolation="nearest",
        cmap=LinearSegmentedColormap.from_list("weights", WEIGHT_COLOURS),
        vmin=0,
        vmax=1,
        extent=(first - 0.5, last + 0.5, len(weights) - 0.5, -0.5),
    )


def _label(axis: Any, names: Sequence[str] | None) -> None:
    if names is None:
        axis.set_yticks([])
        return
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(axis="y", length=0)


def _bottom(axis: Any, is_last: bool) -> None:
    axis.tick_params(axis="x", labelbottom=is_last)
    left, right = axis.get_xlim()
    axis.set_xticks([left + 0.5, round((left + right) / 2), right - 0.5])
