"""The jobs of one server: all that are not over, and the last that are.

    Ledger.add     from now on it is found
    Ledger.get     by its id
    Ledger.of_task by the id of its task, if it has one or may still have
    Ledger.list    all, oldest first
    Ledger.owned, owned_by   the same of one tenant, as if there were no others

A job that is over holds no images and is small; so many of each tenant are remembered, each for so long.
"""

import builtins
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping

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
            return self._found(job_id, self._jobs)

    def owned(self, job_id: str, *, tenant: str) -> Job:
        """Find a job of a tenant by its id.

        Raises:
            JobNotFoundError: the tenant never had one, or it is forgotten.
        """
        return self._found(job_id, {job.job_id: job for job in self.owned_by(tenant)})

    def owned_by(self, tenant: str) -> "builtins.list[Job]":
        """All jobs of a tenant, oldest first."""
        return [job for job in self.list() if job.order.tenant == tenant]

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

    def _found(self, job_id: str, jobs: Mapping[str, Job]) -> Job:
        if job_id not in jobs:
            raise JobNotFoundError(
                f"no job {job_id[:64]!r} among the {len(jobs)} that this server remembers: the last "
                f"{self._max_finished} that are over, for {self._keep_seconds:g} s (--max-finished-jobs, "
                "--finished-job-seconds); what it learnt, if it did, is among the tasks of ListTasks"
            )
        return jobs[job_id]

    def _forget(self) -> None:
        over = [job for job in self._jobs.values() if job.view.is_over]
        counts = Counter(job.order.tenant for job in over)
        now = time.monotonic()
        for job in over:
            ended_at = job.view.ended_at
            too_many = counts[job.order.tenant] > self._max_finished
            if too_many or (ended_at is not None and now - ended_at > self._keep_seconds):
                counts[job.order.tenant] -= 1
                del self._jobs[job.job_id]
