"""One task in one format and precision, against torch, image by image.

    Agreement    what was found
    Missing      why there is nothing to find: the format does not have the precision
    agree        task, its model in a precision, format  ->  one of the two

A file is written and opened by its runtime, as a user's is. Scores are compared where it counts: on
images of the task's classes that it has not seen. Equal is equal: a class is the largest score, and no
ties are let pass.

ONNX Runtime's CPU provider has no bfloat16 convolution; there the graph is run in float32 with every
value rounded to bfloat16 (``casting.emulate``), which says what the precision costs, not what a runtime does.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from exporting.tasks import Subject
from metanas.preprocessing import scale
from metanas_export import casting, running
from metanas_export.builder import Precision
from metanas_export.errors import FormatError
from metanas_export.formats import CONVERTED, Format, convert
from metanas_export.runtimes import open_model

Scores = NDArray[np.float32]
BATCH = 32
FORMATS: tuple[Format, ...] = ("onnx", *CONVERTED)
"""Those that run on any machine."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A task's images and what torch says of them."""

    images: Scores
    """float32 network input: the held-out images, then the support images."""
    scores: Scores
    """``(images, classes)``."""
    labels: NDArray[np.int64]
    """Of the held-out images, which come first."""

    @classmethod
    def of(cls, subject: Subject) -> "Reference":
        """Scored by the task network on torch."""
        pixels = torch.cat([subject.query_images, subject.task.support.images])
        images: Scores = scale(pixels, subject.task.preprocessing).numpy()
        return cls(images, subject.task.logits(pixels).numpy(), subject.query_labels.numpy())

    @property
    def accuracy(self) -> float:
        """Of torch, on the held-out images."""
        return _accuracy(self.scores, self.labels)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one file of one task answers."""

    task: str
    form: Format
    precision: Precision
    images: int
    """Held-out images."""
    same_class: float
    """Fraction of them that get torch's class."""
    same_class_of_support: float
    """The same of the support images."""
    largest_difference: float
    """Of a score of all these images, as a fraction of torch's largest score."""
    accuracy: float
    """On the held-out images."""
    torch_accuracy: float


@dataclass(frozen=True, slots=True)
class Missing:
    """A format that does not have a precision."""

    form: Format
    precision: Precision
    reason: str


def agree(
    subject: Subject, reference: Reference, *, model: onnx.ModelProto, form: Format, precision: Precision
) -> Agreement | Missing:
    """Write a task in a format, run it, and compare.

    Args:
        model: the task's ONNX model in ``precision``.
    """
    images, torchs, held_out = reference.images, reference.scores, len(reference.labels)
    try:
        run = _open(subject, model, form=form, precision=precision)
    except FormatError as error:
        return Missing(form, precision, str(error))
    scores = np.concatenate([run(images[first : first + BATCH]) for first in range(0, len(images), BATCH)])
    if not np.isfinite(scores).all():
        raise SystemExit(f"{subject.name} as {form} {precision} gives NaN or infinity")
    same = scores.argmax(axis=1) == torchs.argmax(axis=1)
    return Agreement(
        task=subject.name,
        form=form,
        precision=precision,
        images=held_out,
        same_class=float(same[:held_out].mean()),
        same_class_of_support=float(same[held_out:].mean()),
        largest_difference=float(np.abs(scores.astype(np.float64) - torchs).max() / np.abs(torchs).max()),
        accuracy=_accuracy(scores, reference.labels),
        torch_accuracy=reference.accuracy,
    )


def _open(subject: Subject, model: onnx.ModelProto, *, form: Format, precision: Precision) -> running.Run:
    if form == "onnx":
        if precision == "bf16":
            return running.session(casting.emulate(model).SerializeToString(), as_written=True)
        return running.session(model.SerializeToString())
    contents = convert(form, subject.task, model=model, precision=precision, max_batch=BATCH)
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"model{suffix}" for suffix in contents]
        for path, content in zip(paths, contents.values(), strict=True):
            path.write_bytes(content)
        return open_model(form, paths[0])


def _accuracy(scores: Scores, labels: NDArray[np.int64]) -> float:
    return float((scores[: len(labels)].argmax(axis=1) == labels).mean())
