"""Two quick ways to learn weights that make good prototypes: the cheap baselines, and our warm-up.

*Prototype loss* (ProtoNet). A batch holds two images of each of many classes, normalised
together. Each image is to be nearest, by cosine similarity, to the other image of its class:
one ``classes``-way 1-shot task in both directions. *Supervised loss* (imprinting): tell all
training classes apart; new classes then get their prototypes as rows of the classifier. In
both the scale of the similarity is learned; tasks start their head with it.

    prototype_loss, supervised_loss   features  ->  loss, accuracy
    gradients, add                    losses of batches  ->  Contribution, which processes can sum
    descend                           one step of Adam with the mean gradients

Sources: ProtoNet, arXiv 1703.05175; learned scale: arXiv 1805.10123 (TADAM), section 3.2;
imprinting: Qi et al., arXiv 1712.07136.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Adam

from metanas_training.meta_learner import Contribution


def prototype_loss(features: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of telling which two images belong together.

    Args:
        features: ``(2 * classes, features)``: the first image of every class, then the second.
        scale: 0-dimensional, what the cosine similarity is multiplied by.

    Returns:
        Loss and accuracy, 0-dimensional, averaged over both directions.
    """
    first, second = functional.normalize(features, dim=1).chunk(2)
    logits = scale * first @ second.T
    labels = torch.arange(len(first), device=features.device)
    loss = (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2
    right = (logits.argmax(dim=1) == labels).float().mean() + (logits.argmax(dim=0) == labels).float().mean()
    return loss, right.detach() / 2


def supervised_loss(features: Tensor, classifier: Tensor, labels: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a cosine classifier over all training classes.

    Args:
        features: ``(batch, features)``.
        classifier: ``(classes, features)``.
        labels: int64 ``(batch,)``.
        scale: 0-dimensional, what the cosine similarity is multiplied by.

    Returns:
        Loss and accuracy, 0-dimensional.
    """
    logits = scale * functional.normalize(features, dim=1) @ functional.normalize(classifier, dim=1).T
    return functional.cross_entropy(logits, labels), (logits.argmax(dim=1) == labels).float().mean().detach()


def gradients(loss: Tensor, accuracy: Tensor, leaves: Mapping[str, Tensor]) -> Contribution:
    """What one batch asks for: the gradient of its loss by every leaf that requires one.

    A leaf that the loss does not reach has no entry.
    """
    names = [name for name, leaf in leaves.items() if leaf.requires_grad]
    found = torch.autograd.grad(loss, [leaves[name] for name in names], allow_unused=True)
    values = {name: value.double() for name, value in zip(names, found, strict=True) if value is not None}
    return Contribution(values, loss.item(), accuracy.item(), 1)


def add(parts: Sequence[Contribution]) -> Contribution:
    """The sum of several contributions."""
    if len(parts) == 1:  # as nearly always; a GPU would run two kernels a parameter for nothing
        return parts[0]
    names = {name for part in parts for name in part.values}
    return Contribution(
        {name: torch.stack([part.values[name] for part in parts if name in part.values]).sum(0) for name in names},
        sum(part.loss for part in parts),
        sum(part.accuracy for part in parts),
        sum(part.tasks for part in parts),
    )


def descend(optimizer: Adam, leaves: Mapping[str, Tensor], mean: Contribution) -> None:
    """One step of ``optimizer`` with the mean gradients; leaves without one are left alone."""
    for name, leaf in leaves.items():
        gradient = mean.values.get(name)
        # In the memory layout of the leaf: the fused kernel pairs values by address.
        leaf.grad = None if gradient is None else torch.empty_like(leaf, requires_grad=False).copy_(gradient)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
