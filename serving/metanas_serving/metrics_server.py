"""Shows a server's metrics to Prometheus, over HTTP on a port of their own.

    MetricsServer.start   listen
    MetricsServer.stop    end

It answers on a thread of its own from bind to end, so that it can be scraped while the gRPC server starts
or drains.
"""

import logging
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from metanas_serving.errors import StartupError

_log = logging.getLogger(__name__)


class MetricsServer:
    """An HTTP server with one page, ``/metrics``."""

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        self._server = server
        self._thread = thread

    @classmethod
    def start(cls, registry: CollectorRegistry, *, host: str, port: int) -> "MetricsServer":
        """Listen, and say in the log where.

        Args:
            port: 0 picks a free one.

        Raises:
            StartupError: the port cannot be had.
        """
        try:
            server, thread = start_http_server(port, host, registry)
        except OSError as error:
            raise StartupError(
                f"cannot show metrics on {host}:{port}: {(error.strerror or str(error)).lower()}; "
                "choose another --metrics-port (0 picks a free one) or --metrics-host"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        _log.info("metrics on http://%s:%d/metrics", shown, server.server_port)
        return cls(server, thread)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    def stop(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
