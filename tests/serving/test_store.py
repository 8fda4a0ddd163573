"""The store: what is there after any end, and what is not."""

import os
import subprocess
import sys
import time

import pytest
import torch

from metanas import artifact
from metanas.artifact import load_meta, task_to_bytes
from metanas.learner import adapt
from metanas.tasks import SupportSet
from metanas_serving.errors import StartupError, StoreWriteError, TaskLostError, TaskNotFoundError
from metanas_serving.facts import ServerFacts, TaskFacts
from metanas_serving.store import TaskStore
from metanas_serving.usage import Usage


@pytest.fixture(scope="module")
def task(tiny_meta):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return adapt(load_meta(tiny_meta), SupportSet(images, torch.tensor([0, 1]), ("a", "b")))


@pytest.fixture
def content(task):
    """A task's file by the number of the task."""

    def make(number):
        return task_to_bytes(ServerFacts(f"{number:032x}", 1000.0 - number, 0.5, ("doubtful",)).written_into(task))

    return make


def facts_of(data):
    return TaskFacts.from_bytes(data, name="test")


def test_a_task_is_there_again_after_closing_and_opening(tmp_path, content):
    store = TaskStore.open(tmp_path / "new" / "store")
    for number in (1, 2):
        store.add(facts_of(content(number)), content(number))
    store.close()
    again = TaskStore.open(tmp_path / "new" / "store")
    assert [facts.task_id for facts in again.list()] == [f"{2:032x}", f"{1:032x}"]  # oldest first
    assert again.get(f"{1:032x}") == facts_of(content(1))
    assert again.read(f"{1:032x}") == content(1)
    again.delete(f"{1:032x}")
    with pytest.raises(TaskNotFoundError, match=r"no task .* on this server; ListTasks names yours"):
        again.read(f"{1:032x}")
    again.close()


def test_usage_counts_the_tasks_and_bytes_of_one_tenant(tmp_path, task):
    owners = {1: "left", 2: "right", 3: "left"}
    files = {
        number: task_to_bytes(ServerFacts(f"{number:032x}", 0.0, 0.5, tenant=tenant).written_into(task))
        for number, tenant in owners.items()
    }
    for store in (TaskStore.memory(), TaskStore.open(tmp_path)):
        for data in files.values():
            store.add(facts_of(data), data)
        assert store.usage("left") == Usage(tasks=2, bytes=len(files[1]) + len(files[3]))
        store.delete(f"{1:032x}")
        assert store.usage("left") == Usage(tasks=1, bytes=len(files[3]))
        assert store.usage("") == Usage(tasks=0, bytes=0)
        store.close()


def test_what_is_damaged_is_set_aside_and_what_is_half_written_is_removed(tmp_path, task, content, caplog):
    good, half, empty, altered = (tmp_path / f"{number:032x}.pt" for number in range(1, 5))
    good.write_bytes(content(1))
    half.write_bytes(content(2)[: len(content(2)) // 2])
    empty.touch()
    data = bytearray(content(4))
    data[data.index(task.support.images.numpy().tobytes()) + 100] ^= 1  # one bit of one support image
    altered.write_bytes(data)
    partial = tmp_path / f".{5:032x}.pt.abc.partial"
    partial.write_bytes(content(5)[:100])
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / f"{6:032x}.pt").write_bytes(content(1))
    store = TaskStore.open(tmp_path)
    assert [facts.task_id for facts in store.list()] == [f"{1:032x}"]
    for path in (half, empty, altered):
        assert not path.exists()
        assert path.with_name(f"{path.name}.corrupt").exists()
        assert f"not loading {path}" in caplog.text
    assert not partial.exists()
    assert (tmp_path / "notes.txt").exists()
    assert f"it is a copy of task {1:032x}" in caplog.text
    assert "truncated or damaged" in caplog.text
    store.close()


def test_a_damaged_file_is_reported_to_whoever_asks_for_it_first(tmp_path, content, caplog):
    path = tmp_path / f"{1:032x}.pt"
    path.write_bytes(content(1)[:1000])
    store = TaskStore.open(tmp_path)
    assert path.stem in store
    with pytest.raises(TaskLostError, match=r"truncated or damaged; .*; it is set aside as 0+1\.pt\.corrupt"):
        store.read(path.stem)
    assert f"not loading {path}" in caplog.text
    assert path.with_name(f"{path.name}.corrupt").exists()
    with pytest.raises(TaskNotFoundError, match=r"no task .* on this server; ListTasks names yours"):
        store.get(path.stem)
    store.close()


def test_what_no_one_asks_for_is_read_all_the_same(tmp_path, content, caplog):
    for number in (1, 3):
        (tmp_path / f"{number:032x}.pt").write_bytes(content(number))
    (tmp_path / f"{2:032x}.pt").write_bytes(b"")
    store = TaskStore.open(tmp_path)
    store.start_reading()
    end = time.monotonic() + 30
    while f"{3:032x}" in store._unread:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert (tmp_path / f"{2:032x}.pt.corrupt").exists()
    assert "is empty" in caplog.text
    assert len(store.list()) == 2
    store.close()


def test_opening_reads_no_file_of_a_task(tmp_path, content, monkeypatch):
    (tmp_path / f"{1:032x}.pt").write_bytes(content(1))
    with monkeypatch.context() as patch:
        patch.setattr(TaskFacts, "from_bytes", None)
        store = TaskStore.open(tmp_path)
    assert store.get(f"{1:032x}") == facts_of(content(1))
    store.close()


def test_a_file_of_a_later_version_is_left_alone(tmp_path, content, caplog, monkeypatch):
    monkeypatch.setattr(artifact, "VERSION", 99)
    later = content(1)
    monkeypatch.undo()
    path = tmp_path / f"{1:032x}.pt"
    path.write_bytes(later)
    store = TaskStore.open(tmp_path)
    assert not store.list()
    assert path.read_bytes() == later
    assert "upgrade metanas-edge" in caplog.text
    store.close()


def test_a_second_server_on_the_same_folder_is_refused(tmp_path):
    store = TaskStore.open(tmp_path)
    with pytest.raises(StartupError, match=rf"another server \(process {os.getpid()}\) uses the store"):
        TaskStore.open(tmp_path)
    store.close()
    TaskStore.open(tmp_path).close()


def test_a_store_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match=r"cannot use .*file as a store: .*choose another --store"):
        TaskStore.open(tmp_path / "file")


def test_a_file_that_went_is_data_loss_and_its_task_can_be_deleted(tmp_path, content):
    store = TaskStore.open(tmp_path)
    store.add(facts_of(content(1)), content(1))
    (tmp_path / f"{1:032x}.pt").unlink()
    with pytest.raises(TaskLostError, match=r"cannot be read any more \(No such file or directory\); delete the task"):
        store.read(f"{1:032x}")
    store.delete(f"{1:032x}")
    assert not store.list()
    store.close()


def test_a_task_that_cannot_be_written_is_not_listed(tmp_path, content, monkeypatch):
    store = TaskStore.open(tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreWriteError, match=r"No space left on device; make room"):
        store.add(facts_of(content(1)), content(1))
    assert not store.list()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    store.close()


KILLED_WRITER = """
import os, random, signal, sys, time
from pathlib import Path
from metanas_serving.facts import TaskFacts
from metanas_serving.store import TaskStore

folder, source, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
contents = [path.read_bytes() for path in sorted(source.iterdir())]
facts = [TaskFacts.from_bytes(data, name="source") for data in contents]
random.seed(0)
for round in range(rounds):
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        store = TaskStore(folder, None)
        os.write(told, b".")
        while True:
            for one, data in zip(facts, contents):
                store.add(one, data)
    os.read(ready, 1)
    time.sleep(random.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    partial = sum(path.name.endswith(".partial") for path in folder.iterdir())
    print(partial, flush=True)
"""


def test_kill_9_at_any_moment_of_a_write_leaves_whole_tasks_or_none(tmp_path, content):
    source, folder = tmp_path / "source", tmp_path / "store"
    source.mkdir()
    folder.mkdir()
    whole = {f"{number:032x}": content(number) for number in range(1, 6)}
    for task_id, data in whole.items():
        (source / task_id).write_bytes(data)
    script = subprocess.run(
        [sys.executable, "-c", KILLED_WRITER, folder, source, "60"], capture_output=True, text=True, check=True
    )
    half_written = int(script.stdout.split()[-1])
    assert half_written > 0, "no kill fell into a write; the test shows nothing"
    store = TaskStore.open(folder)
    found = {facts.task_id: store.read(facts.task_id) for facts in store.list()}
    assert found
    assert found.items() <= whole.items()
    assert not [path for path in folder.iterdir() if path.suffix in (".partial", ".corrupt")]
    store.close()
