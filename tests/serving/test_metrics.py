"""What Prometheus reads from a server process on the port of its metrics."""

import re
import socket
import time
import urllib.request

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from metanas.errors import InvalidConfigError
from metanas_proto.inference import open_inference_pb2 as oip
from metanas_proto.inference import open_inference_pb2_grpc
from metanas_serving.application import Application
from metanas_serving.config import ServerConfig
from metanas_serving.errors import StartupError

ADAPT, CLASSIFY = "metanas.v1.FewShot/Adapt", "metanas.v1.FewShot/Classify"
INFER = "inference.GRPCInferenceService/ModelInfer"


def scrape(process):
    """Every sample, by its name and the values of its labels."""
    address = re.search(r"metrics on (http://127\.0\.0\.1:\d+/metrics)", process.log_path.read_text())[1]
    with urllib.request.urlopen(address, timeout=20) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def wait_for(process, expected):
    """Scrape until some samples are as expected: a call is counted a moment after its caller has gone."""
    end = time.monotonic() + 20
    while not expected.items() <= (samples := scrape(process)).items():
        assert time.monotonic() < end, {key: samples.get(key) for key in expected}
        time.sleep(0.05)
    return samples


def test_calls_batches_and_loads_are_counted(start_process, tiny_meta, support, queries):
    process = start_process("--meta", str(tiny_meta), "--metrics-port", "0", "--max-loaded-tasks", "1")
    tasks = [process.adapt(support).task_id for _ in range(2)]
    process.classify(tasks[1], queries)
    process.classify(tasks[0], queries[:2])  # made room for the second
    process.classify(tasks[0], queries[:2])
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(process.channel)
    for call in (
        lambda: process.classify("none", queries),
        lambda: process.classify(tasks[0], []),
        lambda: stub.ModelInfer(oip.ModelInferRequest(model_name=tasks[0])),
    ):
        with pytest.raises(grpc.RpcError):
            call()
    process.export(tasks[0])
    samples = wait_for(
        process,
        {
            ("metanas_requests_total", ADAPT, "OK"): 2,
            ("metanas_requests_total", CLASSIFY, "OK"): 3,
            ("metanas_requests_total", CLASSIFY, "NOT_FOUND"): 1,
            ("metanas_requests_total", CLASSIFY, "INVALID_ARGUMENT"): 1,
            ("metanas_requests_total", INFER, "INVALID_ARGUMENT"): 1,
            ("metanas_requests_total", "metanas.v1.FewShot/ExportTask", "OK"): 1,
            ("metanas_request_seconds_count", ADAPT): 2,
            ("metanas_request_seconds_count", CLASSIFY): 5,
            **{("metanas_adapt_seconds_count", phase): 2 for phase in ("queue", "architecture", "weights")},
            ("metanas_classify_batch_images_count",): 3,
            ("metanas_classify_batch_images_sum",): 9,
            ("metanas_classify_batch_images_bucket", "2.0"): 2,
            ("metanas_loaded_task_lookups_total", "hit"): 2,
            ("metanas_loaded_task_lookups_total", "miss"): 1,
            ("metanas_loaded_tasks",): 1,
        },
    )
    assert 0 < samples[("metanas_request_seconds_sum", CLASSIFY)] < samples[("metanas_request_seconds_sum", ADAPT)]
    steps = samples[("metanas_adapt_seconds_sum", "architecture")] + samples[("metanas_adapt_seconds_sum", "weights")]
    assert 0 < steps < samples[("metanas_request_seconds_sum", ADAPT)]
    for name in ("server", "adaptation"):  # torch alone takes more than 100 MB
        assert 100e6 < samples[("metanas_resident_memory_bytes", name)] < 10e9


def test_the_queue_is_shown_and_calls_that_were_left_are_counted_as_their_callers_see_them(
    start_process, slow_meta, support, queries
):
    process = start_process("--meta", str(slow_meta), "--metrics-port", "0", "--adapt-workers", "1")
    late = process.begin_adapt(support, timeout=1)
    with pytest.raises(grpc.RpcError) as caught:
        late.result()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    running = [process.begin_adapt(support) for _ in range(3)]
    wait_for(
        process,
        {
            ("metanas_adaptations", "running"): 1,
            ("metanas_adaptations", "waiting"): 2,
            ("metanas_requests_total", ADAPT, "DEADLINE_EXCEEDED"): 1,
        },
    )
    for call in running:
        call.cancel()
    wait_for(
        process,
        {
            ("metanas_adaptations", "running"): 0,
            ("metanas_adaptations", "waiting"): 0,
            ("metanas_requests_total", ADAPT, "DEADLINE_EXCEEDED"): 1,
            ("metanas_requests_total", ADAPT, "CANCELLED"): 3,
        },
    )


def test_a_port_of_metrics_that_is_in_use_is_refused_with_the_way_out(tiny_meta):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        refused = Application(ServerConfig(meta_path=tiny_meta, port=0, metrics_port=port))
        with pytest.raises(
            StartupError, match=rf"cannot show metrics on 127\.0\.0\.1:{port}: address already in use; choose another"
        ):
            refused.start()
        refused.stop(0)


def test_a_port_of_metrics_that_is_none_is_refused():
    with pytest.raises(InvalidConfigError, match=r"metrics_port must be 0\.\.65535, got 70000"):
        ServerConfig(metrics_port=70_000)
