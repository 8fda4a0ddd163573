"""Rows about Classify: one caller, a JPEG, many callers, and while the machine adapts.

Tasks have the bundled architecture. Where only the shape of the task network matters, it is learnt in
a few steps; Classify costs the same.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from measuring import callers
from measuring.callers import Throughput
from measuring.flops import Counter
from measuring.machine import CORES, Rates
from measuring.row import Goal, Row
from measuring.server import Server, bundled_arguments, file_for, latencies, percentiles
from measuring.settings import Settings
from measuring.subjects import (
    bundled_in_large,
    colour_episode,
    colour_picture,
    in_large,
    jpeg,
    omniglot_classes,
    omniglot_episode,
    picture,
    support_of,
)
from metanas.artifact import load_task
from metanas.model import MetaModel
from metanas.preprocessing import scale
from metanas.schedule import Schedule
from metanas.space import SearchSpace
from metanas_client import FewShotClient, Task
from metanas_training.datasets import ImageClasses

FEW_STEPS = 5
CALLERS = 32
WARM_UP_CALLS = 100
ROUND = 50


@dataclass(frozen=True, slots=True)
class OneCaller:
    """Calls of one image, one after the other."""

    milliseconds: dict[str, float]
    """Of ``server.percentiles``."""
    flops: int
    """Of the task network's forward pass."""

    def row(self, rates: Rates, *, what: str, measured: str, bar: str, aim: str, goals: tuple[Goal, ...]) -> Row:
        """The row, with the limit of one call on all cores."""
        limit = self.flops / rates.all / 1e9
        return Row(
            what=what,
            measured=measured,
            bar=bar,
            aim=aim,
            goals=goals,
            limit_seconds=limit,
            times_limit=self.milliseconds["p50_ms"] / 1000 / limit,
            values={**self.milliseconds, "gflop": self.flops / 1e9},
        )


def measure_classify(settings: Settings) -> OneCaller:
    """One caller, 28 x 28."""
    classes = omniglot_classes()
    with Server(*bundled_arguments(settings.folder, steps=FEW_STEPS)) as server:
        task, images = _drawings(server.client, classes)
        found = _percentiles(task, images, calls=300 if settings.quick else 4000)
        return OneCaller(found, _forward_flops(task, settings))


def classify_rows(found: OneCaller, rates: Rates) -> list[Row]:
    """Against 2 / 5 and 1 / 2 ms."""
    ms = found.milliseconds
    return [
        found.row(
            rates,
            what="Classify, one 28 x 28 image a call, warm, gRPC end to end on loopback, p50 / p99",
            measured=_p50_p99(ms),
            bar="2 / 5 ms",
            aim="1 / 2 ms",
            goals=(Goal(ms["p50_ms"], 2.0, 1.0), Goal(ms["p99_ms"], 5.0, 2.0)),
        )
    ]


def measure_jpeg(settings: Settings) -> list[OneCaller]:
    """One caller, 84 x 84 JPEG files, which the server decodes: the bundled network at that size, and the paper's."""
    return [_jpeg_caller(settings, make(Schedule())) for make in (bundled_in_large, in_large)]


def _jpeg_caller(settings: Settings, meta: MetaModel) -> OneCaller:
    with Server("--meta", str(file_for(settings.folder, meta, steps=1))) as server:
        task = server.client.adapt(support_of(colour_episode(0, n_shot=2), meta.preprocessing))
        random = np.random.default_rng(1)
        files = [jpeg(colour_picture(random, hue=hue)) for hue in range(5)]
        found = _percentiles(task, files, calls=100 if settings.quick else 1000)
        return OneCaller(found, _forward_flops(task, settings))


def jpeg_rows(found: list[OneCaller], rates: Rates) -> list[Row]:
    """The first against 4 and 2.5 ms."""
    bundled, paper = found
    return [
        bundled.row(
            rates,
            what="Classify, one 84 x 84 JPEG a call, the network of the bundled meta-model at that size, p50",
            measured=f"{bundled.milliseconds['p50_ms']:.2f} ms",
            bar="4 ms",
            aim="2.5 ms",
            goals=(Goal(bundled.milliseconds["p50_ms"], 4.0, 2.5),),
        ),
        paper.row(
            rates,
            what="the same operations where the paper reduces, in cells 1 and 3, with 28 channels",
            measured=f"{paper.milliseconds['p50_ms']:.2f} ms",
            bar="",
            aim="",
            goals=(),
        ),
    ]


@dataclass(frozen=True, slots=True)
class Share:
    """What the server makes of what ONNX Runtime could do."""

    served: list[Throughput]
    alone: list[float]
    """Images a second before the first round of calls, between each two and after the last."""

    @property
    def shares(self) -> list[float]:
        """Of each round, of what ONNX Runtime did right before and after it."""
        around = [(first + second) / 2 for first, second in pairwise(self.alone)]
        return [served.calls_per_second / alone for served, alone in zip(self.served, around, strict=True)]

    @property
    def median(self) -> int:
        """The round whose share is in the middle: on a shared machine a round may have a slow moment."""
        return int(np.argsort(self.shares)[len(self.served) // 2])


def measure_throughput(settings: Settings) -> Share:
    """32 callers of one image each, and the same ONNX file in this process."""
    classes = omniglot_classes()
    seconds, rounds = (1.0, 1) if settings.quick else (3.0, 7)
    with Server(*bundled_arguments(settings.folder, steps=FEW_STEPS)) as server:
        task, images = _drawings(server.client, classes)
        path = task.export(settings.folder / "task.onnx", format="onnx")
        prepared = omniglot_episode(classes, 0).query_images
        inputs = scale(prepared, classes.preprocessing).numpy()
        alone, served = [callers.alone(path.read_bytes(), inputs, seconds=seconds / 2)], []
        for _ in range(rounds):
            served.append(callers.together(server.address, task.task_id, images, callers=CALLERS, seconds=seconds))
            alone.append(callers.alone(path.read_bytes(), inputs, seconds=seconds / 2))
    return Share(served=served, alone=alone)


def throughput_rows(found: Share, rates: Rates) -> list[Row]:
    """Against 50 and 80 % of ONNX Runtime alone."""
    share, served = found.shares[found.median], found.served[found.median]
    # The callers run on the same cores. What the server does with what they leave is told beside.
    left = share * CORES / max(0.01, CORES - served.processor_share)
    return [
        Row(
            what=f"Classify throughput, batch 1, {CALLERS} concurrent callers, against ONNX Runtime alone on the "
            "exported file (the server runs it on its engine)",
            measured=(
                f"{100 * share:.0f} % (median of {len(found.served)} rounds, {100 * min(found.shares):.0f} to "
                f"{100 * max(found.shares):.0f}; {served.calls_per_second:.0f} of "
                f"{served.calls_per_second / share:.0f} images/s; the callers take {served.processor_share:.2f} of "
                f"{CORES} cores: {100 * left:.0f} % of what they leave)"
            ),
            bar="50 %",
            aim="80 %",
            goals=(Goal(share, 0.5, 0.8, at_least=True),),
            values={**asdict(found), "shares": found.shares, "share": share, "share_of_what_callers_leave": left},
        )
    ]


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Classify without and with two Adapts."""

    idle: dict[str, float]
    busy: dict[str, float]
    adapts: int
    """Done while the calls were timed, or on their way at the end."""


def measure_busy(settings: Settings) -> Disturbance:
    """One caller while two others keep two workers adapting."""
    classes = omniglot_classes()
    calls = 200 if settings.quick else 2000
    steps = FEW_STEPS if settings.quick else None
    with Server("--adapt-workers", "2", *bundled_arguments(settings.folder, steps=steps)) as server:
        task, images = _drawings(server.client, classes)
        idle = _percentiles(task, images, calls=calls)
        enough = threading.Event()
        adapts = [0, 0]

        def adapt(number: int) -> None:
            while not enough.is_set():
                episode = omniglot_episode(classes, number + 2 * adapts[number])
                server.client.adapt(support_of(episode, classes.preprocessing))
                adapts[number] += 1

        with ThreadPoolExecutor(2) as callers:
            adapting = [callers.submit(adapt, number) for number in range(2)]
            enough.wait(0.5)  # both are past their first steps
            busy: list[float] = []
            try:
                while len(busy) < calls:
                    busy += latencies(task, images, calls=ROUND)
            finally:
                enough.set()
            for one in adapting:
                one.result()  # an Adapt that failed would have left the server idle
    return Disturbance(idle=idle, busy=percentiles(busy), adapts=sum(adapts))


def busy_rows(found: Disturbance, rates: Rates) -> list[Row]:
    """Against 5 and 2 times the idle p99."""
    ratio = found.busy["p99_ms"] / found.idle["p99_ms"]
    return [
        Row(
            what="Classify p99 while two Adapts run, against idle",
            measured=f"{ratio:.1f} x (p50 / p99 {_p50_p99(found.busy)}, idle {_p50_p99(found.idle)})",
            bar="5 x",
            aim="2 x",
            goals=(Goal(ratio, 5.0, 2.0),),
            values={**asdict(found), "ratio": ratio},
        )
    ]


def _drawings(client: FewShotClient, classes: ImageClasses) -> tuple[Task, list[Any]]:
    """A task, and pictures to ask it about."""
    episode = omniglot_episode(classes, 0)
    task = client.adapt(support_of(episode, classes.preprocessing))
    return task, [picture(image, classes.preprocessing) for image in episode.query_images]


def _forward_flops(task: Task, settings: Settings) -> int:
    model = load_task(task.export(settings.folder / "task_model.pt"))
    assert isinstance(model.space, SearchSpace)
    return Counter(model.space, model.genotype, n_way=len(model.class_names)).forward()


def _percentiles(task: Task, images: list[Any], *, calls: int) -> dict[str, float]:
    latencies(task, images, calls=WARM_UP_CALLS)
    return percentiles(latencies(task, images, calls=calls))


def _p50_p99(found: dict[str, float]) -> str:
    return f"{found['p50_ms']:.2f} / {found['p99_ms']:.2f} ms"
