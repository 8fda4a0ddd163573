"""A handle on one task that a server has learnt.

    Task.classify   images -> predictions
    Task.classify_stream   frames of a video -> a prediction for each, while they come
    Task.export     the task's file, to a path
    Task.delete     forget the task, at the server

It holds what the server said about the task when the handle was made, and the client's
connection; no weights. It is safe to share between threads.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from uuid import uuid4

from metanas_client.connection import Connection
from metanas_client.content import ImageLike
from metanas_client.errors import DataLossError, InvalidRequestError
from metanas_client.images import encode_image, encode_images
from metanas_client.messages import ExportFormat, Genotype, Prediction, Predictions, TaskInfo, predictions
from metanas_proto.v1 import few_shot_pb2 as pb

FORMATS: dict[ExportFormat, pb.ExportTaskRequest.Format.ValueType] = {
    "task_model": pb.ExportTaskRequest.FORMAT_TASK_MODEL,
    "onnx": pb.ExportTaskRequest.FORMAT_ONNX,
}


class Task:
    """One learnt task; made by ``FewShotClient.adapt``, ``.task`` and ``.tasks``."""

    def __init__(self, info: TaskInfo, *, connection: Connection) -> None:
        self.info = info
        self._connection = connection

    def __repr__(self) -> str:
        return f"Task({self.task_id!r}, class_names={list(self.class_names)!r})"

    @property
    def task_id(self) -> str:
        """The server's name for the task."""
        return self.info.task_id

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the support set."""
        return self.info.class_names

    @property
    def genotype(self) -> Genotype:
        """The architecture that survived pruning."""
        return self.info.genotype

    @property
    def parameter_count(self) -> int:
        """Parameters of the task network, head included."""
        return self.info.parameter_count

    @property
    def one_shot_parameter_count(self) -> int:
        """Parameters of the network that it was pruned from, head included."""
        return self.info.one_shot_parameter_count

    @property
    def support_accuracy(self) -> float:
        """Fraction of support images that the finished network classifies right."""
        return self.info.support_accuracy

    @property
    def adapt_seconds(self) -> float:
        """Time that the adaptation ran."""
        return self.info.adapt_seconds

    @property
    def warnings(self) -> tuple[str, ...]:
        """What fell back or was left out while the task was learnt."""
        return self.info.warnings

    def classify(
        self, images: Iterable[ImageLike], *, top_k: int = 0, timeout_seconds: float | None = None
    ) -> Predictions:
        """Classify images.

        Args:
            images: a list of paths, encoded bytes, PIL images or arrays ``(H, W[, C])``, or one array
                of shape ``(N, H, W, C)``; uint8 in 0..255, floats in 0..1.
            top_k: at most so many classes in each prediction; 0 for all.
            timeout_seconds: the deadline; None for the client's own.

        Returns:
            One prediction for each image, in order; ``timing`` says where the server's time went.

        Raises:
            UnsupportedImageError: one bare image, or something that is no image.
            TaskNotFoundError: the task was deleted.
            MetaNASClientError: the call failed; see the tree in ``errors``.
            OSError: a file that cannot be read.
        """
        request = pb.ClassifyRequest(
            task_id=self.task_id, images=encode_images(images, where="images"), top_k=_checked(top_k)
        )
        with self._connection.calling("classify", timeout_seconds=timeout_seconds) as call:
            response = call.few_shot.Classify(request, timeout=call.timeout_seconds)
        return predictions(response, image_count=len(request.images))

    def classify_stream(
        self, frames: Iterable[ImageLike], *, top_k: int = 0, timeout_seconds: float | None = None
    ) -> Iterator[Prediction]:
        """Classify images one by one while they come, for example the frames of a video.

        Frames are taken, in a thread of gRPC's, as fast as the connection takes them.

        Args:
            frames: images as for ``classify``.
            top_k: at most so many classes in each prediction; 0 for all.
            timeout_seconds: the deadline of the whole stream; None for the client's own.

        Returns:
            An iterator over one prediction for each image, in order.

        Raises:
            UnsupportedImageError: something that is no image.
            TaskNotFoundError: the task was deleted.
            MetaNASClientError: the call failed; see the tree in ``errors``.
        """
        sent = _Frames(self.task_id, frames, top_k=_checked(top_k))
        with self._connection.calling("classify_stream", timeout_seconds=timeout_seconds) as call:
            stream = call.few_shot.ClassifyStream(iter(sent), timeout=call.timeout_seconds)
            try:
                for response in stream:
                    yield predictions(response, image_count=1)[0]
            finally:
                stream.cancel()
        if sent.failure is not None:
            raise sent.failure

    def delete(self, *, timeout_seconds: float | None = None) -> None:
        """Delete the task at the server, in memory and in its store.

        Raises:
            TaskNotFoundError: it was deleted before.
            MetaNASClientError: the call failed; see the tree in ``errors``.
        """
        with self._connection.calling("delete", timeout_seconds=timeout_seconds) as call:
            call.few_shot.DeleteTask(pb.DeleteTaskRequest(task_id=self.task_id), timeout=call.timeout_seconds)

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: ExportFormat | None = None,
        timeout_seconds: float | None = None,
    ) -> Path:
        """Write the task's file to ``path``: all of it, or nothing.

        Args:
            path: where to; a file that is there is replaced once the new one is complete.
            format: ``task_model`` (``task_model.pt``) or ``onnx``; None: ``onnx`` if ``path`` ends in ``.onnx``, else
                ``task_model``.
            timeout_seconds: the deadline of the whole transfer; None for the client's own.

        Returns:
            ``path``.

        Raises:
            InvalidRequestError: no such format.
            TaskNotFoundError: the task was deleted.
            DataLossError: the stored task is damaged, or nothing arrived.
            MetaNASClientError: the call failed; see the tree in ``errors``.
            OSError: the file cannot be written.
        """
        target = Path(path)
        if format is None:
            format = "onnx" if target.suffix.lower() == ".onnx" else "task_model"
        if format not in FORMATS:
            raise InvalidRequestError(f"no export format {format!r}; pass one of {', '.join(FORMATS)}")
        request = pb.ExportTaskRequest(task_id=self.task_id, format=FORMATS[format])
        # In the target's own folder, because a rename is atomic only within one file system.
        part = target.with_name(f".{target.name}.{uuid4().hex}.part")
        try:
            with self._connection.calling("export", timeout_seconds=timeout_seconds) as call, part.open("xb") as file:
                stream = call.few_shot.ExportTask(request, timeout=call.timeout_seconds)
                try:
                    for chunk in stream:
                        file.write(chunk.data)
                finally:
                    stream.cancel()  # after a full disk or Ctrl-C the server must not go on sending
                byte_count = file.tell()
                file.flush()
                os.fsync(file.fileno())
            if byte_count == 0:
                raise DataLossError(
                    f"export of {self.task_id}: the server sent an empty file; delete it and adapt again"
                )
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target


class _Frames:
    """Requests of a stream; what cannot be sent ends it, for gRPC would only log the error."""

    def __init__(self, task_id: str, frames: Iterable[ImageLike], *, top_k: int) -> None:
        self._task_id = task_id
        self._frames = frames
        self._top_k = top_k
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[pb.ClassifyRequest]:
        try:
            for number, frame in enumerate(self._frames):
                image = encode_image(frame, where=f"frame {number}")
                yield pb.ClassifyRequest(task_id=self._task_id, images=[image], top_k=self._top_k)
        except Exception as error:
            self.failure = error


def _checked(top_k: int) -> int:
    if not 0 <= top_k < 2**32:
        raise InvalidRequestError(f"top_k must be in 0..2**32 - 1, got {top_k}")
    return top_k
