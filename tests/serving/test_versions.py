"""Tasks that grow: new versions, and aliases that move from one to another."""

import grpc
import pytest

from metanas.artifact import task_from_bytes
from metanas_client import FewShotClient, TaskNotFoundError
from metanas_proto.v1 import few_shot_pb2 as pb


@pytest.fixture
def update(job_server):
    def update(task_id, support, **fields):
        request = pb.UpdateTaskRequest(
            task_id=task_id,
            support=[pb.LabelledImages(label=label, images=images) for label, images in support.items()],
            **fields,
        )
        job = job_server.stub.UpdateTask(request, timeout=20)
        return list(job_server.stub.WatchAdapt(pb.WatchAdaptRequest(job_id=job.job_id), timeout=60))[-1].task

    return update


def versions(server, name):
    return [task.task_id for task in server.stub.ListVersions(pb.ListVersionsRequest(task_id=name)).tasks]


def set_alias(server, alias, task_id):
    return server.stub.SetAlias(pb.SetAliasRequest(alias=alias, task_id=task_id), timeout=20)


def answered_by(server, name, queries):
    return server.stub.Classify(pb.ClassifyRequest(task_id=name, images=queries), timeout=20).task_id


def test_an_update_learns_the_old_images_and_the_new_ones_as_a_new_version(job_server, support, queries, update):
    hen = support.pop("hen")
    first = job_server.adapt({"cat": support["cat"][:1], "dog": support["dog"]})
    answers = job_server.classify(first.task_id, queries)
    second = update(first.task_id, {"hen": hen, "cat": support["cat"][1:]}, seed=3)
    assert (second.version, second.parent_task_id, second.first_task_id) == (2, first.task_id, first.task_id)
    assert list(second.class_names) == ["cat", "dog", "hen"]
    # What was adapted from all images at once is the same, to the bit.
    whole = job_server.adapt({**support, "hen": hen}, seed=3)
    files = [task_from_bytes(job_server.export(task_id)) for task_id in (second.task_id, whole.task_id)]
    for name, value in files[0].network.state_dict().items():
        assert value.equal(files[1].network.state_dict()[name])
    assert job_server.classify(first.task_id, queries) == answers

    third = update(second.task_id, {"cat": hen})
    assert third.version == 3
    assert "are the same once prepared" in third.warnings[0]
    for name in (first.task_id, second.task_id, third.task_id):
        assert versions(job_server, name) == [first.task_id, second.task_id, third.task_id]
    job_server.stub.DeleteTask(pb.DeleteTaskRequest(task_id=first.task_id))
    assert versions(job_server, third.task_id) == [second.task_id, third.task_id]
    assert versions(job_server, whole.task_id) == [whole.task_id]


def test_an_update_that_cannot_work_is_refused_by_what_it_adds(job_server, support, update, refuses):
    task_id = job_server.adapt(support).task_id
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    refuses(invalid, ["no images", "at least one image"], lambda: update(task_id, {}))
    refuses(invalid, ["no images"], lambda: update(task_id, {"fox": []}))
    bad = [pb.Image(encoded=b"no image")]
    refuses(invalid, ['image 0 of class "cat": its 8 bytes'], lambda: update(task_id, {"cat": bad}))
    refuses(invalid, ["label of class 3 is empty"], lambda: update(task_id, {" ": support["cat"]}))
    refuses(
        invalid, ["--max-adapt-steps"], lambda: update(task_id, support, options=pb.AdaptOptions(weight_steps=30_000))
    )
    refuses(grpc.StatusCode.NOT_FOUND, ["no task 'x'"], lambda: update("x", support))


def test_an_alias_answers_for_its_task_and_moves_forth_and_back(job_server, support, queries, update, refuses):
    old = job_server.adapt(support).task_id
    set_alias(job_server, "line-3", old)
    assert answered_by(job_server, "line-3", queries) == old
    new = update("line-3", {"fox": support["cat"]}).task_id
    assert answered_by(job_server, "line-3", queries) == old  # pinned until it is moved
    assert set_alias(job_server, "line-3", new) == pb.Alias(alias="line-3", task_id=new)
    assert answered_by(job_server, "line-3", queries) == new
    assert versions(job_server, "line-3") == [old, new]
    assert job_server.export("line-3") == job_server.export(new)
    refuses(
        grpc.StatusCode.FAILED_PRECONDITION,
        [f"task {new} has the alias 'line-3'", "move the alias"],
        lambda: job_server.stub.DeleteTask(pb.DeleteTaskRequest(task_id=new)),
    )
    set_alias(job_server, "other", "line-3")
    set_alias(job_server, "line-3", old)
    assert answered_by(job_server, "line-3", queries) == old
    aliases = {one.alias: one.task_id for one in job_server.stub.ListAliases(pb.ListAliasesRequest()).aliases}
    assert aliases.items() >= {"line-3": old, "other": new}.items()
    for alias in ("line-3", "other"):
        job_server.stub.DeleteAlias(pb.DeleteAliasRequest(alias=alias))
    job_server.stub.DeleteTask(pb.DeleteTaskRequest(task_id=new))
    refuses(grpc.StatusCode.NOT_FOUND, ["no task 'line-3'"], lambda: answered_by(job_server, "line-3", queries))
    refuses(
        grpc.StatusCode.NOT_FOUND,
        ["no alias 'other'", "ListAliases"],
        lambda: job_server.stub.DeleteAlias(pb.DeleteAliasRequest(alias="other")),
    )


@pytest.mark.parametrize("alias", ["", "-x", "a/b", "../x", "é", "a" * 65, "0123456789abcdef" * 2, "a\n"])
def test_what_cannot_be_an_alias_is_refused(job_server, support, alias, refuses):
    task_id = "0" * 32
    refuses(
        grpc.StatusCode.INVALID_ARGUMENT,
        ["cannot be an alias", "1 to 64"],
        lambda: set_alias(job_server, alias, task_id),
    )


def test_an_alias_of_a_task_that_is_not_there_is_refused(job_server, refuses):
    refuses(grpc.StatusCode.NOT_FOUND, ["no task"], lambda: set_alias(job_server, "line-4", "0" * 32))


def test_the_client_grows_a_task_and_moves_its_alias(job_server, support):
    images = {name: [image.encoded for image in group] for name, group in support.items()}
    with FewShotClient(job_server.address, timeout_seconds=60) as client:
        first = client.adapt(images)
        client.set_alias("gate.7", first.task_id)
        second = client.start_update("gate.7", {"fox": images["cat"]}, idempotency_key="grow").result()
        assert (second.info.version, second.info.parent_task_id) == (2, first.task_id)
        assert (
            client.start_update("gate.7", {"fox": images["cat"]}, idempotency_key="grow").result().info == second.info
        )
        client.set_alias("gate.7", second.task_id)
        assert client.task("gate.7").task_id == second.task_id
        assert [task.task_id for task in client.versions("gate.7")] == [first.task_id, second.task_id]
        assert client.aliases()["gate.7"] == second.task_id
        client.delete_alias("gate.7")
        with pytest.raises(TaskNotFoundError, match="no alias 'gate"):
            client.delete_alias("gate.7")
