"""Has those threads of a server that read and answer calls run on one processor (``processors``).

Placing         an interceptor of the server: places the thread that reads what arrives
Placing.enter   what ``AroundCalls`` puts around calls: places the thread that answers one
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import grpc

from metanas_serving import processors
from metanas_serving.around import Handler


class Placing(grpc.ServerInterceptor):
    """Ties threads, at each call anew."""

    def __init__(self, processor: int | None) -> None:
        """Choose the processor; None: any."""
        self._processor = processor

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Handler | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Place the thread that asks."""
        processors.tie(self._processor)
        return continuation(handler_call_details)

    def enter(self, call: str, context: grpc.ServicerContext) -> AbstractContextManager[None]:
        """Place the thread that answers, which was perhaps another server's before."""
        processors.tie(self._processor)
        return nullcontext()
