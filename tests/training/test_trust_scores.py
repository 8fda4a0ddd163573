"""Calibration error and AUROC, worked out by hand."""

import numpy as np
import pytest
import torch

from metanas.trust import Trust
from metanas_training.trust_scores import (
    BINS,
    TrustScore,
    auroc,
    calibration_error,
    confidence_bins,
    score_trust,
)


def test_auroc_counts_pairs_and_half_of_the_ties() -> None:
    # Against 1 and 3: 4 beats both, 3 beats one and ties one, 0 beats none.
    assert auroc(np.array([4.0, 3.0, 0.0]), np.array([1.0, 3.0])) == pytest.approx((2 + 1.5 + 0) / 6)
    assert auroc(np.array([1.0, 1.0]), np.array([1.0])) == 0.5


def certain(confidence: float) -> list[float]:
    """Logits of two classes whose softmax gives the first ``confidence``."""
    return [float(np.log(confidence / (1 - confidence))), 0.0]


def test_the_calibration_error_by_hand() -> None:
    # Two images at 90 %, one right; two at 70 %, both right: (2 |0.9 - 0.5| + 2 |0.7 - 1|) / 4.
    logits = torch.tensor([certain(0.9), certain(0.9), certain(0.7), certain(0.7)])
    bins = confidence_bins(logits, torch.tensor([0, 1, 0, 0]))
    assert sum(count for count, _, _ in bins) == 4
    assert calibration_error([bins]) == pytest.approx((2 * 0.4 + 2 * 0.3) / 4, abs=1e-6)


def test_bins_of_several_tasks_are_pooled_before_they_are_compared() -> None:
    over = confidence_bins(torch.tensor([certain(0.75)]), torch.tensor([1]))
    under = confidence_bins(torch.tensor([certain(0.75)] * 3), torch.tensor([0, 0, 0]))
    assert calibration_error([over, under]) == pytest.approx(0.0, abs=1e-6)
    assert calibration_error([over]) == pytest.approx(0.75, abs=1e-6)


def test_certainty_and_its_opposite_have_bins() -> None:
    bins = confidence_bins(torch.tensor([[1000.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0]))
    assert bins[BINS - 1][0] == 1
    assert bins[7][0] == 1  # 0.5 lies in the eighth of fifteen


def test_a_task_is_scored_by_its_threshold() -> None:
    trust = Trust(temperature=2.0, leave_one_out_accuracy=0.75, least_similarity=0.5)
    known = torch.tensor([[9.0, 1.0], [0.0, 8.0], [4.0, 0.0], [6.0, 5.0]])  # similarities 0.9, 0.8, 0.4, 0.6
    unknown = torch.tensor([[3.0, 2.0], [7.0, 0.0]])
    score = score_trust(trust, known=known, labels=torch.tensor([0, 1, 0, 1]), unknown=unknown, head_scale=10.0)
    assert (score.known_refused, score.unknown_refused) == (0.25, 0.5)
    assert score.auroc == pytest.approx((2 + 2 + 1 + 1) / 8)
    assert (score.temperature, score.leave_one_out_accuracy) == (2.0, 0.75)
    assert TrustScore.from_dict(score.to_dict()) == score


def test_without_threshold_or_unknown_images_there_is_nothing_to_refuse() -> None:
    score = score_trust(
        Trust(), known=torch.tensor([[1.0, 0.0]]), labels=torch.tensor([0]), unknown=None, head_scale=1.0
    )
    assert (score.auroc, score.known_refused, score.unknown_refused) == (None, None, None)
