"""Rows about the server itself: how soon it is ready, and what an idle task costs.

Tasks of the memory row have the bundled architecture; learnt in a few steps they are as large.
"""

import statistics
import time
from dataclasses import asdict, dataclass

from measuring.machine import Rates
from measuring.row import Goal, Row
from measuring.server import Server, bundled_arguments, memory_bytes
from measuring.settings import Settings
from measuring.subjects import omniglot_classes, omniglot_episode, picture, support_of

STARTS = 3
"""The first one is left out: it reads files and compiles what is compiled at first use."""
FIRST_TASKS = 6
"""Before the memory is looked at: they fill what all tasks share."""
SETTLE_SECONDS = 1.0


def measure_start(settings: Settings) -> list[float]:
    """Seconds of each start with the bundled meta-model."""
    seconds = []
    for _ in range(2 if settings.quick else STARTS):
        with Server() as server:
            seconds.append(server.ready_seconds)
    return seconds


def start_rows(seconds: list[float], rates: Rates) -> list[Row]:
    """Against 5 and 2 seconds."""
    later = statistics.median(seconds[1:])
    return [
        Row(
            what="server start to ready with the bundled meta-model, after the first time",
            measured=f"{later:.2f} s (the first here {seconds[0]:.2f} s)",
            bar="5 s",
            aim="2 s",
            goals=(Goal(later, 5.0, 2.0),),
            values={"seconds": seconds},
        )
    ]


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes around ``tasks`` more tasks."""

    tasks: int
    before: int
    after: int
    before_with_workers: int
    after_with_workers: int

    @property
    def megabytes_each(self) -> float:
        """In the server's own process."""
        return (self.after - self.before) / self.tasks / 1e6


@dataclass(frozen=True, slots=True)
class Memories:
    """Of a server that keeps its tasks in memory alone, and of one with a folder for them."""

    without_store: Memory
    with_store: Memory


def measure_memory(settings: Settings) -> Memories:
    """Adapt to many tasks and ask each of them once."""
    return Memories(
        without_store=_memory(settings), with_store=_memory(settings, "--store", str(settings.folder / "store"))
    )


def _memory(settings: Settings, *arguments: str) -> Memory:
    classes = omniglot_classes()
    count = 6 if settings.quick else 20
    with Server(*arguments, *bundled_arguments(settings.folder, steps=1)) as server:

        def learn(numbers: range) -> None:
            for number in numbers:
                episode = omniglot_episode(classes, number)
                task = server.client.adapt(support_of(episode, classes.preprocessing))
                task.classify([picture(episode.query_images[0], classes.preprocessing)])
            time.sleep(SETTLE_SECONDS)

        def look() -> tuple[int, int]:
            return memory_bytes(server.process_id), memory_bytes(server.process_id, children=True)

        learn(range(FIRST_TASKS))
        before, before_with_workers = look()
        learn(range(FIRST_TASKS, FIRST_TASKS + count))
        after, after_with_workers = look()
    return Memory(count, before, after, before_with_workers, after_with_workers)


def memory_rows(found: Memories, rates: Rates) -> list[Row]:
    """Against 2 and 0.7 MB."""
    return [
        _memory_row(
            found.without_store,
            "memory of an idle adapted task in the server (VmRSS, {} tasks more, each asked once), which without a "
            "--store also keeps the task's file",
        ),
        _memory_row(found.with_store, "the same in a server with --store ({} tasks more)"),
    ]


def _memory_row(found: Memory, what: str) -> Row:
    with_workers = (found.after_with_workers - found.before_with_workers) / found.tasks / 1e6
    return Row(
        what=what.format(found.tasks),
        measured=f"{found.megabytes_each:.2f} MB (with its workers' growth {with_workers:.2f} MB)",
        bar="2 MB",
        aim="0.7 MB",
        goals=(Goal(found.megabytes_each, 2.0, 0.7),),
        values={**asdict(found), "megabytes_each": found.megabytes_each},
    )
