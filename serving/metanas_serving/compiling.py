"""A task's ONNX graph, as a program of the compiled engine (``metanas.native.inference``).

    compiled   the graph of a task  ->  Compiled: its tables, which tasks of one architecture share, and its weights

What the graph says one after another is said here as few steps on lines of images:

* a sum is one image, to which each of its terms adds; what multiplies a term is multiplied into its weights;
* a ReLU is done by the step before it, to the image or to a copy of it, whichever is read;
* a concatenation is read part by part, and never made;
* taps of a kernel that are zero are left out.

What becomes of the steps is ``planning``'s.

The function stays the same, to rounding. Knows ONNX and the graphs of ``metanas_export.graph``; no runtime.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx

from metanas.native.inference import LANES, MOST_TAPS, Floats, Kind
from metanas_serving.planning import Compiled, Image, Pack, Step, Term, planned
from metanas_serving.task_graph import UnknownGraphError, attributes_of, constants_of, image_size, rule_for

_HEAD = ("GlobalAveragePool", "Flatten", "ReduceL2", "Max", "Div", "Gemm")


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
class _Value:
    """A tensor of the graph: terms that are not added up yet, or images."""

    channels: int
    height: int
    width: int
    terms: list[Term] = field(default_factory=list)
    offset: Floats | None = None
    raw: Image | None = None
    rectified: Image | None = None

    @property
    def is_made(self) -> bool:
        return self.raw is not None or self.rectified is not None


class _Walk:
    """Goes through a graph from its input."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._given = constants_of(model)
        self._readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self._readers[name].append(node)
        image = Image(*image_size(model))
        self._values = {model.graph.input[0].name: _Value(*image_size(model), raw=image)}
        self._rectified: dict[str, str] = {}
        self._concats: dict[str, list[str]] = {}
        self._steps = [Step(Term(Kind.INPUT, []), image, adds=False)]

    def take(self, node: onnx.NodeProto) -> None:
        """Add what becomes of a node."""
        rules = {
            "Conv": self._conv,
            "Mul": self._mul,
            "Add": self._add,
            "Concat": self._concat,
            "Relu": self._relu,
            "MaxPool": self._pool,
            "AveragePool": self._pool,
        }
        rule_for(node, rules)(node)

    def compiled(self, ends: list[onnx.NodeProto]) -> Compiled:
        """The program with the head that ends the graph."""
        pool, _, _, at_least, _, scores = ends
        parts = self._images(pool.input[0])
        weight, bias = self._given[scores.input[1]], self._given[scores.input[2]]
        if len({part.channels for part in parts}) != 1 or weight.shape[1] != sum(part.channels for part in parts):
            raise UnknownGraphError(f"{scores.name} scores {weight.shape[1]} features")
        pack = Pack()
        head = pack.add(weight), pack.add(np.append(bias, self._given[at_least.input[1]]))
        return planned(self._steps, parts, pack, head=head, classes=len(bias))

    def _value(self, name: str) -> _Value:
        if name not in self._values:
            raise UnknownGraphError(f"{name} is not calculated from the images alone")
        return self._values[name]

    def _images(self, name: str) -> list[Image]:
        """The images that a tensor consists of, made now at the latest."""
        if name in self._rectified:
            source = self._rectified[name]
            return [self._made(part, is_rectified=True) for part in self._concats.get(source, [source])]
        return [self._made(part, is_rectified=False) for part in self._concats.get(name, [name])]

    def _image(self, name: str) -> Image:
        images = self._images(name)
        if len(images) != 1:
            raise UnknownGraphError(f"{name}, of several parts, is read by what reads one")
        return images[0]

    def _made(self, name: str, *, is_rectified: bool) -> Image:
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
            value.rectified = Image(value.channels, value.height, value.width)
        if kinds != {"Relu"}:
            value.raw = Image(value.channels, value.height, value.width)
        out = value.raw or value.rectified
        assert out is not None
        # Kernels that read nothing of the sum before it are quickest first.
        terms = sorted(value.terms, key=lambda term: term.kind is not Kind.CONVOLUTION)
        terms[-1].offset = value.offset
        for term in terms:
            self._steps.append(Step(term, out, adds=term is not terms[0]))
        self._steps[-1].is_rectified = value.raw is None
        self._steps[-1].copy = value.rectified if value.raw is not None else None

    def _kinds_of_readers(self, name: str) -> Iterator[str]:
        for node in self._readers[name]:
            if node.op_type == "Concat":
                yield from self._kinds_of_readers(node.output[0])
            else:
                yield node.op_type

    def _terms(self, name: str) -> tuple[list[Term], Floats | None, _Value]:
        """A tensor as terms of a sum: its own where nobody else wants them."""
        value = self._value(name)
        if not value.is_made and len(self._readers[name]) == 1:
            return value.terms, value.offset, value
        return [Term(Kind.AFFINE, [self._image(name)])], None, value

    def _conv(self, node: onnx.NodeProto) -> None:
        attributes = attributes_of(node)
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
            term = Term(Kind.CONVOLUTION, sources, stride=strides[0], across=strides[1])
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
            term = Term(
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
        attributes = attributes_of(node)
        strides = attributes.get("strides", [1, 1])
        as_usual = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [strides[0]] * 2, "count_include_pad": 0}
        is_told = {"kernel_shape", "pads"} <= attributes.keys()
        if not is_told or any(value != as_usual.get(name) for name, value in attributes.items()):
            raise UnknownGraphError(f"{node.name} is a pooling of {attributes}")
        source = self._image(node.input[0])
        kind = Kind.MAXIMUM if node.op_type == "MaxPool" else Kind.MEAN
        term = Term(kind, [source], stride=strides[0], across=strides[0])
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
        others: list[Term] = []
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
    return node.op_type == "Conv" and attributes_of(node).get("group", 1) == 1
