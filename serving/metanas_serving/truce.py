"""When threads are let go of the processors that they are tied to, for other programs want these too.

    Truce.note        a computation, by how much of its time it had a processor
    Truce.keep        for good
    Truce.is_on       whether there is one now

Beside a program that computes, threads do better where the system puts them. Such a program leaves a computation half
of a processor, and keeps it for milliseconds each time; callers on this machine and niced programs keep it for less.
Knows nothing of threads or processors.
"""

import logging
import math
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)

_LEAST_SHARE = 0.65
_MOST_WAIT_SECONDS = 0.0015
_WINDOW_SECONDS = 0.5
_FIRST_SECONDS, _MOST_SECONDS = 10.0, 640.0


class Truce:
    """Safe to share between threads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._end = -math.inf
        self._seconds = _FIRST_SECONDS
        self._wall = self._used = 0.0
        self._interruptions = 0

    @property
    def is_on(self) -> bool:
        """Whether threads are to run where the system puts them."""
        return self._clock() < self._end

    def keep(self) -> bool:
        """Let it last for good; False if it does already."""
        with self._lock:
            is_new = self._end < math.inf
            self._end = math.inf
            return is_new

    def note(self, wall: float, used: float, interruptions: int) -> None:
        """Take note of a computation; one that waited too long, with those before it, begins a truce.

        Args:
            wall: seconds that it lasted.
            used: seconds that it had a processor.
            interruptions: how many times it was put off for others.
        """
        with self._lock:
            self._wall += wall
            self._used += used
            self._interruptions += interruptions
            if self._wall < _WINDOW_SECONDS:
                return
            share = self._used / self._wall
            wait = (self._wall - self._used) / max(1, self._interruptions)
            self._wall = self._used = self._interruptions = 0
            if share >= _LEAST_SHARE or wait <= _MOST_WAIT_SECONDS:
                self._seconds = _FIRST_SECONDS
                return
            self._end = max(self._end, self._clock() + self._seconds)
            _log.info(
                "other programs keep processors busy (computations had one for %.0f %% of their time, and waited "
                "%.1f ms each time): for %.0f s requests are answered on any",
                100 * share,
                1000 * wait,
                self._seconds,
            )
            self._seconds = min(2 * self._seconds, _MOST_SECONDS)
