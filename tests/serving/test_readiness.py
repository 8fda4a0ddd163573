"""Liveness, readiness and readiness of a task are three things, and the last is a tenant's own."""

import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from metanas_client.security import Security, open_channel
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_proto.v1 import few_shot_pb2_grpc
from metanas_serving import tokens_cli
from metanas_serving.application import Application
from metanas_serving.config import ServerConfig

SERVICES = ("metanas.v1.FewShot", "inference.GRPCInferenceService")
NOT_FOUND = grpc.StatusCode.NOT_FOUND


def status_of(channel, service, metadata=()):
    """Its status, or the code of the error."""
    try:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = health_pb2_grpc.HealthStub(channel).Check(request, metadata=metadata, timeout=20)
    except grpc.RpcError as error:
        return error.code()
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """The path of a token file, and the tokens of two tenants."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.json"
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda text="", **_: printed.append(text))
        for tenant in ("a", "b"):
            tokens_cli.main(["add", str(path), tenant])
    return path, [text for text in printed if text.startswith("metanas_")]


def test_a_server_lives_before_it_is_ready_and_while_it_drains_and_a_task_is_ready_for_its_tenant_alone(
    tiny_meta, tokens, support
):
    path, (first, second) = tokens
    seen = []

    def while_it_starts():
        # Called again and again while the first adaptation process warms up.
        if not seen:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                seen.append([status_of(channel, name) for name in ("", *SERVICES)])
        return False

    application = Application(ServerConfig(meta_path=tiny_meta, port=0, tokens_path=path, adapt_workers=1))
    listen = application._listen

    def listening():
        nonlocal port
        server, address = listen()
        port = address.rpartition(":")[2]
        return server, address

    port = ""
    application._listen = listening
    address = application.start(should_stop=while_it_starts)
    assert seen == [["SERVING", "NOT_SERVING", "NOT_SERVING"]]
    channel = open_channel(address, Security(token=first), options=[])
    stub = few_shot_pb2_grpc.FewShotStub(channel)
    try:
        request = pb.AdaptRequest(
            support=[pb.LabelledImages(label=label, images=images) for label, images in support.items()]
        )
        task_id = stub.Adapt(request, timeout=60).task.task_id
        stub.SetAlias(pb.SetAliasRequest(alias="line-3", task_id=task_id))
        with grpc.insecure_channel(address) as anyone:
            assert [status_of(anyone, name) for name in ("", *SERVICES)] == ["SERVING"] * 3
            for name in (task_id, "line-3"):
                assert status_of(channel, name) == "SERVING"
                for token in (None, second, "no token"):
                    shown = [] if token is None else [("authorization", f"Bearer {token}")]
                    assert status_of(anyone, name, shown) is NOT_FOUND
            assert status_of(channel, "line-4") is NOT_FOUND
            _check_watch(anyone, channel, task_id)
            # A stream keeps the server from ending while it drains.
            held = threading.Event()
            call = stub.ClassifyStream(_until(held))
            time.sleep(0.3)
            stopping = threading.Thread(target=application.stop, args=(20,))
            stopping.start()
            end = time.monotonic() + 10
            while status_of(channel, SERVICES[0]) == "SERVING":
                assert time.monotonic() < end
            assert [status_of(channel, name) for name in ("", task_id)] == ["SERVING", "NOT_SERVING"]
            held.set()
            assert not list(call)
            stopping.join(timeout=30)
            assert not stopping.is_alive()
    finally:
        channel.close()
        application.stop(0)


def _until(event):
    event.wait(60)
    yield from ()


def _check_watch(anyone, channel, task_id):
    """Watch tells of services at once, knows no tasks, and remembers no name that is none."""
    watched = health_pb2_grpc.HealthStub(anyone).Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]), timeout=20)
    assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
    watched.cancel()
    for name in (task_id, "x" * 1000):
        unknown = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=name), timeout=20)
        assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        unknown.cancel()
