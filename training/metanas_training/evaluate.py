"""How good a meta-model is on classes it has never seen.

    prototype_accuracy   no adaptation: for a look during training
    evaluate_task        one episode, learned and answered in both protocols
    evaluate             many of them

*Inductive*: batch norm frozen at the support set's statistics, each image scored by itself:
what a user gets. *Transductive*: all query images normalised together, as in the paper.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metanas.head import prototypes
from metanas.learner import AdaptationTrace, adapt
from metanas.model import MetaModel
from metanas.network import Network
from metanas.operations import measuring
from metanas.preprocessing import Preprocessing, scale
from metanas.relaxation import relax
from metanas.task_network import TaskNetwork
from metanas_training.datasets import ImageClasses
from metanas_training.episodes import Episode, generator_for, sample_episode

EVALUATION = 9
"""Place of evaluation among the generators of a seed."""


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Fractions of query images classified right, and what it took."""

    inductive: float
    transductive: float
    prototype: float
    """Inductive, with the prototype head and without any adaptation step."""
    pruning_loss: float
    """Inductive accuracy of the one-shot network less that of the pruned one, before its weight steps."""
    parameter_count: int
    adapt_seconds: float
    structure: str
    """The genotype without its weights."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    half_width: float
    """1.96 standard errors; 0 for a single task."""

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f} % ± {100 * self.half_width:.2f}"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores over many tasks."""

    data: str
    n_way: int
    n_shot: int
    tasks: int
    inductive: Estimate
    transductive: Estimate
    prototype: Estimate
    pruning_loss: Estimate
    parameter_count: float
    adapt_seconds: float
    structures: int
    """Number of different architectures among the tasks."""
    most_common_share: float
    """Fraction of tasks that ended with the most common architecture."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval of independent values."""
    array = np.asarray(values, dtype=np.float64)
    spread = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return Estimate(float(array.mean()), 1.96 * spread / len(array) ** 0.5)


@torch.no_grad()
def prototype_accuracy(
    network: Network, weights: dict[str, Tensor], episode: Episode, *, preprocessing: Preprocessing, skip_below: float
) -> float:
    """Inductive accuracy of the nearest prototype, without adaptation.

    ``network`` is left in training mode.
    """
    device = next(network.parameters()).device
    support = scale(episode.support.images.to(device), preprocessing)
    with measuring(network):
        features = network(support, weights, skip_below=skip_below)
    rows = prototypes(features, episode.support.labels.to(device), n_way=episode.support.n_way)
    network.eval()
    queries = network(scale(episode.query_images.to(device), preprocessing), weights, skip_below=skip_below)
    network.train()
    scores = torch.nn.functional.normalize(queries, dim=1) @ rows.T
    return float((scores.argmax(dim=1).cpu() == episode.query_labels).float().mean())


@torch.no_grad()
def accuracy(network: TaskNetwork, images: Tensor, labels: Tensor) -> float:
    """Fraction of images, float32 ``(batch, channels, H, W)``, whose largest logit is their label's."""
    return float((network(images).argmax(dim=1) == labels).float().mean())


def evaluate_task(meta: MetaModel, episode: Episode, *, seed: int = 0) -> TaskScore:
    """Learn one episode and answer its queries in both protocols."""
    queries = scale(episode.query_images, meta.preprocessing)
    traces: list[AdaptationTrace] = []
    started = time.perf_counter()
    task = adapt(meta, episode.support, seed=seed, on_trace=traces.append)
    seconds = time.perf_counter() - started
    inductive = accuracy(task.network, queries, episode.query_labels)
    task.network.train()
    transductive = accuracy(task.network, queries, episode.query_labels)
    task.network.eval()
    start = relax(
        meta.architecture,
        meta.space,
        temperature=meta.schedule.temperature_start,
        strategy=meta.schedule.strategy,
    )
    return TaskScore(
        inductive=inductive,
        transductive=transductive,
        prototype=prototype_accuracy(
            meta.build_network(),
            {name: mixture.rows for name, mixture in start.items()},
            episode,
            preprocessing=meta.preprocessing,
            skip_below=meta.schedule.skip_below,
        ),
        pruning_loss=_pruning_loss(meta, episode, traces[0]),
        parameter_count=task.report.parameter_count,
        adapt_seconds=seconds,
        structure=str(task.genotype.structure()),
    )


@torch.no_grad()
def _pruning_loss(meta: MetaModel, episode: Episode, trace: AdaptationTrace) -> float:
    support = scale(episode.support.images, meta.preprocessing)
    queries = scale(episode.query_images, meta.preprocessing)
    # The trace's classes are in canonical order: the labels must follow.
    _, order = episode.support.canonical()
    labels = torch.tensor([order.index(label) for label in episode.query_labels.tolist()])
    weights = {name: mixture.rows for name, mixture in trace.mixtures.items()}
    with measuring(trace.one_shot):
        trace.one_shot(support, weights)
    trace.one_shot.eval()
    one_shot = float((trace.head(trace.one_shot(queries, weights)).argmax(dim=1) == labels).float().mean())
    trace.pruned.freeze_statistics(support)
    return one_shot - accuracy(trace.pruned, queries, labels)


def sample_tasks(
    classes: ImageClasses, *, n_way: int, n_shot: int, n_query: int, tasks: int, seed: int
) -> list[Episode]:
    """The episodes of an evaluation: the same for every meta-model, by seed."""
    return [
        sample_episode(
            classes, n_way=n_way, n_shot=n_shot, n_query=n_query, generator=generator_for(seed, EVALUATION, task)
        )
        for task in range(tasks)
    ]


def summarise(data: str, n_way: int, n_shot: int, scores: Sequence[TaskScore]) -> Evaluation:
    """Means and intervals over tasks."""
    structures = [score.structure for score in scores]
    return Evaluation(
        data=data,
        n_way=n_way,
        n_shot=n_shot,
        tasks=len(scores),
        inductive=estimate([score.inductive for score in scores]),
        transductive=estimate([score.transductive for score in scores]),
        prototype=estimate([score.prototype for score in scores]),
        pruning_loss=estimate([score.pruning_loss for score in scores]),
        parameter_count=float(np.mean([score.parameter_count for score in scores])),
        adapt_seconds=float(np.mean([score.adapt_seconds for score in scores])),
        structures=len(set(structures)),
        most_common_share=max(structures.count(one) for one in set(structures)) / len(structures),
    )


def evaluate(
    meta: MetaModel,
    classes: ImageClasses,
    *,
    n_way: int,
    n_shot: int,
    n_query: int,
    tasks: int,
    seed: int,
    on_task: Callable[[TaskScore], None] | None = None,
) -> Evaluation:
    """Learn and answer ``tasks`` episodes of unseen classes.

    Args:
        n_query: query images of each class; what a class has beyond its shots, if that is less.
        on_task: told after every task.
    """
    scores = []
    for episode in sample_tasks(classes, n_way=n_way, n_shot=n_shot, n_query=n_query, tasks=tasks, seed=seed):
        scores.append(evaluate_task(meta, episode, seed=seed))
        if on_task is not None:
            on_task(scores[-1])
    return summarise(classes.name, n_way, n_shot, scores)
