"""Lists of tasks in pages, over a connection."""

import grpc
import pytest

from metanas_client import FewShotClient
from metanas_client import cli as client_cli
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.config import ServerConfig


@pytest.fixture(scope="module")
def filled(fixed_metas, make_server, tmp_path_factory):
    return make_server(
        ServerConfig(
            meta_path=fixed_metas["blocks"], port=0, adapt_workers=1, store_path=tmp_path_factory.mktemp("store")
        )
    )


def test_pages_bring_each_task_once_oldest_first(filled, support, refuses, capsys):
    ids = [filled.adapt(support, seed=seed).task_id for seed in range(5)]

    def page(size, token=""):
        return filled.stub.ListTasks(pb.ListTasksRequest(page_size=size, page_token=token), timeout=20)

    whole = page(0)
    assert [task.task_id for task in whole.tasks] == ids
    assert whole.next_page_token == ""
    first = page(2)
    filled.stub.DeleteTask(pb.DeleteTaskRequest(task_id=ids[1]))  # that the token was made from
    second = page(2, first.next_page_token)
    third = page(2, second.next_page_token)
    assert [[task.task_id for task in one.tasks] for one in (first, second, third)] == [ids[:2], ids[2:4], ids[4:]]
    assert third.next_page_token == ""
    assert page(5).next_page_token == page(4).next_page_token == ""
    for token in ("x", "AAAA", first.next_page_token[:-4] + "!!!!"):
        refuses(grpc.StatusCode.INVALID_ARGUMENT, ["page_token", "next_page_token of"], lambda t=token: page(2, t))

    left = [ids[0], *ids[2:]]
    with FewShotClient(filled.address) as client:
        assert [task.task_id for task in client.iterate_tasks(page_size=1)] == left
        assert [task.task_id for task in client.tasks()] == left
    assert client_cli.main(["tasks", "--server", filled.address, "--limit", "3"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == left[:3]
