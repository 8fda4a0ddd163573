"""One gradient step of a task, and what it starts from: shared by adaptation and by the meta-learners.

    operation_weights   architecture parameters at a temperature  ->  the weights of a network's operations
    gradient_step       one forward and one backward pass that move weights and architecture together
    start_head          the prototypes that a task's head starts from
    step_temperature    number of a step  ->  its temperature

Source: Elsken et al., CVPR 2020, equations 3 and 7, Algorithm 3.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from metanas.backbone import Backbone
from metanas.head import Head, balanced_cross_entropy, prototype_head
from metanas.network import Network
from metanas.relaxation import anneal, relax
from metanas.schedule import Schedule
from metanas.statistics import PriorStatistics, measuring
from metanas.variation import Variation


def operation_weights(
    network: Backbone,
    architecture: Mapping[str, Tensor],
    *,
    schedule: Schedule,
    temperature: float,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor] | None:
    """The weight of every operation, as ``Network.forward`` takes it; None where the architecture is fixed.

    Args:
        generator: of Gumbel noise; None: no noise.
    """
    if not architecture:
        return None
    assert isinstance(network, Network), "only a network of cells has architecture parameters"
    mixtures = relax(
        architecture,
        network.space,
        temperature=temperature,
        strategy=schedule.strategy,
        relaxation=schedule.relaxation,
        generator=generator,
    )
    return {cell_type: mixture.rows for cell_type, mixture in mixtures.items()}


def gradient_step(
    network: Backbone,
    head: Head,
    optimizer: Optimizer,
    *,
    weights: Mapping[str, Tensor] | None,
    images: Tensor,
    labels: Tensor,
    class_weights: Tensor,
    skip_below: float,
    paths: Tensor | None = None,
    penalty: Tensor | None = None,
    variation: Variation | None = None,
) -> tuple[Tensor, Tensor]:
    """One step on weights, head and architecture from one forward and one backward pass (equation 3).

    Args:
        weights: ``operation_weights``; the architecture behind it moves if ``optimizer`` holds it.
        images: float32 ``(batch, channels, H, W)``.
        labels: int64 ``(batch,)``.
        class_weights: ``(n_way,)``, what an image of each class counts.
        paths: ``Network.draw_paths``; None: no DropPath.
        penalty: added to the loss, 0-dimensional.
        variation: of features within classes, which the loss reckons with.

    Returns:
        Loss (0-dimensional) and logits ``(batch, n_way)`` before the step, detached.
    """
    logits = head(network(images, weights, skip_below=skip_below, paths=paths))
    judged = logits if variation is None else variation.harden(logits, labels, head.weight, class_weights)
    loss = balanced_cross_entropy(judged, labels, class_weights)
    if penalty is not None:
        loss = loss + penalty
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach(), logits.detach()


@torch.no_grad()
def start_head(
    network: Backbone,
    *,
    weights: Mapping[str, Tensor] | None,
    images: Tensor,
    labels: Tensor,
    n_way: int,
    scale: float,
    skip_below: float,
    prior: PriorStatistics | None = None,
) -> tuple[Head, Tensor]:
    """The head that a task starts with, prototypes of its images, and the features that they are made of.

    The images are normalised together, with ``prior`` as images will be that come later.
    """
    if prior is None:
        features = network(images, weights, skip_below=skip_below)
    else:
        with measuring(network, prior):
            features = network(images, weights, skip_below=skip_below)
    return prototype_head(features, labels, n_way=n_way, scale=scale), features


def step_temperature(step: int, steps: int, schedule: Schedule) -> float:
    """Temperature of gradient step ``step`` (from 0) of ``steps``: the first is the start, the last the end."""
    progress = step / (steps - 1) if steps > 1 else 1.0
    return anneal(progress, start=schedule.temperature_start, end=schedule.temperature_end)
