"""Search on a single task by first-order DARTS, with a temperature that falls.

    SingleTaskSearch   one run: alternating steps on the architecture and on the weights
    architecture_step, weight_step   one gradient step each

Half of the training images teach the weights, the other half the architecture. The temperature
of whatever the strategy makes sparse falls geometrically, step by step, from 1 to its end, so
that all temperatures are equally new to the weights. (``relaxation.anneal`` falls linearly; the
range in which most choices fall, below 0.3, would then be crossed in the last quarter.) Every step
depends only on the state before it and on its own number, so a run that was stopped and resumed
ends in the same bits as one that was not.

Sources: Liu et al. (DARTS), ICLR 2019, first-order; Elsken et al., CVPR 2020, appendix A.1.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from metanas.preprocessing import Preprocessing, scale
from metanas.relaxation import Mixture, Strategy, relax
from metanas_training.episodes import generator_for
from metanas_training.errors import check_finite
from metanas_training.single_task_images import Labelled, augment
from metanas_training.single_task_state import RunSettings, SearchState, save_checkpoint

WEIGHTS, ARCHITECTURE = 1, 2
"""Places of the two halves among the generators of a seed."""
ORDER, AUGMENTATION = 0, 1
"""Places of their draws."""


class Sparsity(TypedDict):
    """How the architecture becomes the weights of the mixture in one step."""

    temperature: float
    strategy: Strategy
    skip_below: float


class SingleTaskSearch:
    """One run of the search.

    Args:
        settings: what to do.
        state: where to start from; changed by every step.
        halves: images for the weights and for the architecture.
        preprocessing: of the images.
        checkpoint: where checkpoints go, one after every epoch.
    """

    def __init__(
        self,
        settings: RunSettings,
        state: SearchState,
        *,
        halves: tuple[Labelled, Labelled],
        preprocessing: Preprocessing,
        checkpoint: Path,
    ) -> None:
        self.settings, self.state = settings, state
        self.halves = dict(zip((WEIGHTS, ARCHITECTURE), halves, strict=True))
        self.preprocessing = preprocessing
        self.checkpoint = checkpoint
        config = settings.config
        # Without what does not fill a batch: the statistics of a few images are no statistics.
        self.epoch_steps = max(1, min(len(half) for half in halves) // config.batch_size)
        self.steps = config.epochs * self.epoch_steps

    def run(self, *, on_epoch: Callable[[dict[str, float]], None], should_stop: Callable[[], bool]) -> bool:
        """Go on until all epochs are done.

        Args:
            on_epoch: is given the row that the epoch adds to ``state.history``.

        Returns:
            True when they are done; False when ``should_stop`` asked to stop. Either way a
            checkpoint has been written.

        Raises:
            NonFiniteError: a loss is infinite or NaN; the checkpoint before it is left.
        """
        state = self.state
        while state.step < self.steps:
            if should_stop():
                save_checkpoint(self.checkpoint, state, self.settings)
                return False
            started, cpu_started = time.perf_counter(), time.process_time()
            measured = self._step()
            state.seconds += time.perf_counter() - started
            state.cpu_seconds += time.process_time() - cpu_started
            state.step += 1
            for name, value in measured.items():
                state.sums[name] = state.sums.get(name, 0.0) + value
            if state.step % self.epoch_steps == 0:
                state.history.append(self._row())
                state.sums = {}
                save_checkpoint(self.checkpoint, state, self.settings)
                on_epoch(state.history[-1])
        return True

    def temperature(self, step: int) -> float:
        """At step ``step``, counted from 0: geometric, at its end with the last step of ``fall_epochs``."""
        config = self.settings.config
        progress = min(1.0, (step + 1) / (config.fall_epochs * self.epoch_steps))
        return float(config.temperature_end**progress)

    def learning_rate(self, step: int) -> float:
        """Of the weights at step ``step``, counted from 0: half a cosine over all steps."""
        config = self.settings.config
        share = (1 + math.cos(math.pi * step / self.steps)) / 2
        return config.learning_rate_end + (config.learning_rate - config.learning_rate_end) * share

    def _step(self) -> dict[str, float]:
        state, config, step = self.state, self.settings.config, self.state.step
        shared: Sparsity = {
            "temperature": self.temperature(step),
            "strategy": self.settings.strategy,
            "skip_below": config.skip_below,
        }
        state.weight_optimizer.param_groups[0]["lr"] = self.learning_rate(step)
        images, labels = self._batch(ARCHITECTURE)
        loss, accuracy = architecture_step(state, images, labels=labels, **shared)
        check_finite(loss, f"architecture step {step + 1} of {self.steps}")
        measured = {"architecture_loss": loss, "architecture_accuracy": accuracy}
        images, labels = self._batch(WEIGHTS)
        loss, accuracy = weight_step(state, images, labels=labels, gradient_clip=config.gradient_clip, **shared)
        check_finite(loss, f"weight step {step + 1} of {self.steps}")
        return measured | {"weight_loss": loss, "weight_accuracy": accuracy}

    def _batch(self, half: int) -> tuple[Tensor, Tensor]:
        config, seed = self.settings.config, self.settings.seed
        epoch, place = divmod(self.state.step, self.epoch_steps)
        found = self.halves[half]
        order = torch.randperm(len(found), generator=generator_for(seed, half, ORDER, epoch))
        chosen = order[place * config.batch_size : (place + 1) * config.batch_size]
        images = augment(
            found.images[chosen],
            padding=config.crop_padding,
            generator=generator_for(seed, half, AUGMENTATION, self.state.step),
        )
        return scale(images, self.preprocessing), found.labels[chosen]

    def _row(self) -> dict[str, float]:
        state = self.state
        temperature = self.temperature(state.step - 1)
        mixtures = fixed_mixtures(state, temperature=temperature, strategy=self.settings.strategy)
        largest = torch.cat([mixture.operations.max(dim=1).values for mixture in mixtures.values()])
        run = torch.cat([mixture.rows for mixture in mixtures.values()]) >= self.settings.config.skip_below
        return {
            "epoch": state.step // self.epoch_steps,
            "step": state.step,
            "temperature": temperature,
            "learning_rate": self.learning_rate(state.step - 1),
            **{name: value / self.epoch_steps for name, value in state.sums.items()},
            "largest_operation_weight": largest.mean().item(),
            "operations_run": run.float().mean().item(),
            "seconds": state.seconds,
            "cpu_seconds": state.cpu_seconds,
        }


def architecture_step(
    state: SearchState,
    images: Tensor,
    *,
    labels: Tensor,
    temperature: float,
    strategy: Strategy,
    skip_below: float,
) -> tuple[float, float]:
    """One step of Adam on the architecture; the weights stay (first-order DARTS).

    Args:
        images: float32 ``(batch, channels, H, W)``.
        labels: int64 ``(batch,)``.

    Returns:
        Loss and accuracy before the step.
    """
    mixtures = relax(state.architecture, state.network.space, temperature=temperature, strategy=strategy)
    logits = run_mixture(state, images, mixtures=mixtures, skip_below=skip_below)
    loss = functional.cross_entropy(logits, labels)
    parameters = list(state.architecture.values())
    # Those of the inputs have no gradient where the strategy just adds the inputs up.
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    state.architecture_optimizer.step()
    return loss.item(), _right(logits, labels)


def weight_step(
    state: SearchState,
    images: Tensor,
    *,
    labels: Tensor,
    temperature: float,
    strategy: Strategy,
    skip_below: float,
    gradient_clip: float,
) -> tuple[float, float]:
    """One step of SGD on weights and head; the architecture stays.

    Arguments and what comes back are those of ``architecture_step``.

    Args:
        gradient_clip: largest norm of the gradient of all weights together.
    """
    mixtures = fixed_mixtures(state, temperature=temperature, strategy=strategy)
    logits = run_mixture(state, images, mixtures=mixtures, skip_below=skip_below)
    loss = functional.cross_entropy(logits, labels)
    state.weight_optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(state.parameters, gradient_clip)
    state.weight_optimizer.step()
    return loss.item(), _right(logits, labels)


@torch.no_grad()
def fixed_mixtures(state: SearchState, *, temperature: float, strategy: Strategy) -> dict[str, Mixture]:
    """The weights of the mixture as constants."""
    return relax(state.architecture, state.network.space, temperature=temperature, strategy=strategy)


def run_mixture(state: SearchState, images: Tensor, *, mixtures: dict[str, Mixture], skip_below: float) -> Tensor:
    """The one-shot network with its head: float32 ``(batch, channels, H, W)`` to logits ``(batch, n_way)``."""
    weights = {name: mixture.rows for name, mixture in mixtures.items()}
    logits: Tensor = state.head(state.network(images, weights, skip_below=skip_below))
    return logits


def _right(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(dim=1) == labels).float().mean().item()
