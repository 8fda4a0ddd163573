"""Steps on lines of images, as a program of the compiled engine (``metanas.native.inference``).

    Term, Step, Image   what is added, where to, and what it is read from
    Pack                weights, laid out as the engine reads them
    planned             steps  ->  Compiled: phases, bands, room for images; and the tables of all that

A step comes into the first phase in which all that it reads of the phase's own lies in its own band; what a phase makes
for itself alone is there for a band at a time; images that are not there at the same time share their room.
Knows no graph.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from metanas.native.inference import (
    ALIGNED_FLOATS,
    LANES,
    MOST_LINE_FLOATS,
    MOST_PHASES,
    Floats,
    Kind,
    Tables,
    aligned,
    packed_columns,
)
from metanas_serving.task_graph import UnknownGraphError

# Lines of an image that a thread makes at a time, and the bands that there are to be at least.
_BAND_LINES = 4
_LEAST_BANDS = 10


@dataclass(frozen=True, slots=True)
class Compiled:
    """A task's network."""

    tables: Tables
    weights: Floats


@dataclass(eq=False, slots=True)
class Image:
    """What steps make and read."""

    channels: int
    height: int
    width: int
    pad: int = 0
    band_lines: int = 0
    """That there are of it at a time; 0: all."""
    first_phase: int = -1
    last_phase: int = -1
    place: int = 0

    @property
    def lanes(self) -> int:
        return _lanes(self.channels)

    @property
    def line_floats(self) -> int:
        return (self.width + 2 * self.pad) * self.lanes

    @property
    def floats(self) -> int:
        """That there are of it at a time."""
        return (self.band_lines or self.height) * self.line_floats


@dataclass(eq=False, slots=True)
class Term:
    """What is added to an image: one step."""

    kind: Kind
    sources: list[Image]
    stride: int = 1
    across: int = 1
    """The stride along a line."""
    taps: list[tuple[Image, int, int, Floats]] = field(default_factory=list)
    """Source, lines and pixels from the middle, matrix ``(channels, output channels)``."""
    kernel: int = 0
    dilation: int = 1
    gain: Floats | None = None
    """Of each channel; of a depthwise kernel ``(taps, channels)``."""
    offset: Floats | None = None

    def scale(self, gain: Floats) -> None:
        """Multiply all that it adds."""
        if self.kind is Kind.CONVOLUTION:
            self.taps = [(*where, matrix * gain) for *where, matrix in self.taps]  # type: ignore[misc]
        else:
            self.gain = gain if self.gain is None else self.gain * gain

    def lines(self, first: int, last: int) -> Iterator[tuple[Image, int, int]]:
        """Which lines of its sources it reads for some of its own."""
        if self.kind is Kind.CONVOLUTION:
            reach = {source: [dy for one, dy, _, _ in self.taps if one is source] for source in self.sources}
        else:
            half = {Kind.DEPTHWISE: self.kernel // 2 * self.dilation, Kind.AFFINE: 0}.get(self.kind, 1)
            reach = {source: [-half, half] for source in self.sources}
        for source, offsets in reach.items():
            begin, end = first * self.stride + min(offsets), (last - 1) * self.stride + max(offsets) + 1
            yield source, max(0, begin), min(source.height, end)


@dataclass(eq=False, slots=True)
class Step:
    """A term and where it goes."""

    term: Term
    out: Image
    adds: bool
    is_rectified: bool = False
    copy: Image | None = None
    """Gets the rectified image."""
    phase: int = 0


class Pack:
    """Weights, one behind another."""

    def __init__(self) -> None:
        self._pieces: list[Floats] = []
        self._size = 0

    def add(self, values: Floats) -> int:
        """Where they lie."""
        place, size = self._size, -(-values.size // ALIGNED_FLOATS) * ALIGNED_FLOATS
        piece = np.zeros(size, dtype=np.float32)
        piece[: values.size] = values.reshape(-1)
        self._pieces.append(piece)
        self._size += size
        return place

    def channels(self, values: Floats | None) -> int:
        """The same, with channels, the last dimension, padded; -1: there are none."""
        return -1 if values is None else self.add(_wide(values))

    def matrix(self, values: Floats) -> int:
        """The same, as products of matrices read it: the columns of two registers after those of the two before."""
        wide = _wide(values)
        return self.add(wide.reshape(len(wide), -1, packed_columns()).swapaxes(0, 1))

    def whole(self) -> Floats:
        """All that was added."""
        return np.concatenate(self._pieces, out=aligned(self._size)[: self._size])


def _lanes(channels: int) -> int:
    return -(-channels // LANES) * LANES


def _wide(values: Floats) -> Floats:
    wide = np.zeros((*values.shape[:-1], _lanes(values.shape[-1])), dtype=np.float32)
    wide[..., : values.shape[-1]] = values
    return wide


def planned(steps: list[Step], parts: list[Image], pack: Pack, *, head: tuple[int, int], classes: int) -> Compiled:
    """Make a program of steps.

    Args:
        steps: in an order in which they could be done; put into another.
        parts: images whose means are the features.
        pack: holds the head's weights, and gets those of the steps.
        head: where in it the matrix lies, and the bias with the least length of the features behind it.

    Raises:
        UnknownGraphError: there is not room enough for it in the engine.
    """
    phases = _phased(steps)
    images = list(dict.fromkeys(image for step in steps for image in (step.out, step.copy) if image is not None))
    for part in parts:
        part.last_phase = len(phases)
    if any(image.line_floats > MOST_LINE_FLOATS for image in images) or len(phases) > MOST_PHASES:
        raise UnknownGraphError(f"the network has {len(phases)} phases on lines of {images[0].width} pixels")
    shared_floats, band_floats = _placed(images, phases)
    number = {image: index for index, image in enumerate(images)}
    rows, places = list[list[int]](), list[list[int]]()
    for step in steps:
        term = step.term
        is_dense = term.kind is Kind.CONVOLUTION
        first_tap = len(places)
        if is_dense:
            places += [[number[source], dy, dx, pack.matrix(matrix)] for source, dy, dx, matrix in term.taps]
        rows.append(
            [
                term.kind,
                number[step.out],
                -1 if step.copy is None else number[step.copy],
                step.adds,
                step.is_rectified,
                term.stride,
                term.across,
                number[term.sources[0]] if term.sources and not is_dense else -1,
                pack.channels(term.offset),
                -1 if is_dense else pack.channels(term.gain),
                first_tap,
                len(term.taps),
                term.kernel,
                term.dilation,
            ]
        )
    bounds = [
        [image.height, image.width, image.channels, image.lanes, image.pad, image.place, image.band_lines > 0]
        for image in images
    ]
    sizes = [len(images), len(steps), len(places), len(phases), len(parts), shared_floats, band_floats]
    sizes += [classes, parts[0].channels, *head]
    tables = Tables(
        sizes=_numbers(sizes),
        images=_numbers(bounds),
        steps=_numbers(rows),
        places=_numbers(places),
        phases=_numbers(phases),
        parts=_numbers([number[part] for part in parts]),
        shared_floats=shared_floats,
        band_floats=band_floats,
        classes=classes,
    )
    return Compiled(tables, pack.whole())


def _numbers(table: Sequence[int] | Sequence[Sequence[int]]) -> NDArray[np.int64]:
    return np.array(table, dtype=np.int64)


def _phased(steps: list[Step]) -> list[list[int]]:
    """Put steps into phases: first, last, bands. Each comes as early as it may, so that what it reads is near."""
    phases: list[list[int]] = []
    left, steps[:] = list(steps), []
    while left:
        height = left[0].out.height
        bands = max(height // _BAND_LINES, min(height, _LEAST_BANDS))
        waiting: list[Step] = []
        made: set[Image | None] = set()
        for step in left:
            # A sum is added up in order: those that add to what waits wait too.
            waits = {image for one in waiting for image in (one.out, one.copy)}
            if (
                step.out in waits
                or any(source in waits for source in step.term.sources)
                or not _fits(step, made, bands)
            ):
                waiting.append(step)
                continue
            step.phase = len(phases)
            made |= {step.out, step.copy}
            steps.append(step)
        phases.append([len(steps) - len(left) + len(waiting), len(steps), bands])
        left = waiting
    for step in steps:
        for image in (step.out, step.copy):
            if image is not None:
                if image.first_phase < 0:
                    image.first_phase = step.phase
                image.last_phase = step.phase
        for source in step.term.sources:
            source.last_phase = max(source.last_phase, step.phase)
    return phases


def _fits(step: Step, made: set["Image | None"], bands: int) -> bool:
    """Whether all that a step reads of what its phase makes lies in its own band."""
    height = step.out.height
    return all(
        source not in made or (band * source.height // bands <= begin and end <= (band + 1) * source.height // bands)
        for band in range(bands)
        if (first := band * height // bands) < (last := (band + 1) * height // bands)
        for source, begin, end in step.term.lines(first, last)
    )


def _placed(images: list[Image], phases: list[list[int]]) -> tuple[int, int]:
    """Give images room that none of the same phases has.

    Returns:
        Floats that all threads share, and those of each.
    """
    wholes, passing = list[Image](), list[Image]()
    for image in images:
        if image.first_phase == image.last_phase:
            image.band_lines = -(-image.height // phases[image.first_phase][2])
            passing.append(image)
        else:
            wholes.append(image)
    return _fitted(wholes), _fitted(passing)


def _fitted(images: list[Image]) -> int:
    done: list[Image] = []
    whole = 0
    for image in sorted(images, key=lambda image: -image.floats):
        others = sorted(
            (one.place, one.place + one.floats)
            for one in done
            if one.first_phase <= image.last_phase and image.first_phase <= one.last_phase
        )
        end = 0
        for begin, beyond in others:
            if begin - end >= image.floats:
                break
            end = max(end, beyond)
        image.place = end
        whole = max(whole, end + image.floats)
        done.append(image)
    return whole
