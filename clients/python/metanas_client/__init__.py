"""The Python client of a MetaNAS Edge server: learn a new image task from a handful of pictures.

    from metanas_client import FewShotClient

    with FewShotClient("localhost:50051") as client:
        task = client.adapt({"cat": ["cat1.jpg", "cat2.jpg"], "dog": ["dog1.jpg"]})
        for prediction in task.classify(["unknown.jpg"]):
            print(prediction.class_name, prediction.probability)

    client      FewShotClient: adapt, find and list tasks, ask for readiness
    job         AdaptJob: a handle on one adaptation: watch, wait for its task, cancel
    task        Task: a handle on one learnt task: classify, export, delete
    local       TaskRunner: the same answers from an exported file, on the device, without a server
    connection  the channel, deadlines, limits; knows gRPC, not few-shot learning
    security    TLS, certificates and the token of a connection
    content     what users hold (arrays, PIL images, paths, bytes)  ->  bytes or pixels
    images      the same  ->  proto Image
    messages    proto answers  ->  frozen dataclasses
    errors      the tree of errors; ``translation`` is the one translator from gRPC
    cli         metanas-client, also python -m metanas_client

Everything public is named here, but for ``local``; the modules may change. It needs grpcio,
protobuf, numpy and Pillow, and never torch: it is meant to be light enough for the device in the
field. What speaks gRPC is imported when it is first asked for, so that ``metanas_client.local``
does without grpcio and protobuf.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from metanas_client.content import ImageLike
from metanas_client.errors import (
    AuthenticationError,
    ClosedClientError,
    DataLossError,
    DeadlineExceededError,
    InvalidRequestError,
    JobNotFoundError,
    KeyTakenError,
    MetaNASClientError,
    ModelFileError,
    PreconditionError,
    RequestCancelledError,
    ResourceExhaustedError,
    RuntimeMissingError,
    ServerError,
    ServerUnavailableError,
    TaskNotFoundError,
    UnsupportedImageError,
)
from metanas_client.job_status import AdaptProgress, JobStatus
from metanas_client.messages import (
    AdaptSettings,
    BudgetReport,
    CellGenotype,
    EdgeOperation,
    ExportFormat,
    Genotype,
    NodeGenotype,
    Prediction,
    Predictions,
    Preprocessing,
    TaskInfo,
    Timing,
)

if TYPE_CHECKING:
    from metanas_client.adapt_request import AdaptOptions
    from metanas_client.client import FewShotClient
    from metanas_client.job import AdaptJob
    from metanas_client.task import Task

__all__ = [
    "AdaptJob",
    "AdaptOptions",
    "AdaptProgress",
    "AdaptSettings",
    "AuthenticationError",
    "BudgetReport",
    "CellGenotype",
    "ClosedClientError",
    "DataLossError",
    "DeadlineExceededError",
    "EdgeOperation",
    "ExportFormat",
    "FewShotClient",
    "Genotype",
    "ImageLike",
    "InvalidRequestError",
    "JobNotFoundError",
    "JobStatus",
    "KeyTakenError",
    "MetaNASClientError",
    "ModelFileError",
    "NodeGenotype",
    "PreconditionError",
    "Prediction",
    "Predictions",
    "Preprocessing",
    "RequestCancelledError",
    "ResourceExhaustedError",
    "RuntimeMissingError",
    "ServerError",
    "ServerUnavailableError",
    "Task",
    "TaskInfo",
    "TaskNotFoundError",
    "Timing",
    "UnsupportedImageError",
]

_ON_DEMAND = {
    "AdaptJob": "metanas_client.job",
    "AdaptOptions": "metanas_client.adapt_request",
    "FewShotClient": "metanas_client.client",
    "Task": "metanas_client.task",
}
"""Public names whose modules need gRPC, and those modules."""


def __getattr__(name: str) -> object:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_ON_DEMAND[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
