"""Export: an adapted task network as ONNX, checked, and as a TensorRT plan.

    build_onnx, onnx_bytes    task model  ->  ONNX (``graph``)

Importing this package loads neither ONNX Runtime (``check``) nor TensorRT (``engine``), so a
server can use it for the graph alone. It knows the core, and nothing of training or serving.
"""

from metanas_export.graph import build_onnx, onnx_bytes

__all__ = ["build_onnx", "onnx_bytes"]
