"""Which calls may come in: none while the server starts, all while it serves, none when it drains.

    Gate.enter       one call goes in, if calls may
    Gate.leave       it is out
    Gate.open        from now on calls pass
    Gate.close       from now on none does; those inside go on, streams of them ask ``check_open``
    Gate.cut_off     those inside are to leave; they ask ``check_inside`` on their way
    Gate.wait_empty  until the last one is out

It counts the calls inside, and does not know what they do.
"""

import threading
import time
from collections.abc import Callable

from metanas_serving.errors import NotServingError

STARTING = "the server is starting; wait until grpc.health.v1 says SERVING, then send the call again"
NEVER_READY = "the server stops before it was ready; its log says why; send the call to another server"
CUT_OFF = "the server stopped before the adaptation was finished; send the call to another server, or later"
DRAINING = "the server is draining before it stops and takes no new calls; send the call to another server, or later"

_POLL_SECONDS = 0.1


class Gate:
    """The way in; safe to share between threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._closed_because: str | None = STARTING
        self._inside = 0
        self._cut_off = False

    def enter(self) -> None:
        """Count one call in; ``leave`` counts it out.

        Raises:
            NotServingError: the gate is closed.
        """
        with self._changed:
            if self._closed_because is not None:
                raise NotServingError(self._closed_because)
            self._inside += 1

    def leave(self) -> None:
        """Count one call out."""
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def open(self) -> None:
        """Let calls pass."""
        with self._changed:
            self._closed_because = None

    def close(self) -> None:
        """Let no further call pass."""
        with self._changed:
            self._closed_because = NEVER_READY if self._closed_because in (STARTING, NEVER_READY) else DRAINING

    def cut_off(self) -> None:
        """Make the calls inside leave as soon as they ask."""
        with self._changed:
            self._closed_because = self._closed_because or DRAINING
            self._cut_off = True

    def check_open(self) -> None:
        """Return if calls may pass.

        Raises:
            NotServingError: the gate is closed.
        """
        with self._changed:
            if self._closed_because is not None:
                raise NotServingError(self._closed_because)

    def check_inside(self) -> None:
        """Return if a call that is inside may go on.

        Raises:
            NotServingError: it was cut off.
        """
        with self._changed:
            if self._cut_off:
                raise NotServingError(DRAINING)

    def wait_empty(self, timeout_seconds: float, *, hurry: Callable[[], bool] = lambda: False) -> int:
        """Wait until no call is inside, ``timeout_seconds`` are over, or ``hurry`` says so.

        Returns:
            How many calls are inside.
        """
        end = time.monotonic() + timeout_seconds
        with self._changed:
            while self._inside and (left := end - time.monotonic()) > 0 and not hurry():
                self._changed.wait(min(left, _POLL_SECONDS))
            return self._inside
