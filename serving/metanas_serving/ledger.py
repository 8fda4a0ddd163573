"""The jobs of one server: all that are not over, and the last that are.

    Ledger.add     from now on it is found
    Ledger.get     by its id
    Ledger.of_task by the id of its task, if it has one or may still have
    Ledger.list    all, oldest first

A job that is over holds no images and is small; so many are remembered, each for so long.
"""

import threading
import time
from collections import OrderedDict

from metanas_serving.errors import JobNotFoundError
from metanas_serving.job import Job


class Ledger:
    """Remembers jobs; safe to share between threads."""

    def __init__(self, *, max_finished: int, keep_seconds: float) -> None:
        self._max_finished = max_finished
        self._keep_seconds = keep_seconds
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    def add(self, job: Job) -> None:
        """Remember a job."""
        with self._lock:
            self._jobs[job.job_id] = job
            self._forget()

    def get(self, job_id: str) -> Job:
        """Find a job by its id.

        Raises:
            JobNotFoundError: there never was one, or it is forgotten.
        """
        with self._lock:
            self._forget()
            job = self._jobs.get(job_id)
            if job is None:
                raise JobNotFoundError(
                    f"no job {job_id[:64]!r} among the {len(self._jobs)} that this server remembers: the last "
                    f"{self._max_finished} that are over, for {self._keep_seconds:g} s (--max-finished-jobs, "
                    "--finished-job-seconds); what it learnt, if it did, is among the tasks of ListTasks"
                )
            return job

    def of_task(self, task_id: str) -> Job | None:
        """The job that has learnt this task or is to; not one that failed or is to be left."""
        for job in reversed(self.list()):
            if job.order.task_id == task_id and (job.view.facts or not (job.view.is_over or job.is_stopped)):
                return job
        return None

    def list(self) -> list[Job]:
        """All jobs, oldest first."""
        with self._lock:
            self._forget()
            return list(self._jobs.values())

    def _forget(self) -> None:
        over = [(job_id, job.view.ended_at) for job_id, job in self._jobs.items() if job.view.is_over]
        too_many = len(over) - self._max_finished
        now = time.monotonic()
        for number, (job_id, ended_at) in enumerate(over):
            if number < too_many or (ended_at is not None and now - ended_at > self._keep_seconds):
                del self._jobs[job_id]
