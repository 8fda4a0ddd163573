"""The contract's calls, thin: each is a few steps through the parts that do the work.

    Adapt, StartAdapt, UploadAdapt, UpdateTask, CancelAdapt    learner
    WatchAdapt, GetJob, ListJobs                               ledger
    Classify, ClassifyStream                                   store -> codec -> classifier -> codec
    GetTask, ListTasks, ListVersions, DeleteTask, ExportTask   store
    SetAlias, ListAliases, DeleteAlias                         aliases

Every call goes in and out by ``call``; those that last have threads of their own. What a call finds, makes
or names is its tenant's; to who asks for another's, there is none.
"""

import logging
import time
from collections.abc import Iterator

import grpc

from metanas.artifact import task_from_bytes
from metanas.errors import MetaNASError
from metanas_export import onnx_bytes
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_proto.v1 import few_shot_pb2_grpc
from metanas_serving import codec, paging, streams
from metanas_serving.aliases import Aliases
from metanas_serving.allowance import Allowance
from metanas_serving.arrival import waited_seconds
from metanas_serving.call import Check, answering, wanted
from metanas_serving.classifying import Classifier
from metanas_serving.engine import Engine
from metanas_serving.errors import InvalidRequestError, RateError
from metanas_serving.facts import TaskFacts
from metanas_serving.gate import Gate
from metanas_serving.job import Job, JobView
from metanas_serving.learning import Learner
from metanas_serving.ledger import Ledger
from metanas_serving.processors import untied
from metanas_serving.store import TaskStore
from metanas_serving.tenants import current
from metanas_serving.traces import Traces

_log = logging.getLogger(__name__)

MAX_CHUNK_BYTES = 1024 * 1024

# How soon a stream that waits sees that its caller has gone or the server stops.
_LOOK_SECONDS = 0.25


class FewShotService(few_shot_pb2_grpc.FewShotServicer):
    """Answers the calls of one server; safe for many threads, for its parts are."""

    def __init__(
        self,
        gate: Gate,
        learner: Learner,
        *,
        ledger: Ledger,
        aliases: Aliases,
        store: TaskStore,
        engine: Engine,
        classifier: Classifier,
        max_classify_images: int,
        allowance: Allowance,
        traces: Traces,
    ) -> None:
        self._gate = gate
        self._learner = learner
        self._ledger = ledger
        self._aliases = aliases
        self._streams = streams.Streams()
        self._store = store
        self._engine = engine
        self._classifier = classifier
        self._max_classify_images = max_classify_images
        self._allowance = allowance
        self._traces = traces

    def Adapt(self, request: pb.AdaptRequest, context: grpc.ServicerContext) -> pb.AdaptResponse:  # noqa: N802
        """Learn a task and keep it."""
        with answering(self._gate, context):
            facts = self._learner.learn(request, context, tenant=current(), check=wanted(self._gate, context))
            return pb.AdaptResponse(task=codec.task_message(facts))

    def StartAdapt(self, request: pb.AdaptRequest, context: grpc.ServicerContext) -> pb.AdaptJob:  # noqa: N802
        """Start a job."""
        with answering(self._gate, context):
            job = self._learner.start(request, tenant=current(), check=wanted(self._gate, context))
            return codec.job_message(job.view)

    def UploadAdapt(  # noqa: N802
        self, request_iterator: Iterator[pb.AdaptRequest], context: grpc.ServicerContext
    ) -> pb.AdaptJob:
        """Start a job with a support set in pieces."""
        with answering(self._gate, context), self._streams.open():
            pieces = streams.received(request_iterator)
            job = self._learner.upload(pieces, tenant=current(), check=wanted(self._gate, context))
            return codec.job_message(job.view)

    def UpdateTask(self, request: pb.UpdateTaskRequest, context: grpc.ServicerContext) -> pb.AdaptJob:  # noqa: N802
        """Start a job for a new version of a task."""
        with answering(self._gate, context):
            job = self._learner.update(request, self._task(request.task_id), check=wanted(self._gate, context))
            return codec.job_message(job.view)

    def WatchAdapt(  # noqa: N802
        self, request: pb.WatchAdaptRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.AdaptJob]:
        """Tell how a job is until it is over."""
        with answering(self._gate, context), self._streams.open():
            job = self._job(request.job_id)
            check = wanted(self._gate, context)
            seen: JobView | None = None
            while not (seen and seen.is_over):
                view = job.wait_for(lambda view: view is not seen, _LOOK_SECONDS)  # noqa: B023  # asked at once
                if view is not seen:
                    yield codec.job_message(view)
                    seen = view
                else:
                    check()

    def CancelAdapt(self, request: pb.CancelAdaptRequest, context: grpc.ServicerContext) -> pb.AdaptJob:  # noqa: N802
        """End a job."""
        with answering(self._gate, context):
            return codec.job_message(self._learner.cancel(self._job(request.job_id)))

    def GetJob(self, request: pb.GetJobRequest, context: grpc.ServicerContext) -> pb.AdaptJob:  # noqa: N802
        """Tell how a job is."""
        with answering(self._gate, context):
            return codec.job_message(self._job(request.job_id).view)

    def ListJobs(self, request: pb.ListJobsRequest, context: grpc.ServicerContext) -> pb.ListJobsResponse:  # noqa: N802
        """Tell how all jobs are."""
        with answering(self._gate, context):
            jobs = self._ledger.owned_by(current())
            return pb.ListJobsResponse(jobs=[codec.job_message(job.view) for job in jobs])

    def Classify(  # noqa: N802
        self, request: pb.ClassifyRequest, context: grpc.ServicerContext
    ) -> pb.ClassifyResponse:
        """Answer with a task."""
        with answering(self._gate, context):
            return self._classify(
                request, request.task_id, check=wanted(self._gate, context), queued_seconds=waited_seconds()
            )

    def ClassifyStream(  # noqa: N802
        self, request_iterator: Iterator[pb.ClassifyRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ClassifyResponse]:
        """Answer request after request."""
        with answering(self._gate, context), self._streams.open():
            check = wanted(self._gate, context)
            task_id = ""
            for number, request in enumerate(streams.received(request_iterator)):
                self._gate.check_open()  # a stream is not to hold up a server that drains
                task_id = request.task_id or task_id
                try:
                    if number:  # the first is the call
                        self._allowance.request(current())
                    answer = self._classify(request, task_id, check=check, queued_seconds=0.0)
                except RateError:
                    raise
                except MetaNASError as error:
                    raise type(error)(f"request {number} of the stream: {error}") from error
                yield answer

    # gRPC looks for this attribute of a method.
    UploadAdapt.experimental_thread_pool = streams.THREADS  # type: ignore[attr-defined]
    WatchAdapt.experimental_thread_pool = streams.THREADS  # type: ignore[attr-defined]
    ClassifyStream.experimental_thread_pool = streams.THREADS  # type: ignore[attr-defined]

    def GetTask(self, request: pb.GetTaskRequest, context: grpc.ServicerContext) -> pb.Task:  # noqa: N802
        """Describe a task."""
        with answering(self._gate, context):
            return codec.task_message(self._task(request.task_id))

    def ListTasks(  # noqa: N802
        self, request: pb.ListTasksRequest, context: grpc.ServicerContext
    ) -> pb.ListTasksResponse:
        """Describe a page of the tasks, oldest first."""
        with answering(self._gate, context):
            size = paging.page_size(request.page_size)
            # One more than asked for tells whether there is a next page.
            records = self._store.page(current(), after=paging.read_token(request.page_token), limit=size + 1)
            page = records[:size]
            return pb.ListTasksResponse(
                tasks=[codec.task_message(record.facts) for record in page],
                next_page_token=paging.token_after(page[-1]) if len(records) > size else "",
            )

    def ListVersions(  # noqa: N802
        self, request: pb.ListVersionsRequest, context: grpc.ServicerContext
    ) -> pb.ListTasksResponse:
        """Describe the versions of a task, oldest first."""
        with answering(self._gate, context):
            # Versions of one task are of one tenant.
            versions = self._store.versions(self._task(request.task_id).first_task_id)
            return pb.ListTasksResponse(tasks=map(codec.task_message, versions))

    def SetAlias(self, request: pb.SetAliasRequest, context: grpc.ServicerContext) -> pb.Alias:  # noqa: N802
        """Give a task an alias, or move it."""
        with answering(self._gate, context):
            task_id = self._aliases.set(
                request.alias, codec.check_task_id(request.task_id), tenant=current(), is_pinned=request.pinned
            )
            self._engine.pin(self._aliases.pinned())
            _log.info("alias: %s is task %s", request.alias, task_id)
            return pb.Alias(alias=request.alias, task_id=task_id, pinned=request.pinned)

    def ListAliases(  # noqa: N802
        self, request: pb.ListAliasesRequest, context: grpc.ServicerContext
    ) -> pb.ListAliasesResponse:
        """Name all aliases."""
        with answering(self._gate, context):
            return pb.ListAliasesResponse(
                aliases=[
                    pb.Alias(alias=alias.name, task_id=alias.task_id, pinned=alias.is_pinned)
                    for alias in self._aliases.list(tenant=current())
                ]
            )

    def DeleteAlias(  # noqa: N802
        self, request: pb.DeleteAliasRequest, context: grpc.ServicerContext
    ) -> pb.DeleteAliasResponse:
        """Take an alias away."""
        with answering(self._gate, context):
            self._aliases.remove(request.alias, tenant=current())
            self._engine.pin(self._aliases.pinned())
            return pb.DeleteAliasResponse()

    def DeleteTask(  # noqa: N802
        self, request: pb.DeleteTaskRequest, context: grpc.ServicerContext
    ) -> pb.DeleteTaskResponse:
        """Forget a task."""
        with answering(self._gate, context):
            task_id = self._store.owned(codec.check_task_id(request.task_id), tenant=current()).task_id
            with self._aliases.without(task_id):
                self._store.delete(task_id)
            self._engine.drop(task_id)
            _log.info("delete: task %s", task_id)
            return pb.DeleteTaskResponse()

    def ExportTask(  # noqa: N802
        self, request: pb.ExportTaskRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ExportTaskChunk]:
        """Stream a task's file."""
        with answering(self._gate, context):
            data = self._file(request.task_id, request.format)
            for first in range(0, len(data), MAX_CHUNK_BYTES):
                yield pb.ExportTaskChunk(data=data[first : first + MAX_CHUNK_BYTES])

    def _task(self, name: str) -> TaskFacts:
        """The task that a request names by its id or an alias."""
        return self._store.owned(self._aliases.resolve(codec.check_task_id(name), tenant=current()), tenant=current())

    def _job(self, job_id: str) -> Job:
        return self._ledger.owned(job_id, tenant=current())

    def _classify(
        self, request: pb.ClassifyRequest, task_id: str, *, check: Check, queued_seconds: float
    ) -> pb.ClassifyResponse:
        begin = time.perf_counter()
        facts = self._task(task_id)
        images = codec.read_images(
            request.images, facts.preprocessing, max_images=self._max_classify_images, check=check
        )
        decoded = time.perf_counter()
        answers = self._classifier.answer(facts.task_id, images, check=check)
        computed, waited = time.perf_counter(), answers.computed.waited_seconds
        self._traces.stages(begin - queued_seconds, queue=begin, decode=decoded, compute=computed)
        response = pb.ClassifyResponse(
            timing=pb.Timing(
                queue_milliseconds=1000 * (queued_seconds + waited),
                decode_milliseconds=1000 * (decoded - begin),
                compute_milliseconds=1000 * (computed - decoded - waited),
                batch_images=answers.computed.batch_images,
            ),
            task_id=facts.task_id,
        )
        codec.add_classifications(response, answers, facts.class_names, top_k=request.top_k)
        return response

    def _file(self, name: str, format_: int) -> bytes:
        if format_ not in (pb.ExportTaskRequest.FORMAT_TASK_MODEL, pb.ExportTaskRequest.FORMAT_ONNX):
            raise InvalidRequestError(f"format is {format_}; set FORMAT_TASK_MODEL (1) or FORMAT_ONNX (2)")
        task_id = self._task(name).task_id
        with untied():
            data = self._store.read(task_id)
            # Read in any case: a damaged file is not passed on.
            task = task_from_bytes(data, name=f"the file of task {task_id}")
            return data if format_ == pb.ExportTaskRequest.FORMAT_TASK_MODEL else onnx_bytes(task)
