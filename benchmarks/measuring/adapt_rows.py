"""Rows about Adapt: alone from three meta-models, and two at once.

Each part is ``measure_*`` (while the machine is probed before and after) and then ``*_rows``, which
needs the probed rate for the limit.
"""

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from measuring.adaptation import Order, Result, run, seconds_at_once
from measuring.machine import CORES, Rates
from measuring.row import Goal, Row
from measuring.server import Server, bundled_arguments
from measuring.settings import Settings
from measuring.subjects import omniglot_classes, omniglot_episode, support_of
from metanas_training.episodes import Episode


@dataclass(frozen=True, slots=True)
class Alone:
    """Adapts one after the other, by engine threads."""

    by_threads: dict[int, list[Result]]
    served_seconds: list[float]
    """Through a server with its default settings."""
    served_steps: int | None = None
    """Of each phase, in place of 50."""


def thread_counts() -> list[int]:
    """One, and all cores."""
    return sorted({1, CORES})


def measure_untrained(settings: Settings) -> Alone:
    """20-way 1-shot, nothing pruned."""
    return _alone(Order(meta="untrained", budget_seconds=settings.adapt_budget_seconds), settings)


def measure_colour(settings: Settings) -> Alone:
    """5-way 5-shot at 84 x 84 x 3, nothing pruned; on all cores only, for it takes minutes."""
    order = Order(meta="untrained_large", shape="colour", threads=CORES)
    return Alone({CORES: run(_within(order, settings.large_budget_seconds, settings))}, [])


def measure_bundled(settings: Settings) -> Alone:
    """20-way 1-shot from the bundled meta-model, in this code and through a server."""
    count = 1 if settings.quick else 3
    alone = _alone(Order(tasks=count, budget_seconds=settings.adapt_budget_seconds), settings)
    classes = omniglot_classes()
    steps = 5 if settings.quick else None
    with Server(*bundled_arguments(settings.folder, steps=steps)) as server:
        served = []
        for number in range(count):
            support = support_of(omniglot_episode(classes, number), classes.preprocessing)
            started = time.perf_counter()
            server.client.adapt(support)
            served.append(time.perf_counter() - started)
    return Alone(alone.by_threads, served, steps)


def _alone(order: Order, settings: Settings) -> Alone:
    threads = {}
    for count in thread_counts():
        changed = Order(**{**asdict(order), "threads": count})
        threads[count] = run(_within(changed, order.budget_seconds, settings))
    return Alone(threads, [])


def _within(order: Order, budget_seconds: float | None, settings: Settings) -> Order:
    budget = min(budget_seconds or settings.quick_seconds, settings.quick_seconds) if settings.quick else budget_seconds
    return Order(**{**asdict(order), "budget_seconds": budget})


def untrained_rows(alone: Alone, rates: Rates) -> list[Row]:
    """Against 4 and 2 times the limit."""
    return _limit_rows("Adapt, 20-way 1-shot, 28 x 28 x 1, untrained", alone, rates, must=4.0, aim=2.0)


def colour_rows(alone: Alone, rates: Rates) -> list[Row]:
    """Against 3 and 1.5 times the limit."""
    return _limit_rows("Adapt, 5-way 5-shot, 84 x 84 x 3, untrained", alone, rates, must=3.0, aim=1.5)


def _limit_rows(what: str, alone: Alone, rates: Rates, *, must: float, aim: float) -> list[Row]:
    rows = []
    for threads, results in alone.by_threads.items():
        seconds, limit = _median_seconds(results), _limit(results, rates)
        # The two cores: what one thread takes is told and not judged.
        judged = threads == max(alone.by_threads)
        rows.append(
            Row(
                what=f"{what}, 50 + 50 steps, {_threads(threads)}",
                measured=_seconds(results, seconds),
                bar=f"{must:g} x its limit" if judged else "",
                aim=f"{aim:g} x" if judged else "",
                goals=(Goal(seconds / limit, must, aim),) if judged else (),
                limit_seconds=limit,
                times_limit=seconds / limit,
                values=_values(results, seconds, rates),
            )
        )
    return rows


def bundled_rows(alone: Alone, rates: Rates) -> list[Row]:
    """Against 6 and 2 seconds; the limit is told."""
    rows = []
    for threads, results in alone.by_threads.items():
        seconds, limit = _median_seconds(results), _limit(results, rates)
        rows.append(
            Row(
                what=f"Adapt, 20-way 1-shot, bundled meta-model, 50 + 50 steps, in one process, {_threads(threads)}",
                measured=_seconds(results, seconds),
                bar="6 s",
                aim="2 s",
                goals=(Goal(seconds, 6.0, 2.0),),
                limit_seconds=limit,
                times_limit=seconds / limit,
                values=_values(results, seconds, rates),
            )
        )
    seconds = statistics.median(alone.served_seconds)
    limit = _limit(next(iter(alone.by_threads.values())), rates)
    rows.append(
        Row(
            what="the same through a server with its default settings, end to end"
            + (f", {alone.served_steps} + {alone.served_steps} STEPS ONLY" if alone.served_steps else ""),
            measured=f"{seconds:.2f} s (median of {len(alone.served_seconds)})",
            bar="6 s",
            aim="2 s",
            goals=(Goal(seconds, 6.0, 2.0),),
            limit_seconds=limit,
            times_limit=seconds / limit,
            values={"seconds": alone.served_seconds},
        )
    )
    return rows


TURNS = 3
"""Of one Adapt and two at once."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Seconds of one, and of two at once, by turns."""

    one: tuple[float, ...]
    two: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Throughput of two at once against one at a time, turn by turn."""
        return [2 * one / two for one, two in zip(self.one, self.two, strict=True)]

    @property
    def ratio(self) -> float:
        """Their median."""
        return statistics.median(self.ratios)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two Adapts at once, three ways."""

    untrained: Pair
    bundled: Pair
    served: Pair
    steps: int
    """Of each phase, of the first; it runs everything in every step, so fewer are as good as all."""
    bundled_steps: int


def measure_pair(settings: Settings) -> Pairs:
    """Two processes of one engine thread each, then a server with two workers."""
    steps, bundled_steps = (2, 5) if settings.quick else (5, 50)
    orders = (
        Order(meta="untrained", architecture_steps=steps, weight_steps=steps),
        Order(architecture_steps=bundled_steps, weight_steps=bundled_steps),
    )
    turns = range(1 if settings.quick else TURNS)
    untrained, bundled = (
        Pair(*zip(*((seconds_at_once(order, 1), seconds_at_once(order, 2)) for _ in turns), strict=True))
        for order in orders
    )
    return Pairs(
        untrained, bundled, _served_pair(settings, bundled_steps if settings.quick else None), steps, bundled_steps
    )


def _served_pair(settings: Settings, steps: int | None) -> Pair:
    classes = omniglot_classes()
    episodes = [omniglot_episode(classes, number) for number in range(2)]
    with Server("--adapt-workers", "2", *bundled_arguments(settings.folder, steps=steps)) as server:

        def adapt(episode: Episode) -> None:
            server.client.adapt(support_of(episode, classes.preprocessing))

        started = time.perf_counter()
        for episode in episodes:
            adapt(episode)
        one = (time.perf_counter() - started) / len(episodes)
        with ThreadPoolExecutor(len(episodes)) as callers:
            started = time.perf_counter()
            for done in [callers.submit(adapt, episode) for episode in episodes]:
                done.result()
            return Pair((one,), (time.perf_counter() - started,))


def pair_rows(pairs: Pairs, rates: Rates) -> list[Row]:
    """Against 1.7 and 2 times the throughput of one at a time, where each has a thread."""
    names = (
        (
            f"Two Adapts at once against one at a time: 20-way 1-shot, untrained, {pairs.steps} + {pairs.steps} of the "
            "50 + 50 steps, a process and one thread each",
            pairs.untrained,
            True,
        ),
        (
            f"the same from the bundled meta-model, {pairs.bundled_steps} + {pairs.bundled_steps} steps",
            pairs.bundled,
            True,
        ),
        (
            "the same through a server with --adapt-workers 2, end to end; one alone has all cores there, so "
            "1 x is to be expected",
            pairs.served,
            False,
        ),
    )
    return [
        Row(
            what=what,
            measured=_turns(pair),
            bar="1.7 x" if judged else "",
            aim="2 x" if judged else "",
            goals=(Goal(pair.ratio, 1.7, 2.0, at_least=True),) if judged else (),
            values=asdict(pair),
        )
        for what, pair, judged in names
    ]


def _turns(pair: Pair) -> str:
    one, two = (statistics.median(seconds) for seconds in (pair.one, pair.two))
    several = f"median of {len(pair.one)} turns, {min(pair.ratios):.2f} to {max(pair.ratios):.2f}; "
    return f"{pair.ratio:.2f} x ({several if len(pair.one) > 1 else ''}one {one:.2f} s, two {two:.2f} s)"


def _median_seconds(results: Sequence[Result]) -> float:
    return statistics.median(result.seconds for result in results)


def _limit(results: Sequence[Result], rates: Rates) -> float:
    return statistics.median(result.limit_seconds(rates.all) for result in results)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _seconds(results: Sequence[Result], seconds: float) -> str:
    first = results[0]
    notes = [f"median of {len(results)}"] if len(results) > 1 else []
    if first.scaled:
        notes.append(f"SCALED from {first.architecture_steps_run} + {first.weight_steps_run} steps")
    return f"{seconds:.2f} s" + (f" ({', '.join(notes)})" if notes else "")


def _values(results: Sequence[Result], seconds: float, rates: Rates) -> dict[str, object]:
    first = results[0]
    return {
        "seconds": seconds,
        "all_seconds": [result.seconds for result in results],
        "engine": first.engine,
        "gflop": first.flops / 1e9,
        "gflop_architecture_steps": first.architecture_flops / 1e9,
        "gflop_weight_steps": first.weight_flops / 1e9,
        "architecture_seconds": first.architecture_seconds,
        "weight_seconds": first.weight_seconds,
        "gflops_reached": first.flops / seconds / 1e9,
        "limit_gflops": rates.all,
        "scaled": first.scaled,
        "steps_run": [first.architecture_steps_run, first.weight_steps_run],
    }
