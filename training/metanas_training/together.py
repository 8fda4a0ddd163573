"""Reptile with the tasks of a meta-batch learned at the same time: for a GPU.

    TogetherReptile     the meta-learner: what ``Reptile`` learns, many tasks in one pass
    AdaptedTasks        where the steps have taken each task

One task is far too small for a GPU: its time goes into starting kernels. So every weight gets a
leading dimension of tasks, and ``torch.func.vmap`` turns the convolutions of all tasks into one
grouped convolution. Tasks do not touch each other: the gradient of the sum of their losses holds
each task's own, and Adam works element by element. Every task draws from its own generator
in the order of ``Reptile``, so both learn the same from the same meta-batch, up to rounding.

Rounding can be large in one place: Adam divides by the root of the second moment, so where the
true gradient is zero (the bias of a convolution before a batch norm) and all there is is
rounding, both take full steps, in directions that have nothing to do with each other. Such
parameters do not change what the network computes.

An operation is run if any task gives it ``skip_below`` or more. Where a task gives it less, its
weight there is set to 0, so the task's output and gradients are those of leaving it out. What
differs: Adam sees a gradient of 0 where ``Reptile`` shows it none, so the moments of that
operation fade by beta_2 and weight decay goes on.

Knows nothing of processes or phases. Sources: Elsken et al., CVPR 2020, Algorithm 2; mixed
precision: Micikevicius et al., arXiv 1710.03740.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.func import functional_call, vmap
from torch.optim import Optimizer

from metanas.augmentation import distort
from metanas.backbone import Backbone
from metanas.batches import Batches
from metanas.errors import InvalidConfigError
from metanas.head import Head, balanced_cross_entropy, prototypes
from metanas.optimizer import HEAD, STEP, Parameters, build_optimizer
from metanas.schedule import Schedule
from metanas.steps import operation_weights, step_temperature
from metanas_training.config import Precision
from metanas_training.errors import NonFiniteError, check_finite
from metanas_training.meta_learner import ARCHITECTURE, MOMENTS, NETWORK, Contribution, MetaTask, Subject
from metanas_training.reptile import Reptile, draw_paths, live_parameters, task_tensors
from metanas_training.stacked import forward_each, repeat


@dataclass(frozen=True, slots=True)
class AdaptedTasks:
    """Tasks after their steps; every tensor has a leading dimension of tasks."""

    parameters: Parameters
    """Modules that are called by ``functional_call`` under ``vmap`` only. The architecture is there if it learned."""
    moments: dict[str, Tensor]
    """Adam's second moments, as ``optimizer.collect_moments`` names them."""
    losses: Tensor
    """``(tasks,)``, of the last batch, before its step."""
    accuracies: Tensor
    """``(tasks,)``, of the same."""


@dataclass(frozen=True, slots=True)
class TogetherReptile:
    """``Reptile``, many tasks at once.

    All tasks of a meta-batch must have as many ways and images.

    Raises:
        InvalidConfigError: an unknown precision, or a chunk under 1.
    """

    reptile: Reptile
    """What is learned, and how; it makes the move."""
    precision: Precision = "float32"
    """Of the convolutions; what they take and give, and all else, stays in float32.

    In "float16" small gradients would become 0, so the loss is multiplied by 65,536 and the
    gradients are divided again. Where that overflows, the factor is halved and the same backward
    pass done again: no step is lost. Every ``learn`` starts anew, so a resumed run learns the same."""
    chunk: int | None = None
    """How many tasks at once, for memory; None: all. The result is the same."""

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise InvalidConfigError(f"unknown precision {self.precision!r}; known are {known}")
        if self.chunk is not None and self.chunk < 1:
            raise InvalidConfigError(f"chunk must be at least 1 task, got {self.chunk}; None takes all at once")

    def learn(self, subject: Subject, tasks: Sequence[MetaTask], *, learn_architecture: bool) -> Contribution:
        """See ``MetaLearner`` and ``Reptile.learn``.

        Raises:
            InvalidConfigError: tasks of unequal shapes.
        """
        start = live_parameters(subject)
        values = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in start.items()}
        loss = accuracy = 0.0
        _check_shapes(tasks)
        chunk = self.chunk or max(len(tasks), 1)
        for first in range(0, len(tasks), chunk):
            of_chunk = tasks[first : first + chunk]
            adapted = self.adapt(subject, of_chunk, learn_architecture=learn_architecture, number=first)
            for name, value in _learned(adapted.parameters).items():
                values[name] += (value.detach().double() - start[name].detach().double()).sum(dim=0)
            carried = {name: value.expand(len(of_chunk), *value.shape) for name, value in subject.moments.items()}
            for name, value in {**carried, **adapted.moments}.items():
                values[MOMENTS + name] = values.get(MOMENTS + name, 0.0) + value.double().sum(dim=0)
            loss += adapted.losses.double().sum().item()
            accuracy += adapted.accuracies.double().sum().item()
        return Contribution(values, loss, accuracy, len(tasks))

    def move(self, subject: Subject, mean: Contribution, *, decay: float, learn_architecture: bool) -> None:
        """See ``MetaLearner``."""
        self.reptile.move(subject, mean, decay=decay, learn_architecture=learn_architecture)

    def adapt(
        self, subject: Subject, tasks: Sequence[MetaTask], *, learn_architecture: bool, number: int = 0
    ) -> AdaptedTasks:
        """Take the steps of all tasks, at least one, on copies; ``subject`` is not touched.

        Args:
            number: of the first task in its meta-batch, from 0; for messages.

        Raises:
            InvalidConfigError: tasks of unequal shapes.
            NonFiniteError: a loss is not finite, or float16 has no factor for its gradients.
        """
        _check_shapes(tasks)
        schedule = self.reptile.schedule
        learn_architecture = learn_architecture and bool(subject.architecture)
        stack = self._stack(subject, tasks, learn_architecture=learn_architecture)
        parameters = Parameters(
            stack.network,
            stack.start_head(scale=subject.log_scale.exp().item()),
            stack.architecture if learn_architecture else {},
        )
        optimizer = build_optimizer(parameters, subject.moments, schedule=schedule)
        scaler = GradScaler(stack.images.device.type, enabled=self.precision == "float16")
        batches = [
            Batches(stack.labels.shape[1], batch_size=schedule.batch_size, generator=task.generator) for task in tasks
        ]
        each = torch.arange(len(tasks)).unsqueeze(1)
        steps = schedule.architecture_steps
        for step in range(steps):
            # In the order in which Reptile draws for each task: images, noise, distortions, paths.
            rows = torch.stack([of_task.next() for of_task in batches])
            temperature = step_temperature(step, steps, schedule) if learn_architecture else schedule.temperature_start
            weights = stack.weights(temperature=temperature, generators=[task.generator for task in tasks])
            labels = stack.labels[each, rows]
            images = torch.stack(
                [
                    distort(of_task, strength=schedule.augmentation, generator=task.generator)
                    for of_task, task in zip(stack.images[each, rows], tasks, strict=True)
                ]
            )
            features = stack.features(images, weights, paths=self._paths(subject, tasks, rows))
            losses, logits = _losses(parameters.head, features, labels, stack.class_weights)
            for place, loss in enumerate(losses.tolist(), start=number + 1):
                check_finite(loss, f"inner step {step + 1} of task {place}")
            _descend(optimizer, losses.sum(), scaler, where=f"inner step {step + 1}")
        return AdaptedTasks(
            parameters=parameters,
            moments=_collect_moments(parameters, optimizer, tasks=len(tasks)),
            losses=losses.detach(),
            accuracies=(logits.argmax(dim=2) == labels).float().mean(dim=1),
        )

    def _stack(self, subject: Subject, tasks: Sequence[MetaTask], *, learn_architecture: bool) -> "_Stack":
        data = [
            task_tensors(task, preprocessing=self.reptile.preprocessing, device=subject.log_scale.device)
            for task in tasks
        ]
        # A deep copy takes what it finds in its memo in the place of the original; buffers are only read.
        places: dict[int, Any] = {id(value): value for value in subject.network.buffers()}
        for value in subject.network.parameters():
            places[id(value)] = nn.Parameter(repeat(value, len(tasks)))
        return _Stack(
            network=copy.deepcopy(subject.network, places),
            architecture={
                name: repeat(value, len(tasks)).requires_grad_(learn_architecture)
                for name, value in subject.architecture.items()
            },
            images=torch.stack([one.images for one in data]),
            labels=torch.stack([one.labels for one in data]),
            class_weights=torch.stack([one.class_weights for one in data]),
            first_of_class=torch.tensor([one.first_of_class for one in data]),
            schedule=self.reptile.schedule,
            precision=self.precision,
        )

    def _paths(self, subject: Subject, tasks: Sequence[MetaTask], rows: Tensor) -> Tensor | None:
        """``(tasks, cells, rows, batch)``; None: no DropPath."""
        probability = self.reptile.drop_path
        drawn = [
            draw_paths(subject, rows.shape[1], probability=probability, generator=task.generator) for task in tasks
        ]
        return torch.stack([one for one in drawn if one is not None]) if drawn[0] is not None else None


@dataclass(frozen=True, slots=True)
class _Stack:
    """Tasks on their way; every tensor has a leading dimension of tasks."""

    network: Backbone
    architecture: dict[str, Tensor]
    images: Tensor
    """``(tasks, images, channels, H, W)``."""
    labels: Tensor
    """``(tasks, images)``."""
    class_weights: Tensor
    """``(tasks, n_way)``."""
    first_of_class: Tensor
    """``(tasks, n_way)``."""
    schedule: Schedule
    precision: Precision

    def weights(self, *, temperature: float, generators: Sequence[torch.Generator | None]) -> dict[str, Tensor] | None:
        """The weight of every operation, ``(tasks, rows)`` by cell type; None where the architecture is fixed."""
        if not self.architecture:
            return None

        def of_task(architecture: Mapping[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
            weights = operation_weights(
                self.network, architecture, schedule=self.schedule, temperature=temperature, generator=generator
            )
            assert weights is not None
            return weights

        if self.schedule.relaxation == "softmax":
            weights: dict[str, Tensor] = vmap(of_task)(self.architecture)
            return weights
        # Under vmap all tasks would draw from one generator.
        each = [
            of_task({name: value[task] for name, value in self.architecture.items()}, generator)
            for task, generator in enumerate(generators)
        ]
        return {name: torch.stack([one[name] for one in each]) for name in each[0]}

    def features(self, images: Tensor, weights: Mapping[str, Tensor] | None, *, paths: Tensor | None = None) -> Tensor:
        """``(tasks, batch, channels, H, W)`` to ``(tasks, batch, features)``."""
        return forward_each(
            self.network,
            dict(self.network.named_parameters()),
            images,
            weights,
            skip_below=self.schedule.skip_below,
            precision=self.precision,
            paths=paths,
        )

    @torch.no_grad()
    def start_head(self, *, scale: float) -> Head:
        """As ``learner.start_head``: prototypes of the first image of each class."""
        tasks, n_way = self.first_of_class.shape
        each = torch.arange(tasks).unsqueeze(1)
        temperature = self.schedule.temperature_start
        features = self.features(
            self.images[each, self.first_of_class],
            self.weights(temperature=temperature, generators=[None] * tasks),
        )
        rows = vmap(partial(prototypes, n_way=n_way))(features, self.labels[each, self.first_of_class])
        head = Head(features.shape[2], n_way)
        head.weight = nn.Parameter(scale * rows)
        head.bias = nn.Parameter(rows.new_zeros(tasks, n_way))
        return head


def _losses(head: nn.Module, features: Tensor, labels: Tensor, class_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Losses ``(tasks,)`` and logits ``(tasks, batch, n_way)``."""

    def of_task(
        rows: dict[str, Tensor], features: Tensor, labels: Tensor, class_weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits: Tensor = functional_call(head, rows, (features,))
        return balanced_cross_entropy(logits, labels, class_weights), logits

    losses, logits = vmap(of_task)(dict(head.named_parameters()), features, labels, class_weights)
    return losses, logits.detach()


def _descend(optimizer: Optimizer, total: Tensor, scaler: GradScaler, *, where: str) -> None:
    """One step down the gradient of ``total``; on overflow again, with a smaller factor."""
    while True:
        factor = scaler.get_scale()
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(total).backward(retain_graph=scaler.is_enabled())  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= factor:  # it is lowered when the step was not taken
            return
        if scaler.get_scale() < 1.0:
            raise NonFiniteError(f"the gradients overflow float16 at {where}; take precision bfloat16 or float32")


def _collect_moments(parameters: Parameters, optimizer: Optimizer, *, tasks: int) -> dict[str, Tensor]:
    """As ``optimizer.collect_moments``, for each task."""
    moments: dict[str, Tensor] = {}
    for name, parameter in parameters.named():
        state = optimizer.state.get(parameter)
        if not state:
            continue
        second: Tensor = state["exp_avg_sq"]
        moments[name] = second.mean(dim=1) if name.startswith(HEAD) else second
        step = state["step"].expand(tasks)
        moments[STEP] = torch.maximum(step, moments.get(STEP, step))
    return moments


def _learned(parameters: Parameters) -> dict[str, Tensor]:
    """What meta-learning moves, by its names in a ``Contribution``."""
    return {
        **{f"{NETWORK}{name}": value for name, value in parameters.network.named_parameters()},
        **{f"{ARCHITECTURE}{name}": value for name, value in parameters.architecture.items()},
    }


def _check_shapes(tasks: Sequence[MetaTask]) -> None:
    """Raise InvalidConfigError if the tasks do not fit into one tensor."""
    for number, task in enumerate(tasks):
        first, other = tasks[0].episode.support, task.episode.support
        if (first.n_way, first.images.shape) != (other.n_way, other.images.shape):
            raise InvalidConfigError(
                f"task {number + 1} has {other.n_way} classes and images {tuple(other.images.shape)}, "
                f"task 1 has {first.n_way} and {tuple(first.images.shape)}; tasks are learned together only if all "
                "have one shape: draw as many ways and shots for each, or learn them one by one"
            )
