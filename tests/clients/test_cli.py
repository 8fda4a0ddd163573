"""The command line: what it prints, and the exit status that a script can rely on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from metanas_client.cli import _prediction_text, _shown, main, read_support_folder
from metanas_client.messages import Prediction
from metanas_proto.v1 import few_shot_pb2 as pb

if TYPE_CHECKING:
    from tests.clients.conftest import RecordingService, TestServer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("dog/2.JPG", "dog/1.png", "cat/a.jpeg", "cat/notes.txt", "cat/.hidden.png", ".git/x.png", "README"):
        path = tmp_path / "support" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "support"


def test_a_support_folder_gives_sorted_images_by_class_and_names_the_rest(folder: Path) -> None:
    classes, others = read_support_folder(folder)

    assert classes == {
        "cat": [folder / "cat/a.jpeg"],
        "dog": [folder / "dog/1.png", folder / "dog/2.JPG"],
    }
    assert others == [folder / "README", folder / "cat/notes.txt"]


def test_adapt_sends_the_folder_and_prints_the_task(
    folder: Path, server: TestServer, service: RecordingService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapt", str(folder), "--server", server.address, "--seed", "3"]) == 0

    request, watched = service.requests
    assert isinstance(request, pb.AdaptRequest)
    assert watched == pb.WatchAdaptRequest(job_id="job-1")
    assert not request.HasField("options") or request.options == pb.AdaptOptions()
    assert [(entry.label, [image.encoded for image in entry.images]) for entry in request.support] == [
        ("cat", [b"cat/a.jpeg"]),
        ("dog", [b"dog/1.png", b"dog/2.JPG"]),
    ]
    assert request.seed == 3
    said = capsys.readouterr()
    assert "task              task-1\n" in said.out
    assert "123,456 of 462,272" in said.out
    assert "warning           one node kept a second input" in said.out
    assert "notes.txt: no PNG or JPEG file" in said.err


def test_adapt_with_json_prints_one_value_and_nothing_else(
    folder: Path, server: TestServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapt", str(folder), "--server", server.address, "--json"]) == 0

    printed = json.loads(capsys.readouterr().out)
    assert printed["task_id"] == "task-1"
    assert printed["genotype"]["normal"]["nodes"][0]["inputs"][0]["operation"] == "sep_conv_3x3"


def test_classify_prints_a_line_for_each_image(
    folder: Path, server: TestServer, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(folder / "dog/1.png"), str(folder / "cat/a.jpeg")]

    assert main(["classify", "task-1", *images, "--server", server.address]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{image}  dog 75.0%  (cat 25.0%)" for image in images]

    assert main(["classify", "task-1", *images, "--server", server.address, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(entry["image"], entry["class_name"]) for entry in printed] == [(image, "dog") for image in images]


def test_tasks_prints_a_line_for_each_task(server: TestServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--server", server.address]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["task-1", "task-2"]
    assert all(line.endswith("cat, dog") for line in lines)


def test_delete_asks_the_server_to_delete(
    server: TestServer, service: RecordingService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["delete", "task-5", "--server", server.address]) == 0
    assert service.requests[-1] == pb.DeleteTaskRequest(task_id="task-5")
    assert capsys.readouterr().out == "deleted task-5\n"


def test_export_writes_the_file_of_the_named_format(
    server: TestServer, service: RecordingService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "task.onnx"
    assert main(["export", "task-5", str(target), "--format", "onnx", "--server", server.address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(target), "bytes": 12}
    assert target.read_bytes() == b"first second"
    assert service.requests[-1] == pb.ExportTaskRequest(task_id="task-5", format=pb.ExportTaskRequest.FORMAT_ONNX)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 2),
        (grpc.StatusCode.NOT_FOUND, 2),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
        (grpc.StatusCode.UNAVAILABLE, 1),
        (grpc.StatusCode.INTERNAL, 1),
    ],
)
def test_the_exit_status_tells_bad_input_from_a_failing_server(
    server: TestServer,
    service: RecordingService,
    code: grpc.StatusCode,
    status: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    service.failure = (code, "the server's words")
    assert main(["delete", "task-1", "--server", server.address]) == status
    assert "the server's words" in capsys.readouterr().err


def test_input_that_cannot_be_read_exits_with_2_and_says_why(
    server: TestServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at_server = ["--server", server.address]
    assert main(["adapt", str(tmp_path / "nowhere"), *at_server]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
    assert main(["adapt", str(tmp_path), *at_server]) == 2
    assert "holds no class folders" in capsys.readouterr().err
    assert main(["classify", "task-1", str(tmp_path / "gone.png"), *at_server]) == 2
    assert "gone.png" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["export", "task-1", "file", "--format", "tflite", *at_server])
    assert caught.value.code == 2


def test_python_m_runs_the_command_and_a_closed_address_exits_with_1(closed_address: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "metanas_client", "tasks", "--server", closed_address],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "check the address and that the server runs" in done.stderr
    assert done.stdout == ""


def test_names_of_classes_cannot_steer_the_terminal() -> None:
    assert _shown("Ünï", "a\n\tb", "\x1b[31mred", "\x00") == "Ünï, a\\n\\tb, \\x1b[31mred, \\x00"


def test_a_reader_who_leaves_is_no_error_in_words(server: TestServer) -> None:
    command = [sys.executable, "-m", "metanas_client", "tasks", "--server", server.address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (1, "")


def test_an_image_of_no_class_is_marked() -> None:
    answer = Prediction("dog", 0.75, {"dog": 0.75, "cat": 0.25}, similarity=0.1, none_of_these=True)
    assert _prediction_text(Path("x.png"), answer=answer) == "x.png  dog 75.0%  (cat 25.0%)  none of these?"
