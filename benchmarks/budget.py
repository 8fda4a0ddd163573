"""Accuracy against a budget of parameters: what a task network loses that has to be smaller.

    python benchmarks/budget.py --tasks 100 --jobs 2

Omniglot test tasks (``METANAS_DATA``), 20-way 1-shot. Each is learnt without a budget, and then with
``max_parameters`` at 100 %, 60 % and 40 % of the parameters that it had got without; what is learnt and how
it is asked is otherwise the same, so what counts is the difference task by task. Interrupted, it goes on
from the tasks that are done (``--work``). Prints and writes a table, JSON and a plot. Passes, with exit
code 0, if every network fits its budget.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from enduring import report
from measuring import machine
from measuring.subjects import BUNDLED, ROOT

from metanas.artifact import load_meta, write_json
from metanas.errors import InvalidTaskError
from metanas.learner import adapt
from metanas.model import MetaModel, TaskModel
from metanas.preprocessing import scale
from metanas_training.datasets import ImageClasses, data_root, load_classes
from metanas_training.episodes import Episode
from metanas_training.evaluate import accuracy, draw_tasks
from metanas_training.figures import COLOURS, COLUMN, new_figure, save_figure
from metanas_training.scores import estimate

SHARES = (1.0, 0.6, 0.4)
UNCONSTRAINED = "none"

Score = dict[str, Any]
"""Of one task: its scores by budget, ``UNCONSTRAINED`` or the share."""


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """What one task is learnt from."""

    meta: str
    ways: int
    shots: int
    queries: int
    seed: int
    steps: int | None
    """Of each kind; None: as the meta-model says."""


def main() -> int:
    """Learn what is not learnt yet, draw, write."""
    options = _parse()
    described = machine.describe()
    setting = Setting(str(options.meta), options.ways, options.shots, options.queries, options.seed, options.steps)
    scores = _scores(setting, options)
    return _report(setting, options, described, scores)


def _scores(setting: Setting, options: argparse.Namespace) -> list[Score]:
    """All tasks, those of ``--work`` as they are."""
    meta = hashlib.sha256(options.meta.read_bytes()).hexdigest()[:8]
    kind = f"{options.ways}way_{options.shots}shot_{options.queries}queries_seed{options.seed}_{options.steps}steps"
    work: Path = options.work / f"{meta}_{kind}"
    work.mkdir(parents=True, exist_ok=True)
    files = [work / f"{number}.json" for number in range(options.tasks)]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    with ProcessPoolExecutor(options.jobs) as processes:
        running = {processes.submit(learn, setting, number): number for number in missing}
        for count, one in enumerate(as_completed(running), start=1):
            write_json(files[running[one]], one.result())
            print(f"{count} of {len(missing)}: {one.result()}", file=sys.stderr, flush=True)
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def learn(setting: Setting, number: int) -> Score:
    """One task, without a budget and with each."""
    torch.set_num_threads(1)
    meta = _meta(setting.meta)
    if setting.steps is not None:
        schedule = dataclasses.replace(meta.schedule, architecture_steps=setting.steps, weight_steps=setting.steps)
        meta = dataclasses.replace(meta, schedule=schedule)
    episode = _episode(setting, number)
    free = adapt(meta, episode.support, seed=setting.seed)
    found: Score = {UNCONSTRAINED: _score(free, episode)}
    for share in SHARES:
        most = int(share * free.report.parameter_count)
        limited = dataclasses.replace(meta, schedule=dataclasses.replace(meta.schedule, max_parameters=most))
        try:
            task = adapt(limited, episode.support, seed=setting.seed)
        except InvalidTaskError as error:  # nothing fits
            found[str(share)] = {"max_parameters": most, "fits": False, "why": str(error)}
            continue
        score = _score(task, episode)
        found[str(share)] = {**score, "max_parameters": most, "fits": score["parameters"] <= most}
    return found


@cache
def _meta(path: str) -> MetaModel:
    return load_meta(path)


@cache
def _classes(path: str) -> ImageClasses:
    return load_classes("omniglot", "test", preprocessing=_meta(path).preprocessing, root=data_root())


def _episode(setting: Setting, number: int) -> Episode:
    drawn = draw_tasks(
        _classes(setting.meta),
        n_way=setting.ways,
        n_shot=setting.shots,
        n_query=setting.queries,
        tasks=number + 1,
        seed=setting.seed,
    )
    return list(drawn)[number]


def _score(task: TaskModel, episode: Episode) -> Score:
    queries = scale(episode.query_images, task.preprocessing)
    return {
        "parameters": task.report.parameter_count,
        "accuracy": accuracy(task.network, queries, episode.query_labels),
        "support_accuracy": task.report.support_accuracy,
    }


def _report(
    setting: Setting, options: argparse.Namespace, described: Mapping[str, Any], scores: Sequence[Score]
) -> int:
    fitting = {share: sum(score[str(share)]["fits"] for score in scores) for share in SHARES}
    rows = []
    for name in (UNCONSTRAINED, *map(str, SHARES)):
        there = [(score[name], score[UNCONSTRAINED]) for score in scores if "accuracy" in score[name]]
        reached = estimate([one["accuracy"] for one, _ in there])
        lost = estimate([one["accuracy"] - free["accuracy"] for one, free in there])
        sizes = [one["parameters"] for one, _ in there]
        share = "none" if name == UNCONSTRAINED else f"{100 * float(name):.0f} %"
        fits = "" if name == UNCONSTRAINED else f"{fitting[float(name)]} of {len(scores)}"
        rows.append(
            [
                share,
                fits,
                f"{np.mean(sizes):,.0f} ({min(sizes):,} to {max(sizes):,})",
                f"{100 * reached.mean:.1f} ± {100 * reached.half_width:.1f} %",
                "" if name == UNCONSTRAINED else f"{100 * lost.mean:+.2f} ± {100 * lost.half_width:.2f}",
            ]
        )
    verdicts = {"every task network fits its budget": all(count == len(scores) for count in fitting.values())}
    steps = "" if setting.steps is None else f", {setting.steps} steps of each kind: **a short look, no result**"
    lines = [
        f"# Accuracy against a budget of parameters: {len(scores)} Omniglot test tasks",
        "",
        report.header(
            f"python benchmarks/budget.py --tasks {len(scores)} --jobs {options.jobs}",
            described,
            load_average_at_end=round(os.getloadavg()[0], 2),
        ),
        "",
        f"{setting.ways}-way {setting.shots}-shot, {options.meta.name}{steps}; inductive accuracy of "
        f"{setting.queries} images a class, mean with 95 % interval. The budget is a share of the parameters that the "
        "same task's network had without one; the last column is the difference from that network, task by task.",
        "",
        *report.table(["budget", "fit", "parameters", "accuracy", "points lost or won"], rows),
        "",
        *report.verdicts(verdicts),
    ]
    values = {
        "machine": described,
        "setting": {**dataclasses.asdict(setting), "meta": options.meta.name},
        "verdicts": verdicts,
        "tasks": list(scores),
    }
    report.write(options.output, "budget", lines=lines, values=values)
    options.figure.mkdir(parents=True, exist_ok=True)
    save_figure(options.figure, "budget", lambda: _drawn(scores))
    return 0 if all(verdicts.values()) else 1


def _drawn(scores: Sequence[Score]) -> Any:
    """Each task a dot, the mean of each budget with its interval over them."""
    figure = new_figure(COLUMN, 2.4)
    axis = figure.subplots()
    for index, name in enumerate((UNCONSTRAINED, *map(str, SHARES))):
        there = [score[name] for score in scores if "accuracy" in score[name]]
        sizes = np.array([one["parameters"] for one in there]) / 1000
        reached = 100 * np.array([one["accuracy"] for one in there])
        axis.scatter(sizes, reached, s=4, color=COLOURS[index], alpha=0.3, linewidths=0)
        mean = estimate([one["accuracy"] for one in there])
        axis.errorbar(
            sizes.mean(), 100 * mean.mean, yerr=100 * mean.half_width, color=COLOURS[index], marker="o", markersize=3.5,
            capsize=2, linewidth=1, label="no budget" if name == UNCONSTRAINED else f"{100 * float(name):.0f} %",
        )  # fmt: skip
    axis.set(xlabel="parameters of the task network (thousands)", ylabel="accuracy (%)")
    axis.legend(title="budget", title_fontsize=6.5, loc="lower right")
    return figure


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--ways", type=int, default=20)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--queries", type=int, default=15, help="images a class to answer")
    parser.add_argument("--steps", type=int, help="gradient steps of each kind, to try it out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--meta", type=Path, default=BUNDLED)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "budget", help="for what is done")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="of budget.json and .md")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "images", help="of budget.png and budget.svg")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
