"""Does a file answer as torch does? On the task's own pictures, and on others, not on noise.

    support_set, picture_set   task           ->  ImageSet: inputs, classes, and torch's scores
    judge        set, a way to score it       ->  Agreement with torch
    compare      task, ONNX bytes             ->  Agreement of torch with ONNX Runtime, and of
                                                  ONNX Runtime with itself, one picture at a time
    require      agreement                    ->  nothing, or an error that says what differs
    table        agreements                   ->  text

An answer is a class, so what counts first is that every image gets the same one. Two classes whose
torch scores are within ``TIE`` of each other are one answer: rounding decides between them. In
fp32 the scores themselves have a limit too; in other precisions they are only shown.

It knows nothing of files, formats and TensorRT.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metanas.model import TaskModel
from metanas.preprocessing import scale
from metanas_export.builder import Precision
from metanas_export.errors import DisagreementError, ExportError
from metanas_export.pictures import Pictures
from metanas_export.running import BATCH, Run, Scores, in_batches, session

TIE = 1e-4
"""Scores this close, in logits, are a tie."""
LEAST_AGREEMENT: dict[Precision, float] = {"fp32": 0.995, "fp16": 0.995, "bf16": 0.995, "int8": 0.98}
"""Fraction of images that must get the same class."""
FP32_DIFFERENCE = 1e-3
"""Largest difference of a score in fp32, as a fraction of the largest score (at least of 1).
Rounding alone makes 1e-5 where a channel hardly varies over the support set."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images to compare on."""

    name: str
    inputs: NDArray[np.float32]
    """``(images, channels, height, width)``, scaled."""
    labels: NDArray[np.int64]
    """The classes that are right."""
    reference: Scores
    """Torch's logits, ``(images, classes)``."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two ways to score the same images agree."""

    what: str
    """The two ways, for people."""
    images: int
    same_class: int
    """Images that get the same class, ties included."""
    largest_difference: float
    """Of all logits."""
    mean_difference: float
    largest_score: float
    """Largest absolute logit of the first of the two: what the differences compare with."""
    accuracy: float | None = None
    """Fraction of images that the second of the two gives the right class; None: not known."""


def support_set(task: TaskModel) -> ImageSet:
    """The images that the task was learned from.

    Raises:
        ExportError: torch itself gives scores that are not finite.
    """
    return _image_set(task, "support images", images=task.support.images, labels=task.support.labels)


def picture_set(task: TaskModel, pictures: Pictures) -> ImageSet:
    """Images of ``--verify``.

    Raises:
        ExportError: torch itself gives scores that are not finite.
    """
    return _image_set(task, "verify images", images=pictures.images, labels=pictures.labels)


def _image_set(task: TaskModel, name: str, *, images: Tensor, labels: Tensor) -> ImageSet:
    reference = in_batches(lambda part: task.logits(part).numpy(), images)
    broken = int((~np.isfinite(reference)).any(axis=1).sum())
    if broken:
        raise ExportError(
            f"torch itself gives NaN or infinity for {broken} of {len(images)} {name}; "
            "the task model is no use: adapt the task again"
        )
    return ImageSet(name, scale(images, task.preprocessing).numpy(), labels.numpy(), reference)


def judge(run: Run, images: ImageSet, *, what: str, max_batch: int | None = None) -> Agreement:
    """Score a set another way, and compare with torch.

    Args:
        what: the other way, for people.
        max_batch: the most images that ``run`` takes at once; None: any number.
    """
    scores = in_batches(run, images.inputs, size=min(max_batch or BATCH, BATCH))
    return agreement(images.reference, scores, what=f"torch / {what}", labels=images.labels)


def compare(task: TaskModel, onnx_model: bytes, *, precision: Precision = "fp32") -> list[Agreement]:
    """Score the support images of a task with torch and with ONNX Runtime.

    Args:
        onnx_model: the content of the ``.onnx`` file of this task; not of bfloat16.
        precision: only named in the result.

    Returns:
        Torch against ONNX Runtime in one batch; ONNX Runtime in one batch against one image at a time.

    Raises:
        RuntimeMissingError: ONNX Runtime is not installed.
        ExportError: torch itself gives scores that are not finite.
    """
    run = session(onnx_model)
    images = support_set(task)
    name = f"ONNX Runtime {precision}"
    return [judge(run, images, what=name), batch_of_one(run, images, what=name)]


def batch_of_one(run: Run, images: ImageSet, *, what: str) -> Agreement:
    """Compare a way to score with itself on some of the images: all of these at once, and each alone."""
    chosen = np.linspace(0, len(images.inputs) - 1, min(len(images.inputs), BATCH)).round().astype(int)
    inputs, labels = images.inputs[chosen], images.labels[chosen]
    return agreement(run(inputs), in_batches(run, inputs, size=1), what=f"{what}: batch / one by one", labels=labels)


def agreement(reference: Scores, other: Scores, *, what: str, labels: NDArray[np.int64] | None = None) -> Agreement:
    """Compare two ``(images, classes)`` score arrays; NaN agrees with nothing."""
    rows = np.arange(len(reference))
    # argmax calls NaN the largest; then, and in a NaN of the reference, the comparison is false.
    chosen = other.argmax(axis=1)
    same = reference[rows, chosen] >= reference.max(axis=1) - TIE
    same &= np.isfinite(other).all(axis=1)
    difference = np.abs(reference.astype(np.float64) - other)
    return Agreement(
        what=what,
        images=len(reference),
        same_class=int(same.sum()),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        largest_score=float(np.abs(reference).max()),
        accuracy=None if labels is None else float((chosen == labels).mean()),
    )


def require(found: Agreement, *, precision: Precision, least: float | None = None) -> None:
    """Refuse an agreement that is too small.

    Args:
        least: fraction of images that must get the same class; None: ``LEAST_AGREEMENT``.

    Raises:
        DisagreementError: too many images get another class, or in fp32 a score differs too much.
    """
    least = LEAST_AGREEMENT[precision] if least is None else least
    if found.same_class < least * found.images:
        raise DisagreementError(
            f"{found.what}: {found.same_class} of {found.images} images get the same class, "
            f"at least {least:.1%} must; {_remedy(precision)}"
        )
    limit = FP32_DIFFERENCE * max(1.0, found.largest_score)
    if precision == "fp32" and not found.largest_difference <= limit:
        raise DisagreementError(
            f"{found.what}: a score differs by {found.largest_difference:.2g}, at most {limit:.2g} may; "
            f"{_remedy(precision)}"
        )


def _remedy(precision: Precision) -> str:
    if precision == "fp32":
        return "this is a bug of the export: report it with the task model"
    return "export with --precision fp32, or lower --min-agreement"


def table(agreements: Sequence[Agreement], *, title: str = "check on the support images") -> str:
    """The agreements as aligned text, one row each."""
    rows = [(title, "images", "same class", "accuracy", "largest difference", "mean difference")]
    rows += [
        (
            row.what,
            str(row.images),
            f"{row.same_class / row.images:.1%}",
            "" if row.accuracy is None else f"{row.accuracy:.1%}",
            f"{row.largest_difference:.2e}",
            f"{row.mean_difference:.2e}",
        )
        for row in agreements
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )
