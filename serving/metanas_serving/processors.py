"""Which processors threads run on: Python on one, the networks of small images on the others.

    PROCESSORS   how many this process may use
    current      the one that this thread runs on now
    tie          this thread runs on one processor from now on
    tied         with tied(processor): the same for a while, and for good the threads that are started meanwhile
    untied       with untied(): a tied thread may run on any
    away         has a function run by a thread that is on none of a tied thread's processor

The interpreter lock lets one thread at a time run Python, and each lets go of it for a moment several times a call:
around a system call, a lock, a copy. Where those that wait for it are on other processors, one of them is woken and has
it by the time that moment is over; so it goes around, and processors wake up for a moment each. On one processor a
thread mostly has it back before another one runs. What runs long without the lock leaves that processor meanwhile.

Threads that compute away stay away. One that moved for each computation would hold the lock while it moves, and may
have to wait for a processor that another program keeps busy: all calls would wait with it.

Threads are let go for a while where other programs keep processors busy (``truce``): what computes away gets the lock
late there. They are let go for good where a processor is taken from this process, and one that someone has put
elsewhere (``taskset``) is left there. Linux only: elsewhere none is tied. Knows nothing of calls or networks.
"""

import logging
import os
import resource
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from metanas_serving.truce import Truce

_log = logging.getLogger(__name__)

_ALL = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset[int]()

PROCESSORS = len(_ALL) or os.cpu_count() or 1
"""That this process may use."""

# Of the numbers after a program's name in /proc/PID/stat (proc_pid_stat(5)).
_LAST_RUN_ON = 36


class _Own(threading.local):
    processor: int | None = None


_own = _Own()
_truce = Truce()
_crews: dict[int, ThreadPoolExecutor] = {}


def current() -> int | None:
    """The processor that this thread runs on now; None where there is but one, or the system does not tell."""
    if PROCESSORS < 2:
        return None
    try:
        processor = int(Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()[_LAST_RUN_ON])
    except (OSError, ValueError, IndexError):
        return None
    return processor if processor in _ALL else None


def tie(processor: int | None) -> None:
    """Have this thread run on one processor, for as long as threads are not let go; None: on any."""
    if _truce.is_on:
        processor = None
    if _own.processor == processor:
        return
    if processor is not None and processor not in _crews:
        # Its threads are started when they are needed.
        others = _ALL - {processor}
        _crews[processor] = ThreadPoolExecutor(len(others), "away", initializer=_put, initargs=(others,))
    # What a new thread has, or was given here, or has from the thread that started it; all else is someone's wish.
    is_elsewhere = bool(_ALL) and os.sched_getaffinity(0) not in (_ALL, {_own.processor}, {processor})
    if is_elsewhere or _put(_ALL if processor is None else (processor,)):
        _own.processor = processor


class tied:  # noqa: N801  # a context manager
    """Tie this thread, and untie it again; threads that it starts meanwhile stay on that processor."""

    def __init__(self, processor: int | None) -> None:
        self._processor = processor

    def __enter__(self) -> None:
        self._before = _own.processor
        tie(self._processor)

    def __exit__(self, *_: object) -> None:
        tie(self._before)


class untied:  # noqa: N801  # a context manager
    """Let this thread run on any processor, if it is tied and is where it was put."""

    def __enter__(self) -> None:
        processor = _own.processor
        self._home = None if processor is None or os.sched_getaffinity(0) != {processor} else {processor}
        if self._home:
            _put(_ALL)

    def __exit__(self, *_: object) -> None:
        if self._home and os.sched_getaffinity(0) == _ALL:
            _put(self._home)


def away(function: Callable[..., None], *arguments: Any) -> None:
    """Have a function run, and wait for it: on a processor that is not this thread's, if it is tied.

    Raises:
        Exception: what it raises.
    """
    crew = None if _own.processor is None else _crews.get(_own.processor)
    if crew is None:
        function(*arguments)
    else:
        crew.submit(_timed, function, *arguments).result()


def _timed(function: Callable[..., None], *arguments: Any) -> None:
    begin, used, before = time.perf_counter(), time.thread_time(), _interruptions()
    try:
        function(*arguments)
    finally:
        _truce.note(time.perf_counter() - begin, time.thread_time() - used, _interruptions() - before)


def _interruptions() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def _put(processors: Collection[int]) -> bool:
    """Put this thread on some processors; False where that is refused."""
    if not _ALL:
        return False
    try:
        os.sched_setaffinity(0, processors)
    except OSError as error:
        if _truce.keep():
            _log.warning(
                "a thread cannot be put on processors %s (%s), from which this process seems to be kept now; from now "
                "on all run where the system puts them",
                sorted(processors),
                error,
            )
        return processors is not _ALL and _put(_ALL)
    return True
