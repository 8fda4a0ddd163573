"""The content of an ``.onnx`` file: the graph of a task in a precision, with its metadata.

    build_onnx    task model  ->  onnx.ModelProto
    onnx_bytes    task model  ->  the content of the file

float32 is the graph as it is. The others are made of it: by casts (``casting``) or by Q/DQ pairs
(``quantising``), and parts whose rounding costs too much on the support images stay float32
(``keeping``). Measuring that needs ONNX Runtime; float32 needs none.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import onnx

from metanas.model import TaskModel
from metanas.preprocessing import scale
from metanas_export import card, casting, keeping
from metanas_export.builder import Precision
from metanas_export.graph import build_graph

if TYPE_CHECKING:
    from metanas_export.quantising import Scheme

LARGEST_ERROR: dict[Precision, float] = {"fp16": 0.01, "bf16": 0.04, "int8": 0.1}
"""Of a logit on the support images, as a fraction of the largest logit, before parts are kept in float32."""

MAX_IMAGES = 64
"""Of the support set, to choose by."""


def onnx_bytes(task: TaskModel, *, precision: Precision = "fp32") -> bytes:
    """The content of an ``.onnx`` file; arguments and errors as for ``build_onnx``."""
    return build_onnx(task, precision=precision).SerializeToString(deterministic=True)


def build_onnx(task: TaskModel, *, precision: Precision = "fp32", scheme: "Scheme | None" = None) -> onnx.ModelProto:
    """Build the model of a task.

    Args:
        task: its batch norm frozen, as ``learner.adapt`` and ``artifact.load_task`` give it.
        precision: of weights and activations inside; input and output are float32 in any case.
        scheme: the whole numbers of int8; None: ``quantising.SYMMETRIC``.

    Returns:
        The model; ``card.describe`` says what its ``metadata_props`` hold.

    Raises:
        ValueError: the network is in training mode.
        UnsupportedOperationError: the network holds an operation without a translation.
        RuntimeMissingError: no ONNX Runtime, and ``precision`` is not fp32.
    """
    graph = build_graph(task)
    model, kept = _converted(task, graph, precision=precision, scheme=scheme)
    card.write(model, card.describe(task, graph, precision=precision, kept=kept))
    return model


def _converted(
    task: TaskModel, graph: onnx.ModelProto, *, precision: Precision, scheme: "Scheme | None"
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    if precision == "fp32":
        model = onnx.ModelProto()
        model.CopyFrom(graph)
        return model, ()
    # Imported here: a server that writes float32 needs neither.
    from metanas_export import quantising
    from metanas_export.running import in_batches, session

    chosen = np.linspace(0, len(task.support.images) - 1, min(len(task.support.images), MAX_IMAGES)).round()
    support = task.support.images[chosen.astype(int)]
    images = scale(support, task.preprocessing).numpy()
    reference = in_batches(lambda part: task.logits(part).numpy(), support)
    steps = quantising.calibrate(graph, quantising.calibration_images(task)) if precision == "int8" else {}

    def made(keep: Iterable[str]) -> onnx.ModelProto:
        if precision == "int8":
            return quantising.quantise(graph, steps, keep=keep, scheme=scheme or quantising.SYMMETRIC)
        return casting.narrow(graph, precision, keep=keep)

    def scores(keep: frozenset[str]) -> keeping.Scores:
        model = made(keep)
        if precision != "int8":
            model = casting.emulate(model)
        return in_batches(session(model.SerializeToString(), as_written=True), images)

    kept = keeping.choose(
        scores,
        reference,
        units=casting.units(graph),
        limit=LARGEST_ERROR[precision],
        always=() if precision == "int8" else casting.too_large(graph, precision),
    )
    return made(kept), kept
