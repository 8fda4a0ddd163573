"""Does the ONNX file answer as torch does? On the task's own pictures, not on noise.

    compare      task model, ONNX bytes     ->  Agreement of torch with ONNX Runtime, and of
                                                ONNX Runtime with itself, one picture at a time
    table        agreements                 ->  text
    require      agreement                  ->  nothing, or an error that says what differs

An answer is a class, so what counts first is that every support image gets the same one. Two
classes whose torch scores are within ``TIE`` of each other are one answer: rounding decides
between them. In fp32 the scores themselves have a limit too; in fp16 they are only shown.

Runs on ONNX Runtime's CPU provider. There fp16 mostly means that weights and activations are
rounded to float16 while sums are kept in float32; a GPU may round more. Only this module
imports ONNX Runtime. It knows nothing of files and TensorRT.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metanas.model import TaskModel
from metanas.preprocessing import scale
from metanas_export.builder import Precision
from metanas_export.errors import DisagreementError, ExportError, RuntimeMissingError
from metanas_export.graph import INPUT_NAME, OUTPUT_NAME

Scores = NDArray[np.float32]

TIE = 1e-4
"""Scores this close, in logits, are a tie."""
LEAST_AGREEMENT: dict[Precision, float] = {"fp32": 1.0, "fp16": 0.995}
"""Fraction of support images that must get the same class."""
FP32_DIFFERENCE = 1e-3
"""Largest difference of a score in fp32, as a fraction of the largest score (at least of 1).
Rounding alone makes 1e-5 where a channel hardly varies over the support set."""


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


def compare(task: TaskModel, onnx_model: bytes, *, precision: Precision = "fp32") -> list[Agreement]:
    """Score the support images of a task with torch and with ONNX Runtime.

    Args:
        onnx_model: the content of the ``.onnx`` file of this task.
        precision: only named in the result.

    Returns:
        Torch against ONNX Runtime in one batch; ONNX Runtime in one batch against one image at a time.

    Raises:
        RuntimeMissingError: ONNX Runtime is not installed.
        ExportError: torch itself gives scores that are not finite.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissingError(
            f"ONNX Runtime is not installed ({error}), so the export cannot be checked; "
            'install it with: pip install "metanas-edge[cpu]"'
        ) from error
    session = onnxruntime.InferenceSession(onnx_model, providers=["CPUExecutionProvider"])

    def run(images: Scores) -> Scores:
        scores: Scores = session.run([OUTPUT_NAME], {INPUT_NAME: images})[0]
        return scores

    images = scale(task.support.images, task.preprocessing).numpy()
    torch_scores = task.logits(task.support.images).numpy()
    broken = int((~np.isfinite(torch_scores)).any(axis=1).sum())
    if broken:
        raise ExportError(
            f"torch itself gives NaN or infinity for {broken} of {len(images)} support images; "
            "the task model is no use: adapt the task again"
        )
    batch_scores = run(images)
    single_scores = np.concatenate([run(image[None]) for image in images])
    name = f"ONNX Runtime {precision}"
    return [
        agreement(torch_scores, batch_scores, what=f"torch / {name}"),
        agreement(batch_scores, single_scores, what=f"{name}: batch / one by one"),
    ]


def agreement(reference: Scores, other: Scores, *, what: str) -> Agreement:
    """Compare two ``(images, classes)`` score arrays; NaN agrees with nothing."""
    rows = np.arange(len(reference))
    # argmax calls NaN the largest; then, and in a NaN of the reference, the comparison is false.
    same = reference[rows, other.argmax(axis=1)] >= reference.max(axis=1) - TIE
    same &= np.isfinite(other).all(axis=1)
    difference = np.abs(reference.astype(np.float64) - other)
    return Agreement(
        what=what,
        images=len(reference),
        same_class=int(same.sum()),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        largest_score=float(np.abs(reference).max()),
    )


def require(found: Agreement, *, precision: Precision) -> None:
    """Refuse an agreement that is too small.

    Raises:
        DisagreementError: too many images get another class, or in fp32 a score differs too much.
    """
    least = LEAST_AGREEMENT[precision]
    if found.same_class < least * found.images:
        raise DisagreementError(
            f"{found.what}: {found.same_class} of {found.images} support images get the same class, "
            f"at least {least:.1%} must; {_remedy(precision)}"
        )
    limit = FP32_DIFFERENCE * max(1.0, found.largest_score)
    if precision == "fp32" and not found.largest_difference <= limit:
        raise DisagreementError(
            f"{found.what}: a score differs by {found.largest_difference:.2g}, at most {limit:.2g} may; "
            f"{_remedy(precision)}"
        )


def _remedy(precision: Precision) -> str:
    if precision == "fp16":
        return "export with --precision fp32"
    return "this is a bug of the export: report it with the task model"


def table(agreements: list[Agreement]) -> str:
    """The agreements as aligned text, one row each."""
    rows = [("check on the support images", "images", "same class", "largest difference", "mean difference")]
    rows += [
        (
            row.what,
            str(row.images),
            f"{row.same_class / row.images:.1%}",
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
