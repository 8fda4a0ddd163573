"""The formats that an exported task can have, and the files of those that this machine writes and runs.

    FORMATS    their names, as the command takes them
    convert    format, task, ONNX model  ->  suffix  ->  content of the file

TensorRT plans and Triton's repositories are made of the ONNX file elsewhere (``obtaining``, ``triton``).
"""

from typing import Literal, get_args

import onnx

from metanas.model import TaskModel
from metanas_export.builder import Precision

Format = Literal["onnx", "openvino", "executorch", "litert", "tensorrt", "tensorrt-rtx", "triton"]
FORMATS: tuple[Format, ...] = get_args(Format)
CONVERTED: tuple[Format, ...] = ("openvino", "executorch", "litert")
"""Those that are made of the ONNX model here, and run in a runtime of their own."""


def convert(
    kind: Format, task: TaskModel, *, model: onnx.ModelProto, precision: Precision, max_batch: int
) -> dict[str, bytes]:
    """Make the files of one of ``CONVERTED``; the first is the one that its runtime opens.

    Args:
        model: of the task, in ``precision``.
        max_batch: the most images that a file takes at once, where its format fixes that.

    Raises:
        FormatError: the format does not have the precision.
        FormatMissingError: its package is not installed.
    """
    # Imported here: each is a second and some hundred megabytes that no other format needs.
    if kind == "openvino":
        from metanas_export import openvino_ir

        source = openvino_ir.int8_model(task) if precision == "int8" else model
        graph, weights = openvino_ir.convert(source.SerializeToString(), name=f"the model in {precision}")
        return {".xml": graph, ".bin": weights}
    if kind == "executorch":
        from metanas_export import executorch_pte

        return {".pte": executorch_pte.convert(model, precision=precision, max_batch=max_batch)}
    if kind == "litert":
        from metanas_export import litert

        return {".tflite": litert.convert(model)}
    raise ValueError(f"{kind} is not one of {', '.join(CONVERTED)}")
