"""An exported file, opened by the runtime that it is for: what a device would do, and no more.

    load_runtime  format                 ->  the runtime, imported: its name and version
    open_model    format, file, threads  ->  a function from images to scores

Imports numpy and, when a file is opened, its runtime. So it can be loaded by its path in a process that
has no torch in it (``benchmark_process``), whose memory is then the runtime's. Two formats load torch all
the same: ExecuTorch's Python binding, which is a C++ library on a device, and plans, whose GPU memory is
torch's in this package (``plan_running``) and CUDA's own on a device (``metanas_client.local``).
"""

import importlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Run = Callable[[Floats], Floats]
"""From float32 images ``(batch, channels, height, width)`` to float32 scores ``(batch, classes)``."""

PACKAGES = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "executorch": "executorch",
    "litert": "ai-edge-litert",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
}
"""The formats, each with the package that runs it, as pip names it."""
_MODULES = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "executorch": "executorch.runtime",
    "litert": "ai_edge_litert.interpreter",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}


def load_runtime(kind: str) -> str:
    """Import the runtime of a format; returns its package and version, for people.

    Raises:
        ImportError: it is not installed.
    """
    importlib.import_module(_MODULES[kind])
    return f"{PACKAGES[kind]} {metadata.version(PACKAGES[kind])}"


def open_model(kind: str, path: Path, *, threads: int = 1) -> Run:
    """Open a file.

    Args:
        kind: one of ``PACKAGES``.
        threads: that one call computes on; ExecuTorch takes its own number.

    Raises:
        ImportError: the runtime is not installed.
    """
    return _OPENERS[kind](path, threads)


def _open_onnx(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Floats) -> Floats:
        scores: Floats = session.run(None, {name: images})[0]
        return scores

    return run


def _open_openvino(path: Path, threads: int) -> Run:
    import openvino

    # OpenVINO computes a float32 model in bfloat16 where the processor has it, unless told not to.
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()

    def run(images: Floats) -> Floats:
        return np.array(request.infer([images])[0])

    return run


def _open_executorch(path: Path, threads: int) -> Run:
    import torch
    from executorch.runtime import Runtime

    torch.set_num_threads(threads)
    method = Runtime.get().load_program(path).load_method("forward")

    def run(images: Floats) -> Floats:
        scores: Floats = method.execute([torch.from_numpy(images)])[0].numpy()
        return scores

    return run


def _open_litert(path: Path, threads: int) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    shape: tuple[int, ...] | None = None

    def run(images: Floats) -> Floats:
        nonlocal shape
        number = interpreter.get_input_details()[0]["index"]
        if images.shape != shape:
            interpreter.resize_tensor_input(number, images.shape)
            interpreter.allocate_tensors()
            shape = images.shape
        interpreter.set_tensor(number, images)
        interpreter.invoke()
        scores: Floats = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        return scores

    return run


def _open_plan(path: Path, threads: int) -> Run:
    """``threads`` are of no use to a GPU. Refuses a plan that does not fit this machine, or a machine without a GPU."""
    from metanas_export.engine import find_tensorrt
    from metanas_export.plan_loading import load_plan
    from metanas_export.plan_running import PlanRunner
    from metanas_export.sidecar import read_sidecar

    trt = find_tensorrt(read_sidecar(path).flavour)
    return PlanRunner(trt, load_plan(trt, path))


_OPENERS: dict[str, Callable[[Path, int], Run]] = {
    "onnx": _open_onnx,
    "openvino": _open_openvino,
    "executorch": _open_executorch,
    "litert": _open_litert,
    "tensorrt": _open_plan,
    "tensorrt-rtx": _open_plan,
}
