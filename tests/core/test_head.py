"""Prototypes and the loss of unequal shots, by hand."""

import math

import pytest
import torch

from metanas.head import Head, balanced_cross_entropy, prototype_head, prototypes

FEATURES = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, -3.0]])
LABELS = torch.tensor([0, 0, 1])


def test_prototypes_are_unit_length_means_of_unit_length_features_by_hand() -> None:
    # (1,0) and (0,1) have the mean (0.5, 0.5), whatever their lengths were: unit length is 1/sqrt 2 each.
    half = math.sqrt(0.5)
    torch.testing.assert_close(prototypes(FEATURES, LABELS, n_way=2), torch.tensor([[half, half], [0.0, -1.0]]))


def test_a_fresh_head_answers_with_the_scaled_cosine_to_the_prototypes() -> None:
    head = prototype_head(FEATURES, LABELS, n_way=2, scale=10.0)
    scores = head(torch.tensor([[0.0, 7.0], [3.0, -4.0]]))
    # (3,-4)/5 = (0.6,-0.8): cosines -0.2/sqrt 2 and 0.8.
    expected = torch.tensor([[10 * math.sqrt(0.5), -10.0], [-2 * math.sqrt(0.5), 8.0]])
    torch.testing.assert_close(scores, expected)


def test_relabelling_permutes_the_rows_of_a_fresh_head() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(9, 4), torch.tensor([0, 1, 2] * 3)
    one = prototype_head(features, labels, n_way=3, scale=5.0)
    other = prototype_head(features, (labels + 1) % 3, n_way=3, scale=5.0)
    torch.testing.assert_close(one.weight[[2, 0, 1]], other.weight)


def test_a_head_learns_rows_and_bias() -> None:
    head = Head(4, 3)
    assert {name: tuple(value.shape) for name, value in head.named_parameters()} == {"weight": (3, 4), "bias": (3,)}
    with torch.no_grad():
        head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert head(torch.randn(2, 4)).tolist() == [[1.0, 2.0, 3.0]] * 2


def test_every_class_counts_alike_in_the_loss_by_hand() -> None:
    # Two images of class 0 with losses a and b, one of class 1 with loss c: (a/2 + b/2 + c) / 2.
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [0.0, math.log(4.0)]])
    a, b, c = math.log(2.0), math.log(4 / 3), math.log(5 / 4)
    loss = balanced_cross_entropy(logits, LABELS, torch.tensor([0.5, 1.0]))
    assert loss.item() == pytest.approx((a / 2 + b / 2 + c) / 2)
