"""Adaptations off the request threads: a bounded queue in front of a few worker processes.

    Adaptations.admission   with adaptations.admission(): one of the places, or QueueFullError
    Adaptations.submit      an order into the queue  ->  Job
    Job.result              waits for the learnt task
    Adaptations.cancel      takes a job out of the queue, or stops its work within one gradient step

A place is taken before a request is even decoded, so that no more requests than there are places
can hold threads and memory. Each worker process has one thread here that waits for it. One lock
guards queue, places and counts; no one computes under it.

The server is ready with its first worker; the others start after it, beside the first calls. A job
may use its share of the cores: all of them if it is alone when it starts.
"""

import dataclasses
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager

from metanas.errors import AdaptationCancelledError, MetaNASError
from metanas_serving.config import ServerConfig
from metanas_serving.errors import NotServingError, QueueFullError, StartupError
from metanas_serving.gate import CUT_OFF, DRAINING
from metanas_serving.meta_file import read_meta
from metanas_serving.work import Done, Order, Start
from metanas_serving.worker import Worker

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_CORES = os.cpu_count() or 1


class Job:
    """One order on its way."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self._stop = threading.Event()
        self._answer: Future[Done] = Future()

    def result(self) -> Done:
        """Wait for the learnt task.

        Raises:
            AdaptationCancelledError: the job was cancelled.
            NotServingError: the server stopped first.
            MetaNASError: whatever ended the work.
        """
        return self._answer.result()

    def stop(self) -> None:
        """Ask whoever works on it to leave it."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether it is to be left."""
        return self._stop.is_set()

    def finish(self, answer: Done | Exception) -> None:
        """Give ``result`` what it waits for."""
        if isinstance(answer, Exception):
            self._answer.set_exception(answer)
        else:
            self._answer.set_result(answer)


class Adaptations:
    """The queue and the workers."""

    def __init__(self, start: Start, *, workers: int, max_queue: int) -> None:
        self.start_values = start
        self._max_queue = max_queue
        self._workers = [Worker(start) for _ in range(workers)]
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._running: set[Job] = set()
        self._places_taken = 0
        self._closing = False
        self._warm_up: Future[Done] = Future()
        self._threads = [
            threading.Thread(target=self._serve, args=(worker,), name=f"adaptation-{number}", daemon=True)
            for number, worker in enumerate(self._workers)
        ]
        self._started = False

    @property
    def process_ids(self) -> list[int]:
        """Of the worker processes that run now."""
        return [pid for worker in self._workers if (pid := worker.process_id) is not None]

    @property
    def running_count(self) -> int:
        """Jobs that a worker works on."""
        return len(self.running)

    @property
    def running(self) -> list[Order]:
        """Orders of the jobs that a worker works on."""
        with self._changed:
            return [job.order for job in self._running]

    @property
    def waiting_count(self) -> int:
        """Jobs in the queue."""
        with self._changed:
            return len(self._queue)

    def start(self) -> None:
        """Start the worker processes, if they are not started yet; ``warm_up`` waits for the first."""
        if not self._started:
            self._started = True
            for thread in self._threads:
                thread.start()

    def warm_up(self, *, should_stop: Callable[[], bool] = lambda: False) -> Done:
        """Wait until the first worker is ready; the others start now.

        Returns:
            The task that it learnt to warm up.

        Raises:
            StartupError: it could not start.
            AdaptationCancelledError: ``should_stop`` said so.
        """
        try:
            while futures.wait([self._warm_up], timeout=_POLL_SECONDS).not_done:
                if should_stop():
                    raise AdaptationCancelledError("stopped while the adaptation process started")
            return self._warm_up.result()
        except AdaptationCancelledError:
            raise
        except MetaNASError as error:
            raise StartupError(f"the adaptation process does not start: {error}") from error

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Hold one of the places for an adaptation.

        Raises:
            QueueFullError: all are taken.
        """
        with self._changed:
            if self._places_taken >= len(self._workers) + self._max_queue:
                running = len(self._running)
                raise QueueFullError(
                    f"{running} adaptations run and {self._places_taken - running} wait; the server lets "
                    f"{self._max_queue} wait (--max-queue); send the request again later"
                )
            self._places_taken += 1
        try:
            yield
        finally:
            with self._changed:
                self._places_taken -= 1

    def submit(self, order: Order) -> Job:
        """Put an order at the end of the queue; hold an ``admission`` until its ``result``.

        Raises:
            NotServingError: the workers are closing.
        """
        job = Job(order)
        with self._changed:
            if self._closing:
                raise NotServingError(DRAINING)
            self._queue.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Take a job out of the queue, or stop it; nothing if it is over."""
        job.stop()
        with self._changed:
            try:
                self._queue.remove(job)
            except ValueError:
                return
        job.finish(AdaptationCancelledError("adaptation was cancelled while it waited for its turn"))

    def close(self) -> None:
        """End all work and all processes: jobs that wait or run fail with NotServingError."""
        with self._changed:
            self._closing = True
            waiting = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for job in waiting:
            job.finish(NotServingError(CUT_OFF))
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _serve(self, worker: Worker) -> None:
        try:
            if worker is self._workers[0]:
                self._start_first(worker)
            if self._warm_up.exception() is not None:  # waits for it
                return
            self._revive(worker)
            while (job := self._next()) is not None:
                answer = self._work(worker, job)
                with self._changed:
                    self._running.discard(job)
                job.finish(answer)
                self._revive(worker)
        finally:
            worker.close()

    def _start_first(self, worker: Worker) -> None:
        try:
            if (learnt := worker.start(lambda: self._closing)) is not None:
                self._warm_up.set_result(learnt)
        except Exception as error:
            self._warm_up.set_exception(error)

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            if self._closing:
                return None
            job = self._queue.popleft()
            self._running.add(job)
            job.order = dataclasses.replace(job.order, threads=max(1, _CORES // len(self._running)))
            return job

    def _work(self, worker: Worker, job: Job) -> Done | Exception:
        try:
            return worker.adapt(job.order, should_stop=lambda: job.stopped or self._closing)
        except AdaptationCancelledError as error:
            return NotServingError(CUT_OFF) if self._closing and not job.stopped else error
        except Exception as error:  # the thread has to live on for the jobs behind this one
            return error

    def _revive(self, worker: Worker) -> None:
        """Start a process where none runs, so that the next job does not wait for it."""
        try:
            if worker.start(lambda: self._closing):
                _log.info("a new adaptation process runs (process %s)", worker.process_id)
        except AdaptationCancelledError:
            pass  # closing
        except Exception as error:  # the next job tries again, and tells its caller
            _log.error("no new adaptation process: %s", error)


def prepare_adaptations(config: ServerConfig) -> Adaptations:
    """Read the meta-model's file and make the queue and the workers; nothing runs yet.

    Raises:
        StartupError: there is no such file.
    """
    name, meta = read_meta(config)
    start = Start(meta=meta, meta_name=name, torch_threads=config.torch_threads)
    return Adaptations(start, workers=config.adapt_workers, max_queue=config.max_queue)
