"""Prepared images to answers, whoever asks: the one way to a task's answerer.

    Classifier.answer   a task's id and prepared images  ->  Answers: probabilities, similarities

An answerer that is loaded answers at once; another is loaded from the task's file first. Knows the
store and the engine; nothing of a contract, so that every protocol of the server answers alike.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from metanas.artifact import task_from_bytes
from metanas_export import onnx_bytes
from metanas_serving.engine import Answerer, Answers, Engine
from metanas_serving.metrics import Metrics
from metanas_serving.store import TaskStore


class Classifier:
    """Answers with the tasks of a store; safe to share between threads."""

    def __init__(self, store: TaskStore, engine: Engine, *, metrics: Metrics) -> None:
        self._store = store
        self._engine = engine
        self._metrics = metrics

    def answer(self, task_id: str, images: NDArray[np.uint8], *, check: Callable[[], None]) -> Answers:
        """Classify prepared images with a task.

        Args:
            images: uint8 ``(images, channels, height, width)``, prepared as the task declares.
            check: called between computations; raises if the answer is not wanted any more.

        Raises:
            TaskNotFoundError: there is no task of that id.
            TaskLostError: its file has gone.
            ArtifactError: its file is damaged or of a later version.
        """
        answerer = self._engine.get(task_id)
        self._metrics.asked(was_loaded=answerer is not None)
        answers = (answerer or self._load(task_id)).answer(images, check=check)
        for batch_images in answers.computed.led:
            self._metrics.classified(batch_images)
        return answers

    def load(self, task_id: str) -> None:
        """Load a task before it is asked.

        Raises:
            TaskNotFoundError, TaskLostError, ArtifactError: as ``answer``.
        """
        self._load(task_id)

    def _load(self, task_id: str) -> Answerer:
        task = task_from_bytes(self._store.read(task_id), name=f"the file of task {task_id}")
        answerer = self._engine.build(onnx_bytes(task), task.preprocessing, task.trust)
        self._engine.keep(task_id, answerer)
        if task_id not in self._store:  # deleted meanwhile, perhaps before it was kept
            self._engine.drop(task_id)
        return answerer
