"""Counts calls by their end.

    counting   what ``AroundCalls`` puts around calls, so that each goes to ``Metrics.answered``

Calls that gRPC refuses before a method is asked (an unknown method, a message over the limit or one that
is none) are not seen here.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from metanas_serving.around import Enter
from metanas_serving.metrics import Metrics


def counting(metrics: Metrics) -> Enter:
    """Count calls by method and status, and take their time."""

    @contextmanager
    def enter(call: str, context: grpc.ServicerContext) -> Iterator[None]:
        begin = time.perf_counter()
        failed = True
        try:
            yield
            failed = False
        finally:
            metrics.answered(call, _code(context, failed=failed), seconds=time.perf_counter() - begin)

    return enter


def _code(context: grpc.ServicerContext, *, failed: bool) -> grpc.StatusCode:
    """The status that the caller sees, at the end of its call."""
    if not context.is_active():  # it saw that end before any of ours
        late = context.time_remaining() == 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
    code: grpc.StatusCode | None = context.code()  # type: ignore[attr-defined]  # missing in the stubs
    return code or (grpc.StatusCode.UNKNOWN if failed else grpc.StatusCode.OK)
