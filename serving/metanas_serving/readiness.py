"""What the server says of itself over ``grpc.health.v1``: that it lives, that it is ready, that a task is.

    ""                    SERVING as long as the process answers, also while it starts and drains
    a service's full name SERVING between the end of the warm-up and the drain
    a task's id or alias  SERVING if the caller's tenant can ask it now; NOT_FOUND if it has none of that name

Needs no token, but for tasks: who shows none has no tasks. It answers while calls hold all request threads.
"""

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import grpc
from grpc_health.v1 import health, health_pb2

from metanas.errors import MetaNASError
from metanas_serving.errors import TaskNotFoundError, UnauthenticatedError
from metanas_serving.facts import TaskFacts
from metanas_serving.tenants import tenant_of
from metanas_serving.tokens import FileTokens

_Answer = health_pb2.HealthCheckResponse


class Readiness(health.HealthServicer):  # type: ignore[misc]
    """The health service of one server."""

    def __init__(
        self, services: Collection[str], *, tokens: FileTokens | None, find: Callable[[str, str], TaskFacts]
    ) -> None:
        """Say that the server lives and that nothing is ready yet.

        Args:
            services: full names.
            tokens: of the server; None: all callers are of the tenant with the empty name.
            find: a task's id or alias and a tenant  ->  the task, or TaskNotFoundError.
        """
        super().__init__(
            # Watch then holds no request thread for as long as its caller likes.
            experimental_non_blocking=True,
            experimental_thread_pool=ThreadPoolExecutor(max_workers=1),
        )
        self._services = services
        self._tokens = tokens
        self._find = find
        self.set_ready(False)

    def set_ready(self, ready: bool) -> None:
        """Say whether calls pass now."""
        self._ready = ready
        for name in self._services:
            self.set(name, _Answer.SERVING if ready else _Answer.NOT_SERVING)

    def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Say how the server, a service or a task is."""
        if request.service and request.service not in self._services:
            try:
                self._find(request.service, tenant_of(self._tokens, context.invocation_metadata()))
                return _Answer(status=_Answer.SERVING if self._ready else _Answer.NOT_SERVING)
            except (UnauthenticatedError, TaskNotFoundError):
                pass  # as what no one knows
            except MetaNASError:  # its file is lost or of a later version
                return _Answer(status=_Answer.NOT_SERVING)
        return cast(health_pb2.HealthCheckResponse, super().Check(request, context))

    # gRPC looks for this attribute of the method.
    Check.experimental_thread_pool = ThreadPoolExecutor(  # type: ignore[attr-defined]
        max_workers=1, thread_name_prefix="health"
    )

    def Watch(  # noqa: N802
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.ServicerContext,
        send_response_callback: Callable[[Any], None],
    ) -> None:
        """Tell how the server or a service is, now and whenever that changes; of tasks it knows nothing."""
        if not request.service or request.service in self._services:
            super().Watch(request, context, send_response_callback)
            return
        # Not the base's way, which remembers every name that anyone ever asks for.
        context.add_callback(lambda: send_response_callback(None))
        send_response_callback(_Answer(status=_Answer.SERVICE_UNKNOWN))
