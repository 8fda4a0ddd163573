"""What a user asks to be learnt, as the contract has it.

    AdaptOptions    how a task is learnt, where that is not as the meta-model says
    adapt_request   support images by class name, seed, options, key  ->  proto AdaptRequest
    pieces          a request  ->  requests of at most some bytes, for an upload

What makes a support set learnable is the server's to say: this refuses only what cannot be put into a
message.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from metanas_client.content import ImageLike
from metanas_client.errors import InvalidRequestError
from metanas_client.images import encode_images
from metanas_proto.v1 import few_shot_pb2 as pb

MAX_PIECE_BYTES = 512 * 1024
"""Of a request that goes in one message; a larger one goes in pieces."""

_MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class AdaptOptions:
    """How a task is learnt; None: as the meta-model says. The server has limits."""

    architecture_steps: int | None = None
    """Gradient steps on weights and architecture."""
    weight_steps: int | None = None
    """Gradient steps on the weights of the pruned network."""
    learning_rate: float | None = None
    """Of the weights."""
    architecture_learning_rate: float | None = None
    threshold: float | None = None
    """Operations and inputs of a smaller weight are pruned."""
    max_parameters: int | None = None
    """Of the task network, head included; the search chooses an architecture that fits."""
    max_multiply_adds: int | None = None
    """Of the task network, for one image."""
    ttl_seconds: float | None = None
    """How long the task is kept once it is learnt, unless it has an alias then; 0: for good."""


def adapt_request(
    support: Mapping[str, Iterable[ImageLike]], *, seed: int, options: AdaptOptions | None, idempotency_key: str
) -> pb.AdaptRequest:
    """Put a support set into a message.

    Raises:
        UnsupportedImageError: one bare image, or something that is no image.
        InvalidRequestError: something that has no place in the message.
        OSError: a file that cannot be read.
    """
    if not isinstance(support, Mapping):
        raise InvalidRequestError(
            f"support is a {type(support).__name__}; pass a dict of class names and their images: "
            '{"cat": [images], "dog": [images]}'
        )
    if not 0 <= seed <= _MAX_SEED:
        raise InvalidRequestError(f"seed must be in 0..2**64 - 1, got {seed}")
    for name in support:
        if not isinstance(name, str):
            raise InvalidRequestError(f"a class name is {name!r}, a {type(name).__name__}; pass str({name!r})")
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(f"class name {name!a} is not valid Unicode; rename the class") from error
    return pb.AdaptRequest(
        support=[
            pb.LabelledImages(label=name, images=encode_images(images, where=f"class {name!r}"))
            for name, images in support.items()
        ],
        seed=seed,
        options=None if options is None else _message(options),
        idempotency_key=idempotency_key,
    )


def _message(options: AdaptOptions) -> pb.AdaptOptions:
    asked = {name: value for name, value in asdict(options).items() if value is not None}
    try:
        return pb.AdaptOptions(**asked)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(
            f"an option cannot be sent: {error}; steps are 0 or more, rates are floats"
        ) from error


def pieces(request: pb.AdaptRequest) -> Iterator[pb.AdaptRequest]:
    """Cut a request into pieces of at most ``MAX_PIECE_BYTES``, or of one image."""
    piece = pb.AdaptRequest(seed=request.seed, idempotency_key=request.idempotency_key)
    if request.HasField("options"):
        piece.options.CopyFrom(request.options)
    size = piece.ByteSize()
    for group in request.support:
        piece.support.add(label=group.label)
        for image in group.images:
            if size and size + image.ByteSize() > MAX_PIECE_BYTES:
                yield piece
                piece, size = pb.AdaptRequest(support=[pb.LabelledImages(label=group.label)]), 0
            piece.support[-1].images.append(image)
            size += image.ByteSize()
    piece.is_last = True
    yield piece
