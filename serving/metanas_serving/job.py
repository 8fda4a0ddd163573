"""One adaptation on its way, and who waits for it.

    Job        from the queue over its worker to the kept task: told by ``jobs`` what happens to it
    JobView    how it is at one moment; never changes
    State      queued, running, or over: succeeded, failed, cancelled

A view is replaced, not changed, so whoever has one has a whole one; who watches waits until there is
another. A job that no one waits for any more is to be cancelled, unless it was started to run by
itself. It does not know the queue or the workers.
"""

import dataclasses
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from metanas.errors import AdaptationCancelledError
from metanas.progress import StepReport
from metanas_serving.work import Done, Order, Progress, Pruned

if TYPE_CHECKING:  # it needs torch
    from metanas_serving.facts import TaskFacts


class State(Enum):
    """How far a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class JobView:
    """A job at one moment. The three times are of one clock that only goes forward, in seconds."""

    job_id: str
    created_unix_seconds: float
    queued_at: float
    state: State = State.QUEUED
    position: int = 0
    """How many jobs of its tenant are before it in the queue."""
    began_at: float | None = None
    pruned_at: float | None = None
    ended_at: float | None = None
    step: StepReport | None = None
    """The last."""
    pruned: Pruned | None = None
    facts: "TaskFacts | None" = None
    """Of the task, once it is kept."""
    error: Exception | None = None
    """Why there is no task."""

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.ended_at is not None

    @property
    def queued_seconds(self) -> float:
        """How long it waited, so far."""
        return _first(self.began_at, self.ended_at, time.monotonic()) - self.queued_at

    @property
    def running_seconds(self) -> float:
        """How long it ran, so far."""
        return 0.0 if self.began_at is None else _first(self.ended_at, time.monotonic()) - self.began_at

    @property
    def how_far(self) -> str:
        """Its progress in words that go on a sentence."""
        if self.state is State.QUEUED:
            return f"while it waited for its turn, {self.position} before it"
        if self.step is None:
            return "before its first gradient step was done"
        return f"after {self.step.step} of {self.step.steps} steps"


def _first(*times: float | None) -> float:
    return next(value for value in times if value is not None)


class Job:
    """One order on its way; safe to share between threads."""

    def __init__(
        self,
        order: Order,
        *,
        keep: "Callable[[Job, Done], TaskFacts]",
        when_over: "Callable[[Job], None]" = lambda job: None,
    ) -> None:
        """Make a job that waits for its turn.

        Args:
            keep: what makes a task of what was learnt, and raises if it cannot be kept.
            when_over: told once it is over.
        """
        self.order = order
        self.waiting: set[object] = set()
        """Callers without whom it is not wanted; guarded by whoever lets them in."""
        self.runs_by_itself = False
        """Whether it is wanted without callers; guarded likewise."""
        self._keep = keep
        self._when_over = when_over
        self._changed = threading.Condition()
        self._stopped = False
        self._is_kept = False
        self._view = JobView(uuid.uuid4().hex, created_unix_seconds=time.time(), queued_at=time.monotonic())

    @property
    def job_id(self) -> str:
        """Its name; cannot be guessed."""
        return self._view.job_id

    @property
    def view(self) -> JobView:
        """How it is now."""
        return self._view

    @property
    def is_stopped(self) -> bool:
        """Whether it is to be left."""
        return self._stopped

    def stop(self) -> None:
        """Ask whoever works on it to leave it; too late once its task is being kept."""
        with self._changed:
            self._stopped = not self._is_kept

    def wait_for(self, condition: Callable[[JobView], bool], timeout_seconds: float | None) -> JobView:
        """Wait until a view fulfils a condition or the time is over; the view at that moment."""
        with self._changed:
            self._changed.wait_for(lambda: condition(self._view), timeout_seconds)
            return self._view

    def wait_in_line(self, position: int) -> None:
        """So many jobs are before it."""
        if position != self._view.position:
            self._become(position=position)

    def begin(self, *, threads: int) -> None:
        """A worker takes it."""
        self.order = dataclasses.replace(self.order, threads=threads)
        self._become(state=State.RUNNING, position=0, began_at=time.monotonic())

    def advance(self, progress: Progress) -> None:
        """It has got further."""
        if isinstance(progress, StepReport):
            self._become(step=progress)
        else:
            self._become(pruned=progress, pruned_at=time.monotonic())

    def keep(self, learnt: Done) -> "TaskFacts":
        """Make a task of what was learnt.

        Raises:
            AdaptationCancelledError: it was stopped.
            MetaNASError: the task cannot be kept.
        """
        with self._changed:
            if self._stopped:
                raise AdaptationCancelledError("adaptation was stopped after its last step; the task is not kept")
            self._is_kept = True
        return self._keep(self, learnt)

    def finish(self, answer: "TaskFacts | Exception") -> None:
        """It is over: its task is kept, or never will be."""
        # What it was to learn need not be remembered. A copy, for a slice would hold the whole.
        self.order = dataclasses.replace(self.order, images=self.order.images[:0].copy())
        ended_at = time.monotonic()
        if not isinstance(answer, Exception):
            self._become(state=State.SUCCEEDED, facts=answer, ended_at=ended_at)
        elif isinstance(answer, AdaptationCancelledError):
            self._become(state=State.CANCELLED, error=answer, ended_at=ended_at)
        else:
            self._become(state=State.FAILED, error=answer, ended_at=ended_at)
        self._when_over(self)

    def _become(self, **changes: object) -> None:
        with self._changed:
            self._view = dataclasses.replace(self._view, **changes)  # type: ignore[arg-type]  # each is a field's
            self._changed.notify_all()
