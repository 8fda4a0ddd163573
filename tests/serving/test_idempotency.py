"""The same idempotency key and request give the same task: one run, whenever and however it is sent again."""

import time

import grpc
import numpy as np
import pytest

from metanas_proto.v1 import few_shot_pb2 as pb

ENDLESS = pb.AdaptOptions(architecture_steps=10_000, weight_steps=10_000)
TAKEN = (grpc.StatusCode.ALREADY_EXISTS, ["another support set, seed or options", "use a new key"])


def request_of(server, support, key, **fields):
    request = server.request(support)
    request.MergeFrom(pb.AdaptRequest(idempotency_key=key, **fields))
    return request


def start(server, request):
    return server.stub.StartAdapt(request, timeout=20)


def end_of(server, job):
    return list(server.stub.WatchAdapt(pb.WatchAdaptRequest(job_id=job.job_id), timeout=60))[-1]


def cancel(server, job):
    return server.stub.CancelAdapt(pb.CancelAdaptRequest(job_id=job.job_id), timeout=40)


def jobs_not_over(server):
    return [job for job in server.stub.ListJobs(pb.ListJobsRequest()).jobs if job.state < pb.AdaptJob.STATE_SUCCEEDED]


def test_a_request_sent_again_joins_its_job_and_later_finds_its_task(job_server, support):
    request = request_of(job_server, support, "again")
    first = start(job_server, request)
    second = start(job_server, request)
    assert second.job_id == first.job_id
    by_adapt = job_server.stub.Adapt(request, timeout=60).task
    assert end_of(job_server, first).task == by_adapt
    assert start(job_server, request).task == by_adapt
    assert job_server.stub.Adapt(request, timeout=60).task == by_adapt


def test_a_key_is_refused_for_another_support_set_seed_or_options_while_it_runs_and_after(job_server, support, refuses):
    changed = [
        request_of(job_server, {**support, "cat": support["cat"][:1]}, "taken"),
        request_of(job_server, {**support, "Cat": support["cat"]}, "taken"),
        request_of(job_server, support, "taken", seed=1),
        request_of(job_server, support, "taken", options=pb.AdaptOptions(weight_steps=1)),
    ]
    job = start(job_server, request_of(job_server, support, "taken"))
    refuses(*TAKEN, lambda: start(job_server, changed[0]))
    end_of(job_server, job)
    for request in changed:
        refuses(*TAKEN, lambda request=request: job_server.stub.Adapt(request))
    refuses(
        grpc.StatusCode.INVALID_ARGUMENT,
        ["idempotency_key has 300 characters", "at most 256"],
        lambda: start(job_server, request_of(job_server, support, "x" * 300)),
    )


def test_the_same_pixels_are_the_same_request_however_they_are_sent(job_server, png_of):
    pixels = np.random.default_rng(1).integers(0, 256, (2, 28, 28), dtype=np.uint8)
    files = [pb.Image(encoded=png_of(image)) for image in pixels]
    tensors = [
        pb.Image(tensor=pb.Tensor(data_type=pb.Tensor.DATA_TYPE_UINT8, shape=(28, 28), data=image.tobytes()))
        for image in pixels
    ]
    first, second = (
        job_server.stub.Adapt(request_of(job_server, {"a": images[:1], "b": images[1:]}, "pixels"), timeout=60).task
        for images in (files, tensors)
    )
    assert first == second


def test_a_key_is_free_again_once_its_job_is_cancelled_or_its_task_deleted(job_server, support):
    endless = start(job_server, request_of(job_server, support, "free", options=ENDLESS))
    cancel(job_server, endless)
    request = request_of(job_server, support, "free")
    job = start(job_server, request)
    assert job.job_id != endless.job_id
    task_id = end_of(job_server, job).task.task_id
    job_server.stub.DeleteTask(pb.DeleteTaskRequest(task_id=task_id))
    assert start(job_server, request_of(job_server, support, "free", seed=1)).job_id != job.job_id


def test_calls_of_adapt_that_share_a_job_end_it_with_the_last_of_them(job_server, support, refuses):
    request = request_of(job_server, support, "shared", options=ENDLESS)
    # Four at once, which the server may take in any order: three fit.
    calls = [job_server.stub.Adapt.future(request, timeout=60) for _ in range(4)]
    end = time.monotonic() + 20
    while not any(call.done() for call in calls):
        assert time.monotonic() < end
        time.sleep(0.05)
    [refused] = [call for call in calls if call.done()]
    calls.remove(refused)
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2 calls of Adapt at a time may wait for jobs that other calls started, and as many do" in refused.details()
    [job] = jobs_not_over(job_server)
    for call in calls[:2]:
        call.cancel()
    time.sleep(0.3)
    assert [one.job_id for one in jobs_not_over(job_server)] == [job.job_id]
    calls[2].cancel()
    assert end_of(job_server, job).state == pb.AdaptJob.STATE_CANCELLED


def test_a_started_job_goes_on_when_the_adapt_that_joined_it_leaves(job_server, support):
    request = request_of(job_server, support, "started", options=ENDLESS)
    job = start(job_server, request)
    call = job_server.stub.Adapt.future(request, timeout=60)
    time.sleep(0.3)
    call.cancel()
    time.sleep(0.3)
    assert [one.job_id for one in jobs_not_over(job_server)] == [job.job_id]
    assert cancel(job_server, job).state == pb.AdaptJob.STATE_CANCELLED


@pytest.fixture(autouse=True)
def leaves_the_server_idle(job_server):
    yield
    for job in jobs_not_over(job_server):
        cancel(job_server, job)
