"""The nodes and initialisers of an ONNX graph, as they come.

    GraphBuilder   one method for each kind of node that needs more than its name and inputs

A node's output has the node's name. Everything is float32 here: other precisions are made of the
finished graph (``casting``, ``quantising``). Knows ONNX and the sizes of torch convolutions;
nothing of cells and tasks.
"""

from typing import Any, Literal, get_args

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from metanas_export.folding import Array

Precision = Literal["fp32", "fp16", "bf16", "int8"]
"""What the inside of an exported network is calculated in; its input and output are float32."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class GraphBuilder:
    """Collects nodes and initialisers; every method returns the name of the tensor that it adds."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.initialisers: dict[str, TensorProto] = {}
        self._rectified: dict[str, str] = {}

    def node(self, kind: str, name: str, *, inputs: list[str], **attributes: Any) -> str:
        """Any node with one output."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: Array) -> str:
        """Values that are part of the graph, as float32."""
        self.initialisers[name] = numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), name)
        return name

    def whole_numbers(self, name: str, values: list[int]) -> str:
        """Axes and the like, as int64."""
        self.initialisers[name] = numpy_helper.from_array(np.array(values, dtype=np.int64), name)
        return name

    def conv(
        self,
        name: str,
        x: str,
        *,
        weight: Array,
        bias: Array | None = None,
        like: nn.Conv2d | None = None,
        **given: Any,
    ) -> str:
        """A convolution whose stride, padding and so on come from a torch module, or are given."""
        attributes: dict[str, Any] = given
        if like is not None:
            rows, columns = (int(size) for size in like.padding)
            attributes = {
                "strides": list(like.stride),
                "pads": [rows, columns, rows, columns],
                "dilations": list(like.dilation),
                "group": like.groups,
            }
        inputs = [x, self.constant(f"{name}/weight", weight)]
        if bias is not None:
            inputs.append(self.constant(f"{name}/bias", bias))
        return self.node("Conv", name, inputs=inputs, kernel_shape=list(weight.shape[2:]), **attributes)

    def scaled(self, name: str, x: str, *, gain: Array, offset: Array) -> str:
        """``gain * x + offset`` for each channel."""
        product = self.node("Mul", f"{name}/mul", inputs=[x, self.constant(f"{name}/gain", gain[:, None, None])])
        return self.node("Add", f"{name}/add", inputs=[product, self.constant(f"{name}/offset", offset[:, None, None])])

    def relu(self, x: str) -> str:
        """The ReLU of a tensor: one node, however many ask for it."""
        if x not in self._rectified:
            self._rectified[x] = self.node("Relu", f"{x}/relu", inputs=[x])
        return self._rectified[x]
