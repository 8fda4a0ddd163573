"""The memory of adaptation processes: bounded, asked for before, and a process that has too little fails alone."""

import os
import re
import resource
from pathlib import Path

import grpc
import pytest

from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.config import ServerConfig


@pytest.fixture(scope="module")
def bounded(fixed_metas, make_server):
    config = ServerConfig(meta_path=fixed_metas["blocks"], port=0, adapt_workers=1, worker_memory_mb=400)
    return make_server(config)


def test_a_process_has_a_bound_and_what_would_not_fit_is_refused_before_it_runs(bounded, support, refuses):
    [worker] = bounded.application.adaptations.process_ids
    assert resource.prlimit(worker, resource.RLIMIT_DATA) == (400 * 2**20, 400 * 2**20)
    many = {"cat": support["cat"] * 450, "dog": support["dog"]}
    refuses(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        ["903 support images would take some", "(--worker-memory-mb)", "may have 400", "send fewer images"],
        lambda: bounded.adapt(many),
    )
    assert bounded.adapt(support).task_id


def test_a_process_without_memory_fails_its_request_alone(bounded, support, queries, refuses):
    kept = bounded.adapt(support).task_id
    answers = bounded.classify(kept, queries)
    [worker] = bounded.application.adaptations.process_ids
    [used] = re.findall(r"VmData:\s*(\d+)", Path(f"/proc/{worker}/status").read_text())
    before = resource.prlimit(worker, resource.RLIMIT_DATA, (int(used) * 1024, 400 * 2**20))
    with pytest.raises(grpc.RpcError) as caught:
        bounded.adapt({"cat": support["cat"] * 100, "dog": support["dog"] * 100})
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "more memory than its process may have" in caught.value.details() or "a new one starts" in (
        caught.value.details()
    )
    if worker in bounded.application.adaptations.process_ids and os.path.exists(f"/proc/{worker}/status"):
        resource.prlimit(worker, resource.RLIMIT_DATA, before)
    assert bounded.classify(kept, queries) == answers
    assert bounded.adapt(support, seed=1).task_id
    assert len(bounded.stub.ListTasks(pb.ListTasksRequest()).tasks) >= 2
