"""Adaptations off the request threads: a bounded queue in front of a few worker processes.

    Adaptations.admission   with adaptations.admission(tenant) as place: a place, or QueueFullError
    Adaptations.submit      a job into the queue, in that place
    Adaptations.cancel      takes a job out of the queue, or stops its work within one gradient step
    Adaptations.wait_idle   until no job waits or runs

A place is taken before a request is even decoded, so that no more requests than there are places
can hold threads and memory; it is free when its job is over. Each worker process has one thread here
that waits for it. One lock guards queue, places and counts; no one computes under it.

The server is ready with its first worker; the others start after it, beside the first calls. A job
may use its share of the cores: all of them if it is alone when it starts.
"""

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING

from metanas.errors import AdaptationCancelledError, MetaNASError
from metanas_serving.config import ServerConfig
from metanas_serving.errors import NotServingError, QueueFullError, StartupError, TenantBusyError
from metanas_serving.gate import CUT_OFF, DRAINING
from metanas_serving.job import Job, State
from metanas_serving.meta_file import read_meta
from metanas_serving.status import is_ours
from metanas_serving.work import Done, Order, Start
from metanas_serving.worker import Worker

if TYPE_CHECKING:  # it needs torch
    from metanas_serving.facts import TaskFacts

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_CORES = os.cpu_count() or 1


class Place:
    """One of the places for adaptations, held by a request until its job has it."""

    is_given = False

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant


class Adaptations:
    """The queue and the workers."""

    def __init__(self, start: Start, *, workers: int, max_queue: int, max_of_tenant: int | None = None) -> None:
        """Make the queue and the workers; nothing runs yet.

        Args:
            max_of_tenant: adaptations of one tenant, running, waiting and arriving; None: as many as there
                are places.
        """
        self.start_values = start
        self._max_of_tenant = max_of_tenant
        self._max_queue = max_queue
        self._workers = [Worker(start) for _ in range(workers)]
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._running: set[Job] = set()
        self._arriving: Counter[str] = Counter()
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
    def admission(self, tenant: str) -> Iterator[Place]:
        """Hold one of the places for an adaptation, until a job has it.

        Raises:
            QueueFullError: all are taken.
            TenantBusyError: the tenant has as many as it may have.
        """
        place = Place(tenant)
        with self._changed:
            self._check_room(tenant)
            self._arriving[tenant] += 1
        try:
            yield place
        finally:
            with self._changed:
                if not place.is_given:
                    self._arrived(place)

    def check_room(self, tenant: str) -> None:
        """Return if there is a place now.

        Raises:
            QueueFullError: all are taken.
            TenantBusyError: the tenant has as many as it may have.
        """
        with self._changed:
            self._check_room(tenant)

    def count_of(self, tenant: str) -> int:
        """Adaptations of a tenant that wait, run or come in."""
        with self._changed:
            return self._count_of(tenant)

    def submit(self, job: Job, place: Place) -> None:
        """Put a job at the end of the queue; ``place`` is its own from now on.

        Raises:
            NotServingError: the workers are closing.
        """
        with self._changed:
            if self._closing:
                raise NotServingError(DRAINING)
            self._arrived(place)
            place.is_given = True
            self._queue.append(job)
            self._line_up()
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Take a job out of the queue, or stop it; nothing if it is over."""
        job.stop()
        with self._changed:
            try:
                self._queue.remove(job)
            except ValueError:
                return
            self._line_up()
            self._changed.notify_all()
        job.finish(AdaptationCancelledError(f"adaptation was cancelled {job.view.how_far}"))

    def wait_idle(self, timeout_seconds: float, *, hurry: Callable[[], bool] = lambda: False) -> int:
        """Wait until no job waits or runs, ``timeout_seconds`` are over, or ``hurry`` says so.

        Returns:
            How many jobs wait or run.
        """
        end = time.monotonic() + timeout_seconds
        with self._changed:
            while (count := self._present) and (left := end - time.monotonic()) > 0 and not hurry():
                self._changed.wait(min(left, _POLL_SECONDS))
            return count

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

    @property
    def _present(self) -> int:
        return len(self._queue) + len(self._running)

    def _arrived(self, place: Place) -> None:
        self._arriving[place.tenant] -= 1
        self._arriving += Counter()  # drops those with none

    def _check_room(self, tenant: str) -> None:
        # Of others' adaptations a tenant learns no more than that there is no place.
        if self._arriving.total() + self._present >= len(self._workers) + self._max_queue:
            raise QueueFullError(
                f"all places for adaptations are taken: the server lets {len(self._workers)} run (--adapt-workers) "
                f"and {self._max_queue} wait (--max-queue); send the request again later"
            )
        own = self._count_of(tenant)
        if self._max_of_tenant is not None and own >= self._max_of_tenant:
            raise TenantBusyError(
                f"{own} of your adaptations wait or run, as many as this server allows a tenant at a time "
                "(--max-tenant-jobs); wait until one is over, or cancel one"
            )

    def _count_of(self, tenant: str) -> int:
        jobs = (*self._queue, *self._running)
        return self._arriving[tenant] + sum(job.order.tenant == tenant for job in jobs)

    def _line_up(self) -> None:
        before: Counter[str] = Counter()  # a tenant is told of its own jobs only
        for job in self._queue:
            job.wait_in_line(before[job.order.tenant])
            before[job.order.tenant] += 1

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
                    self._changed.notify_all()
                job.finish(answer)
                if job.view.state is State.FAILED:  # perhaps no one waits for it
                    level = logging.ERROR if isinstance(answer, Exception) and is_ours(answer) else logging.INFO
                    _log.log(level, "adapt: job %s failed: %s", job.job_id, answer, extra={"tenant": job.order.tenant})
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
            job.begin(threads=max(1, _CORES // len(self._running)))
            self._line_up()
            return job

    def _work(self, worker: Worker, job: Job) -> "TaskFacts | Exception":
        try:
            return job.keep(
                worker.adapt(job.order, should_stop=lambda: job.is_stopped or self._closing, on_progress=job.advance)
            )
        except AdaptationCancelledError as error:
            return NotServingError(CUT_OFF) if self._closing and not job.is_stopped else error
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
    start = Start(
        meta=meta, meta_name=name, torch_threads=config.torch_threads, memory_bytes=config.worker_memory_bytes
    )
    return Adaptations(
        start, workers=config.adapt_workers, max_queue=config.max_queue, max_of_tenant=config.max_tenant_jobs
    )
