"""The command line of evaluation: meta-models and held-out classes in, accuracies out.

Several meta-models are runs of one experiment with different seeds. All see the same tasks.

Exit codes: 0 done; 1 a file or the data cannot be used, or a process died; 2 wrong arguments;
130 stopped by Ctrl-C. An interrupted evaluation that is started again with the same ``--output``
goes on from the tasks that are done.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from metanas.errors import MetaNASError
from metanas_training.datasets import data_root, load_classes
from metanas_training.evaluate import draw_tasks
from metanas_training.evaluation_folder import check_drawing, write_evaluation
from metanas_training.evaluation_pool import EvaluationPool
from metanas_training.evaluation_table import TaskKind, standard_tasks, table
from metanas_training.journal import Journal
from metanas_training.report import RunResult, summary_of_runs
from metanas_training.run_files import RunFile, read_runs
from metanas_training.scores import summarise

INTERRUPTED = 130
DATA, WAYS, SHOTS = "omniglot", 20, 1


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate meta-models from command-line arguments; the exit code comes back."""
    arguments = _parse(argv)
    try:
        files = read_runs(arguments.meta)
        if arguments.output is not None and arguments.figures:
            check_drawing()
        journals: list[Journal] = []
        evaluated = _table if arguments.table else _summary
        print(evaluated(files, arguments, journals))
        for journal in journals:
            journal.remove()
    except (MetaNASError, OSError) as error:
        print(f"meta_evaluate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        rest = f"; the same command goes on from there: --output {arguments.output}" if arguments.output else ""
        print(f"meta_evaluate: stopped{rest}", file=sys.stderr)
        return INTERRUPTED
    if arguments.output is not None:
        print(f"wrote {arguments.output}")
    return 0


def _summary(files: Sequence[RunFile], arguments: argparse.Namespace, journals: list[Journal]) -> str:
    """Of tasks of one kind."""
    kind = TaskKind(arguments.data or DATA, arguments.ways or WAYS, arguments.shots or SHOTS)
    return summary_of_runs(_evaluate(files, kind, arguments, journals, output=arguments.output))


def _table(files: Sequence[RunFile], arguments: argparse.Namespace, journals: list[Journal]) -> str:
    """Of all standard tasks."""
    rows = []
    for kind in standard_tasks(files[0].meta.preprocessing):
        print(f"{kind}:", file=sys.stderr)
        output = None if arguments.output is None else arguments.output / kind.folder
        rows.append((kind, _evaluate(files, kind, arguments, journals, output=output)[0].evaluation))
    text = table(rows)
    if arguments.output is not None:
        (arguments.output / "table.md").write_text(f"{text}\n", encoding="utf-8")
    return text


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="meta_evaluate.py",
        description="Accuracy of meta-models on classes they have never seen.",
        epilog="Exit codes: 0 done, 1 a file or the data cannot be used, 2 wrong arguments, 130 stopped.",
    )
    add = parser.add_argument
    add("--meta", type=Path, nargs="+", required=True, metavar="FILE", help="meta.pt; several: seeds of one experiment")
    add("--data", default=None, help=f"as for meta_train.py: glyphs, omniglot, folder:PATH, ... (default: {DATA})")
    add("--data-root", type=Path, default=None)
    add("--split", default="test", choices=["train", "val", "test"])
    add("--ways", type=int, default=None, help=f"(default: {WAYS})")
    add("--shots", type=int, default=None, help=f"(default: {SHOTS})")
    add("--table", action="store_true", help="the standard tasks, --tasks of each, in one table; of one meta.pt")
    add("--queries", type=int, default=15, help="images of each class to classify, or all that remain")
    add("--tasks", type=int, default=100)
    add("--seed", type=int, default=0, help="of the tasks")
    add("--jobs", type=int, default=1, help="processes, each with one torch thread")
    add("--output", type=Path, default=None, metavar="DIR", help="where to write numbers and figures")
    add("--curve-tasks", type=int, default=5, help="tasks followed step by step, with --output (default: %(default)s)")
    add("--curve-every", type=int, default=5, metavar="STEPS", help="steps between two of its points")
    add("--no-figures", action="store_false", dest="figures", help="numbers only")
    arguments = parser.parse_args(argv)
    if arguments.table and (
        given := [name for name in ("data", "ways", "shots") if getattr(arguments, name) is not None]
    ):
        parser.error(f"--table has its own tasks; leave out --{', --'.join(given)}")
    if arguments.table and len(arguments.meta) > 1:
        parser.error(f"--table is of one meta-model, got {len(arguments.meta)}")
    for name in ("ways", "shots", "queries", "tasks", "jobs", "curve_every"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    for name in ("seed", "curve_tasks"):
        if getattr(arguments, name) < 0:
            parser.error(f"--{name.replace('_', '-')} must be at least 0, got {getattr(arguments, name)}")
    return arguments


def _evaluate(
    files: Sequence[RunFile],
    kind: TaskKind,
    arguments: argparse.Namespace,
    journals: list[Journal],
    *,
    output: Path | None,
) -> list[RunResult]:
    """Run tasks of one kind and write what came out to ``output``, where there is one.

    Args:
        journals: takes those of the tasks that are done; to be removed when nothing is left to do.
    """
    classes = load_classes(
        kind.data,
        arguments.split,
        preprocessing=files[0].meta.preprocessing,
        root=arguments.data_root or data_root(),
    )
    settings = {"n_way": kind.n_way, "n_shot": kind.n_shot, "n_query": arguments.queries, "seed": arguments.seed}
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    runs: list[RunResult] = []
    trajectories = {}
    followed = min(arguments.curve_tasks, arguments.tasks) if output is not None else 0
    with EvaluationPool([file.meta for file in files], jobs=arguments.jobs, seed=arguments.seed) as pool:
        for index, file in enumerate(files):
            episodes = draw_tasks(classes, tasks=arguments.tasks, **settings)
            journals.append(Journal(output, file, data=classes.name, settings=settings))
            with journals[-1] as journal:
                if journal.scores:
                    print(f"{file.name}: {len(journal.scores)} tasks are done already", file=sys.stderr)
                scores = pool.score(index, episodes, tasks=arguments.tasks, journal=journal, label=file.name)
            evaluation = summarise(classes.name, kind.n_way, kind.n_shot, scores)
            runs.append(RunResult(file=file, scores=tuple(scores), evaluation=evaluation))
            trajectories[file.name] = pool.follow(
                index, draw_tasks(classes, tasks=followed, **settings), tasks=followed, every=arguments.curve_every,
                label=file.name,
            )  # fmt: skip
    if output is not None:
        write_evaluation(
            output, runs, trajectories,
            n_query=arguments.queries, seed=arguments.seed, figures=arguments.figures,
        )  # fmt: skip
    return runs
