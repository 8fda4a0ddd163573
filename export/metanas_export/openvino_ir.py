"""OpenVINO: the ONNX graph as OpenVINO's own files, ``.xml`` and ``.bin``.

    convert       content of an ONNX file  ->  contents of the two files
    int8_model    task                     ->  the ONNX model to convert in int8

OpenVINO reads ONNX itself; its files load faster and hold what it made of the graph. Q/DQ pairs
become its own int8 kernels. Those of 2026.4 for a processor with AVX2 alone give wrong sums for signed
activations, and sums that are cut off for weights of 8 bits: a task network's logits were off by 60 %. So
what follows a ReLU is unsigned here, and weights have 7 bits, after which they were off by 2 %.
"""

import tempfile
from pathlib import Path
from typing import Any

import onnx

from metanas.model import TaskModel
from metanas_export.errors import FormatError, FormatMissingError
from metanas_export.model import build_onnx
from metanas_export.quantising import Scheme

SCHEME = Scheme(unsigned_after_relu=True, weight_limit=63)


def convert(model: bytes, *, name: str) -> tuple[bytes, bytes]:
    """Turn the content of an ``.onnx`` file into the contents of ``.xml`` and ``.bin``.

    Args:
        name: what messages call the model.

    Raises:
        FormatError: OpenVINO does not read it.
        FormatMissingError: OpenVINO is not installed.
    """
    openvino = _import()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "model.xml"
        source.write_bytes(model)
        try:
            read = openvino.Core().read_model(source)
            openvino.save_model(read, target, compress_to_fp16=False)
        except RuntimeError as error:
            raise FormatError(f"OpenVINO does not read {name}: {error}; export it with --precision fp32") from error
        return target.read_bytes(), target.with_suffix(".bin").read_bytes()


def int8_model(task: TaskModel) -> onnx.ModelProto:
    """The ONNX model whose int8 OpenVINO's kernels calculate rightly on every processor."""
    return build_onnx(task, precision="int8", scheme=SCHEME)


def _import() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise FormatMissingError(
            f'OpenVINO is not installed ({error}); install it with: pip install "metanas-edge[openvino]"'
        ) from error
    return openvino
