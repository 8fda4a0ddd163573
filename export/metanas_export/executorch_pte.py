"""ExecuTorch: the ONNX graph, as a torch module again, lowered to XNNPACK: a ``.pte`` file.

    convert    ONNX model, largest batch  ->  content of the file

``torch.export`` and ExecuTorch's passes look at every node some dozens of times: a task network takes
them about half a minute, where the other formats take less than a second. Their memory for
tensors is planned when the file is made, so the largest batch is fixed there.

XNNPACK runs float32 and float16. What of it int8 would mean: the Q/DQ pairs of the ONNX graph, with
weights stored as float32 again; so int8 is refused, and bfloat16 too.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor

from metanas_export.builder import Precision
from metanas_export.errors import FormatError, FormatMissingError
from metanas_export.graph import INPUT_NAME
from metanas_export.torch_graph import TorchGraph

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")


def convert(model: onnx.ModelProto, *, precision: Precision, max_batch: int) -> bytes:
    """Lower a model.

    Args:
        model: as ``model.build_onnx`` makes it, of ``precision``.
        max_batch: the most images that the file takes at once, at least 1.

    Raises:
        FormatError: the precision is not one of ``PRECISIONS``.
        FormatMissingError: ExecuTorch is not installed.
        UnsupportedOperationError: a node has no translation.
    """
    if precision not in PRECISIONS:
        raise FormatError(
            f"ExecuTorch's XNNPACK runs {' and '.join(PRECISIONS)} here, not {precision}; "
            "export it with one of these, or int8 for OpenVINO, LiteRT or TensorRT"
        )
    exir, partitioner = _import()
    sizes = [one.dim_value for one in model.graph.input[0].type.tensor_type.shape.dim][1:]
    # One image would be taken for a constant; the largest batch must be above the example's.
    example = torch.zeros(min(2, max_batch), *sizes)
    batch = {INPUT_NAME: {0: torch.export.Dim("batch", min=1, max=max_batch)}} if max_batch > 2 else None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return _lowered(TorchGraph(model).eval(), example, batch, exir=exir, partitioner=partitioner)


def _lowered(module: TorchGraph, example: Tensor, batch: Any, *, exir: Any, partitioner: Any) -> bytes:
    with _any_batch():
        program = torch.export.export(module, (example,), dynamic_shapes=batch)
        lowered = exir.to_edge_transform_and_lower(
            program,
            partitioner=[partitioner.XnnpackPartitioner()],
            compile_config=exir.EdgeCompileConfig(_check_ir_validity=False),
        )
        return bytes(lowered.to_executorch().buffer)


@contextmanager
def _any_batch() -> Iterator[None]:
    """Keep torch from choosing between kernels by the batch size: it would hold 15 for the largest there is."""
    with torch.backends.nnpack.flags(enabled=False), torch.backends.mkldnn.flags(enabled=False):
        yield


def _import() -> tuple[Any, Any]:
    # Its dependencies log at import what they do without.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from executorch import exir
            from executorch.backends.xnnpack.partition import xnnpack_partitioner
    except ImportError as error:
        raise FormatMissingError(
            f'ExecuTorch is not installed ({error}); install it with: pip install "metanas-edge[executorch]"'
        ) from error
    return exir, xnnpack_partitioner
