"""Counts calls by their end.

    counting   what ``AroundCalls`` puts around calls, so that each goes to ``Metrics.answered``

Calls that gRPC refuses before a method is asked (an unknown method, a message over the limit or one that
is none) are not seen here.
"""

import functools
import time

import grpc

from metanas_serving.around import Enter
from metanas_serving.metrics import Metrics


def counting(metrics: Metrics) -> Enter:
    """Count calls by method and status, and take their time."""

    return functools.partial(_Counted, metrics)


class _Counted:
    """One call. A class, for it is around every image: a generator takes several times as long."""

    __slots__ = ("_begin", "_call", "_context", "_metrics")

    def __init__(self, metrics: Metrics, call: str, context: grpc.ServicerContext) -> None:
        self._metrics, self._call, self._context = metrics, call, context

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        seconds = time.perf_counter() - self._begin
        self._metrics.answered(self._call, _code(self._context, failed=error is not None), seconds=seconds)


def _code(context: grpc.ServicerContext, *, failed: bool) -> grpc.StatusCode:
    """The status that the caller sees, at the end of its call."""
    if not context.is_active():  # it saw that end before any of ours
        late = context.time_remaining() == 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
    code: grpc.StatusCode | None = context.code()  # type: ignore[attr-defined]  # missing in the stubs
    return code or (grpc.StatusCode.UNKNOWN if failed else grpc.StatusCode.OK)
