"""The contract's messages to values of the core, and back.

    read_images       Images            ->  prepared images
    task_message      TaskFacts         ->  Task
    job_message       JobView           ->  AdaptJob
    add_classifications   Answers       ->  Classification, most probable first

Pure functions. All that is checked about a request is checked here, in ``support``, ``options`` or
``images``; messages count images from 0, as the caller's list does.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from metanas.preprocessing import Preprocessing
from metanas.progress import StepReport
from metanas.space import CellGenotype, Genotype
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.engine import Answers
from metanas_serving.errors import InvalidRequestError
from metanas_serving.facts import TaskFacts
from metanas_serving.images import Pixels, read_image
from metanas_serving.job import JobView, State
from metanas_serving.status import status_of
from metanas_serving.work import Pruned


def read_images(
    images: Sequence[pb.Image], preprocessing: Preprocessing, *, max_images: int, check: Callable[[], None]
) -> NDArray[np.uint8]:
    """Check and prepare the images of a request, uint8 ``(images, channels, height, width)``.

    Args:
        check: called before each image is decoded; raises if the work is not wanted any more.

    Raises:
        InvalidRequestError: none, too many, or one that cannot be used; the message names it.
    """
    check_image_count(len(images), max_images)
    prepared, pixels = [], Pixels()
    for index, image in enumerate(images):
        check()
        prepared.append(read_image(image, preprocessing, where=f"image {index}", pixels=pixels))
    return np.stack(prepared) if len(prepared) > 1 else prepared[0][np.newaxis]


def check_image_count(count: int, max_images: int) -> None:
    """Return if a call may bring so many images to classify, or raise ``InvalidRequestError``."""
    if not count:
        raise InvalidRequestError("no images to classify; send at least one")
    if count > max_images:
        raise InvalidRequestError(
            f"{count} images, this server takes at most {max_images} a call (--max-classify-images); "
            "send them in several calls"
        )


def check_task_id(task_id: str) -> str:
    """Return the id of a request, or raise ``InvalidRequestError`` if there is none."""
    if not task_id:
        raise InvalidRequestError("task_id is empty; send the task_id that Adapt answered")
    return task_id


def task_message(facts: TaskFacts) -> pb.Task:
    """Describe a task in the contract's words."""
    report, preprocessing, server = facts.report, facts.preprocessing, facts.server
    return pb.Task(
        task_id=server.task_id,
        class_names=facts.class_names,
        genotype=_genotype(facts.genotype),
        parameter_count=report.parameter_count,
        one_shot_parameter_count=report.one_shot_parameter_count,
        architecture_steps=report.architecture_steps,
        weight_steps=report.weight_steps,
        support_accuracy=report.support_accuracy,
        adapt_seconds=server.adapt_seconds,
        created_unix_seconds=server.created_unix_seconds,
        support_image_count=facts.support_image_count,
        preprocessing=pb.Preprocessing(
            channels=preprocessing.channels,
            height=preprocessing.height,
            width=preprocessing.width,
            invert=preprocessing.invert,
        ),
        warnings=server.warnings,
        settings=_settings(facts),
        version=server.version,
        parent_task_id=server.parent_task_id,
        first_task_id=facts.first_task_id,
        budget=None if report.budget is None else pb.BudgetReport(**dataclasses.asdict(report.budget)),
        expires_unix_seconds=server.expires_unix_seconds,
        trust=pb.Trust(
            temperature=facts.trust.temperature,
            leave_one_out_accuracy=facts.trust.leave_one_out_accuracy,
            least_similarity=facts.trust.least_similarity,
        ),
    )


def _settings(facts: TaskFacts) -> pb.AdaptSettings | None:
    schedule = facts.schedule
    if schedule is None:
        return None
    return pb.AdaptSettings(
        architecture_steps=schedule.architecture_steps,
        weight_steps=schedule.weight_steps,
        learning_rate=schedule.learning_rate,
        architecture_learning_rate=schedule.architecture_learning_rate,
        threshold=schedule.threshold,
        seed=facts.report.seed,
    )


def job_message(view: JobView) -> pb.AdaptJob:
    """Describe a job in the contract's words."""
    return pb.AdaptJob(
        job_id=view.job_id,
        state=_STATES[view.state],
        queue_position=view.position,
        progress=None if view.step is None else _progress(view.step),
        pruned=None if view.pruned is None else _pruned(view.pruned),
        task=None if view.facts is None else task_message(view.facts),
        error=None if view.error is None else _error(view.error),
        created_unix_seconds=view.created_unix_seconds,
        queued_seconds=view.queued_seconds,
        running_seconds=view.running_seconds,
    )


_STATES = {
    State.QUEUED: pb.AdaptJob.STATE_QUEUED,
    State.RUNNING: pb.AdaptJob.STATE_RUNNING,
    State.SUCCEEDED: pb.AdaptJob.STATE_SUCCEEDED,
    State.FAILED: pb.AdaptJob.STATE_FAILED,
    State.CANCELLED: pb.AdaptJob.STATE_CANCELLED,
}
_PHASES = {"architecture": pb.AdaptProgress.PHASE_ARCHITECTURE, "weights": pb.AdaptProgress.PHASE_WEIGHTS}


def _progress(step: StepReport) -> pb.AdaptProgress:
    return pb.AdaptProgress(
        phase=_PHASES[step.phase],
        step=step.step,
        steps=step.steps,
        loss=step.loss,
        temperature=step.temperature,
        support_accuracy=step.accuracy,
    )


def _pruned(pruned: Pruned) -> pb.Pruned:
    return pb.Pruned(genotype=_genotype(pruned.genotype), parameter_count=pruned.parameter_count)


def _error(error: Exception) -> pb.JobError:
    code, text = status_of(error)
    number: int = code.value[0]  # what the stubs leave out
    return pb.JobError(code=number, message=text)


def _genotype(genotype: Genotype) -> pb.Genotype:
    return pb.Genotype(normal=_cell(genotype.normal), reduction=_cell(genotype.reduction))


def _cell(cell: CellGenotype) -> pb.CellGenotype:
    return pb.CellGenotype(
        nodes=[
            pb.NodeGenotype(
                inputs=[
                    pb.EdgeOperation(input=edge.source, operation=edge.operation, weight=edge.weight) for edge in node
                ]
            )
            for node in cell
        ]
    )


def add_classifications(
    response: pb.ClassifyResponse, answers: Answers, class_names: Sequence[str], *, top_k: int
) -> None:
    """Name and order the probabilities of each image; equal ones stay in the task's order.

    Args:
        response: gets a classification for each image; half the time of messages that are made first and then copied.
        top_k: at most so many classes; 0: all.
    """
    probabilities = answers.probabilities
    orders = np.argsort(-probabilities, axis=1, kind="stable")[:, : top_k or None].tolist()
    rows = probabilities.tolist()
    similarities = [None] * len(rows) if answers.similarities is None else answers.similarities.tolist()
    unknown = [None] * len(rows) if answers.none_of_these is None else answers.none_of_these.tolist()
    for row, order, similarity, is_unknown in zip(rows, orders, similarities, unknown, strict=True):
        add = response.classifications.add(similarity=similarity, none_of_these=is_unknown).classes.add
        for column in order:
            add(class_name=class_names[column], probability=row[column])
