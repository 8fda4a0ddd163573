"""The nodes and initialisers of an ONNX graph, as they come.

    GraphBuilder   one method for each kind of node that needs more than its name and inputs

A node's output has the node's name. In fp16 every constant is float16, unless it is given
another type. Knows ONNX and the sizes of torch convolutions; nothing of cells and tasks.
"""

from typing import Any, Literal

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from metanas_export.errors import Float16RangeError
from metanas_export.folding import Array

Precision = Literal["fp32", "fp16"]


class GraphBuilder:
    """Collects nodes and initialisers; every method returns the name of the tensor that it adds."""

    def __init__(self, precision: Precision) -> None:
        self.dtype = np.float16 if precision == "fp16" else np.float32
        self.nodes: list[NodeProto] = []
        self.initialisers: dict[str, TensorProto] = {}
        self._rectified: dict[str, str] = {}

    def node(self, kind: str, name: str, *, inputs: list[str], **attributes: Any) -> str:
        """Any node with one output."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: Array, *, dtype: type[np.floating[Any]] | None = None) -> str:
        """Values that are part of the graph.

        Raises:
            Float16RangeError: a value does not fit float16.
        """
        dtype = dtype or self.dtype
        limit = np.finfo(dtype).max
        largest = np.abs(values).max()
        if dtype == np.float16 and not largest <= limit:
            raise Float16RangeError(
                f"{name} holds {largest:g}, float16 ends at {limit:g}; export with --precision fp32"
            )
        self.initialisers[name] = numpy_helper.from_array(np.ascontiguousarray(values, dtype=dtype), name)
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
