"""The client over a real connection: what it sends, what it hands back, when it gives up."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import TYPE_CHECKING

import grpc
import numpy as np
import numpy.typing as npt
import pytest

from metanas_client import (
    ClosedClientError,
    DeadlineExceededError,
    EdgeOperation,
    FewShotClient,
    InvalidRequestError,
    Preprocessing,
    RequestCancelledError,
    ServerError,
    ServerUnavailableError,
)
from metanas_proto.v1 import few_shot_pb2 as pb

if TYPE_CHECKING:
    from tests.clients.conftest import RecordingService, TestServer

Grey = npt.NDArray[np.uint8]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def test_adapt_sends_every_class_in_order_with_its_images_and_the_seed(
    client: FewShotClient, service: RecordingService, grey: Grey
) -> None:
    client.adapt({"dog": [grey, b"jpeg"], "Katze 猫": [b"png"]}, seed=2**64 - 1)

    (request,) = service.requests
    assert isinstance(request, pb.AdaptRequest)
    assert [(entry.label, len(entry.images)) for entry in request.support] == [("dog", 2), ("Katze 猫", 1)]
    assert request.support[0].images[0].tensor.data == grey.tobytes()
    assert request.support[0].images[1].encoded == b"jpeg"
    assert request.seed == 2**64 - 1


def test_a_task_holds_every_field_that_the_server_sent(client: FewShotClient) -> None:
    task = client.adapt({"cat": [b"png"], "dog": [b"png"]})

    assert task.task_id == task.info.task_id == "task-1"
    assert task.class_names == task.info.class_names == ("cat", "dog")
    assert task.genotype.normal.nodes[0].inputs == (
        EdgeOperation(input=0, operation="sep_conv_3x3", weight=0.75),
        EdgeOperation(input=1, operation="skip_connect", weight=0.25),
    )
    assert [edge.operation for edge in task.genotype.reduction.nodes[0].inputs] == ["skip_connect"]
    assert (task.parameter_count, task.one_shot_parameter_count) == (123_456, 462_272)
    assert (task.info.architecture_steps, task.info.weight_steps) == (50, 49)
    assert (task.support_accuracy, task.adapt_seconds) == (0.875, 1.5)
    assert (task.info.created_unix_seconds, task.info.support_image_count) == (1_700_000_000.0, 8)
    assert task.info.preprocessing == Preprocessing(channels=1, height=28, width=27, invert=True)
    assert task.warnings == ("one node kept a second input",)


def test_classify_gives_one_prediction_for_each_image_most_probable_class_first(
    client: FewShotClient, service: RecordingService, grey: Grey
) -> None:
    service.classes = [("cat", 0.25), ("dog", 0.75)]

    first, second = client.task("task-7").classify([grey, b"png"])

    assert (first.class_name, first.probability) == ("dog", 0.75)
    assert list(first.probabilities.items()) == [("dog", 0.75), ("cat", 0.25)]
    assert second == first
    request = service.requests[-1]
    assert isinstance(request, pb.ClassifyRequest)
    assert (request.task_id, len(request.images)) == ("task-7", 2)


def test_fewer_answers_than_images_are_an_error_of_the_server(client: FewShotClient, service: RecordingService) -> None:
    service.answers_left_out = 1
    with pytest.raises(ServerError, match="the server gave 1 answers for 2 images"):
        client.task("task-1").classify([b"png", b"png"])


def test_an_answer_without_classes_is_an_error_of_the_server(client: FewShotClient, service: RecordingService) -> None:
    service.classes = []
    with pytest.raises(ServerError, match="an answer without classes"):
        client.task("task-1").classify([b"png"])


def test_tasks_are_found_listed_and_deleted_by_their_id(client: FewShotClient, service: RecordingService) -> None:
    assert client.task("task-9").task_id == "task-9"
    assert [task.task_id for task in client.tasks()] == ["task-1", "task-2"]
    client.task("task-9").delete()

    assert service.requests == [
        pb.GetTaskRequest(task_id="task-9"),
        pb.ListTasksRequest(),
        pb.GetTaskRequest(task_id="task-9"),
        pb.DeleteTaskRequest(task_id="task-9"),
    ]


def test_every_call_carries_a_deadline_the_clients_or_its_own(client: FewShotClient, service: RecordingService) -> None:
    client.adapt({"cat": [b"png"], "dog": [b"png"]})
    client.adapt({"cat": [b"png"], "dog": [b"png"]}, timeout_seconds=300)
    task = client.task("task-1")
    task.classify([b"png"], timeout_seconds=5)
    client.tasks()
    task.delete()

    assert service.seconds_allowed == pytest.approx([20, 300, 20, 5, 20, 20], abs=2)


def test_a_slow_server_ends_in_a_deadline_error_that_names_the_seconds(
    client: FewShotClient, service: RecordingService
) -> None:
    service.delay_seconds = 1
    started = time.monotonic()
    with pytest.raises(
        DeadlineExceededError,
        match=r"tasks at .*: no answer within 0\.2 s \(Deadline Exceeded\); pass a larger timeout",
    ):
        client.tasks(timeout_seconds=0.2)
    assert time.monotonic() - started < 0.9


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_deadline_that_is_not_above_zero_and_finite_is_refused(client: FewShotClient, seconds: float) -> None:
    with pytest.raises(InvalidRequestError, match="timeout_seconds must be above 0 and finite"):
        client.tasks(timeout_seconds=seconds)
    with pytest.raises(InvalidRequestError, match="timeout_seconds must be above 0 and finite"):
        FewShotClient("localhost:1", timeout_seconds=seconds)


def test_what_cannot_be_put_into_a_message_is_refused_unsent(client: FewShotClient, service: RecordingService) -> None:
    with pytest.raises(InvalidRequestError, match=r"seed must be in 0\.\.2\*\*64 - 1, got -1"):
        client.adapt({"cat": [b"png"], "dog": [b"png"]}, seed=-1)
    with pytest.raises(InvalidRequestError, match=r"a class name is 3, a int; pass str\(3\)"):
        client.adapt({3: [b"png"]})  # type: ignore[dict-item]
    with pytest.raises(InvalidRequestError, match="support is a list; pass a dict of class names"):
        client.adapt([b"png"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="class 'cat': one bare bytes; pass a list of images"):
        client.adapt({"cat": b"png"})  # type: ignore[dict-item]
    with pytest.raises(InvalidRequestError, match="max_message_bytes must be above 0, got 0"):
        FewShotClient("localhost:1", max_message_bytes=0)
    assert service.requests == []


def test_a_client_used_after_close_says_that_it_is_closed(server: TestServer) -> None:
    with FewShotClient(server.address) as client:
        task = client.task("task-1")
    client.close()

    with pytest.raises(ClosedClientError, match=f"the client of {server.address} is closed; make a new"):
        client.tasks()
    with pytest.raises(ClosedClientError, match="make a new FewShotClient"):
        task.classify([b"png"])
    with pytest.raises(ClosedClientError, match="make a new FewShotClient"):
        client.is_ready()


def test_closing_ends_a_running_call_of_another_thread_as_cancelled(
    client: FewShotClient, service: RecordingService
) -> None:
    service.delay_seconds = 1
    with futures.ThreadPoolExecutor() as pool:
        running = pool.submit(client.tasks)
        while not service.requests:
            time.sleep(0.01)
        client.close()
        with pytest.raises(RequestCancelledError, match="tasks at"):
            running.result()


def test_one_client_serves_many_threads_from_its_first_call_on(
    client: FewShotClient, service: RecordingService
) -> None:
    together = threading.Barrier(8)

    def find(index: int) -> str:
        together.wait()
        return client.task(f"task-{index}").task_id

    with futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(find, range(8))) == [f"task-{index}" for index in range(8)]
    assert len(service.requests) == 8


@needs_fork
@pytest.mark.parametrize("used_before", [False, True])
def test_a_client_made_before_a_fork_works_in_parent_and_child(server: TestServer, used_before: bool) -> None:
    script = f"""
import os
from metanas_client import FewShotClient
client = FewShotClient({server.address!r}, timeout_seconds=10)
if {used_before}:
    client.tasks()
for _ in range(20):  # a socket shared with the parent fails only in one child of six
    child = os.fork()
    if child == 0:
        os._exit(len(client.tasks()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
assert len(client.tasks()) == 2
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@needs_fork
def test_a_fork_while_another_thread_holds_the_lock_leaves_the_child_unlocked(server: TestServer) -> None:
    script = f"""
import os
from metanas_client import FewShotClient
client = FewShotClient({server.address!r}, timeout_seconds=10)
with client._connection._lock:
    child = os.fork()
    if child == 0:
        os._exit(len(client.tasks()))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_client_loads_neither_torch_nor_the_core() -> None:
    # grpc_health is no subject here: grpc itself imports it wherever it is installed.
    script = (
        "import sys; from metanas_client import *; assert 'grpc' in sys.modules; "
        "print({'torch', 'onnx', 'onnxruntime', 'metanas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_ready_is_what_the_health_service_says(client: FewShotClient, server: TestServer) -> None:
    assert client.is_ready()
    server.set_serving(False)
    assert not client.is_ready()
    del server.health._server_status["metanas.v1.FewShot"]  # as a proxy that has a health service of its own
    assert not client.is_ready()


def test_an_address_where_nothing_listens_is_not_ready(closed_address: str) -> None:
    with FewShotClient(closed_address) as client:
        assert not client.is_ready(timeout_seconds=2)


def test_waiting_ends_once_the_server_says_that_it_serves(client: FewShotClient, server: TestServer) -> None:
    server.set_serving(False)
    timer = threading.Timer(0.4, server.set_serving, [True])
    started = time.monotonic()
    timer.start()

    client.wait_until_ready(timeout_seconds=20)

    assert 0.3 < time.monotonic() - started < 5


def test_waiting_notices_a_server_that_starts_later(closed_address: str, start_server: Callable[[int], None]) -> None:
    timer = threading.Timer(0.5, start_server, [int(closed_address.rpartition(":")[2])])
    with FewShotClient(closed_address) as client:
        timer.start()
        client.wait_until_ready(timeout_seconds=20)
        assert len(client.tasks()) == 2


def test_waiting_in_vain_ends_in_a_deadline_error(client: FewShotClient, server: TestServer) -> None:
    server.set_serving(False)
    with pytest.raises(DeadlineExceededError, match=r"was not ready within 0\.3 s; check the address"):
        client.wait_until_ready(timeout_seconds=0.3)


def test_a_server_without_a_health_service_is_an_error_not_a_wait() -> None:
    bare = grpc.server(futures.ThreadPoolExecutor(1))
    port = bare.add_insecure_port("127.0.0.1:0")
    bare.start()
    try:
        with (
            FewShotClient(f"127.0.0.1:{port}") as client,
            pytest.raises(ServerError, match="check that it is a MetaNAS Edge server"),
        ):
            client.wait_until_ready(timeout_seconds=10)
    finally:
        bare.stop(None).wait()


def test_an_address_where_nothing_listens_is_an_unavailable_server(closed_address: str) -> None:
    with (
        FewShotClient(closed_address, timeout_seconds=10) as client,
        pytest.raises(ServerUnavailableError, match=rf"tasks at {closed_address}: .*check the address"),
    ):
        client.tasks()


def test_a_server_that_takes_two_seconds_to_shake_hands_is_not_given_up(server: TestServer) -> None:
    host, port = server.address.rsplit(":", 1)
    with socket.create_server(("127.0.0.1", 0)) as slow:
        threading.Thread(target=_relay_late, args=(slow, (host, int(port)), 2.0), daemon=True).start()
        with FewShotClient(f"127.0.0.1:{slow.getsockname()[1]}", timeout_seconds=30) as client:
            assert client.task("task-1").task_id == "task-1"


def _relay_late(listener: socket.socket, target: tuple[str, int], delay_seconds: float) -> None:
    """Between the first caller and the target; the target's first bytes come late."""
    near = listener.accept()[0]
    with near, socket.create_connection(target) as far:
        threading.Thread(target=_copy, args=(near, far), daemon=True).start()
        time.sleep(delay_seconds)
        _copy(far, near)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
