"""Top-k answers, where the time went, and answers to a stream."""

import threading
import time

import grpc
import pytest

from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.config import ServerConfig


@pytest.fixture
def task_id(job_server, support):
    return job_server.adapt(support).task_id


def test_top_k_gives_the_first_of_all_classes(job_server, task_id, queries):
    def classes(top_k):
        request = pb.ClassifyRequest(task_id=task_id, images=queries, top_k=top_k)
        return [list(image.classes) for image in job_server.stub.Classify(request, timeout=20).classifications]

    whole = classes(0)
    assert [len(image) for image in whole] == [3] * len(queries)
    assert classes(2) == [image[:2] for image in whole]
    assert classes(7) == whole


def test_an_answer_says_where_the_time_went(job_server, task_id, queries):
    timing = job_server.stub.Classify(pb.ClassifyRequest(task_id=task_id, images=queries), timeout=20).timing
    assert timing.decode_milliseconds > 0
    assert timing.compute_milliseconds > 0
    assert timing.queue_milliseconds > 0


def test_the_queue_is_what_a_call_waits_for_a_thread(job_server, task_id, queries):
    request = pb.ClassifyRequest(task_id=task_id, images=queries * 10)
    calls = [job_server.stub.Classify.future(request, timeout=60) for _ in range(64)]
    timings = [call.result().timing for call in calls]
    waited = sorted(timing.queue_milliseconds for timing in timings)
    work = min(timing.decode_milliseconds + timing.compute_milliseconds for timing in timings)
    # 16 threads for 64 calls: the last begin after three others have been answered on their thread.
    assert waited[-1] > 2 * work


def test_calls_at_the_same_time_are_run_together_and_answered_as_each_is_alone(job_server, task_id, queries):
    requests = [pb.ClassifyRequest(task_id=task_id, images=[image]) for image in queries]
    alone = [job_server.stub.Classify(request, timeout=20) for request in requests]
    assert {answer.timing.batch_images for answer in alone} == {1}
    largest = 0
    for _ in range(20):
        calls = [job_server.stub.Classify.future(requests[number % len(requests)], timeout=60) for number in range(64)]
        for number, call in enumerate(calls):
            answer = call.result()
            assert answer.classifications == alone[number % len(alone)].classifications
            largest = max(largest, answer.timing.batch_images)
        if largest > 1:
            break
    assert largest > 1


def test_a_stream_is_answered_request_after_request_as_classify_does(job_server, task_id, queries):
    answered = threading.Semaphore(0)

    def frames():
        for number, image in enumerate(queries):
            yield pb.ClassifyRequest(task_id="" if number else task_id, images=[image], top_k=number)
            assert answered.acquire(timeout=20)  # each answer comes before the next frame

    for number, answer in enumerate(job_server.stub.ClassifyStream(frames(), timeout=30)):
        [image] = answer.classifications
        expected = pb.ClassifyRequest(task_id=task_id, images=[queries[number]], top_k=number)
        assert [image] == list(job_server.stub.Classify(expected).classifications)
        assert answer.timing.compute_milliseconds > 0
        answered.release()
    assert number == len(queries) - 1


def test_a_frame_that_cannot_be_answered_ends_the_stream_after_the_answers_before_it(
    job_server, task_id, queries, refuses
):
    good = pb.ClassifyRequest(task_id=task_id, images=queries[:1])
    for bad, code, words in (
        (pb.ClassifyRequest(), grpc.StatusCode.INVALID_ARGUMENT, ["request 1 of the stream: no images"]),
        (
            pb.ClassifyRequest(task_id="x", images=queries),
            grpc.StatusCode.NOT_FOUND,
            ["request 1 of the stream: no task 'x'"],
        ),
    ):
        stream = job_server.stub.ClassifyStream(iter([good, bad, good]), timeout=20)
        assert next(stream).classifications
        refuses(code, words, lambda stream=stream: next(stream))
    first = job_server.stub.ClassifyStream(iter([pb.ClassifyRequest(images=queries)]), timeout=20)
    refuses(grpc.StatusCode.INVALID_ARGUMENT, ["task_id is empty"], lambda: next(first))


def test_a_stream_does_not_hold_up_a_server_that_drains(tiny_meta, start_server, support, queries, refuses):
    server = start_server(ServerConfig(meta_path=tiny_meta, port=0, adapt_workers=1))
    task_id = server.adapt(support).task_id
    next_frame = threading.Semaphore(1)

    def frames():
        while next_frame.acquire(timeout=20):
            yield pb.ClassifyRequest(task_id=task_id, images=queries[:1])

    stream = server.stub.ClassifyStream(frames(), timeout=60)
    assert next(stream).classifications
    stopping = threading.Thread(target=server.application.stop, args=(30,))
    begin = time.monotonic()
    stopping.start()
    while server.health() == "SERVING":
        time.sleep(0.01)
    next_frame.release()
    refuses(grpc.StatusCode.UNAVAILABLE, ["draining before it stops"], lambda: next(stream))
    stopping.join(timeout=20)
    assert not stopping.is_alive()
    assert time.monotonic() - begin < 15
