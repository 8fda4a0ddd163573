"""The meta-training loop: phases of steps, with checkpoints, progress and validation.

    Trainer      one run; ``run`` goes on until the plan is done or a stop is asked for

The loop knows neither the command line nor where data come from. Every step depends only on
the state before it and on its own number, so a run that was stopped and resumed ends in the
same bits as one that was not, and so does one that several processes share.

Source: Elsken et al., CVPR 2020, Algorithms 1 and 2.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from metanas.augmentation import distort, mirror, recolour
from metanas.errors import InvalidConfigError
from metanas.network import Network
from metanas.preprocessing import Preprocessing, scale
from metanas.schedule import Schedule
from metanas.steps import operation_weights
from metanas_training.batch_drawing import Batch, BatchSource, Place
from metanas_training.config import Plan, TrainingConfig
from metanas_training.datasets import ImageClasses
from metanas_training.episodes import generator_for, sample_episode
from metanas_training.errors import DatasetError, NonFiniteError, WorkerLostError, check_finite
from metanas_training.evaluate import Start, sample_tasks
from metanas_training.group import Group
from metanas_training.maml import MAML, initial_step_rates
from metanas_training.meta_learner import ARCHITECTURE, NETWORK, Contribution, MetaLearner, MetaTask
from metanas_training.planning import plan_for_minutes
from metanas_training.progress import StepOutcome
from metanas_training.prototype import add, descend, gradients, prototype_loss, supervised_loss
from metanas_training.reptile import Reptile
from metanas_training.scores import estimate
from metanas_training.state import State, save_checkpoint
from metanas_training.together import TogetherReptile
from metanas_training.undecided import warn_if_undecided

logger = logging.getLogger(__name__)

WARM_UP, SEARCH, JOINT = 0, 1, 2
VALIDATION_SEED = 1


class Trainer:
    """One run of meta-training.

    Args:
        config: what to do.
        state: where to start from; changed by every step.
        train, validation: classes of the two splits.
        checkpoint: where checkpoints go.
        group: the processes that share the run.
    """

    def __init__(
        self,
        config: TrainingConfig,
        state: State,
        *,
        train: ImageClasses,
        validation: ImageClasses,
        checkpoint: Path,
        group: Group | None = None,
    ) -> None:
        self.config, self.state, self.group = config, state, group or Group()
        self.train, self.validation = train, validation
        self.checkpoint = checkpoint
        self.batches = BatchSource(config, train)
        self.preprocessing: Preprocessing = train.preprocessing
        if config.learned_rates and not state.step_rates:
            state.step_rates = initial_step_rates(state.network, state.architecture, self._inner_schedule())
        for name, asked, there in (
            ("ways", config.n_way, len(train)),
            ("training images a class", config.train_shots, train.smallest),
        ):
            if asked > there and self.group.leads:
                logger.warning("%s has only %d %s, not %d: tasks take those", train.name, there, name, asked)

    def run(self, *, on_step: Callable[[StepOutcome], None], should_stop: Callable[[], bool]) -> bool:
        """Go on until the plan is done.

        Returns:
            True when the plan is done; False when ``should_stop`` asked to stop, in any process, be it in the
            last step. Either way a checkpoint has been written.

        Raises:
            InvalidConfigError: fewer tasks or batches in a step than processes.
            NonFiniteError: a loss is not finite; the message names the step.
            WorkerLostError: another process is gone; the leading one has written a checkpoint.
        """
        try:
            return self._run(on_step=on_step, should_stop=should_stop)
        except WorkerLostError:
            self._save()  # a step changes the state only after the sum in which the loss was noticed
            raise

    def _run(self, *, on_step: Callable[[StepOutcome], None], should_stop: Callable[[], bool]) -> bool:
        state = self.state
        state.plan = state.plan or self.config.plan or self._plan()
        self._check_shares(state.plan)
        phases = state.plan.phases()
        steps = sum(count for _, count in phases)
        every = max(1, -(-steps // self.config.validations))
        saved = time.monotonic()
        while state.phase < len(phases):
            name, count = phases[state.phase]
            while state.step < count:
                if self.group.any(should_stop()):
                    self._save()
                    return False
                done = sum(earlier for _, earlier in phases[: state.phase]) + state.step + 1
                started, cpu_started = time.perf_counter(), time.process_time()
                with _naming(f"{name} step {state.step + 1} (step {done} of {steps})"):
                    outcome, images = self._step()
                seconds = time.perf_counter() - started
                state.step += 1
                state.seconds += seconds
                state.cpu_seconds += time.process_time() - cpu_started
                if state.phase == SEARCH and state.step == state.plan.fall and self.group.leads:
                    warn_if_undecided(self.config, state, temperature=self._temperature(SEARCH, state.step - 1))
                validation = self._validate(done) if done % every == 0 or done == steps else None
                on_step(
                    StepOutcome(
                        name, done, steps, outcome.loss, outcome.accuracy, outcome.tasks, images, seconds, validation
                    )
                )
                if time.monotonic() - saved > 60 * self.config.checkpoint_minutes:
                    self._save()
                    saved = time.monotonic()
            if state.phase == SEARCH and count:
                self._fold_temperature()
            state.phase, state.step = state.phase + 1, 0
        self._save()
        return not self.group.any(should_stop())  # asked for in the last step

    def _check_shares(self, plan: Plan) -> None:
        """Raise InvalidConfigError if a phase of the plan has less to do in a step than there are processes."""
        by_meta_learner = self.config.warm_up == "meta"
        used = {
            "meta_batch_size": plan.joint + (plan.warm_up if by_meta_learner else 0),
            "prototype_batches": plan.search + (0 if by_meta_learner else plan.warm_up),
        }
        for name, steps in used.items():
            if steps and getattr(self.config, name) < self.group.size:
                raise InvalidConfigError(
                    f"{name} is {getattr(self.config, name)}, too few for {self.group.size} processes to share; "
                    f"set it to {self.group.size} or more"
                )

    def _save(self) -> None:
        if self.group.leads:
            save_checkpoint(self.checkpoint, self.state, self.config)

    def _step(self) -> tuple[Contribution, int]:
        """The mean contribution and the number of images of one step of the current phase."""
        if self.state.phase == JOINT:
            return self._meta_step(learn_architecture=True)
        if self.config.warm_up == "meta":
            return self._meta_step(learn_architecture=False)
        return self._batch_step(self.state.phase, self.state.step)

    def _batch_step(self, phase: int, step: int) -> tuple[Contribution, int]:
        """A step of the prototype or the supervised loss."""
        config, state = self.config, self.state
        assert state.plan is not None
        done, total = step + phase * state.plan.warm_up, state.plan.warm_up + state.plan.search
        rate = config.prototype_learning_rate * (1 + math.cos(math.pi * done / total)) / 2
        falling = phase == SEARCH and step < state.plan.fall
        state.optimizer.param_groups[0]["lr"] = rate
        state.optimizer.param_groups[1]["lr"] = config.search_architecture_travel / max(1, state.plan.fall)
        for value in state.architecture.values():
            value.requires_grad_(falling)
        leaves = self._leaves()
        places = self._places(phase, step)
        batches = [self.batches.take(place) for place in places]
        self.batches.start(self._places(phase, step + 1))
        parts = []
        for place, batch in zip(places, batches, strict=True):
            parts.append(self._batch_gradients(batch, leaves, phase, step))
            check_finite(parts[-1].loss, f"batch {place[-1] + 1}")
        mean = self.group.sum(add(parts)).mean()
        descend(state.optimizer, leaves, mean)
        return mean, config.prototype_batches * min(2 * config.pair_classes, 2 * len(self.train))

    def _places(self, phase: int, step: int) -> list[Place]:
        """Of the batches of a step that this process takes, each with a generator of its own."""
        config = self.config
        return self.group.share([(config.seed, phase, step, batch) for batch in range(config.prototype_batches)])

    def _leaves(self) -> dict[str, Tensor]:
        """What the prototype and the supervised loss move, by name."""
        state = self.state
        leaves: dict[str, Tensor] = {f"{NETWORK}{name}": value for name, value in state.network.named_parameters()}
        leaves.update({f"{ARCHITECTURE}{name}": value for name, value in state.architecture.items()})
        leaves["log_scale"] = state.log_scale
        if state.classifier is not None:
            leaves["classifier"] = state.classifier
        return leaves

    def _batch_gradients(self, batch: Batch, leaves: dict[str, Tensor], phase: int, step: int) -> Contribution:
        config, state = self.config, self.state
        images, labels, generator = batch
        weights = operation_weights(
            state.network,
            state.architecture,
            schedule=config.task,
            temperature=self._temperature(phase, step),
            generator=generator,
        )
        prepared = scale(images.to(config.device), self.preprocessing)
        if config.mirroring:
            prepared = mirror(prepared, generator=generator)
        prepared = recolour(prepared, strength=config.recolouring, generator=generator)
        prepared = distort(prepared, strength=config.augmentation, generator=generator)
        low = config.device == "cuda" and config.precision == "bfloat16"
        with torch.autocast("cuda", torch.bfloat16, enabled=low):
            parts = [
                state.network(
                    part,
                    weights,
                    skip_below=config.search_skip_below if phase == SEARCH else 0.0,
                    paths=self._paths(len(part), generator),
                )
                for part in torch.split(prepared, config.normalised_together or len(prepared))
            ]
        features = torch.cat(parts).float()
        if labels is not None and state.classifier is not None:
            loss, accuracy = supervised_loss(
                features, state.classifier, labels.to(config.device), state.log_scale.exp()
            )
        else:
            loss, accuracy = prototype_loss(features, state.log_scale.exp())
        return gradients(loss, accuracy, leaves)

    def _paths(self, batch: int, generator: torch.Generator) -> Tensor | None:
        network = self.state.network
        if self.config.drop_path == 0.0 or not isinstance(network, Network):
            return None
        return network.draw_paths(batch, probability=self.config.drop_path, generator=generator)

    def _temperature(self, phase: int, step: int) -> float:
        """Of the prototype phases: 1 in the warm-up, falling once in the search, then low; 1 after it."""
        if phase != SEARCH:
            return 1.0
        assert self.state.plan is not None
        progress = min(1.0, (step + 1) / max(1, self.state.plan.fall))
        # Geometric: all temperatures are equally new to the weights, and most of the fall is sparse.
        return float(self.config.search_temperature_end**progress)

    def _fold_temperature(self) -> None:
        """Divide the architecture by the temperature that the search ended at.

        The mixture at temperature 1, where every task starts, is then the very mixture that
        the weights were trained in.
        """
        with torch.no_grad():
            for value in self.state.architecture.values():
                value /= self.config.search_temperature_end

    def _meta_progress(self) -> float:
        """The fraction of the meta-learner's steps that are done: of the joint phase, and of a warm-up of its own."""
        state = self.state
        assert state.plan is not None
        before = state.plan.warm_up if self.config.warm_up == "meta" else 0
        done = state.step + (before if state.phase == JOINT else 0)
        return done / (before + state.plan.joint)

    def _meta_step(self, *, learn_architecture: bool) -> tuple[Contribution, int]:
        config, state = self.config, self.state
        progress = self._meta_progress()
        learn_architecture = learn_architecture and bool(state.architecture)
        for value in state.architecture.values():
            value.requires_grad_(learn_architecture)
        learner = self._learner(progress=progress)
        if config.meta_optimizer == "adam":
            self._prepare_adam()
        n_way = min(config.n_way, len(self.train))
        queries = config.train_queries if config.meta_learner != "reptile" else 0
        shots = min(config.train_shots, self.train.smallest - queries)
        if shots < 1:
            raise DatasetError(
                f"the smallest class of {self.train.name} has {self.train.smallest} images: {queries} query images "
                "leave none to learn from; lower train_queries"
            )
        places = [(config.seed, state.phase, state.step, task) for task in range(config.meta_batch_size)]
        tasks = [
            MetaTask(
                sample_episode(
                    self.train, n_way=n_way, n_shot=shots, n_query=queries, generator=generator_for(*place, 0)
                ),
                generator_for(*place, 1),
            )
            for place in self.group.share(places)
        ]
        part = learner.learn(state, tasks, learn_architecture=learn_architecture)
        mean = self.group.sum(part).mean()
        learner.move(state, mean, decay=1.0 - progress, learn_architecture=learn_architecture)
        batch = min(config.task.batch_size, n_way * shots)
        return mean, config.meta_batch_size * config.inner_steps * (batch + n_way * queries)

    def _inner_schedule(self) -> Schedule:
        """How the tasks of meta-training are learned: the first steps of what serving does."""
        return replace(self.config.task, architecture_steps=self.config.inner_steps, weight_steps=0)

    def _prepare_adam(self) -> None:
        """Make the optimiser MAML's: Adam's own betas, no weight decay, no moments of an earlier phase."""
        state = self.state
        for group in state.optimizer.param_groups:
            group["betas"], group["weight_decay"] = (0.9, 0.999), 0.0
        if state.step == 0 and state.phase == (WARM_UP if self.config.warm_up == "meta" else JOINT):
            state.optimizer.state.clear()

    def _learner(self, *, progress: float) -> MetaLearner:
        config = self.config
        schedule = self._inner_schedule()
        if config.meta_learner != "reptile":
            return MAML(
                schedule=schedule,
                preprocessing=self.preprocessing,
                second_order=config.meta_learner == "maml",
                multi_step_loss=config.multi_step_loss,
                learned_rates=config.learned_rates,
                learning_rate=config.meta_learning_rate,
                architecture_learning_rate=config.meta_architecture_learning_rate,
                step_rate_learning_rate=config.step_rate_learning_rate,
                gradient_clip=config.gradient_clip,
                adam=self.state.optimizer if config.meta_optimizer == "adam" else None,
                progress=progress,
            )
        reptile = Reptile(
            schedule=schedule,
            preprocessing=self.preprocessing,
            learning_rate=config.meta_learning_rate,
            architecture_learning_rate=config.meta_architecture_learning_rate,
            drop_path=config.drop_path,
        )
        return TogetherReptile(reptile, precision=config.precision) if config.together else reptile

    def _validate(self, done: int) -> float | None:
        """Accuracy of prototypes on validation classes, inductive and without adaptation."""
        if not self.group.leads:
            return None
        config, state = self.config, self.state
        with torch.no_grad():
            weights = operation_weights(
                state.network,
                state.architecture,
                schedule=config.task,
                temperature=self._temperature(state.phase, state.step - 1),
            )
        episodes = sample_tasks(
            self.validation,
            n_way=min(config.n_way, len(self.validation)),
            n_shot=min(config.eval_shots, self.validation.smallest - 1),
            n_query=5,
            tasks=config.validation_tasks,
            seed=VALIDATION_SEED,
        )
        start = Start(state.network, weights, self.preprocessing, config.search_skip_below)
        result = estimate([start.accuracy(episode) for episode in episodes])
        state.history.append({"step": done, "seconds": state.seconds, "accuracy": result.mean})
        return result.mean

    def _plan(self) -> Plan:
        return plan_for_minutes(self.config, self.state, train=self.train, group=self.group)


@contextmanager
def _naming(step: str) -> Iterator[None]:
    """Errors of the losses say in which step they were found."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{step}: {error}") from error
