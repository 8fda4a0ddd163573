"""Traces of calls, of Classify's stages and of adaptations' phases, for OpenTelemetry where it is configured.

    Traces         does nothing: what a server without an endpoint has
    open_traces    an endpoint  ->  Traces that are sent there (``otlp``); None: those that do nothing

Only ``otlp`` imports OpenTelemetry, and only ``open_traces`` imports that.
"""

from contextlib import AbstractContextManager, nullcontext

import grpc

from metanas_serving.errors import StartupError
from metanas_serving.job import Job


class Traces:
    """What can be traced; safe to share between threads."""

    is_on = False

    def call(self, call: str, context: grpc.ServicerContext) -> AbstractContextManager[None]:
        """What ``AroundCalls`` puts around calls, if ``is_on``."""
        return nullcontext()

    def stages(self, begin: float, **ends: float) -> None:
        """Tell the stages of the call that is answered here, one after another.

        Args:
            begin: of the first, as ``time.perf_counter`` says it.
            ends: of each stage, by name; the next begins there.
        """

    def origin(self) -> object:
        """What the call that is answered here is traced as, to be handed to ``adapted``."""
        return None

    def adapted(self, job: Job, origin: object) -> None:
        """Tell the phases of a job that is over.

        Args:
            origin: of the call that started it.
        """

    def close(self) -> None:
        """Send what is left."""


def open_traces(endpoint: str | None, headers: str | None) -> Traces:
    """Trace to a receiver.

    Args:
        endpoint: of OTLP over gRPC, ``http://HOST:PORT`` or ``https://...``; None: traces do nothing.
        headers: sent with them, ``name=value,name=value``.

    Raises:
        StartupError: OpenTelemetry is not installed.
    """
    if endpoint is None:
        return Traces()
    try:
        from metanas_serving.otlp import OtlpTraces
    except ImportError as error:
        raise StartupError(
            f"--otlp-endpoint needs OpenTelemetry ({error}); pip install 'metanas-edge[otel]', or leave it out"
        ) from error
    return OtlpTraces(endpoint, headers)
