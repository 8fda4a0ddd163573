"""The meta-training loop: phases of steps, with checkpoints, progress and validation.

    Trainer      one run; ``run`` goes on until the plan is done or a stop is asked for

The loop knows neither the command line nor where data come from. Every step depends only on
the state before it and on its own number, so a run that was stopped and resumed ends in the
same bits as one that was not.

Source: Elsken et al., CVPR 2020, Algorithms 1 and 2.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from metanas.model import Schedule
from metanas.preprocessing import Preprocessing, scale
from metanas.relaxation import relax
from metanas_training.config import Plan, TrainingConfig
from metanas_training.datasets import ImageClasses
from metanas_training.episodes import generator_for, sample_episode, sample_pairs
from metanas_training.evaluate import estimate, prototype_accuracy, sample_tasks
from metanas_training.prototype import prototype_step
from metanas_training.reptile import meta_step
from metanas_training.state import State, save_checkpoint

logger = logging.getLogger(__name__)

WARM_UP, SEARCH, JOINT, CALIBRATION = 0, 1, 2, 8
VALIDATION_SEED = 1


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """One step, for whoever shows progress."""

    phase: str
    step: int
    """Steps done in all phases."""
    steps: int
    """Steps of all phases."""
    loss: float
    accuracy: float
    """On training classes."""
    tasks: int
    """Tasks the step learned from; a batch of pairs counts as one."""
    images: int
    """Images that went forward and backward."""
    seconds: float
    validation: float | None
    """Accuracy on validation classes where it was measured after this step."""


class Trainer:
    """One run of meta-training.

    Args:
        config: what to do.
        state: where to start from; changed by every step.
        train, validation: classes of the two splits.
        checkpoint: where checkpoints go.
    """

    def __init__(
        self,
        config: TrainingConfig,
        state: State,
        *,
        train: ImageClasses,
        validation: ImageClasses,
        checkpoint: Path,
    ) -> None:
        self.config, self.state = config, state
        self.train, self.validation = train, validation
        self.checkpoint = checkpoint
        self.preprocessing: Preprocessing = train.preprocessing
        self.schedule = config.schedule()

    def run(self, *, on_step: Callable[[StepOutcome], None], should_stop: Callable[[], bool]) -> bool:
        """Go on until the plan is done.

        Returns:
            True when the plan is done; False when ``should_stop`` asked to stop. Either way a
            checkpoint has been written.
        """
        state = self.state
        state.plan = state.plan or self.config.plan or self._plan_for_minutes()
        phases = state.plan.phases()
        steps = sum(count for _, count in phases)
        every = max(1, steps // max(1, self.config.validations))
        saved = time.monotonic()
        while state.phase < len(phases):
            name, count = phases[state.phase]
            while state.step < count:
                if should_stop():
                    save_checkpoint(self.checkpoint, state, self.config)
                    return False
                started = time.perf_counter()
                loss, accuracy, tasks, images = self._step(count)
                seconds = time.perf_counter() - started
                state.step += 1
                state.seconds += seconds
                done = sum(earlier for _, earlier in phases[: state.phase]) + state.step
                validation = self._validate(done) if done % every == 0 or done == steps else None
                on_step(StepOutcome(name, done, steps, loss, accuracy, tasks, images, seconds, validation))
                if time.monotonic() - saved > 60 * self.config.checkpoint_minutes:
                    save_checkpoint(self.checkpoint, state, self.config)
                    saved = time.monotonic()
            if state.phase == SEARCH and count:
                self._fold_temperature()
            state.phase, state.step = state.phase + 1, 0
        save_checkpoint(self.checkpoint, state, self.config)
        return True

    def _step(self, count: int) -> tuple[float, float, int, int]:
        """Loss, accuracy, tasks and images of one step of the current phase."""
        if self.state.phase == JOINT:
            return self._meta_step(count, learn_architecture=True)
        if self.config.warm_up == "reptile":
            return self._meta_step(count, learn_architecture=False)
        return self._prototype_step(self.state.phase, self.state.step)

    def _prototype_step(self, phase: int, step: int) -> tuple[float, float, int, int]:
        config, state = self.config, self.state
        assert state.plan is not None
        done, total = step + phase * state.plan.warm_up, state.plan.warm_up + state.plan.search
        rate = config.prototype_learning_rate * (1 + math.cos(math.pi * done / total)) / 2
        falling = phase == SEARCH and step < state.plan.fall
        state.optimizer.param_groups[0]["lr"] = rate
        state.optimizer.param_groups[1]["lr"] = config.search_architecture_travel / max(1, state.plan.fall)
        for value in state.architecture.values():
            value.requires_grad_(falling)
            value.grad = None  # so that Adam leaves it alone when it does not learn
        images = sample_pairs(
            self.train, count=config.pair_classes, generator=generator_for(config.seed, phase, step)
        ).to(config.device)
        loss, accuracy = prototype_step(
            state.network,
            state.architecture,
            log_scale=state.log_scale,
            optimizer=state.optimizer,
            images=scale(images, self.preprocessing),
            temperature=self._temperature(phase, step),
            skip_below=config.search_skip_below if phase == SEARCH else 0.0,
        )
        return loss, accuracy, 1, len(images)

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

    def _meta_step(self, count: int, *, learn_architecture: bool) -> tuple[float, float, int, int]:
        config, state = self.config, self.state
        decay = 1.0 - state.step / count
        for value in state.architecture.values():
            value.requires_grad_(learn_architecture)
        places = [(config.seed, state.phase, state.step, task) for task in range(config.meta_batch_size)]
        n_way = min(config.n_way, len(self.train))
        episodes = [
            sample_episode(
                self.train,
                n_way=n_way,
                n_shot=min(config.train_shots, self.train.smallest),
                n_query=0,
                generator=generator_for(*place, 0),
            )
            for place in places
        ]
        outcome = meta_step(
            state.network,
            state.architecture,
            episodes,
            schedule=Schedule.from_dict(
                {**self.schedule.to_dict(), "architecture_steps": config.inner_steps, "weight_steps": 0}
            ),
            head_scale=state.log_scale.exp().item(),
            preprocessing=self.preprocessing,
            moments=state.moments,
            generators=[generator_for(*place, 1) for place in places],
            learn_architecture=learn_architecture,
            meta_learning_rate=config.meta_learning_rate * decay,
            meta_architecture_learning_rate=config.meta_architecture_learning_rate * decay,
        )
        state.moments = outcome.moments
        images = config.meta_batch_size * config.inner_steps * min(config.inner_batch_size, n_way * config.train_shots)
        return outcome.loss, outcome.accuracy, config.meta_batch_size, images

    def _validate(self, done: int) -> float:
        """Accuracy of prototypes on validation classes, inductive and without adaptation."""
        config, state = self.config, self.state
        with torch.no_grad():
            mixtures = relax(
                state.architecture, state.network.space, temperature=self._temperature(state.phase, state.step - 1)
            )
            weights = {name: mixture.rows for name, mixture in mixtures.items()}
        episodes = sample_tasks(
            self.validation,
            n_way=min(config.n_way, len(self.validation)),
            n_shot=min(config.eval_shots, self.validation.smallest - 1),
            n_query=5,
            tasks=config.validation_tasks,
            seed=VALIDATION_SEED,
        )
        result = estimate(
            [
                prototype_accuracy(
                    state.network,
                    weights,
                    episode,
                    preprocessing=self.preprocessing,
                    skip_below=config.search_skip_below,
                )
                for episode in episodes
            ]
        )
        state.history.append({"step": done, "seconds": state.seconds, "accuracy": result.mean})
        return result.mean

    def _plan_for_minutes(self) -> Plan:
        """As many steps as fit into the minutes, by the time that one step of the dense network takes.

        Four fifths of the time are for the steps; the rest is for validation and evaluation.
        """
        config = self.config
        seconds = 48.0 * config.minutes
        dense = self._time_prototype()
        # A meta-step costs as much as the images that go through it; each task's head is one batch more.
        images = config.meta_batch_size * (config.inner_steps + 1) * config.inner_batch_size
        batches_a_meta_step = images / (2 * config.pair_classes)
        if config.warm_up == "reptile":
            half = max(1, round(seconds / 2 / (dense * batches_a_meta_step)))
            return Plan(warm_up=half, search=0, fall=0, joint=half)
        sparse = dense / 4  # about what is left of the network after the search
        joint = sparse * batches_a_meta_step
        fall = max(1, round(0.3 * seconds / (0.6 * dense)))
        plan = Plan(
            warm_up=max(1, round(0.3 * seconds / dense)),
            search=fall + max(1, round(0.25 * seconds / sparse)),
            fall=fall,
            joint=max(1, round(0.15 * seconds / joint)),
        )
        logger.info("one step of the dense network takes %.2f s; plan for %g minutes: %s", dense, config.minutes, plan)
        return plan

    def _time_prototype(self) -> float:
        config = self.config
        images = sample_pairs(
            self.train, count=config.pair_classes, generator=generator_for(config.seed, CALIBRATION)
        ).to(config.device)
        with torch.no_grad():
            mixtures = relax(self.state.architecture, self.state.network.space, temperature=1.0)
        weights = {name: mixture.rows for name, mixture in mixtures.items()}
        times = []
        for _ in range(2):
            started = time.perf_counter()
            self.state.network(scale(images, self.preprocessing), weights).square().sum().backward()
            times.append(time.perf_counter() - started)
        self.state.network.zero_grad(set_to_none=True)
        return min(times)
