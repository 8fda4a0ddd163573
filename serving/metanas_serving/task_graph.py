"""What those share that read a task's ONNX graph, node by node: ``compiling`` and ``widening``.

UnknownGraphError   a graph holds what there is no rule for
rule_for            the rule for a node's kind
attributes_of       a node's attributes
constants_of        weights and other numbers of a graph
image_size          of a graph's input
"""

from collections.abc import Callable, Mapping
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper


class UnknownGraphError(Exception):
    """A graph holds what there is no rule for here; something else may run it."""


def rule_for(
    node: onnx.NodeProto, rules: Mapping[str, Callable[[onnx.NodeProto], None]]
) -> Callable[[onnx.NodeProto], None]:
    """The rule for a node's kind.

    Raises:
        UnknownGraphError: there is none.
    """
    rule = rules.get(node.op_type)
    if rule is None:
        raise UnknownGraphError(f"{node.name} is a {node.op_type}")
    return rule


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes, by name; what it leaves to ONNX is not there."""
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def constants_of(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """The numbers that a graph holds, by name."""
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def image_size(model: onnx.ModelProto) -> tuple[int, int, int]:
    """Channels, height and width that a graph takes."""
    channels, height, width = (size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim[1:])
    return channels, height, width
