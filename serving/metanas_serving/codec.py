"""The contract's messages to values of the core, and back.

    read_support      AdaptRequest      ->  prepared images, labels, class names, warnings
    read_images       ClassifyRequest   ->  prepared images
    task_message      TaskFacts         ->  Task
    classifications   probabilities     ->  Classification, most probable first

Pure functions. All that is checked about a request is checked here or in ``images``; messages
count images from 0, as the caller's list does.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metanas.preprocessing import Preprocessing
from metanas.space import CellGenotype
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.errors import InvalidRequestError
from metanas_serving.facts import TaskFacts
from metanas_serving.images import read_image

# Every answer to every image carries every name.
MAX_LABEL_CHARACTERS = 256

_SHOWN_CHARACTERS = 60
_SHOWN_LABELS = 5


@dataclass(frozen=True, slots=True)
class Support:
    """A support set as it came in, prepared."""

    images: NDArray[np.uint8]
    """``(images, channels, height, width)``."""
    labels: tuple[int, ...]
    """Class number of each image."""
    class_names: tuple[str, ...]
    """In the request's order."""
    warnings: tuple[str, ...]
    """What makes the task doubtful."""


def read_support(
    request: pb.AdaptRequest, preprocessing: Preprocessing, *, max_images: int, check: Callable[[], None]
) -> Support:
    """Check and prepare the support set of a request.

    Args:
        check: called before each image is decoded; raises if the work is not wanted any more.

    Raises:
        InvalidRequestError: it cannot be learned; the message names the class or image.
    """
    _check_labels([group.label for group in request.support])
    without = [_quoted(group.label) for group in request.support if not group.images]
    if without:
        raise InvalidRequestError(
            f"no image for class {_some(without)}; give every class at least one image or leave the class out"
        )
    count = sum(len(group.images) for group in request.support)
    if count > max_images:
        raise InvalidRequestError(
            f"{count} support images, this server takes at most {max_images} (--max-support-images); send fewer"
        )
    places = [(label, index) for label, group in enumerate(request.support) for index in range(len(group.images))]
    names = [f"image {index} of class {_quoted(request.support[label].label)}" for label, index in places]
    pixels = []
    for (label, index), name in zip(places, names, strict=True):
        check()
        pixels.append(read_image(request.support[label].images[index], preprocessing, where=name))
    labels = tuple(label for label, _ in places)
    return Support(
        images=np.stack(pixels),
        labels=labels,
        class_names=tuple(group.label for group in request.support),
        warnings=tuple(_same_pixels(pixels, labels, names=names)),
    )


def _check_labels(labels: Sequence[str]) -> None:
    if not labels:
        raise InvalidRequestError("no images: support is empty; send at least two classes with an image each")
    for index, label in enumerate(labels):
        if not label.strip():
            raise InvalidRequestError(f"the label of class {index} is empty ({label!r}); give every class a name")
        if len(label) > MAX_LABEL_CHARACTERS:
            raise InvalidRequestError(
                f"the label of class {index} has {len(label)} characters, at most {MAX_LABEL_CHARACTERS} are taken"
            )
    twice = [_quoted(label) for label, times in Counter(labels).items() if times > 1]
    if twice:
        raise InvalidRequestError(
            f"label {_some(twice)} more than once; put all images of a class under one label, once"
        )
    if len(labels) < 2:
        raise InvalidRequestError(
            f"only one class, {_quoted(labels[0])}; a task needs at least two classes to tell apart"
        )


def _same_pixels(pixels: Sequence[NDArray[np.uint8]], labels: Sequence[int], *, names: Sequence[str]) -> Iterable[str]:
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, image in enumerate(pixels):
        groups[image.tobytes()].append(index)
    for members in groups.values():
        other = next((index for index in members if labels[index] != labels[members[0]]), None)
        if other is not None:
            yield (
                f"{names[members[0]]} and {names[other]} are the same once prepared; "
                "no answer can be right for both, so check their labels"
            )


def read_images(
    request: pb.ClassifyRequest, preprocessing: Preprocessing, *, max_images: int, check: Callable[[], None]
) -> NDArray[np.uint8]:
    """Check and prepare the images of a request, uint8 ``(images, channels, height, width)``.

    Args:
        check: called before each image is decoded; raises if the work is not wanted any more.

    Raises:
        InvalidRequestError: none, too many, or one that cannot be used; the message names it.
    """
    if not request.images:
        raise InvalidRequestError("no images to classify; send at least one")
    if len(request.images) > max_images:
        raise InvalidRequestError(
            f"{len(request.images)} images, this server takes at most {max_images} a call (--max-classify-images); "
            "send them in several calls"
        )
    pixels = []
    for index, image in enumerate(request.images):
        check()
        pixels.append(read_image(image, preprocessing, where=f"image {index}"))
    return np.stack(pixels)


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
        genotype=pb.Genotype(normal=_cell(facts.genotype.normal), reduction=_cell(facts.genotype.reduction)),
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
    )


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


def classifications(probabilities: NDArray[np.float32], class_names: Sequence[str]) -> list[pb.Classification]:
    """Name and order the probabilities of each image; equal ones stay in the task's order.

    Args:
        probabilities: float32 ``(images, classes)``.
    """
    orders = np.argsort(-probabilities, axis=1, kind="stable")
    return [
        pb.Classification(
            classes=[pb.ClassProbability(class_name=class_names[column], probability=row[column]) for column in order]
        )
        for row, order in zip(probabilities, orders, strict=True)
    ]


def _quoted(label: str) -> str:
    """A label for a message: in double quotes, on one line, not long."""
    shown = label if len(label) <= _SHOWN_CHARACTERS else label[:_SHOWN_CHARACTERS] + "..."
    return json.dumps(shown, ensure_ascii=False)


def _some(quoted: Sequence[str]) -> str:
    more = len(quoted) - _SHOWN_LABELS
    return ", ".join(quoted[:_SHOWN_LABELS]) + (f" and {more} more" if more > 0 else "")
