"""Which processors a thread runs on: Python on one, networks on the others.

    PROCESSORS   how many this process may use
    current      the one that this thread runs on now
    tie          this thread runs on one processor from now on
    tied         with tied(processor): the same for a while, and for good the threads that are started meanwhile
    untied       with untied(): a tied thread may run where it likes, or has to leave its processor to others

The interpreter lock lets one thread at a time run Python, and each lets go of it for a moment several times a call:
around a system call, a lock, a copy. Where those that wait for it are on other processors, one of them is woken and has
it by the time that moment is over; so it goes around, and processors wake up for a moment each. On one processor a
thread mostly has it back before another one runs. What runs long without the lock, a network or the decoding of a
picture, leaves that processor meanwhile.

Where the system cannot tie threads (all but Linux), or takes the processor from this process while it runs, threads
run where it puts them. Knows nothing of calls or networks.
"""

import logging
import os
import threading
from collections.abc import Collection
from pathlib import Path

_log = logging.getLogger(__name__)

_ALL = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset[int]()

PROCESSORS = len(_ALL) or os.cpu_count() or 1
"""That this process may use."""

# Of the numbers after a program's name in /proc/PID/stat (proc_pid_stat(5)).
_LAST_RUN_ON = 36


class _Own(threading.local):
    processor: int | None = None


_own = _Own()
_may_move = threading.Event()
_may_move.set()


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
    """Have this thread run on one processor from now on; None: on any."""
    if _own.processor != processor:
        _own.processor = processor
        _move(_ALL if processor is None else (processor,))


class tied:  # noqa: N801  # a context manager
    """Tie this thread, and untie it again; threads that it starts meanwhile stay on that processor."""

    def __init__(self, processor: int | None) -> None:
        self._processor = processor

    def __enter__(self) -> None:
        self._before = _own.processor
        tie(self._processor)

    def __exit__(self, *_: object) -> None:
        tie(self._before)


class untied:  # noqa: N801  # a context manager; a generator, around every batch, takes several times as long
    """Let this thread run elsewhere, if it is tied."""

    __slots__ = ("_away", "_processor")

    def __init__(self, *, away: bool = False) -> None:
        """Choose where.

        Args:
            away: anywhere but on the processor that it is tied to.
        """
        self._away = away

    def __enter__(self) -> None:
        self._processor = _own.processor
        if self._processor is not None:
            _move(_ALL - {self._processor} if self._away else _ALL)

    def __exit__(self, *_: object) -> None:
        if self._processor is not None:
            _move((self._processor,))


def _move(processors: Collection[int]) -> None:
    if not _may_move.is_set():
        return
    try:
        os.sched_setaffinity(0, processors)
    except OSError as error:
        _may_move.clear()
        _log.warning(
            "a thread cannot be put on processors %s (%s): this process does not have them any more; from now on all "
            "threads run where the system puts them",
            sorted(processors),
            error,
        )
