"""The prototype loss: a quick way to meta-learn weights that make good prototypes.

A batch holds two images of each of many classes, normalised together. Each image is to be
nearest, by cosine similarity, to the other image of its class: one ``classes``-way 1-shot task
in both directions. The scale of the similarity is learned; tasks start their head with it.

    prototype_loss      features of pairs  ->  loss, accuracy
    prototype_step      one step of Adam on weights and scale, and on the architecture if it learns

Sources: ProtoNet, arXiv 1703.05175; learned scale: arXiv 1805.10123 (TADAM), section 3.2.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Adam

from metanas.network import Network
from metanas.relaxation import relax


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


def prototype_step(
    network: Network,
    architecture: Mapping[str, Tensor],
    *,
    log_scale: Tensor,
    optimizer: Adam,
    images: Tensor,
    temperature: float,
    skip_below: float,
) -> tuple[float, float]:
    """One gradient step on whatever ``optimizer`` holds.

    Args:
        images: float32 ``(2 * classes, channels, H, W)``.

    Returns:
        Loss and accuracy before the step.
    """
    mixtures = relax(architecture, network.space, temperature=temperature)
    features = network(images, {name: mixture.rows for name, mixture in mixtures.items()}, skip_below=skip_below)
    loss, accuracy = prototype_loss(features, log_scale.exp())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item(), accuracy.item()
