"""One Adapt in a process of its own, timed by that process.

    Order             what to adapt, with how many steps and threads, on which path
    Result            seconds and FLOP by part; the limit, and how many times it the adaptation took
    Process           a child that gets ready, waits, and adapts when told
    run               one child alone
    seconds_at_once   several equal ones

A process of its own, because the path (METANAS_NATIVE) is chosen when the core is imported, because
thread pools outlive their settings, and because two Adapts at once have to be two processes. The
child adapts a few steps before it says that it is ready, so what is loaded or compiled late is there.
"""

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Literal

from measuring import engine
from measuring.child import Child


@dataclass(frozen=True, slots=True)
class Order:
    """One child's work."""

    meta: str = "bundled"
    """As of ``subjects.named_meta``."""
    shape: Literal["omniglot", "colour"] = "omniglot"
    """20-way 1-shot of 28 x 28 x 1, or 5-way 5-shot of 84 x 84 x 3."""
    first_task: int = 0
    tasks: int = 1
    """Different tasks, one after the other."""
    architecture_steps: int = 50
    weight_steps: int = 50
    threads: int = 1
    path: engine.Path = "native"
    n_query: int = 0
    """Query images a class whose logits are wanted."""
    budget_seconds: float | None = None
    """A full Adapt that would take longer is measured with fewer steps and scaled; None: never."""


@dataclass(frozen=True, slots=True)
class Result:
    """One Adapt."""

    seconds: float
    """Of all asked steps; where ``scaled``, what they would take at the pace of those that were run."""
    flops: int
    """Of all asked steps, in the same way."""
    scaled: bool
    architecture_steps_run: int
    weight_steps_run: int
    architecture_seconds: float
    weight_seconds: float
    architecture_flops: int
    weight_flops: int
    engine: str
    """What the child found: "native" or "plain"."""
    genotype: dict[str, Any]
    support_accuracy: float
    pruning_margin: float
    """How far the weight nearest to the threshold was from it when the architecture was pruned: the
    logarithm of their ratio. Near 0 rounding decides what survives."""
    logits: list[list[float]]
    """Of the query images, where they were asked for."""

    def limit_seconds(self, gflops: float) -> float:
        """The time that its FLOP take at a rate."""
        return self.flops / gflops / 1e9


class Process(Child):
    """A child; it has warmed up when the constructor returns."""

    def __init__(self, order: Order) -> None:
        super().__init__("measuring.adaptation_process", asdict(order), engine.settings(order.path))

    def results(self) -> list[Result]:
        """Of each task; after ``wait``."""
        return [Result(**values) for values in self.answer()]


def run(order: Order) -> list[Result]:
    """Adapt alone."""
    with Process(order) as child:
        child.start()
        child.wait()
        return child.results()


def seconds_at_once(order: Order, processes: int) -> float:
    """Seconds from the start of so many equal adaptation processes until the last is done."""
    with ExitStack() as stack:
        children = [stack.enter_context(Process(order)) for _ in range(processes)]
        started = time.perf_counter()
        for child in children:
            child.start()
        for child in children:
            child.wait()
        return time.perf_counter() - started
