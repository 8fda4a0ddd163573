"""MAML on weights and architecture together: down the gradient of what tasks lose after learning.

    plain_steps          loss, parameters, rates  ->  the parameters after each step
    importance           what the query loss after each step counts (MAML++)
    initial_step_rates   the schedule's rates as tensors, for MAML++ to learn
    spread               rates learned with a few steps, for the many that serving takes
    MAML                 the meta-learner: second or first order

Each task starts with prototypes of one image a class as its head and takes plain gradient steps
on weights, head and architecture, while the temperature falls. Then it classifies its query
images, normalised together, and the meta-gradient is that of this query loss (equation 2) with
respect to where the task started: weights, architecture, scale of the prototypes. It goes back
through the prototypes (ProtoMAML) and through every step; in first order the steps count as
constants.

MAML++ adds two options: the query loss after every step counts, at first, and there is a learned
rate for each parameter tensor and step.

Sources: Elsken et al., CVPR 2020, equations 2, 3 and 8; Finn et al., arXiv 1703.03400; MAML++,
arXiv 1810.09502, section 4; ProtoMAML, arXiv 1903.03096, section 3.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from torch.optim import Adam

from metanas.augmentation import distort
from metanas.backbone import Backbone
from metanas.batches import Batches
from metanas.errors import InvalidConfigError, NothingMovedError
from metanas.head import Head, balanced_cross_entropy, prototypes
from metanas.optimizer import ARCHITECTURE as ARCHITECTURE_OF_TASK
from metanas.optimizer import HEAD as HEAD_OF_TASK
from metanas.optimizer import NETWORK as NETWORK_OF_TASK
from metanas.optimizer import parameter_names
from metanas.preprocessing import Preprocessing, scale
from metanas.relaxation import Architecture
from metanas.schedule import Schedule
from metanas.steps import operation_weights, step_temperature
from metanas_training.errors import NonFiniteError, check_finite
from metanas_training.meta_learner import ARCHITECTURE, NETWORK, Contribution, MetaTask, Subject, check_moved
from metanas_training.reptile import TaskTensors, live_parameters, task_tensors

Values = dict[str, Tensor]
"""Parameters by name: of a task as in ``optimizer.Parameters.named``, of the meta-model as in a ``Contribution``."""

LOG_SCALE, STEP_RATES = "log_scale", "step_rates/"
"""Names in a ``Contribution``, beside those of ``meta_learner``."""


def plain_steps(
    loss_of: Callable[[Values, int], Tensor],
    start: Values,
    *,
    rates: Mapping[str, Tensor],
    decays: Mapping[str, float],
    steps: int,
    second_order: bool,
) -> Iterator[Values]:
    """Take gradient steps that can be differentiated (equation 3).

    Args:
        loss_of: parameters and step (from 0) to a 0-dimensional loss.
        start: parameters, all requiring gradients; they may depend on one another, but each moves by
            its own partial derivative.
        rates: ``(steps,)`` for each parameter.
        decays: weight decay of each parameter, added to its gradient.
        second_order: whether the steps themselves are differentiated; else they count as
            constants, except for their rates.

    Yields:
        The parameters after each step, as functions of ``start`` and ``rates``.
    """
    # Views are inputs of their own: without them a gradient for the weights would go through the prototypes as well.
    values = {name: value.view_as(value) for name, value in start.items()}
    for step in range(steps):
        loss = loss_of(values, step)
        gradients = torch.autograd.grad(
            loss, list(values.values()), create_graph=second_order, allow_unused=True, materialize_grads=True
        )
        moved = {}
        for (name, value), gradient in zip(values.items(), gradients, strict=True):
            descent = gradient + decays[name] * value
            moved[name] = value - rates[name][step] * (descent if second_order else descent.detach())
        values = moved
        yield values


def importance(steps: int, *, progress: float) -> list[float]:
    """What the query loss after each inner step counts: equal at first, at last only the last (MAML++).

    Args:
        progress: in [0, 1], how far the change is.

    Returns:
        ``steps`` numbers that sum to 1.
    """
    early = (1.0 - progress) / steps
    return [*[early] * (steps - 1), 1.0 - early * (steps - 1)]


def initial_step_rates(network: Backbone, architecture: Architecture, schedule: Schedule) -> Values:
    """The schedule's rates for each parameter tensor of a task and each inner step, ``(inner steps,)``."""
    names = parameter_names((name for name, _ in network.named_parameters()), architecture)
    device = next(network.parameters()).device
    return {
        name: torch.full(
            (schedule.architecture_steps,),
            schedule.architecture_learning_rate if name.startswith(ARCHITECTURE_OF_TASK) else schedule.learning_rate,
            device=device,
        )
        for name in names
    }


def spread(rates: Mapping[str, Tensor], *, steps: int) -> Values:
    """Rates for more steps than they were learned with: each is divided among as many steps.

    The way that a task goes is then about as long, in smaller steps, each on another batch or another distortion.

    Args:
        rates: ``(learned steps,)`` by parameter name.
        steps: at least as many.

    Returns:
        ``(steps,)`` by parameter name; the sums are those of ``rates``.
    """
    shared = {}
    for name, value in rates.items():
        places = torch.arange(steps, device=value.device) * len(value) // steps
        shared[name] = value[places] / torch.bincount(places, minlength=len(value))[places]
    return shared


@dataclass(frozen=True, slots=True)
class MAML:
    """Equation 8, in second or first order.

    Raises:
        InvalidConfigError: a value is out of range; the message names it.
    """

    schedule: Schedule
    """Of a task: ``architecture_steps`` of its steps, its rates, decays and temperatures."""
    preprocessing: Preprocessing
    second_order: bool = True
    multi_step_loss: bool = False
    """Whether the query loss after every inner step counts, by ``importance``."""
    progress: float = 1.0
    """In [0, 1]: of the importances, from equal to the last step only."""
    learned_rates: bool = False
    """Whether ``subject.step_rates``, which ``initial_step_rates`` makes, are learned."""
    learning_rate: float = 1e-3
    """lambda_meta; also of the scale of the prototypes."""
    architecture_learning_rate: float = 1e-3
    """xi_meta."""
    step_rate_learning_rate: float = 1e-4
    """Of the learned rates, by plain steps."""
    gradient_clip: float = 0.0
    """The largest norm of the mean meta-gradient, all values together; longer ones are scaled down. 0: off."""
    adam: Adam | None = None
    """Moves weights and scale by its first group, the architecture by its second; None: plain steps."""

    def __post_init__(self) -> None:
        if self.schedule.architecture_steps < 1:
            raise InvalidConfigError("MAML needs at least one inner step, got architecture_steps 0")
        for name in ("learning_rate", "architecture_learning_rate", "step_rate_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidConfigError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.progress <= 1:
            raise InvalidConfigError(f"progress must be 0..1, got {self.progress}")
        if not 0 <= self.gradient_clip < math.inf:
            raise InvalidConfigError(f"gradient_clip must be at least 0 and finite, got {self.gradient_clip}")

    def with_progress(self, progress: float) -> "MAML":
        """The same at another point of meta-training, in [0, 1]; for ``multi_step_loss``."""
        return replace(self, progress=progress)

    def learn(self, subject: Subject, tasks: Sequence[MetaTask], *, learn_architecture: bool) -> Contribution:
        """See ``MetaLearner``. The values are gradients; loss and accuracy are of the query images.

        Raises:
            InvalidConfigError: rates are to be learned, and the subject has none.
        """
        learn_architecture = learn_architecture and bool(subject.architecture)
        if self.learned_rates and not subject.step_rates:
            raise InvalidConfigError("learned_rates needs step_rates to start from: see initial_step_rates")
        leaves = {
            name: value.detach().requires_grad_()
            for name, value in self._meta_parameters(subject, learn_architecture=learn_architecture).items()
        }
        sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in leaves.items()}
        loss = accuracy = 0.0
        for number, task in enumerate(tasks):
            of_task, right = self.query_loss(
                subject, leaves, self._problem(task, subject.log_scale.device), generator=task.generator, number=number
            )
            gradients = torch.autograd.grad(of_task, list(leaves.values()), materialize_grads=True)
            _check_gradients(gradients, f"task {number + 1}")
            for name, gradient in zip(leaves, gradients, strict=True):
                sums[name] += gradient
            loss, accuracy = loss + of_task.item(), accuracy + right
        return Contribution(sums, loss, accuracy, len(tasks))

    def move(self, subject: Subject, mean: Contribution, *, decay: float, learn_architecture: bool) -> None:
        """See ``MetaLearner``. With Adam, its step; learned rates take plain steps in any case."""
        learn_architecture = learn_architecture and bool(subject.architecture)
        check_moved(mean.values, learn_architecture=learn_architecture)
        gradients = _clipped(mean.values, self.gradient_clip)
        live = self._meta_parameters(subject, learn_architecture=learn_architecture)
        plain = {name: value for name, value in live.items() if self.adam is None or name.startswith(STEP_RATES)}
        with torch.no_grad():
            for name, value in plain.items():
                value.copy_(value.double() - decay * self._rate(name) * gradients[name])
                if name.startswith(STEP_RATES):
                    value.clamp_(min=0.0)  # a negative rate would climb
        if self.adam is not None:
            by_adam = [(value, gradients[name]) for name, value in live.items() if name not in plain]
            rates = (decay * self.learning_rate, decay * self.architecture_learning_rate)
            _adam_step(self.adam, by_adam, rates=rates)

    def query_loss(
        self, subject: Subject, leaves: Values, problem: "Problem", *, generator: torch.Generator, number: int = 0
    ) -> tuple[Tensor, float]:
        """The meta-objective of one task (equation 2).

        Args:
            subject: its network says how ``leaves`` are used; what is not among them is taken from it as a constant.
            leaves: meta-parameters by their names in a ``Contribution``. The architecture learns if it is there.
            number: of the task in its meta-batch, for messages.

        Returns:
            Query loss, 0-dimensional, differentiable with respect to ``leaves``; and the accuracy after the last step.

        Raises:
            NonFiniteError: a loss is not finite.
        """
        schedule, support, steps = self.schedule, problem.support, self.schedule.architecture_steps
        task = _Task(subject, leaves, schedule, second_order=self.second_order)
        batches = Batches(len(support.labels), batch_size=schedule.batch_size, generator=generator)

        def support_loss(values: Values, step: int) -> Tensor:
            rows = batches.next()
            images = distort(support.images[rows], strength=schedule.augmentation, generator=generator)
            logits = task.logits(values, images, step=step, generator=generator)
            loss = balanced_cross_entropy(logits, support.labels[rows], support.class_weights)
            check_finite(loss.item(), f"inner step {step + 1} of task {number + 1}")
            return loss

        start = task.start(support)
        learned = _under(leaves, STEP_RATES)
        rates = learned or subject.step_rates or initial_step_rates(subject.network, subject.architecture, schedule)
        decays = {
            name: schedule.architecture_weight_decay if name.startswith(ARCHITECTURE_OF_TASK) else schedule.weight_decay
            for name in start
        }
        total = subject.log_scale.new_zeros(())
        shares = importance(steps, progress=self.progress if self.multi_step_loss else 1.0)
        accuracy = 0.0
        taken = plain_steps(
            support_loss, start, rates=rates, decays=decays, steps=steps, second_order=self.second_order
        )
        for step, (values, share) in enumerate(zip(taken, shares, strict=True)):
            if share == 0.0:
                continue
            logits = task.logits(values, problem.query_images, step=step)
            loss = functional.cross_entropy(logits, problem.query_labels)
            check_finite(loss.item(), f"the query images after inner step {step + 1} of task {number + 1}")
            total = total + share * loss
            accuracy = (logits.argmax(dim=1) == problem.query_labels).float().mean().item()
        return total, accuracy

    def _meta_parameters(self, subject: Subject, *, learn_architecture: bool) -> Values:
        """The tensors that this meta-learner moves, by their names in a ``Contribution``."""
        live = live_parameters(subject)
        return {
            **{name: value for name, value in live.items() if learn_architecture or not name.startswith(ARCHITECTURE)},
            LOG_SCALE: subject.log_scale,
            **({STEP_RATES + name: value for name, value in subject.step_rates.items()} if self.learned_rates else {}),
        }

    def _rate(self, name: str) -> float:
        if name.startswith(STEP_RATES):
            return self.step_rate_learning_rate
        return self.architecture_learning_rate if name.startswith(ARCHITECTURE) else self.learning_rate

    def _problem(self, task: MetaTask, device: torch.device) -> "Problem":
        episode = task.episode
        return Problem(
            support=task_tensors(task, preprocessing=self.preprocessing, device=device),
            query_images=scale(episode.query_images.to(device), self.preprocessing),
            query_labels=episode.query_labels.to(device),
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """One task as tensors: what it learns from and what it is judged by."""

    support: TaskTensors
    query_images: Tensor
    """float32 ``(queries, channels, H, W)``."""
    query_labels: Tensor
    """int64 ``(queries,)``."""


class _Task:
    """The network of one task as a function of its parameters."""

    def __init__(self, subject: Subject, leaves: Values, schedule: Schedule, *, second_order: bool) -> None:
        self._network, self._leaves, self._schedule = subject.network, leaves, schedule
        self._second_order = second_order
        self._head = Head(1, 1)  # only says what a head computes
        self._fixed = {name: value.detach() for name, value in subject.architecture.items()}
        self._learns = any(name.startswith(ARCHITECTURE) for name in leaves)

    def start(self, support: TaskTensors) -> Values:
        """The meta-parameters, and prototypes of one image a class as the head."""
        values = {
            **_renamed(self._leaves, NETWORK, NETWORK_OF_TASK),
            **_renamed(self._leaves, ARCHITECTURE, ARCHITECTURE_OF_TASK),
        }
        first = support.first_of_class
        features = self._features(values, support.images[first], temperature=self._schedule.temperature_start)
        rows = prototypes(features, support.labels[first], n_way=support.n_way)
        values[f"{HEAD_OF_TASK}weight"] = self._leaves[LOG_SCALE].exp() * rows
        values[f"{HEAD_OF_TASK}bias"] = rows.new_zeros(support.n_way, requires_grad=True)
        return values

    def logits(self, values: Values, images: Tensor, *, step: int, generator: torch.Generator | None = None) -> Tensor:
        """``(batch, n_way)``, at the temperature of an inner step; ``generator`` is of Gumbel noise."""
        schedule, start = self._schedule, self._schedule.temperature_start
        temperature = step_temperature(step, schedule.architecture_steps, schedule) if self._learns else start
        features = self._features(values, images, temperature=temperature, generator=generator)
        logits: Tensor = functional_call(self._head, _under(values, HEAD_OF_TASK), (features,))
        return logits

    def _features(
        self, values: Values, images: Tensor, *, temperature: float, generator: torch.Generator | None = None
    ) -> Tensor:
        weights = operation_weights(
            self._network,
            {**self._fixed, **_under(values, ARCHITECTURE_OF_TASK)},
            schedule=self._schedule,
            temperature=temperature,
            generator=generator,
        )
        options = {"skip_below": self._schedule.skip_below, "twice_differentiable": self._second_order}
        features: Tensor = functional_call(self._network, _under(values, NETWORK_OF_TASK), (images, weights), options)
        return features


def _under(values: Mapping[str, Tensor], prefix: str) -> Values:
    return _renamed(values, prefix, "")


def _renamed(values: Mapping[str, Tensor], prefix: str, other: str) -> Values:
    return {other + name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _norm(gradients: Iterable[Tensor]) -> float:
    return float(torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt())


def _check_gradients(gradients: Iterable[Tensor], where: str) -> None:
    """Finite losses may still have a gradient that is none."""
    norm = _norm(gradients)
    if not math.isfinite(norm):
        raise NonFiniteError(
            f"the meta-gradient has norm {norm} at {where}; lower the inner learning rates, or take fewer inner steps"
        )


def _clipped(gradients: Mapping[str, Tensor], longest: float) -> Mapping[str, Tensor]:
    norm = _norm(gradients.values())
    if longest == 0.0 or norm <= longest:
        return gradients
    return {name: value * (longest / norm) for name, value in gradients.items()}


def _adam_step(adam: Adam, gradients: Iterable[tuple[Tensor, Tensor]], *, rates: tuple[float, float]) -> None:
    """One step on the parameters of ``gradients``; whatever else ``adam`` holds stays."""
    held = {id(parameter) for group in adam.param_groups for parameter in group["params"]}
    adam.zero_grad(set_to_none=True)
    for parameter, gradient in gradients:
        if id(parameter) not in held:
            raise NothingMovedError("the meta-optimiser holds other parameters; make it from those of the subject")
        # In the memory layout of the parameter: the fused kernel pairs values by address, not by index.
        parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(gradient)
    for group, rate in zip(adam.param_groups, rates, strict=True):
        group["lr"] = rate
    adam.step()
    adam.zero_grad(set_to_none=True)
