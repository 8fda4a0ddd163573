"""How many steps fit into the minutes: one batch is timed, the rest is arithmetic.

plan_for_minutes   configuration, network  ->  Plan
"""

import logging
import time

import torch

from metanas.learner import operation_weights
from metanas.preprocessing import scale
from metanas_training.config import Plan, TrainingConfig
from metanas_training.datasets import ImageClasses
from metanas_training.episodes import generator_for, sample_pairs
from metanas_training.group import Group
from metanas_training.state import State

logger = logging.getLogger(__name__)

CALIBRATION = 8
"""Place of the timed batch among the generators of a seed."""

STEPS_SHARE = 0.8
"""Of the minutes, for steps; the rest is for validation and evaluation."""

WARM_UP_SHARE, FALL_SHARE = 0.15, 0.15
"""Of the time before the joint phase; the rest is for the weights of what the search has left."""

LEARNER_COST = {"reptile": 1.0, "first_order_maml": 1.5, "maml": 6.0}
"""About what a meta-step costs, against that of forward and backward passes over its support images."""

SPARSE = 0.25
"""About what a step costs after the search, against one of the dense network."""


def plan_for_minutes(config: TrainingConfig, state: State, *, train: ImageClasses, group: Group) -> Plan:
    """As many steps as fit into ``config.minutes``, by the time that one batch takes.

    All processes of ``group`` plan alike, by the slowest of them.
    """
    seconds = 60.0 * config.minutes * STEPS_SHARE
    batch = group.largest(_time_batch(config, state, train))
    step = batch * -(-config.prototype_batches // group.size)
    # A meta-step costs as much as the images that go through it; each task's head is one batch more.
    support = min(config.task.batch_size, config.n_way * config.train_shots)
    images = -(-config.meta_batch_size // group.size) * (config.inner_steps + 1) * support
    meta_step = LEARNER_COST[config.meta_learner] * batch * images / (2 * config.pair_classes)
    searches = bool(state.architecture)

    def count(share: float, cost: float) -> int:
        return max(1, round(share * seconds / cost)) if share > 0 else 0

    if config.warm_up == "meta":
        # The paper: the architecture rests for the first half.
        half = 0.5 if searches else 0.0
        plan = Plan(warm_up=count(half, meta_step), joint=count(1.0 - half, meta_step))
    elif not searches:
        plan = Plan(warm_up=count(1.0 - config.joint_share, step), joint=count(config.joint_share, meta_step))
    else:
        rest = 1.0 - config.joint_share
        fall = count(FALL_SHARE * rest, 0.6 * step)
        plan = Plan(
            warm_up=count(WARM_UP_SHARE * rest, step),
            search=fall + count((1.0 - WARM_UP_SHARE - FALL_SHARE) * rest, SPARSE * step),
            fall=fall,
            joint=count(config.joint_share, SPARSE * meta_step),
        )
    logger.info("one batch of %d images takes %.2f s; %s", 2 * config.pair_classes, batch, plan)
    return plan


def _time_batch(config: TrainingConfig, state: State, train: ImageClasses) -> float:
    """Seconds of processor time of one forward and backward pass of the dense network."""
    images = sample_pairs(train, count=config.pair_classes, generator=generator_for(config.seed, CALIBRATION))
    prepared = scale(images.to(config.device), train.preprocessing)
    with torch.no_grad():
        weights = operation_weights(state.network, state.architecture, schedule=config.task, temperature=1.0)
    # Processor time on a CPU: a busy machine must not change the plan.
    clock = time.perf_counter if config.device == "cuda" else time.process_time
    times = []
    for _ in range(3):
        started = clock()
        state.network(prepared, weights).square().sum().backward()
        if config.device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - started)
    state.network.zero_grad(set_to_none=True)
    return min(times)
