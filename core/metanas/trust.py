"""How far an answer can be trusted: three signals from the support set alone.

    leave_one_out    support features      ->  each image scored by prototypes that have not seen it
    calibrate        those scores          ->  the temperature that makes probabilities honest
    measure          a whole task          ->  Trust
    similarity       logits                ->  how much an image resembles the class it resembles most

An image that is left out is like a new image of a known class: how often it is classified right,
how sure of it the scores may be, and how similar to its class a known image is. It needs two images
of a class, so a task of single shots has no such accuracy, keeps temperature 1, and takes its
threshold from the meta-model where that has one.

Logits are cosines times the length of the head's rows, so the largest logit over that length is a
similarity; what resembles no class has a small one. The features are those that the
task began with: later ones have learned the very images that are left out, and would promise what they
cannot keep. Where the steps improve a task much, its accuracy is better than this says.

Sources: temperature scaling, Guo et al., arXiv 1706.04599; the largest logit as a score of what is known,
Vaze et al., arXiv 2110.06207.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from metanas.errors import InvalidConfigError
from metanas.head import Head

KNOWN_QUANTILE = 0.05
"""Of the images that are left out, the fraction that lies under the threshold."""
PRIOR_DEVIATION = 0.5
"""Of the logarithm of the temperature, before any image is seen: a few right answers prove little."""
_GRID = 241
_LOG_RANGE = math.log(10.0)


@dataclass(frozen=True, slots=True)
class Trust:
    """What a task model knows of its own reliability.

    Raises:
        InvalidConfigError: a temperature that is not above 0 and finite.
    """

    temperature: float = 1.0
    """Logits are divided by it before the softmax."""
    leave_one_out_accuracy: float | None = None
    """Over the images of classes with two shots or more; None: there is no such class."""
    least_similarity: float | None = None
    """An image that is less similar to all classes is none of them; None: unknown."""
    head_scale: float | None = None
    """What the largest logit is divided by for a similarity; None: unknown."""

    def __post_init__(self) -> None:
        if not (isinstance(self.temperature, float) and 0 < self.temperature < math.inf):
            raise InvalidConfigError(f"a temperature must be above 0 and finite, got {self.temperature!r}")
        scale = self.head_scale
        if scale is not None and not (isinstance(scale, float) and 0 < scale < math.inf):
            raise InvalidConfigError(f"a head_scale must be above 0 and finite, or None, got {scale!r}")
        for name in ("leave_one_out_accuracy", "least_similarity"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, float) and -2 <= value <= 2):
                raise InvalidConfigError(f"{name} must be a fraction, a cosine, or None, got {value!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return asdict(self)


def similarity(logits: Tensor, head_scale: float) -> Tensor:
    """Cosine similarity of each image to the class it resembles most.

    Args:
        logits: ``(images, n_way)``.
        head_scale: ``length_of_rows`` of the head that made them.

    Returns:
        ``(images,)``, about -1 to 1.
    """
    return logits.max(dim=1).values / head_scale


def length_of_rows(head: Head) -> float:
    """Mean length of a head's rows: what a cosine is multiplied by."""
    return float(head.weight.detach().norm(dim=1).mean())


def leave_one_out(features: Tensor, labels: Tensor, *, n_way: int, scale: float) -> tuple[Tensor, Tensor]:
    """Score each image of a class of two shots or more by prototypes made without it.

    Args:
        features: ``(images, features)`` float32.
        labels: int64 ``(images,)``.
        scale: what the cosine is multiplied by.

    Returns:
        Logits ``(left out, n_way)`` and labels ``(left out,)``; empty where all classes have one shot.
    """
    unit = functional.normalize(features, dim=1)
    membership = functional.one_hot(labels, n_way).to(unit.dtype)
    sums, shots = membership.T @ unit, membership.sum(dim=0)
    left_out = shots[labels] >= 2
    unit, labels = unit[left_out], labels[left_out]
    cosines = unit @ functional.normalize(sums, dim=1).T
    own = functional.normalize(sums[labels] - unit, dim=1)
    cosines[torch.arange(len(labels)), labels] = (unit * own).sum(dim=1)
    return scale * cosines, labels


def calibrate(logits: Tensor, labels: Tensor) -> float:
    """The temperature under which the labels are most probable, drawn towards 1 where there are few.

    Args:
        logits: ``(images, n_way)`` of images that the classifier has not seen.
        labels: int64 ``(images,)``.

    Returns:
        Of a grid over 0.1..10; 1 for no image.
    """
    if len(labels) == 0:
        return 1.0
    log_temperatures = torch.linspace(-_LOG_RANGE, _LOG_RANGE, _GRID, dtype=torch.float64)
    scaled = logits.double() / log_temperatures.exp().view(-1, 1, 1)
    log_probabilities = scaled.log_softmax(dim=2)[:, torch.arange(len(labels)), labels]
    surprise = -log_probabilities.sum(dim=1) + 0.5 * (log_temperatures / PRIOR_DEVIATION).square()
    return float(log_temperatures[surprise.argmin()].exp())


@torch.no_grad()
def measure(features: Tensor, labels: Tensor, head: Head, *, known_similarity: float | None = None) -> Trust:
    """The signals of a task.

    Args:
        features: of its support set before the first step, ``(images, features)``.
        labels: int64 ``(images,)``.
        head: of the finished network.
        known_similarity: the threshold where no class has two shots: the meta-model's, of single shots.
    """
    scale = length_of_rows(head)
    logits, left = leave_one_out(features, labels, n_way=len(head.bias), scale=scale)
    if len(left) == 0:
        return Trust(least_similarity=known_similarity, head_scale=scale)
    return Trust(
        temperature=calibrate(logits, left),
        leave_one_out_accuracy=float((logits.argmax(dim=1) == left).double().mean()),
        least_similarity=float(torch.quantile(similarity(logits, scale), KNOWN_QUANTILE, interpolation="lower")),
        head_scale=scale,
    )
