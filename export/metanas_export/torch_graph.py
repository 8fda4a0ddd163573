"""The ONNX graph as a torch module again: folded, in its precision, and traceable.

    TorchGraph    ONNX model  ->  module from images to logits

``torch.export`` cannot trace a task network: it looks at the weights of its mixture. And it would
see batch norms that are folded long ago. Of the nodes that ``graph``, ``casting`` and
``quantising`` write each has a line here.
"""

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from metanas_export.errors import UnsupportedOperationError
from metanas_export.graph import INPUT_NAME, OUTPUT_NAME

_TYPES = {TensorProto.FLOAT: torch.float32, TensorProto.FLOAT16: torch.float16, TensorProto.BFLOAT16: torch.bfloat16}


class TorchGraph(nn.Module):
    """Runs the nodes of an ONNX graph; its constants are buffers.

    Raises:
        UnsupportedOperationError: a node has no translation.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        for value in model.graph.initializer:
            self.register_buffer(_key(value.name), _tensor(value))
        self._nodes = list(model.graph.node)
        self._constants = {value.name for value in model.graph.initializer}
        for node in self._nodes:
            if node.op_type not in _OPERATIONS:
                raise UnsupportedOperationError(
                    f"{node.name} is a {node.op_type}, which has no torch translation; add one to "
                    "metanas_export/torch_graph.py"
                )

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, channels, height, width)`` float32 to logits ``(batch, classes)`` float32."""
        values: dict[str, Tensor] = {INPUT_NAME: images}
        for node in self._nodes:
            inputs = [getattr(self, _key(one)) if one in self._constants else values[one] for one in node.input]
            given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
            values[node.output[0]] = _OPERATIONS[node.op_type](inputs, given)
        return values[OUTPUT_NAME]


def _key(name: str) -> str:
    return name.replace("/", "__")


def _tensor(value: TensorProto) -> Tensor:
    if value.data_type == TensorProto.BFLOAT16:
        return torch.from_numpy(numpy_helper.to_array(value).astype("float32")).to(torch.bfloat16)
    return torch.from_numpy(numpy_helper.to_array(value).copy())


def _padded(x: Tensor, given: dict[str, Any], *, value: float) -> Tensor:
    top, left, bottom, right = given.get("pads", [0, 0, 0, 0])
    return functional.pad(x, (left, right, top, bottom), value=value)


def _conv(inputs: list[Tensor], given: dict[str, Any]) -> Tensor:
    x, weight, *bias = inputs
    top, left, bottom, right = given.get("pads", [0, 0, 0, 0])
    if (top, left) == (bottom, right):
        pads: tuple[int, int] = (top, left)
    else:
        x, pads = _padded(x, given, value=0.0), (0, 0)
    return functional.conv2d(
        x,
        weight,
        bias[0] if bias else None,
        given.get("strides", [1, 1]),
        pads,
        given.get("dilations", [1, 1]),
        given.get("group", 1),
    )


def _max_pool(inputs: list[Tensor], given: dict[str, Any]) -> Tensor:
    rows, columns = given.get("pads", [0, 0])[:2]
    return functional.max_pool2d(inputs[0], given["kernel_shape"], given["strides"], (rows, columns))


def _average_pool(inputs: list[Tensor], given: dict[str, Any]) -> Tensor:
    rows, columns = given.get("pads", [0, 0])[:2]
    return functional.avg_pool2d(
        inputs[0], given["kernel_shape"], given["strides"], (rows, columns), count_include_pad=False
    )


def _length(inputs: list[Tensor], given: dict[str, Any]) -> Tensor:
    return inputs[0].square().sum(dim=1, keepdim=True).sqrt()


def _quantise(inputs: list[Tensor], given: dict[str, Any]) -> Tensor:
    x, step, _ = inputs
    return (x / step).round().clamp(-128, 127).to(torch.int8)


def _dequantise(inputs: list[Tensor], given: dict[str, Any]) -> Tensor:
    x, step, _ = inputs
    if step.ndim:
        step = step.view(-1, *[1] * (x.ndim - 1))
    return x.to(torch.float32) * step


_OPERATIONS: dict[str, Callable[[list[Tensor], dict[str, Any]], Tensor]] = {
    "Add": lambda inputs, given: inputs[0] + inputs[1],
    "AveragePool": _average_pool,
    "Cast": lambda inputs, given: inputs[0].to(_TYPES[given["to"]]),
    "Concat": lambda inputs, given: torch.cat(inputs, dim=given["axis"]),
    "Conv": _conv,
    "DequantizeLinear": _dequantise,
    "Div": lambda inputs, given: inputs[0] / inputs[1],
    "Flatten": lambda inputs, given: inputs[0].flatten(1),
    "Gemm": lambda inputs, given: functional.linear(*inputs),
    "GlobalAveragePool": lambda inputs, given: inputs[0].mean(dim=(2, 3), keepdim=True),
    "Max": lambda inputs, given: torch.maximum(inputs[0], inputs[1]),
    "MaxPool": _max_pool,
    "Mul": lambda inputs, given: inputs[0] * inputs[1],
    "QuantizeLinear": _quantise,
    "ReduceL2": _length,
    "Relu": lambda inputs, given: functional.relu(inputs[0]),
}
