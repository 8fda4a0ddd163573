"""The task learner: from the meta-model and a handful of pictures to a small network.

    adapt   meta-model, support set  ->  task model; it tells ``progress``, shows ``snapshots``, takes ``steps``

Adaptation has three parts. 1. Weights and architecture learn together while the temperature
falls (equations 3, 5, 7). 2. What weighs less than the threshold is removed: a new, small
network holds the survivors. 3. Its weights learn on. Last, batch norm is frozen at the
statistics of the support set, blended with those of meta-training if the meta-model brings
them (``statistics``). Where the architecture is fixed, all steps are of the third kind.
Where the meta-model says how features vary within a class, the loss reckons with it, and the head
has learning rates of its own (``variation``); not where the support images are unlike those of meta-training, and the
report says so.

A pure function: it never changes the meta-model, and the same meta-model, support set,
schedule, seed and number of threads give the same bits.

Source: Elsken et al., CVPR 2020, Algorithm 3.
"""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from metanas.augmentation import distort
from metanas.backbone import Backbone
from metanas.batches import Batches
from metanas.budget import Budget, cheapest, check_possible, fixed_cost, network_cost, penalty
from metanas.budget_fitting import fit, genotype_rows
from metanas.errors import AdaptationCancelledError, DivergedError, InvalidTaskError
from metanas.head import Head, balanced_cross_entropy
from metanas.model import AdaptationReport, BudgetReport, MetaModel, TaskModel, total_parameters
from metanas.network import Network, count_parameters
from metanas.optimizer import HEAD, Parameters, build_optimizer, collect_moments, set_rates
from metanas.preprocessing import scale
from metanas.progress import StepReport
from metanas.pruning import prune
from metanas.relaxation import Architecture, Mixture, relax
from metanas.schedule import Schedule
from metanas.snapshots import AdaptationTrace, Snapshot
from metanas.space import Genotype, SearchSpace
from metanas.steps import gradient_step, operation_weights, start_head, step_temperature
from metanas.task_network import TaskNetwork, extract
from metanas.tasks import SupportSet
from metanas.trust import measure

NOISE, DISTORTIONS = 0x9E3779B9, 0x517CC1B7
"""Keep the draws of Gumbel noise and of distortions apart from those of the batches, which start from the same seed."""

MOST_CHANGE = 0.6
"""Of features (1 less their cosine similarity), times the prior's share in the statistics that a task answers with:
found with the bundled meta-models, whose own kind of pictures change less and others more."""

BUDGET_IMAGES = 40
"""Support images, at most, by whose loss architectures are compared that fit a budget."""


def adapt(
    meta: MetaModel,
    support: SupportSet,
    *,
    schedule: Schedule | None = None,
    seed: int = 0,
    on_step: Callable[[StepReport], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_trace: Callable[[AdaptationTrace], None] | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
) -> TaskModel:
    """Learn a task: weights and architecture, pruning, weights (Algorithm 3).

    Args:
        meta: where it starts; not changed.
        support: what to learn.
        schedule: how; the meta-model's own by default.
        seed: of the order of images, where they do not fit in one batch.
        on_step: told after every gradient step.
        should_stop: asked before every gradient step.
        on_trace: given the networks on both sides of the pruning, where there is one.
        on_snapshot: shown the networks before the first step and after every one.

    Raises:
        InvalidTaskError: images of another size than the meta-model's.
        AdaptationCancelledError: ``should_stop`` said so.
        DivergedError: a loss, a weight of an operation or an answer is infinite or no number.
    """
    schedule = schedule or meta.schedule
    expected = (meta.preprocessing.channels, meta.preprocessing.height, meta.preprocessing.width)
    if tuple(support.images.shape[1:]) != expected:
        raise InvalidTaskError(
            f"support images are (channels, height, width) {tuple(support.images.shape[1:])}, "
            f"the meta-model takes {expected}; prepare them with its preprocessing"
        )
    run = _Run(meta, support, schedule, seed, on_step, should_stop, on_snapshot)
    if not meta.searches:
        assert run.network.genotype is not None
        task_network = extract(run.network, run.head, run.network.genotype)
        run.learn_weights(task_network, steps=schedule.steps)
        return run.finish(task_network)
    genotype, mixtures = run.learn_architecture()
    task_network = extract(run.network, run.head, genotype)
    if on_trace is not None:
        assert isinstance(run.network, Network)
        on_trace(
            AdaptationTrace(
                one_shot=run.network, head=run.head, mixtures=mixtures, pruned=extract(run.network, run.head, genotype)
            )
        )
    run.learn_weights(task_network, steps=schedule.weight_steps)
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
        on_snapshot: Callable[[Snapshot], None] | None,
    ) -> None:
        self.meta, self.support, self.schedule, self.seed = meta, support, schedule, seed
        self.on_step, self.should_stop, self.on_snapshot = on_step, should_stop, on_snapshot
        canonical, self.order = support.canonical()
        self.images = scale(canonical.images, meta.preprocessing).contiguous(memory_format=torch.channels_last)
        self.labels = canonical.labels
        self.class_weights = 1.0 / torch.tensor(canonical.shots, dtype=torch.float32)
        self.batches = Batches(
            len(self.labels), batch_size=schedule.batch_size, generator=torch.Generator().manual_seed(seed)
        )
        self.noise = torch.Generator().manual_seed(seed ^ NOISE)
        self.distortions = torch.Generator().manual_seed(seed ^ DISTORTIONS)
        self.network = meta.build_network()
        self.architecture: Architecture = {
            name: value.clone().requires_grad_() for name, value in meta.architecture.items()
        }
        self.done = 0
        weights = self._operation_weights(schedule.temperature_start)
        self.head, self.start_features = start_head(
            self.network,
            weights=weights,
            images=self.images,
            labels=self.labels,
            n_way=support.n_way,
            scale=meta.head_scale,
            skip_below=schedule.skip_below,
            prior=meta.prior,
        )
        self.moments: Mapping[str, Tensor] = meta.moments
        self.step_rates: Mapping[str, Tensor] = meta.step_rates
        self.is_unlike_training = meta.variation is not None and self._is_unlike_training(weights)
        self.variation = None if self.is_unlike_training else meta.variation
        if self.variation is not None:
            of_head = self.variation.head_rates(steps=self.schedule.steps)
            self.step_rates = {**self.step_rates, f"{HEAD}weight": of_head, f"{HEAD}bias": of_head}
        self.budget = Budget(schedule.max_parameters, schedule.max_multiply_adds)
        self.budget_report: BudgetReport | None = None
        if self.budget:
            self._check_budget()

    @torch.no_grad()
    def _is_unlike_training(self, weights: Mapping[str, Tensor] | None) -> bool:
        """Whether features change more than those of meta-training's pictures if they are normalised as in steps.

        Steps normalise with their batch alone, answers with the statistics of meta-training as well. Where the two give
        other features, a head that moves as fast as under a variation learns what is not asked of it.
        """
        if self.meta.prior is None:
            return False
        features = self.network(self.images, weights, skip_below=self.schedule.skip_below)
        change = 1.0 - functional.cosine_similarity(features, self.start_features, dim=1).mean().item()
        share = self.meta.prior.images / (self.meta.prior.images + len(self.images))
        return not change <= MOST_CHANGE * share  # features that are no numbers count as unlike

    def learn_architecture(self) -> tuple[Genotype, dict[str, Mixture]]:
        """Move weights and architecture together while the temperature falls; say what survives."""
        schedule, space = self.schedule, self.meta.space
        assert isinstance(space, SearchSpace)
        parameters = Parameters(self.network, self.head, self.architecture)
        optimizer = self._optimizer(parameters)
        fixed = fixed_cost(space, cheapest(space), n_way=self.support.n_way) if self.budget else None
        for step in range(schedule.architecture_steps):
            temperature = step_temperature(step, schedule.architecture_steps, schedule)
            self._show(self.network, self.head, temperature)
            self._check()
            set_rates(optimizer, self.step_rates, step=self.done)
            rows = self.batches.next()
            weights = self._operation_weights(temperature, generator=self.noise)
            loss, logits = gradient_step(
                self.network,
                self.head,
                optimizer,
                weights=weights,
                images=self._drawn_again(rows),
                labels=self.labels[rows],
                class_weights=self.class_weights,
                skip_below=schedule.skip_below,
                variation=self.variation,
                penalty=(
                    None
                    if fixed is None or weights is None
                    else penalty(weights, budget=self.budget, space=space, fixed=fixed)
                ),
            )
            self._tell("architecture", loss, temperature, logits=logits, labels=self.labels[rows])
        self.moments = {**self.moments, **collect_moments(parameters, optimizer)}
        mixtures = self._mixtures(schedule.temperature_end)
        self._check_numbers("the weights of operations", *(mixture.rows for mixture in mixtures.values()))
        genotype = prune(mixtures, space, strategy=schedule.strategy, threshold=schedule.threshold)
        return (self._fit(genotype, space) if self.budget else genotype), mixtures

    def learn_weights(self, task_network: TaskNetwork, *, steps: int) -> None:
        """Move the weights of a network of fixed architecture on."""
        optimizer = self._optimizer(Parameters(task_network.network, task_network.head))
        for _ in range(steps):
            self._show(task_network.network, task_network.head, None)
            self._check()
            set_rates(optimizer, self.step_rates, step=self.done)
            rows = self.batches.next()
            loss, logits = gradient_step(
                task_network.network,
                task_network.head,
                optimizer,
                weights=None,
                images=self._drawn_again(rows),
                labels=self.labels[rows],
                class_weights=self.class_weights,
                skip_below=0.0,
                variation=self.variation,
            )
            self._tell("weights", loss, self.schedule.temperature_end, logits=logits, labels=self.labels[rows])
        self._show(task_network.network, task_network.head, None)

    def finish(self, task_network: TaskNetwork) -> TaskModel:
        """Freeze batch norm, put the classes back in the caller's order, report."""
        task_network.freeze_statistics(self.images, prior=self.meta.prior)
        with torch.no_grad():
            logits = task_network.head(task_network.features(self.images))
            self._check_numbers("the answers of the network", logits)
            correct = (logits.argmax(dim=1) == self.labels).float().mean().item()
            trust = measure(
                self.start_features, self.labels, task_network.head, known_similarity=self.meta.known_similarity
            )
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
                architecture_steps=self.schedule.architecture_steps if self.meta.searches else 0,
                weight_steps=self.schedule.weight_steps if self.meta.searches else self.schedule.steps,
                seed=self.seed,
                support_accuracy=correct,
                parameter_count=count_parameters(task_network),
                one_shot_parameter_count=total_parameters(self.network, self.support.n_way),
                budget=self.budget_report,
                is_unlike_training=self.is_unlike_training,
            ),
            trust=trust,
            provenance={"meta_model": dict(self.meta.provenance), "schedule": self.schedule.to_dict()},
        )

    def _check_budget(self) -> None:
        """Raise InvalidTaskError if no network of this meta-model fits the budget."""
        space, n_way = self.meta.space, self.support.n_way
        if self.meta.searches and isinstance(space, SearchSpace):
            check_possible(self.budget, space, n_way=n_way)
            return
        assert self.meta.genotype is not None
        cost = network_cost(space, self.meta.genotype, n_way=n_way)
        if self.budget.excess(cost) > 1:
            raise InvalidTaskError(
                f"the architecture of this meta-model is fixed and has {cost.parameters:,} parameters and "
                f"{cost.multiply_adds:,} multiply-adds, over the limit; raise it or take a meta-model that searches"
            )

    @torch.no_grad()
    def _fit(self, genotype: Genotype, space: SearchSpace) -> Genotype:
        """The architecture near ``genotype`` that fits the budget with the least loss on distorted support images."""
        some = torch.randperm(len(self.labels), generator=self.distortions)[:BUDGET_IMAGES]
        redrawn = distort(self.images[some], strength=1.0, generator=self.distortions)

        def logits(architecture: Genotype, images: Tensor) -> Tensor:
            rows = genotype_rows(architecture, space)
            run = {name: (values > 0).tolist() for name, values in rows.items()}
            assert isinstance(self.network, Network)
            return cast(Tensor, self.head(self.network(images, rows, run=run)))

        def loss(architecture: Genotype) -> float:
            self._check()
            return balanced_cross_entropy(logits(architecture, redrawn), self.labels[some], self.class_weights).item()

        def right(architecture: Genotype) -> float:
            return (logits(architecture, self.images).argmax(dim=1) == self.labels).float().mean().item()

        fitting = fit(genotype, budget=self.budget, space=space, n_way=self.support.n_way, loss=loss)
        before, after = (network_cost(space, one, n_way=self.support.n_way) for one in (genotype, fitting))
        self.budget_report = BudgetReport(
            max_parameters=self.budget.max_parameters,
            max_multiply_adds=self.budget.max_multiply_adds,
            multiply_adds=after.multiply_adds,
            unconstrained_parameter_count=before.parameters,
            unconstrained_multiply_adds=before.multiply_adds,
            unconstrained_support_accuracy=right(genotype),
            support_accuracy=right(fitting),
        )
        return fitting

    def _optimizer(self, parameters: Parameters) -> Optimizer:
        return build_optimizer(parameters, self.moments, schedule=self.schedule, rated=self.step_rates)

    @torch.no_grad()
    def _mixtures(self, temperature: float) -> dict[str, Mixture]:
        """Without noise."""
        assert isinstance(self.meta.space, SearchSpace)
        return relax(
            self.architecture,
            self.meta.space,
            temperature=temperature,
            strategy=self.schedule.strategy,
            relaxation=self.schedule.relaxation,
        )

    def _drawn_again(self, rows: Tensor) -> Tensor:
        return distort(self.images[rows], strength=self.schedule.augmentation, generator=self.distortions)

    def _check(self) -> None:
        if self.should_stop is not None and self.should_stop():
            raise AdaptationCancelledError(f"adaptation was stopped after {self.done} of {self.schedule.steps} steps")

    def _operation_weights(
        self, temperature: float, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor] | None:
        weights = operation_weights(
            self.network, self.architecture, schedule=self.schedule, temperature=temperature, generator=generator
        )
        self._check_numbers("the weights of operations", *(weights or {}).values())
        return weights

    def _check_numbers(self, what: str, *values: Tensor) -> None:
        for value in values:
            if not value.isfinite().all():
                raise DivergedError(
                    f"{what} are infinite or no numbers after step {self.done} of {self.schedule.steps} of adaptation; "
                    "take lower learning rates, or a meta-model that was trained with lower ones (variation_head_rate "
                    "is one)"
                )

    def _tell(self, phase: str, loss: Tensor, temperature: float, *, logits: Tensor, labels: Tensor) -> None:
        self.done += 1
        self._check_numbers("the loss and what the network answers", loss, logits)
        if self.on_step is not None:
            accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
            self.on_step(StepReport(phase, self.done, self.schedule.steps, float(loss), temperature, accuracy))

    def _show(self, network: Backbone, head: Head, temperature: float | None) -> None:
        """Where adaptation stands before its next step; ``temperature`` is None where the architecture is fixed."""
        if self.on_snapshot is None:
            return
        mixtures = None if temperature is None else self._mixtures(temperature)
        self.on_snapshot(
            Snapshot(
                step=self.done,
                temperature=self.schedule.temperature_end if temperature is None else temperature,
                network=network,
                head=head,
                weights=None if mixtures is None else {name: mixture.rows for name, mixture in mixtures.items()},
                mixtures=mixtures,
                images=self.images,
                order=tuple(self.order),
            )
        )
