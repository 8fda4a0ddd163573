"""How good a meta-model is on classes it has never seen.

    Start                nearest prototypes, no adaptation: for a look during training
    evaluate_task        one episode, learned and answered in both protocols  ->  TaskScore
    evaluate             many tasks in this process  ->  Evaluation (``scores``)

*Inductive*: batch norm frozen at the support set's statistics, each image scored by itself:
what a user gets. *Transductive*: all query images normalised together, as in the paper.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metanas.backbone import Backbone
from metanas.cost import multiply_adds
from metanas.errors import DivergedError
from metanas.head import Head, prototypes
from metanas.learner import adapt
from metanas.model import MetaModel, TaskModel
from metanas.preprocessing import Preprocessing, scale
from metanas.snapshots import AdaptationTrace
from metanas.statistics import PriorStatistics, measuring
from metanas.steps import operation_weights
from metanas.task_network import TaskNetwork
from metanas.trust import length_of_rows
from metanas_training.datasets import ImageClasses
from metanas_training.episodes import Episode, generator_for, sample_episode
from metanas_training.errors import NonFiniteError
from metanas_training.scores import Evaluation, TaskScore, summarise
from metanas_training.trust_scores import TrustScore, score_trust

EVALUATION = 9
"""Place of evaluation among the generators of a seed."""

PART = 50
"""Images at a time that are scored one by one."""


def _fraction_right(logits: Tensor, labels: Tensor) -> float:
    """Fraction of rows, ``(batch, n_way)``, that are largest at their label; NaN has no largest, though argmax does."""
    if not logits.isfinite().all():
        raise _broken("the network's answers are not finite")
    return float((logits.argmax(dim=1) == labels).float().mean())


def _broken(what: str) -> NonFiniteError:
    return NonFiniteError(
        f"{what}: the meta-model is broken; train it again with lower learning rates (variation_head_rate is one)"
    )


@dataclass(frozen=True, slots=True)
class Start:
    """What tasks are learned from, before any step: it answers by the nearest prototype.

    Inductive: images are normalised as one alone will be. The network is in training mode before and after.
    """

    network: Backbone
    weights: Mapping[str, Tensor] | None
    """``steps.operation_weights``; None where the architecture is fixed."""
    preprocessing: Preprocessing
    skip_below: float
    prior: PriorStatistics | None = None

    @staticmethod
    def of(meta: MetaModel) -> "Start":
        """That of a finished meta-model."""
        network, schedule = meta.build_network(), meta.schedule
        weights = operation_weights(
            network, meta.architecture, schedule=schedule, temperature=schedule.temperature_start
        )
        return Start(network, weights, meta.preprocessing, schedule.skip_below, meta.prior)

    @torch.no_grad()
    def features(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """Of the support and of the query images, ``(images, features)``."""
        device = next(self.network.parameters()).device
        support = scale(episode.support.images.to(device), self.preprocessing)
        with measuring(self.network, self.prior):
            known = self.network(support, self.weights, skip_below=self.skip_below)
        self.network.eval()
        queries = _in_parts(
            lambda part: self.network(part, self.weights, skip_below=self.skip_below),
            scale(episode.query_images.to(device), self.preprocessing),
        )
        self.network.train()
        return known, queries

    @torch.no_grad()
    def cosines(self, episode: Episode) -> Tensor:
        """Of each query image to each prototype: ``(queries, n_way)``, on the CPU."""
        known, queries = self.features(episode)
        rows = prototypes(known, episode.support.labels.to(known.device), n_way=episode.support.n_way)
        return (torch.nn.functional.normalize(queries, dim=1) @ rows.T).cpu()

    def accuracy(self, episode: Episode) -> float:
        """Fraction of the query images whose nearest prototype is their class's.

        Raises:
            NonFiniteError: a score is infinite or no number.
        """
        return _fraction_right(self.cosines(episode), episode.query_labels)


@torch.no_grad()
def accuracy(network: TaskNetwork, images: Tensor, labels: Tensor) -> float:
    """Fraction of images, float32 ``(batch, channels, H, W)``, whose largest logit is their label's.

    In training mode all images are normalised together.

    Raises:
        NonFiniteError: a logit is infinite or no number.
    """
    return _fraction_right(network(images) if network.training else _in_parts(network, images), labels)


def _in_parts(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What a network in evaluation mode makes of many images: larger batches leave a processor's cache."""
    return torch.cat([network(part) for part in torch.split(images, PART)])


@dataclass(frozen=True, slots=True)
class ScaledEpisode:
    """An episode as networks see it, its classes in canonical order as during adaptation."""

    support: Tensor
    """float32 ``(images, channels, H, W)``."""
    queries: Tensor
    """float32 ``(queries, channels, H, W)``."""
    labels: Tensor
    """int64 ``(queries,)``."""


def scale_episode(episode: Episode, preprocessing: Preprocessing) -> ScaledEpisode:
    """Put an episode into canonical order and scale its pixels."""
    support, order = episode.support.canonical()
    return ScaledEpisode(
        support=scale(support.images, preprocessing).contiguous(memory_format=torch.channels_last),
        queries=scale(episode.query_images, preprocessing),
        labels=torch.tensor([order.index(label) for label in episode.query_labels.tolist()], dtype=torch.int64),
    )


@torch.no_grad()
def inductive_accuracy(
    network: Backbone,
    head: Head,
    weights: Mapping[str, Tensor] | None,
    episode: ScaledEpisode,
    *,
    skip_below: float = 0.0,
    prior: PriorStatistics | None = None,
) -> float:
    """Accuracy with the statistics of the support set, of a network that is still being learned.

    Args:
        network: left in training mode; only the statistics that it keeps for evaluation change.
        head: its rows are in canonical order.
        weights: of the operations; None where the architecture is fixed.
        prior: ``MetaModel.prior``.

    Raises:
        NonFiniteError: a logit is infinite or no number.
    """
    with measuring(network, prior):
        network(episode.support, weights, skip_below=skip_below)
    network.eval()
    logits = head(_in_parts(lambda part: network(part, weights, skip_below=skip_below), episode.queries))
    network.train()
    return _fraction_right(logits, episode.labels)


def evaluate_task(meta: MetaModel, episode: Episode, *, seed: int = 0) -> TaskScore:
    """Learn one episode and answer its queries in both protocols.

    Raises:
        NonFiniteError: the answers, before or after adaptation, or a loss on the way are infinite or no numbers.
    """
    prototype = Start.of(meta).accuracy(episode)
    queries = scale(episode.query_images, meta.preprocessing)
    traces: list[AdaptationTrace] = []
    started = time.perf_counter()
    task = learned(meta, episode, seed=seed, on_trace=traces.append)
    seconds = time.perf_counter() - started
    with torch.no_grad():
        known = _in_parts(task.network, queries)
    trust = _trust(task, known, episode)
    task.network.train()
    transductive = accuracy(task.network, queries, episode.query_labels)
    task.network.eval()
    return TaskScore(
        inductive=_fraction_right(known, episode.query_labels),
        transductive=transductive,
        prototype=prototype,
        support_accuracy=task.report.support_accuracy,
        pruning_loss=_pruning_loss(meta, episode, traces[0]) if traces else None,
        parameter_count=task.report.parameter_count,
        multiply_adds=multiply_adds(meta.space, task.genotype, n_way=episode.support.n_way),
        adapt_seconds=seconds,
        genotype=task.genotype,
        trust=trust,
    )


@torch.no_grad()
def _trust(task: TaskModel, known: Tensor, episode: Episode) -> TrustScore:
    outside = episode.outside_images
    return score_trust(
        task.trust,
        known=known,
        labels=episode.query_labels,
        unknown=None if outside is None else _in_parts(task.logits, outside),
        head_scale=length_of_rows(task.network.head),
    )


def learned(
    meta: MetaModel, episode: Episode, *, seed: int, on_trace: Callable[[AdaptationTrace], None] | None = None
) -> TaskModel:
    """Learn one episode.

    Raises:
        NonFiniteError: its steps diverge.
    """
    try:
        return adapt(meta, episode.support, seed=seed, on_trace=on_trace)
    except DivergedError as error:
        raise NonFiniteError(f"the meta-model is broken: {error}") from error


def _pruning_loss(meta: MetaModel, episode: Episode, trace: AdaptationTrace) -> float:
    scaled = scale_episode(episode, meta.preprocessing)
    weights = {name: mixture.rows for name, mixture in trace.mixtures.items()}
    # As its last steps ran it: what weighs less is not run, which takes a quarter of the time of an evaluation.
    one_shot = inductive_accuracy(
        trace.one_shot, trace.head, weights, scaled, skip_below=meta.schedule.skip_below, prior=meta.prior
    )
    return one_shot - inductive_accuracy(trace.pruned.network, trace.pruned.head, None, scaled, prior=meta.prior)


def draw_tasks(
    classes: ImageClasses, *, n_way: int, n_shot: int, n_query: int, tasks: int, seed: int
) -> Iterator[Episode]:
    """The episodes of an evaluation, one at a time: the same for every meta-model, by seed."""
    for task in range(tasks):
        yield sample_episode(
            classes,
            n_way=n_way,
            n_shot=n_shot,
            n_query=n_query,
            generator=generator_for(seed, EVALUATION, task),
            outside=n_way,
        )


def sample_tasks(
    classes: ImageClasses, *, n_way: int, n_shot: int, n_query: int, tasks: int, seed: int
) -> list[Episode]:
    """All of ``draw_tasks`` at once."""
    return list(draw_tasks(classes, n_way=n_way, n_shot=n_shot, n_query=n_query, tasks=tasks, seed=seed))


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
    for episode in draw_tasks(classes, n_way=n_way, n_shot=n_shot, n_query=n_query, tasks=tasks, seed=seed):
        scores.append(evaluate_task(meta, episode, seed=seed))
        if on_task is not None:
            on_task(scores[-1])
    return summarise(classes.name, n_way, n_shot, scores)
