"""The child of ``adaptation``: gets ready, waits for a line, adapts, says what it took.

    python -m measuring.adaptation_process '{"meta": "bundled", ...}'    started by ``adaptation``

FLOP are counted after the work, so that counting costs no measured time: while adapting only the
mixtures that ``metanas.learner`` asks for are noted, a few small tensors a step.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from measuring import engine
from measuring.adaptation import Order, Result
from measuring.child import Parent
from measuring.flops import AdaptationFlops, Mask, adaptation_flops, mask_of
from measuring.subjects import colour_episode, named_meta, omniglot_classes, omniglot_episode
from metanas import learner, steps
from metanas.model import MetaModel, TaskModel
from metanas.progress import StepReport
from metanas.relaxation import Mixture
from metanas.schedule import Schedule
from metanas.space import SearchSpace
from metanas_training.episodes import Episode

WARM_UP_STEPS = 2
LEAST_STEPS = 2
"""Of each phase, however little the budget allows."""


@dataclass
class Watch:
    """The times of one adaptation."""

    started: float = 0.0
    ends: dict[str, list[float]] = field(default_factory=lambda: {"architecture": [], "weights": []})
    finished: float = 0.0

    def note(self, report: StepReport) -> None:
        """``on_step`` of ``adapt``."""
        self.ends[report.phase].append(time.perf_counter())

    def seconds(self, phase: str) -> float:
        """Of all steps of a phase but its first, which holds what comes before it, at the pace of the others."""
        ends = self.ends[phase]
        if len(ends) < 2:
            return 0.0 if not ends else (ends[-1] - self.started) / sum(map(len, self.ends.values()))
        return (ends[-1] - ends[0]) * len(ends) / (len(ends) - 1)


def main(text: str) -> int:
    """Carry out one order."""
    order = Order(**json.loads(text))
    engine.set_threads(order.threads)
    meta = named_meta(order.meta)
    classes = omniglot_classes() if order.shape == "omniglot" else None
    episodes = [
        colour_episode(number, n_query=max(1, order.n_query))
        if classes is None
        else omniglot_episode(classes, number, n_query=max(1, order.n_query))
        for number in range(order.first_task, order.first_task + order.tasks)
    ]
    full = replace(meta.schedule, architecture_steps=order.architecture_steps, weight_steps=order.weight_steps)
    schedule = affordable(meta, episodes[0], full, budget_seconds=order.budget_seconds)
    Parent.wait_for_start()
    work = [measure(meta, episode, schedule) for episode in episodes]
    Parent.tell_done()
    results = [report(order, meta, episode, full, schedule, one) for episode, one in zip(episodes, work, strict=True)]
    Parent.tell([asdict(result) for result in results])
    return 0


def affordable(meta: MetaModel, episode: Episode, full: Schedule, *, budget_seconds: float | None) -> Schedule:
    """Warm up with a few steps; as many steps as fit into the budget at their pace."""
    warm = replace(
        full,
        architecture_steps=min(WARM_UP_STEPS, full.architecture_steps),
        weight_steps=min(WARM_UP_STEPS, full.weight_steps),
    )
    watch = measure(meta, episode, warm).watch
    if budget_seconds is None or not full.steps:
        return full
    pace = max(watch.seconds(phase) / max(1, len(ends)) for phase, ends in watch.ends.items())
    share = budget_seconds / (pace * full.steps)
    if share >= 1:
        return full
    return replace(
        full,
        architecture_steps=max(LEAST_STEPS, int(share * full.architecture_steps)),
        weight_steps=max(LEAST_STEPS, int(share * full.weight_steps)),
    )


@dataclass(frozen=True, slots=True)
class Work:
    """One adaptation that was measured."""

    task: TaskModel
    masks: list[Mask]
    """Of the head's prototypes, then of each architecture step."""
    pruned: Mapping[str, Mixture]
    """What the architecture was pruned from."""
    watch: Watch


def measure(meta: MetaModel, episode: Episode, schedule: Schedule) -> Work:
    """Adapt."""
    watch = Watch()
    with _noting_mixtures() as noted:
        watch.started = time.perf_counter()
        task = learner.adapt(meta, episode.support, schedule=schedule, on_step=watch.note)
        watch.finished = time.perf_counter()
    if len(noted) != schedule.architecture_steps + 2:
        raise RuntimeError(
            f"the learner relaxed its architecture {len(noted)} times in {schedule.architecture_steps} steps; once for "
            "the head, once a step and once for the pruning is what is counted on"
        )
    masks = [
        mask_of({name: mixture.rows for name, mixture in mixtures.items()}, skip_below=schedule.skip_below)
        for mixtures in noted[:-1]
    ]
    return Work(task, masks, noted[-1], watch)


@contextmanager
def _noting_mixtures() -> Iterator[list[Mapping[str, Mixture]]]:
    """Note what ``relax`` answers the learner: once for the head, once a step, once for the pruning."""
    noted: list[Mapping[str, Mixture]] = []
    homes: list[dict[str, Any]] = [vars(learner), vars(steps)]
    original = homes[0]["relax"]

    def relax(*arguments: Any, **settings: Any) -> Mapping[str, Mixture]:
        mixtures: Mapping[str, Mixture] = original(*arguments, **settings)
        noted.append({name: Mixture(one.operations.detach(), one.inputs.detach()) for name, one in mixtures.items()})
        return mixtures

    for names in homes:
        names["relax"] = relax
    try:
        yield noted
    finally:
        for names in homes:
            names["relax"] = original


def pruning_margin(mixtures: Mapping[str, Mixture], threshold: float) -> float:
    """The smallest logarithm of the ratio of any weight to the threshold."""
    weights = torch.cat([part.flatten() for one in mixtures.values() for part in (one.operations, one.inputs)])
    return float((weights.clamp(min=1e-30) / threshold).log().abs().min())


def report(
    order: Order,
    meta: MetaModel,
    episode: Episode,
    full: Schedule,
    run: Schedule,
    work: Work,
) -> Result:
    """Seconds and FLOP of the steps that were asked for."""
    assert isinstance(meta.space, SearchSpace)
    task, watch, support = work.task, work.watch, len(episode.support.labels)
    flops: AdaptationFlops = adaptation_flops(
        meta.space,
        work.masks,
        task.genotype,
        weight_steps=run.weight_steps,
        batch=min(run.batch_size, support),
        support=support,
        n_way=episode.support.n_way,
    )
    seconds = watch.finished - watch.started
    of_architecture, of_weights = watch.seconds("architecture"), watch.seconds("weights")
    scaled = run.steps < full.steps
    more_architecture = full.architecture_steps / run.architecture_steps if run.architecture_steps else 1.0
    more_weights = full.weight_steps / run.weight_steps if run.weight_steps else 1.0
    if scaled:
        seconds += of_architecture * (more_architecture - 1) + of_weights * (more_weights - 1)
    return Result(
        seconds=seconds,
        flops=round(flops.architecture * more_architecture + flops.weights * more_weights) + flops.rest,
        scaled=scaled,
        architecture_steps_run=run.architecture_steps,
        weight_steps_run=run.weight_steps,
        architecture_seconds=of_architecture * more_architecture,
        weight_seconds=of_weights * more_weights,
        architecture_flops=round(flops.architecture * more_architecture),
        weight_flops=round(flops.weights * more_weights),
        engine=engine.name(),
        genotype=task.genotype.to_dict(),
        pruning_margin=pruning_margin(work.pruned, run.threshold),
        support_accuracy=task.report.support_accuracy,
        logits=task.logits(episode.query_images).tolist() if order.n_query else [],
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
