"""The contract's calls, thin: each is a few steps through the parts that do the work.

    Adapt       admission -> codec -> jobs -> engine -> store
    Classify    engine, or store -> engine; codec; engine; codec
    GetTask, ListTasks, DeleteTask, ExportTask    store

Every call goes in through the gate, and every error out through ``status``.
"""

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from metanas.artifact import task_from_bytes
from metanas.errors import AdaptationCancelledError
from metanas.preprocessing import Preprocessing
from metanas_export import onnx_bytes
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_proto.v1 import few_shot_pb2_grpc
from metanas_serving import codec, status
from metanas_serving.engine import Answerer, Engine
from metanas_serving.errors import CallerGoneError, InvalidRequestError
from metanas_serving.facts import TaskFacts
from metanas_serving.gate import Gate
from metanas_serving.jobs import Adaptations
from metanas_serving.store import TaskStore
from metanas_serving.work import Done, Order

_log = logging.getLogger(__name__)

MAX_CHUNK_BYTES = 1024 * 1024


class FewShotService(few_shot_pb2_grpc.FewShotServicer):
    """Answers the calls of one server; safe for many threads, for its parts are."""

    def __init__(
        self,
        gate: Gate,
        adaptations: Adaptations,
        *,
        store: TaskStore,
        engine: Engine,
        preprocessing: Preprocessing,
        max_support_images: int,
        max_classify_images: int,
    ) -> None:
        self._gate = gate
        self._adaptations = adaptations
        self._store = store
        self._engine = engine
        self._preprocessing = preprocessing
        self._max_support_images = max_support_images
        self._max_classify_images = max_classify_images

    def Adapt(self, request: pb.AdaptRequest, context: grpc.ServicerContext) -> pb.AdaptResponse:  # noqa: N802
        """Learn a task and keep it."""
        with self._answering(context), self._adaptations.admission():
            support = codec.read_support(
                request, self._preprocessing, max_images=self._max_support_images, check=self._wanted(context)
            )
            learnt = self._learn(
                Order(
                    task_id=uuid.uuid4().hex,
                    images=support.images,
                    labels=support.labels,
                    class_names=support.class_names,
                    seed=request.seed,
                    warnings=support.warnings,
                ),
                context,
            )
            facts = TaskFacts.from_bytes(learnt.data, name="the learnt task")
            # Before it is kept, so that a task that is kept can answer.
            answerer = self._engine.build(learnt.onnx, facts.preprocessing)
            self._store.add(facts, learnt.data)
            self._engine.keep(facts.task_id, answerer)
            _log.info(
                "adapt: task %s, %d classes, %d images, %.2f s, support accuracy %.3f, %d of %d parameters",
                facts.task_id,
                len(facts.class_names),
                facts.support_image_count,
                facts.server.adapt_seconds,
                facts.report.support_accuracy,
                facts.report.parameter_count,
                facts.report.one_shot_parameter_count,
            )
            return pb.AdaptResponse(task=codec.task_message(facts))

    def Classify(  # noqa: N802
        self, request: pb.ClassifyRequest, context: grpc.ServicerContext
    ) -> pb.ClassifyResponse:
        """Answer with a task."""
        with self._answering(context):
            facts = self._store.get(codec.check_task_id(request.task_id))
            images = codec.read_images(
                request, facts.preprocessing, max_images=self._max_classify_images, check=self._wanted(context)
            )
            answerer = self._engine.get(facts.task_id) or self._load(facts.task_id)
            probabilities = answerer.probabilities(images)
            return pb.ClassifyResponse(classifications=codec.classifications(probabilities, facts.class_names))

    def GetTask(self, request: pb.GetTaskRequest, context: grpc.ServicerContext) -> pb.Task:  # noqa: N802
        """Describe a task."""
        with self._answering(context):
            return codec.task_message(self._store.get(codec.check_task_id(request.task_id)))

    def ListTasks(  # noqa: N802
        self, request: pb.ListTasksRequest, context: grpc.ServicerContext
    ) -> pb.ListTasksResponse:
        """Describe all tasks, oldest first."""
        with self._answering(context):
            return pb.ListTasksResponse(tasks=[codec.task_message(facts) for facts in self._store.list()])

    def DeleteTask(  # noqa: N802
        self, request: pb.DeleteTaskRequest, context: grpc.ServicerContext
    ) -> pb.DeleteTaskResponse:
        """Forget a task."""
        with self._answering(context):
            task_id = codec.check_task_id(request.task_id)
            self._store.delete(task_id)
            self._engine.drop(task_id)
            _log.info("delete: task %s", task_id)
            return pb.DeleteTaskResponse()

    def ExportTask(  # noqa: N802
        self, request: pb.ExportTaskRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ExportTaskChunk]:
        """Stream a task's file."""
        with self._answering(context):
            data = self._file(codec.check_task_id(request.task_id), request.format)
            for first in range(0, len(data), MAX_CHUNK_BYTES):
                yield pb.ExportTaskChunk(data=data[first : first + MAX_CHUNK_BYTES])

    def _wanted(self, context: grpc.ServicerContext) -> Callable[[], None]:
        """What raises once the caller has gone or the server cuts its calls off."""

        def check() -> None:
            self._gate.check_inside()
            if not context.is_active():
                raise CallerGoneError("the caller has gone; its images are left undecoded")

        return check

    def _learn(self, order: Order, context: grpc.ServicerContext) -> Done:
        job = self._adaptations.submit(order)
        if not context.add_callback(lambda: self._adaptations.cancel(job)):
            self._adaptations.cancel(job)  # the caller has gone already
        learnt = job.result()
        if not context.is_active():
            raise AdaptationCancelledError("the caller has gone; the task is not kept")
        return learnt

    def _load(self, task_id: str) -> Answerer:
        task = task_from_bytes(self._store.read(task_id), name=f"the file of task {task_id}")
        answerer = self._engine.build(onnx_bytes(task), task.preprocessing)
        self._engine.keep(task_id, answerer)
        if task_id not in self._store:  # deleted meanwhile, perhaps before it was kept
            self._engine.drop(task_id)
        return answerer

    def _file(self, task_id: str, format_: int) -> bytes:
        if format_ not in (pb.ExportTaskRequest.FORMAT_TASK_MODEL, pb.ExportTaskRequest.FORMAT_ONNX):
            raise InvalidRequestError(f"format is {format_}; set FORMAT_TASK_MODEL (1) or FORMAT_ONNX (2)")
        data = self._store.read(task_id)
        # Read in any case: a damaged file is not passed on.
        task = task_from_bytes(data, name=f"the file of task {task_id}")
        return data if format_ == pb.ExportTaskRequest.FORMAT_TASK_MODEL else onnx_bytes(task)

    @contextmanager
    def _answering(self, context: grpc.ServicerContext) -> Iterator[None]:
        try:
            with self._gate.passing():
                yield
        except Exception as error:
            status.abort(context, error)
