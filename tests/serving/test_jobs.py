"""Adaptation beside the requests: the queue, cancelling, and a process that dies."""

import os
import signal
import threading
import time
from pathlib import Path

import grpc
import pytest

from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.config import ServerConfig

# Of a step of the slow model and the pipe; the machine may be busy.
STOPS_WITHIN_SECONDS = 5


@pytest.fixture(scope="module")
def slow_server(slow_meta, make_server):
    return make_server(ServerConfig(meta_path=slow_meta, port=0, max_queue=2, request_threads=7, adapt_workers=1))


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def running(server):
    return server.application.adaptations.running_count


def waiting(server):
    return server.application.adaptations.waiting_count


def idle(server):
    return running(server) == waiting(server) == 0


def test_a_cancelled_adaptation_stops_and_frees_its_place(slow_server, support):
    call = slow_server.begin_adapt(support)
    until(lambda: running(slow_server) == 1)
    begin = time.monotonic()
    call.cancel()
    until(lambda: idle(slow_server))
    assert time.monotonic() - begin < STOPS_WITHIN_SECONDS
    assert not slow_server.stub.ListTasks(pb.ListTasksRequest()).tasks


def test_a_deadline_stops_the_adaptation(slow_server, support, refuses):
    begin = time.monotonic()
    refuses(grpc.StatusCode.DEADLINE_EXCEEDED, [], slow_server.begin_adapt(support, timeout=1).result)
    until(lambda: idle(slow_server))
    assert time.monotonic() - begin < 1 + STOPS_WITHIN_SECONDS


def test_a_full_queue_refuses_at_once_and_cancelling_a_waiting_call_makes_room(slow_server, support, refuses):
    calls = [slow_server.begin_adapt(support) for _ in range(3)]
    until(lambda: running(slow_server) == 1 and waiting(slow_server) == 2)
    refuses(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        ["lets 1 run (--adapt-workers) and 2 wait", "--max-queue", "later"],
        lambda: slow_server.adapt(support),
    )
    assert slow_server.health() == "SERVING"
    calls[2].cancel()
    until(lambda: waiting(slow_server) == 1)
    calls.append(slow_server.begin_adapt(support))
    until(lambda: waiting(slow_server) == 2)
    for call in calls:
        call.cancel()
    until(lambda: idle(slow_server))


def test_more_callers_than_threads_leave_a_thread_for_health_and_listing(slow_server, support):
    calls = [slow_server.begin_adapt(support) for _ in range(20)]
    until(lambda: waiting(slow_server) == 2)
    for _ in range(20):
        assert slow_server.health() == "SERVING"
        slow_server.stub.ListTasks(pb.ListTasksRequest(), timeout=5)
    for call in calls:
        call.cancel()
    until(lambda: idle(slow_server))


def test_a_killed_process_fails_its_request_alone_and_a_new_one_follows(slow_server, support, refuses):
    call = slow_server.begin_adapt(support)
    until(lambda: running(slow_server) == 1)
    [old] = slow_server.application.adaptations.process_ids
    waits = slow_server.begin_adapt(support)
    until(lambda: waiting(slow_server) == 1)
    os.kill(old, signal.SIGKILL)
    refuses(grpc.StatusCode.INTERNAL, ["signal 9 (SIGKILL)", "while it learnt", "send the request again"], call.result)
    assert ("retry-after-ms", "1000") in [tuple(pair) for pair in call.trailing_metadata()]
    until(lambda: running(slow_server) == 1)
    [new] = slow_server.application.adaptations.process_ids
    assert new != old
    waits.cancel()
    until(lambda: idle(slow_server))


def test_a_process_that_died_idle_is_replaced_for_the_next_request(slow_server, support):
    [old] = slow_server.application.adaptations.process_ids
    os.kill(old, signal.SIGKILL)
    until(lambda: Path(f"/proc/{old}/stat").read_text().split()[2] == "Z")
    call = slow_server.begin_adapt(support)
    until(lambda: running(slow_server) == 1 and slow_server.application.adaptations.process_ids not in ([old], []))
    time.sleep(0.2)
    assert not call.done()
    call.cancel()
    until(lambda: idle(slow_server))


@pytest.fixture(scope="module")
def two_workers(slow_meta, make_server):
    server = make_server(ServerConfig(meta_path=slow_meta, port=0, max_queue=2, adapt_workers=2))
    until(lambda: len(server.application.adaptations.process_ids) == 2)
    return server


def test_two_adaptations_run_at_once_and_share_the_cores(two_workers, support):
    cores = os.cpu_count() or 1
    first = two_workers.begin_adapt(support)
    until(lambda: running(two_workers) == 1)
    [alone] = two_workers.application.adaptations.running
    assert alone.threads == cores
    others = [two_workers.begin_adapt(support) for _ in range(2)]
    until(lambda: running(two_workers) == 2 and waiting(two_workers) == 1)
    assert sorted(order.threads for order in two_workers.application.adaptations.running) == sorted(
        [cores, max(1, cores // 2)]
    )
    for call in (first, *others):
        call.cancel()
    until(lambda: idle(two_workers))


def test_of_two_processes_the_one_that_is_killed_takes_its_own_request_only(two_workers, support):
    calls = [two_workers.begin_adapt(support) for _ in range(2)]
    until(lambda: running(two_workers) == 2)
    old = two_workers.application.adaptations.process_ids
    os.kill(old[0], signal.SIGKILL)
    until(lambda: any(call.done() for call in calls))
    [failed] = [call for call in calls if call.done()]
    assert failed.code() is grpc.StatusCode.INTERNAL
    assert "signal 9 (SIGKILL)" in failed.details()
    new = two_workers.begin_adapt(support)
    until(lambda: running(two_workers) == 2)
    processes = two_workers.application.adaptations.process_ids
    assert len(processes) == 2
    assert old[1] in processes
    assert old[0] not in processes
    [lives] = [call for call in calls if call is not failed]
    time.sleep(0.2)
    assert not lives.done()
    for call in (lives, new):
        call.cancel()
    until(lambda: idle(two_workers))


def test_two_at_once_learn_the_same_as_one_alone(tiny_meta, start_server, support, queries):
    server = start_server(ServerConfig(meta_path=tiny_meta, port=0, adapt_workers=2))
    until(lambda: len(server.application.adaptations.process_ids) == 2)
    alone = server.adapt(support, seed=3)
    request = server.request(support, seed=3)
    calls = [server.stub.Adapt.future(request, timeout=120) for _ in range(4)]
    together = [call.result().task for call in calls]
    assert len({task.task_id for task in [alone, *together]}) == 5
    answers = server.classify(alone.task_id, queries)
    for task in together:
        assert task.genotype == alone.genotype
        assert server.classify(task.task_id, queries) == answers


def test_draining_takes_no_new_calls_and_cancels_what_does_not_finish(slow_meta, start_server, support, refuses):
    server = start_server(ServerConfig(meta_path=slow_meta, port=0, adapt_workers=1))
    runs, waits = server.begin_adapt(support), server.begin_adapt(support)
    until(lambda: running(server) == 1 and waiting(server) == 1)
    stopping = threading.Thread(target=server.application.stop, args=(1.5,))
    stopping.start()
    until(lambda: server.health() == "NOT_SERVING", seconds=1)
    refuses(
        grpc.StatusCode.UNAVAILABLE,
        ["draining before it stops"],
        lambda: server.stub.ListTasks(pb.ListTasksRequest()),
    )
    for call in (runs, waits):
        refuses(grpc.StatusCode.UNAVAILABLE, ["stopped before the adaptation was finished"], call.result)
    stopping.join(timeout=20)
    assert not stopping.is_alive()
    assert not server.application.adaptations.process_ids
