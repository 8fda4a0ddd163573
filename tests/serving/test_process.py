"""The server as a user starts it: signals, kill -9, refusals at the start, and latency under load."""

import hashlib
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch

from metanas.artifact import save_meta, task_to_bytes
from metanas.learner import adapt
from metanas.schedule import Schedule
from metanas.tasks import SupportSet
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving import meta_file
from metanas_serving.application import Application
from metanas_serving.config import ServerConfig
from metanas_serving.errors import StartupError
from metanas_serving.facts import ServerFacts, TaskFacts
from metanas_serving.settings import read_settings
from metanas_serving.store import TaskStore

SERVER = Path(__file__).parents[2] / "serving" / "server.py"


def children_of(process_id):
    """Process ids of what the threads of a process started."""
    tasks = Path(f"/proc/{process_id}/task").iterdir()
    return [int(text) for task in tasks for text in (task / "children").read_text().split()]


def alive(process_id):
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_after_kill_9_every_finished_task_answers_to_the_same_bits(
    tmp_path, tiny_meta, start_process, support, queries, refuses
):
    store = tmp_path / "store"
    first = start_process("--meta", str(tiny_meta), "--store", str(store))
    keyed = first.request(support, seed=2)
    keyed.idempotency_key = "a key"
    tasks = [first.adapt(support, seed=1), first.stub.Adapt(keyed, timeout=60).task]
    answers = [first.classify(task.task_id, queries) for task in tasks]
    files = [first.export(task.task_id) for task in tasks]
    workers = children_of(first.process.pid)
    assert len(workers) == ServerConfig().adapt_workers
    # Many steps: still being learnt when the server dies.
    lost = first.request(support)
    lost.idempotency_key = "another key"
    lost.options.architecture_steps = 900
    first.stub.StartAdapt(lost, timeout=20)
    time.sleep(0.5)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    weights = store / "weights"
    (weights / f"{'0' * 64}.pt").write_bytes(files[0][:1000])
    (weights / f".{'1' * 64}.pt.xyz.partial").write_bytes(files[0][:1000])

    second = start_process("--meta", str(tiny_meta), "--store", str(store))
    assert list(second.stub.ListTasks(pb.ListTasksRequest()).tasks) == tasks
    assert [second.classify(task.task_id, queries) for task in tasks] == answers
    assert [second.export(task.task_id) for task in tasks] == files
    kept = {f"{hashlib.sha256(data).hexdigest()}.pt" for data in files}
    end = time.monotonic() + 20
    while {path.name for path in weights.iterdir()} != kept:
        assert time.monotonic() < end, "what the killed server left is still there"
        time.sleep(0.05)
    assert {path.name.partition("-")[0] for path in store.iterdir()} == {".lock", "index.sqlite", "weights"}
    found = second.stub.StartAdapt(keyed, timeout=20)
    assert (found.state, found.task) == (pb.AdaptJob.STATE_SUCCEEDED, tasks[1])
    keyed.seed = 3
    refuses(grpc.StatusCode.ALREADY_EXISTS, ["another support set, seed or options"], lambda: second.stub.Adapt(keyed))
    again = second.stub.StartAdapt(lost, timeout=20)
    assert again.state != pb.AdaptJob.STATE_SUCCEEDED
    second.stub.CancelAdapt(pb.CancelAdaptRequest(job_id=again.job_id), timeout=40)
    end = time.monotonic() + 20  # one that still starts finds out when it is ready
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < end, "an adaptation process outlived its server"
        time.sleep(0.05)

    refused = subprocess.run(
        [sys.executable, SERVER, "--meta", tiny_meta, "--store", store, "--port", "0"], capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert f"error: another server (process {second.process.pid}) uses the store" in refused.stderr
    assert "Traceback" not in refused.stderr

    # A running call and a started job finish after SIGTERM, and are kept.
    call = second.begin_adapt({"cat": support["cat"] * 5, "dog": support["dog"] * 5})
    started = second.request(support, seed=8)
    started.options.weight_steps = 20
    second.stub.StartAdapt(started, timeout=20)
    time.sleep(0.3)
    second.process.send_signal(signal.SIGTERM)
    kept = call.result().task.task_id
    assert second.process.wait(timeout=60) == 0
    closed = TaskStore.open(store)
    assert closed.read(kept)
    assert len(closed.list()) == len(list(weights.iterdir())) == len(tasks) + 2
    closed.close()
    with pytest.raises(grpc.RpcError) as caught:
        second.stub.ListTasks(pb.ListTasksRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_bad_meta_model_ends_the_start_with_its_message_and_no_traceback(tmp_path):
    (tmp_path / "meta.pt").write_bytes(b"not a model")
    result = subprocess.run(
        [sys.executable, SERVER, "--meta", "meta.pt", "--port", "0"], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "error: meta.pt is not a file of MetaNAS Edge"
    assert "Traceback" not in result.stderr
    assert not result.stdout


def test_a_missing_meta_model_is_named_with_the_way_out(tmp_path, monkeypatch):
    with pytest.raises(StartupError, match=r"cannot read the meta-model .*none.pt: No such file.*pass another --meta"):
        Application(ServerConfig(meta_path=tmp_path / "none.pt"))
    monkeypatch.setattr(meta_file, "BUNDLED_META", "models/absent.pt")
    with pytest.raises(StartupError, match=r"this installation holds no meta-model .*pass --meta meta\.pt"):
        Application(ServerConfig())


def test_a_port_in_use_is_refused_with_the_way_out(tiny_meta):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        refused = Application(ServerConfig(meta_path=tiny_meta, port=port))
        with pytest.raises(StartupError, match=rf"cannot listen on 127.0.0.1:{port}: address already in use; choose"):
            refused.start()
        refused.stop(0)


def test_arguments_that_make_no_sense_end_with_2_and_the_reason(capsys):
    for arguments, words in (
        (["--port", "70000"], "port must be 0..65535, got 70000"),
        (["--max-queue", "40", "--adapt-workers", "1"], "at least adapt_workers + max_queue + 4 = 45"),
        (["--adapt-workers", "0"], "adapt_workers must be at least 1, got 0"),
        (["--drain-seconds", "nan"], "drain_seconds must be 0..86400, got nan"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ):
        with pytest.raises(SystemExit) as ended:
            read_settings(arguments)
        assert ended.value.code == 2
        assert words in capsys.readouterr().err


def test_every_setting_has_an_option(tmp_path):
    config = read_settings(["--meta", "m.pt", "--store", str(tmp_path), "--host", "::1", "--max-queue", "3"]).config
    assert config == replace(ServerConfig(), meta_path=Path("m.pt"), store_path=tmp_path, host="::1", max_queue=3)


def test_classify_and_health_answer_in_under_100_ms_while_an_adapt_runs(
    tmp_path, full_size_meta, start_process, queries, capsys
):
    store, meta = tmp_path / "store", tmp_path / "meta.pt"
    save_meta(meta, full_size_meta)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8, generator=generator)
    names = tuple(f"class {number}" for number in range(20))
    learnt = adapt(
        full_size_meta,
        SupportSet(images, torch.arange(20), names),
        schedule=Schedule(architecture_steps=1, weight_steps=0),
    )
    task_id = "f" * 32
    data = task_to_bytes(ServerFacts(task_id, 0.0, 0.0).written_into(learnt))
    filled = TaskStore.open(store)
    filled.add(TaskFacts.from_bytes(data, name="the test's task"), data)
    filled.close()
    server = start_process("--meta", str(meta), "--store", str(store))

    def measure(call):
        begin = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - begin)

    calls = {"classify": lambda: server.classify(task_id, queries[:1]), "health": server.health}
    for call in calls.values():
        for _ in range(5):
            call()
    support = {name: [pb.Image(tensor=_tensor(image))] for name, image in zip(names, images.numpy(), strict=True)}
    running = server.begin_adapt(support)
    time.sleep(1)
    milliseconds = {name: [] for name in calls}
    for _ in range(150):
        for name, call in calls.items():
            milliseconds[name].append(measure(call))
    assert not running.done(), "the adaptation ended before the measurement"
    begin = time.perf_counter()
    running.cancel()
    with capsys.disabled():
        for name, values in milliseconds.items():
            p50, p95, p99 = np.percentile(values, [50, 95, 99])
            print(f"\n{name} while an Adapt runs: {p50:.1f} ms, p95 {p95:.1f}, p99 {p99:.1f}, max {max(values):.1f}")
    for name, values in milliseconds.items():
        assert np.percentile(values, 95) < 100, (name, sorted(values)[-10:])
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 0
    assert time.perf_counter() - begin < 20
    assert re.search(r"INFO metanas_serving.cli: stopped", (tmp_path / "server.log").read_text())


def _tensor(image):
    return pb.Tensor(data_type=pb.Tensor.DATA_TYPE_UINT8, shape=image.shape[1:], data=image.tobytes())
