"""The command line of evaluation: a meta-model and held-out classes in, accuracies out.

Exit codes: 0 done; 1 a file or the data cannot be used; 2 wrong arguments.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from metanas.allocator import keep_freed_memory
from metanas.artifact import load_meta, write_atomically
from metanas.errors import MetaNASError
from metanas.model import MetaModel
from metanas_training.cli import summary
from metanas_training.datasets import data_root, load_classes
from metanas_training.episodes import Episode
from metanas_training.evaluate import TaskScore, evaluate_task, sample_tasks, summarise


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate a meta-model from command-line arguments; the exit code comes back."""
    parser = argparse.ArgumentParser(
        prog="meta_evaluate.py", description="Accuracy of a meta-model on classes it has never seen."
    )
    add = parser.add_argument
    add("--meta", type=Path, required=True, help="meta.pt")
    add("--data", default="omniglot", help="glyphs, omniglot or folder:PATH")
    add("--data-root", type=Path, default=None)
    add("--split", default="test", choices=["train", "val", "test"])
    add("--ways", type=int, default=20)
    add("--shots", type=int, default=1)
    add("--queries", type=int, default=15, help="images of each class to classify, or all that remain")
    add("--tasks", type=int, default=100)
    add("--seed", type=int, default=0)
    add("--jobs", type=int, default=1, help="processes, each with one torch thread")
    add("--json", type=Path, default=None, help="where to write the numbers")
    arguments = parser.parse_args(argv)
    for name in ("ways", "shots", "queries", "tasks", "jobs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.seed < 0:
        parser.error(f"--seed must be at least 0, got {arguments.seed}")
    try:
        meta = load_meta(arguments.meta)
        classes = load_classes(
            arguments.data,
            arguments.split,
            preprocessing=meta.preprocessing,
            root=arguments.data_root or data_root(),
        )
        episodes = sample_tasks(
            classes,
            n_way=arguments.ways,
            n_shot=arguments.shots,
            n_query=arguments.queries,
            tasks=arguments.tasks,
            seed=arguments.seed,
        )
        scores = _scores(meta, episodes, jobs=arguments.jobs, seed=arguments.seed)
        result = summarise(classes.name, arguments.ways, arguments.shots, scores)
        if arguments.json is not None:
            write_atomically(arguments.json, (json.dumps(result.to_dict(), indent=2) + "\n").encode())
    except (MetaNASError, OSError) as error:
        print(f"meta_evaluate: {error}", file=sys.stderr)
        return 1
    print(summary(result))
    return 0


def _scores(meta: MetaModel, episodes: Sequence[Episode], *, jobs: int, seed: int) -> list[TaskScore]:
    work = [(meta, episode, seed) for episode in episodes]
    with (
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool,
        tqdm(total=len(work), unit="task") as bar,
    ):
        scores = []
        for score in pool.map(_score, work):
            scores.append(score)
            bar.update()
            mean = sum(one.inductive for one in scores) / len(scores)
            bar.set_postfix_str(f"inductive {100 * mean:.2f} %")
    return scores


def _one_thread() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()


def _score(work: tuple[MetaModel, Episode, int]) -> TaskScore:
    meta, episode, seed = work
    return evaluate_task(meta, episode, seed=seed)
