"""A handle on one adaptation at the server, as a job.

    AdaptJob.watch    how it is, again and again until it is over
    AdaptJob.result   waits for the task
    AdaptJob.cancel   ends it
    AdaptJob.status   how it is now

It holds the job's id and the client's connection. The job goes on without it, and whoever knows the id
finds it with ``FewShotClient.job``. It is safe to share between threads.
"""

from collections.abc import Iterator

from metanas_client.connection import Connection
from metanas_client.errors import DeadlineExceededError, ServerError
from metanas_client.job_status import JobStatus, job_status
from metanas_client.task import Task
from metanas_client.translation import job_failure
from metanas_proto.v1 import few_shot_pb2 as pb


class AdaptJob:
    """One adaptation; made by ``FewShotClient.start_adapt``, ``.start_update`` and ``.job``."""

    def __init__(self, job_id: str, *, connection: Connection) -> None:
        self.job_id = job_id
        self._connection = connection

    def __repr__(self) -> str:
        return f"AdaptJob({self.job_id!r})"

    def status(self, *, timeout_seconds: float | None = None) -> JobStatus:
        """Ask how the job is.

        Raises:
            JobNotFoundError: the server does not remember it.
            MetaNASClientError: the call failed; see the tree in ``errors``.
        """
        with self._connection.calling("status", timeout_seconds=timeout_seconds, of_a_job=True) as call:
            return job_status(call.few_shot.GetJob(pb.GetJobRequest(job_id=self.job_id), timeout=call.timeout_seconds))

    def watch(self, *, timeout_seconds: float | None = None) -> Iterator[JobStatus]:
        """Follow the job: how it is now, then after each change until it is over.

        Who is slower than the job sees the latest state, not every one. Leaving the iteration changes
        nothing for the job.

        Args:
            timeout_seconds: how long to follow it; None for the client's own.

        Raises:
            JobNotFoundError: the server does not remember it.
            DeadlineExceededError: it was not over within ``timeout_seconds``; it goes on.
            MetaNASClientError: the call failed; see the tree in ``errors``.
        """
        with self._connection.calling("watch", timeout_seconds=timeout_seconds, of_a_job=True) as call:
            stream = call.few_shot.WatchAdapt(pb.WatchAdaptRequest(job_id=self.job_id), timeout=call.timeout_seconds)
            try:
                for job in stream:
                    yield job_status(job)
            finally:
                stream.cancel()

    def result(self, *, timeout_seconds: float | None = None) -> Task:
        """Wait for the task.

        Args:
            timeout_seconds: how long to wait; None for the client's own.

        Raises:
            JobNotFoundError: the server does not remember the job.
            DeadlineExceededError: it was not over within ``timeout_seconds``; it goes on.
            RequestCancelledError: it was cancelled; the message says how far it had got.
            MetaNASClientError: it failed, with the error that ``adapt`` would have raised.
        """
        last: JobStatus | None = None
        try:
            for status in self.watch(timeout_seconds=timeout_seconds):
                last = status
        except DeadlineExceededError as error:
            raise DeadlineExceededError(
                f"job {self.job_id} was not over in time and goes on; wait with result() again, or end it by cancel()",
                code=error.code,
                details=error.details,
            ) from error
        if last is None or not last.is_over:
            raise ServerError(f"the server stopped telling about job {self.job_id} before it was over; ask status()")
        if last.task is None:
            raise job_failure(last.error_code, last.error_message, job_id=self.job_id)
        return Task(last.task, connection=self._connection)

    def cancel(self, *, timeout_seconds: float | None = None) -> JobStatus:
        """End the job within one gradient step; one that is over stays as it is.

        Returns:
            How it is once the work has stopped; its error says how far it got.

        Raises:
            JobNotFoundError: the server does not remember it.
            MetaNASClientError: the call failed; see the tree in ``errors``.
        """
        with self._connection.calling("cancel", timeout_seconds=timeout_seconds, of_a_job=True) as call:
            request = pb.CancelAdaptRequest(job_id=self.job_id)
            return job_status(call.few_shot.CancelAdapt(request, timeout=call.timeout_seconds))
