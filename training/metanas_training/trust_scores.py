"""Do a task's trust signals keep what they promise? Judged by images that it has not seen.

    score_trust         logits of known and of unknown images, Trust  ->  TrustScore
    calibration_error   confidence bins of many tasks                 ->  expected calibration error
    auroc               scores of two groups                          ->  how well they are told apart

Unknown images are of classes outside the task. Source of the calibration error, with its 15 bins:
Guo et al., arXiv 1706.04599, section 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metanas.trust import Trust, similarity

BINS = 15

Bins = tuple[tuple[float, float, float], ...]
"""For each of ``BINS`` ranges of confidence: images, the sum of their confidences, right answers."""


@dataclass(frozen=True, slots=True)
class TrustScore:
    """Of one task; fractions."""

    leave_one_out_accuracy: float | None
    """What the task itself promised."""
    temperature: float
    confidence: Bins
    """At temperature 1."""
    calibrated_confidence: Bins
    """At the task's temperature."""
    auroc: float | None
    """Of known against unknown images by similarity; None: there are no unknown ones."""
    known_refused: float | None
    """Of the known images, taken for none of the classes; None: the task has no threshold."""
    unknown_refused: float | None
    """Of the unknown images, taken for none of the classes."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for files."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrustScore":
        """The inverse of ``to_dict``."""
        bins = {name: tuple(tuple(one) for one in values[name]) for name in ("confidence", "calibrated_confidence")}
        return cls(**{**values, **bins})


def score_trust(
    trust: Trust, *, known: Tensor, labels: Tensor, unknown: Tensor | None, head_scale: float
) -> TrustScore:
    """Judge one task's signals.

    Args:
        known: logits ``(images, n_way)`` of images of the task's classes.
        labels: int64 ``(images,)``, their classes.
        unknown: logits of images of other classes; None: there are none.
        head_scale: ``trust.length_of_rows`` of the task's head.
    """
    inside = similarity(known, head_scale).double().numpy()
    outside = None if unknown is None else similarity(unknown, head_scale).double().numpy()
    least = trust.least_similarity
    return TrustScore(
        leave_one_out_accuracy=trust.leave_one_out_accuracy,
        temperature=trust.temperature,
        confidence=confidence_bins(known, labels),
        calibrated_confidence=confidence_bins(known / trust.temperature, labels),
        auroc=None if outside is None else auroc(inside, outside),
        known_refused=None if least is None else float((inside < least).mean()),
        unknown_refused=None if least is None or outside is None else float((outside < least).mean()),
    )


def confidence_bins(logits: Tensor, labels: Tensor) -> Bins:
    """Count images ``(images, n_way)`` by the probability of the class that each was given."""
    confidences, given = logits.double().softmax(dim=1).max(dim=1)
    right = (given == labels).double()
    places = (confidences * BINS).ceil().long().clamp(1, BINS) - 1
    rows = torch.zeros((BINS, 3), dtype=torch.float64)
    rows.index_add_(0, places, torch.stack([torch.ones_like(right), confidences, right], dim=1))
    return tuple((float(row[0]), float(row[1]), float(row[2])) for row in rows)


def calibration_error(bins: Sequence[Bins]) -> float:
    """Expected calibration error over the images of all tasks: |accuracy - confidence|, averaged over images."""
    count, confidence, right = np.sum(np.asarray(bins, dtype=np.float64), axis=0).T
    return float(np.abs(confidence - right).sum() / count.sum())


def auroc(higher: NDArray[np.float64], lower: NDArray[np.float64]) -> float:
    """Fraction of pairs in which the one of ``higher`` is larger; a tie counts half."""
    order = np.sort(lower)
    below = np.searchsorted(order, higher, side="left") + np.searchsorted(order, higher, side="right")
    return float(below.mean() / (2 * len(lower)))
