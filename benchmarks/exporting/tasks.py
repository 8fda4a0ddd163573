"""The tasks of the export's tables: adapted once, by the meta-models that come with the server, as the server does.

    Kind        meta-model, data set, ways, shots
    kinds       which task has which
    load_task   number  ->  a task model with query images; adapted where no file is kept
    metas       names of the meta-models, each with the beginning of its file's hash

Every bundled meta-model takes part, with the data that it was trained for and, if it takes drawings, with
Omniglot and glyphs; a data set that is not at hand is left out. A task's episode is drawn by a generator of its
number, so its query images are the same whether it was adapted now or read from the file. A file is named after
the hash of its meta-model, and refused where its support set is another one.
"""

import hashlib
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file
from pathlib import Path

import torch
from measuring.subjects import ROOT

from metanas import artifact
from metanas.artifact import load_meta
from metanas.learner import adapt
from metanas.model import MetaModel, TaskModel
from metanas.preprocessing import Preprocessing
from metanas_serving import bundled
from metanas_training.datasets import ImageClasses, data_root, load_classes
from metanas_training.episodes import Episode, generator_for, sample_episode

WORK = ROOT / "runs" / "export_tasks"
"""Where adapted tasks are kept unless told otherwise."""
PLACE = 8
"""Of these episodes among the generators of a seed."""
QUERIES, MAX_QUERIES = 15, 100
"""Held-out images of each class, and of all classes together."""
_FOLDERS = {"cifar_fs": "cifar100", "fc100": "cifar100"}
"""Of data sets that lie under another name."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a task is drawn from, and what adapts to it."""

    data: str
    n_way: int
    n_shot: int
    meta: str = bundled.DEFAULT

    def __str__(self) -> str:
        return f"{self.data}, {self.n_way}-way {self.n_shot}-shot by {self.meta}"

    @property
    def n_query(self) -> int:
        """Held-out images of each class."""
        return min(QUERIES, MAX_QUERIES // self.n_way)


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


def metas() -> list[str]:
    """Such as "omniglot (1f2e3d4c)": what a table of today stands on."""
    return [f"{name} ({_digest(name)})" for name in bundled.names()]


def kinds(count: int) -> list[Kind]:
    """The kinds of ``count`` tasks, in turn; the first are of the default meta-model."""
    every = list(
        itertools.chain.from_iterable(
            kinds_of(name, trained_on=str(meta.provenance.get("data", "")), channels=meta.preprocessing.channels)
            for name, meta in ((name, _meta(name)) for name in bundled.names())
        )
    )
    return [every[number % len(every)] for number in range(count)]


def kinds_of(name: str, *, trained_on: str, channels: int) -> list[Kind]:
    """What a meta-model is asked for.

    Args:
        trained_on: as its provenance says, such as "omniglot-vinyals/train".
    """
    usual = [trained_on.split("/")[0].split("-")[0], *(("omniglot", "glyphs") if channels == 1 else ())]
    data = [one for one in dict.fromkeys(usual) if _is_here(one)]
    ways: Sequence[int] = (5, 20) if channels == 1 else (5,)
    return [Kind(*one, meta=name) for one in itertools.product(data, ways, (1, 5))]


def load_task(number: int, *, folder: Path = WORK) -> Subject:
    """The task of a number; adapted now where ``folder`` has no file of it."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = kinds(number + 1)[number]
    meta = _meta(kind.meta)
    episode = sample_episode(
        _classes(kind.data, meta.preprocessing),
        n_way=kind.n_way,
        n_shot=kind.n_shot,
        n_query=kind.n_query,
        generator=generator_for(0, PLACE, number),
    )
    name = f"{number:02d}_{kind.meta}_{kind.data}_{kind.n_way}way_{kind.n_shot}shot"
    path = folder / f"{name}_{_digest(kind.meta)}.pt"
    return Subject(name, kind, _task(meta, episode, path=path), episode.query_images, episode.query_labels)


def _is_here(data: str) -> bool:
    return data == "glyphs" or (data != "" and (data_root() / _FOLDERS.get(data, data)).is_dir())


@cache
def _meta(name: str) -> MetaModel:
    with as_file(bundled.path(name)) as path:
        return load_meta(path)


@cache
def _digest(name: str) -> str:
    return hashlib.sha256(bundled.path(name).read_bytes()).hexdigest()[:8]


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
