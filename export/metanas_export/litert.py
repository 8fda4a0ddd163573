"""LiteRT (TensorFlow Lite): the ONNX graph written as a ``.tflite`` file, operator by operator.

    convert    ONNX model       ->  content of the file

There is no converter in between, so it takes milliseconds and needs nothing but the runtime's own
package, whose schema ``flat_model`` writes. Images come in as for ONNX, ``(batch, channels,
height, width)``; one transposition makes channels the last axis, as all kernels there have it.

fp16 and int8 are what LiteRT calls so on a CPU. fp16: weights stored as float16, calculated in
float32. int8: the Q/DQ pairs of the ONNX graph, weights stored as int8. There is no bfloat16.
"""

import json
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper, shape_inference

from metanas_export import card
from metanas_export.errors import FormatError, UnsupportedOperationError
from metanas_export.flat_model import FlatModel
from metanas_export.graph import INPUT_NAME, OUTPUT_NAME
from metanas_export.windows import Window, padding, windows

_LOWEST = float(np.finfo(np.float32).min)
_PADDINGS = {"SAME": 0, "VALID": 1}


def convert(model: onnx.ModelProto) -> bytes:
    """Write a model as LiteRT reads it.

    Raises:
        FormatError: the model is bfloat16.
        FormatMissingError: the LiteRT runtime is not installed.
        UnsupportedOperationError: a node has no translation.
    """
    if any(value.data_type == TensorProto.BFLOAT16 for value in model.graph.initializer):
        raise FormatError("LiteRT has no bfloat16; export it with --precision fp16, int8 or fp32")
    return _Translation(model).content()


class _Translation:
    """One graph on its way: ``_shapes`` are those of ONNX, the tensors of ``_flat`` have channels last."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._flat = FlatModel()
        self._constants = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
        inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
        known = [*inferred.value_info, *inferred.input, *inferred.output]
        self._shapes = {one.name: [d.dim_value for d in one.type.tensor_type.shape.dim][1:] for one in known}
        self._dequantised: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
        self._same: dict[str, str] = {}

    def content(self) -> bytes:
        self._flat.tensor(INPUT_NAME, self._shapes[INPUT_NAME])
        first = self._named(f"{INPUT_NAME}/channels_last", INPUT_NAME)
        self._flat.operator("TRANSPOSE", [INPUT_NAME, self._numbers("to_channels_last", [0, 2, 3, 1])], [first])
        self._same[INPUT_NAME] = first
        for node in self._model.graph.node:
            translate = getattr(self, f"_{node.op_type.lower()}", None)
            if translate is None:
                raise UnsupportedOperationError(
                    f"{node.name} is a {node.op_type}, which has no LiteRT translation; add one to "
                    "metanas_export/litert.py"
                )
            translate(node)
        notes = json.dumps(card.read(self._model), ensure_ascii=False).encode()
        return self._flat.pack(
            inputs={INPUT_NAME: INPUT_NAME}, outputs={OUTPUT_NAME: OUTPUT_NAME}, description="metanas-edge", notes=notes
        )

    def _named(self, name: str, like: str) -> str:
        """A new tensor of the shape that ``like`` has in ONNX, channels last."""
        shape = self._shapes[like]
        return self._flat.tensor(name, [*shape[1:], shape[0]] if len(shape) == 3 else shape)

    def _out(self, node: NodeProto) -> str:
        return self._named(node.output[0], node.output[0])

    def _numbers(self, name: str, values: Any) -> str:
        return name if name in self._flat else self._flat.constant(name, np.array(values, dtype=np.int32))

    def _input(self, name: str) -> str:
        """An input as a float32 tensor: calculated, or a constant."""
        if name not in self._constants:
            return self._same.get(name, name)
        values = self._constants[name]
        # (channels, 1, 1) in ONNX.
        return self._weights(name, values.reshape(-1) if values.ndim == 3 else values)

    def _weights(self, name: str, values: NDArray[Any], *, steps: NDArray[Any] | None = None, axis: int = 0) -> str:
        """Constants as a float32 tensor, from whatever type they are stored in."""
        if values.dtype == np.float32:
            return self._flat.constant(name, values)
        stored = self._flat.constant(f"{name}/stored", values, steps=steps, axis=axis)
        made = self._flat.fixed(name, values.shape)
        self._flat.operator("DEQUANTIZE", [stored], [made], options="DequantizeOptions")
        return made

    def _conv(self, node: NodeProto) -> None:
        name = node.input[1]
        kernel, steps = self._dequantised.get(name) or (self._constants[name], None)
        groups = helper.get_node_attr_value(node, "group") if any(a.name == "group" for a in node.attribute) else 1
        channels = self._shapes[node.input[0]][0]
        if groups not in (1, channels):
            raise UnsupportedOperationError(f"{node.name} has {groups} groups of {channels} channels; LiteRT needs 1")
        depthwise = groups == channels and channels > 1
        if depthwise:
            # (channels * multiplier, 1, H, W) to (1, H, W, channels * multiplier)
            weight = self._weights(name, kernel.transpose(1, 2, 3, 0), steps=steps, axis=3)
        else:
            weight = self._weights(name, kernel.transpose(0, 2, 3, 1), steps=steps, axis=0)
        bias = self._input(node.input[2]) if len(node.input) > 2 else self._zeros(len(kernel))
        rows, columns = self._windows(node)
        x, kind = self._padded(node, rows, columns, value=0.0)
        values: dict[str, Any] = {"depthMultiplier": len(kernel) // channels} if depthwise else {}
        self._flat.operator(
            "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
            [x, weight, bias],
            [self._out(node)],
            options="DepthwiseConv2DOptions" if depthwise else "Conv2DOptions",
            padding=_PADDINGS[kind],
            strideH=rows.stride,
            strideW=columns.stride,
            dilationHFactor=rows.dilation,
            dilationWFactor=columns.dilation,
            **values,
        )

    def _zeros(self, count: int) -> str:
        name = f"zeros_{count}"
        return name if name in self._flat else self._flat.constant(name, np.zeros(count, dtype=np.float32))

    def _windows(self, node: NodeProto) -> tuple[Window, Window]:
        (height, width), (out_height, out_width) = (self._shapes[one][1:] for one in (node.input[0], node.output[0]))
        return windows(node, sizes=(height, width), out=(out_height, out_width))

    def _padded(self, node: NodeProto, rows: Window, columns: Window, *, value: float) -> tuple[str, str]:
        """The input of a node, with pixels of ``value`` around it if it must be, and SAME or VALID."""
        x, kind = self._input(node.input[0]), padding(rows, columns)
        if isinstance(kind, str):
            return x, kind
        channels, height, width = self._shapes[node.input[0]]
        (top, bottom), (left, right) = kind
        made = self._flat.tensor(f"{node.name}/padded", [height + top + bottom, width + left + right, channels])
        amounts = self._numbers(f"pad_{top}_{bottom}_{left}_{right}", [[0, 0], [top, bottom], [left, right], [0, 0]])
        fill = self._flat.constant(f"{node.name}/fill", np.array([value], dtype=np.float32))
        self._flat.operator("PADV2", [x, amounts, fill], [made], options="PadV2Options")
        return made, "VALID"

    def _maxpool(self, node: NodeProto) -> None:
        rows, columns = self._windows(node)
        x, kind = self._padded(node, rows, columns, value=_LOWEST)
        self._pool("MAX_POOL_2D", x, self._out(node), rows, columns, kind)

    def _averagepool(self, node: NodeProto) -> None:
        # SAME counts only pixels of the image, as ONNX is asked to; after padding all of them count.
        rows, columns = self._windows(node)
        x, kind = self._padded(node, rows, columns, value=0.0)
        out = self._out(node)
        if x == self._input(node.input[0]):
            self._pool("AVERAGE_POOL_2D", x, out, rows, columns, kind)
            return
        mean = self._named(f"{node.name}/of_all", node.output[0])
        self._pool("AVERAGE_POOL_2D", x, mean, rows, columns, kind)
        share = np.outer(rows.share_inside(), columns.share_inside())[None, :, :, None]
        factor = self._flat.constant(f"{node.name}/factor", (1.0 / share).astype(np.float32))
        self._flat.operator("MUL", [mean, factor], [out], options="MulOptions")

    def _pool(self, operator: str, x: str, out: str, rows: Window, columns: Window, kind: str) -> None:
        self._flat.operator(
            operator,
            [x],
            [out],
            options="Pool2DOptions",
            padding=_PADDINGS[kind],
            strideH=rows.stride,
            strideW=columns.stride,
            filterHeight=rows.kernel,
            filterWidth=columns.kernel,
        )

    def _globalaveragepool(self, node: NodeProto) -> None:
        inputs = [self._input(node.input[0]), self._numbers("rows_and_columns", [1, 2])]
        self._flat.operator("MEAN", inputs, [self._out(node)], options="ReducerOptions", keepDims=True)

    def _relu(self, node: NodeProto) -> None:
        self._flat.operator("RELU", [self._input(node.input[0])], [self._out(node)])

    def _two(self, node: NodeProto, operator: str, options: str) -> None:
        self._flat.operator(operator, [self._input(one) for one in node.input], [self._out(node)], options=options)

    def _add(self, node: NodeProto) -> None:
        self._two(node, "ADD", "AddOptions")

    def _mul(self, node: NodeProto) -> None:
        self._two(node, "MUL", "MulOptions")

    def _div(self, node: NodeProto) -> None:
        self._two(node, "DIV", "DivOptions")

    def _max(self, node: NodeProto) -> None:
        self._two(node, "MAXIMUM", "MaximumMinimumOptions")

    def _concat(self, node: NodeProto) -> None:
        inputs = [self._input(one) for one in node.input]
        self._flat.operator("CONCATENATION", inputs, [self._out(node)], options="ConcatenationOptions", axis=3)

    def _flatten(self, node: NodeProto) -> None:
        x, (channels, height, width) = self._input(node.input[0]), self._shapes[node.input[0]]
        if height * width > 1:
            turned = self._flat.tensor(f"{node.name}/channels_first", [channels, height, width])
            self._flat.operator("TRANSPOSE", [x, self._numbers("to_channels_first", [0, 3, 1, 2])], [turned])
            x = turned
        shape = self._numbers(f"{node.name}/shape", [-1, channels * height * width])
        self._flat.operator("RESHAPE", [x, shape], [self._out(node)])

    def _reducel2(self, node: NodeProto) -> None:
        x = self._input(node.input[0])
        squared = self._named(f"{node.name}/squared", node.input[0])
        summed = self._named(f"{node.name}/sum", node.output[0])
        self._flat.operator("MUL", [x, x], [squared], options="MulOptions")
        axes = self._numbers("features", [1])
        self._flat.operator("SUM", [squared, axes], [summed], options="ReducerOptions", keepDims=True)
        self._flat.operator("SQRT", [summed], [self._out(node)])

    def _gemm(self, node: NodeProto) -> None:
        inputs = [self._input(one) for one in node.input]
        self._flat.operator("FULLY_CONNECTED", inputs, [self._out(node)], options="FullyConnectedOptions")

    def _cast(self, node: NodeProto) -> None:
        # Everything is calculated in float32 here.
        self._same[node.output[0]] = self._input(node.input[0])

    def _quantizelinear(self, node: NodeProto) -> None:
        x, name = self._input(node.input[0]), node.output[0]
        channels, *sizes = self._shapes[node.input[0]]
        step = self._constants[node.input[1]].reshape(1)
        self._flat.tensor(name, [*sizes, channels], kind="INT8", steps=step)
        self._flat.operator("QUANTIZE", [x], [name], options="QuantizeOptions")

    def _dequantizelinear(self, node: NodeProto) -> None:
        if node.input[0] in self._constants:
            # A kernel: what its axes become is known where it is used.
            self._dequantised[node.output[0]] = self._constants[node.input[0]], self._constants[node.input[1]]
            return
        made = self._named(node.output[0], node.output[0])
        self._flat.operator("DEQUANTIZE", [node.input[0]], [made], options="DequantizeOptions")
