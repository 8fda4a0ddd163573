"""Tasks of an evaluation learned in several processes, each with one torch thread.

    EvaluationPool   ``score`` and ``follow``: episodes  ->  what came out, in their order

The meta-models go to each process once. Episodes are drawn here and sent a few ahead, so
that memory does not grow with the number of tasks.
"""

import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from typing import Self, TypeVar

import torch

from metanas.allocator import keep_freed_memory
from metanas.model import MetaModel
from metanas_training.episodes import Episode
from metanas_training.errors import EvaluationError
from metanas_training.evaluate import evaluate_task
from metanas_training.journal import Journal
from metanas_training.progress import progress_bar
from metanas_training.scores import TaskScore
from metanas_training.trajectory import Trajectory, follow

T = TypeVar("T")
AHEAD = 4
"""Episodes a process that are drawn ahead."""

_metas: Sequence[MetaModel] = ()
"""Of a worker process."""


class EvaluationPool:
    """Processes that hold the meta-models.

    Args:
        metas: called by their index.
        seed: of every adaptation.

    Raises:
        EvaluationError: at the end of the ``with`` block, if a process died.
    """

    def __init__(self, metas: Sequence[MetaModel], *, jobs: int, seed: int) -> None:
        self._pool = ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(metas,)
        )
        self._ahead = AHEAD * jobs
        self._seed = seed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            for worker in active_children():  # not a minute later, when their tasks are done
                worker.terminate()
        self._pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise EvaluationError(
                "a process of the evaluation died, perhaps for want of memory; try fewer --jobs"
            ) from error

    def score(
        self, index: int, episodes: Iterable[Episode], *, tasks: int, journal: Journal, label: str
    ) -> list[TaskScore]:
        """Learn and answer all episodes with one meta-model, but for those that the journal has."""
        scores: list[TaskScore] = []
        with progress_bar(total=tasks, description=label, unit="task") as bar:
            work = (
                (task, None if task in journal.scores else self._pool.submit(_score, index, episode, self._seed))
                for task, episode in enumerate(episodes)
            )
            for task, future in self._in_order(work):
                if future is not None:
                    journal.add(task, future.result())
                scores.append(journal.scores[task])
                bar.update()
                mean = sum(one.inductive for one in scores) / len(scores)
                bar.set_postfix_str(f"inductive {100 * mean:.2f} %", refresh=False)
        return scores

    def follow(
        self, index: int, episodes: Iterable[Episode], *, tasks: int, every: int, label: str
    ) -> list[Trajectory]:
        """Follow the adaptation of one meta-model to all episodes."""
        if tasks == 0:
            return []
        trajectories = []
        with progress_bar(total=tasks, description=f"{label}, step by step", unit="task") as bar:
            work = (
                (task, self._pool.submit(_follow, index, episode, self._seed, every))
                for task, episode in enumerate(episodes)
            )
            for _, future in self._in_order(work):
                trajectories.append(future.result())
                bar.update()
        return trajectories

    def _in_order(self, work: Iterator[tuple[int, T]]) -> Iterator[tuple[int, T]]:
        """``work`` as it comes, started ``AHEAD`` of what is waited for."""
        waiting: deque[tuple[int, T]] = deque()
        for item in work:
            waiting.append(item)
            if len(waiting) >= self._ahead:
                yield waiting.popleft()
        yield from waiting


def _start_worker(metas: Sequence[MetaModel]) -> None:
    global _metas
    _metas = metas
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    keep_freed_memory()


def _score(index: int, episode: Episode, seed: int) -> TaskScore:
    return evaluate_task(_metas[index], episode, seed=seed)


def _follow(index: int, episode: Episode, seed: int, every: int) -> Trajectory:
    return follow(_metas[index], episode, seed=seed, every=every)
