"""A task as a model repository for NVIDIA's Triton: ``tritonserver --model-repository FOLDER``.

    write_repository   folder, task, ONNX bytes, plan  ->  the files written

    FOLDER/NAME_onnx/config.pbtxt  labels.txt  1/model.onnx
    FOLDER/NAME_plan/config.pbtxt  labels.txt  1/model.plan

ONNX and plan are two models of one task. Batches are put together by Triton, both are warmed up before
they are called ready, and Triton's classification extension answers with the labels. A model that
has changed gets the next version; Triton serves the latest, so labels and version always match.

Knows Triton's ``model_config.proto`` as text; imports nothing of Triton.
"""

import json
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from metanas.artifact import write_atomically
from metanas.model import TaskModel
from metanas_export.errors import ModelRepositoryError
from metanas_export.flavour import title
from metanas_export.plan import Plan, Profile, sha256

QUEUE_DELAY_MICROSECONDS = 500
"""How long a request waits for others to make a batch with: less than one answer takes."""

_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.UINT8: "TYPE_UINT8",
    TensorProto.FLOAT16: "TYPE_FP16",
}


@dataclass(frozen=True, slots=True)
class _Model:
    """One model of the repository."""

    name: str
    file: str
    backend: str
    instances: str
    """Which processors Triton may put it on."""
    content: bytes
    profile: Profile


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    type: str
    dims: tuple[int, ...]
    """Without the batch."""


def write_repository(
    folder: Path,
    task: TaskModel,
    *,
    onnx_model: bytes,
    plan: Plan | None,
    name: str,
    profile: Profile | None = None,
) -> list[Path]:
    """Write or renew the models of a task.

    Args:
        folder: the repository; other models in it stay.
        onnx_model: content of the task's ``.onnx`` file.
        plan: of TensorRT, built from that file; None: the ONNX model alone.
        name: of the models, without their endings.
        profile: batch sizes where there is no plan, whose own they are else; None: the default.

    Returns:
        What was written, config before content.

    Raises:
        ModelRepositoryError: Triton could not run it: a plan of TensorRT-RTX, of other bytes, or that
            takes no single image; a name or label that it cannot hold.
        OSError, ArtifactError: the folder cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ModelRepositoryError(f"{name!r} cannot name a model; use letters, digits, '.', '_' and '-'")
    for label in task.class_names:
        if label.splitlines() != [label]:
            raise ModelRepositoryError(
                f"the class name {label!r} does not fit one line of labels.txt; rename the class"
            )
    profile = plan.profile if plan is not None else profile or Profile()
    models = [_Model(f"{name}_onnx", "model.onnx", "onnxruntime", "KIND_AUTO", onnx_model, profile)]
    if plan is not None:
        _require_fit(plan, onnx_model)
        models.append(_Model(f"{name}_plan", "model.plan", "tensorrt", "KIND_GPU", plan.data, profile))
    graph = onnx.load_model_from_string(onnx_model).graph
    image, scores = _tensor(graph.input[0]), _tensor(graph.output[0])
    written: list[Path] = []
    for model in models:
        written += _write_model(folder / model.name, model, task=task, ends=(image, scores))
    return written


def _require_fit(plan: Plan, onnx_model: bytes) -> None:
    if plan.flavour != "tensorrt":
        raise ModelRepositoryError(
            f"Triton's backend runs plans of TensorRT, this one is of {title(plan.flavour)}; write the repository "
            "with the ONNX model alone, or export on a machine with TensorRT and an NVIDIA GPU"
        )
    if plan.onnx_sha256 != sha256(onnx_model):
        raise ModelRepositoryError("the plan was built from another ONNX file than is given; build it from this one")
    if plan.profile.min_batch != 1:
        raise ModelRepositoryError(
            f"the plan takes batches from {plan.profile.min_batch} on, Triton asks for single images too; build it "
            f"with --profile 1,{plan.profile.opt_batch},{plan.profile.max_batch}"
        )


def _write_model(folder: Path, model: _Model, *, task: TaskModel, ends: tuple[_Tensor, _Tensor]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    content = _write_version(folder, model)
    labels, config = folder / "labels.txt", folder / "config.pbtxt"
    write_atomically(labels, "".join(f"{label}\n" for label in task.class_names).encode())
    write_atomically(config, _config(model, task, image=ends[0], scores=ends[1]).encode())
    return [config, labels, content]


def _write_version(folder: Path, model: _Model) -> Path:
    """The content under the next number, unless the latest is the same; appears whole to a server that polls."""
    latest = max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)
    path = folder / str(latest) / model.file
    if path.is_file() and path.read_bytes() == model.content:
        return path
    partial = folder / f".{latest + 1}.{secrets.token_hex(8)}.partial"
    partial.mkdir()
    try:
        write_atomically(partial / model.file, model.content)
        partial.rename(folder / str(latest + 1))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder / str(latest + 1) / model.file


def _tensor(value: onnx.ValueInfoProto) -> _Tensor:
    kind = value.type.tensor_type
    if kind.elem_type not in _TYPES:
        raise ModelRepositoryError(
            f"{value.name} is of type {TensorProto.DataType.Name(kind.elem_type)}, an exported task has "
            "float32 or uint8 images and float32 logits; export the task again"
        )
    return _Tensor(value.name, _TYPES[kind.elem_type], tuple(one.dim_value for one in kind.shape.dim[1:]))


def _config(model: _Model, task: TaskModel, *, image: _Tensor, scores: _Tensor) -> str:
    """``config.pbtxt``, a ``ModelConfig`` in protobuf's text format."""
    batches = sorted({model.profile.opt_batch, model.profile.max_batch} - {1})
    parameters = {
        "metanas.content_sha256": sha256(model.content),
        "metanas.preprocessing": json.dumps(task.preprocessing.to_dict()),
        "metanas.temperature": repr(task.trust.temperature),
    }
    lines = [
        f"name: {_text(model.name)}",
        f"backend: {_text(model.backend)}",
        f"default_model_filename: {_text(model.file)}",
        f"max_batch_size: {model.profile.max_batch}",
        f"input {{ name: {_text(image.name)} data_type: {image.type} dims: {_list(image.dims)} }}",
        f"output {{ name: {_text(scores.name)} data_type: {scores.type} dims: {_list(scores.dims)} "
        f"label_filename: {_text('labels.txt')} }}",
        f"instance_group {{ count: 1 kind: {model.instances} }}",
        "version_policy { latest { num_versions: 1 } }",
        f"dynamic_batching {{ preferred_batch_size: {_list(batches)} "
        f"max_queue_delay_microseconds: {QUEUE_DELAY_MICROSECONDS} }}",
        *(_warm_up(image, batch) for batch in sorted({1, model.profile.max_batch})),
        *(
            f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}"
            for key, value in parameters.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _warm_up(image: _Tensor, batch: int) -> str:
    return (
        f"model_warmup {{ name: {_text(f'batch of {batch}')} batch_size: {batch} "
        f"inputs {{ key: {_text(image.name)} value {{ data_type: {image.type} dims: {_list(image.dims)} "
        "random_data: true } } }"
    )


def _text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _list(values: Sequence[int]) -> str:
    return f"[{', '.join(str(value) for value in values)}]"
