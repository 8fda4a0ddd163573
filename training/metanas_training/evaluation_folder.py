"""The folder of one evaluation: numbers, figures, and the data that the figures were drawn from.

    results.json              everything that was measured: ``report.results``
    tasks.csv                 a row for each task of each run
    genotype.json             the most common architecture, for retraining; networks of cells only
    model_sizes               histogram of task networks' sizes; where tasks search
    cell_normal, cell_reduction   the most common cell of each type; networks of cells only
    weights_normal, weights_reduction   the mixture of the first task, step by step; where tasks search
    accuracy_over_steps       accuracy during adaptation; where there are steps

A figure is three files: PNG, SVG and CSV. The most common cell of a type is counted by itself,
so the two drawings need not be of one architecture; ``genotype.json`` is.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from metanas.artifact import write_atomically, write_json
from metanas.space import CELL_TYPES, ConvBlocks, SearchSpace
from metanas_training.architectures import CommonCell, most_common, most_common_cell
from metanas_training.cell_drawing import draw_cell
from metanas_training.errors import EvaluationError
from metanas_training.figures import accuracy_curve, model_sizes, save_figure, weight_maps
from metanas_training.report import RunResult, csv_text, genotype_file, results, task_rows
from metanas_training.trajectory import CurvePoint, Frame, Trajectory, mean_curve


def check_drawing() -> None:
    """Raise EvaluationError if figures cannot be drawn here, before hours of work."""
    if importlib.util.find_spec("matplotlib") is None:
        raise EvaluationError("figures need matplotlib: pip install 'metanas-edge[demo]', or give --no-figures")


def write_evaluation(
    folder: Path,
    runs: Sequence[RunResult],
    trajectories: Mapping[str, Sequence[Trajectory]],
    *,
    n_query: int,
    seed: int,
    figures: bool,
) -> None:
    """Write all files into ``folder``, which exists.

    Args:
        trajectories: for each run, by name, some of its tasks, the first one first.
        figures: False: their CSV files only.
    """
    genotypes = [score.genotype for run in runs for score in run.scores]
    space = runs[0].file.meta.space
    common = None if isinstance(space, ConvBlocks) else most_common(genotypes)
    write_json(folder / "results.json", results(runs, n_query=n_query, seed=seed, common=common))
    _write_csv(folder, "tasks", task_rows(runs))
    searched = runs[0].file.meta.searches
    if common is not None:
        write_json(folder / "genotype.json", genotype_file(space, common))
        for cell_type in CELL_TYPES:
            cell = most_common_cell(genotypes, cell_type)
            name, title = f"cell_{cell_type}", _cell_title(cell_type, cell.share, searched=searched)
            _write_csv(folder, name, cell_rows(cell))
            if figures:
                save_figure(folder, name, partial(draw_cell, cell.cell, title))
    if searched:
        sizes = {run.file.name: [score.parameter_count for score in run.scores] for run in runs}
        rows = [{"run": name, "parameters": count} for name, counts in sizes.items() for count in counts]
        _write_csv(folder, "model_sizes", rows)
        if figures:
            save_figure(folder, "model_sizes", partial(model_sizes, sizes))
    _write_trajectories(folder, trajectories, space if isinstance(space, SearchSpace) else None, figures=figures)


def _write_trajectories(
    folder: Path, trajectories: Mapping[str, Sequence[Trajectory]], space: SearchSpace | None, *, figures: bool
) -> None:
    followed = {name: one for name, one in trajectories.items() if one}
    if not followed:
        return
    curves = {name: mean_curve(one) for name, one in followed.items()}
    if any(len(points) > 1 for points in curves.values()):
        _write_csv(folder, "accuracy_over_steps", curve_rows(curves))
        if figures:
            save_figure(folder, "accuracy_over_steps", partial(accuracy_curve, curves))
    frames = next(iter(followed.values()))[0].frames
    if space is None or len(frames) < 2:
        return
    for cell_type in CELL_TYPES:
        name = f"weights_{cell_type}"
        _write_csv(folder, name, weight_rows(frames, space, cell_type))
        if figures:
            save_figure(folder, name, partial(weight_maps, frames, space, cell_type))


def cell_rows(cell: CommonCell) -> list[dict[str, Any]]:
    """A row for each operation of a cell; nodes are numbered after the two inputs."""
    return [
        {
            "node": 2 + node,
            "source": edge.source,
            "operation": edge.operation,
            "weight": edge.weight,
            "share": cell.share,
        }
        for node, kept in enumerate(cell.cell)
        for edge in kept
    ]


def curve_rows(curves: Mapping[str, Sequence[CurvePoint]]) -> list[dict[str, Any]]:
    """A row for each point; accuracies are fractions."""
    return [
        {
            "run": name,
            "step": point.step,
            "pruned": int(point.pruned),
            "accuracy": point.accuracy.mean,
            "half_width": point.accuracy.half_width,
        }
        for name, points in curves.items()
        for point in points
    ]


def weight_rows(frames: Sequence[Frame], space: SearchSpace, cell_type: str) -> list[dict[str, Any]]:
    """A row for each step, edge and operation."""
    return [
        {
            "step": frame.step,
            "temperature": frame.temperature,
            "node": 2 + node,
            "source": source,
            "operation": operation,
            "operation_weight": frame.operations[cell_type][edge][index],
            "input_weight": frame.inputs[cell_type][edge],
        }
        for frame in frames
        for edge, (node, source) in enumerate(space.edges)
        for index, operation in enumerate(space.operations)
    ]


def _write_csv(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomically(folder / f"{name}.csv", csv_text(rows).encode())


def _cell_title(cell_type: str, share: float, *, searched: bool) -> str:
    where = f"in {100 * share:.3g} % of the tasks" if searched else "fixed"
    return f"{cell_type.capitalize()} cell, {where}"
