"""How a job gets on, in lines for people.

job_line         a job's status  ->  one line
print_progress   statuses        ->  standard error: one line that changes on a terminal, else a
                                     line for each change of state or phase and each tenth of the steps
"""

import sys
from collections.abc import Iterable

from metanas_client.job_status import JobStatus

_CLEAR_LINE = "\r\x1b[K"


def job_line(status: JobStatus) -> str:
    """A job in one line."""
    return f"{status.job_id}  {status.state:<9}  {_how_far(status)}"


def _how_far(status: JobStatus) -> str:
    if status.state == "queued":
        return f"{status.queue_position} before it in the queue"
    if status.task is not None:
        return f"task {status.task.task_id} in {status.running_seconds:.1f} s"
    if status.error_message:
        return status.error_message
    if status.progress is None:
        return "before its first step"
    progress = status.progress
    return (
        f"step {progress.step} of {progress.steps}, {progress.phase}: loss {progress.loss:.3f}, "
        f"temperature {progress.temperature:.2f}, support accuracy {progress.support_accuracy:.1%}"
        + (f", {status.parameter_count:,} parameters" if status.parameter_count else "")
    )


def print_progress(statuses: Iterable[JobStatus]) -> None:
    """Tell how a job gets on until its statuses end."""
    on_terminal = sys.stderr.isatty()
    told: object = None
    for status in statuses:
        if on_terminal:
            print(f"{_CLEAR_LINE}{job_line(status)}", end="", file=sys.stderr, flush=True)
        elif (stage := _stage(status)) != told:
            told = stage
            print(job_line(status), file=sys.stderr, flush=True)
    if on_terminal:
        print(file=sys.stderr)


def _stage(status: JobStatus) -> object:
    progress = status.progress
    place = None if progress is None else (progress.phase, 10 * progress.step // max(1, progress.steps))
    return status.state, status.queue_position, place
