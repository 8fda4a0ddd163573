"""The task learner: from the meta-model and a handful of pictures to a small network.

    adapt            meta-model, support set  ->  task model
    gradient_step    one forward and one backward pass that move weights and architecture together
    Batches          support images in the order that a seed gives

Adaptation has three parts. 1. Weights and architecture learn together while the temperature
falls (equations 3, 5, 7). 2. What weighs less than the threshold is removed: a new, small
network holds the survivors. 3. Its weights learn on. Last, batch norm is frozen at the
statistics of the support set.

A pure function: it never changes the meta-model, and the same meta-model, support set,
schedule, seed and number of threads give the same bits.

Source: Elsken et al., CVPR 2020, Algorithm 3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam

from metanas.errors import AdaptationCancelledError, InvalidTaskError
from metanas.head import Head, balanced_cross_entropy, prototype_head
from metanas.model import AdaptationReport, MetaModel, Schedule, TaskModel, total_parameters
from metanas.network import Network, count_parameters
from metanas.optimizer import Parameters, build_optimizer, collect_moments
from metanas.preprocessing import scale
from metanas.pruning import prune
from metanas.relaxation import Architecture, Mixture, Strategy, anneal, relax
from metanas.space import Genotype
from metanas.task_network import TaskNetwork, extract
from metanas.tasks import SupportSet


@dataclass(frozen=True, slots=True)
class StepReport:
    """How far adaptation has got, after one gradient step."""

    phase: str
    """"architecture" or "weights"."""
    step: int
    """Steps done in both phases together, from 1."""
    steps: int
    """Steps of both phases together."""
    loss: float
    temperature: float


@dataclass(frozen=True, slots=True)
class AdaptationTrace:
    """What adaptation passed through; for evaluation and tests."""

    one_shot: Network
    head: Head
    """Of the one-shot network at the end of the architecture steps."""
    mixtures: dict[str, Mixture]
    pruned: TaskNetwork
    """The task network before its first weight step."""


class Batches:
    """An endless stream of batches over ``count`` images; all of them where they fit in one batch.

    Each pass over the images is a new permutation; a batch may span two passes.
    """

    def __init__(self, count: int, *, batch_size: int, generator: torch.Generator) -> None:
        self._count = count
        self._size = min(batch_size, count)
        self._generator = generator
        self._left = torch.empty(0, dtype=torch.int64)

    def next(self) -> Tensor:
        """Indices of the next batch, int64 ``(min(batch_size, count),)``."""
        if self._size == self._count:
            return torch.arange(self._count)
        while len(self._left) < self._size:
            self._left = torch.cat((self._left, torch.randperm(self._count, generator=self._generator)))
        batch, self._left = self._left[: self._size], self._left[self._size :]
        return batch


def gradient_step(
    network: Network,
    head: Head,
    optimizer: Adam,
    *,
    architecture: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    class_weights: Tensor,
    temperature: float,
    strategy: Strategy,
    skip_below: float,
) -> tuple[Tensor, Tensor]:
    """One step on weights, head and architecture from one forward and one backward pass (equation 3).

    Args:
        architecture: as ``relaxation.initial_architecture`` lays it out; moves if ``optimizer`` holds it.
        images: float32 ``(batch, channels, H, W)``.
        labels: int64 ``(batch,)``.
        class_weights: ``(n_way,)``, what an image of each class counts.

    Returns:
        Loss (0-dimensional) and logits ``(batch, n_way)`` before the step, detached.
    """
    mixtures = relax(architecture, network.space, temperature=temperature, strategy=strategy)
    weights = {cell_type: mixture.rows for cell_type, mixture in mixtures.items()}
    logits = head(network(images, weights, skip_below=skip_below))
    loss = balanced_cross_entropy(logits, labels, class_weights)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach(), logits.detach()


def start_head(
    network: Network,
    *,
    architecture: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    n_way: int,
    scale: float,
    temperature: float,
    strategy: Strategy,
    skip_below: float,
) -> Head:
    """The head that a task starts with: prototypes of its images, normalised together."""
    with torch.no_grad():
        mixtures = relax(architecture, network.space, temperature=temperature, strategy=strategy)
        weights = {cell_type: mixture.rows for cell_type, mixture in mixtures.items()}
        features = network(images, weights, skip_below=skip_below)
    return prototype_head(features, labels, n_way=n_way, scale=scale)


def adapt(
    meta: MetaModel,
    support: SupportSet,
    *,
    schedule: Schedule | None = None,
    seed: int = 0,
    on_step: Callable[[StepReport], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_trace: Callable[[AdaptationTrace], None] | None = None,
) -> TaskModel:
    """Learn a task: weights and architecture, pruning, weights (Algorithm 3).

    Args:
        meta: where it starts; not changed.
        support: what to learn.
        schedule: how; the meta-model's own by default.
        seed: of the order of images, where they do not fit in one batch.
        on_step: told after every gradient step.
        should_stop: asked before every gradient step.
        on_trace: given the networks on both sides of the pruning.

    Raises:
        InvalidTaskError: images of another size than the meta-model's.
        AdaptationCancelledError: ``should_stop`` said so.
    """
    schedule = schedule or meta.schedule
    expected = (meta.preprocessing.channels, meta.preprocessing.height, meta.preprocessing.width)
    if tuple(support.images.shape[1:]) != expected:
        raise InvalidTaskError(
            f"support images are (channels, height, width) {tuple(support.images.shape[1:])}, "
            f"the meta-model takes {expected}; prepare them with its preprocessing"
        )
    run = _Run(meta, support, schedule, seed, on_step, should_stop)
    genotype, mixtures = run.learn_architecture()
    task_network = extract(run.network, run.head, genotype)
    if on_trace is not None:
        on_trace(
            AdaptationTrace(
                one_shot=run.network, head=run.head, mixtures=mixtures, pruned=extract(run.network, run.head, genotype)
            )
        )
    run.learn_weights(task_network)
    return run.finish(task_network)


class _Run:
    """The state of one adaptation."""

    def __init__(
        self,
        meta: MetaModel,
        support: SupportSet,
        schedule: Schedule,
        seed: int,
        on_step: Callable[[StepReport], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self.meta, self.support, self.schedule, self.seed = meta, support, schedule, seed
        self.on_step, self.should_stop = on_step, should_stop
        canonical, self.order = support.canonical()
        self.images = scale(canonical.images, meta.preprocessing).contiguous(memory_format=torch.channels_last)
        self.labels = canonical.labels
        self.class_weights = 1.0 / torch.tensor(canonical.shots, dtype=torch.float32)
        self.batches = Batches(
            len(self.labels), batch_size=schedule.batch_size, generator=torch.Generator().manual_seed(seed)
        )
        self.network = meta.build_network()
        self.architecture: Architecture = {
            name: value.clone().requires_grad_() for name, value in meta.architecture.items()
        }
        self.head = start_head(
            self.network,
            architecture=self.architecture,
            images=self.images,
            labels=self.labels,
            n_way=support.n_way,
            scale=meta.head_scale,
            temperature=schedule.temperature_start,
            strategy=schedule.strategy,
            skip_below=schedule.skip_below,
        )
        self.moments: Mapping[str, Tensor] = meta.moments
        self.done = 0

    def learn_architecture(self) -> tuple[Genotype, dict[str, Mixture]]:
        """Move weights and architecture together while the temperature falls; say what survives."""
        schedule, space = self.schedule, self.meta.space
        parameters = Parameters(self.network, self.head, self.architecture)
        optimizer = self._optimizer(parameters)
        for step in range(schedule.architecture_steps):
            temperature = step_temperature(step, schedule.architecture_steps, schedule)
            self._check()
            rows = self.batches.next()
            loss, _ = gradient_step(
                self.network,
                self.head,
                optimizer,
                architecture=self.architecture,
                images=self.images[rows],
                labels=self.labels[rows],
                class_weights=self.class_weights,
                temperature=temperature,
                strategy=schedule.strategy,
                skip_below=schedule.skip_below,
            )
            self._tell("architecture", loss, temperature)
        self.moments = {**self.moments, **collect_moments(parameters, optimizer)}
        with torch.no_grad():
            mixtures = relax(self.architecture, space, temperature=schedule.temperature_end, strategy=schedule.strategy)
        return prune(mixtures, space, strategy=schedule.strategy, threshold=schedule.threshold), mixtures

    def learn_weights(self, task_network: TaskNetwork) -> None:
        """Move the weights of the pruned network on."""
        optimizer = self._optimizer(Parameters(task_network.network, task_network.head))
        for _ in range(self.schedule.weight_steps):
            self._check()
            rows = self.batches.next()
            loss = balanced_cross_entropy(task_network(self.images[rows]), self.labels[rows], self.class_weights)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            self._tell("weights", loss.detach(), self.schedule.temperature_end)

    def finish(self, task_network: TaskNetwork) -> TaskModel:
        """Freeze batch norm, put the classes back in the caller's order, report."""
        task_network.freeze_statistics(self.images)
        with torch.no_grad():
            correct = (task_network(self.images).argmax(dim=1) == self.labels).float().mean().item()
            rows = [self.order.index(label) for label in range(self.support.n_way)]
            for parameter in task_network.head.parameters():
                parameter.copy_(parameter[rows].clone())
        task_network.requires_grad_(False)
        return TaskModel(
            network=task_network,
            class_names=self.support.class_names,
            preprocessing=self.meta.preprocessing,
            support=self.support,
            report=AdaptationReport(
                architecture_steps=self.schedule.architecture_steps,
                weight_steps=self.schedule.weight_steps,
                seed=self.seed,
                support_accuracy=correct,
                parameter_count=count_parameters(task_network),
                one_shot_parameter_count=total_parameters(self.network, self.support.n_way),
            ),
            provenance={"meta_model": dict(self.meta.provenance), "schedule": self.schedule.to_dict()},
        )

    def _optimizer(self, parameters: Parameters) -> Adam:
        return build_optimizer(
            parameters,
            self.moments,
            learning_rate=self.schedule.learning_rate,
            architecture_learning_rate=self.schedule.architecture_learning_rate,
            architecture_weight_decay=self.schedule.architecture_weight_decay,
        )

    def _check(self) -> None:
        if self.should_stop is not None and self.should_stop():
            steps = self.schedule.architecture_steps + self.schedule.weight_steps
            raise AdaptationCancelledError(f"adaptation was stopped after {self.done} of {steps} steps")

    def _tell(self, phase: str, loss: Tensor, temperature: float) -> None:
        self.done += 1
        if self.on_step is not None:
            steps = self.schedule.architecture_steps + self.schedule.weight_steps
            self.on_step(StepReport(phase, self.done, steps, float(loss), temperature))


def step_temperature(step: int, steps: int, schedule: Schedule) -> float:
    """Temperature of gradient step ``step`` (from 0) of ``steps``: the first is the start, the last the end."""
    progress = step / (steps - 1) if steps > 1 else 1.0
    return anneal(progress, start=schedule.temperature_start, end=schedule.temperature_end)
