"""The Python client and its command line with a real server: jobs, keys, options, uploads, streams."""

import json
import threading

import numpy as np
import pytest

from metanas_client import (
    AdaptOptions,
    DeadlineExceededError,
    FewShotClient,
    InvalidRequestError,
    JobNotFoundError,
    KeyTakenError,
    RequestCancelledError,
    UnsupportedImageError,
)
from metanas_client.cli import main

ENDLESS = AdaptOptions(architecture_steps=10_000, weight_steps=10_000)


@pytest.fixture
def client(job_server):
    with FewShotClient(job_server.address, timeout_seconds=60) as client:
        yield client


@pytest.fixture
def pictures():
    generator = np.random.default_rng(0)
    return {name: list(generator.integers(0, 256, (2, 28, 28), dtype=np.uint8)) for name in ("cat", "dog")}


def test_a_started_job_is_watched_and_gives_its_task(client, pictures):
    job = client.start_adapt(pictures, seed=5, options=AdaptOptions(architecture_steps=4, weight_steps=2))
    statuses = list(job.watch())
    assert [status.is_over for status in statuses] == [False] * (len(statuses) - 1) + [True]
    last = statuses[-1]
    assert (last.state, last.progress.step, last.progress.steps, last.progress.phase) == ("succeeded", 6, 6, "weights")
    assert (last.error_code, last.error_message) == (0, "")
    assert last.queued_seconds + last.running_seconds > 0
    task = job.result()
    assert task.info == last.task == client.task(task.task_id).info
    assert last.genotype == task.genotype
    assert (task.info.settings.architecture_steps, task.info.settings.seed) == (4, 5)
    assert client.job(job.job_id).status() == last
    assert last in client.jobs()


def test_waiting_ends_at_the_timeout_and_the_job_goes_on_until_it_is_cancelled(client, pictures):
    job = client.start_adapt(pictures, options=ENDLESS)
    with pytest.raises(DeadlineExceededError, match=r"was not over in time and goes on; wait with result\(\) again"):
        job.result(timeout_seconds=1)
    assert not job.status().is_over
    status = job.cancel()
    assert (status.state, status.error_code) == ("cancelled", 1)
    with pytest.raises(RequestCancelledError, match=r"job .*: adaptation was (stopped after|cancelled)") as caught:
        job.result()
    assert caught.value.details == status.error_message
    assert job.cancel() == status


def test_a_key_gives_the_same_task_again_and_is_refused_for_another_request(client, pictures):
    task = client.adapt(pictures, idempotency_key="client key")
    assert client.adapt(pictures, idempotency_key="client key").info == task.info
    assert client.start_adapt(pictures, idempotency_key="client key").result().info == task.info
    with pytest.raises(KeyTakenError, match="used for another support set, seed or options"):
        client.adapt(pictures, seed=1, idempotency_key="client key")


def test_a_support_set_over_the_limit_of_a_message_is_sent_in_pieces(client):
    # 2.25 MB in files of 0.75 MB each; the server takes messages of 1 MiB.
    generator = np.random.default_rng(0)
    pictures = {name: [generator.integers(0, 256, (866, 866), dtype=np.uint8)] for name in ("a", "b", "c")}
    task = client.start_adapt(pictures, seed=3, options=AdaptOptions(weight_steps=1)).result()
    assert task.class_names == ("a", "b", "c")
    assert (task.info.settings.seed, task.info.settings.weight_steps) == (3, 1)


def test_what_cannot_work_is_refused_with_its_reason(client, pictures):
    with pytest.raises(JobNotFoundError, match=r"status at .*: no job 'x' among"):
        client.job("x").status()
    with pytest.raises(InvalidRequestError, match="--max-adapt-steps"):
        client.start_adapt(pictures, options=AdaptOptions(weight_steps=30_000))
    with pytest.raises(InvalidRequestError, match="an option cannot be sent"):
        client.start_adapt(pictures, options=AdaptOptions(weight_steps=-1))


def test_top_k_and_timing_reach_the_user(client, pictures):
    task = client.adapt(pictures)
    answers = task.classify(pictures["cat"], top_k=1)
    assert [len(answer.probabilities) for answer in answers] == [1, 1]
    assert answers.timing.compute_milliseconds > 0
    assert [answer.class_name for answer in answers] == [one.class_name for one in task.classify(pictures["cat"])]
    with pytest.raises(InvalidRequestError, match="top_k must be in"):
        task.classify(pictures["cat"], top_k=-1)


def test_frames_are_answered_while_they_come_and_a_bad_one_ends_the_stream(client, pictures):
    task = client.adapt(pictures)
    answered = threading.Semaphore(0)

    def frames(last):
        for image in pictures["cat"]:
            yield image
            assert answered.acquire(timeout=20)
        yield from last

    found = []
    for answer in task.classify_stream(frames([]), top_k=2):
        found.append(answer)
        answered.release()
    assert found == list(task.classify(pictures["cat"], top_k=2))

    stream = task.classify_stream(frames([5]))
    for _ in pictures["cat"]:
        assert next(stream).probabilities
        answered.release()
    with pytest.raises(UnsupportedImageError, match=r"frame 2: .*is not an image"):
        next(stream)


def test_the_command_line_tells_progress_lists_jobs_and_takes_options(job_server, pictures, png_of, tmp_path, capsys):
    for name, images in pictures.items():
        (tmp_path / name).mkdir()
        for number, pixels in enumerate(images):
            (tmp_path / name / f"{number}.png").write_bytes(png_of(pixels))
    at_server = ["--server", job_server.address, "--json"]
    options = [
        "--architecture-steps",
        "5",
        "--weight-steps",
        "4",
        "--learning-rate",
        "0.01",
        "--idempotency-key",
        "cli",
    ]
    assert main(["adapt", str(tmp_path), "--progress", *options, *at_server]) == 0
    said = capsys.readouterr()
    task = json.loads(said.out)
    assert (task["settings"]["architecture_steps"], task["settings"]["learning_rate"]) == (5, 0.01)
    lines = [line.split(maxsplit=2) for line in said.err.splitlines() if "  running" in line or "  succ" in line]
    assert lines[-1][1:] == ["succeeded", f"task {task['task_id']} in {lines[-1][2].split()[-2]} s"]
    assert any("of 9, architecture: loss" in line[2] for line in lines[:-1])

    assert main(["jobs", *at_server]) == 0
    [job] = [one for one in json.loads(capsys.readouterr().out) if one["job_id"] == lines[-1][0]]
    assert job["task"]["task_id"] == task["task_id"]
    assert main(["cancel", job["job_id"], *at_server]) == 0
    assert json.loads(capsys.readouterr().out) == job
    assert main(["adapt", str(tmp_path), "--seed", "1", *options, *at_server]) == 2
    assert "used for another support set" in capsys.readouterr().err
    assert main(["cancel", "x", *at_server]) == 2
