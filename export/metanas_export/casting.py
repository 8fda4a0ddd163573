"""Float16 and bfloat16, written into the graph: Casts where a tensor changes its type.

    narrow       float32 graph, kind, units to keep  ->  the graph with 16-bit constants and nodes
    emulate      such a graph                        ->  a float32 graph that rounds as it does
    too_large    float32 graph, kind                 ->  units with a constant that the kind cannot hold
    units        float32 graph                       ->  names of the parts that are narrowed or kept as one

A unit is the stem, an input of a cell, an edge or a node's sum. Input, output and the head stay
float32: float16 squares a feature of 300 to infinity, and the head is small.

``emulate`` rounds every result of a 16-bit node to 16 bits and calculates in float32: what a
device does that sums in float32. With it, bfloat16 can be checked on a CPU whose runtime has no
kernels for it.
"""

from collections.abc import Iterable
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

Kind = Literal["fp16", "bf16"]

_TYPES: dict[Kind, tuple[int, Any]] = {
    "fp16": (TensorProto.FLOAT16, np.float16),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
_NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_LARGEST: dict[Kind, float] = {"fp16": 65504.0, "bf16": 3.3895313892515355e38}
# Convolution and pooling know bfloat16 from this pair on.
_BFLOAT16_OPSET = 22
_BFLOAT16_IR_VERSION = 10
HEAD = "head"


def unit_of(node_name: str) -> str:
    """The unit of a node: ``stem/conv/relu`` is of ``stem``, ``cell0/node1_from0_conv_3x3/pointwise`` of its edge."""
    parts = node_name.split("/")
    return "/".join(parts[:2]) if parts[0].startswith("cell") else parts[0]


def units(model: onnx.ModelProto) -> tuple[str, ...]:
    """All units but the head, in the order of the graph."""
    return tuple(dict.fromkeys(unit for node in model.graph.node if (unit := unit_of(node.name)) != HEAD))


def too_large(model: onnx.ModelProto, kind: Kind) -> frozenset[str]:
    """Units with a constant that the kind cannot hold."""
    limit = _LARGEST[kind]
    beyond = {value.name for value in _floats(model) if not np.abs(numpy_helper.to_array(value)).max() <= limit}
    return frozenset(unit_of(node.name) for node in model.graph.node if beyond.intersection(node.input)) - {HEAD}


def narrow(model: onnx.ModelProto, kind: Kind, *, keep: Iterable[str] = ()) -> onnx.ModelProto:
    """Cast a graph.

    Args:
        model: float32, as ``graph.build_graph`` makes it.
        keep: units that stay float32; the head does in any case.

    Returns:
        A new model with input and output of float32.
    """
    narrow_type, dtype = _TYPES[kind]
    kept = {HEAD, *keep}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    constants = {value.name: value for value in _floats(result)}
    types: dict[str, int] = {one.name: TensorProto.FLOAT for one in model.graph.input}
    nodes: list[NodeProto] = []

    def typed(name: str, wanted: int) -> str:
        if name in constants:
            if wanted == narrow_type:
                constants[name].CopyFrom(numpy_helper.from_array(_array(constants[name]).astype(dtype), name))
            return name
        if name not in types or types[name] == wanted:
            return name
        cast = f"{name}/{'float32' if wanted == TensorProto.FLOAT else kind}"
        if cast not in types:
            nodes.append(helper.make_node("Cast", [name], [cast], name=cast, to=wanted))
            types[cast] = wanted
        return cast

    for original in model.graph.node:
        node = NodeProto()
        node.CopyFrom(original)
        wanted = TensorProto.FLOAT if unit_of(node.name) in kept else narrow_type
        node.input[:] = [typed(name, wanted) for name in original.input]
        types.update(dict.fromkeys(node.output, wanted))
        nodes.append(node)
    result.graph.ClearField("node")
    result.graph.node.extend(nodes)
    if kind == "bf16":
        result.opset_import[0].version = _BFLOAT16_OPSET
        result.ir_version = _BFLOAT16_IR_VERSION
    return result


def emulate(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph that gives what a narrowed one gives, rounding for rounding, sums in float32."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    narrowed: dict[str, int] = {}
    for value in result.graph.initializer:
        if value.data_type in _NARROW:
            narrowed[value.name] = value.data_type
            value.CopyFrom(numpy_helper.from_array(_array(value).astype(np.float32), value.name))
    nodes: list[NodeProto] = []
    for original in model.graph.node:
        node = NodeProto()
        node.CopyFrom(original)
        name = node.output[0]
        target = helper.get_node_attr_value(node, "to") if node.op_type == "Cast" else None
        if target == TensorProto.FLOAT and node.input[0] in narrowed:
            nodes.append(helper.make_node("Identity", node.input, [name], name=node.name))
            continue
        # Only what `narrow` has put there: a preprocessing in front casts too.
        kind = target if target in _NARROW else next((narrowed[one] for one in node.input if one in narrowed), None)
        if kind is None:
            nodes.append(node)
            continue
        narrowed[name] = kind
        if target not in _NARROW:
            node.output[0] = f"{name}/exact"
            nodes.append(node)
        rounded = helper.make_node(
            "Cast", [node.input[0] if target in _NARROW else f"{name}/exact"], [f"{name}/rounded"], to=kind
        )
        back = helper.make_node("Cast", [f"{name}/rounded"], [name], to=TensorProto.FLOAT)
        nodes += [rounded, back]
    result.graph.ClearField("node")
    result.graph.node.extend(nodes)
    return result


def _floats(model: onnx.ModelProto) -> list[TensorProto]:
    return [value for value in model.graph.initializer if value.data_type == TensorProto.FLOAT]


def _array(tensor: TensorProto) -> Any:
    return numpy_helper.to_array(tensor)
