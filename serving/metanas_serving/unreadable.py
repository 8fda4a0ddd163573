"""Requests whose bytes are no message: the caller's fault, which gRPC itself calls one of the server.

    UnreadableRequests   an interceptor of the server: such calls end with INVALID_ARGUMENT, not INTERNAL

gRPC reads a request before the method is asked. Here what cannot be read travels on as ``_Unreadable``,
so that the refusal is made where all others are: counted, named in the log, with a text.
"""

import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from metanas_serving import status
from metanas_serving.around import Handler, Wrapped, method, remade
from metanas_serving.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class _Unreadable:
    error: InvalidRequestError


class UnreadableRequests(grpc.ServerInterceptor):
    """Refuses what cannot be read, as the caller's fault."""

    def __init__(self, services: Collection[str]) -> None:
        """Choose the services by their full names; calls of others are left alone."""
        self._services = services
        self._wrapped = Wrapped()

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Handler | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Wrap the handler of a method."""
        handler = continuation(handler_call_details)
        service, _, name = handler_call_details.method.lstrip("/").partition("/")
        if handler is None or service not in self._services:
            return handler
        return self._wrapped.of(handler_call_details.method, handler, lambda handler: _refusing(handler, name))


def _refusing(handler: Handler, name: str) -> Handler:
    answer = method(handler)
    parse = handler.request_deserializer
    assert parse is not None, "generated code always has one"

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError as error:
            return _Unreadable(
                InvalidRequestError(
                    f"the {len(data)} bytes of a request of {name} are no such message ({error}); "
                    "send what a client generated from this server's .proto files writes"
                )
            )

    @functools.wraps(answer)  # gRPC looks at a method's attributes: which threads it wants
    def checked(request: Any, context: grpc.ServicerContext) -> Any:
        if handler.request_streaming:
            return answer(_checked(request), context)
        if isinstance(request, _Unreadable):
            status.abort(context, request.error)
        return answer(request, context)

    return remade(handler, checked, read=read)


def _checked(requests: Iterator[Any]) -> Iterator[Any]:
    for request in requests:
        if isinstance(request, _Unreadable):
            raise request.error
        yield request
