"""The support set of a request, in one message or in pieces.

    read_support      AdaptRequest      ->  Support: prepared images, labels, class names, warnings
    upload_support    pieces of one     ->  the same
    more_support      UpdateTaskRequest, the task's support set  ->  both together
    request_digest    a support set, seed, options  ->  what tells whether a request is the same

All that makes a support set learnable is checked here or in ``images``; messages count images from 0
within their class, as the caller's list does. Of a piece nothing but its prepared pixels is kept.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metanas.model import TaskModel
from metanas.preprocessing import Preprocessing
from metanas_proto.v1 import few_shot_pb2 as pb
from metanas_serving.errors import InvalidRequestError
from metanas_serving.images import Pixels, read_image

# Every answer to every image carries every name.
MAX_LABEL_CHARACTERS = 256

_SHOWN_CHARACTERS = 60
_SHOWN_LABELS = 5


@dataclass(frozen=True, slots=True)
class SupportLimits:
    """What one support set may have, all its pieces and versions together."""

    max_images: int
    max_classes: int


@dataclass(frozen=True, slots=True)
class Support:
    """A support set as it came in, prepared."""

    images: NDArray[np.uint8]
    """``(images, channels, height, width)``, class after class."""
    labels: tuple[int, ...]
    """Class number of each image."""
    class_names: tuple[str, ...]
    """In the request's order."""
    warnings: tuple[str, ...]
    """What makes the task doubtful."""


def read_support(
    request: pb.AdaptRequest, preprocessing: Preprocessing, *, limits: SupportLimits, check: Callable[[], None]
) -> Support:
    """Check and prepare the support set of a request.

    Args:
        check: called before each image is decoded; raises if the work is not wanted any more.

    Raises:
        InvalidRequestError: it cannot be learned; the message names the class or image.
    """
    _check_classes([(group.label, len(group.images)) for group in request.support])
    return upload_support([request], preprocessing, limits=limits, check=check)


def upload_support(
    pieces: Iterable[pb.AdaptRequest], preprocessing: Preprocessing, *, limits: SupportLimits, check: Callable[[], None]
) -> Support:
    """Check and prepare a support set in pieces, each when it comes.

    Raises:
        InvalidRequestError: it cannot be learned; the message names the class or image.
    """
    return _gathered({}, pieces, preprocessing, limits=limits, check=check)


def more_support(
    request: pb.UpdateTaskRequest, task: TaskModel, *, limits: SupportLimits, check: Callable[[], None]
) -> Support:
    """Check and prepare what a request adds to the support set of a task; the task's comes first.

    Raises:
        InvalidRequestError: it cannot be learned; the message names the class or image.
    """
    if not any(group.images for group in request.support):
        raise InvalidRequestError("no images: support is empty; send at least one image of any class, old or new")
    classes: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in task.class_names}
    for image, label in zip(task.support.images.numpy(), task.support.labels.tolist(), strict=True):
        classes[task.class_names[label]].append(image)
    piece = pb.AdaptRequest(support=request.support)
    return _gathered(classes, [piece], task.preprocessing, limits=limits, check=check)


def _gathered(
    classes: dict[str, list[NDArray[np.uint8]]],
    pieces: Iterable[pb.AdaptRequest],
    preprocessing: Preprocessing,
    *,
    limits: SupportLimits,
    check: Callable[[], None],
) -> Support:
    """Add pieces to images by class; what is there already is not counted in the names of images."""
    before = {label: len(images) for label, images in classes.items()}
    pixels = Pixels()
    for piece in pieces:
        count = sum(map(len, classes.values())) + sum(len(group.images) for group in piece.support)
        if count > limits.max_images:
            raise InvalidRequestError(
                f"{count} support images, this server takes at most {limits.max_images} (--max-support-images); "
                "send fewer"
            )
        labels = len(classes.keys() | {group.label for group in piece.support})
        if labels > limits.max_classes:
            raise InvalidRequestError(
                f"{labels} classes, this server takes at most {limits.max_classes} (--max-classes); send fewer"
            )
        for group in piece.support:
            images = classes.setdefault(group.label, [])
            for image in group.images:
                check()
                where = _name(group.label, len(images) - before.get(group.label, 0))
                images.append(read_image(image, preprocessing, where=where, pixels=pixels))
    _check_classes([(label, len(pixels)) for label, pixels in classes.items()])
    return Support(
        images=np.stack([image for pixels in classes.values() for image in pixels]),
        labels=tuple(number for number, pixels in enumerate(classes.values()) for _ in pixels),
        class_names=tuple(classes),
        warnings=tuple(_same_pixels(classes)),
    )


def request_digest(support: Support, *, seed: int, options: pb.AdaptOptions) -> str:
    """SHA-256 in hexadecimal over all that decides what is learnt, however it was sent."""
    facts = {
        "class_names": support.class_names,
        "labels": support.labels,
        "shape": support.images.shape,
        "seed": seed,
        "options": {field.name: value for field, value in options.ListFields()},
    }
    digest = hashlib.sha256(json.dumps(facts).encode())
    digest.update(support.images.tobytes())
    return digest.hexdigest()


def _check_classes(classes: Sequence[tuple[str, int]]) -> None:
    """Check labels and numbers of images."""
    if not classes:
        raise InvalidRequestError("no images: support is empty; send at least two classes with an image each")
    labels = [label for label, _ in classes]
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
    without = [_quoted(label) for label, count in classes if not count]
    if without:
        raise InvalidRequestError(
            f"no image for class {_some(without)}; give every class at least one image or leave the class out"
        )


def _same_pixels(classes: dict[str, list[NDArray[np.uint8]]]) -> Iterable[str]:
    places: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for label, pixels in classes.items():
        for index, image in enumerate(pixels):
            places[image.tobytes()].append((label, index))
    for members in places.values():
        other = next((place for place in members if place[0] != members[0][0]), None)
        if other is not None:
            yield (
                f"{_name(*members[0])} and {_name(*other)} are the same once prepared; "
                "no answer can be right for both, so check their labels"
            )


def _name(label: str, index: int) -> str:
    return f"image {index} of class {_quoted(label)}"


def _quoted(label: str) -> str:
    """A label for a message: in double quotes, on one line, not long."""
    shown = label if len(label) <= _SHOWN_CHARACTERS else label[:_SHOWN_CHARACTERS] + "..."
    return json.dumps(shown, ensure_ascii=False)


def _some(quoted: Sequence[str]) -> str:
    more = len(quoted) - _SHOWN_LABELS
    return ", ".join(quoted[:_SHOWN_LABELS]) + (f" and {more} more" if more > 0 else "")
