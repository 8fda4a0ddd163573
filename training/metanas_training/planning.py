"""How many steps fit into the minutes: batches are timed, the rest is arithmetic.

plan_for_minutes   configuration, network  ->  Plan
"""

import logging
import time

import torch

from metanas.preprocessing import scale
from metanas.steps import operation_weights
from metanas_training.config import Plan, TrainingConfig
from metanas_training.datasets import ImageClasses
from metanas_training.episodes import generator_for, sample_images
from metanas_training.group import Group
from metanas_training.state import State

logger = logging.getLogger(__name__)

CALIBRATION = 8
"""Place of the timed batches among the generators of a seed."""

STEPS_SHARE = 0.8
"""Of the minutes, for steps; the rest is for validation and evaluation."""

WARM_UP_SHARE, FALL_SHARE = 0.15, 0.15
"""Of the time before the joint phase; the rest is for the weights of what the search has left."""

FALLING = 0.6
"""About what a step costs while the temperature falls, against one of the dense network."""

LEARNER_COST = {"reptile": 1.0, "first_order_maml": 1.5, "maml": 6.0}
"""About what a meta-step costs, against that of forward and backward passes over its support images."""


def plan_for_minutes(config: TrainingConfig, state: State, *, train: ImageClasses, group: Group) -> Plan:
    """As many steps as fit into ``config.minutes``, by the time that batches take.

    All processes of ``group`` plan alike, by the slowest of them.
    """
    seconds = 60.0 * config.minutes * STEPS_SHARE
    searches = bool(state.architecture)
    support = min(config.task.batch_size, config.n_way * config.train_shots)
    # Each task's head is one batch more.
    batches = -(-config.meta_batch_size // group.size) * (config.inner_steps + 1)

    def step(*, sparse: bool) -> float:
        batch = group.largest(_time_batch(config, state, train, images=2 * config.pair_classes, sparse=sparse))
        return batch * -(-config.prototype_batches // group.size)

    def meta_step(*, sparse: bool) -> float:
        batch = group.largest(_time_batch(config, state, train, images=support, sparse=sparse))
        return LEARNER_COST[config.meta_learner] * batch * batches

    def count(share: float, cost: float) -> int:
        return max(1, round(share * seconds / cost)) if share > 0 else 0

    if config.warm_up == "meta":
        # The paper: the architecture rests for the first half.
        half, cost = (0.5 if searches else 0.0), meta_step(sparse=False)
        plan = Plan(warm_up=count(half, cost), joint=count(1.0 - half, cost))
    else:
        joint = count(config.joint_share, meta_step(sparse=searches)) if config.joint_share else 0
        dense, rest = step(sparse=False), 1.0 - config.joint_share
        if searches:
            fall = count(FALL_SHARE * rest, FALLING * dense)
            left = count((1.0 - WARM_UP_SHARE - FALL_SHARE) * rest, step(sparse=True))
            plan = Plan(warm_up=count(WARM_UP_SHARE * rest, dense), search=fall + left, fall=fall, joint=joint)
        else:
            plan = Plan(warm_up=count(rest, dense), joint=joint)
    logger.info("planned for %g minutes: %s", config.minutes, plan)
    return plan


def _time_batch(config: TrainingConfig, state: State, train: ImageClasses, *, images: int, sparse: bool) -> float:
    """Seconds of processor time of one forward and backward pass.

    Args:
        sparse: as after a search: about one operation an edge and k inputs a node.
    """
    chosen, _ = sample_images(train, count=images, generator=generator_for(config.seed, CALIBRATION))
    prepared = scale(chosen.to(config.device), train.preprocessing)
    weights, skip_below = None, 0.0
    if state.architecture:
        generator, skip_below = generator_for(config.seed, CALIBRATION, 1), config.search_skip_below
        spread = 100.0 if sparse else 0.0
        drawn = {
            name: spread * torch.randn(value.shape, generator=generator).to(value)
            for name, value in state.architecture.items()
        }
        weights = operation_weights(state.network, drawn, schedule=config.task, temperature=1.0)
    # Processor time on a CPU: a busy machine must not change the plan.
    clock = time.perf_counter if config.device == "cuda" else time.process_time
    times = []
    for _ in range(3):
        started = clock()
        state.network(prepared, weights, skip_below=skip_below).square().sum().backward()
        if config.device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - started)
    state.network.zero_grad(set_to_none=True)
    return min(times)
