"""The store: what is there after any end, and what is not."""

import dataclasses
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest
import torch

from metanas.artifact import load_meta, load_task, task_to_bytes
from metanas.learner import adapt
from metanas.tasks import SupportSet
from metanas_serving.aliases import Aliases
from metanas_serving.errors import StartupError, StoreWriteError, TaskInUseError, TaskLostError, TaskNotFoundError
from metanas_serving.facts import ServerFacts, TaskFacts
from metanas_serving.index_sqlite import SqliteIndex
from metanas_serving.record import Alias, Record
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


def files_in(folder):
    """Names in a store's folder and among its weights, without what SQLite keeps beside an open index."""
    names = {path.name for path in (*folder.iterdir(), *(folder / "weights").iterdir())}
    return names - {"index.sqlite-wal", "index.sqlite-shm"}


EMPTY = {".lock", "index.sqlite", "weights"}


def path_of(folder, data):
    return folder / "weights" / f"{Record.of(facts_of(data), data).sha256}.pt"


def test_a_task_is_there_again_after_closing_and_opening(tmp_path, content):
    folder = tmp_path / "new" / "store"
    store = TaskStore.open(folder)
    for number in (1, 2):
        store.add(facts_of(content(number)), content(number))
    secret = store.index.secret()
    store.close()
    again = TaskStore.open(folder)
    assert [facts.task_id for facts in again.list()] == [f"{2:032x}", f"{1:032x}"]  # oldest first
    assert again.get(f"{1:032x}") == facts_of(content(1))
    assert again.read(f"{1:032x}") == content(1)
    assert again.index.secret() == secret
    assert len(secret) == 32
    again.delete(f"{1:032x}")
    with pytest.raises(TaskNotFoundError, match="on this server; ListTasks names yours"):
        again.read(f"{1:032x}")
    again.delete(f"{2:032x}")
    again.close()
    assert files_in(folder) == EMPTY


def test_a_file_is_a_complete_task_model_named_by_its_hash(tmp_path, content):
    store = TaskStore.open(tmp_path)
    store.add(facts_of(content(1)), content(1))
    store.close()
    assert path_of(tmp_path, content(1)).read_bytes() == content(1)
    assert load_task(path_of(tmp_path, content(1))).class_names == ("a", "b")


def test_pages_are_complete_and_in_order_also_where_times_are_equal(task):
    store = TaskStore.memory()
    owners = {number: "left" if number % 3 else "right" for number in range(1, 10)}
    for number, tenant in owners.items():
        data = task_to_bytes(ServerFacts(f"{number:032x}", float(number // 4), 0.5, tenant=tenant).written_into(task))
        store.add(facts_of(data), data)
    for tenant, expected in (("left", [1, 2, 4, 5, 7, 8]), ("right", [3, 6, 9]), (None, list(owners)), ("none", [])):
        found, after = [], None
        while page := store.page(tenant, after=after, limit=2):
            assert len(page) <= 2
            found += [int(record.facts.task_id, 16) for record in page]
            after = page[-1].place
        assert found == expected
    store.close()


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


@pytest.mark.parametrize("damage", ["half", "empty", "one bit"])
def test_a_damaged_file_is_set_aside_and_reported_to_whoever_asks_for_it_first(tmp_path, task, content, caplog, damage):
    store = TaskStore.open(tmp_path)
    for number in (1, 2):
        store.add(facts_of(content(number)), content(number))
    path, data = path_of(tmp_path, content(1)), bytearray(content(1))
    data[data.index(task.support.images.numpy().tobytes()) + 100] ^= 1  # one bit of one support image
    path.write_bytes({"half": data[: len(data) // 2], "empty": b"", "one bit": data}[damage])
    with pytest.raises(TaskLostError, match=r"is damaged: .* its checksum; it is set aside as [0-9a-f]+\.pt\.corrupt"):
        store.read(f"{1:032x}")
    assert "is damaged" in caplog.text
    assert not path.exists()
    assert path.with_name(f"{path.name}.corrupt").exists()
    with pytest.raises(TaskNotFoundError):
        store.get(f"{1:032x}")
    assert store.read(f"{2:032x}") == content(2)
    store.add(facts_of(content(1)), content(1))
    assert store.read(f"{1:032x}") == content(1)
    store.close()


def test_what_a_killed_server_left_is_removed_and_nothing_else(tmp_path, content):
    store = TaskStore.open(tmp_path)
    store.add(facts_of(content(1)), content(1))
    store.close()
    weights = tmp_path / "weights"
    path_of(tmp_path, content(2)).write_bytes(content(2))  # its record was never kept, or is removed
    (weights / f".{'0' * 64}.pt.abc.partial").write_bytes(content(2)[:100])
    (tmp_path / ".index.sqlite.abc.partial").touch()
    (weights / f"{'1' * 64}.pt.corrupt").touch()
    (weights / "notes.txt").write_text("mine")
    store = TaskStore.open(tmp_path)
    assert store.sweep() == 1
    kept = path_of(tmp_path, content(1)).name
    assert files_in(tmp_path) == {*EMPTY, kept, f"{'1' * 64}.pt.corrupt", "notes.txt"}
    assert store.read(f"{1:032x}") == content(1)
    store.close()


def test_an_index_that_was_lost_is_made_again_from_the_files(tmp_path, content, caplog):
    store = TaskStore.open(tmp_path)
    for number in (1, 2, 3):
        store.add(facts_of(content(number)), content(number))
    before = store.list()
    store.close()
    (tmp_path / "index.sqlite").unlink()
    damaged = path_of(tmp_path, content(3))
    damaged.write_bytes(content(3)[:1000])
    store = TaskStore.open(tmp_path)
    assert store.list() == before[1:]
    assert damaged.with_name(f"{damaged.name}.corrupt").exists()
    assert "there is no index beside" in caplog.text
    store.sweep()
    assert store.read(f"{1:032x}") == content(1)
    store.close()


def test_a_store_of_ten_thousand_tasks_opens_in_milliseconds_and_lists_by_pages(tmp_path, content):
    facts = facts_of(content(1))

    def records():
        for number in range(10_000):
            server = dataclasses.replace(facts.server, task_id=f"{number:032x}", created_unix_seconds=float(number))
            yield Record(dataclasses.replace(facts, server=server), f"{number:064x}", 1000)

    (tmp_path / "weights").mkdir()
    SqliteIndex.make(tmp_path / "index.sqlite", records())
    begin = time.process_time()
    store = TaskStore.open(tmp_path)
    opened = time.process_time()
    page = store.page("", after=(9_000.0, f"{9_000:032x}"), limit=50)
    paged = time.process_time()
    assert store.usage("").tasks == 10_000
    assert page[0].facts.task_id == f"{9_001:032x}"
    assert opened - begin < 0.1
    assert paged - opened < 0.1
    store.close()


def test_an_index_that_cannot_be_used_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "weights").mkdir()
    index = tmp_path / "index.sqlite"
    index.write_bytes(b"not a database, but longer than a hundred bytes, which SQLite reads first of all " * 3)
    with pytest.raises(StartupError, match=r"cannot use the index .*not a database; .* remove it: it is made again"):
        TaskStore.open(tmp_path)
    index.unlink()
    TaskStore.open(tmp_path).close()
    with closing(sqlite3.connect(index)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StartupError, match=r"later version \(format 99, .*upgrade metanas-edge"):
        TaskStore.open(tmp_path)


def test_a_store_of_the_first_version_is_refused(tmp_path, content):
    (tmp_path / f"{1:032x}.pt").write_bytes(content(1))
    with pytest.raises(StartupError, match="the store of an earlier version, one file for each task; choose another"):
        TaskStore.open(tmp_path)
    assert (tmp_path / f"{1:032x}.pt").read_bytes() == content(1)


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
    path_of(tmp_path, content(1)).unlink()
    with pytest.raises(TaskLostError, match=r"has gone; put it back, or delete the task"):
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
    assert files_in(tmp_path) == EMPTY
    store.close()


def test_an_alias_stays_and_moves_and_each_tenant_has_its_own(tmp_path, task):
    store = TaskStore.open(tmp_path)
    ids = {}
    for number, tenant in enumerate(("left", "left", "right")):
        data = task_to_bytes(ServerFacts(f"{number:032x}", 0.0, 0.5, tenant=tenant).written_into(task))
        store.add(facts_of(data), data)
        ids[number] = f"{number:032x}"
    aliases = Aliases(store)
    aliases.set("line", ids[0], tenant="left")
    aliases.set("line", ids[2], tenant="right")
    aliases.set("line", ids[1], tenant="left")
    with pytest.raises(TaskNotFoundError):
        aliases.set("line", ids[2], tenant="left")
    store.close()
    store = TaskStore.open(tmp_path)
    aliases = Aliases(store)
    assert [aliases.resolve("line", tenant=tenant) for tenant in ("left", "right", "")] == [ids[1], ids[2], "line"]
    with pytest.raises(TaskInUseError, match=r"has the alias 'line'"), aliases.without(ids[1]):
        pass
    aliases.remove("line", tenant="left")
    assert aliases.list(tenant="left") == []
    assert aliases.list(tenant="right") == [Alias("right", "line", ids[2])]
    with aliases.without(ids[1]):
        pass
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
there = set()  # acknowledged
broken_off = 0
for round in range(rounds):
    said, say = os.pipe()
    child = os.fork()
    if child == 0:
        store = TaskStore.open(folder)
        found = {one.task_id for one in store.list()}
        assert all(store.read(one) for one in found)
        os.write(say, b"".join(task_id.encode() + b"+" for task_id in found) + b"ready".rjust(33))
        while True:
            for one, data in zip(facts, contents):
                if random.random() < 0.6:
                    store.add(one, data)
                    os.write(say, one.task_id.encode() + b"+")
                elif one.task_id in store:
                    os.write(say, one.task_id.encode() + b"?")
                    store.delete(one.task_id)
                    os.write(say, one.task_id.encode() + b"-")
    os.close(say)
    lines, opened = [], False
    while not opened:
        line = os.read(said, 33).decode()
        opened = line.endswith("ready")
        lines += [] if opened else [line]
    assert {line[:32] for line in lines} >= there, "an acknowledged task is lost"
    sure = {line[:32] for line in lines}
    time.sleep(random.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while line := os.read(said, 33).decode():
        task_id, what = line[:32], line[32:]
        sure = sure | {task_id} if what == "+" else sure - {task_id}
    there = sure
    names = {path.name for path in (folder / "weights").iterdir()}
    broken_off += len(names) != len(sure)
    random.seed(round)
print(broken_off, *sorted(there))
"""


def test_kill_9_at_any_moment_loses_nothing_acknowledged_and_leaves_nothing_for_good(tmp_path, content):
    source, folder = tmp_path / "source", tmp_path / "store"
    source.mkdir()
    whole = {f"{number:032x}": content(number) for number in range(1, 6)}
    for task_id, data in whole.items():
        (source / task_id).write_bytes(data)
    script = subprocess.run(
        [sys.executable, "-c", KILLED_WRITER, folder, source, "40"], capture_output=True, text=True, check=False
    )
    assert script.returncode == 0, script.stderr
    broken_off, *acknowledged = script.stdout.split()
    assert int(broken_off) > 0, "no kill fell into a write; the test shows nothing"
    store = TaskStore.open(folder)
    store.sweep()
    found = {facts.task_id: store.read(facts.task_id) for facts in store.list()}
    assert found.keys() >= set(acknowledged)
    assert found.items() <= whole.items()
    assert files_in(folder) == {*EMPTY, *(path_of(folder, data).name for data in found.values())}
    store.close()
