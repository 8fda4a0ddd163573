"""Table 3 over the folders of finished runs, as Markdown.

read_results     run folders  ->  their ``results.json``
markdown_table   results      ->  a row for each strategy, mean and spread over the seeds
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from metanas.relaxation import STRATEGIES
from metanas_training.errors import TrainingError

RESULTS = "results.json"

Result = dict[str, Any]


class ResultsError(TrainingError):
    """Results that are missing, unreadable or not comparable."""


def read_results(folders: Sequence[Path]) -> list[Result]:
    """Read the results of runs that are to be compared.

    Raises:
        ResultsError: a run is not finished, its file is damaged, two have the same strategy and
            seed, or they differ in anything else.
    """
    results: list[Result] = []
    for folder in folders:
        file = folder / RESULTS
        if not file.is_file():
            raise ResultsError(f"no {file}: that run is not finished; continue it with --resume {folder}")
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            if result["strategy"] not in STRATEGIES:
                raise ValueError(f"unknown strategy {result['strategy']!r}")
            for name, value in _COLUMNS.values():
                float(value(result[name]))
            dict(result["config"]), int(result["seed"]), str(result["data"])
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"{file} is damaged: {error}; run the search again") from error
        results.append(result)
    for number, (folder, result) in enumerate(zip(folders, results, strict=True)):
        differing = sorted(
            name
            for name in results[0]["config"] | result["config"]
            if results[0]["config"].get(name) != result["config"].get(name)
        )
        if result["data"] != results[0]["data"]:
            differing.append("data")
        if differing:
            raise ResultsError(
                f"{folder} and {folders[0]} cannot be compared: they differ in {', '.join(differing)}; "
                "give runs of one configuration"
            )
        for earlier, other in zip(folders[:number], results[:number], strict=True):
            if (other["strategy"], other["seed"]) == (result["strategy"], result["seed"]):
                raise ResultsError(
                    f"{folder} and {earlier} are the same run: strategy {result['strategy']}, seed {result['seed']}; "
                    "leave one out"
                )
    return results


def _percent(value: float) -> float:
    return 100 * value


def _as_it_is(value: float) -> float:
    return value


_COLUMNS: dict[str, tuple[str, Callable[[float], float]]] = {
    "before pruning, %": ("before", _percent),
    "after pruning, %": ("after", _percent),
    "lost, points": ("lost_points", _as_it_is),
    "after, statistics measured anew, %": ("after_remeasured", _percent),
    "parameters before": ("parameters_before", _as_it_is),
    "parameters after": ("parameters_after", _as_it_is),
    "CPU seconds": ("cpu_seconds", _as_it_is),
}


def markdown_table(results: Sequence[Result]) -> str:
    """A row for each strategy: mean ± standard error of the mean (smallest to largest) over its seeds."""
    lines = [
        "| sparsification | seeds | " + " | ".join(_COLUMNS) + " |",
        "| --- | --- |" + " ---: |" * len(_COLUMNS),
    ]
    for strategy in STRATEGIES:
        rows = [result for result in results if result["strategy"] == strategy]
        if rows:
            seeds = ", ".join(str(seed) for seed in sorted(row["seed"] for row in rows))
            cells = []
            for title, (name, value) in _COLUMNS.items():
                digits = 1 if "," in title else 0
                cells.append(_spread([value(row[name]) for row in rows], digits))
            lines.append(f"| {strategy.replace('_', ' ')} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    if len(values) == 1:
        return f"{values[0]:z.{digits}f}"  # z: never -0.0
    error = stdev(values) / math.sqrt(len(values))
    return f"{mean(values):z.{digits}f} ± {error:.{digits}f} ({min(values):z.{digits}f} to {max(values):z.{digits}f})"
