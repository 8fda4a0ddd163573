"""The optional ends of an ONNX file: pictures in place of prepared images, probabilities beside logits.

    take_pictures        model, preprocessing  ->  input uint8 (batch, height, width, 3), any size, RGB
    give_probabilities   model, temperature    ->  a second output, ``probabilities``

``take_pictures`` does in the graph what ``metanas.preprocessing`` does with Pillow, in the same whole
numbers: grey by its weights of 16 bits; inversion; columns and then rows resized with an antialiased
bilinear filter whose weights are rounded to 22 bits, and the result to 8 bits after each; then scaled.
The Resize of ONNX is not used: at the border of a smaller picture it weighs otherwise. Turning
upright by EXIF and putting transparency onto white are left to whoever decodes the picture.

For the ``.onnx`` file alone: the other formats take prepared images.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from metanas.preprocessing import Preprocessing
from metanas_export.graph import INPUT_NAME, OUTPUT_NAME

Array = NDArray[Any]

PROBABILITIES_NAME = "probabilities"
PICTURE_CHANNELS = 3
# ITU-R 601-2 luma in sixteenths of bits, as Pillow has it: L = (R * 19595 + G * 38470 + B * 7471 + 0x8000) >> 16.
# Every sum is below 2 ** 24, so float32 holds it exactly.
_LUMA = (19595.0, 38470.0, 7471.0)
_HALF, _WHOLE = 32768.0, 65536.0
_FILTER_WHOLE = 2.0**22


def take_pictures(model: onnx.ModelProto, preprocessing: Preprocessing) -> None:
    """Put the preprocessing in front, in place; the input keeps its name."""
    front = _Front()
    x = front.node("Cast", "float32", [INPUT_NAME], to=TensorProto.FLOAT)
    x = front.node("Transpose", "channels_first", [x], perm=[0, 3, 1, 2])
    if preprocessing.channels == 1:
        x = front.node("Conv", "luma", [x, front.floats("luma_weights", np.array(_LUMA).reshape(1, 3, 1, 1))])
        x = front.node("Add", "luma_half", [x, front.floats("half_of_65536", _HALF)])
        x = front.node("Floor", "grey", [front.node("Div", "luma_shift", [x, front.floats("65536", _WHOLE)])])
    if preprocessing.invert:
        x = front.node("Sub", "inverted", [front.floats("255_minus", 255.0), x])
    x = front.resized(x, preprocessing.width, axis=3)
    x = front.resized(x, preprocessing.height, axis=2)
    x = front.node("Div", "unit_range", [x, front.floats("255", 255.0)])
    x = front.node("Sub", "centred", [x, front.floats("mean", _channels(preprocessing.mean))])
    deviation = front.floats("deviation", _channels(preprocessing.deviation))
    x = front.node("Div", "scaled", [x, deviation])
    for node in model.graph.node:
        node.input[:] = [x if name == INPUT_NAME else name for name in node.input]
    nodes = [*front.nodes, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(front.constants)
    model.graph.ClearField("input")
    shape: list[str | int | None] = ["batch", "height", "width", PICTURE_CHANNELS]
    model.graph.input.append(helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, shape))


def give_probabilities(model: onnx.ModelProto, *, temperature: float) -> None:
    """Add the output ``probabilities``, in place: the softmax of the logits over ``temperature``."""
    name = f"{PROBABILITIES_NAME}/temperature"
    model.graph.initializer.append(numpy_helper.from_array(np.array(temperature, dtype=np.float32), name))
    cooled = f"{PROBABILITIES_NAME}/cooled"
    model.graph.node.append(helper.make_node("Div", [OUTPUT_NAME, name], [cooled], name=cooled))
    model.graph.node.append(
        helper.make_node("Softmax", [cooled], [PROBABILITIES_NAME], name=f"{PROBABILITIES_NAME}/softmax", axis=1)
    )
    shape = [one.dim_value or one.dim_param for one in model.graph.output[0].type.tensor_type.shape.dim]
    model.graph.output.append(helper.make_tensor_value_info(PROBABILITIES_NAME, TensorProto.FLOAT, shape))


def _channels(values: tuple[float, ...]) -> Array:
    return np.array(values).reshape(-1, 1, 1)


class _Front:
    """Nodes and constants of the preprocessing, all called ``preprocessing/...``."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def node(self, kind: str, name: str, inputs: list[str], **attributes: Any) -> str:
        output = f"preprocessing/{name}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def floats(self, name: str, values: Array | float) -> str:
        return self.constant(name, np.array(values, dtype=np.float32))

    def resized(self, x: str, size: int, *, axis: int) -> str:
        """Resize one axis of whole numbers ``(batch, channels, height, width)`` to ``size``, as Pillow does.

        Pixel ``j`` counts ``max(0, 1 - |j + 0.5 - centre| / reach)`` at the place whose centre in the old
        picture is ``centre``; ``reach`` is the old size over the new one, at least 1. In float64, which holds
        every sum of 8-bit pixels and 22-bit weights.
        """
        side = "columns" if axis == 3 else "rows"

        def node(kind: str, name: str, *inputs: str, **attributes: Any) -> str:
            return self.node(kind, f"{side}/{name}", list(inputs), **attributes)

        def number(name: str, values: Array | float) -> str:
            return self.constant(f"{side}/{name}", np.array(values, dtype=np.float64))

        zero, one, half = number("0", 0.0), number("1", 1.0), number("0.5", 0.5)
        count = node("Squeeze", "count", node("Shape", "shape", x, start=axis, end=axis + 1))
        old = node("Cast", "old_size", count, to=TensorProto.DOUBLE)
        step = node("Div", "step", old, number("new_size", float(size)))
        reach = node("Max", "reach", step, one)
        centres = node("Mul", "centres", number("places", np.arange(size)[:, None] + 0.5), step)
        pixels = node("Range", "pixels", zero, old, one)
        apart = node("Add", "apart", node("Sub", "from_centre", pixels, centres), half)
        share = node("Sub", "slope", one, node("Abs", "distance", node("Div", "in_reaches", apart, reach)))
        weights = node("Max", "weights", share, zero)
        axes = self.constant(f"{side}/axes", np.array([1], dtype=np.int64))
        weights = node("Div", "unit_sum", weights, node("ReduceSum", "sum", weights, axes, keepdims=1))
        whole = number("whole", _FILTER_WHOLE)
        weights = node("Floor", "whole_weights", node("Add", "raised", node("Mul", "bits", weights, whole), half))
        x = node("Cast", "exact", x, to=TensorProto.DOUBLE)
        if axis == 3:
            x = node("MatMul", "resized", x, node("Transpose", "turned", weights, perm=[1, 0]))
        else:
            x = node("MatMul", "resized", weights, x)
        x = node("Floor", "rounded", node("Add", "half_up", node("Div", "shifted", x, whole), half))
        return node("Cast", "float32", x, to=TensorProto.FLOAT)

    def constant(self, name: str, values: Array) -> str:
        made = numpy_helper.from_array(values, f"preprocessing/{name}")
        self.constants.append(made)
        return made.name
