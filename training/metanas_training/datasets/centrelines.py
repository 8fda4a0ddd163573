"""Centre lines: from letters outlined with parallel strokes to the strokes of one pen.

Engravers' alphabets (gothic, brush kana, seriffed cyrillic) draw each stem as two or
three lines side by side. No hand does that, so such a letter is inked with a pen wide
enough to close the gaps, worn down to a line one pixel wide, and read back as strokes
that run straight on where strokes cross.

    thin            ink  ->  lines one pixel wide
    centre_lines    parallel strokes  ->  strokes of a single pen

Pure functions on coordinates and pixels: nothing here knows fonts, classes or hands.
Source: Zhang and Suen, A fast parallel algorithm for thinning digital patterns, CACM 1984.
"""

import itertools
import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Point: TypeAlias = tuple[float, float]
Polyline: TypeAlias = tuple[Point, ...]
_Pixel: TypeAlias = tuple[int, int]

_PIXELS_PER_UNIT = 3
_MARGIN_PIXELS = 8
# Cosine of the sharpest turn that one stroke takes at a crossing.
_LEAST_STRAIGHTNESS = 0.3
# Clockwise from north, as P2..P9 in the paper.
_RING: tuple[_Pixel, ...] = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def _removable(pass_number: int) -> NDArray[np.bool_]:
    """Which of the 256 neighbourhoods lose their middle pixel in the first or second pass of the paper."""
    table = np.zeros(256, dtype=bool)
    for code in range(256):
        ring = [code >> bit & 1 for bit in range(8)]
        north, east, south, west = ring[0], ring[2], ring[4], ring[6]
        rises = sum(ring[i] == 0 and ring[(i + 1) % 8] == 1 for i in range(8))
        kept = (north and east and south) or (east and south and west)
        if pass_number == 1:
            kept = (north and east and west) or (north and south and west)
        table[code] = 2 <= sum(ring) <= 6 and rises == 1 and not kept
    return table


_PASSES = (_removable(0), _removable(1))


def thin(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Wear ink down to lines one pixel wide that keep its connections.

    Args:
        ink: ``(height, width)``, true where there is ink; the outermost pixels are taken as paper.

    Returns:
        ``(height, width)``, true on the lines.
    """
    height, width = ink.shape
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[1:-1, 1:-1] = ink[1:-1, 1:-1]
    removed = True
    while removed:
        removed = False
        for table in _PASSES:
            code = np.zeros((height - 2, width - 2), dtype=np.uint8)
            for bit, (dy, dx) in enumerate(_RING):
                code |= pixels[1 + dy : height - 1 + dy, 1 + dx : width - 1 + dx] << bit
            gone = table[code] & (pixels[1:-1, 1:-1] > 0)
            if gone.any():
                removed = True
                pixels[1:-1, 1:-1][gone] = 0
    return pixels > 0


def centre_lines(strokes: Sequence[Polyline], *, pen_units: float) -> tuple[Polyline, ...]:
    """Redraw parallel strokes as the strokes of a single pen.

    Args:
        strokes: polylines in font units.
        pen_units: width in font units of the pen that closes the gaps between parallel lines;
            gaps wider than this stay open.

    Returns:
        Polylines in the same units, in a stable order.
    """
    points = np.array([point for stroke in strokes for point in stroke], dtype=float)
    origin = points.min(axis=0) - pen_units - _MARGIN_PIXELS / _PIXELS_PER_UNIT
    width, height = np.ceil((points.max(axis=0) - origin + pen_units) * _PIXELS_PER_UNIT).astype(int) + _MARGIN_PIXELS
    canvas = Image.new("L", (int(width), int(height)), 0)
    draw = ImageDraw.Draw(canvas)
    radius = pen_units * _PIXELS_PER_UNIT / 2
    for stroke in strokes:
        path = [((x - origin[0]) * _PIXELS_PER_UNIT, (y - origin[1]) * _PIXELS_PER_UNIT) for x, y in stroke]
        draw.line(path, fill=255, width=round(2 * radius))
        for x, y in path:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    skeleton = thin(np.asarray(canvas) > 0)
    chains = _without_spurs(_chains(_links(skeleton)), spur_pixels=1.3 * radius)
    joined = _joined_at_crossings(_with_crossings_drawn_together(chains, reach_pixels=1.3 * radius))
    return tuple(
        tuple((float(x), float(y)) for x, y in _smooth(chain)[:, ::-1] / _PIXELS_PER_UNIT + origin)
        for chain in joined
        if len(chain) > 1
    )


def _smooth(chain: Sequence[_Pixel]) -> NDArray[np.float64]:
    """Average out the staircase of pixels, ends fixed, and keep every other point."""
    points = np.array(chain, dtype=float)
    for _ in range(3):
        points[1:-1] = (points[:-2] + 2 * points[1:-1] + points[2:]) / 4
    return np.concatenate([points[:-1:2], points[-1:]])


def _links(skeleton: NDArray[np.bool_]) -> dict[_Pixel, list[_Pixel]]:
    """Neighbours of each pixel; a diagonal step counts only where no two straight steps do the same."""
    pixels: set[_Pixel] = {(y, x) for y, x in np.argwhere(skeleton).tolist()}
    links: dict[_Pixel, list[_Pixel]] = {}
    for y, x in sorted(pixels):
        links[y, x] = [
            (y + dy, x + dx)
            for dy, dx in _RING
            if (y + dy, x + dx) in pixels and not (dy and dx and ((y + dy, x) in pixels or (y, x + dx) in pixels))
        ]
    return links


def _chains(links: dict[_Pixel, list[_Pixel]]) -> list[list[_Pixel]]:
    """Cut the lines into chains that run from one end or crossing to the next; rings come back closed."""
    chains: list[list[_Pixel]] = []
    walked: set[tuple[_Pixel, _Pixel]] = set()

    def walk(start: _Pixel, step: _Pixel) -> None:
        chain = [start, step]
        walked.update({(start, step), (step, start)})
        while len(links[chain[-1]]) == 2 and chain[-1] != start:
            onward = next(pixel for pixel in links[chain[-1]] if pixel != chain[-2])
            walked.update({(chain[-1], onward), (onward, chain[-1])})
            chain.append(onward)
        chains.append(chain)

    nodes = [pixel for pixel, near in links.items() if len(near) != 2]
    for start in [*nodes, *links]:  # what is left after the nodes are rings
        if not links[start]:
            chains.append([start, start])
        for step in links[start]:
            if (start, step) not in walked:
                walk(start, step)
    return chains


def _without_spurs(chains: list[list[_Pixel]], *, spur_pixels: float) -> list[list[_Pixel]]:
    """Drop short side branches, which thinning leaves at corners."""
    uses = _uses(chains)

    def is_spur(chain: list[_Pixel]) -> bool:
        fewer, more = sorted((uses[chain[0]], uses[chain[-1]]))
        return len(chain) <= spur_pixels and fewer == 1 < more

    return [chain for chain in chains if not is_spur(chain)]


def _uses(chains: Sequence[Sequence[_Pixel]]) -> dict[_Pixel, int]:
    """How many chain ends meet at each pixel."""
    uses: dict[_Pixel, int] = {}
    for chain in chains:
        for end in (chain[0], chain[-1]):
            uses[end] = uses.get(end, 0) + 1
    return uses


def _with_crossings_drawn_together(chains: list[list[_Pixel]], *, reach_pixels: float) -> list[list[_Pixel]]:
    """Contract short links between two crossings, which thinning makes of one crossing of wide lines."""
    uses = _uses(chains)
    home: dict[_Pixel, _Pixel] = {}

    def find(pixel: _Pixel) -> _Pixel:
        while home.get(pixel, pixel) != pixel:
            pixel = home[pixel]
        return pixel

    kept = []
    for chain in chains:
        start, end = chain[0], chain[-1]
        if len(chain) <= reach_pixels and start != end and uses[start] > 2 and uses[end] > 2:
            home[find(end)] = find(start)
        else:
            kept.append(chain)
    return [[find(chain[0]), *chain[1:-1], find(chain[-1])] for chain in kept]


def _joined_at_crossings(chains: list[list[_Pixel]]) -> list[list[_Pixel]]:
    """Let each chain run on, where chains meet, into the one that turns least."""
    strokes = [list(chain) for chain in chains]
    while True:
        best = (_LEAST_STRAIGHTNESS, 0, 0)
        turned = [stroke[::-1] for stroke in strokes]
        both = strokes + turned  # stroke i backwards is at i + len(strokes)
        for i, j in itertools.combinations(range(len(both)), 2):
            if both[i][0] == both[j][0] and j - i != len(strokes):
                best = max(best, (_straightness(both[i], both[j]), i, j))
        straightness, i, j = best
        if straightness <= _LEAST_STRAIGHTNESS:
            return strokes
        joined = both[i][::-1] + both[j][1:]
        used = {i % len(strokes), j % len(strokes)}
        strokes = [joined, *(stroke for k, stroke in enumerate(strokes) if k not in used)]


def _straightness(a: Sequence[_Pixel], b: Sequence[_Pixel]) -> float:
    """Cosine of the turn from the way in along ``a`` to the way out along ``b``; both start at the crossing."""
    (ay, ax), (by, bx) = a[min(9, len(a) - 1)], b[min(9, len(b) - 1)]
    into_y, into_x, out_y, out_x = a[0][0] - ay, a[0][1] - ax, by - b[0][0], bx - b[0][1]
    lengths = math.hypot(into_y, into_x) * math.hypot(out_y, out_x)
    return (into_y * out_y + into_x * out_x) / lengths if lengths else -1.0
