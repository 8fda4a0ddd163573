"""The client: learn tasks, find them again, ask whether the server is ready.

    FewShotClient.adapt              support images by class name  ->  Task
    FewShotClient.start_adapt        the same  ->  AdaptJob, to be watched, waited for, cancelled
    FewShotClient.job, .jobs         a job that was started before; how all of them are
    FewShotClient.start_update       a task and more images  ->  AdaptJob of a new version
    FewShotClient.set_alias          a name for a task; .aliases, .delete_alias, .versions
    FewShotClient.task, .tasks       tasks that were learnt before; .iterate_tasks, page by page
    FewShotClient.is_ready           one question to grpc.health.v1
    FewShotClient.wait_until_ready   the same question until yes

Every call has a deadline. A client is safe to share between threads; in a forked child it opens a
channel of its own.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self

from google.protobuf.wrappers_pb2 import StringValue

from metanas_client.adapt_request import MAX_PIECE_BYTES, AdaptOptions, adapt_request, pieces
from metanas_client.connection import Connection, positive_seconds
from metanas_client.content import ImageLike
from metanas_client.defaults import DEFAULT_MAX_MESSAGE_BYTES, DEFAULT_TIMEOUT_SECONDS
from metanas_client.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    ServerUnavailableError,
    TaskNotFoundError,
)
from metanas_client.job import AdaptJob
from metanas_client.job_status import JobStatus, job_status
from metanas_client.messages import task_info
from metanas_client.security import Pem, read_security
from metanas_client.task import Task
from metanas_proto.v1 import few_shot_pb2 as pb

_SERVING = 1  # grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING
_SERVICE = StringValue(value=pb.DESCRIPTOR.services_by_name["FewShot"].full_name)
_READY_POLL_SECONDS = 0.1


class FewShotClient:
    """A client of one MetaNAS Edge server; also a context manager."""

    def __init__(
        self,
        address: str,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        tls: bool | None = None,
        root_certificate: Pem | None = None,
        client_certificate: Pem | None = None,
        client_key: Pem | None = None,
        token: str | None = None,
        insecure: bool | None = None,
    ) -> None:
        """Prepare a client; nothing is connected before the first call.

        What protects the connection is asked of the environment where an argument is None.

        Args:
            address: ``host:port``.
            timeout_seconds: deadline of each call that names none of its own.
            max_message_bytes: the largest message sent or taken. The server has a limit of its own.
            tls: whether to speak TLS (METANAS_TLS=1); None: if a certificate is named.
            root_certificate: PEM file, path or bytes, of the authority of the server's certificate
                (METANAS_ROOT_CERTIFICATE); None: the system's authorities.
            client_certificate, client_key: PEM files of what this client shows of itself, for a server that
                asks for it (METANAS_CLIENT_CERTIFICATE, METANAS_CLIENT_KEY).
            token: what ``metanas-tokens add`` printed (METANAS_TOKEN); sent with every call.
            insecure: send the token to another machine in plain text (METANAS_INSECURE=1).

        Raises:
            InvalidRequestError: a number that is not above zero, arguments that contradict each other, or a
                token that would go to another machine in plain text.
            OSError: a PEM file that cannot be read.
        """
        security = read_security(
            address,
            tls=tls,
            root_certificate=root_certificate,
            client_certificate=client_certificate,
            client_key=client_key,
            token=token,
            insecure=insecure,
        )
        self._connection = Connection(
            address, timeout_seconds=timeout_seconds, max_message_bytes=max_message_bytes, security=security
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a second time does nothing. Tasks live on at the server."""
        self._connection.close()

    @property
    def address(self) -> str:
        """The server's ``host:port``."""
        return self._connection.address

    def adapt(
        self,
        support: Mapping[str, Iterable[ImageLike]],
        *,
        seed: int = 0,
        options: AdaptOptions | None = None,
        idempotency_key: str = "",
        timeout_seconds: float | None = None,
    ) -> Task:
        """Learn a task; blocks until it can be classified.

        Args:
            support: the images of each class by its name: lists of paths, encoded bytes, PIL images or
                arrays ``(H, W[, C])``, or one array of shape ``(N, H, W, C)``; uint8 in 0..255, floats in
                0..1. Classes may have unequal numbers of images.
            seed: the same support, options and seed give the same task, to the bit.
            options: how it is learnt, where that is not as the meta-model says.
            idempotency_key: any text that names this request for good: sent again with it, also after a
                failure or to a server that was started anew, the request finds its task and learns
                nothing twice. Empty: it always learns.
            timeout_seconds: the deadline; None for the client's own. The server stops working at it.

        Returns:
            A handle on the task.

        Raises:
            UnsupportedImageError: one bare image, or something that is no image.
            InvalidRequestError: the support set cannot be learned; the message says why.
            KeyTakenError: the key was used for another request.
            ResourceExhaustedError: too much for one message (``start_adapt`` sends it in pieces), or too
                many adaptations waiting.
            MetaNASClientError: the call failed; see the tree in ``errors``.
            OSError: a file that cannot be read.
        """
        request = adapt_request(support, seed=seed, options=options, idempotency_key=idempotency_key)
        with self._connection.calling("adapt", timeout_seconds=timeout_seconds) as call:
            response = call.few_shot.Adapt(request, timeout=call.timeout_seconds)
        return Task(task_info(response.task), connection=self._connection)

    def start_adapt(
        self,
        support: Mapping[str, Iterable[ImageLike]],
        *,
        seed: int = 0,
        options: AdaptOptions | None = None,
        idempotency_key: str = "",
        timeout_seconds: float | None = None,
    ) -> AdaptJob:
        """Start to learn a task; returns as soon as the server has the images. Arguments as of ``adapt``.

        The job goes on whatever becomes of this client. A support set too large for one message is sent
        in pieces.

        Returns:
            A handle on the job; the one of before, if a request of the same key still runs or has run.

        Raises:
            ResourceExhaustedError: more than the server takes, or too many adaptations waiting.
            MetaNASClientError, OSError: as ``adapt``.
        """
        request = adapt_request(support, seed=seed, options=options, idempotency_key=idempotency_key)
        with self._connection.calling("start_adapt", timeout_seconds=timeout_seconds) as call:
            if request.ByteSize() > MAX_PIECE_BYTES:
                job = call.few_shot.UploadAdapt(pieces(request), timeout=call.timeout_seconds)
            else:
                job = call.few_shot.StartAdapt(request, timeout=call.timeout_seconds)
        return AdaptJob(job.job_id, connection=self._connection)

    def start_update(
        self,
        task_id: str,
        support: Mapping[str, Iterable[ImageLike]],
        *,
        seed: int = 0,
        options: AdaptOptions | None = None,
        idempotency_key: str = "",
        timeout_seconds: float | None = None,
    ) -> AdaptJob:
        """Start to learn a new version of a task, with more images; the task stays as it is.

        Args:
            task_id: of the task, or an alias of it.
            support: what is added: images of the task's classes or of new ones. All of it goes in one
                message. Other arguments are those of ``adapt``.

        Raises:
            TaskNotFoundError: there is no such task.
            MetaNASClientError, OSError: as ``adapt``.
        """
        added = adapt_request(support, seed=seed, options=options, idempotency_key=idempotency_key)
        request = pb.UpdateTaskRequest(
            task_id=task_id,
            support=added.support,
            seed=seed,
            options=added.options if added.HasField("options") else None,
            idempotency_key=idempotency_key,
        )
        with self._connection.calling("start_update", timeout_seconds=timeout_seconds) as call:
            job = call.few_shot.UpdateTask(request, timeout=call.timeout_seconds)
        return AdaptJob(job.job_id, connection=self._connection)

    def versions(self, task_id: str, *, timeout_seconds: float | None = None) -> list[Task]:
        """List the versions of a task, whichever of them is named, oldest first.

        Raises:
            TaskNotFoundError: there is no such task.
            MetaNASClientError: the call failed; see the tree in ``errors``.
        """
        with self._connection.calling("versions", timeout_seconds=timeout_seconds) as call:
            request = pb.ListVersionsRequest(task_id=task_id)
            response = call.few_shot.ListVersions(request, timeout=call.timeout_seconds)
        return [Task(task_info(task), connection=self._connection) for task in response.tasks]

    def set_alias(
        self, alias: str, task_id: str, *, pinned: bool = False, timeout_seconds: float | None = None
    ) -> None:
        """Give a task a name of your own, or move the name to it: calls see the old task or the new one.

        ``task(alias)`` finds the task that has the name at that moment.

        Args:
            pinned: whether the task stays in the server's memory for as long as it has this name.

        Raises:
            InvalidRequestError: the name cannot be an alias.
            TaskNotFoundError: there is no such task.
            MetaNASClientError: the call failed; see the tree in ``errors``.
        """
        with self._connection.calling("set_alias", timeout_seconds=timeout_seconds) as call:
            request = pb.SetAliasRequest(alias=alias, task_id=task_id, pinned=pinned)
            call.few_shot.SetAlias(request, timeout=call.timeout_seconds)

    def aliases(self, *, timeout_seconds: float | None = None) -> dict[str, str]:
        """The ids of tasks by alias.

        Raises:
            MetaNASClientError: the call failed; see the tree in ``errors``.
        """
        with self._connection.calling("aliases", timeout_seconds=timeout_seconds) as call:
            response = call.few_shot.ListAliases(pb.ListAliasesRequest(), timeout=call.timeout_seconds)
        return {entry.alias: entry.task_id for entry in response.aliases}

    def delete_alias(self, alias: str, *, timeout_seconds: float | None = None) -> None:
        """Take a name away; the task stays.

        Raises:
            TaskNotFoundError: there is no such alias.
            MetaNASClientError: the call failed; see the tree in ``errors``.
        """
        with self._connection.calling("delete_alias", timeout_seconds=timeout_seconds) as call:
            call.few_shot.DeleteAlias(pb.DeleteAliasRequest(alias=alias), timeout=call.timeout_seconds)

    def job(self, job_id: str) -> AdaptJob:
        """A handle on a job that was started before; whether the server remembers it, its calls will say."""
        return AdaptJob(job_id, connection=self._connection)

    def jobs(self, *, timeout_seconds: float | None = None) -> list[JobStatus]:
        """How all jobs are that the server remembers, oldest first; ``job`` makes a handle on one.

        Raises:
            MetaNASClientError: the call failed; see the tree in ``errors``.
        """
        with self._connection.calling("jobs", timeout_seconds=timeout_seconds) as call:
            response = call.few_shot.ListJobs(pb.ListJobsRequest(), timeout=call.timeout_seconds)
        return [job_status(job) for job in response.jobs]

    def task(self, task_id: str, *, timeout_seconds: float | None = None) -> Task:
        """Find a task that was learnt before.

        Raises:
            TaskNotFoundError: the server has no task of that id.
            MetaNASClientError: the call failed; see the tree in ``errors``.
        """
        with self._connection.calling("task", timeout_seconds=timeout_seconds) as call:
            found = call.few_shot.GetTask(pb.GetTaskRequest(task_id=task_id), timeout=call.timeout_seconds)
        return Task(task_info(found), connection=self._connection)

    def tasks(self, *, timeout_seconds: float | None = None) -> list[Task]:
        """List all tasks of the server, oldest first.

        Args:
            timeout_seconds: for each page of ``iterate_tasks``, which it reads to the end.

        Raises:
            MetaNASClientError: the call failed; see the tree in ``errors``.
        """
        return list(self.iterate_tasks(timeout_seconds=timeout_seconds))

    def iterate_tasks(self, *, page_size: int = 0, timeout_seconds: float | None = None) -> Iterator[Task]:
        """Go through the tasks of the server, oldest first, one page of them in memory at a time.

        Args:
            page_size: tasks that one call brings, at most the server's limit; 0: that.
            timeout_seconds: of each call.

        Raises:
            InvalidRequestError: ``page_size`` is negative.
            MetaNASClientError: a call failed; see the tree in ``errors``.
        """
        if page_size < 0:
            raise InvalidRequestError(f"page_size must be at least 0, got {page_size}")
        token = ""
        while True:
            request = pb.ListTasksRequest(page_size=page_size, page_token=token)
            with self._connection.calling("tasks", timeout_seconds=timeout_seconds) as call:
                response = call.few_shot.ListTasks(request, timeout=call.timeout_seconds)
            yield from (Task(task_info(task), connection=self._connection) for task in response.tasks)
            token = response.next_page_token
            if not token:
                return

    def is_ready(self, timeout_seconds: float = 5.0) -> bool:
        """Ask the server's health service whether it serves.

        Returns:
            False also where nothing listens, no answer comes within ``timeout_seconds``, or what answers knows
            no such service.

        Raises:
            MetaNASClientError: something answers that has no health service.
        """
        try:
            with self._connection.calling("is_ready", timeout_seconds=timeout_seconds) as call:
                return call.health(_SERVICE, timeout=call.timeout_seconds).value == _SERVING
        except (ServerUnavailableError, DeadlineExceededError, TaskNotFoundError):
            return False

    def wait_until_ready(self, timeout_seconds: float = 60.0) -> None:
        """Block until the server serves.

        Raises:
            DeadlineExceededError: it did not within ``timeout_seconds``.
            MetaNASClientError: something answers that has no health service.
        """
        end = time.monotonic() + positive_seconds(timeout_seconds)
        while (left := end - time.monotonic()) > 0:
            if self.is_ready(timeout_seconds=left):
                return
            time.sleep(min(_READY_POLL_SECONDS, max(0.0, end - time.monotonic())))
        raise DeadlineExceededError(
            f"the server at {self.address} was not ready within {timeout_seconds:g} s; "
            "check the address and the server's log, or pass a larger timeout_seconds"
        )
