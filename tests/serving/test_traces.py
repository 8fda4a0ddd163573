"""What a real receiver of OTLP over gRPC gets from a real server process, and that nothing is imported without one."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from metanas.errors import InvalidConfigError
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.config import ServerConfig
from metanas_serving.errors import StartupError
from metanas_serving.traces import Traces, open_traces

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span and the metadata that came with it."""

    def __init__(self):
        self.spans = []
        self.metadata = []
        self._changed = threading.Condition()
        self.server = grpc.server(ThreadPoolExecutor(max_workers=2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def Export(self, request, context):  # noqa: N802
        with self._changed:
            self.metadata.append(dict(context.invocation_metadata()))
            self.spans += [span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans]
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, count):
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.spans) >= count, timeout=60), self.spans
            return {span.name: span for span in self.spans}


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.server.stop(None)


def attributes(span):
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def children(spans, parent):
    inside = [span for span in spans.values() if span.parent_span_id == parent.span_id]
    return [span.name for span in sorted(inside, key=lambda span: span.start_time_unix_nano)]


def test_calls_stages_and_phases_arrive_under_the_callers_trace(
    receiver, start_process, tiny_meta, support, queries, monkeypatch
):
    monkeypatch.setenv("METANAS_SERVER_OTLP_HEADERS", "api-key=hush-hush")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    process = start_process(
        *("--meta", str(tiny_meta), "--adapt-workers", "1", "--otlp-endpoint", f"http://127.0.0.1:{receiver.port}")
    )
    carried = [("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "r-7")]
    task = process.stub.Adapt(process.request(support), metadata=carried, timeout=60).task
    process.stub.Classify(pb.ClassifyRequest(task_id=task.task_id, images=queries), timeout=20)
    with pytest.raises(grpc.RpcError):
        process.stub.GetTask(pb.GetTaskRequest(task_id="none"), timeout=20)
    spans = receiver.wait_for(10)

    call, job = spans["metanas.v1.FewShot/Adapt"], spans["adapt"]
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    assert (job.trace_id, job.parent_span_id) == (call.trace_id, call.span_id)
    phases = [spans[name] for name in ("architecture", "weights")]
    assert all(span.parent_span_id == job.span_id for span in phases)
    assert job.start_time_unix_nano <= phases[0].start_time_unix_nano < phases[0].end_time_unix_nano
    assert phases[0].end_time_unix_nano == phases[1].start_time_unix_nano
    assert phases[1].end_time_unix_nano == job.end_time_unix_nano
    told = attributes(job)
    assert (told["metanas.task_id"], told["metanas.state"], told["metanas.steps"]) == (task.task_id, "succeeded", 6)
    assert attributes(call)["metanas.request_id"] == "r-7"

    classify = spans["metanas.v1.FewShot/Classify"]
    assert {"decode", "compute"} <= set(children(spans, classify))
    assert attributes(classify)["rpc.grpc.status_code"] == 0
    refused = spans["metanas.v1.FewShot/GetTask"]
    assert attributes(refused)["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert "no task 'none'" in refused.status.message
    assert receiver.metadata[0]["api-key"] == "hush-hush"
    assert "hush-hush" not in process.log_path.read_text()


def test_a_server_without_an_endpoint_imports_no_opentelemetry():
    code = (
        "import sys, metanas_serving.application as application; from metanas_serving.traces import open_traces; "
        "assert not open_traces(None, None).is_on; "
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_endpoint_that_is_none_and_a_missing_package_are_refused(monkeypatch):
    with pytest.raises(InvalidConfigError, match="otlp_endpoint must start with http:// or https://, got 'localhost"):
        ServerConfig(otlp_endpoint="localhost:4317")
    monkeypatch.setitem(sys.modules, "metanas_serving.otlp", None)  # as if what it imports were missing
    with pytest.raises(StartupError, match=r"needs OpenTelemetry .*; pip install 'metanas-edge\[otel\]'"):
        open_traces("http://localhost:4317", None)
    assert type(open_traces(None, None)) is Traces
