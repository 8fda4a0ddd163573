"""A task from a server, over real gRPC."""

from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from metanas_export import cli
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_proto.v1 import few_shot_pb2_grpc


class OneTask(few_shot_pb2_grpc.FewShotServicer):
    """Holds the file of one task."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def GetTask(self, request: pb.GetTaskRequest, context: grpc.ServicerContext) -> pb.Task:  # noqa: N802
        if request.task_id != "task-1":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no task {request.task_id}")
        return pb.Task(task_id="task-1", class_names=["a", "b"])

    def ExportTask(  # noqa: N802
        self, request: pb.ExportTaskRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ExportTaskChunk]:
        assert request.format == pb.ExportTaskRequest.FORMAT_TASK_MODEL
        yield pb.ExportTaskChunk(data=self._content[:100])
        yield pb.ExportTaskChunk(data=self._content[100:])


@pytest.fixture
def address(task_path) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    few_shot_pb2_grpc.add_FewShotServicer_to_server(OneTask(task_path.read_bytes()), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_task_of_a_server_is_exported_under_its_id(address, tmp_path) -> None:
    assert cli.main(["--server", address, "--task", "task-1", "--output", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["task-1.onnx"]


def test_a_task_that_the_server_does_not_have_is_said(address, tmp_path, capsys) -> None:
    assert cli.main(["--server", address, "--task", "task-2", "--output", str(tmp_path / "out")]) == 1
    assert "no task task-2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
