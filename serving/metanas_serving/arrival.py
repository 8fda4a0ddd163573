"""How long a call has waited before its work begins: for its message and for a thread.

    ArrivalClock   an interceptor of the server: notes when calls arrive
    waited_seconds   within a call: since then

gRPC asks interceptors the moment a call arrives, and methods once the message is there and a thread
is free.
"""

import time
from collections.abc import Callable
from contextvars import ContextVar

import grpc

from metanas_serving.around import Handler

_arrived: ContextVar[float] = ContextVar("arrived")


def waited_seconds() -> float:
    """How long ago the call that is answered here arrived; 0 where no one took the time."""
    now = time.perf_counter()
    return now - _arrived.get(now)


class ArrivalClock(grpc.ServerInterceptor):
    """Takes the time of calls."""

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Handler | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Note when a call arrives."""
        _arrived.set(time.perf_counter())  # never reset: gRPC runs each call in a context of its own
        return continuation(handler_call_details)
