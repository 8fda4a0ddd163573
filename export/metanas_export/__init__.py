"""Export: an adapted task network as ONNX, checked, and in the formats of the devices that run it.

    build_onnx, onnx_bytes    task model  ->  ONNX (``model``)

Importing this package loads neither ONNX Runtime (``running``) nor TensorRT (``engine``), so a
server can use it for the graph alone. It knows the core, and nothing of training or serving.
"""

from metanas_export.model import build_onnx, onnx_bytes

__all__ = ["build_onnx", "onnx_bytes"]
