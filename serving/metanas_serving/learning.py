"""From a request to a kept task: what Adapt, StartAdapt and UploadAdapt share.

    Learner.start    a request             ->  a job that runs by itself, or the job of the same key
    Learner.upload   pieces of a request   ->  the same
    Learner.update   a task, more images   ->  the same, for a new version of the task
    Learner.learn    a request, its call   ->  the task; the job ends with its last caller
    Learner.cancel   a job                 ->  how it is when the work has stopped

    admission -> support, options -> key -> jobs -> keeper

An idempotency key names the task of its request: a job that is to learn it is joined, a task that is
kept is answered with. One lock guards who joins which job; no one decodes or computes under it.
"""

import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import grpc

from metanas.artifact import task_from_bytes
from metanas.model import MetaModel
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.allowance import Allowance
from metanas_serving.call import Check
from metanas_serving.errors import (
    CannotUpdateError,
    DeadlineError,
    InvalidRequestError,
    KeyTakenError,
    QueueFullError,
    UploadTooLargeError,
)
from metanas_serving.facts import TaskFacts
from metanas_serving.job import Job, JobView
from metanas_serving.jobs import Adaptations, Place
from metanas_serving.keeping import Keeper
from metanas_serving.keys import Keys
from metanas_serving.ledger import Ledger
from metanas_serving.limits import LearningLimits
from metanas_serving.options import apply_options, time_to_live
from metanas_serving.store import TaskStore
from metanas_serving.support import Support, more_support, read_support, request_digest, upload_support
from metanas_serving.traces import Traces
from metanas_serving.work import Lineage, Order

# Calls of Adapt that wait for a job that another call started; each holds a request thread, beyond
# those that the queue allows for.
MAX_JOINED = 2
# Before a deadline, so that the answer still reaches the caller; of a short one, the share.
_ANSWER_SECONDS, _ANSWER_SHARE = 0.25, 0.1
# A cancelled job ends within one gradient step; a worker that does not is killed about then.
_CANCEL_SECONDS = 35.0


class Learner:
    """Learns the tasks of one server; safe to share between threads."""

    def __init__(
        self,
        meta: MetaModel,
        adaptations: Adaptations,
        *,
        ledger: Ledger,
        keys: Keys,
        store: TaskStore,
        keeper: Keeper,
        limits: LearningLimits,
        allowance: Allowance,
        traces: Traces,
    ) -> None:
        self._meta = meta
        self._adaptations = adaptations
        self._ledger = ledger
        self._keys = keys
        self._store = store
        self._keeper = keeper
        self._limits = limits
        self._allowance = allowance
        self._traces = traces
        self._lock = threading.Lock()
        self._joined = 0

    def start(self, request: pb.AdaptRequest, *, tenant: str, check: Check) -> Job:
        """Start a job that runs whoever waits for it, or find the one of the same key.

        Raises:
            MetaNASError: the request cannot be served.
        """
        read = functools.partial(self._read, request, check=check)
        return self._enter(request, tenant=tenant, read=read, enlist=_run_by_itself)

    def upload(self, pieces: Iterator[pb.AdaptRequest], *, tenant: str, check: Check) -> Job:
        """The same for a request in pieces.

        Raises:
            UploadTooLargeError: all pieces together are over the limit.
            MetaNASError: the request cannot be served.
        """
        first = next(pieces, None) or pb.AdaptRequest()
        head = pb.AdaptRequest(seed=first.seed, options=first.options, idempotency_key=first.idempotency_key)
        apply_options(head.options, self._meta, self._limits.options)
        if not self._is_known(self._keys.task_id(head.idempotency_key, tenant=tenant)):
            self._adaptations.check_room(tenant)  # rather than after it has sent everything
        support = upload_support(
            self._bounded(first, pieces),
            self._meta.preprocessing,
            limits=self._limits.support,
            check=check,
        )
        return self._enter(head, tenant=tenant, read=lambda: support, enlist=_run_by_itself)

    def update(self, request: pb.UpdateTaskRequest, parent: TaskFacts, *, check: Check) -> Job:
        """Start a job for a new version of a task: its support set and more; it is to be of the same tenant.

        Raises:
            CannotUpdateError: the task is of images that this meta-model does not take.
            MetaNASError: the request cannot be served.
        """
        task_id = parent.task_id
        if parent.preprocessing != self._meta.preprocessing:
            raise CannotUpdateError(
                f"task {task_id} was learnt from images prepared as {parent.preprocessing}, this server's meta-model "
                f"takes {self._meta.preprocessing}; adapt a new task, or start the server with the other meta-model"
            )

        def read() -> Support:
            task = task_from_bytes(self._store.read(task_id), name=f"the file of task {task_id}")
            return more_support(request, task, limits=self._limits.support, check=check)

        lineage = Lineage(parent.server.version + 1, parent_task_id=task_id, first_task_id=parent.first_task_id)
        head = pb.AdaptRequest(seed=request.seed, options=request.options, idempotency_key=request.idempotency_key)
        return self._enter(head, tenant=parent.server.tenant, read=read, enlist=_run_by_itself, lineage=lineage)

    def learn(self, request: pb.AdaptRequest, context: grpc.ServicerContext, *, tenant: str, check: Check) -> TaskFacts:
        """Learn a task while its caller waits; a job that loses its last caller is cancelled.

        Raises:
            DeadlineError: the call's deadline is about to come.
            AdaptationCancelledError: the caller has gone, or someone cancelled the job.
            MetaNASError: the request cannot be served, or the work failed.
        """
        caller = object()
        with ExitStack() as stack:

            def wait(job: Job) -> None:
                if (job.waiting or job.runs_by_itself) and not job.view.is_over:
                    stack.enter_context(self._joining())
                job.waiting.add(caller)

            read = functools.partial(self._read, request, check=check)
            job = self._enter(request, tenant=tenant, read=read, enlist=wait)
            if not context.add_callback(lambda: self._leave(job, caller)):
                self._leave(job, caller)  # it has gone already
            view = job.wait_for(lambda view: view.is_over, _patience_seconds(context))
            if not view.is_over:
                self._leave(job, caller)
                raise DeadlineError(
                    f"the deadline came {view.how_far}; allow more time, or use StartAdapt and WatchAdapt: their "
                    "job has no deadline"
                )
        if view.facts is None:
            assert view.error is not None, "a job that is over has a task or an error"
            raise view.error
        return view.facts

    def cancel(self, job: Job) -> JobView:
        """Stop a job and wait until it is over; one that is over stays as it is."""
        with self._lock:
            self._adaptations.cancel(job)
        return job.wait_for(lambda view: view.is_over, _CANCEL_SECONDS)

    def _enter(
        self,
        request: pb.AdaptRequest,
        *,
        tenant: str,
        read: Callable[[], Support],
        enlist: Callable[[Job], None],
        lineage: Lineage | None = None,
    ) -> Job:
        """The job of a request, new or joined.

        Args:
            enlist: what makes the caller one of the job's, before anyone can cancel it.
        """
        task_id = self._keys.task_id(request.idempotency_key, tenant=tenant)
        schedule = apply_options(request.options, self._meta, self._limits.options)
        ttl_seconds = time_to_live(request.options, self._limits.options)
        with ExitStack() as stack:
            place: Place | None = None
            if not self._is_known(task_id):
                place = self._admitted(tenant, stack)
            support = read()
            self._limits.check_memory(len(support.images))
            order = Order(
                task_id=task_id,
                images=support.images,
                labels=support.labels,
                class_names=support.class_names,
                seed=request.seed,
                schedule=schedule,
                request_sha256=request_digest(support, seed=request.seed, options=request.options),
                warnings=support.warnings,
                lineage=lineage,
                tenant=tenant,
                ttl_seconds=ttl_seconds,
            )
            with self._lock:
                found = self._find(order)
                job = found or Job(
                    order,
                    keep=self._keeper.keep,
                    when_over=functools.partial(self._traces.adapted, origin=self._traces.origin()),
                )
                enlist(job)
                if found is None:
                    # Known no more: it failed or was deleted while its images were decoded.
                    place = place or self._admitted(tenant, stack)
                    self._adaptations.submit(job, place)
                    self._ledger.add(job)
                return job

    def _admitted(self, tenant: str, stack: ExitStack) -> Place:
        place = stack.enter_context(self._adaptations.admission(tenant))
        # Only now, so that who finds no place has used up nothing.
        self._allowance.adaptation(tenant, present=self._adaptations.count_of(tenant))
        return place

    def _read(self, request: pb.AdaptRequest, *, check: Check) -> Support:
        return read_support(request, self._meta.preprocessing, limits=self._limits.support, check=check)

    def _bounded(self, first: pb.AdaptRequest, others: Iterator[pb.AdaptRequest]) -> Iterator[pb.AdaptRequest]:
        received, is_ended = 0, False
        for piece in itertools.chain([first], others):
            if is_ended:
                raise InvalidRequestError("a piece follows the one that has is_last; set it in the last one only")
            if piece is not first and (piece.seed or piece.HasField("options") or piece.idempotency_key):
                raise InvalidRequestError(
                    "a later piece of an upload has a seed, options or an idempotency_key; set them in the first one"
                )
            received += piece.ByteSize()
            if received > self._limits.max_upload_bytes:
                raise UploadTooLargeError(
                    f"the upload has more than {self._limits.max_upload_bytes} bytes, the limit of this server "
                    "(--max-upload-mb); send fewer or smaller images, or PNG or JPEG files instead of tensors"
                )
            is_ended = piece.is_last
            yield piece
        # gRPC may tell a caller's leaving only after the end of what it sent, so that end alone proves nothing.
        if not is_ended:
            raise InvalidRequestError(
                "the upload ended before a piece that has is_last, so it has broken off and nothing is started; "
                "send it again, with is_last in its last piece"
            )

    def _is_known(self, task_id: str) -> bool:
        """Whether a request for this task needs no place of its own."""
        return task_id in self._store or self._ledger.of_task(task_id) is not None

    def _find(self, order: Order) -> Job | None:
        job = self._ledger.of_task(order.task_id)
        if job is not None and (not job.view.is_over or order.task_id in self._store):
            _check_same(job.order.request_sha256, order)
            return job
        if order.task_id in self._store:  # its job is forgotten
            facts = self._store.get(order.task_id)
            _check_same(facts.server.request_sha256, order)
            job = Job(order, keep=self._keeper.keep)
            job.finish(facts)
            self._ledger.add(job)
            return job
        return None

    @contextmanager
    def _joining(self) -> Iterator[None]:
        """Count a call that waits for another's job; entered under the lock."""
        if self._joined >= MAX_JOINED:
            raise QueueFullError(
                f"{MAX_JOINED} calls of Adapt at a time may wait for jobs that other calls started, and as many do; "
                "wait with StartAdapt and WatchAdapt, or try again later"
            )
        self._joined += 1
        try:
            yield
        finally:
            with self._lock:
                self._joined -= 1

    def _leave(self, job: Job, caller: object) -> None:
        with self._lock:
            job.waiting.discard(caller)
            if not (job.waiting or job.runs_by_itself):
                self._adaptations.cancel(job)


def _run_by_itself(job: Job) -> None:
    job.runs_by_itself = True


def _check_same(request_sha256: str, order: Order) -> None:
    if request_sha256 != order.request_sha256:
        raise KeyTakenError(
            "this idempotency_key was used for another support set, seed or options; send exactly what was sent "
            f"with it, use a new key, or delete its task {order.task_id} first"
        )


def _patience_seconds(context: grpc.ServicerContext) -> float | None:
    """How long a call may wait so that its answer comes before its deadline; None: for ever."""
    left = context.time_remaining()
    # What gRPC says of a call without a deadline is some age of the universe.
    if left is None or left > threading.TIMEOUT_MAX:
        return None
    return left - min(_ANSWER_SECONDS, _ANSWER_SHARE * left)
