"""A real gRPC server on a free port whose service records what arrives and gives canned answers.

``small_meta`` is a meta-model for tests of what a real server exports.
"""

import time
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
import numpy as np
import pytest
import torch
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from metanas.backbone import build_backbone
from metanas.model import MetaModel
from metanas.preprocessing import Preprocessing
from metanas.relaxation import initial_architecture
from metanas.schedule import Schedule
from metanas.space import SearchSpace
from metanas_client import FewShotClient
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_proto.v1 import few_shot_pb2_grpc


def canned_task(task_id: str = "task-1") -> pb.Task:
    edge = pb.EdgeOperation(input=0, operation="sep_conv_3x3", weight=0.75)
    skip = pb.EdgeOperation(input=1, operation="skip_connect", weight=0.25)
    return pb.Task(
        task_id=task_id,
        class_names=["cat", "dog"],
        genotype=pb.Genotype(
            normal=pb.CellGenotype(nodes=[pb.NodeGenotype(inputs=[edge, skip])]),
            reduction=pb.CellGenotype(nodes=[pb.NodeGenotype(inputs=[skip])]),
        ),
        parameter_count=123_456,
        one_shot_parameter_count=462_272,
        architecture_steps=50,
        weight_steps=49,
        support_accuracy=0.875,
        adapt_seconds=1.5,
        created_unix_seconds=1_700_000_000.0,
        support_image_count=8,
        preprocessing=pb.Preprocessing(channels=1, height=28, width=27, invert=True),
        warnings=["one node kept a second input"],
    )


class RecordingService(few_shot_pb2_grpc.FewShotServicer):
    """Keeps every request and the time its caller allowed; answers what a test has set."""

    def __init__(self) -> None:
        self.requests: list[Message] = []
        self.seconds_allowed: list[float] = []
        self.failure: tuple[grpc.StatusCode, str] | None = None
        self.delay_seconds = 0.0
        self.chunks: list[bytes] = [b"first ", b"second"]
        self.failure_after_chunks: tuple[grpc.StatusCode, str] | None = None
        self.classes: list[tuple[str, float]] = [("dog", 0.75), ("cat", 0.25)]
        self.answers_left_out = 0

    def Adapt(self, request: pb.AdaptRequest, context: grpc.ServicerContext) -> pb.AdaptResponse:  # noqa: N802
        self._arrive(request, context)
        return pb.AdaptResponse(task=canned_task())

    def StartAdapt(self, request: pb.AdaptRequest, context: grpc.ServicerContext) -> pb.AdaptJob:  # noqa: N802
        self._arrive(request, context)
        return pb.AdaptJob(job_id="job-1", state=pb.AdaptJob.STATE_QUEUED)

    def WatchAdapt(  # noqa: N802
        self, request: pb.WatchAdaptRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.AdaptJob]:
        self._arrive(request, context)
        yield pb.AdaptJob(job_id=request.job_id, state=pb.AdaptJob.STATE_RUNNING)
        yield pb.AdaptJob(job_id=request.job_id, state=pb.AdaptJob.STATE_SUCCEEDED, task=canned_task())

    def Classify(  # noqa: N802
        self, request: pb.ClassifyRequest, context: grpc.ServicerContext
    ) -> pb.ClassifyResponse:
        self._arrive(request, context)
        classes = [pb.ClassProbability(class_name=name, probability=value) for name, value in self.classes]
        answers = [pb.Classification(classes=classes) for _ in request.images]
        return pb.ClassifyResponse(classifications=answers[: len(answers) - self.answers_left_out])

    def GetTask(self, request: pb.GetTaskRequest, context: grpc.ServicerContext) -> pb.Task:  # noqa: N802
        self._arrive(request, context)
        return canned_task(request.task_id)

    def ListTasks(  # noqa: N802
        self, request: pb.ListTasksRequest, context: grpc.ServicerContext
    ) -> pb.ListTasksResponse:
        self._arrive(request, context)
        return pb.ListTasksResponse(tasks=[canned_task("task-1"), canned_task("task-2")])

    def DeleteTask(  # noqa: N802
        self, request: pb.DeleteTaskRequest, context: grpc.ServicerContext
    ) -> pb.DeleteTaskResponse:
        self._arrive(request, context)
        return pb.DeleteTaskResponse()

    def ExportTask(  # noqa: N802
        self, request: pb.ExportTaskRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ExportTaskChunk]:
        self._arrive(request, context)
        for chunk in self.chunks:
            yield pb.ExportTaskChunk(data=chunk)
        if self.failure_after_chunks is not None:
            context.abort(*self.failure_after_chunks)

    def _arrive(self, request: Message, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.seconds_allowed.append(context.time_remaining())
        time.sleep(self.delay_seconds)
        if self.failure is not None:
            context.abort(*self.failure)


class TestServer:
    """The service, the standard health service and their address."""

    __test__ = False

    def __init__(self, port: int = 0) -> None:
        self.service = RecordingService()
        self.health = health.HealthServicer()
        self.set_serving(True)
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=8),
            options=[("grpc.max_receive_message_length", 1_000_000), ("grpc.so_reuseport", 0)],
        )
        few_shot_pb2_grpc.add_FewShotServicer_to_server(self.service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        self._server.start()

    def set_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        self.health.set("metanas.v1.FewShot", status.SERVING if serving else status.NOT_SERVING)

    def stop(self) -> None:
        self._server.stop(grace=None).wait()


@pytest.fixture
def server() -> Iterator[TestServer]:
    server = TestServer()
    yield server
    server.stop()


@pytest.fixture
def start_server() -> Iterator[Callable[[int], None]]:
    """Starts another server on a port of the test's choice, and stops it after the test."""
    servers: list[TestServer] = []
    yield lambda port: servers.append(TestServer(port))
    for server in servers:
        server.stop()


@pytest.fixture
def service(server: TestServer) -> RecordingService:
    return server.service


@pytest.fixture
def client(server: TestServer) -> Iterator[FewShotClient]:
    with FewShotClient(server.address, timeout_seconds=20) as client:
        yield client


@pytest.fixture
def closed_address() -> str:
    """An address at which a server was and is no more."""
    server = TestServer()
    server.stop()
    return server.address


@pytest.fixture
def grey() -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """A grey image of 2 x 3 pixels."""
    return np.array([[0, 1, 2], [253, 254, 255]], dtype=np.uint8)


@pytest.fixture(scope="session")
def small_meta() -> MetaModel:
    """Of colour pictures, with random weights; a task is learned in a moment."""
    space = SearchSpace(
        channels=8,
        in_channels=3,
        image_size=24,
        cells=2,
        reduction_cells=(1,),
        nodes=2,
        operations=("max_pool_3x3", "skip_connect", "sep_conv_3x3"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_backbone(space, None)
    return MetaModel(
        space=space,
        weights={name: value.detach() for name, value in network.named_parameters()},
        architecture=initial_architecture(space),
        head_scale=10.0,
        preprocessing=Preprocessing(
            channels=3, height=24, width=24, invert=True, mean=(0.5, 0.4, 0.3), deviation=(0.2, 0.3, 0.4)
        ),
        schedule=Schedule(architecture_steps=3, weight_steps=3),
    )
