"""A store under a URL: what one server learns or names, another one finds."""

import threading
import uuid

import fsspec
import grpc
import pytest
import torch

from metanas.artifact import load_meta, task_to_bytes
from metanas.learner import adapt
from metanas.tasks import SupportSet
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving import index_objects
from metanas_serving.aliases import Aliases
from metanas_serving.errors import (
    StartupError,
    StoreFaultError,
    StoreWriteError,
    TaskInUseError,
    TaskLostError,
    TaskNotFoundError,
)
from metanas_serving.facts import ServerFacts, TaskFacts
from metanas_serving.objects import Objects
from metanas_serving.record import Alias
from metanas_serving.store import TaskStore
from metanas_serving.usage import Usage


@pytest.fixture(scope="module")
def task(tiny_meta):
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return adapt(load_meta(tiny_meta), SupportSet(images, torch.tensor([0, 1]), ("a", "b")))


@pytest.fixture
def content(task):
    def make(number, *, tenant="", seconds=0.5):
        facts = ServerFacts(f"{number:032x}", 1000.0 - number, seconds, tenant=tenant)
        return task_to_bytes(facts.written_into(task))

    return make


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    return f"memory://{uuid.uuid4().hex}/tasks" if request.param == "memory" else f"file://{tmp_path}/tasks"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """What another server did is seen at once."""
    monkeypatch.setattr(index_objects, "FRESH_SECONDS", 0.0)


def add(store, data):
    store.add(TaskFacts.from_bytes(data, name="test"), data)


def ids(facts):
    return [int(one.task_id, 16) for one in facts]


def test_what_one_server_keeps_names_and_deletes_another_one_sees(url, content):
    one, other = TaskStore.open(url), TaskStore.open(url)
    for number in (1, 2, 3):
        add(one, content(number, tenant="left" if number < 3 else ""))
    assert ids(other.list()) == [3, 2, 1]  # oldest first
    assert ids(other.owned_by("left")) == [2, 1]
    assert [ids([page[0].facts]) for page in (other.page(None, limit=1), other.page("left", limit=1))] == [[3], [2]]
    assert ids(record.facts for record in other.page(None, after=other.page(None, limit=1)[0].place)) == [2, 1]
    assert other.usage("left") == Usage(2, len(content(1, tenant="left")) + len(content(2, tenant="left")))
    assert other.read(f"{1:032x}") == content(1, tenant="left")
    assert one.index.secret() == other.index.secret()
    assert ids(other.versions(f"{2:032x}")) == [2]

    names, others = Aliases(one), Aliases(other)
    names.set("line", f"{1:032x}", tenant="left")
    assert others.resolve("line", tenant="left") == f"{1:032x}"
    with pytest.raises(TaskInUseError, match="'line'"), others.without(f"{1:032x}"):
        pass
    others.set("line", f"{2:032x}", tenant="left")
    assert names.list(tenant="left") == [Alias("left", "line", f"{2:032x}")]
    assert names.list() == others.list() == []
    other.delete(f"{1:032x}")
    with pytest.raises(TaskNotFoundError):
        one.read(f"{1:032x}")
    assert ids(one.list()) == [3, 2]
    names.remove("line", tenant="left")
    assert others.resolve("line", tenant="left") == "line"
    assert {name.split("/")[0] for name in Objects.open(url).names("")} == {"secret", "tasks", "weights"}


def test_two_servers_that_learn_one_task_leave_one_whole(url, content):
    one, other = TaskStore.open(url), TaskStore.open(url)
    contents = [content(1, seconds=seconds) for seconds in (0.5, 0.6)]
    threads = [threading.Thread(target=add, args=pair) for pair in zip((one, other), contents, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.read(f"{1:032x}") in contents
    assert one.read(f"{1:032x}") == other.read(f"{1:032x}")
    assert len(one.list()) == 1


def test_what_is_damaged_is_set_aside_or_left_out_and_said(url, content, caplog):
    store = TaskStore.open(url)
    for number in (1, 2, 3):
        add(store, content(number))
    objects = Objects.open(url)
    objects.put(next(n for n in objects.names("weights") if objects.get(n) == content(1)), b"damaged")
    objects.put(f"tasks/{2:032x}.json", b"{}")
    again = TaskStore.open(url)
    with pytest.raises(TaskLostError, match=r"is damaged: .* set aside as weights/.*\.corrupt"):
        again.read(f"{1:032x}")
    with pytest.raises(TaskLostError, match=r"is no record of a task \(KeyError"):
        again.get(f"{2:032x}")
    assert ids(again.list()) == [3]
    assert "not listing task" in caplog.text


def test_weights_without_a_record_are_removed_when_no_server_can_be_at_work_on_them(url, content, monkeypatch):
    store = TaskStore.open(url)
    add(store, content(1))
    objects = Objects.open(url)
    objects.put(f"weights/{'0' * 64}.pt", b"left by a killed server")
    assert store.sweep() == 0
    monkeypatch.setattr(index_objects, "LEFTOVER_SECONDS", -1.0)
    assert store.sweep() == 1
    assert store.read(f"{1:032x}") == content(1)
    assert len(objects.names("weights")) == 1


def test_a_place_that_cannot_be_had_is_refused_with_the_way_out(tmp_path, content, monkeypatch):
    with pytest.raises(StartupError, match=r"cannot use nothing://x as a store: .*nothing"):
        TaskStore.open("nothing://x")
    with pytest.raises(StartupError, match=r"cannot use s3://bucket/x as a store: .*s3fs"):
        TaskStore.open("s3://bucket/x")
    (tmp_path / "file").touch()
    store = TaskStore.open(f"file://{tmp_path}/file/below")
    with pytest.raises(StoreWriteError, match=r"cannot be kept: cannot write weights/.*Not a directory"):
        add(store, content(1))

    def cut_off(*args, **kwargs):
        raise TimeoutError("no answer")

    store = TaskStore.open("memory://x")
    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "cat_file", cut_off)
    with pytest.raises(StoreFaultError, match=r"cannot read tasks/.* at memory://x \(TimeoutError: no answer\)"):
        store.get("0" * 32)


def test_what_one_server_process_learns_another_one_answers_with(
    tmp_path, fixed_metas, start_process, support, queries, refuses
):
    arguments = ("--meta", str(fixed_metas["blocks"]), "--store", f"file://{tmp_path}/store", "--adapt-workers", "1")
    one, other = start_process(*arguments), start_process(*arguments)
    keyed = one.request(support, seed=2)
    keyed.idempotency_key = "a key"
    task = one.stub.Adapt(keyed, timeout=120).task
    assert other.classify(task.task_id, queries) == one.classify(task.task_id, queries)
    assert other.stub.Adapt(keyed, timeout=60).task == task  # found, not learnt
    assert list(other.stub.ListTasks(pb.ListTasksRequest()).tasks) == [task]
    other.stub.SetAlias(pb.SetAliasRequest(alias="line-3", task_id=task.task_id))
    assert one.classify("line-3", queries) == one.classify(task.task_id, queries)
    one.process.kill()
    other.stub.DeleteAlias(pb.DeleteAliasRequest(alias="line-3"))
    other.stub.DeleteTask(pb.DeleteTaskRequest(task_id=task.task_id))
    refuses(grpc.StatusCode.NOT_FOUND, ["no task"], lambda: other.classify(task.task_id, queries))
    assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == ["secret"]
