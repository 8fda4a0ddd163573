"""Many tasks of one architecture, more than stay loaded, asked at the same time: each answers for itself."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.config import ServerConfig

TASKS = 4


@pytest.fixture(scope="module")
def crowded(fixed_metas, make_server, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    return make_server(
        ServerConfig(
            meta_path=fixed_metas["autometa"], port=0, adapt_workers=1, store_path=store, max_loaded_tasks=TASKS - 2
        )
    )


def test_tasks_of_one_architecture_never_give_each_others_answers(crowded, queries):
    tasks = [crowded.adapt({"cat": queries[number : number + 1], "dog": queries[-1:]}) for number in range(TASKS)]
    assert len({task.genotype.SerializeToString() for task in tasks}) == 1
    alone = {task.task_id: crowded.classify(task.task_id, queries) for task in tasks}
    assert len({str(answers) for answers in alone.values()}) == TASKS
    asked = [task.task_id for task in tasks] * 25
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda task_id: crowded.classify(task_id, queries), asked))
    assert answers == [alone[task_id] for task_id in asked]


def test_a_task_whose_file_is_damaged_is_lost_alone_and_says_so(
    fixed_metas, start_server, support, queries, tmp_path, refuses
):
    config = ServerConfig(meta_path=fixed_metas["blocks"], port=0, adapt_workers=1, store_path=tmp_path)
    first = start_server(config)
    good, bad = (first.adapt(support, seed=seed).task_id for seed in (1, 2))
    answers = first.classify(good, queries)
    path = tmp_path / "weights" / f"{hashlib.sha256(first.export(bad)).hexdigest()}.pt"
    first.stop()
    path.write_bytes(path.read_bytes()[:-100])
    second = start_server(config)
    refuses(grpc.StatusCode.DATA_LOSS, ["damaged", "set aside as"], lambda: second.classify(bad, queries))
    refuses(grpc.StatusCode.NOT_FOUND, ["no task"], lambda: second.classify(bad, queries))
    assert second.classify(good, queries) == answers
    assert [task.task_id for task in second.stub.ListTasks(pb.ListTasksRequest()).tasks] == [good]
