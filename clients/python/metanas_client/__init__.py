"""The Python client of a MetaNAS Edge server: learn a new image task from a handful of pictures.

    from metanas_client import FewShotClient

    with FewShotClient("localhost:50051") as client:
        task = client.adapt({"cat": ["cat1.jpg", "cat2.jpg"], "dog": ["dog1.jpg"]})
        for prediction in task.classify(["unknown.jpg"]):
            print(prediction.class_name, prediction.probability)

    client      FewShotClient: adapt, find and list tasks, ask for readiness
    task        Task: a handle on one learnt task: classify, export, delete
    connection  the channel, deadlines, limits; knows gRPC, not few-shot learning
    images      what users hold (arrays, PIL images, paths, bytes)  ->  proto Image
    messages    proto answers  ->  frozen dataclasses
    errors      the tree of errors, and the one translator from gRPC
    cli         metanas-client, also python -m metanas_client

Everything public is named here; the modules may change. It needs grpcio, protobuf, numpy and
Pillow, and never torch: it is meant to be light enough for the device in the field.
"""

from metanas_client.client import FewShotClient
from metanas_client.errors import (
    ClosedClientError,
    DataLossError,
    DeadlineExceededError,
    InvalidRequestError,
    MetaNASClientError,
    RequestCancelledError,
    ResourceExhaustedError,
    ServerError,
    ServerUnavailableError,
    TaskNotFoundError,
    UnsupportedImageError,
)
from metanas_client.images import ImageLike
from metanas_client.messages import (
    CellGenotype,
    EdgeOperation,
    Genotype,
    NodeGenotype,
    Prediction,
    Preprocessing,
    TaskInfo,
)
from metanas_client.task import ExportFormat, Task

__all__ = [
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
    "MetaNASClientError",
    "NodeGenotype",
    "Prediction",
    "Preprocessing",
    "RequestCancelledError",
    "ResourceExhaustedError",
    "ServerError",
    "ServerUnavailableError",
    "Task",
    "TaskInfo",
    "TaskNotFoundError",
    "UnsupportedImageError",
]
