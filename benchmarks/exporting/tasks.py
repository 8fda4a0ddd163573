"""The tasks of the agreement table: adapted once, by the bundled meta-model, with its own schedule.

    Kind        data set, ways, shots
    kinds       which task has which
    load_task   number  ->  a task model with query images; adapted where no file is kept

A task's episode is drawn by a generator of its number, so its query images are the same whether it
was adapted now or read from the file. A file whose support set is another one is refused.
"""

import itertools
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from measuring.subjects import BUNDLED

from metanas import artifact
from metanas.artifact import load_meta
from metanas.learner import adapt
from metanas.model import MetaModel, TaskModel
from metanas.preprocessing import Preprocessing
from metanas_training.datasets import ImageClasses, data_root, load_classes
from metanas_training.episodes import Episode, generator_for, sample_episode

PLACE = 8
"""Of these episodes among the generators of a seed."""
QUERIES = 15
"""Held-out images of each class."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a task is drawn from."""

    data: str
    n_way: int
    n_shot: int

    def __str__(self) -> str:
        return f"{self.data}, {self.n_way}-way {self.n_shot}-shot"


@dataclass(frozen=True, slots=True)
class Subject:
    """One adapted task and what it is judged by."""

    name: str
    kind: Kind
    task: TaskModel
    query_images: torch.Tensor
    """uint8 ``(queries, channels, height, width)``."""
    query_labels: torch.Tensor
    """int64 ``(queries,)``."""


def kinds(count: int) -> list[Kind]:
    """The kinds of ``count`` tasks, in turn."""
    every = [Kind(*one) for one in itertools.product(("omniglot", "glyphs"), (5, 20), (1, 5))]
    return [every[number % len(every)] for number in range(count)]


def load_task(number: int, *, folder: Path) -> Subject:
    """The task of a number; adapted now where ``folder`` has no file of it."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = kinds(number + 1)[number]
    meta = load_meta(BUNDLED)
    episode = sample_episode(
        _classes(kind.data, meta.preprocessing),
        n_way=kind.n_way,
        n_shot=kind.n_shot,
        n_query=QUERIES,
        generator=generator_for(0, PLACE, number),
    )
    name = f"{number:02d}_{kind.data}_{kind.n_way}way_{kind.n_shot}shot"
    return Subject(
        name, kind, _task(meta, episode, path=folder / f"{name}.pt"), episode.query_images, episode.query_labels
    )


@cache
def _classes(data: str, preprocessing: Preprocessing) -> ImageClasses:
    return load_classes(data, "test", preprocessing=preprocessing, root=data_root())


def _task(meta: MetaModel, episode: Episode, *, path: Path) -> TaskModel:
    if path.exists():
        task = artifact.load_task(path)
        if not torch.equal(task.support.images, episode.support.images):
            raise SystemExit(f"{path} was adapted to another support set; delete it and run again")
        return task
    started = time.perf_counter()
    task = adapt(meta, episode.support)
    artifact.save_task(path, task)
    print(f"adapted {path.name} in {time.perf_counter() - started:.1f} s", flush=True)
    return task
