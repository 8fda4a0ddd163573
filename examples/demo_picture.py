"""The picture of the demo: support sets, some answers, and the cells that were found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

from metanas_client import CellGenotype

if TYPE_CHECKING:
    from demo_client import Outcome

ANSWERS = 10
RIGHT, WRONG = "#1a7f37", "#cf222e"
COLOURS = {
    "max_pool_3x3": "#8c6d31",
    "avg_pool_3x3": "#bd9e39",
    "skip_connect": "#7f7f7f",
    "conv_1x5_5x1": "#9467bd",
    "conv_3x3": "#1f77b4",
    "sep_conv_3x3": "#2ca02c",
    "dil_conv_3x3": "#d62728",
}


def draw(outcomes: list[Outcome], path: Path) -> None:
    """Write the picture as PNG."""
    figure = plt.figure(figsize=(18, 5.4 * len(outcomes)), constrained_layout=True)
    for row, outcome in zip(figure.subfigures(len(outcomes), 1, squeeze=False)[:, 0], outcomes, strict=True):
        row.suptitle(
            f"{outcome.title}: {100 * outcome.accuracy:.0f} % right of {len(outcome.queries)}, "
            f"learnt in {outcome.task.adapt_seconds:.1f} s, {outcome.task.parameter_count:,} parameters",
            fontsize=14,
            fontweight="bold",
        )
        support, answers, cells = row.subfigures(1, 3, width_ratios=[1.0, 1.15, 1.7])
        _draw_support(support, outcome)
        _draw_answers(answers, outcome)
        _draw_cells(cells, outcome)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _draw_support(panel: Any, outcome: Outcome) -> None:
    panel.suptitle("support set", fontsize=11)
    names = list(outcome.support)
    shots = max(len(images) for images in outcome.support.values())
    columns = shots if shots > 1 else 5
    cells = [(name if index == 0 else "", image) for name in names for index, image in enumerate(outcome.support[name])]
    axes = panel.subplots(-(-len(cells) // columns), columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, image) in zip(axes.flat, cells, strict=False):
        _show(axis, image)
        axis.set_title(name, fontsize=7, pad=2)


def _draw_answers(panel: Any, outcome: Outcome) -> None:
    panel.suptitle("answers (green: right, red: wrong)", fontsize=11)
    rows = list(zip(outcome.queries, outcome.predictions, strict=True))
    wrong = [row for row in rows if row[0][1] != row[1].class_name][: ANSWERS // 2]
    right = [row for row in rows if row[0][1] == row[1].class_name][: ANSWERS - len(wrong)]
    axes = panel.subplots(2, ANSWERS // 2, squeeze=False)
    for axis, ((image, name), answer) in zip(axes.flat, right + wrong, strict=False):
        _show(axis, image)
        colour = RIGHT if name == answer.class_name else WRONG
        text = f"{answer.class_name}\n{100 * answer.probability:.0f} %"
        axis.set_title(text if name == answer.class_name else f"{text}\n(is {name})", fontsize=6.5, color=colour, pad=3)
        for spine in axis.spines.values():
            spine.set(color=colour, linewidth=2)


def _show(axis: Any, image: Any) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    axis.set(xticks=[], yticks=[])
    axis.axis("on")


def _draw_cells(panel: Any, outcome: Outcome) -> None:
    genotype = outcome.task.genotype
    axes = panel.subplots(1, 2)
    _draw_cell(axes[0], genotype.normal, "normal cell")
    _draw_cell(axes[1], genotype.reduction, "reduction cell")


def _draw_cell(axis: Any, cell: CellGenotype, title: str) -> None:
    """Inputs at the left, nodes below each other, one line for every surviving operation."""
    nodes = len(cell.nodes)
    places = {0: (0.0, 0.85 * nodes), 1: (0.0, 0.35 * nodes)}
    places |= {2 + node: (1.7 + 0.9 * node, nodes - 0.5 - node) for node in range(nodes)}
    output = (1.7 + 0.9 * nodes, nodes / 2)
    names = {0: "input\nk-2", 1: "input\nk-1", **{2 + node: f"node {2 + node}" for node in range(nodes)}}
    for node, genotype in enumerate(cell.nodes):
        target = 2 + node
        for position, edge in enumerate(genotype.inputs):
            colour = COLOURS.get(edge.operation, "black")
            twins = [other for other in genotype.inputs if other.input == edge.input]
            bend = 0.12 + 0.14 * twins.index(edge)
            arrow = {"arrowstyle": "-|>", "color": colour, "lw": 0.8 + 1.8 * min(1.0, edge.weight)}
            arrow |= {"connectionstyle": f"arc3,rad={bend}", "shrinkA": 16, "shrinkB": 16}
            axis.annotate("", xy=places[target], xytext=places[edge.input], arrowprops=arrow)
            (x0, y0), (x1, y1) = places[edge.input], places[target]
            share = 0.42 + 0.16 * (position % 2)
            axis.text(
                x0 + share * (x1 - x0) + bend * 0.5 * (y1 - y0),
                y0 + share * (y1 - y0) - bend * 0.5 * (x1 - x0),
                f"{edge.operation}\n{edge.weight:.2f}",
                fontsize=6.5,
                color=colour,
                ha="center",
                va="center",
                bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.85},
            )
        arrow = {"arrowstyle": "-", "color": "#bbbbbb", "lw": 1, "ls": ":", "shrinkA": 16, "shrinkB": 16}
        axis.annotate("", xy=output, xytext=places[target], arrowprops=arrow)
    for number, (x, y) in {**places, -1: output}.items():
        axis.add_patch(
            FancyBboxPatch((x - 0.22, y - 0.14), 0.44, 0.28, boxstyle="round,pad=0.03", fc="#eef", ec="#557")
        )
        axis.text(x, y, names.get(number, "concat"), ha="center", va="center", fontsize=7)
    axis.set_title(title, fontsize=11)
    axis.set(xlim=(-0.35, output[0] + 0.4), ylim=(-0.1, nodes + 0.1))
    axis.axis("off")
