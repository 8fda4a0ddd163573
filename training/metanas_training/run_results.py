"""What a run folder says about itself: settings, cost, and what was measured of it.

    read_run   a run folder  ->  Run
    Measured   one evaluation of one run

Files are read as strangers' files: a field that is missing or of another kind is named.
"""

import hashlib
import json
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metanas_training.errors import EvaluationError
from metanas_training.report import ACCURACIES
from metanas_training.scores import Estimate

SETTINGS = ("data", "n_way", "n_shot", "n_query", "tasks", "seed")
"""What decides which tasks an evaluation is of."""

KINDS = {str: "text", int: "a whole number", float: "a finite number", dict: "a table", list: "a list"}
"""What a value in a file may have to be."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One evaluation of one run."""

    file: Path
    sha256: str
    """Of the meta-model."""
    alone: bool
    """Whether it is the only run of its file."""
    settings: tuple[Any, ...]
    architecture: str
    parameters: float
    accuracies: Mapping[str, Estimate]
    """By the names of ``ACCURACIES``."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder."""

    folder: Path
    config: Mapping[str, Any]
    """Empty where there is no ``config.json``."""
    provenance: Mapping[str, Any]
    """Empty where there is no ``meta.json``."""
    sha256: str | None
    """Of ``meta.pt``; None where it is not there."""
    evaluations: tuple[Measured, ...]
    """Of whatever meta-models, found in this folder."""


def read_run(folder: Path) -> Run:
    """Read what there is in a run folder.

    Raises:
        EvaluationError: it holds neither a configuration nor an evaluation, or a file is damaged.
    """
    config, meta = _read_json(folder / "config.json"), _read_json(folder / "meta.json")
    evaluations = tuple(
        measured for file in sorted(folder.glob("evaluation*/results.json")) for measured in _read_results(file)
    )
    if not config and not evaluations:
        raise EvaluationError(f"{folder} is no run folder: it has neither config.json nor evaluation*/results.json")
    provenance = _optional(folder / "meta.json", meta, "provenance", dict) or {}
    _optional(folder / "meta.json", meta, "provenance.training_cpu_seconds", float)
    for name in ("network", "task"):
        _optional(folder / "config.json", config, name, dict)
    _optional(folder / "config.json", config, "drop_path", float)
    for file, values, plan in (("meta.json", meta, "provenance.plan"), ("config.json", config, "plan")):
        for phase in ("warm_up", "joint"):
            _optional(folder / file, values, f"{plan}.{phase}", int)
    weights = folder / "meta.pt"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else None
    return Run(folder, config, provenance, digest, evaluations)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EvaluationError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise EvaluationError(f"{file} holds no table")
    return values


def _read_results(file: Path) -> list[Measured]:
    values = _read_json(file)

    def required(name: str, kind: type[Any]) -> Any:
        if (value := _optional(file, values, name, kind)) is None:
            raise EvaluationError(f"{file} is no result of meta_evaluate.py (no {name!r}); evaluate again")
        return value

    settings = tuple(required(name, str if name == "data" else int) for name in SETTINGS)
    runs = len(required("runs", list))
    return [
        Measured(
            file=file,
            sha256=required(f"runs.{run}.meta_sha256", str),
            alone=runs == 1,
            settings=settings,
            architecture=required(f"runs.{run}.architecture", str),
            parameters=required(f"runs.{run}.evaluation.parameter_count", float),
            accuracies={
                name: Estimate(
                    required(f"runs.{run}.evaluation.{name}.mean", float),
                    required(f"runs.{run}.evaluation.{name}.half_width", float),
                )
                for name in ACCURACIES
            },
        )
        for run in range(runs)
    ]


def _optional(file: Path, values: Any, name: str, kind: type[Any]) -> Any:
    """The value of JSON at ``name``, as "runs.0.evaluation"; None where it or a table around it is missing.

    Raises:
        EvaluationError: it is of another kind.
    """
    value, above = values, ""
    for part in name.split("."):
        if isinstance(value, list) and part.isdigit():
            value = value[int(part)]
        elif isinstance(value, dict):
            value = value.get(part)
        else:
            raise EvaluationError(f"{file}: {above} must be {KINDS[dict]}, got {reprlib.repr(value)}")
        if value is None:
            return None
        above = f"{above}.{part}" if above else part
    right = isinstance(value, int | float if kind is float else kind) and not isinstance(value, bool)
    if not right or (kind in (int, float) and not abs(value) <= sys.float_info.max):  # NaN is refused too
        raise EvaluationError(f"{file}: {name} must be {KINDS[kind]}, got {reprlib.repr(value)}")
    return value
