"""Calls that last: they have threads of their own, so that they never keep short calls waiting.

    THREADS       what a method names as its ``experimental_thread_pool``
    Streams.open  with streams.open(): one of the streams that a server takes
    received      what a caller streams, until its end, or CallerGoneError

Of one process, for gRPC wants the threads at a method; the count is each server's own.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import grpc

from metanas_serving.errors import CallerGoneError, QueueFullError

Request = TypeVar("Request")

MAX_STREAMS = 64
# Those beyond the last find a thread too, so that they are refused at once.
_SPARE_THREADS = 8

THREADS = ThreadPoolExecutor(max_workers=MAX_STREAMS + _SPARE_THREADS, thread_name_prefix="stream")


class Streams:
    """Counts the streams of one server; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold one of the streams.

        Raises:
            QueueFullError: all are open.
        """
        with self._lock:
            if self._open >= MAX_STREAMS:
                raise QueueFullError(
                    f"{self._open} streams are open (WatchAdapt, UploadAdapt, ClassifyStream), as many as this server "
                    "takes; close some, ask with GetJob or Classify, or try again later"
                )
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1


def received(requests: Iterator[Request]) -> Iterator[Request]:
    """What a caller sends, one at a time.

    Raises:
        CallerGoneError: it went before the end.
    """
    try:
        yield from requests
    except grpc.RpcError as error:
        raise CallerGoneError("the caller has gone; what it sent is dropped") from error
