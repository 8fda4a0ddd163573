"""ONNX Runtime on this machine's CPU: the only module that imports it.

session    model  ->  images  ->  logits
observe    model, tensor names, images  ->  their values, batch by batch
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from metanas_export.errors import RuntimeMissingError
from metanas_export.graph import INPUT_NAME, OUTPUT_NAME

Images = NDArray[Any]
Scores = NDArray[np.float32]
Run = Callable[[Images], Scores]
"""Images as a file takes them, ``(batch, ...)``, to logits ``(batch, classes)``."""

BATCH = 16
"""Images at once: larger batches leave a processor's caches, and those of a whole set fill a small device's memory."""


def in_batches(score: Callable[[Any], Scores], images: Any, *, size: int = BATCH) -> Scores:
    """Score images a few at a time.

    Args:
        score: of torch or of a runtime.
        images: an array or tensor ``(images, ...)``, at least one.
    """
    return np.concatenate([score(images[first : first + size]) for first in range(0, len(images), size)])


def session(model: bytes, *, as_written: bool = False) -> Run:
    """Load a model.

    Args:
        as_written: node for node; else the runtime may fuse and drop nodes, roundings too.

    Raises:
        RuntimeMissingError: ONNX Runtime is not installed.
    """
    loaded = _load(model, as_written=as_written)

    def run(images: Images) -> Scores:
        scores: Scores = loaded.run([OUTPUT_NAME], {INPUT_NAME: images})[0]
        return scores

    return run


def observe(model: onnx.ModelProto, names: Sequence[str], *, images: Images) -> Iterator[dict[str, NDArray[Any]]]:
    """Values of inner tensors, a few images at a time."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {one.name for one in watched.graph.output}
    for name in names:
        if name not in known:
            watched.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    loaded = _load(watched.SerializeToString(), as_written=True)
    for first in range(0, len(images), BATCH):
        values = loaded.run(list(names), {INPUT_NAME: images[first : first + BATCH]})
        yield dict(zip(names, values, strict=True))


def _load(model: bytes, *, as_written: bool) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissingError(
            f"ONNX Runtime is not installed ({error}), so the export cannot be checked; "
            'install it with: pip install "metanas-edge[cpu]"'
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
