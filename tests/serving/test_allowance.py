"""What one tenant may take: calls, adaptations, tasks and bytes, and when it may try again."""

import time

import grpc
import pytest
from google.rpc.code_pb2 import RESOURCE_EXHAUSTED
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from metanas.errors import InvalidConfigError
from metanas_client import FewShotClient, ResourceExhaustedError
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving import tokens_cli
from metanas_serving.allowance import Allowance, TenantLimits, TokenBucket
from metanas_serving.config import ServerConfig
from metanas_serving.errors import QuotaError, RateError
from metanas_serving.usage import Usage


def test_a_bucket_gives_its_size_at_once_then_its_rate_and_never_more_than_its_size():
    bucket = TokenBucket(per_second=2, size=3, now=100.0)
    assert [bucket.take(100.0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(100.0) == 0.5
    assert bucket.take(100.25) == 0.25  # asking does not put it off
    assert bucket.take(100.5) == 0
    assert [bucket.take(200.0) for _ in range(4)] == [0, 0, 0, 0.5]


def test_tenants_do_not_use_up_each_others_rates():
    now = [0.0]
    limits = TenantLimits(requests_per_second=2, adapts_per_minute=1)
    allowance = Allowance(limits, usage=lambda tenant: Usage(0, 0), clock=lambda: now[0])
    for _ in range(2):
        allowance.request("a")
    with pytest.raises(RateError, match=r"more than 2 requests a second.*--max-tenant-requests-per-second") as caught:
        allowance.request("a")
    assert caught.value.retry_after_seconds == 0.5
    allowance.request("b")
    allowance.adaptation("a", present=1)
    with pytest.raises(RateError, match="more than 1 adaptations a minute") as caught:
        allowance.adaptation("a", present=1)
    assert caught.value.retry_after_seconds == 60
    allowance.adaptation("b", present=1)
    now[0] = 60.0
    allowance.adaptation("a", present=1)


def test_quotas_count_what_is_kept_and_what_may_come_to_be():
    kept = {"a": Usage(3, 1000), "b": Usage(0, 0)}
    allowance = Allowance(TenantLimits(max_tasks=5, max_bytes=2000), usage=kept.__getitem__)
    allowance.adaptation("a", present=2)
    with pytest.raises(QuotaError, match="3 tasks kept and 3 asked for, this server allows a tenant 5"):
        allowance.adaptation("a", present=3)
    allowance.adaptation("b", present=5)
    kept["a"] = Usage(1, 2000)
    with pytest.raises(QuotaError, match=r"2000 bytes of tasks kept, .* allows a tenant 2000 \(--max-tenant-mb\)"):
        allowance.adaptation("a", present=1)


@pytest.fixture(scope="module")
def limited(make_process, tiny_meta, tmp_path_factory):
    """A process that allows each of two tenants little, and their tokens."""
    path = tmp_path_factory.mktemp("limited") / "tokens.json"
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda text="", **_: printed.append(text))
        for tenant in ("a", "b"):
            tokens_cli.main(["add", str(path), tenant])
    process = make_process(
        *("--meta", str(tiny_meta), "--tokens", str(path), "--adapt-workers", "1", "--max-tenant-tasks", "1"),
        *("--max-tenant-requests-per-second", "10"),
    )
    process.tokens = [text for text in printed if text.startswith("metanas_")]
    return process


def flood(process, token):
    """More calls at a time than the rate allows; those that were refused."""
    bearer = [("authorization", f"Bearer {token}")]
    stub = process.stub
    calls = []
    for _ in range(20):  # of Classify too, whose way in is another
        calls.append(stub.Classify.future(pb.ClassifyRequest(task_id="none"), metadata=bearer, timeout=20))
        calls.append(stub.ListTasks.future(pb.ListTasksRequest(), metadata=bearer, timeout=20))
    let_in = (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND)
    return [call for call in calls if call.code() not in let_in]


def refused_amid_a_flood(process, client):
    for _ in range(20):
        flood(process, process.tokens[0])
        try:
            client.aliases()
        except ResourceExhaustedError as error:
            return error
    return None


def test_a_tenant_over_its_rate_is_told_when_to_try_again_and_others_are_not_hindered(limited, support):
    refused = flood(limited, limited.tokens[0])
    assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert len(refused) > 20
    error = refused[-1]
    assert "more than 10 requests a second" in error.details()
    trailers = dict(error.trailing_metadata())
    status, retry = Status.FromString(trailers["grpc-status-details-bin"]), RetryInfo()
    assert (status.code, status.message) == (RESOURCE_EXHAUSTED, error.details())
    assert status.details[0].Unpack(retry)
    assert 1 <= retry.retry_delay.ToMilliseconds() == int(trailers["retry-after-ms"]) <= 100

    with FewShotClient(limited.address, token=limited.tokens[0]) as client:
        seconds = refused_amid_a_flood(limited, client).retry_after_seconds
        assert 0 < seconds <= 0.1
        time.sleep(seconds)
        client.aliases()
    with FewShotClient(limited.address, token=limited.tokens[1], timeout_seconds=60) as client:
        files = {label: [image.encoded for image in images] for label, images in support.items()}
        task = client.adapt(files)
        # The requests of a stream count like calls.
        with pytest.raises(ResourceExhaustedError, match="more than 10 requests a second"):
            list(task.classify_stream([files["cat"][0]] * 1000))


def test_a_tenant_over_its_quota_learns_no_more_until_it_deletes(limited, support):
    files = {label: [image.encoded for image in images] for label, images in support.items()}
    with FewShotClient(limited.address, token=limited.tokens[0], timeout_seconds=60) as client:
        time.sleep(1)
        task = client.adapt(files, idempotency_key="one")
        with pytest.raises(ResourceExhaustedError, match=r"1 tasks kept and 1 asked for.*--max-tenant-tasks") as caught:
            client.adapt(files)
        assert caught.value.retry_after_seconds is None  # waiting does not help
        assert client.adapt(files, idempotency_key="one").task_id == task.task_id  # nothing is learnt
        task.delete()
        client.start_adapt(files).cancel()


def test_a_full_queue_and_a_rate_of_adaptations_say_when_to_try_again(start_server, slow_meta, support):
    files = {label: [image.encoded for image in images] for label, images in support.items()}
    config = ServerConfig(meta_path=slow_meta, port=0, adapt_workers=1, max_queue=0, max_tenant_adapts_per_minute=0.2)
    server = start_server(config)
    with FewShotClient(server.address, timeout_seconds=60) as client:
        job = client.start_adapt(files)
        with pytest.raises(ResourceExhaustedError, match="all places for adaptations are taken") as caught:
            client.start_adapt(files)
        assert caught.value.retry_after_seconds == 5
        job.cancel()
        with pytest.raises(ResourceExhaustedError, match=r"more than 0\.2 adaptations a minute") as caught:
            client.start_adapt(files)
        assert 0 < caught.value.retry_after_seconds <= 300


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_tenant_jobs", 0, "max_tenant_jobs must be at least 1, got 0"),
        ("max_tenant_tasks", 0, "max_tenant_tasks must be at least 1, got 0"),
        ("max_tenant_mb", -1, "max_tenant_mb must be at least 1, got -1"),
        ("max_tenant_requests_per_second", 0.0, "must be above 0 and at most 1,000,000, got 0"),
        ("max_tenant_adapts_per_minute", float("nan"), "must be above 0 and at most 1,000,000, got nan"),
    ],
)
def test_a_limit_that_lets_nothing_pass_is_refused(name, value, message):
    with pytest.raises(InvalidConfigError, match=message):
        ServerConfig(**{name: value})
