"""The child of ``step``: takes gradient steps and says where their time goes.

python -m measuring.step_process '{"kind": "dense", ...}'    started by ``step``
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from measuring import engine
from measuring.child import Parent
from measuring.flops import Counter, Mask, mask_of
from measuring.step import Profile, Share, Step
from measuring.subjects import colour_episode, in_large, named_meta, omniglot_classes, omniglot_episode
from metanas.head import Head, balanced_cross_entropy
from metanas.learner import adapt
from metanas.model import MetaModel
from metanas.network import CellPlan, Network, one_shot_plan
from metanas.optimizer import Parameters, build_optimizer
from metanas.preprocessing import scale
from metanas.schedule import Schedule
from metanas.space import CELL_TYPES, SearchSpace
from metanas.steps import operation_weights, start_head
from metanas_training.episodes import Episode

BATCH = 20
WARM_UP = 3

KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("native engine", ("_Features",)),
    ("convolution", ("convolution", "conv2d", "conv_depthwise", "mkldnn")),
    ("batch norm", ("batch_norm",)),
    ("pooling", ("pool",)),
    ("ReLU", ("relu", "threshold", "clamp_min")),
    ("Adam", ("adam",)),
    (
        "copies and layout",
        ("copy_", "contiguous", "clone", "cat", "pad", "reshape", "fill_", "zero_", "empty", "narrow"),
    ),
    ("sums and products", ("aten::add", "aten::mul", "aten::sum", "aten::div", "aten::sub")),
)
"""Kinds of kernels by what their names hold; the first that fits."""


def main(text: str) -> int:
    """Carry out one order."""
    step = Step(**json.loads(text))
    engine.set_threads(step.threads)
    bench = Bench(step)
    for _ in range(WARM_UP):
        bench.take()
    Parent.wait_for_start()
    parts = bench.parts()
    total = sum(share.seconds for share in parts)
    found = Profile(
        engine=engine.name(),
        seconds=total,
        gflop=bench.gflop(bench.mask),
        parts=parts,
        operations=bench.operations(),
        kernels=bench.kernels(total),
    )
    Parent.tell_done()
    Parent.tell(asdict(found))
    return 0


class Bench:
    """A network in the midst of its task."""

    def __init__(self, step: Step) -> None:
        self.step = step
        episode = colour_episode(0) if step.shape == "colour" else omniglot_episode(omniglot_classes(), 0)
        meta = _meta(step)
        assert isinstance(meta.space, SearchSpace)
        support, _ = episode.support.canonical()
        self.schedule: Schedule = meta.schedule
        self.images = scale(support.images, meta.preprocessing).contiguous(memory_format=torch.channels_last)[:BATCH]
        self.labels = support.labels[:BATCH]
        self.class_weights = torch.ones(support.n_way)
        self.network, self.head, self.architecture = _start(step, meta, episode, self.images, self.labels)
        self.counter = Counter(meta.space, self.network.genotype, n_way=support.n_way)
        self.optimizer = build_optimizer(
            Parameters(self.network, self.head, self.architecture), meta.moments, schedule=self.schedule
        )
        weights = self._weights()
        self.mask: Mask = (
            self.counter.everything() if weights is None else mask_of(weights, skip_below=self.schedule.skip_below)
        )

    def _weights(self) -> dict[str, Tensor] | None:
        return operation_weights(self.network, self.architecture, schedule=self.schedule, temperature=1.0)

    def take(self, mask: Mask | None = None) -> dict[str, float]:
        """One step; seconds of its parts, in order."""
        clock = [time.perf_counter()]
        weights = self._weights()
        clock.append(time.perf_counter())
        run = dict(zip(CELL_TYPES, mask or self.mask, strict=True))
        features = self.network(self.images, weights, run=run)
        clock.append(time.perf_counter())
        loss = balanced_cross_entropy(self.head(features), self.labels, self.class_weights)
        clock.append(time.perf_counter())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        clock.append(time.perf_counter())
        self.optimizer.step()
        clock.append(time.perf_counter())
        names = ("weights of the operations", "forward", "head and loss", "backward", "Adam")
        return {name: after - before for name, before, after in zip(names, clock, clock[1:], strict=False)}

    def gflop(self, mask: Mask) -> float:
        """Of one step, forward and backward."""
        return len(self.images) * self.counter.learning(mask) / 1e9

    def parts(self) -> list[Share]:
        """By the clock; of the fastest step."""
        taken = sorted((self.take() for _ in range(self.step.repeats)), key=lambda one: sum(one.values()))
        forward = len(self.images) * self.counter.forward(self.mask) / 1e9
        gflop = {"forward": forward, "backward": self.gflop(self.mask) - forward}
        return [Share(name, seconds, gflop.get(name)) for name, seconds in taken[0].items()]

    def operations(self) -> list[Share]:
        """What each candidate operation costs: a step with all that run, less one without it."""
        if self.network.genotype is not None:
            return []
        plans = one_shot_plan(self.network.space)
        names = {
            row.operation
            for cell_type, of_type in zip(CELL_TYPES, self.mask, strict=True)
            for row, runs in zip(plans[cell_type], of_type, strict=True)
            if runs
        }
        masks = {name: self._without(name, plans) for name in sorted(names)}
        masks = {name: mask for name, mask in masks.items() if self._can_run(mask)}
        seconds = self._fastest([self.mask, *masks.values()])
        whole, shares = seconds[0], []
        for (name, mask), rest in zip(masks.items(), seconds[1:], strict=True):
            shares.append(Share(name, whole - rest, self.gflop(self.mask) - self.gflop(mask)))
        shares.sort(key=lambda share: -share.seconds)
        left = whole - sum(share.seconds for share in shares)
        flop = self.gflop(self.mask) - sum(share.gflop or 0.0 for share in shares)
        return [*shares, Share("all else: stem, inputs of cells, sums, head, Adam", left, flop)]

    def _without(self, name: str, plans: Mapping[str, CellPlan]) -> Mask:
        return tuple(
            tuple(runs and row.operation != name for row, runs in zip(plans[cell_type], of_type, strict=True))
            for cell_type, of_type in zip(CELL_TYPES, self.mask, strict=True)
        )

    def _can_run(self, mask: Mask) -> bool:
        """Whether each node has an operation left."""
        plans = one_shot_plan(self.network.space)
        for cell_type, of_type in zip(CELL_TYPES, mask, strict=True):
            nodes = {row.node for row, runs in zip(plans[cell_type], of_type, strict=True) if runs}
            if len(nodes) < self.network.space.nodes:
                return False
        return True

    def _fastest(self, masks: list[Mask]) -> list[float]:
        """Seconds of the fastest step with each mask, taken in turn so that all share the machine's moods."""
        rounds = [[sum(self.take(mask).values()) for mask in masks] for _ in range(self.step.repeats + 1)]
        return [min(of_mask) for of_mask in zip(*rounds[1:], strict=True)]

    def kernels(self, total: float) -> list[Share]:
        """By PyTorch's profiler, whose own cost is left out by scaling to the time of a step without it."""
        with profile(activities=[ProfilerActivity.CPU]) as found:
            for _ in range(self.step.repeats):
                self.take()
        seconds: dict[str, float] = defaultdict(float)
        for event in found.key_averages():
            seconds[_kind(event.key)] += event.self_cpu_time_total / 1e6 / self.step.repeats
        everything = sum(seconds.values())
        shares = [Share(name, value * total / everything) for name, value in seconds.items()]
        return sorted(shares, key=lambda share: -share.seconds)


def _kind(name: str) -> str:
    fits: Callable[[tuple[str, ...]], bool] = lambda parts: any(part in name for part in parts)  # noqa: E731
    return next((kind for kind, parts in KINDS if fits(parts)), "other")


def _meta(step: Step) -> MetaModel:
    if step.shape == "omniglot":
        return named_meta("untrained" if step.kind == "dense" else "bundled")
    return named_meta("untrained_large") if step.kind == "dense" else in_large(Schedule())


def _start(
    step: Step, meta: MetaModel, episode: Episode, images: Tensor, labels: Tensor
) -> tuple[Network, Head, Mapping[str, Tensor] | Any]:
    """The network, its head and its architecture parameters at the step."""
    if step.kind == "task":
        schedule = replace(meta.schedule, architecture_steps=2, weight_steps=0)
        task = adapt(meta, episode.support, schedule=schedule).network
        task.train().requires_grad_(True)
        assert isinstance(task.network, Network)
        return task.network, task.head, {}
    network = meta.build_network()
    assert isinstance(network, Network)
    architecture = {name: value.clone().requires_grad_() for name, value in meta.architecture.items()}
    head, _ = start_head(
        network,
        weights=operation_weights(network, architecture, schedule=meta.schedule, temperature=1.0),
        images=images,
        labels=labels,
        n_way=episode.support.n_way,
        scale=meta.head_scale,
        skip_below=meta.schedule.skip_below,
    )
    return network, head, architecture


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
