"""Traces for OpenTelemetry, sent as OTLP over gRPC: the only module that imports it.

    metanas.v1.FewShot/Classify     a call, child of the caller's span (``traceparent``)
    ├── queue, decode, compute      its stages
    metanas.v1.FewShot/StartAdapt
    └── adapt                       its job, which may outlive the call
        ├── queue
        ├── architecture            gradient steps on weights and architecture
        └── weights                 those on the pruned network, and keeping the task

Spans are sent by a thread of their own; where no one receives them they are dropped.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import metanas
from metanas_serving import request_id, tenants
from metanas_serving.job import Job, State
from metanas_serving.traces import Traces

_SEND_SECONDS = 5
_CLOSE_MILLISECONDS = 2000
_SERVICE = "metanas-server"


class OtlpTraces(Traces):
    """Traces that are sent to a receiver."""

    is_on = True

    def __init__(self, endpoint: str, headers: str | None) -> None:
        self._exporter = OTLPSpanExporter(
            endpoint=endpoint, insecure=endpoint.startswith("http://"), headers=headers, timeout=_SEND_SECONDS
        )
        resource = Resource.create({SERVICE_NAME: _SERVICE, SERVICE_VERSION: metanas.__version__})
        self._provider = TracerProvider(resource=resource)  # not the process's: tests run several servers in one
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("metanas_serving")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def call(self, call: str, context: grpc.ServicerContext) -> Iterator[None]:
        """Trace one call."""
        carried = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        service, _, method = call.partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        with self._tracer.start_as_current_span(
            call,
            context=self._propagator.extract(carried),
            kind=trace.SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            finally:
                code: grpc.StatusCode | None = context.code()  # type: ignore[attr-defined]  # missing in the stubs
                number = (code or grpc.StatusCode.OK).value[0]
                span.set_attribute("rpc.grpc.status_code", number)
                span.set_attribute("metanas.request_id", request_id.current() or "")
                span.set_attribute("metanas.tenant", tenants.shown())
                if number:
                    span.set_status(trace.StatusCode.ERROR, (context.details() or b"").decode("utf-8", "replace"))  # type: ignore[attr-defined]

    def stages(self, begin: float, **ends: float) -> None:
        """Tell the stages of a call."""
        offset = time.time() - time.perf_counter()
        for name, end in ends.items():
            self._span(name, begin + offset, end + offset)
            begin = end

    def origin(self) -> object:
        """The context of the call's span."""
        return otel_context.get_current()

    def adapted(self, job: Job, origin: object) -> None:
        """Tell the phases of a job."""
        view = job.view
        assert view.ended_at is not None, "only a job that is over is told"
        offset = view.created_unix_seconds - view.queued_at
        span = self._tracer.start_span(
            "adapt",
            context=origin if isinstance(origin, otel_context.Context) else None,
            start_time=_nanoseconds(view.queued_at + offset),
            attributes={
                "metanas.job_id": view.job_id,
                "metanas.task_id": job.order.task_id,
                "metanas.tenant": job.order.tenant,
                "metanas.state": view.state.value,
                "metanas.steps": view.step.step if view.step else 0,
            },
        )
        if view.state is not State.SUCCEEDED:
            span.set_status(trace.StatusCode.ERROR, str(view.error))
        inside = trace.set_span_in_context(span)
        ends = {"queue": view.began_at, "architecture": view.pruned_at, "weights": view.ended_at}
        begin = view.queued_at
        for name, end in ends.items():
            self._span(name, begin + offset, (view.ended_at if end is None else end) + offset, inside)
            if end is None:  # it was over in this phase
                break
            begin = end
        span.end(_nanoseconds(view.ended_at + offset))

    def close(self) -> None:
        """Send what is left, for a while."""
        self._provider.force_flush(_CLOSE_MILLISECONDS)
        self._provider.shutdown()

    def _span(self, name: str, begin: float, end: float, inside: otel_context.Context | None = None) -> None:
        span = self._tracer.start_span(name, context=inside, start_time=_nanoseconds(begin))
        span.end(_nanoseconds(end))


def _nanoseconds(unix_seconds: float) -> int:
    return round(1e9 * unix_seconds)
