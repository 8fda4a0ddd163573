"""A task's ONNX graph, in the shape that a processor's vector registers like.

    widened   the graph of a task  ->  Widened: its body with padded channels, and its head apart

ONNX Runtime keeps channels together in blocks of a register's width, but leaves that layout at every
tensor whose channels do not fill whole blocks, and at every multiplication by a number a channel. So here

* channels are padded to whole blocks (``blocks``); what is padded is zero everywhere, and no weight reads it;
* a sum with ``gain * x + offset``, of a pooling or a skip, is kept divided by ``gain``: then ``x`` needs no pass of its
  own, the convolution that it is added to has its weights divided, and who reads the sum has them multiplied. Gains
  are positive, so ReLU and poolings may come between. The runtime makes the convolution and the sum one kernel;
* where that cannot be, ``gain * x + offset`` becomes a depthwise 1x1 convolution;
* a convolution whose channels read one pixel of the window each, as a factorized reduction's halves do, picks those
  pixels first and is 1x1 then;
* the ReLU of a concatenation is that of its parts, which kernels before it do on their way, or which is there already;
* the head is taken off: it scores the features of one image at a time, so that an image's scores cannot
  depend on the others that are computed with it.

The function stays the same, to rounding. Knows ONNX and the graphs of ``metanas_export.graph``; no runtime.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from metanas_serving.blocks import Floats, Mask, Pixel, padded, pixels_of_halves, spread
from metanas_serving.task_graph import UnknownGraphError, attributes_of, constants_of, rule_for

FEATURES = "features"
"""The body's output, float32 ``(batch, padded channels, height, width)``; of a network of cells 1 x 1."""

# Sums are divided by gains between these; others would leave float32 too little room.
_LEAST_SCALE, _MOST_SCALE = 1e-4, 1e4

_HEAD = ("Flatten", "ReduceL2", "Max", "Div", "Gemm")


@dataclass(frozen=True, slots=True)
class Head:
    """The linear layer on features of unit length."""

    weight: Floats
    """``(classes, features)``: those of a channel, padded ones too, follow one another."""
    bias: Floats
    """``(classes,)``."""
    epsilon: float
    """The least length that features are divided by."""
    scale: Floats
    """``(features,)``, positive: what the body's features are to be multiplied by."""

    def logits(self, features: Floats) -> Floats:
        """Score features ``(batch, features)``, each row and each class by itself: ``(batch, classes)``."""
        features = features * self.scale
        lengths = np.sqrt(np.vecdot(features, features))
        # Not a product of matrices: that may round a class differently by its place among the others.
        scores: Floats = np.vecdot(features[:, np.newaxis], self.weight)
        scores /= np.maximum(lengths, np.float32(self.epsilon))[:, np.newaxis]
        scores += self.bias
        return scores


@dataclass(frozen=True, slots=True)
class Widened:
    """A task's network in two parts."""

    body: onnx.ModelProto
    head: Head


def widened(model: onnx.ModelProto) -> Widened:
    """Pad the channels of a task's graph and take its head off.

    Args:
        model: as ``metanas_export.build_onnx`` makes it in float32.

    Raises:
        UnknownGraphError: it holds a node that is not of that graph.
    """
    nodes = list(model.graph.node)
    if tuple(node.op_type for node in nodes[-len(_HEAD) :]) != _HEAD:
        raise UnknownGraphError(f"the graph ends with {[node.op_type for node in nodes[-len(_HEAD) :]]}")
    image = model.graph.input[0]
    walk = _Walk(model, image.name, channels=image.type.tensor_type.shape.dim[1].dim_value)
    for node in nodes[: -len(_HEAD)]:
        walk.take(node)
    body = helper.make_model(
        helper.make_graph(
            [*walk.nodes, helper.make_node("Identity", [nodes[-len(_HEAD)].input[0]], [FEATURES], name=FEATURES)],
            "metanas_task_body",
            [image],
            [helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, ["batch", None, None, None])],
            [numpy_helper.from_array(value, name) for name, value in walk.constants.items()],
        ),
        opset_imports=list(model.opset_import),
        ir_version=model.ir_version,
    )
    return Widened(body, walk.head(nodes[-len(_HEAD) :]))


class _Walk:
    """Goes through a graph from its input, and knows of each tensor how it is kept."""

    def __init__(self, model: onnx.ModelProto, image: str, *, channels: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Floats] = {}
        self._given = constants_of(model)
        self._readers: defaultdict[str, list[str]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self._readers[name].append(node.op_type)
        self._kept = {image: _Kept(np.ones(channels, dtype=np.bool_), np.ones(channels, dtype=np.float32))}
        self._gained: dict[str, onnx.NodeProto] = {}
        self._affines: dict[str, _Affine] = {}
        self._convs: dict[str, onnx.NodeProto] = {}
        self._relus: dict[str, str] = {}
        self._concats: dict[str, onnx.NodeProto] = {}

    def take(self, node: onnx.NodeProto) -> None:
        """Add what becomes of a node."""
        rules = {
            "Conv": self._conv,
            "Mul": self._mul,
            "Add": self._add,
            "Concat": self._concat,
            "Relu": self._relu,
            "MaxPool": self._as_it_is,
            "AveragePool": self._as_it_is,
            "GlobalAveragePool": self._as_it_is,
        }
        rule_for(node, rules)(node)

    def head(self, nodes: Sequence[onnx.NodeProto]) -> Head:
        """The head that ends the graph."""
        flatten, _, at_least, _, scores = nodes
        kept = self._read(flatten.input[0])
        given = self._given[scores.input[1]]
        # A channel may end in several values.
        values, rest = divmod(given.shape[1], np.count_nonzero(kept.mask))
        if rest:
            raise UnknownGraphError(f"{scores.name} scores {given.shape[1]} features of {kept.mask.sum()} channels")
        mask, scale = np.repeat(kept.mask, values), np.repeat(kept.scale, values)
        weight = np.zeros((len(given), len(mask)), dtype=np.float32)
        weight[:, mask] = given
        epsilon = self._given[at_least.input[1]].item()
        return Head(weight, self._given[scores.input[2]].copy(), epsilon, scale)

    def _read(self, name: str) -> "_Kept":
        """How a tensor is kept that is to be there now."""
        if name in self._affines:
            self._add_affine(self._affines.pop(name), output=name)
        if name not in self._kept:
            raise UnknownGraphError(f"{name} is not calculated from the images alone")
        return self._kept[name]

    def _as_it_is(self, node: onnx.NodeProto) -> None:
        self._kept[node.output[0]] = self._read(node.input[0])
        self.nodes.append(node)

    def _relu(self, node: onnx.NodeProto) -> None:
        concat = self._concats.pop(node.input[0], None)
        if concat is None:
            self._relus[node.input[0]] = node.output[0]
            self._as_it_is(node)
            return
        for part in concat.input:
            if part not in self._relus:
                self._relu(helper.make_node("Relu", [part], [f"{part}/rectified"], name=f"{part}/rectified"))
        parts = [self._relus[part] for part in concat.input]
        self._concat(helper.make_node("Concat", parts, list(node.output), name=concat.name, axis=1))

    def _concat(self, node: onnx.NodeProto) -> None:
        if self._readers[node.output[0]] == ["Relu"]:
            self._concats[node.output[0]] = node
            return
        parts = [self._read(name) for name in node.input]
        self._kept[node.output[0]] = _Kept(
            np.concatenate([part.mask for part in parts]), np.concatenate([part.scale for part in parts])
        )
        self.nodes.append(node)

    def _conv(self, node: onnx.NodeProto) -> None:
        attributes = attributes_of(node)
        given, source = self._given[node.input[1]], self._read(node.input[0])
        groups = attributes.get("group", 1)
        if groups == 1:
            target = padded(len(given))
            pixels = pixels_of_halves(given)
            # What is added stays one convolution, which the runtime makes one kernel with the sum.
            if pixels and not self._is_added(node.output[0]) and "dilations" not in attributes:
                self._pick(node, attributes, pixels)
                return
            weight = np.zeros((len(target), len(source.mask), *given.shape[2:]), dtype=np.float32)
            weight[np.ix_(target, source.mask)] = given
            weight *= source.scale[:, np.newaxis, np.newaxis]
        elif groups == len(given) == np.count_nonzero(source.mask) and given.shape[1] == 1:
            target = source.mask
            weight = spread(given, target) * source.scale[:, np.newaxis, np.newaxis, np.newaxis]
            attributes["group"] = len(target)
        else:
            raise UnknownGraphError(f"{node.name} has {groups} groups")
        bias = spread(self._given[node.input[2]], target) if len(node.input) > 2 else None
        conv = helper.make_node("Conv", list(node.input), list(node.output), name=node.name, **attributes)
        self._add_conv(conv, target, weight=weight, bias=bias)

    def _pick(self, node: onnx.NodeProto, attributes: dict[str, Any], pixels: list[Pixel]) -> None:
        """A convolution of halves that read one pixel each: picked first, where it is not what a stride picks."""
        given, parts = self._given[node.input[1]], list[str]()
        for row, column, channels in pixels:
            name, source = f"{node.name}/pixel{row}{column}", node.input[0]
            strides = {"strides": attributes.get("strides", [1, 1])}
            if row or column or any(attributes.get("pads", [])[:2]):
                window = np.zeros((given.shape[1], 1, *given.shape[2:]), dtype=np.float32)
                window[:, :, row, column] = 1
                self._given[f"{name}/window"] = window
                depthwise = {**attributes, "name": f"{name}/pick", "group": len(window)}
                self._conv(helper.make_node("Conv", [source, f"{name}/window"], [f"{name}/picked"], **depthwise))
                source, strides = f"{name}/picked", {}
            inputs = [source, f"{name}/weight", f"{name}/bias"][: len(node.input)]
            self._given[f"{name}/weight"] = given[channels, :, row : row + 1, column : column + 1]
            if len(inputs) > 2:
                self._given[f"{name}/bias"] = self._given[node.input[2]][channels]
            self._conv(helper.make_node("Conv", inputs, [name], name=name, kernel_shape=[1, 1], **strides))
            parts.append(name)
        self._concat(helper.make_node("Concat", parts, list(node.output), name=node.name, axis=1))

    def _mul(self, node: onnx.NodeProto) -> None:
        """Half of ``gain * x + offset``: kept until its other half comes."""
        if node.input[1] not in self._given:
            raise UnknownGraphError(f"{node.name} multiplies two tensors")
        self._gained[node.output[0]] = node

    def _add(self, node: onnx.NodeProto) -> None:
        gained = self._gained.pop(node.input[0], None)
        if gained is None or node.input[1] not in self._given:
            self._sum(node)
            return
        kept = self._read(gained.input[0])
        gain, offset = (spread(self._given[name].reshape(-1), kept.mask) for name in (gained.input[1], node.input[1]))
        self._affines[node.output[0]] = _Affine(node.name, gained.input[0], gain * kept.scale, offset)

    def _sum(self, node: onnx.NodeProto) -> None:
        """Two tensors, kept by one scale: that of the first, or of what a gain is spared by."""
        first, second = node.input
        mask = self._mask(first)
        if not np.array_equal(mask, self._mask(second)):
            raise UnknownGraphError(f"{node.name} adds channels of different places")
        for name, other in ((second, first), (first, second)):
            affine = self._affines.get(name)
            if affine is None or not _is_scale(affine.gain[mask]):
                continue
            self._read(other)
            if self._is_free(other):
                scale = np.where(mask, affine.gain, np.float32(1))
                self._rescale(other, scale, offset=affine.offset)
                self._add_sum(node, affine.source, other, _Kept(mask, scale))
                return
        kept, other_kept = self._read(first), self._read(second)
        if not np.array_equal(kept.scale, other_kept.scale):
            if not self._is_free(second):
                raise UnknownGraphError(f"{node.name} adds tensors of different scales")
            self._rescale(second, kept.scale)
        self._add_sum(node, first, second, kept)

    def _mask(self, name: str) -> Mask:
        affine = self._affines.get(name)
        return self._read(name).mask if affine is None else self._kept[affine.source].mask

    def _is_free(self, name: str) -> bool:
        """Whether a convolution gives a tensor, and only the sum at hand reads it."""
        return name in self._convs and self._is_added(name)

    def _is_added(self, name: str) -> bool:
        """Whether only a sum reads a tensor."""
        return self._readers[name] == ["Add"]

    def _rescale(self, name: str, scale: Floats, *, offset: Floats | None = None) -> None:
        """Have a convolution give its result, and an offset, divided by a scale."""
        conv = self._convs[name]
        self.constants[conv.input[1]] = self.constants[conv.input[1]] / scale[:, np.newaxis, np.newaxis, np.newaxis]
        if offset is not None and len(conv.input) == 2:
            conv.input.append(f"{conv.name}/offset")
            self.constants[conv.input[2]] = np.zeros_like(offset)
        if len(conv.input) > 2:
            bias = self.constants[conv.input[2]]
            self.constants[conv.input[2]] = (bias if offset is None else bias + offset) / scale

    def _add_sum(self, node: onnx.NodeProto, first: str, second: str, kept: "_Kept") -> None:
        self._kept[node.output[0]] = kept
        self.nodes.append(helper.make_node("Add", [first, second], list(node.output), name=node.name))

    def _add_affine(self, affine: "_Affine", *, output: str) -> None:
        """Add ``gain * x + offset`` as a convolution."""
        conv = helper.make_node(
            "Conv",
            [affine.source, f"{affine.name}/gain", f"{affine.name}/offset"],
            [output],
            name=affine.name,
            kernel_shape=[1, 1],
            group=len(affine.gain),
        )
        weight = affine.gain.reshape(-1, 1, 1, 1)
        self._add_conv(conv, self._kept[affine.source].mask, weight=weight, bias=affine.offset)

    def _add_conv(self, conv: onnx.NodeProto, target: Mask, *, weight: Floats, bias: Floats | None) -> None:
        self.constants[conv.input[1]] = weight
        if bias is not None:
            self.constants[conv.input[2]] = bias
        self._kept[conv.output[0]] = _Kept(target, np.ones(len(target), dtype=np.float32))
        self._convs[conv.output[0]] = conv
        self.nodes.append(conv)


@dataclass(frozen=True, slots=True)
class _Kept:
    """How the channels of a tensor are kept."""

    mask: Mask
    """Which are real; the others are zero."""
    scale: Floats
    """Positive: a value is that of the task's own graph divided by it."""


@dataclass(frozen=True, slots=True)
class _Affine:
    """``gain * x + offset``, not yet calculated."""

    name: str
    source: str
    gain: Floats
    """Of the source as it is kept."""
    offset: Floats


def _is_scale(gains: Floats) -> bool:
    """Whether a sum may be divided by these numbers."""
    return bool(np.all((gains >= _LEAST_SCALE) & (gains <= _MOST_SCALE)))
