"""Whose call it is that is answered here: every caller belongs to a tenant.

    Authentication   an interceptor of the server: lets calls with a token pass, each as its tenant's
    tenant_of        the tenant of who sends some metadata
    current          the tenant of the call that is answered here
    shown            the same for the log, which outside of calls knows none

A server without tokens has one tenant, the empty name. A call without a valid token, or one too many of its
tenant, is refused before its message is read. What a tenant may see is up to whoever looks it up with
``current()``; a call that no one let in has no tenant, and looking raises.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

import grpc

from metanas_serving import status
from metanas_serving.allowance import Allowance
from metanas_serving.around import Handler, Wrapped, around
from metanas_serving.errors import RateError, UnauthenticatedError
from metanas_serving.tokens import FileTokens

KEY = "authorization"

_current: ContextVar[str] = ContextVar("tenant")


def current() -> str:
    """The tenant of the call that is answered here.

    Raises:
        LookupError: none is, or ``Authentication`` did not let it in.
    """
    return _current.get()


def shown() -> str:
    """What the log calls that tenant; empty where it has no name or there is no call."""
    return _current.get("")


class Authentication(grpc.ServerInterceptor):
    """Refuses calls without a valid token, and those of who calls too often."""

    def __init__(self, tokens: FileTokens | None, *, allowance: Allowance, services: Collection[str]) -> None:
        """Choose what is asked of callers.

        Args:
            tokens: None: nothing is, and all are of the tenant with the empty name.
            allowance: counts their calls.
            services: full names of those that belong to tenants; the others (health, reflection) need no token.
        """
        self._tokens = tokens
        self._allowance = allowance
        self._services = services
        self._wrapped = Wrapped()

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Handler | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Find out whose call it is."""
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method.lstrip("/").partition("/")[0] not in self._services:
            return handler
        try:
            tenant = tenant_of(self._tokens, handler_call_details.invocation_metadata)
            self._allowance.request(tenant)
        except (UnauthenticatedError, RateError) as error:
            return _refusing(error)
        return self._wrapped.of(
            (handler_call_details.method, tenant),
            handler,
            lambda handler: around(handler, lambda context: _belonging(tenant)),
        )


def _belonging(tenant: str) -> AbstractContextManager[None]:
    _current.set(tenant)  # never reset: gRPC runs each call in a context of its own
    return nullcontext()


def tenant_of(tokens: FileTokens | None, metadata: "Iterable[tuple[str, str | bytes]] | None") -> str:
    """Whose a call with this metadata is; without tokens, of the tenant with the empty name.

    Raises:
        UnauthenticatedError: it shows no valid token.
    """
    if tokens is None:
        return ""
    shown = (value for key, value in metadata or () if key == KEY and isinstance(value, str))
    return tokens.tenant(next(shown, None))


def _refusing(error: Exception) -> Handler:
    def refuse(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
        status.abort(context, error)

    # Of streams, whatever the method is of: its function is called before a message is there.
    return grpc.stream_stream_rpc_method_handler(refuse)
