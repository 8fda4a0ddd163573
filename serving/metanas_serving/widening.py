"""A task's ONNX graph, in the shape that a processor's vector registers like.

    widened   the graph of a task  ->  Widened: its body with padded channels, and its head apart

ONNX Runtime keeps channels together in blocks of a register's width, but leaves that layout at every
tensor whose channels do not fill whole blocks, and at every multiplication by a number a channel. So here

* channels are padded to whole blocks; what is padded is zero everywhere, and no weight reads it;
* ``gain * x + offset`` after a pooling or a skip becomes one depthwise 1x1 convolution, into which the
  runtime also puts the sum that follows;
* the head is taken off: it scores the features of one image at a time, so that an image's scores cannot
  depend on the others that are computed with it.

The function stays the same, to rounding. Knows ONNX and the graphs of ``metanas_export.graph``; no runtime.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

BLOCK_CHANNELS = 16
"""float32 values of the widest register (AVX-512); a multiple of the others."""

FEATURES = "features"
"""The body's output, float32 ``(batch, padded channels, 1, 1)``."""

_HEAD = ("Flatten", "ReduceL2", "Max", "Div", "Gemm")

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


class UnknownGraphError(Exception):
    """The graph holds what this module has no rule for; it can be run as it is."""


@dataclass(frozen=True, slots=True)
class Head:
    """The linear layer on features of unit length."""

    weight: Floats
    """``(classes, padded channels)``."""
    bias: Floats
    """``(classes,)``."""
    epsilon: float
    """The least length that features are divided by."""

    def logits(self, features: Floats) -> Floats:
        """Score features ``(batch, padded channels)``, each row and each class by itself: ``(batch, classes)``."""
        lengths = np.sqrt((features * features).sum(axis=1, keepdims=True))
        units = features / np.maximum(lengths, np.float32(self.epsilon))
        # Not a product of matrices: that may round a class differently by its place among the others.
        scores: Floats = (units[:, np.newaxis] * self.weight).sum(axis=2)
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
            [helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, ["batch", None, 1, 1])],
            [numpy_helper.from_array(value, name) for name, value in walk.constants.items()],
        ),
        opset_imports=list(model.opset_import),
        ir_version=model.ir_version,
    )
    return Widened(body, walk.head(nodes[-len(_HEAD) :]))


class _Walk:
    """Goes through a graph from its input, and knows of each tensor which channels are real."""

    def __init__(self, model: onnx.ModelProto, image: str, *, channels: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Floats] = {}
        self._given = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
        self._masks: dict[str, Mask] = {image: np.ones(channels, dtype=np.bool_)}
        self._gained: dict[str, onnx.NodeProto] = {}

    def take(self, node: onnx.NodeProto) -> None:
        """Add what becomes of a node."""
        rule: Callable[[onnx.NodeProto], None] | None = {
            "Conv": self._conv,
            "Mul": self._mul,
            "Add": self._add,
            "Concat": self._concat,
            "Relu": self._as_it_is,
            "MaxPool": self._as_it_is,
            "AveragePool": self._as_it_is,
            "GlobalAveragePool": self._as_it_is,
        }.get(node.op_type)
        if rule is None:
            raise UnknownGraphError(f"{node.name} is a {node.op_type}")
        rule(node)

    def head(self, nodes: Sequence[onnx.NodeProto]) -> Head:
        """The head that ends the graph."""
        flatten, _, at_least, _, scores = nodes
        mask = self._mask(flatten.input[0])
        given = self._given[scores.input[1]]
        weight = np.zeros((len(given), len(mask)), dtype=np.float32)
        weight[:, mask] = given
        return Head(weight, self._given[scores.input[2]].copy(), self._given[at_least.input[1]].item())

    def _mask(self, name: str) -> Mask:
        if name not in self._masks:
            raise UnknownGraphError(f"{name} is not calculated from the images alone")
        return self._masks[name]

    def _as_it_is(self, node: onnx.NodeProto) -> None:
        self._masks[node.output[0]] = self._mask(node.input[0])
        self.nodes.append(node)

    def _concat(self, node: onnx.NodeProto) -> None:
        self._masks[node.output[0]] = np.concatenate([self._mask(name) for name in node.input])
        self.nodes.append(node)

    def _conv(self, node: onnx.NodeProto) -> None:
        attributes: dict[str, Any] = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        given, source = self._given[node.input[1]], self._mask(node.input[0])
        groups = attributes.get("group", 1)
        if groups == 1:
            target = _padded(len(given))
            weight = np.zeros((len(target), len(source), *given.shape[2:]), dtype=np.float32)
            weight[np.ix_(target, source)] = given
        elif groups == len(given) == np.count_nonzero(source) and given.shape[1] == 1:
            target = source
            weight = _spread(given, target)
            attributes["group"] = len(target)
        else:
            raise UnknownGraphError(f"{node.name} has {groups} groups")
        self._add_conv(node, weight, target, bias=self._given[node.input[2]] if len(node.input) > 2 else None)
        self.nodes.append(helper.make_node("Conv", list(node.input), list(node.output), name=node.name, **attributes))

    def _mul(self, node: onnx.NodeProto) -> None:
        """Half of ``gain * x + offset``: kept until its other half comes."""
        if node.input[1] not in self._given:
            raise UnknownGraphError(f"{node.name} multiplies two tensors")
        self._gained[node.output[0]] = node

    def _add(self, node: onnx.NodeProto) -> None:
        gain = self._gained.pop(node.input[0], None)
        if gain is None or node.input[1] not in self._given:
            first, second = (self._mask(name) for name in node.input)
            if not np.array_equal(first, second):
                raise UnknownGraphError(f"{node.name} adds channels of different places")
            self._as_it_is(node)
            return
        target = self._mask(gain.input[0])
        conv = helper.make_node(
            "Conv",
            [gain.input[0], gain.input[1], node.input[1]],
            list(node.output),
            name=node.name,
            kernel_shape=[1, 1],
            group=len(target),
        )
        weight = _spread(self._given[gain.input[1]].reshape(-1, 1, 1, 1), target)
        self._add_conv(conv, weight, target, bias=self._given[node.input[1]].reshape(-1))
        self.nodes.append(conv)

    def _add_conv(self, node: onnx.NodeProto, weight: Floats, target: Mask, *, bias: Floats | None) -> None:
        self.constants[node.input[1]] = weight
        if bias is not None:
            self.constants[node.input[2]] = _spread(bias, target)
        self._masks[node.output[0]] = target


def _padded(channels: int) -> Mask:
    """So many real channels, and then as many others as fill the last block."""
    mask = np.zeros(-(-channels // BLOCK_CHANNELS) * BLOCK_CHANNELS, dtype=np.bool_)
    mask[:channels] = True
    return mask


def _spread(values: Floats, mask: Mask) -> Floats:
    """Values of the real channels at their places, zeros between them."""
    spread = np.zeros((len(mask), *values.shape[1:]), dtype=np.float32)
    spread[mask] = values
    return spread
