"""How a job is, as frozen dataclasses.

    job_status   proto AdaptJob  ->  JobStatus, with AdaptProgress and what is in ``messages``

Pure. It does not know how the messages travel.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from metanas_client.errors import ServerError
from metanas_client.messages import Genotype, TaskInfo, genotype, task_info

if TYPE_CHECKING:
    from metanas_proto.v1 import few_shot_pb2 as pb

Phase: TypeAlias = Literal["architecture", "weights"]
"""Of an adaptation: weights and architecture together, or the weights of the pruned network."""
JobState: TypeAlias = Literal["queued", "running", "succeeded", "failed", "cancelled"]
_STATES: tuple[JobState, ...] = get_args(JobState)
"""From the contract's 1 on."""


@dataclass(frozen=True)
class AdaptProgress:
    """How far an adaptation has got."""

    phase: Phase
    step: int
    """Gradient steps done in both phases together."""
    steps: int
    """Of both phases together."""
    loss: float
    """Before the last step."""
    temperature: float
    """Of the softmax over operations."""
    support_accuracy: float
    """Of the images of the last step, before it."""


@dataclass(frozen=True)
class JobStatus:
    """A job as it was at some moment."""

    job_id: str
    state: JobState
    queue_position: int
    """Queued: how many jobs are before it."""
    progress: AdaptProgress | None
    """None before its first gradient step."""
    genotype: Genotype | None
    """None before the architecture is chosen."""
    parameter_count: int
    """Of the pruned network, head included; 0 before."""
    task: TaskInfo | None
    """Succeeded: what was learnt."""
    error_code: int
    """Failed or cancelled: the google.rpc code that adapt would have ended with; else 0."""
    error_message: str
    """Failed or cancelled: why, and how far it got."""
    created_unix_seconds: float
    queued_seconds: float
    """So far, or until it ran."""
    running_seconds: float
    """So far, or until it was over."""

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.state not in ("queued", "running")


def job_status(job: "pb.AdaptJob") -> JobStatus:
    """Turn the contract's job into ours.

    Raises:
        ServerError: a state that this client does not know.
    """
    if not 1 <= job.state <= len(_STATES):
        raise ServerError(
            f"the server says that a job's state is {job.state}; check that it is of this client's version"
        )
    pruned = job.pruned if job.HasField("pruned") else None
    return JobStatus(
        job_id=job.job_id,
        state=_STATES[job.state - 1],
        queue_position=job.queue_position,
        progress=_progress(job.progress) if job.HasField("progress") else None,
        genotype=None if pruned is None else genotype(pruned.genotype),
        parameter_count=0 if pruned is None else pruned.parameter_count,
        task=task_info(job.task) if job.HasField("task") else None,
        error_code=job.error.code,
        error_message=job.error.message,
        created_unix_seconds=job.created_unix_seconds,
        queued_seconds=job.queued_seconds,
        running_seconds=job.running_seconds,
    )


def _progress(progress: "pb.AdaptProgress") -> AdaptProgress:
    return AdaptProgress(
        phase="architecture" if progress.phase == 1 else "weights",
        step=progress.step,
        steps=progress.steps,
        loss=progress.loss,
        temperature=progress.temperature,
        support_accuracy=progress.support_accuracy,
    )
