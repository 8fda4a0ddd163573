"""A task network as an ONNX graph, built node by node: no tracing, no torch exporter.

    build_graph    task model  ->  onnx.ModelProto, float32, without metadata

    images   float32 (batch, channels, height, width), as ``preprocessing.scale`` makes them
    logits   float32 (batch, classes); ``batch`` is free

Batch norm and the constant weights of the mixture are folded into the convolutions; after a
pooling or a skip they are one Mul and one Add. What several edges share is there once: the
ReLU of an input, a pooling. What no output needs is not there at all. A node is called after
cell, node, source and operation: ``cell0/node1_from0_conv_3x3/pointwise``; in a network of plain
blocks after its block: ``block0/conv``.

Tracing the same network takes seconds; building it, milliseconds, so that every adapted task
can have a graph of its own. ``model`` makes a file of the graph.

Knows torch modules and ONNX; no file system, no runtime, no TensorRT.
"""

from typing import cast

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import nn

import metanas
from metanas.conv_net import ConvNet
from metanas.head import Head
from metanas.model import TaskModel
from metanas.network import Cell, Network, row_key
from metanas.operations import (
    BatchNorm,
    Factorized5x5,
    FactorizedReduction,
    Pooling,
    Projection,
    SeparableConv,
    Skip,
)
from metanas.space import CELL_TYPES, Genotype
from metanas_export.builder import GraphBuilder
from metanas_export.errors import UnsupportedOperationError
from metanas_export.folding import affine, fold, halving, to_array

INPUT_NAME = "images"
OUTPUT_NAME = "logits"

# The oldest pair that holds every node here, so that runtimes of the last years read it:
# ONNX 1.13, TensorRT 8.6, ONNX Runtime 1.14.
OPSET = 18
IR_VERSION = 8

NORMALISE_EPSILON = 1e-12
"""What ``torch.nn.functional.normalize`` uses."""


def build_graph(task: TaskModel) -> onnx.ModelProto:
    """Build the graph of a task network.

    Args:
        task: its batch norm frozen, as ``learner.adapt`` and ``artifact.load_task`` give it.

    Raises:
        ValueError: the network is in training mode.
        UnsupportedOperationError: the network holds an operation without a translation.
    """
    if task.network.training:
        raise ValueError("the task network is in training mode; call freeze_statistics(support images) first")
    graph = GraphBuilder()
    network = task.network.network
    if isinstance(network, ConvNet):
        features = _blocks(graph, network, images=INPUT_NAME)
    else:
        features = _cells(graph, network, genotype=task.genotype, images=INPUT_NAME)
    _head(graph, task.network.head, x=features)
    return _model(graph, task)


def _blocks(graph: GraphBuilder, network: ConvNet, *, images: str) -> str:
    x = images
    for index, (conv, norm) in enumerate(zip(network.convs, network.norms, strict=True)):
        conv, norm = cast(nn.Conv2d, conv), cast(BatchNorm, norm)
        weight, bias = fold(conv, norm)
        x = graph.relu(graph.conv(f"block{index}/conv", x, weight=weight, bias=bias, like=conv))
        x = graph.node("MaxPool", f"block{index}/pool", inputs=[x], kernel_shape=[2, 2], strides=[2, 2])
    return x


def _cells(graph: GraphBuilder, network: Network, *, genotype: Genotype, images: str) -> str:
    # The weights of the rows of each cell type, in the order of the cells' plans.
    weights = {
        cell_type: [edge.weight for node in genotype.cell(cell_type) for edge in node] for cell_type in CELL_TYPES
    }
    weight, bias = fold(network.stem, network.stem_norm)
    stem = graph.conv("stem/conv", images, weight=weight, bias=bias, like=network.stem)
    first, second = stem, stem
    for index, (cell_type, cell) in enumerate(zip(network.space.cell_types, network.cells, strict=True)):
        output = _cell(graph, cast(Cell, cell), name=f"cell{index}", weights=weights[cell_type], inputs=(first, second))
        first, second = second, output
    return graph.node("GlobalAveragePool", "head/pool", inputs=[second])


def _cell(graph: GraphBuilder, cell: Cell, *, name: str, weights: list[float], inputs: tuple[str, str]) -> str:
    values = [
        _operation(graph, cell.first_input, name=f"{name}/input0", x=inputs[0], weight=1.0),
        _operation(graph, cell.second_input, name=f"{name}/input1", x=inputs[1], weight=1.0),
    ]
    shared: dict[str, str] = {}
    for node in range(cell.nodes):
        total: str | None = None
        terms = 0
        for index, (row, weight) in enumerate(zip(cell.plan, weights, strict=True)):
            if row.node != node:
                continue
            operation, x = cell.operation(index), values[row.source]
            row_name = f"{name}/{row_key(row)}"
            if isinstance(operation, Pooling | Skip):
                # Not the key of the cell: affine norms are apart, the pooling before them is one all the same.
                key = f"from{row.source}_{row.operation}"
                if key not in shared:
                    shared[key] = _pool(graph, operation, name=f"{name}/{key}", x=x)
                gain, offset = affine(operation.norm, weight)
                term = graph.scaled(row_name, shared[key], gain=gain, offset=offset)
            else:
                term = _operation(graph, operation, name=row_name, x=x, weight=weight)
            terms += 1
            total = term if total is None else graph.node("Add", f"{name}/node{node}/sum{terms}", inputs=[total, term])
        assert total is not None, "Genotype refuses a node without inputs"
        values.append(total)
    outputs = values[len(inputs) :]
    return graph.node("Concat", f"{name}/output", inputs=outputs, axis=1) if len(outputs) > 1 else outputs[0]


def _pool(graph: GraphBuilder, operation: Pooling | Skip, *, name: str, x: str) -> str:
    if isinstance(operation, Skip):
        return x
    window = {"kernel_shape": [3, 3], "strides": [operation.stride] * 2, "pads": [1] * 4}
    if operation.kind == "max":
        return graph.node("MaxPool", name, inputs=[x], **window)
    return graph.node("AveragePool", name, inputs=[x], count_include_pad=0, **window)


def _operation(graph: GraphBuilder, operation: nn.Module, *, name: str, x: str, weight: float) -> str:
    """Translate an operation that has weights; every one of them begins with a ReLU."""
    x = graph.relu(x)
    match operation:
        case Projection():
            kernel, bias = fold(operation.conv, operation.norm, weight=weight)
            return graph.conv(f"{name}/projection", x, weight=kernel, bias=bias, like=operation.conv)
        case FactorizedReduction():
            kernel, bias = halving(operation, weight)
            return graph.conv(f"{name}/reduction", x, weight=kernel, bias=bias, strides=[2, 2], pads=[0, 0, 1, 1])
        case Factorized5x5():
            x = graph.conv(f"{name}/row", x, weight=to_array(operation.row.weight), like=operation.row)
            kernel, bias = fold(operation.column, operation.norm, weight=weight)
            return graph.conv(f"{name}/column", x, weight=kernel, bias=bias, like=operation.column)
        case SeparableConv():
            return _separable(graph, operation, name=name, x=x, weight=weight)
    raise UnsupportedOperationError(
        f"{name} is a {type(operation).__name__}, which has no ONNX translation; add one to metanas_export/graph.py"
    )


def _separable(graph: GraphBuilder, operation: SeparableConv, *, name: str, x: str, weight: float) -> str:
    rounds = len(operation.norms)
    for index in range(rounds):
        depthwise = cast(nn.Conv2d, operation.depthwise[index])
        pointwise, norm = cast(nn.Conv2d, operation.pointwise[index]), cast(BatchNorm, operation.norms[index])
        number = str(index + 1) if rounds > 1 else ""
        if index > 0:
            x = graph.relu(x)
        x = graph.conv(f"{name}/depthwise{number}", x, weight=to_array(depthwise.weight), like=depthwise)
        kernel, bias = fold(pointwise, norm, weight=weight if index == rounds - 1 else 1.0)
        x = graph.conv(f"{name}/pointwise{number}", x, weight=kernel, bias=bias, like=pointwise)
    return x


def _head(graph: GraphBuilder, head: Head, *, x: str) -> None:
    """Bring to unit length, score."""
    x = graph.node("Flatten", "head/flatten", inputs=[x], axis=1)
    length = graph.node("ReduceL2", "head/length", inputs=[x, graph.whole_numbers("head/axes", [1])], keepdims=1)
    epsilon = graph.constant("head/epsilon", np.array(NORMALISE_EPSILON))
    length = graph.node("Max", "head/at_least_epsilon", inputs=[length, epsilon])
    x = graph.node("Div", "head/unit_length", inputs=[x, length])
    weight = graph.constant("head/weight", to_array(head.weight))
    bias = graph.constant("head/bias", to_array(head.bias))
    graph.nodes.append(helper.make_node("Gemm", [x, weight, bias], [OUTPUT_NAME], name="head/scores", transB=1))


def _model(graph: GraphBuilder, task: TaskModel) -> onnx.ModelProto:
    nodes, needed = _needed(graph.nodes)
    initialisers = [value for name, value in graph.initialisers.items() if name in needed]
    preprocessing = task.preprocessing
    shape: list[str | int | None] = ["batch", preprocessing.channels, preprocessing.height, preprocessing.width]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "metanas_task",
            [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["batch", len(task.class_names)])],
            initialisers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="metanas-edge",
        producer_version=metanas.__version__,
    )


def _needed(nodes: list[onnx.NodeProto]) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that the output needs, and the names of all tensors that these read.

    A genotype may leave an input of its cell unread; then its projection, and perhaps a whole
    cell, does nothing.
    """
    kept, needed = [], {OUTPUT_NAME}
    for node in reversed(nodes):
        if node.output[0] in needed:
            kept.append(node)
            needed.update(node.input)
    return kept[::-1], needed
