"""What an exported file says about itself, as JSON values in the metadata of the ONNX file.

    describe    task, graph  ->  key  ->  plain value
    write       model, those values       ->  the model's ``metadata_props``
    read        model        ->  those values

Every key begins with ``metanas.``, every value is JSON. A device needs ``class_names``,
``preprocessing`` and ``temperature``; the hashes tell two tasks of one architecture apart.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import TensorProto, helper

import metanas
from metanas.model import TaskModel
from metanas.tasks import SupportSet
from metanas_export.builder import Precision

FORMAT_VERSION = 1
"""Raised when a reader of today's files would misread tomorrow's."""
PREFIX = "metanas."

LICENCES = {
    "omniglot": "MIT (Lake, Salakhutdinov and Tenenbaum, 2015)",
    "glyphs": "Hershey fonts, free for any use",
}
"""Of the data sets that this project knows the licence of, by the first part of their name."""


def describe(task: TaskModel, graph: onnx.ModelProto, *, precision: Precision, kept: Iterable[str]) -> dict[str, Any]:
    """What stands in a file of this task.

    Args:
        graph: in float32; ``weights_sha256`` is of its values, so the same for every precision.
        kept: the parts of the network that stayed in float32.
    """
    preprocessing = task.preprocessing
    return {
        "class_names": list(task.class_names),
        "preprocessing": preprocessing.to_dict(),
        "preprocessing_steps": preprocessing.steps(),
        "output": "logits of class_names, in that order; softmax of logits over temperature gives probabilities",
        "temperature": task.trust.temperature,
        "genotype": task.genotype.to_dict(),
        "provenance": dict(task.provenance),
        "licence": licence(task.provenance),
        "precision": precision,
        "kept_in_float32": list(kept),
        "weights_sha256": weights_digest(graph.graph.initializer),
        "support_sha256": support_digest(task.support),
        "metanas_version": metanas.__version__,
        "format_version": FORMAT_VERSION,
    }


def write(model: onnx.ModelProto, values: Mapping[str, Any]) -> None:
    """Put the values into the model, in place of any that are there."""
    helper.set_model_props(model, {PREFIX + key: json.dumps(value) for key, value in values.items()})


def read(model: onnx.ModelProto) -> dict[str, Any]:
    """The inverse of ``write``; other tools' entries are left out."""
    return {
        entry.key.removeprefix(PREFIX): json.loads(entry.value)
        for entry in model.metadata_props
        if entry.key.startswith(PREFIX)
    }


def licence(provenance: Mapping[str, Any]) -> str | None:
    """The licence of the training data: what the meta-model says, else what is known; None: unknown."""
    said = provenance.get("licence")
    if isinstance(said, str):
        return said
    return LICENCES.get(str(provenance.get("data", "")).split("-")[0].split("/")[0])


def weights_digest(initialisers: Iterable[TensorProto]) -> str:
    """SHA-256 over all constants of a graph with their names and shapes: over everything that was learned."""
    digest = hashlib.sha256()
    for tensor in initialisers:
        digest.update(f"{tensor.name} {tensor.data_type} {list(tensor.dims)}\n".encode())
        digest.update(tensor.raw_data)
    return digest.hexdigest()


def support_digest(support: SupportSet) -> str:
    """SHA-256 over the support images, their labels and the names."""
    digest = hashlib.sha256(json.dumps([list(support.class_names), list(support.images.shape)]).encode())
    digest.update(support.images.contiguous().numpy().tobytes())
    digest.update(support.labels.contiguous().numpy().tobytes())
    return digest.hexdigest()
