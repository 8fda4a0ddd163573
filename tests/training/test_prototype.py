"""The prototype loss, by hand."""

import math

import pytest
import torch

from metanas_training.prototype import prototype_loss


def test_the_prototype_loss_by_hand() -> None:
    # Cosines: first images (1,0), (0,1); second images (1,0), (0.6,0.8); lengths do not matter.
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [5.0, 0.0], [6.0, 8.0]])
    loss, accuracy = prototype_loss(features, torch.tensor(2.0))
    # Logits, scaled by 2: [[2.0, 1.2], [0.0, 1.6]].
    forward = (math.log(1 + math.exp(1.2 - 2.0)) + math.log(1 + math.exp(0.0 - 1.6))) / 2
    backward = (math.log(1 + math.exp(0.0 - 2.0)) + math.log(1 + math.exp(1.2 - 1.6))) / 2
    assert loss.item() == pytest.approx((forward + backward) / 2)
    assert accuracy.item() == 1.0


def test_accuracy_is_the_mean_of_both_directions() -> None:
    # Both first images are nearest to second image 0: half right forward; second images are nearest
    # to first images 0 and 1: all right backward.
    features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [1.0, 0.1], [0.3, 1.0]])
    cosines = torch.nn.functional.normalize(features, dim=1)
    similarity = cosines[:2] @ cosines[2:].T
    assert similarity.argmax(dim=1).tolist() == [0, 0]
    assert similarity.argmax(dim=0).tolist() == [0, 1]
    assert prototype_loss(features, torch.tensor(1.0))[1].item() == 0.75
