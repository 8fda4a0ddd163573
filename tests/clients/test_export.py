"""An exported file is there whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from metanas_client import DataLossError, FewShotClient, InvalidRequestError, TaskNotFoundError
from metanas_proto.v1 import few_shot_pb2 as pb

if TYPE_CHECKING:
    from tests.clients.conftest import RecordingService


def test_the_file_is_the_chunks_end_to_end(client: FewShotClient, service: RecordingService, tmp_path: Path) -> None:
    service.chunks = [bytes([number]) * 1_000_000 for number in range(5)]

    path = client.task("task-3").export(tmp_path / "task.onnx", format="onnx")

    assert path.read_bytes() == b"".join(service.chunks)
    assert service.requests[-1] == pb.ExportTaskRequest(task_id="task-3", format=pb.ExportTaskRequest.FORMAT_ONNX)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("task_model.pt", pb.ExportTaskRequest.FORMAT_TASK_MODEL),
        ("task", pb.ExportTaskRequest.FORMAT_TASK_MODEL),
        ("task.onnx", pb.ExportTaskRequest.FORMAT_ONNX),
    ],
)
def test_what_is_exported_follows_from_the_name_unless_said_otherwise(
    name: str, asked: pb.ExportTaskRequest.Format, client: FewShotClient, service: RecordingService, tmp_path: Path
) -> None:
    client.task("task-3").export(str(tmp_path / name))

    assert service.requests[-1] == pb.ExportTaskRequest(task_id="task-3", format=asked)


def test_a_transfer_that_breaks_off_leaves_the_old_file_and_no_other(
    client: FewShotClient, service: RecordingService, tmp_path: Path
) -> None:
    path = tmp_path / "task_model.pt"
    path.write_bytes(b"old")
    service.failure_after_chunks = (grpc.StatusCode.DATA_LOSS, "checksum differs")

    with pytest.raises(DataLossError, match=r"export at .*: checksum differs; delete the task and adapt again"):
        client.task("task-1").export(path)

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_complete_transfer_replaces_the_old_file(client: FewShotClient, tmp_path: Path) -> None:
    path = tmp_path / "task_model.pt"
    path.write_bytes(b"an old file that is longer than the new one")

    client.task("task-1").export(path)

    assert path.read_bytes() == b"first second"


def test_an_unknown_task_leaves_no_file(client: FewShotClient, service: RecordingService, tmp_path: Path) -> None:
    task = client.task("task-1")
    service.failure = (grpc.StatusCode.NOT_FOUND, "no task 'task-1'")

    with pytest.raises(TaskNotFoundError, match="no task 'task-1'"):
        task.export(tmp_path / "task_model.pt")

    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_is_data_loss(client: FewShotClient, service: RecordingService, tmp_path: Path) -> None:
    service.chunks = []

    with pytest.raises(DataLossError, match="export of task-1: the server sent an empty file"):
        client.task("task-1").export(tmp_path / "task_model.pt")

    assert list(tmp_path.iterdir()) == []


def test_another_format_is_refused_with_the_formats_that_there_are(client: FewShotClient, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no export format 'tflite'; pass one of task_model, onnx"):
        client.task("task-1").export(tmp_path / "task", format="tflite")  # type: ignore[arg-type]


def test_a_folder_that_is_not_there_is_a_plain_os_error(client: FewShotClient, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        client.task("task-1").export(tmp_path / "nowhere" / "task_model.pt")
