"""The client: learn tasks, find them again, ask whether the server is ready.

    FewShotClient.adapt              support images by class name  ->  Task
    FewShotClient.task, .tasks       tasks that were learnt before
    FewShotClient.is_ready           one question to grpc.health.v1
    FewShotClient.wait_until_ready   the same question until yes

Every call has a deadline. A client is safe to share between threads; in a forked child it opens a
channel of its own. What makes a support set learnable is the server's to say: this module only
refuses what cannot be put into a message.
"""

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from google.protobuf.wrappers_pb2 import StringValue

from metanas_client.connection import Connection, positive_seconds
from metanas_client.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    ServerUnavailableError,
)
from metanas_client.images import ImageLike, encode_images
from metanas_client.messages import task_info
from metanas_client.task import Task
from metanas_proto.v1 import few_shot_pb2 as pb

# An Adapt that takes 20 s alone takes minutes on a machine that is busy with other things.
DEFAULT_TIMEOUT_SECONDS = 300.0
# 20 classes of 5 colour images at 84 px are 8.5 MB as float32, over gRPC's own limit of 4 MB.
DEFAULT_MAX_MESSAGE_BYTES = 64 * 1024 * 1024

_MAX_SEED = 2**64 - 1
_SERVING = 1  # grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING
_WHOLE_SERVER = StringValue(value="")
_READY_POLL_SECONDS = 0.1


class FewShotClient:
    """A client of one MetaNAS Edge server; also a context manager."""

    def __init__(
        self,
        address: str,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        """Prepare a client; nothing is connected before the first call.

        Args:
            address: ``host:port``.
            timeout_seconds: deadline of each call that names none of its own.
            max_message_bytes: the largest message sent or taken. The server has a limit of its own.

        Raises:
            InvalidRequestError: a number that is not above zero.
        """
        self._connection = Connection(address, timeout_seconds=timeout_seconds, max_message_bytes=max_message_bytes)

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
        timeout_seconds: float | None = None,
    ) -> Task:
        """Learn a task; blocks until it can be classified.

        Args:
            support: the images of each class by its name: lists of paths, encoded bytes, PIL images or
                arrays ``(H, W[, C])``, or one array of shape ``(N, H, W, C)``; uint8 in 0..255, floats in
                0..1. Classes may have unequal numbers of images.
            seed: the same support and seed give the same task, to the bit.
            timeout_seconds: the deadline; None for the client's own. The server stops working at it.

        Returns:
            A handle on the task.

        Raises:
            UnsupportedImageError: one bare image, or something that is no image.
            InvalidRequestError: the support set cannot be learned; the message says why.
            ResourceExhaustedError: too much at once, or too many adaptations waiting.
            MetaNASClientError: the call failed; see the tree in ``errors``.
            OSError: a file that cannot be read.
        """
        request = _adapt_request(support, seed=seed)
        with self._connection.calling("adapt", timeout_seconds=timeout_seconds) as call:
            response = call.few_shot.Adapt(request, timeout=call.timeout_seconds)
        return Task(task_info(response.task), connection=self._connection)

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

        Raises:
            MetaNASClientError: the call failed; see the tree in ``errors``.
        """
        with self._connection.calling("tasks", timeout_seconds=timeout_seconds) as call:
            response = call.few_shot.ListTasks(pb.ListTasksRequest(), timeout=call.timeout_seconds)
        return [Task(task_info(task), connection=self._connection) for task in response.tasks]

    def is_ready(self, timeout_seconds: float = 5.0) -> bool:
        """Ask the server's health service whether it serves.

        Returns:
            False also where nothing listens or no answer comes within ``timeout_seconds``.

        Raises:
            MetaNASClientError: something answers that has no health service.
        """
        try:
            with self._connection.calling("is_ready", timeout_seconds=timeout_seconds) as call:
                return call.health(_WHOLE_SERVER, timeout=call.timeout_seconds).value == _SERVING
        except (ServerUnavailableError, DeadlineExceededError):
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


def _adapt_request(support: Mapping[str, Iterable[ImageLike]], *, seed: int) -> pb.AdaptRequest:
    if not isinstance(support, Mapping):
        raise InvalidRequestError(
            f"support is a {type(support).__name__}; pass a dict of class names and their images: "
            '{"cat": [images], "dog": [images]}'
        )
    if not 0 <= seed <= _MAX_SEED:
        raise InvalidRequestError(f"seed must be in 0..2**64 - 1, got {seed}")
    for name in support:
        if not isinstance(name, str):
            raise InvalidRequestError(f"a class name is {name!r}, a {type(name).__name__}; pass str({name!r})")
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(f"class name {name!a} is not valid Unicode; rename the class") from error
    return pb.AdaptRequest(
        support=[
            pb.LabelledImages(label=name, images=encode_images(images, where=f"class {name!r}"))
            for name, images in support.items()
        ],
        seed=seed,
    )
