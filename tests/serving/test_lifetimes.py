"""How long tasks are kept, on the disk and in memory: times, aliases, pins, deletion."""

import time

import grpc
import pytest

from metanas_client import AdaptOptions, FewShotClient
from metanas_client import cli as client_cli
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.config import ServerConfig


@pytest.fixture
def config(fixed_metas, tmp_path):
    return ServerConfig(
        meta_path=fixed_metas["blocks"], port=0, adapt_workers=1, store_path=tmp_path / "store", max_loaded_mb=1
    )


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def ids(server):
    return [task.task_id for task in server.stub.ListTasks(pb.ListTasksRequest(), timeout=20).tasks]


def files(config):
    return list((config.store_path / "weights").iterdir())


def test_a_task_is_deleted_when_its_time_is_over_unless_it_has_an_alias(
    config, start_server, support, queries, refuses
):
    server = start_server(config)
    pictures = {label: [image.encoded for image in images] for label, images in support.items()}
    with FewShotClient(server.address) as client:
        begin = time.time()
        short = AdaptOptions(ttl_seconds=2.0)
        named = client.adapt(pictures, options=short)
        client.set_alias("kept", named.task_id)
        alone = client.adapt(pictures, options=short, seed=1)
        good = client.adapt(pictures, options=AdaptOptions(ttl_seconds=0.0), seed=2)
        assert begin + 2 < named.info.expires_unix_seconds < time.time() + 2
        assert good.info.expires_unix_seconds == 0
        until(lambda: alone.task_id not in ids(server))
        refuses(grpc.StatusCode.NOT_FOUND, ["no task"], lambda: server.classify(alone.task_id, queries))
        until(lambda: time.time() > named.info.expires_unix_seconds + 1.5)
        assert server.classify("kept", queries)
        client.delete_alias("kept")
        until(lambda: ids(server) == [good.task_id])
        until(lambda: len(files(config)) == 1)
    for seconds in (-1.0, float("nan"), 1e12):
        request = server.request(support)
        request.options.ttl_seconds = seconds
        refuses(
            grpc.StatusCode.INVALID_ARGUMENT,
            ["ttl_seconds must be 0", "at most"],
            lambda request=request: server.stub.StartAdapt(request, timeout=20),
        )


def test_a_pinned_alias_holds_its_task_in_memory_over_others_and_over_a_restart(
    config, start_server, support, queries, refuses, capsys
):
    server = start_server(config)
    engine = server.application._engine
    pinned = server.adapt(support).task_id
    assert client_cli.main(["alias", "line", pinned, "--pin", "--server", server.address]) == 0
    assert capsys.readouterr().out == f"line is task {pinned}\n"
    listed = server.stub.ListAliases(pb.ListAliasesRequest()).aliases
    assert list(listed) == [pb.Alias(alias="line", task_id=pinned, pinned=True)]
    one = engine.loaded_bytes
    others = [server.adapt(support, seed=seed).task_id for seed in range(1, 2**20 // one + 3)]
    assert engine.loaded_bytes <= 2**20 < engine.loaded_bytes + one
    assert pinned in engine.loaded
    assert others[0] not in engine.loaded
    assert server.classify(others[0], queries)  # loaded from its file
    server.stub.DeleteTask(pb.DeleteTaskRequest(task_id=others[0]))
    assert others[0] not in engine.loaded
    assert len(files(config)) == len(others)

    server.stop()
    again = start_server(config)
    until(lambda: again.application._engine.loaded == [pinned])
    again.stub.SetAlias(pb.SetAliasRequest(alias="line", task_id=pinned))
    assert again.application._engine._pinned == frozenset()
    size = files(config)[0].stat().st_size
    too_many = 2**19 // size + 1
    if too_many <= len(others):
        for number, task_id in enumerate(others[1:too_many]):
            again.stub.SetAlias(pb.SetAliasRequest(alias=f"line-{number}", task_id=task_id, pinned=True))
        refuses(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            ["files of the pinned tasks", "--max-loaded-mb"],
            lambda: again.stub.SetAlias(pb.SetAliasRequest(alias="more", task_id=pinned, pinned=True)),
        )
