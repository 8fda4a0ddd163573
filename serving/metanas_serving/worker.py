"""One adaptation process, as the server sees it.

    Worker.start    a new process, ready for orders
    Worker.adapt    one order to the process, its answer back
    Worker.close    ends it

The process is started anew with a plain command line, not forked: gRPC and torch do not survive a
fork. Whatever happens to it, its end of the pipe closes, and so the server notices. A worker
belongs to one thread; only ``process_id`` may be read by others.
"""

import math
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from metanas.errors import AdaptationCancelledError
from metanas_serving.errors import WorkerDiedError, WorkerError
from metanas_serving.work import Done, Failed, Message, Order, Pipe, Progress, Ready, Start, Stop

# How soon a cancel is passed on; a gradient step is longer than that.
_POLL_SECONDS = 0.02
# A process asked to stop answers after one gradient step, or after the pass over a large
# support set. One that does not is stuck.
_STOP_SECONDS = 30.0
_START_SECONDS = 300.0
# Between the end of its pipe and the end of the process.
_EXIT_SECONDS = 2.0


class Worker:
    """A process that learns one task at a time; a new one takes the place of one that died."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Pipe | None = None

    @property
    def process_id(self) -> int | None:
        """Of the process that runs now."""
        process = self._process
        return None if process is None else process.pid

    def start(self, should_stop: Callable[[], bool]) -> Done | None:
        """Start the process unless it runs, and wait until it has warmed up.

        Returns:
            The task that it learnt to warm up; None if it ran already.

        Raises:
            WorkerError: it died or was not ready in time.
            MetaNASError: it cannot use the meta-model.
            AdaptationCancelledError: ``should_stop`` said so.
        """
        if self._process is not None and self._process.poll() is None:
            return None
        self.close()
        ours, theirs = socket.socketpair()
        with theirs:
            self._pipe = Connection(ours.detach())
            self._process = subprocess.Popen(
                [sys.executable, "-m", "metanas_serving.worker_main", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        try:
            self._pipe.send(self._start)
        except OSError as error:
            raise self._died("while it started") from error
        answer = self._answer("while it started", should_stop=should_stop, stop_seconds=0, limit_seconds=_START_SECONDS)
        if isinstance(answer, Failed):
            self.close()
            raise answer.error
        if not isinstance(answer, Ready):
            raise WorkerError(f"the adaptation process answered {type(answer).__name__} before it was ready")
        return answer.warm_up

    def adapt(self, order: Order, *, should_stop: Callable[[], bool], on_progress: Callable[[Progress], None]) -> Done:
        """Learn one task.

        Args:
            should_stop: asked many times a second; the process stops within a gradient step.
            on_progress: told how far it has got.

        Raises:
            AdaptationCancelledError: ``should_stop`` said so.
            InvalidTaskError: the support set cannot be learned.
            WorkerError: the process died or failed.
        """
        self.start(should_stop)
        assert self._pipe is not None
        try:
            self._pipe.send(order)
        except OSError as error:
            raise self._died("before it learnt the task") from error
        answer = self._answer("while it learnt the task", should_stop=should_stop, on_progress=on_progress)
        if isinstance(answer, Done):
            return answer
        if isinstance(answer, Failed):
            raise answer.error
        raise WorkerError(f"the adaptation process answered {type(answer).__name__} to an order")

    def close(self) -> None:
        """End the process; a second time does nothing."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._pipe = self._process = None

    def _answer(
        self,
        when: str,
        *,
        should_stop: Callable[[], bool],
        stop_seconds: float = _STOP_SECONDS,
        limit_seconds: float = math.inf,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> Message:
        """Wait for the process; one that was told to stop has ``stop_seconds`` to answer."""
        assert self._pipe is not None
        begin = time.monotonic()
        told_at: float | None = None
        try:
            while True:
                if self._pipe.poll(_POLL_SECONDS):
                    message = self._pipe.recv()
                    if not isinstance(message, Progress):
                        return message
                    on_progress(message)
                now = time.monotonic()
                if told_at is None and should_stop():
                    told_at = now
                    self._pipe.send(Stop())
                if told_at is not None and now - told_at > stop_seconds:
                    self.close()
                    raise AdaptationCancelledError("adaptation was stopped, and its process ended")
                if now - begin > limit_seconds:
                    self.close()
                    raise WorkerError(f"the adaptation process was not ready within {limit_seconds:g} s")
        except (EOFError, OSError) as error:
            raise self._died(when) from error

    def _died(self, when: str) -> WorkerDiedError:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # without its pipe it is of no use
            code = self._process.wait()
        self.close()
        how = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with exit code {code}"
        hint = "; signal 9 often means too little memory" if code == -signal.SIGKILL else ""
        return WorkerDiedError(
            f"the adaptation process ended {how} {when}{hint}; a new one starts, send the request again"
        )
