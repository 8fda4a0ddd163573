"""Reptile on weights and architecture: the meta-learner of the paper.

    learn_task   copies of weights and architecture, one episode  ->  where k steps take them
    meta_step    several episodes  ->  weights and architecture moved towards what they learned

The step is the mean over tasks, ``w += rate * mean(w_task - w)``: equation 4 writes a sum, but a
rate of 1.0 only makes sense with the mean. The temperature falls over the steps of every task,
as it will when a task is learned for good. Each task starts with prototypes of one image a
class, so that what is learned is what a 1-shot task needs, and then sees all of its images.

Source: Elsken et al., CVPR 2020, Algorithm 2, equations 4 and 9; Nichol et al., arXiv 1803.02999.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metanas.errors import NothingMovedError
from metanas.learner import Batches, gradient_step, start_head, step_temperature
from metanas.model import Schedule
from metanas.network import Network
from metanas.optimizer import Parameters, build_optimizer, collect_moments
from metanas.preprocessing import Preprocessing, scale
from metanas.relaxation import Architecture
from metanas_training.episodes import Episode


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """Where the steps on one task have led."""

    loss: float
    """Of the last step."""
    accuracy: float
    """Of the last step's batch."""
    moments: dict[str, Tensor]
    """Adam's second moments after it."""


def learn_task(
    network: Network,
    architecture: Architecture,
    episode: Episode,
    *,
    schedule: Schedule,
    head_scale: float,
    preprocessing: Preprocessing,
    moments: Mapping[str, Tensor],
    generator: torch.Generator,
    learn_architecture: bool,
) -> TaskOutcome:
    """Take ``schedule.architecture_steps`` steps on one task, in place.

    Args:
        network: holds the meta-weights when called, the task's weights afterwards.
        architecture: likewise; leaf tensors that require gradients.
        episode: its support set is what is learned.
        learn_architecture: False during the warm-up: the architecture stays, at the first temperature.
    """
    device = next(iter(architecture.values())).device
    support = episode.support
    images = scale(support.images.to(device), preprocessing).contiguous(memory_format=torch.channels_last)
    labels = support.labels.to(device)
    class_weights = 1.0 / torch.tensor(support.shots, dtype=torch.float32, device=device)
    first_of_class = [support.labels.tolist().index(label) for label in range(support.n_way)]
    head = start_head(
        network,
        architecture=architecture,
        images=images[first_of_class],
        labels=labels[first_of_class],
        n_way=support.n_way,
        scale=head_scale,
        temperature=schedule.temperature_start,
        strategy=schedule.strategy,
        skip_below=schedule.skip_below,
    )
    parameters = Parameters(network, head, architecture if learn_architecture else {})
    optimizer = build_optimizer(
        parameters,
        moments,
        learning_rate=schedule.learning_rate,
        architecture_learning_rate=schedule.architecture_learning_rate,
        architecture_weight_decay=schedule.architecture_weight_decay,
    )
    batches = Batches(len(labels), batch_size=schedule.batch_size, generator=generator)
    steps = schedule.architecture_steps
    for step in range(steps):
        rows = batches.next()
        loss, logits = gradient_step(
            network,
            head,
            optimizer,
            architecture=architecture,
            images=images[rows],
            labels=labels[rows],
            class_weights=class_weights,
            temperature=(step_temperature(step, steps, schedule) if learn_architecture else schedule.temperature_start),
            strategy=schedule.strategy,
            skip_below=schedule.skip_below,
        )
    accuracy = (logits.argmax(dim=1) == labels[rows]).float().mean().item()
    return TaskOutcome(float(loss), accuracy, {**moments, **collect_moments(parameters, optimizer)})


def meta_step(
    network: Network,
    architecture: Architecture,
    episodes: Sequence[Episode],
    *,
    schedule: Schedule,
    head_scale: float,
    preprocessing: Preprocessing,
    moments: Mapping[str, Tensor],
    generators: Sequence[torch.Generator],
    learn_architecture: bool,
    meta_learning_rate: float,
    meta_architecture_learning_rate: float,
) -> TaskOutcome:
    """Move meta-weights and meta-architecture, in place, towards what the tasks learned.

    Returns:
        Mean loss and accuracy over the tasks, and the moments after the last.

    Raises:
        NothingMovedError: no task moved a weight; or no task moved an architecture parameter that was to
            learn (weight decay alone counts as a move).
    """
    live: dict[str, Tensor] = {**dict(network.named_parameters()), **architecture}
    rates = {name: meta_architecture_learning_rate if name in architecture else meta_learning_rate for name in live}
    start = {name: value.detach().clone() for name, value in live.items()}
    moved = {name: torch.zeros_like(value) for name, value in start.items()}
    losses, accuracies = [], []
    for episode, generator in zip(episodes, generators, strict=True):
        _restore(live, start)
        outcome = learn_task(
            network,
            architecture,
            episode,
            schedule=schedule,
            head_scale=head_scale,
            preprocessing=preprocessing,
            moments=moments,
            generator=generator,
            learn_architecture=learn_architecture,
        )
        moments = outcome.moments
        losses.append(outcome.loss)
        accuracies.append(outcome.accuracy)
        for name, value in live.items():
            moved[name] += (value.detach() - start[name]) / len(episodes)
    _restore(live, {name: start[name] + rates[name] * moved[name] for name in live})
    _check_moved(moved, architecture if learn_architecture else {})
    return TaskOutcome(sum(losses) / len(losses), sum(accuracies) / len(accuracies), dict(moments))


def _restore(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in live.items():
            value.copy_(values[name])


def _check_moved(moved: Mapping[str, Tensor], architecture: Mapping[str, Tensor]) -> None:
    def any_moved(names: set[str]) -> bool:
        return any(bool(moved[name].any()) for name in names)

    if not any_moved(set(moved) - set(architecture)):
        raise NothingMovedError("the meta-step moved no weight; check learning rates and that gradients reach them")
    if architecture and not any_moved(set(architecture)):
        raise NothingMovedError("the meta-step moved no architecture parameter; check its learning rate")
