"""Which jobs a server remembers, and that they hold no images once they are over."""

import time
import tracemalloc

import numpy as np
import pytest

from metanas.schedule import Schedule
from metanas_serving.errors import JobNotFoundError, WorkerError
from metanas_serving.job import Job, State
from metanas_serving.ledger import Ledger
from metanas_serving.work import Order

MEBIBYTE = 1024 * 1024


def make_job(task_id="t", image_bytes=1):
    images = np.ones((1, 1, 1, image_bytes), dtype=np.uint8)
    order = Order(task_id, images, (0,), ("a",), seed=0, schedule=Schedule(), request_sha256="")
    return Job(order, keep=lambda job, learnt: pytest.fail("nothing is learnt here"))


def test_jobs_that_are_not_over_are_remembered_and_of_the_others_the_last():
    ledger = Ledger(max_finished=2, keep_seconds=60)
    jobs = [make_job() for _ in range(5)]
    for job in jobs:
        ledger.add(job)
    assert ledger.list() == jobs
    for job in jobs[:4]:
        job.finish(WorkerError("it died"))
    assert ledger.list() == jobs[2:]
    assert ledger.get(jobs[4].job_id) is jobs[4]
    with pytest.raises(JobNotFoundError, match=r"no job .* among the 3 that this server remembers: the last 2"):
        ledger.get(jobs[0].job_id)


def test_a_job_that_is_over_is_forgotten_after_its_time():
    ledger = Ledger(max_finished=2, keep_seconds=0.2)
    over, waiting = make_job(), make_job()
    for job in (over, waiting):
        ledger.add(job)
    over.finish(WorkerError("it died"))
    assert over in ledger.list()
    time.sleep(0.3)
    assert ledger.list() == [waiting]


def test_only_a_job_that_may_still_give_a_task_is_found_by_it():
    ledger = Ledger(max_finished=10, keep_seconds=60)
    failed, stopped, waiting = (make_job("task") for _ in range(3))
    for job in (failed, stopped):
        ledger.add(job)
    failed.finish(WorkerError("it died"))
    stopped.stop()
    assert ledger.of_task("task") is None
    ledger.add(waiting)
    assert ledger.of_task("task") is waiting


def test_a_job_that_is_over_holds_no_images():
    tracemalloc.start()
    try:
        job = make_job(image_bytes=20 * MEBIBYTE)
        assert tracemalloc.get_traced_memory()[0] > 20 * MEBIBYTE
        job.finish(WorkerError("it died"))
        assert tracemalloc.get_traced_memory()[0] < MEBIBYTE
    finally:
        tracemalloc.stop()
    assert job.view.state is State.FAILED
