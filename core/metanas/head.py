"""The classifier of a task: any number of classes, all treated alike.

A linear layer on features of unit length. Its rows start as the prototypes of the support
set (the mean feature of each class), scaled by one number, so at step 0 the answer is the
cosine similarity to the prototypes, and every class starts by the same rule. From there the
rows are learned like any other weight. The number is meta-learned by the prototype loss and
by MAML; plain Reptile leaves it at 10.

Sources: ProtoNet, arXiv 1703.05175; ProtoMAML, arXiv 1903.03096; what a fixed head costs:
UNICORN-MAML, arXiv 2106.16245.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Head(nn.Module):
    """Unit-length features to class scores."""

    def __init__(self, features: int, n_way: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_way, features))
        self.bias = nn.Parameter(torch.zeros(n_way))

    def forward(self, features: Tensor) -> Tensor:
        """``(batch, features)`` to logits ``(batch, n_way)``."""
        return functional.linear(functional.normalize(features, dim=1), self.weight, self.bias)


def prototypes(features: Tensor, labels: Tensor, *, n_way: int) -> Tensor:
    """Unit-length mean feature of each class.

    Args:
        features: ``(images, features)`` float32.
        labels: ``(images,)`` int64 in 0..n_way-1, each class at least once.

    Returns:
        ``(n_way, features)`` float32.
    """
    unit = functional.normalize(features, dim=1)
    membership = functional.one_hot(labels, n_way).to(unit.dtype)
    return functional.normalize(membership.T @ unit, dim=1)


def prototype_head(features: Tensor, labels: Tensor, *, n_way: int, scale: float) -> Head:
    """A head whose logits are ``scale`` times the cosine similarity to each class's prototype."""
    head = Head(features.shape[1], n_way).to(features.device)
    with torch.no_grad():
        head.weight.copy_(scale * prototypes(features, labels, n_way=n_way))
    return head


def balanced_cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor) -> Tensor:
    """Cross-entropy in which each class counts alike, whatever its number of shots.

    Args:
        logits: ``(batch, n_way)``.
        labels: ``(batch,)`` int64.
        class_weights: ``(n_way,)``, one over the shots of each class.
    """
    return functional.cross_entropy(logits, labels, weight=class_weights)
