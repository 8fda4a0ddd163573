"""What one adaptation passes through, step by step: for figures.

    follow       meta-model, episode  ->  Trajectory
    mean_curve   trajectories         ->  accuracy at each step, over tasks

Accuracy is inductive: at each step looked at, batch norm is measured on the support set and
the queries are classified one by one. At the step of the pruning there are two points, one of
the one-shot network and one of what is left of it. Looking changes nothing: the task
model that comes out has the bits of one that was not followed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metanas.learner import adapt
from metanas.model import MetaModel
from metanas.relaxation import Mixture
from metanas.snapshots import AdaptationTrace, Snapshot
from metanas_training.episodes import Episode
from metanas_training.evaluate import inductive_accuracy, scale_episode
from metanas_training.scores import Estimate, estimate


@dataclass(frozen=True, slots=True)
class Point:
    """How good the network was after so many steps."""

    step: int
    """Gradient steps done."""
    pruned: bool
    """Whether it was already the small network, or one of fixed architecture."""
    accuracy: float


@dataclass(frozen=True, slots=True)
class Frame:
    """The weights of the mixture after so many steps."""

    step: int
    temperature: float
    operations: dict[str, list[list[float]]]
    """For each cell type ``edges x operations``."""
    inputs: dict[str, list[float]]
    """For each cell type one for every edge."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One task, from the first step to the last."""

    points: tuple[Point, ...]
    frames: tuple[Frame, ...]
    """After each architecture step; empty where the architecture is fixed."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Accuracy over several tasks after so many steps."""

    step: int
    pruned: bool
    accuracy: Estimate


def follow(meta: MetaModel, episode: Episode, *, seed: int = 0, every: int = 5) -> Trajectory:
    """Learn one episode and look at it on the way.

    Args:
        seed: of adaptation.
        every: steps between two points of the accuracy; the last step is always one.
    """
    scaled = scale_episode(episode, meta.preprocessing)
    last = meta.schedule.steps
    points: list[Point] = []
    frames: list[Frame] = []

    def look(snapshot: Snapshot) -> None:
        if snapshot.mixtures is not None:
            frames.append(_frame(snapshot.step, snapshot.temperature, snapshot.mixtures))
        just_pruned = snapshot.mixtures is None and meta.searches and not any(point.pruned for point in points)
        if snapshot.step % every == 0 or snapshot.step == last or just_pruned:
            value = inductive_accuracy(
                snapshot.network,
                snapshot.head,
                snapshot.weights,
                scaled,
                skip_below=meta.schedule.skip_below,
                prior=meta.prior,
            )
            points.append(Point(snapshot.step, snapshot.mixtures is None, value))

    def look_before_pruning(trace: AdaptationTrace) -> None:
        step, schedule = meta.schedule.architecture_steps, meta.schedule
        frames.append(_frame(step, schedule.temperature_end, trace.mixtures))
        weights = {name: mixture.rows for name, mixture in trace.mixtures.items()}
        value = inductive_accuracy(
            trace.one_shot, trace.head, weights, scaled, skip_below=schedule.skip_below, prior=meta.prior
        )
        points.append(Point(step, False, value))

    adapt(meta, episode.support, seed=seed, on_snapshot=look, on_trace=look_before_pruning)
    return Trajectory(tuple(points), tuple(frames))


def _frame(step: int, temperature: float, mixtures: Mapping[str, Mixture]) -> Frame:
    return Frame(
        step=step,
        temperature=temperature,
        operations={name: mixture.operations.tolist() for name, mixture in mixtures.items()},
        inputs={name: mixture.inputs.tolist() for name, mixture in mixtures.items()},
    )


def mean_curve(trajectories: Sequence[Trajectory]) -> tuple[CurvePoint, ...]:
    """Mean accuracy and 95 % interval over tasks of one meta-model, at each of their common steps."""
    return tuple(
        CurvePoint(points[0].step, points[0].pruned, estimate([point.accuracy for point in points]))
        for points in zip(*(trajectory.points for trajectory in trajectories), strict=True)
    )
