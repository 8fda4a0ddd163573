"""A drawing of one cell, for papers: inputs at the left, their operations, nodes, concatenation.

Every operation has a lane of its own and stands just before its node; what it reads enters the
lane right behind its source. So no line runs through a box, whatever the cell looks like.
A line has the colour of its source and is as thick as its operation's weight; boxes say the weight
where it is not about 1.

Source: Elsken et al., CVPR 2020, Figure 4; Liu et al. (DARTS), Figures 4 and 5.
"""

from typing import Any

from metanas.space import CELL_INPUTS, CellGenotype
from metanas_training.figures import MINUS, TIMES, new_figure, short_name

INPUT_WIDTH, OPERATION_WIDTH, NODE_WIDTH, OUTPUT_WIDTH = 0.42, 0.6, 0.2, 0.22
GAP, BEND, LANE, BOX_HEIGHT = 0.12, 0.26, 0.34, 0.27
"""Inches. BEND is where lines change lanes."""
WHOLE = 0.95
"""A weight from which on it is not written."""
LINES = ("#0072B2", "#D55E00", "#007A59", "#9A4D7B", "#8C6D00", "#3A3A3A")
"""Of what leaves the first input, the second, the first node, ...: darker tones of Okabe and Ito's colours."""
INPUT_COLOUR, NODE_COLOUR = "#E8E8E8", "#FFFFFF"
CONV_COLOUR, POOL_COLOUR, SKIP_COLOUR = "#CFE3F2", "#FBE3B5", "#D3EDE4"


def draw_cell(cell: CellGenotype, title: str) -> Any:
    """A figure of one cell at its natural size, some 3 to 5 inches wide."""
    depths = node_depths(cell)
    deepest = max(depths)
    stage = BEND + OPERATION_WIDTH + GAP + NODE_WIDTH
    lanes = sum(len(node) for node in cell)
    width = INPUT_WIDTH + deepest * stage + BEND + OUTPUT_WIDTH + 0.1
    height = lanes * LANE + 0.28
    figure = new_figure(width, height, layout=None)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(-0.05, width - 0.05), ylim=(0, height))
    axis.axis("off")
    top = lanes * LANE + 0.04
    axis.text((width - 0.1) / 2, height - 0.1, title, ha="center", va="center")

    def lane(number: float) -> float:
        return top - LANE * (number + 0.5)

    def node_left(depth: int) -> float:
        return INPUT_WIDTH + depth * stage - NODE_WIDTH

    exits = {source: (INPUT_WIDTH, lane(lanes * (2 * source + 1) / 4 - 0.5)) for source in range(CELL_INPUTS)}
    for source, (_, y) in exits.items():
        _box(axis, 0, y, INPUT_WIDTH, f"cell\nk{MINUS}{CELL_INPUTS - source}", INPUT_COLOUR, edge=_line_colour(source))
    output_left = width - 0.1 - OUTPUT_WIDTH
    _box(
        axis, output_left, lane((lanes - 1) / 2), OUTPUT_WIDTH, "concatenation", INPUT_COLOUR,
        height=lanes * LANE - 0.07, turn=True,
    )  # fmt: skip
    first = 0
    for number, node in enumerate(cell):
        left = node_left(depths[number])
        y_node = lane(first + (len(node) - 1) / 2)
        for offset, edge in enumerate(node):
            x, y = left - GAP - OPERATION_WIDTH, lane(first + offset)
            pen = {"color": _line_colour(edge.source), "linewidth": 0.5 + 0.9 * min(edge.weight, 1.0)}
            _change_lanes(axis, exits[edge.source], (x, y), pen)
            _straight(axis, (x + OPERATION_WIDTH, y), (left, y_node), pen)
            _box(axis, x, y, OPERATION_WIDTH, _operation_text(edge.operation, edge.weight), _colour(edge.operation))
        source = CELL_INPUTS + number
        _box(axis, left, y_node, NODE_WIDTH, str(source), NODE_COLOUR, edge=_line_colour(source))
        exits[source] = (left + NODE_WIDTH, y_node)
        _straight(axis, exits[source], (output_left, y_node), {"color": _line_colour(source), "linewidth": 0.7})
        first += len(node)
    return figure


def node_depths(cell: CellGenotype) -> list[int]:
    """How many nodes there are on the longest way from an input to each node, itself included."""
    depths: list[int] = []
    for node in cell:
        before = [depths[edge.source - CELL_INPUTS] for edge in node if edge.source >= CELL_INPUTS]
        depths.append(1 + max(before, default=0))
    return depths


def _operation_text(operation: str, weight: float) -> str:
    """Two lines: what it is and its kernel, with the weight on the shorter one."""
    name = short_name(operation)
    where = max(name.find(f" 1{TIMES}5"), name.rfind(" ") if "," not in name else -1)
    lines = [name] if where < 0 else [name[:where], name[where + 1 :]]
    if weight < WHOLE:
        shorter = min(range(len(lines)), key=lambda index: len(lines[index]))
        lines[shorter] += f" · {weight:.2f}" if weight >= 0.005 else " · <0.01"
    return "\n".join(lines)


def _colour(operation: str) -> str:
    if "pool" in operation:
        return POOL_COLOUR
    return SKIP_COLOUR if operation.startswith("skip") else CONV_COLOUR


def _line_colour(source: int) -> str:
    return LINES[source % len(LINES)]


def _box(
    axis: Any, x: float, y: float, width: float, text: str, colour: str, *, edge: str = "#333333",
    height: float = BOX_HEIGHT, turn: bool = False,
) -> None:  # fmt: skip
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.04"
    axis.add_patch(
        FancyBboxPatch((x, y - height / 2), width, height, boxstyle=style, fc=colour, ec=edge, lw=0.7, zorder=3)
    )
    axis.text(
        x + width / 2, y, text, ha="center", va="center", fontsize=6.3, linespacing=1.0, zorder=4,
        rotation=90 if turn else 0,
    )  # fmt: skip


def _change_lanes(axis: Any, start: tuple[float, float], end: tuple[float, float], pen: dict[str, Any]) -> None:
    """From a source into a lane within BEND, then straight on."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    (x0, y0), (x1, y1) = start, end
    bent = x0 + BEND
    path = Path(
        [(x0, y0), (x0 + 0.6 * BEND, y0), (bent - 0.6 * BEND, y1), (bent, y1), (x1, y1)],
        [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4, Path.LINETO],
    )
    axis.add_patch(PathPatch(path, fc="none", ec=pen["color"], lw=pen["linewidth"], zorder=1))


def _straight(axis: Any, start: tuple[float, float], end: tuple[float, float], pen: dict[str, Any]) -> None:
    axis.plot(*zip(start, end, strict=True), **pen, zorder=1, solid_capstyle="butt")
