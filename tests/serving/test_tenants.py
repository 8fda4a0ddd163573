"""What is a tenant's is to every other tenant as if it were not, whichever call or protocol asks."""

import json
import logging
import re
import time

import grpc
import numpy as np
import pytest

from metanas_client import AuthenticationError, FewShotClient
from metanas_client.security import Security, open_channel
from metanas_proto.inference import open_inference_pb2 as oip
from metanas_proto.inference import open_inference_pb2_grpc
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_proto.v1 import few_shot_pb2_grpc
from metanas_serving import tokens_cli
from metanas_serving.config import ServerConfig
from metanas_serving.errors import TaskNotFoundError
from metanas_serving.log import JsonFormatter, TextFormatter

ENDLESS = pb.AdaptOptions(architecture_steps=10_000, weight_steps=10_000)
NOBODY = "0" * 32


class Caller:
    """Stubs that show a token."""

    def __init__(self, address, token):
        self.token = token
        self.channel = open_channel(address, Security(token=token), options=[])
        self.few_shot = few_shot_pb2_grpc.FewShotStub(self.channel)
        self.inference = open_inference_pb2_grpc.GRPCInferenceServiceStub(self.channel)


@pytest.fixture(scope="module")
def plant(make_server, tiny_meta, tmp_path_factory):
    """A server with tokens of tenants a, b and of the one without a name."""
    folder = tmp_path_factory.mktemp("plant")
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda text="", **_: printed.append(text))
        for tenant in ("a", "b", ""):
            assert tokens_cli.main(["add", str(folder / "tokens.json"), tenant]) == 0
    tokens = [text for text in printed if text.startswith("metanas_")]
    server = make_server(
        ServerConfig(
            meta_path=tiny_meta,
            port=0,
            store_path=folder / "store",
            tokens_path=folder / "tokens.json",
            adapt_workers=1,
            max_adapt_steps=20_000,
            max_tenant_jobs=3,
        )
    )
    server.folder = folder
    server.a, server.b, server.unnamed = (Caller(server.address, token) for token in tokens)
    yield server
    for caller in (server.a, server.b, server.unnamed):
        caller.channel.close()


@pytest.fixture(scope="module")
def kept(plant, module_support):
    """What tenant a has: a task with an alias, its job, learnt under a key."""
    request = plant.request(module_support)
    request.idempotency_key = "monday"
    job = plant.a.few_shot.StartAdapt(request, timeout=60)
    job = list(plant.a.few_shot.WatchAdapt(pb.WatchAdaptRequest(job_id=job.job_id), timeout=60))[-1]
    plant.a.few_shot.SetAlias(pb.SetAliasRequest(alias="line-3", task_id=job.task.task_id))
    return job


@pytest.fixture(scope="module")
def module_support():
    generator = np.random.default_rng(5)
    images = generator.integers(0, 256, (2, 28, 28), dtype=np.uint8)
    tensors = [pb.Tensor(data_type=pb.Tensor.DATA_TYPE_UINT8, shape=(28, 28), data=image.tobytes()) for image in images]
    return {name: [pb.Image(tensor=tensor)] for name, tensor in zip(("cat", "dog"), tensors, strict=True)}


def failure(call):
    with pytest.raises(grpc.RpcError) as caught:
        end(call())
    return caught.value.code(), caught.value.details()


def end(answer):
    """Read a stream to its end; what is no stream is there already."""
    if not hasattr(answer, "DESCRIPTOR"):
        list(answer)


def calls_on(stub, name, support):
    """Every call of the contract that names a task."""
    images = support["cat"]
    added = [pb.LabelledImages(label="cat", images=images)]
    onnx = pb.ExportTaskRequest.FORMAT_ONNX
    return {
        "GetTask": lambda: stub.GetTask(pb.GetTaskRequest(task_id=name)),
        "Classify": lambda: stub.Classify(pb.ClassifyRequest(task_id=name, images=images)),
        "ClassifyStream": lambda: stub.ClassifyStream(iter([pb.ClassifyRequest(task_id=name, images=images)])),
        "UpdateTask": lambda: stub.UpdateTask(pb.UpdateTaskRequest(task_id=name, support=added)),
        "ListVersions": lambda: stub.ListVersions(pb.ListVersionsRequest(task_id=name)),
        "SetAlias": lambda: stub.SetAlias(pb.SetAliasRequest(alias="mine", task_id=name)),
        "ExportTask": lambda: stub.ExportTask(pb.ExportTaskRequest(task_id=name, format=onnx)),
        "DeleteTask": lambda: stub.DeleteTask(pb.DeleteTaskRequest(task_id=name)),
    }


def inference_calls_on(stub, name):
    images = oip.ModelInferRequest.InferInputTensor(name="images", datatype="UINT8", shape=(1, 28, 28, 1))
    infer = oip.ModelInferRequest(model_name=name, inputs=[images], raw_input_contents=[bytes(28 * 28)])
    return {
        "ModelMetadata": lambda: stub.ModelMetadata(oip.ModelMetadataRequest(name=name)),
        "ModelConfig": lambda: stub.ModelConfig(oip.ModelConfigRequest(name=name)),
        "ModelInfer": lambda: stub.ModelInfer(infer),
    }


def test_each_call_on_anothers_task_fails_as_on_one_that_never_was(plant, kept, module_support):
    task_id = kept.task.task_id
    for other in (plant.b, plant.unnamed):
        for names, calls in (
            ((task_id, NOBODY), lambda name: calls_on(other.few_shot, name, module_support)),  # noqa: B023
            (("line-3", "line-4"), lambda name: calls_on(other.few_shot, name, module_support)),  # noqa: B023
            (("a/line-3", "b/line-3"), lambda name: calls_on(other.few_shot, name, module_support)),  # noqa: B023
            ((task_id, NOBODY), lambda name: inference_calls_on(other.inference, name)),  # noqa: B023
            (("line-3", "a/line-3"), lambda name: inference_calls_on(other.inference, name)),  # noqa: B023
        ):
            theirs, none = (calls(name) for name in names)
            for call in theirs:
                seen, expected = failure(theirs[call]), failure(none[call])
                assert seen[0] is grpc.StatusCode.NOT_FOUND, (call, seen)
                assert seen == (expected[0], expected[1].replace(names[1], names[0])), call
        assert not other.inference.ModelReady(oip.ModelReadyRequest(name=task_id)).ready
    # To its own tenant all of that is there, and no worse for it.
    assert plant.a.few_shot.GetTask(pb.GetTaskRequest(task_id="line-3")) == kept.task
    assert plant.a.inference.ModelReady(oip.ModelReadyRequest(name=task_id)).ready
    for call in inference_calls_on(plant.a.inference, "line-3").values():
        call()


def test_each_call_on_anothers_job_fails_as_on_one_that_never_was(plant, kept):
    def calls(stub, job_id):
        return {
            "GetJob": lambda: stub.GetJob(pb.GetJobRequest(job_id=job_id)),
            "WatchAdapt": lambda: stub.WatchAdapt(pb.WatchAdaptRequest(job_id=job_id)),
            "CancelAdapt": lambda: stub.CancelAdapt(pb.CancelAdaptRequest(job_id=job_id)),
        }

    theirs, none = calls(plant.b.few_shot, kept.job_id), calls(plant.b.few_shot, NOBODY)
    for call in theirs:
        code, text = failure(none[call])
        assert failure(theirs[call]) == (code, text.replace(NOBODY, kept.job_id)), call
        assert (code, "among the 0 that" in text) == (grpc.StatusCode.NOT_FOUND, True)


def test_lists_hold_what_is_the_callers_alone(plant, kept):
    for caller, tasks, aliases in (
        (plant.a, [kept.task.task_id], ["line-3"]),
        (plant.b, [], []),
        (plant.unnamed, [], []),
    ):
        assert [task.task_id for task in caller.few_shot.ListTasks(pb.ListTasksRequest()).tasks] == tasks
        assert [entry.alias for entry in caller.few_shot.ListAliases(pb.ListAliasesRequest()).aliases] == aliases
        assert bool(caller.few_shot.ListJobs(pb.ListJobsRequest()).jobs) == bool(tasks)
        index = caller.inference.RepositoryIndex(oip.RepositoryIndexRequest())
        assert [model.name for model in index.models] == tasks + aliases


def test_keys_and_aliases_of_two_tenants_have_nothing_to_do_with_each_other(plant, kept, module_support):
    request = plant.request(module_support, seed=7)  # with a's key it would be refused for the seed
    request.idempotency_key = "monday"
    own = plant.b.few_shot.Adapt(request, timeout=60).task
    assert own.task_id != kept.task.task_id
    plant.b.few_shot.SetAlias(pb.SetAliasRequest(alias="line-3", task_id=own.task_id))
    assert plant.b.few_shot.GetTask(pb.GetTaskRequest(task_id="line-3")) == own
    assert plant.a.few_shot.GetTask(pb.GetTaskRequest(task_id="line-3")) == kept.task
    plant.b.few_shot.DeleteAlias(pb.DeleteAliasRequest(alias="line-3"))
    code, text = failure(lambda: plant.b.few_shot.DeleteAlias(pb.DeleteAliasRequest(alias="line-3")))
    assert (code, text) == (grpc.StatusCode.NOT_FOUND, "no alias 'line-3' on this server; ListAliases names yours")
    plant.b.few_shot.DeleteTask(pb.DeleteTaskRequest(task_id=own.task_id))
    assert plant.a.few_shot.GetTask(pb.GetTaskRequest(task_id="line-3")) == kept.task
    update = pb.UpdateTaskRequest(
        task_id="line-3", support=[pb.LabelledImages(label="cat", images=module_support["dog"])]
    )
    job = plant.a.few_shot.UpdateTask(update, timeout=20)
    *_, over = plant.a.few_shot.WatchAdapt(pb.WatchAdaptRequest(job_id=job.job_id), timeout=60)
    versions = plant.a.few_shot.ListVersions(pb.ListVersionsRequest(task_id="line-3")).tasks
    assert [task.task_id for task in versions] == [kept.task.task_id, over.task.task_id]
    plant.a.few_shot.DeleteTask(pb.DeleteTaskRequest(task_id=over.task.task_id))


def test_places_in_the_queue_and_limits_tell_a_tenant_of_its_own_jobs_only(plant, module_support):
    request = plant.request(module_support)
    request.options.CopyFrom(ENDLESS)
    jobs = [plant.a.few_shot.StartAdapt(request, timeout=20) for _ in range(3)]
    code, text = failure(lambda: plant.a.few_shot.StartAdapt(request, timeout=20))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "3 of your adaptations wait or run" in text
    theirs = plant.b.few_shot.StartAdapt(request, timeout=20)
    own = [plant.a.few_shot.GetJob(pb.GetJobRequest(job_id=job.job_id)) for job in jobs]
    assert [job.queue_position for job in own] == [0, 0, 1]
    assert plant.b.few_shot.GetJob(pb.GetJobRequest(job_id=theirs.job_id)).queue_position == 0
    for caller, started in ((plant.b, [theirs]), (plant.a, jobs)):
        for job in reversed(started):
            over = caller.few_shot.CancelAdapt(pb.CancelAdaptRequest(job_id=job.job_id), timeout=40)
            assert over.state == pb.AdaptJob.STATE_CANCELLED


def test_no_method_of_either_protocol_answers_without_a_valid_token(plant):
    good = plant.a.token
    wrong = [
        None,
        "",
        good,
        f"Basic {good}",
        f"Bearer {good}0",
        f"Bearer {good[:-1]}{'0' if good[-1] != '0' else '1'}",
        f"Bearer metanas_{'0' * 16}_{'0' * 64}",
        f"Bearer {good} {good}",
        "Bearer ",
    ]
    texts = set()
    for services in (pb.DESCRIPTOR, oip.DESCRIPTOR):
        (service,) = services.services_by_name.values()
        for method in service.methods:
            # Streams both ways: the call is refused before its first message.
            call = plant.channel.stream_stream(f"/{service.full_name}/{method.name}")
            for value in wrong if method.name in ("Classify", "ModelInfer") else wrong[:1]:
                metadata = [] if value is None else [("authorization", value)]
                code, text = failure(lambda: call(iter(()), metadata=metadata, timeout=20))  # noqa: B023
                if code is not grpc.StatusCode.UNIMPLEMENTED:  # of the protocol, but not of this server
                    assert code is grpc.StatusCode.UNAUTHENTICATED, (method.name, value)
                    texts.add(text)
    (text,) = texts
    assert "send the metadata `authorization: Bearer TOKEN`" in text
    unknown = plant.channel.stream_stream("/metanas.v1.FewShot/NoSuchMethod")
    assert failure(lambda: unknown(iter(()), timeout=20))[0] is grpc.StatusCode.UNIMPLEMENTED


def test_health_and_reflection_need_no_token(plant):
    assert plant.health("metanas.v1.FewShot") == plant.health("") == "SERVING"
    reflect = plant.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    assert next(iter(reflect(iter([b"\x3a\x00"]), timeout=20)))  # list_services


def test_a_client_says_what_to_do_about_a_missing_token(plant, monkeypatch):
    with FewShotClient(plant.address) as client:
        assert client.is_ready()
        with pytest.raises(AuthenticationError, match="pass token to the client, or set METANAS_TOKEN"):
            client.tasks()
    monkeypatch.setenv("METANAS_TOKEN", plant.b.token)
    with FewShotClient(plant.address) as client:
        assert client.tasks() == []


def test_a_refused_token_takes_no_longer_to_find_out_about_than_a_task_of_nobody(plant, kept):
    """Interleaved, so that whatever else the machine does slows both alike."""
    store = plant.application._store
    seconds = {kept.task.task_id: [], NOBODY: []}
    for _ in range(2000):
        for task_id, values in seconds.items():
            begin = time.perf_counter()
            with pytest.raises(TaskNotFoundError):
                store.owned(task_id, tenant="b")
            values.append(time.perf_counter() - begin)
    theirs, none = (float(np.median(values)) for values in seconds.values())
    assert abs(theirs - none) < 20e-6, (theirs, none)  # of a call that takes a hundred times as long


def test_a_task_keeps_its_tenant_over_a_restart_and_a_token_ends_with_its_entry(
    plant, kept, tmp_path, tiny_meta, start_server, capsys
):
    tokens = plant.folder / "tokens.json"
    copy = tmp_path / "store"
    copy.mkdir()
    for path in (plant.folder / "store").iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    mine = tmp_path / "tokens.json"
    mine.write_bytes(tokens.read_bytes())
    assert tokens_cli.main(["list", str(mine)]) == 0
    identifier = next(line.split()[0] for line in capsys.readouterr().out.splitlines() if "'b'" in line)
    assert tokens_cli.main(["remove", str(mine), identifier]) == 0
    again = start_server(ServerConfig(meta_path=tiny_meta, port=0, store_path=copy, tokens_path=mine, adapt_workers=1))
    for caller, expected in ((plant.a, [kept.task]), (plant.unnamed, [])):
        now = Caller(again.address, caller.token)
        assert list(now.few_shot.ListTasks(pb.ListTasksRequest()).tasks) == expected
        now.channel.close()
    gone = Caller(again.address, plant.b.token)
    assert failure(lambda: gone.few_shot.ListTasks(pb.ListTasksRequest()))[0] is grpc.StatusCode.UNAUTHENTICATED
    gone.channel.close()


def test_ids_cannot_be_paths(plant, kept):
    """They are looked up, never opened."""
    store = plant.folder / "store"
    for name in (
        f"../store/{kept.task.task_id}",
        f"{kept.task.task_id}.pt",
        f"./{kept.task.task_id}",
        "index.sqlite",
        "/",
    ):
        for caller in (plant.a, plant.b):
            for call in (
                lambda: caller.few_shot.GetTask(pb.GetTaskRequest(task_id=name)),  # noqa: B023
                lambda: caller.few_shot.DeleteTask(pb.DeleteTaskRequest(task_id=name)),  # noqa: B023
                lambda: caller.inference.ModelMetadata(oip.ModelMetadataRequest(name=name)),  # noqa: B023
            ):
                assert failure(call)[0] is grpc.StatusCode.NOT_FOUND
    assert (store / "index.sqlite").exists()


def test_ids_of_tasks_and_jobs_are_128_bits_of_chance(plant, module_support):
    tasks = [plant.a.few_shot.Adapt(plant.request(module_support), timeout=60).task.task_id for _ in range(2)]
    jobs = [job.job_id for job in plant.a.few_shot.ListJobs(pb.ListJobsRequest()).jobs]
    names = [*tasks, *jobs]  # the two tasks are of one request
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[0-9a-f]{32}", name) for name in names)
    # No byte is the same in all of them but those of UUID's version and variant.
    alike = [place for place in range(0, 32, 2) if len({name[place : place + 2] for name in names}) == 1]
    assert not set(alike) - {12, 16}
    for task_id in tasks:
        plant.a.few_shot.DeleteTask(pb.DeleteTaskRequest(task_id=task_id))


class Lines(logging.Handler):
    """Records as both formatters write them."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append((json.loads(JsonFormatter().format(record)), TextFormatter().format(record)))


def test_a_log_says_whose_call_or_job_a_line_is_of(plant, module_support):
    handler, logger = Lines(), logging.getLogger("metanas_serving")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        task_id = plant.b.few_shot.Adapt(plant.request(module_support), timeout=60).task.task_id
        plant.b.few_shot.DeleteTask(pb.DeleteTaskRequest(task_id=task_id), metadata=[("x-request-id", "r-1")])
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    adapted, deleted = (
        next(line for line in handler.lines if line[0]["message"].startswith(word)) for word in ("adapt:", "delete:")
    )
    assert adapted[0]["tenant"] == deleted[0]["tenant"] == "b"
    assert deleted[0]["request_id"] == "r-1"
    assert deleted[1].endswith(f"delete: task {task_id} [r-1 b]")
