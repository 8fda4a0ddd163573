"""How a window of ONNX moves over an image, in the words of TensorFlow Lite: SAME, VALID, or padded first.

    Window     kernel, stride, dilation and padding along one side, with sizes in and out
    padding    two windows  ->  "SAME", "VALID", or rows and columns to add before a VALID one

TensorFlow Lite has no numbers for padding: SAME splits what is missing, the larger half at the
end. ONNX puts it where the numbers say, which at stride 2 is elsewhere on an even side.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper


@dataclass(frozen=True, slots=True)
class Window:
    """One side, height or width."""

    kernel: int
    stride: int
    dilation: int
    before: int
    """Padding at the beginning."""
    size: int
    """Of the input."""
    out: int

    @property
    def reach(self) -> int:
        """Pixels from the first to the last that the kernel reads."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def missing(self) -> int:
        """Pixels that the windows need beyond the image."""
        return max((self.out - 1) * self.stride + self.reach - self.size, 0)

    @property
    def is_same(self) -> bool:
        """Whether SAME puts the window at the same places."""
        return self.out == -(-self.size // self.stride) and self.before == self.missing // 2

    @property
    def added(self) -> tuple[int, int]:
        """Pixels to add before and after, so that VALID gives the same."""
        return self.before, max(self.missing - self.before, 0)

    def share_inside(self) -> NDArray[np.float64]:
        """For each place of the window the part of its kernel that lies on the image, ``(out,)``."""
        first = np.arange(self.out)[:, None] * self.stride - self.before
        pixels = first + np.arange(self.kernel) * self.dilation
        share: NDArray[np.float64] = ((pixels >= 0) & (pixels < self.size)).mean(axis=1)
        return share


def windows(node: onnx.NodeProto, *, sizes: tuple[int, int], out: tuple[int, int]) -> tuple[Window, Window]:
    """The windows of a convolution or pooling node, rows and columns."""
    given: dict[str, Any] = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    kernel = given["kernel_shape"]
    strides, dilations = given.get("strides", [1, 1]), given.get("dilations", [1, 1])
    pads = given.get("pads", [0, 0, 0, 0])
    rows, columns = (
        Window(kernel[side], strides[side], dilations[side], pads[side], sizes[side], out[side]) for side in range(2)
    )
    return rows, columns


def padding(rows: Window, columns: Window) -> str | tuple[tuple[int, int], tuple[int, int]]:
    """How TensorFlow Lite gets the same windows."""
    if rows.is_same and columns.is_same:
        return "SAME"
    if rows.added == columns.added == (0, 0):
        return "VALID"
    return rows.added, columns.added
