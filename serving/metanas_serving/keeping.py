"""From what a worker has learnt to a task that is kept and answers.

    Keeper.keep   a job and what it learnt  ->  the task's facts, once it is in the store

It knows the store and the engine; nothing of requests or workers.
"""

import logging

from metanas_serving.engine import Engine
from metanas_serving.facts import TaskFacts
from metanas_serving.job import Job, JobView
from metanas_serving.metrics import Metrics
from metanas_serving.store import TaskStore
from metanas_serving.work import Done

_log = logging.getLogger(__name__)


class Keeper:
    """Keeps the tasks of one server; safe to share between threads."""

    def __init__(self, store: TaskStore, engine: Engine, *, metrics: Metrics) -> None:
        self._store = store
        self._engine = engine
        self._metrics = metrics

    def keep(self, job: Job, learnt: Done) -> TaskFacts:
        """Keep a task, so that it can be asked from now on.

        Raises:
            ArtifactError: what was learnt is damaged.
            StoreWriteError: the store cannot be written.
        """
        facts = TaskFacts.from_bytes(learnt.data, name="the learnt task")
        # Before it is kept, so that a task that is kept can answer.
        answerer = self._engine.build(learnt.onnx, facts.preprocessing, facts.trust)
        self._store.add(facts, learnt.data)
        self._engine.keep(facts.task_id, answerer)
        self._count(job.view)
        _log.info(
            "adapt: job %s, task %s, %d classes, %d images, %.2f s, support accuracy %.3f, %d of %d parameters",
            job.job_id,
            facts.task_id,
            len(facts.class_names),
            facts.support_image_count,
            facts.server.adapt_seconds,
            facts.report.support_accuracy,
            facts.report.parameter_count,
            facts.report.one_shot_parameter_count,
            extra={"tenant": job.order.tenant},
        )
        return facts

    def _count(self, view: JobView) -> None:
        self._metrics.adapted("queue", view.queued_seconds)
        weights = view.running_seconds
        if view.pruned_at is not None and view.began_at is not None:
            architecture = view.pruned_at - view.began_at
            weights -= architecture
            self._metrics.adapted("architecture", architecture)
        self._metrics.adapted("weights", weights)
