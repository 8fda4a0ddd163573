"""Adaptation as a job, at a server process: started, watched, asked for, cancelled."""

import os
import signal
import time
from pathlib import Path

import grpc
import pytest

from metanas_proto.v1 import few_shot_pb2 as pb

Job = pb.AdaptJob
# Never done in a test's time; each step takes some milliseconds.
ENDLESS = pb.AdaptOptions(architecture_steps=10_000, weight_steps=10_000)
STOPS_WITHIN_SECONDS = 5


@pytest.fixture
def start(job_server, support):
    """Starts jobs; those that are not over are cancelled after the test."""
    jobs = []

    def start(options=None, **fields):
        request = job_server.request(support)
        request.MergeFrom(pb.AdaptRequest(options=options, **fields))
        jobs.append(job_server.stub.StartAdapt(request, timeout=20))
        return jobs[-1].job_id

    yield start
    for job in jobs:
        job_server.stub.CancelAdapt(pb.CancelAdaptRequest(job_id=job.job_id), timeout=40)


@pytest.fixture
def watch(job_server):
    return lambda job_id, timeout=60: job_server.stub.WatchAdapt(pb.WatchAdaptRequest(job_id=job_id), timeout=timeout)


@pytest.fixture
def cancel(job_server):
    return lambda job_id: job_server.stub.CancelAdapt(pb.CancelAdaptRequest(job_id=job_id), timeout=40)


@pytest.fixture
def get(job_server):
    return lambda job_id: job_server.stub.GetJob(pb.GetJobRequest(job_id=job_id), timeout=20)


def wait_for_steps(watch, job_id, steps=1):
    return next(job for job in watch(job_id) if job.progress.step >= steps)


def test_a_watched_job_waits_its_turn_learns_in_two_phases_and_ends_with_a_task_that_answers(
    job_server, start, watch, cancel, queries
):
    first, second, third = start(ENDLESS), start(ENDLESS), start(pb.AdaptOptions(architecture_steps=12, weight_steps=8))
    stream = watch(third)
    view = next(stream)
    assert (view.state, view.queue_position, view.job_id) == (Job.STATE_QUEUED, 1, third)
    cancel(second)
    view = next(stream)
    assert (view.state, view.queue_position) == (Job.STATE_QUEUED, 0)
    cancel(first)
    views = list(stream)
    assert [view.state for view in views[:-1]] == [Job.STATE_RUNNING] * (len(views) - 1)

    steps = [view.progress for view in views if view.HasField("progress")]
    assert [step.step for step in steps] == sorted(step.step for step in steps)
    assert {step.steps for step in steps} == {20}
    assert all(0 <= step.support_accuracy <= 1 and step.loss > 0 for step in steps)
    for step in steps:
        expected = pb.AdaptProgress.PHASE_ARCHITECTURE if step.step <= 12 else pb.AdaptProgress.PHASE_WEIGHTS
        assert step.phase == expected
    temperatures = [step.temperature for step in steps]
    assert temperatures == sorted(temperatures, reverse=True)
    assert temperatures[0] > temperatures[-1]
    assert not any(view.HasField("pruned") for view in views if view.progress.step < 12)
    assert all(view.HasField("pruned") for view in views if view.progress.step > 12)

    last = views[-1]
    assert (last.state, last.progress.step) == (Job.STATE_SUCCEEDED, 20)
    assert last.pruned.genotype == last.task.genotype
    assert last.pruned.parameter_count == last.task.parameter_count
    assert last.queued_seconds > 0
    assert last.running_seconds >= last.task.adapt_seconds > 0
    assert last.task == job_server.stub.GetTask(pb.GetTaskRequest(task_id=last.task.task_id))
    assert len(job_server.classify(last.task.task_id, queries)) == len(queries)


def test_several_watchers_see_the_same_end_and_one_that_leaves_ends_nothing(start, watch, get):
    job_id = start(pb.AdaptOptions(architecture_steps=40, weight_steps=1))
    leaving, staying, other = watch(job_id), watch(job_id), watch(job_id)
    assert next(leaving).job_id == job_id
    leaving.cancel()
    ends = [list(stream)[-1] for stream in (staying, other)]
    assert ends[0] == ends[1] == get(job_id)
    assert ends[0].state == Job.STATE_SUCCEEDED
    assert list(watch(job_id)) == [ends[0]]  # one that comes late sees the end at once


def test_a_cancelled_job_stops_within_a_step_says_how_far_it_got_and_keeps_nothing(
    job_server, start, watch, cancel, get
):
    tasks = job_server.stub.ListTasks(pb.ListTasksRequest())
    job_id = start(ENDLESS)
    seen = wait_for_steps(watch, job_id, 5).progress.step
    begin = time.monotonic()
    job = cancel(job_id)
    assert time.monotonic() - begin < STOPS_WITHIN_SECONDS
    assert (job.state, job.error.code) == (Job.STATE_CANCELLED, grpc.StatusCode.CANCELLED.value[0])
    assert seen <= job.progress.step < 20_000
    assert job.error.message == f"adaptation was stopped after {job.progress.step} of 20000 steps"
    assert cancel(job_id) == get(job_id) == job
    assert list(watch(job_id)) == [job]
    assert job_server.stub.ListTasks(pb.ListTasksRequest()) == tasks


def test_a_job_that_is_cancelled_in_the_queue_frees_its_place(start, cancel, watch):
    running = start(ENDLESS)
    wait_for_steps(watch, running)
    waiting = [start(ENDLESS) for _ in range(3)]
    with pytest.raises(grpc.RpcError) as caught:
        start(ENDLESS)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "lets 1 run (--adapt-workers) and 3 wait (--max-queue)" in caught.value.details()
    job = cancel(waiting[1])
    assert job.state == Job.STATE_CANCELLED
    assert job.error.message == "adaptation was cancelled while it waited for its turn, 1 before it"
    assert next(watch(start(ENDLESS))).queue_position == 2


def test_a_deadline_is_answered_with_how_far_the_work_got_and_stops_it(job_server, support, refuses):
    request = job_server.request(support)
    request.options.CopyFrom(ENDLESS)
    refuses(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        ["the deadline came after ", " of 20000 steps", "StartAdapt"],
        lambda: job_server.stub.Adapt(request, timeout=4),
    )
    job = job_server.stub.ListJobs(pb.ListJobsRequest()).jobs[-1]
    end = time.monotonic() + STOPS_WITHIN_SECONDS
    while job.state == Job.STATE_RUNNING:
        assert time.monotonic() < end
        job = job_server.stub.GetJob(pb.GetJobRequest(job_id=job.job_id))
    assert job.state == Job.STATE_CANCELLED


def test_cancelling_the_job_of_a_waiting_adapt_answers_it_with_how_far_it_got(
    job_server, support, watch, cancel, refuses
):
    request = job_server.request(support)
    request.options.CopyFrom(ENDLESS)
    call = job_server.stub.Adapt.future(request, timeout=60)
    job_id = ""
    while not job_id:
        job_id = next((job.job_id for job in job_server.stub.ListJobs(pb.ListJobsRequest()).jobs if job.state < 3), "")
    wait_for_steps(watch, job_id)
    cancel(job_id)
    refuses(grpc.StatusCode.CANCELLED, ["adaptation was stopped after ", "of 20000 steps"], call.result)


@pytest.mark.slow  # a new process starts; test_jobs.py kills one under Adapt
def test_a_job_whose_process_dies_fails_alone_with_its_code(job_server, start, watch):
    dies, waits = start(ENDLESS), start()
    wait_for_steps(watch, dies)
    threads = Path(f"/proc/{job_server.process.pid}/task").iterdir()
    [worker] = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    os.kill(worker, signal.SIGKILL)
    failed = list(watch(dies))[-1]
    assert (failed.state, failed.error.code) == (Job.STATE_FAILED, grpc.StatusCode.INTERNAL.value[0])
    assert "signal 9 (SIGKILL)" in failed.error.message
    assert "send the request again" in failed.error.message
    assert list(watch(waits))[-1].state == Job.STATE_SUCCEEDED


def test_a_job_that_no_one_knows_is_not_found(watch, cancel, get, refuses):
    for call in (cancel, get, lambda job_id: next(watch(job_id))):
        refuses(grpc.StatusCode.NOT_FOUND, ["no job 'x'", "--max-finished-jobs"], lambda call=call: call("x"))


def test_more_watchers_than_a_server_has_request_threads_leave_room_for_other_calls(job_server, start, watch):
    job_id = start(ENDLESS)
    streams = [watch(job_id) for _ in range(40)]
    assert all(next(stream).job_id == job_id for stream in streams)
    assert job_server.health() == "SERVING"
    job_server.stub.ListTasks(pb.ListTasksRequest(), timeout=5)
    for stream in streams:
        stream.cancel()
