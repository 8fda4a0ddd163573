"""Something around every call of some services, whatever its request and its answer stream.

    AroundCalls   an interceptor of the server: enters context managers for each call
    around        the same for the handler of one method
    method        what answers the calls of a handler
    remade        the handler with something else in its place
    Wrapped       keeps handlers that interceptors have wrapped: they are asked anew at every call

The parts that are put around calls (``metrics_calls``, ``request_id``) know nothing of handlers, and
this knows nothing of them.
"""

import functools
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import grpc

Enter: TypeAlias = Callable[[str, grpc.ServicerContext], AbstractContextManager[None]]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Method: TypeAlias = Callable[[Any, grpc.ServicerContext], Any]


class AroundCalls(grpc.ServerInterceptor):
    """Puts context managers around calls."""

    def __init__(self, services: Collection[str], *enters: Enter) -> None:
        """Choose what to put around what.

        Args:
            services: full names; calls of others (health, reflection) are left alone.
            enters: what makes them, the outermost first: it gets a call's name, for example
                ``metanas.v1.FewShot/Classify``, and its context.
        """
        self._services = services
        self._enters = enters
        self._wrapped = Wrapped()

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Handler | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Wrap the handler of a method."""
        handler = continuation(handler_call_details)
        call = handler_call_details.method.lstrip("/")
        if handler is None or call.partition("/")[0] not in self._services:
            return handler
        return self._wrapped.of(call, handler, lambda handler: self._around(call, handler))

    def _around(self, call: str, handler: Handler) -> Handler:
        for enter in reversed(self._enters):
            handler = around(handler, functools.partial(enter, call))
        return handler


class Wrapped:
    """Handlers that are wrapped once and not at every call; safe to share between threads."""

    def __init__(self) -> None:
        self._handlers: dict[Hashable, tuple[Handler, Handler]] = {}

    def of(self, key: Hashable, handler: Handler, wrap: Callable[[Handler], Handler]) -> Handler:
        """What ``wrap`` makes of a handler, or made of it before.

        Args:
            key: says what is wrapped around which method; there are only so many.
        """
        known = self._handlers.get(key)
        if known is None or known[0] is not handler:
            known = self._handlers[key] = handler, wrap(handler)
        return known[1]


def around(handler: Handler, enter: Callable[[grpc.ServicerContext], AbstractContextManager[None]]) -> Handler:
    """Answer every call of a method inside what ``enter`` makes of its context.

    A stream of answers is inside until its end, or until its caller leaves it.
    """
    answer = method(handler)

    @functools.wraps(answer)  # gRPC looks at a method's attributes: which threads it wants
    def whole(request: Any, context: grpc.ServicerContext) -> Any:
        with enter(context):
            return answer(request, context)

    @functools.wraps(answer)
    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        with enter(context):
            yield from answer(request, context)

    return remade(handler, stream if handler.response_streaming else whole)


def method(handler: Handler) -> Method:
    """What answers the calls of a handler."""
    found: Method = getattr(handler, _kind(handler))
    return found


def remade(handler: Handler, answer: Method, *, read: Callable[[bytes], Any] | None = None) -> Handler:
    """A handler of the same method that answers with something else.

    Args:
        read: makes a request of its bytes; None: as ``handler`` does.
    """
    make: Callable[..., Handler] = getattr(grpc, f"{_kind(handler)}_rpc_method_handler")
    return make(
        answer,
        request_deserializer=read or handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _kind(handler: Handler) -> str:
    sides = (handler.request_streaming, handler.response_streaming)
    return "_".join("stream" if streams else "unary" for streams in sides)
