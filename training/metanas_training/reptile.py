"""Reptile on weights and architecture: the meta-learner of the paper.

    learn_task   copies of weights and architecture, one episode  ->  where k steps take them
    Reptile      the meta-learner: towards what the tasks learned

The step is the mean over tasks, ``w += rate * mean(w_task - w)``: equation 4 writes a sum, but a
rate of 1.0 only makes sense with the mean. The temperature falls over the steps of every task,
as it will when a task is learned for good. Each task starts with prototypes of one image a
class, so that what is learned is what a 1-shot task needs, and then sees all of its images.

Adam's second moments are carried from meta-step to meta-step: all tasks of a meta-batch start
from the same, and the next meta-batch from their mean. (Reptile's own code carries them from
task to task; then a meta-batch could not be split over processes.)

Source: Elsken et al., CVPR 2020, Algorithm 2, equations 4 and 9; Nichol et al., arXiv 1803.02999.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from metanas.augmentation import distort
from metanas.batches import Batches
from metanas.errors import InvalidConfigError
from metanas.network import Network
from metanas.optimizer import Parameters, build_optimizer, collect_moments
from metanas.preprocessing import Preprocessing, scale
from metanas.schedule import Schedule
from metanas.steps import gradient_step, operation_weights, start_head, step_temperature
from metanas_training.errors import check_finite
from metanas_training.meta_learner import (
    ARCHITECTURE,
    MOMENTS,
    NETWORK,
    Contribution,
    MetaTask,
    Subject,
    check_moved,
)


@dataclass(frozen=True, slots=True)
class TaskTensors:
    """A support set as tensors on the device that learns it."""

    images: Tensor
    """float32 ``(images, channels, H, W)``, channels_last."""
    labels: Tensor
    """int64 ``(images,)``."""
    class_weights: Tensor
    """``(n_way,)``, one over the shots of each class."""
    first_of_class: list[int]
    """For each class the index of its first image: a 1-shot task to start the head from."""
    n_way: int


def task_tensors(task: MetaTask, *, preprocessing: Preprocessing, device: torch.device) -> TaskTensors:
    """The support set of a task, scaled."""
    support = task.episode.support
    labels = support.labels.tolist()
    return TaskTensors(
        images=scale(support.images.to(device), preprocessing).contiguous(memory_format=torch.channels_last),
        labels=support.labels.to(device),
        class_weights=1.0 / torch.tensor(support.shots, dtype=torch.float32, device=device),
        first_of_class=[labels.index(label) for label in range(support.n_way)],
        n_way=support.n_way,
    )


def live_parameters(subject: Subject) -> dict[str, Tensor]:
    """The tensors that tasks move, by their names in a ``Contribution``."""
    return {
        **{f"{NETWORK}{name}": value for name, value in subject.network.named_parameters()},
        **{f"{ARCHITECTURE}{name}": value for name, value in subject.architecture.items()},
    }


def draw_paths(subject: Subject, batch: int, *, probability: float, generator: torch.Generator) -> Tensor | None:
    """DropPath's factors for one batch; None where there is nothing to drop."""
    if probability == 0.0 or not isinstance(subject.network, Network):
        return None
    return subject.network.draw_paths(batch, probability=probability, generator=generator)


@dataclass(frozen=True, slots=True)
class Reptile:
    """The meta-learner of the paper.

    Learns the tasks one after the other; ``together.TogetherReptile`` does it in one go.
    """

    schedule: Schedule
    """``architecture_steps`` of it are taken on every task."""
    preprocessing: Preprocessing
    learning_rate: float = 1.0
    """lambda_meta."""
    architecture_learning_rate: float = 0.6
    """xi_meta."""
    drop_path: float = 0.0
    """Probability with which DropPath leaves an operation out."""

    def __post_init__(self) -> None:
        if self.schedule.architecture_steps < 1:
            raise InvalidConfigError("a task must take at least one inner step, got architecture_steps = 0")

    def learn(self, subject: Subject, tasks: Sequence[MetaTask], *, learn_architecture: bool) -> Contribution:
        """See ``MetaLearner``. The values are ``w_task - w`` and the moments after each task."""
        live = live_parameters(subject)
        start = {name: value.detach().clone() for name, value in live.items()}
        values = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in start.items()}
        loss = accuracy = 0.0
        for number, task in enumerate(tasks):
            with _restored(live, start):
                of_task, right, moments = self._learn_task(subject, task, number, learn_architecture)
                for name, value in live.items():
                    values[name] += value.detach().double() - start[name]
            for name, value in moments.items():
                values[MOMENTS + name] = values.get(MOMENTS + name, 0.0) + value.double()
            loss, accuracy = loss + of_task, accuracy + right
        return Contribution(values, loss, accuracy, len(tasks))

    def move(self, subject: Subject, mean: Contribution, *, decay: float, learn_architecture: bool) -> None:
        """See ``MetaLearner``."""
        check_moved(mean.values, learn_architecture=learn_architecture)
        with torch.no_grad():
            for name, value in live_parameters(subject).items():
                rate = self.architecture_learning_rate if name.startswith(ARCHITECTURE) else self.learning_rate
                value.copy_(value.double() + decay * rate * mean.values[name])
        subject.moments = {
            name.removeprefix(MOMENTS): value.float() for name, value in mean.values.items() if name.startswith(MOMENTS)
        }

    def _learn_task(
        self, subject: Subject, task: MetaTask, number: int, learn_architecture: bool
    ) -> tuple[float, float, dict[str, Tensor]]:
        """Take the steps in place; loss and accuracy of the last batch, and Adam's moments after it."""
        schedule, network, architecture = self.schedule, subject.network, subject.architecture
        learn_architecture = learn_architecture and bool(architecture)
        data = task_tensors(task, preprocessing=self.preprocessing, device=subject.log_scale.device)
        first = data.first_of_class
        head, _ = start_head(
            network,
            weights=operation_weights(network, architecture, schedule=schedule, temperature=schedule.temperature_start),
            images=data.images[first],
            labels=data.labels[first],
            n_way=data.n_way,
            scale=subject.log_scale.exp().item(),
            skip_below=schedule.skip_below,
        )
        parameters = Parameters(network, head, architecture if learn_architecture else {})
        optimizer = build_optimizer(parameters, subject.moments, schedule=schedule)
        batches = Batches(len(data.labels), batch_size=schedule.batch_size, generator=task.generator)
        steps = schedule.architecture_steps
        for step in range(steps):
            rows = batches.next()
            temperature = step_temperature(step, steps, schedule) if learn_architecture else schedule.temperature_start
            loss, logits = gradient_step(
                network,
                head,
                optimizer,
                weights=operation_weights(
                    network, architecture, schedule=schedule, temperature=temperature, generator=task.generator
                ),
                images=distort(data.images[rows], strength=schedule.augmentation, generator=task.generator),
                labels=data.labels[rows],
                class_weights=data.class_weights,
                skip_below=schedule.skip_below,
                paths=draw_paths(subject, len(rows), probability=self.drop_path, generator=task.generator),
            )
            check_finite(float(loss), f"inner step {step + 1} of task {number + 1}")
        accuracy = (logits.argmax(dim=1) == data.labels[rows]).float().mean().item()
        return float(loss), accuracy, {**subject.moments, **collect_moments(parameters, optimizer)}


@contextmanager
def _restored(live: dict[str, Tensor], start: dict[str, Tensor]) -> Iterator[None]:
    """Whatever happens inside, the parameters are back at ``start`` afterwards."""
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in live.items():
                value.copy_(start[name])
