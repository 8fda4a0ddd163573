"""How long a call has waited before its work begins: for its message and for a thread.

    ArrivalClock   an interceptor of the server: notes when calls of some methods arrive
    waited_seconds   within such a call: since then, until its method was asked

gRPC asks interceptors the moment a call arrives, and methods once the message is there and a thread
is free.
"""

import threading
import time
from collections.abc import Callable, Collection
from typing import Any

import grpc

from metanas_serving.around import Handler, method, remade

# A call has its thread for itself.
_this_thread = threading.local()


def waited_seconds() -> float:
    """How long the call of this thread waited; 0 where no one took the time."""
    waited: float = getattr(_this_thread, "waited", 0.0)
    return waited


class ArrivalClock(grpc.ServerInterceptor):
    """Takes the time of calls until their methods are asked."""

    def __init__(self, methods: Collection[str]) -> None:
        """Choose the methods by their full names; each takes one message and gives one."""
        self._methods = methods

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Handler | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Note when a call of one of the methods arrives; leave others alone."""
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method not in self._methods:
            return handler
        # The moment that it counts from is this call's alone, so the handler is too; only the clock goes around it.
        arrived, answer = time.perf_counter(), method(handler)

        def timed(request: Any, context: grpc.ServicerContext) -> Any:
            _this_thread.waited = time.perf_counter() - arrived
            try:
                return answer(request, context)
            finally:
                _this_thread.waited = 0.0

        return remade(handler, timed)
