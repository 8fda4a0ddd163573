"""Answers on the device, from an exported file: no server, no torch, no gRPC.

    from metanas_client.local import TaskRunner

    runner = TaskRunner("task_model.onnx")
    for prediction in runner.classify(["unknown.jpg"]):
        print(prediction.class_name, prediction.probability)

    task_model.onnx   runs on ONNX Runtime
    task_model.plan   runs on the TensorRT that its sidecar ``task_model.plan.json`` names; needs a GPU

Images are what ``Task.classify`` takes, prepared as the server prepares them (here, or in the graph of a
file that was exported so), and the answers are of the same types. It needs numpy, Pillow and one runtime.
Parts: ``local_card`` (what a file says of itself), ``local_pixels`` (preprocessing), ``local_onnx``,
``local_tensorrt`` with ``local_cuda``.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from metanas_client.content import ImageLike, contents
from metanas_client.errors import InvalidRequestError, ModelFileError
from metanas_client.local_onnx import OnnxModel
from metanas_client.local_pixels import network_input, read_picture, read_pixels
from metanas_client.local_tensorrt import PlanModel
from metanas_client.messages import Prediction, ranked

DEFAULT_BATCH_SIZE = 16
"""Bounds the memory of a call; on a CPU larger batches are slower, for they leave its caches."""


class TaskRunner:
    """One exported task, ready to answer; safe to share between threads, and a context manager."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        batch_size: int | None = None,
        threads: int = 1,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        allow_code: bool = False,
    ) -> None:
        """Open an exported file.

        Args:
            path: an ``.onnx`` file; or a ``.plan`` with its sidecar beside it.
            batch_size: the most images that are computed at once; None for 16, or a plan's largest
                batch where that is less. ``classify`` takes any number.
            threads: that one call computes on; of ONNX Runtime.
            providers: of ONNX Runtime, first to last; the first one must start.
            allow_code: whether code for the processor that a version-compatible plan brings may run.

        Raises:
            InvalidRequestError: another kind of file, a number out of range, or a plan that brings code.
            ModelFileError: the file cannot be used; the message says why.
            RuntimeMissingError: the runtime, or the GPU for a plan, is missing.
            OSError: the file cannot be read.
        """
        self.path = Path(path)
        if threads < 1:
            raise InvalidRequestError(f"threads must be 1 or more, got {threads}")
        if batch_size is not None and batch_size < 1:
            raise InvalidRequestError(f"batch_size must be 1 or more, got {batch_size}")
        if not providers:
            raise InvalidRequestError('providers is empty; pass at least one, for example ["CPUExecutionProvider"]')
        self._model = self._open(threads=threads, providers=providers, allow_code=allow_code)
        limit = self._model.batch_limit
        if limit is not None and batch_size is not None and batch_size > limit:
            raise InvalidRequestError(
                f"batch_size {batch_size}, but {self.path} was built for at most {limit}; pass {limit} or less, "
                f"or build it again with --max-batch {batch_size}"
            )
        self.batch_size = batch_size or min(DEFAULT_BATCH_SIZE, limit or DEFAULT_BATCH_SIZE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TaskRunner({str(self.path)!r}, class_names={list(self.class_names)!r})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the support set."""
        return self._model.card.class_names

    def classify(self, images: Iterable[ImageLike]) -> list[Prediction]:
        """Classify images.

        Args:
            images: a list of paths, encoded bytes, PIL images or arrays ``(H, W[, C])``, or one array
                of shape ``(N, H, W, C)``; uint8 in 0..255, floats in 0..1. Read one batch at a time.

        Returns:
            One prediction for each image, in order.

        Raises:
            UnsupportedImageError: one bare image, or something that is no image.
            InvalidRequestError: no image, or one that cannot be decoded or is too large.
            ModelFileError: the network's scores are no numbers.
            OSError: a file that cannot be read.
        """
        names = self.class_names
        answers = [
            ranked(zip(names, row.tolist(), strict=True))
            for batch in self._batches(images)
            for row in self._probabilities(batch)
        ]
        if not answers:
            raise InvalidRequestError("no images to classify; pass at least one")
        return answers

    def close(self) -> None:
        """Give the memory of a GPU back; what was opened from ONNX goes with the object."""
        self._model.close()

    def _open(self, *, threads: int, providers: Sequence[str], allow_code: bool) -> OnnxModel | PlanModel:
        match self.path.suffix.lower():
            case ".onnx":
                return OnnxModel(self.path, threads=threads, providers=providers)
            case ".plan":
                return PlanModel(self.path, allow_code=allow_code)
        raise InvalidRequestError(
            f"{self.path} is neither an .onnx nor a .plan file; metanas-export makes both from a task_model.pt"
        )

    def _batches(self, images: Iterable[ImageLike]) -> Iterator[NDArray[Any]]:
        """What the network takes, at most ``batch_size`` images at a time; pictures of any size one by one."""
        recipe = self._model.card.recipe
        given = enumerate(contents(images, where="images"))
        if self._model.takes_pictures:
            for index, one in given:
                yield read_picture(one, where=f"image {index}")[None]
            return
        while batch := [
            read_pixels(one, recipe, where=f"image {index}") for index, one in islice(given, self.batch_size)
        ]:
            yield network_input(np.stack(batch), recipe)

    def _probabilities(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """``(batch, classes)``; the softmax is in float64, as the server's is."""
        card = self._model.card
        scores = self._model.scores(batch).astype(np.float64) / card.temperature
        if not np.isfinite(scores).all():
            raise ModelFileError(f"{self.path} gives NaN or infinity; export the task again in fp32, or adapt it again")
        exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float64] = exponents / exponents.sum(axis=1, keepdims=True)
        return probabilities.astype(np.float32)
