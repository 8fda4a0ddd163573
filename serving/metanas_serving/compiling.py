"""A task's ONNX graph, as a program of the compiled engine (``metanas.native.inference``).

    compiled   the graph of a task  ->  Compiled: its tables, which tasks of one architecture share, and its weights

What the graph says one after another is said here as few steps on lines of images:

* a sum is one image, to which each of its terms adds; what multiplies a term is multiplied into its weights;
* a ReLU is done by the step before it, to the image or to a copy of it, whichever is read;
* a concatenation is read part by part, and never made;
* taps of a kernel that are zero are left out;
* steps are brought into phases, and images into memory that others do not need any more.

The function stays the same, to rounding. Knows ONNX and the graphs of ``metanas_export.graph``; no runtime.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from metanas.native.inference import (
    LANES,
    MOST_LINE_FLOATS,
    MOST_PHASES,
    MOST_TAPS,
    Floats,
    Kind,
    Tables,
    aligned,
    packed_columns,
)
from metanas_serving.widening import UnknownGraphError

_HEAD = ("GlobalAveragePool", "Flatten", "ReduceL2", "Max", "Div", "Gemm")

# Weights begin where a line of the cache begins.
_ALIGNED = 16
# Lines of an image that a thread makes at a time, and the bands that there are to be at least.
_BAND_LINES = 4
_LEAST_BANDS = 10


@dataclass(frozen=True, slots=True)
class Compiled:
    """A task's network."""

    tables: Tables
    weights: Floats


def compiled(model: onnx.ModelProto) -> Compiled:
    """Make a program of a task's graph.

    Args:
        model: as ``metanas_export.build_onnx`` makes it in float32.

    Raises:
        UnknownGraphError: it holds what this module has no rule for.
    """
    nodes = list(model.graph.node)
    ends = nodes[-len(_HEAD) :]
    if tuple(node.op_type for node in ends) != _HEAD:
        raise UnknownGraphError(f"the graph ends with {[node.op_type for node in ends]}")
    walk = _Walk(model)
    for node in nodes[: -len(_HEAD)]:
        walk.take(node)
    return walk.compiled(ends)


@dataclass(eq=False, slots=True)
class _Image:
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
class _Term:
    """What is added to an image: one step."""

    kind: Kind
    sources: list[_Image]
    stride: int = 1
    across: int = 1
    """The stride along a line."""
    taps: list[tuple[_Image, int, int, Floats]] = field(default_factory=list)
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

    def lines(self, first: int, last: int) -> Iterator[tuple[_Image, int, int]]:
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
class _Step:
    """A term and where it goes."""

    term: _Term
    out: _Image
    adds: bool
    is_rectified: bool = False
    copy: _Image | None = None
    """Gets the rectified image."""
    phase: int = 0


@dataclass(eq=False, slots=True)
class _Value:
    """A tensor of the graph: terms that are not added up yet, or images."""

    channels: int
    height: int
    width: int
    terms: list[_Term] = field(default_factory=list)
    offset: Floats | None = None
    raw: _Image | None = None
    rectified: _Image | None = None

    @property
    def is_made(self) -> bool:
        return self.raw is not None or self.rectified is not None


class _Walk:
    """Goes through a graph from its input."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._given = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
        self._readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self._readers[name].append(node)
        image = model.graph.input[0]
        channels, height, width = (size.dim_value for size in image.type.tensor_type.shape.dim[1:])
        self._input = _Image(channels, height, width)
        self._values = {image.name: _Value(channels, height, width, raw=self._input)}
        self._rectified: dict[str, str] = {}
        self._concats: dict[str, list[str]] = {}
        self._steps = [_Step(_Term(Kind.INPUT, []), self._input, adds=False)]

    def take(self, node: onnx.NodeProto) -> None:
        """Add what becomes of a node."""
        rule: Callable[[onnx.NodeProto], None] | None = {
            "Conv": self._conv,
            "Mul": self._mul,
            "Add": self._add,
            "Concat": self._concat,
            "Relu": self._relu,
            "MaxPool": self._pool,
            "AveragePool": self._pool,
        }.get(node.op_type)
        if rule is None:
            raise UnknownGraphError(f"{node.name} is a {node.op_type}")
        rule(node)

    def compiled(self, ends: list[onnx.NodeProto]) -> Compiled:
        """The program with the head that ends the graph."""
        pool, _, _, at_least, _, scores = ends
        parts = self._images(pool.input[0])
        weight, bias = self._given[scores.input[1]], self._given[scores.input[2]]
        if len({part.channels for part in parts}) != 1 or weight.shape[1] != sum(part.channels for part in parts):
            raise UnknownGraphError(f"{scores.name} scores {weight.shape[1]} features")
        pack = _Pack()
        head = pack.add(weight), pack.add(np.append(bias, self._given[at_least.input[1]]))
        return _tabled(self._steps, parts, pack, head=head, classes=len(bias))

    def _value(self, name: str) -> _Value:
        if name not in self._values:
            raise UnknownGraphError(f"{name} is not calculated from the images alone")
        return self._values[name]

    def _images(self, name: str) -> list[_Image]:
        """The images that a tensor consists of, made now at the latest."""
        if name in self._rectified:
            source = self._rectified[name]
            return [self._made(part, is_rectified=True) for part in self._concats.get(source, [source])]
        return [self._made(part, is_rectified=False) for part in self._concats.get(name, [name])]

    def _image(self, name: str) -> _Image:
        images = self._images(name)
        if len(images) != 1:
            raise UnknownGraphError(f"{name}, of several parts, is read by what reads one")
        return images[0]

    def _made(self, name: str, *, is_rectified: bool) -> _Image:
        value = self._value(name)
        if not value.is_made:
            self._make(name, value)
        image = value.rectified if is_rectified else value.raw
        assert image is not None
        return image

    def _make(self, name: str, value: _Value) -> None:
        """Add a value up."""
        kinds = set(self._kinds_of_readers(name))
        if "Relu" in kinds:
            value.rectified = _Image(value.channels, value.height, value.width)
        if kinds != {"Relu"}:
            value.raw = _Image(value.channels, value.height, value.width)
        out = value.raw or value.rectified
        assert out is not None
        # Kernels that read nothing of the sum before it are quickest first.
        terms = sorted(value.terms, key=lambda term: term.kind is not Kind.CONVOLUTION)
        terms[-1].offset = value.offset
        for term in terms:
            self._steps.append(_Step(term, out, adds=term is not terms[0]))
        self._steps[-1].is_rectified = value.raw is None
        self._steps[-1].copy = value.rectified if value.raw is not None else None

    def _kinds_of_readers(self, name: str) -> Iterator[str]:
        for node in self._readers[name]:
            if node.op_type == "Concat":
                yield from self._kinds_of_readers(node.output[0])
            else:
                yield node.op_type

    def _terms(self, name: str) -> tuple[list[_Term], Floats | None, _Value]:
        """A tensor as terms of a sum: its own where nobody else wants them."""
        value = self._value(name)
        if not value.is_made and len(self._readers[name]) == 1:
            return value.terms, value.offset, value
        return [_Term(Kind.AFFINE, [self._image(name)])], None, value

    def _conv(self, node: onnx.NodeProto) -> None:
        attributes: dict[str, Any] = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        given, sources = self._given[node.input[1]], self._images(node.input[0])
        height, width = given.shape[2:]
        strides, pads = attributes.get("strides", [1, 1]), attributes.get("pads", [0, 0, 0, 0])
        dilations = attributes.get("dilations", [1, 1])
        source = sources[0]
        sizes = [
            (size + pads[axis] + pads[axis + 2] - dilations[axis] * (given.shape[2 + axis] - 1) - 1) // strides[axis]
            + 1
            for axis, size in enumerate((source.height, source.width))
        ]
        offset = self._given[node.input[2]] if len(node.input) > 2 else None
        if attributes.get("group", 1) == 1:
            term = _Term(Kind.CONVOLUTION, sources, stride=strides[0], across=strides[1])
            first = 0
            for one in sources:
                for y in range(height):
                    for x in range(width):
                        matrix = given[:, first : first + one.channels, y, x].T
                        if matrix.any():
                            dy, dx = y * dilations[0] - pads[0], x * dilations[1] - pads[1]
                            term.taps.append((one, dy, dx, matrix))
                first += one.channels
            if first != given.shape[1] or not 0 < len(term.taps) <= MOST_TAPS:
                raise UnknownGraphError(f"{node.name} has {len(term.taps)} taps on {first} channels")
            if len({(one.channels, one.height, one.width) for one in sources}) != 1:
                raise UnknownGraphError(f"{node.name} reads parts of several sizes")
            reach = max(max(-dx, (sizes[1] - 1) * term.across + dx - (source.width - 1)) for _, _, dx, _ in term.taps)
        elif given.shape[:2] == (source.channels, 1) and len(sources) == 1 and height == width and height in (3, 5):
            reach = height // 2 * dilations[0]
            if pads != [reach] * 4 or strides[0] != strides[1] or dilations[0] != dilations[1]:
                raise UnknownGraphError(f"{node.name} has pads of {pads}")
            kernel = np.ascontiguousarray(given.reshape(source.channels, -1).T)
            term = _Term(
                Kind.DEPTHWISE,
                sources,
                stride=strides[0],
                across=strides[1],
                kernel=height,
                dilation=dilations[0],
                gain=kernel,
            )
        else:
            raise UnknownGraphError(f"{node.name} has a kernel of {given.shape} on {len(sources)} parts")
        for one in sources:
            one.pad = max(one.pad, reach)
        value = _Value(len(given), height=sizes[0], width=sizes[1], terms=[term], offset=offset)
        self._split(node.output[0], value)

    def _split(self, name: str, value: _Value) -> None:
        """Note a convolution's result; in equal parts where it has more channels than two registers hold."""
        (term,) = value.terms
        count = -(-value.channels // LANES)
        is_dense = term.kind is Kind.CONVOLUTION
        if count == 1 or value.channels % count or not is_dense or not self._is_read_in_parts(name):
            self._values[name] = value
            return
        size = value.channels // count
        self._concats[name] = [f"{name}/part{part}" for part in range(count)]
        for part, part_name in enumerate(self._concats[name]):
            some = slice(part * size, (part + 1) * size)
            taps = [(*where, matrix[:, some]) for *where, matrix in term.taps]
            one = dataclasses.replace(term, taps=taps)  # type: ignore[arg-type]
            offset = None if value.offset is None else value.offset[some]
            self._values[part_name] = _Value(size, value.height, value.width, terms=[one], offset=offset)
            self._readers[part_name] = self._readers[name]

    def _is_read_in_parts(self, name: str) -> bool:
        """Whether all that reads a tensor multiplies it by matrices, rectified or not."""
        return all(
            self._is_read_in_parts(node.output[0]) if node.op_type == "Relu" else _is_dense(node)
            for node in self._readers[name]
        )

    def _pool(self, node: onnx.NodeProto) -> None:
        attributes: dict[str, Any] = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        strides = attributes.get("strides", [1, 1])
        as_usual = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [strides[0]] * 2, "count_include_pad": 0}
        is_told = {"kernel_shape", "pads"} <= attributes.keys()
        if not is_told or any(value != as_usual.get(name) for name, value in attributes.items()):
            raise UnknownGraphError(f"{node.name} is a pooling of {attributes}")
        source = self._image(node.input[0])
        kind = Kind.MAXIMUM if node.op_type == "MaxPool" else Kind.MEAN
        term = _Term(kind, [source], stride=strides[0], across=strides[0])
        height, width = (-(-size // strides[0]) for size in (source.height, source.width))
        self._values[node.output[0]] = _Value(source.channels, height, width, terms=[term])

    def _mul(self, node: onnx.NodeProto) -> None:
        terms, offset, value = self._terms(node.input[0])
        gain = self._constant(node, value.channels)
        for term in terms:
            term.scale(gain)
        offset = None if offset is None else offset * gain
        self._values[node.output[0]] = _Value(value.channels, value.height, value.width, terms=terms, offset=offset)

    def _add(self, node: onnx.NodeProto) -> None:
        first, second = node.input
        terms, offset, value = self._terms(first)
        others: list[_Term] = []
        other: Floats | None = None
        if second in self._given:
            other = self._constant(node, value.channels)
        else:
            others, other, like = self._terms(second)
            if (like.channels, like.height, like.width) != (value.channels, value.height, value.width):
                raise UnknownGraphError(f"{node.name} adds tensors of two sizes")
        offsets = [one for one in (offset, other) if one is not None]
        offset = sum(offsets[1:], start=offsets[0]) if offsets else None
        self._values[node.output[0]] = _Value(
            value.channels, value.height, value.width, terms=[*terms, *others], offset=offset
        )

    def _constant(self, node: onnx.NodeProto, channels: int) -> Floats:
        given = self._given.get(node.input[1])
        if given is None or given.shape != (channels, 1, 1):
            raise UnknownGraphError(f"{node.name} has no number for each of {channels} channels")
        return given.reshape(-1)

    def _relu(self, node: onnx.NodeProto) -> None:
        self._rectified[node.output[0]] = node.input[0]

    def _concat(self, node: onnx.NodeProto) -> None:
        self._concats[node.output[0]] = list(node.input)


def _is_dense(node: onnx.NodeProto) -> bool:
    groups = [helper.get_attribute_value(one) for one in node.attribute if one.name == "group"]
    return node.op_type == "Conv" and groups in ([], [1])


class _Pack:
    """Weights, one behind another."""

    def __init__(self) -> None:
        self._pieces: list[Floats] = []
        self._size = 0

    def add(self, values: Floats) -> int:
        """Where they lie."""
        place, size = self._size, -(-values.size // _ALIGNED) * _ALIGNED
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


def _tabled(steps: list[_Step], parts: list[_Image], pack: _Pack, *, head: tuple[int, int], classes: int) -> Compiled:
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


def _phased(steps: list[_Step]) -> list[list[int]]:
    """Put steps into phases: first, last, bands. Each comes as early as it may, so that what it reads is near."""
    phases: list[list[int]] = []
    left, steps[:] = list(steps), []
    while left:
        height = left[0].out.height
        bands = max(height // _BAND_LINES, min(height, _LEAST_BANDS))
        waiting: list[_Step] = []
        made: set[_Image | None] = set()
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


def _fits(step: _Step, made: set["_Image | None"], bands: int) -> bool:
    """Whether all that a step reads of what its phase makes lies in its own band."""
    height = step.out.height
    return all(
        source not in made or (band * source.height // bands <= begin and end <= (band + 1) * source.height // bands)
        for band in range(bands)
        if (first := band * height // bands) < (last := (band + 1) * height // bands)
        for source, begin, end in step.term.lines(first, last)
    )


def _placed(images: list[_Image], phases: list[list[int]]) -> tuple[int, int]:
    """Give images room that none of the same phases has.

    Returns:
        Floats that all threads share, and those of each.
    """
    wholes, passing = list[_Image](), list[_Image]()
    for image in images:
        if image.first_phase == image.last_phase:
            image.band_lines = -(-image.height // phases[image.first_phase][2])
            passing.append(image)
        else:
            wholes.append(image)
    return _fitted(wholes), _fitted(passing)


def _fitted(images: list[_Image]) -> int:
    done: list[_Image] = []
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
