"""What runs reached, side by side.

    compare     runs               ->  a row for each experiment and kind of task
    markdown, plain_rows   rows    ->  the table as text, as numbers

Runs that differ by nothing but their seed are one experiment: mean and twice the standard error of
the mean, as in the paper. A folder counts once, however often it is given. An evaluation belongs to the run whose
``meta.pt`` has the checksum that it names, wherever among the folders it lies.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from metanas_training.errors import EvaluationError
from metanas_training.report import ACCURACIES, over_runs
from metanas_training.run_results import SETTINGS, Measured, Run
from metanas_training.scores import Estimate

LEARNERS = {"reptile": "Reptile", "maml": "MAML", "first_order_maml": "first-order MAML"}
WARM_UPS = {"prototype": "prototype loss", "supervised": "classifier"}
ARCHITECTURES = {"searched": "searched for each task", "fixed": "fixed", "conv_blocks": "REPTILE's CNN"}
ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Row:
    """One experiment on one kind of task; what was not measured is None."""

    experiment: str
    runs: int
    meta_learner: str
    architecture: str
    cpu_minutes: float | None
    """Of the training of one run."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """By the names of ``SETTINGS``; empty: not evaluated."""
    parameters: float | None = None
    accuracies: Mapping[str, Estimate] = field(default_factory=dict)
    """Half widths: twice the standard error over runs; of one run the 95 % interval over tasks."""


def compare(runs: Sequence[Run]) -> list[Row]:
    """A row for each experiment and kind of task, in the order of ``runs``.

    Raises:
        EvaluationError: an evaluation of a meta-model that is no longer there, two of the same tasks, or
            two runs of one experiment with one seed or one meta-model.
    """
    runs = list({run.folder.resolve(): run for run in runs}.values())
    measured = _assign(runs)
    experiments: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        experiments.setdefault(_experiment_key(run), []).append(index)
    rows = []
    for members in experiments.values():
        _check_different([runs[index] for index in members])
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for index in members:
            for settings in measured[index]:
                kinds.setdefault(settings, []).append(index)
        for settings, those in sorted(kinds.items(), key=lambda item: [str(value) for value in item[0]]):
            rows.append(_row([runs[index] for index in those], [measured[index][settings] for index in those]))
        unmeasured = [runs[index] for index in members if not measured[index]]
        if unmeasured:
            rows.append(_row(unmeasured, []))
    return rows


def _check_different(runs: Sequence[Run]) -> None:
    """Raise EvaluationError if a run of an experiment is there twice."""
    for index, run in enumerate(runs):
        for other in runs[:index]:
            same = "meta-model" if run.sha256 is not None and run.sha256 == other.sha256 else None
            if run.config.get("seed") == other.config.get("seed"):
                same = f"seed {run.config.get('seed')}"
            if same is not None:
                raise EvaluationError(
                    f"{other.folder} and {run.folder} are runs of one experiment with the same {same}, which would "
                    "count twice; leave one out"
                )


def _assign(runs: Sequence[Run]) -> list[dict[tuple[Any, ...], Measured]]:
    """For each run its evaluations by their settings."""
    found: list[dict[tuple[Any, ...], Measured]] = [{} for _ in runs]
    for home, run in enumerate(runs):
        for one in run.evaluations:
            owners = [index for index, other in enumerate(runs) if other.sha256 == one.sha256]
            if not owners and one.alone:
                if run.sha256 is not None:
                    raise EvaluationError(
                        f"{one.file} is of another meta-model than {run.folder / 'meta.pt'}; evaluate that again"
                    )
                owners = [home]
            for index in owners:
                before = found[index].get(one.settings)
                if before is not None and before.file != one.file:
                    raise EvaluationError(f"{before.file} and {one.file} are of the same tasks; remove one of them")
                found[index][one.settings] = one
    return found


def _experiment_key(run: Run) -> str:
    if not run.config:
        return str(run.folder.resolve())
    return json.dumps({name: value for name, value in run.config.items() if name != "seed"}, sort_keys=True)


def _row(runs: Sequence[Run], measured: Sequence[Measured]) -> Row:
    seconds = [run.provenance.get("training_cpu_seconds") for run in runs]
    minutes = [value / 60 for value in seconds if value is not None]
    first = runs[0]
    row = Row(
        experiment=experiment_name([run.folder.resolve().name for run in runs]) + _variant(first.config),
        runs=len(runs),
        meta_learner=meta_learner(first.config, first.provenance),
        architecture=_architecture(first.config, measured[0].architecture if measured else None),
        cpu_minutes=sum(minutes) / len(minutes) if minutes else None,
    )
    if not measured:
        return row
    accuracies = measured[0].accuracies
    if len(measured) > 1:
        accuracies = {name: over_runs([one.accuracies[name].mean for one in measured]) for name in ACCURACIES}
    return replace(
        row,
        settings=dict(zip(SETTINGS, measured[0].settings, strict=True)),
        parameters=sum(one.parameters for one in measured) / len(measured),
        accuracies=accuracies,
    )


def experiment_name(folders: Sequence[str]) -> str:
    """What the names of an experiment's folders have in common, without the seed."""
    names = [re.sub(r"[-_.]?seed[-_=]?\d+$", "", folder) or folder for folder in folders]
    if len(set(names)) == 1:
        return names[0]
    return " / ".join(dict.fromkeys(names))


def _variant(config: Mapping[str, Any]) -> str:
    """What is unusual about how tasks are learned, as " (drop_path 0.2, strategy none)"."""
    task = config.get("task") or {}
    parts = [f"drop_path {config['drop_path']:g}"] if config.get("drop_path") else []
    for name, usual in (("relaxation", "softmax"), ("strategy", "operations_and_inputs")):
        if task.get(name, usual) != usual:
            parts.append(f"{name} {task[name]}")
    return f" ({', '.join(parts)})" if parts else ""


def meta_learner(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """What trained the weights: the warm-up, if it is another one, and the meta-learner, if it took steps."""
    if not config:
        return ABSENT
    plan = provenance.get("plan") or config.get("plan") or {}
    parts = []
    warm_up = str(config.get("warm_up", ""))
    if warm_up in WARM_UPS and plan.get("warm_up", 1) > 0:
        parts.append(WARM_UPS[warm_up])
    learner = str(config.get("meta_learner", "reptile"))
    if plan.get("joint", 1) > 0 or not parts:
        name = LEARNERS.get(learner, learner)
        plus_plus = config.get("multi_step_loss") or config.get("learned_rates")
        parts.append(name.replace("MAML", "MAML++") if plus_plus else name)
    return ", ".join(parts)


def _architecture(config: Mapping[str, Any], measured: str | None) -> str:
    network = config.get("network") or {}
    kind = measured or {"search": "searched"}.get(network.get("kind", ABSENT), network.get("kind", ABSENT))
    name = ARCHITECTURES.get(kind, kind)
    return f"{name}: {network['genotype']}" if kind == "fixed" and network.get("genotype") else name


def markdown(rows: Sequence[Row]) -> str:
    """The table, with a line that says what the intervals are."""
    lines = [
        "| experiment | runs | data | meta-learner | architecture | parameters | tasks | inductive % "
        "| transductive % | prototypes % | CPU minutes |",
        "| --- | ---: | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        settings = row.settings
        data = f"{settings['data']}, {settings['n_way']}-way {settings['n_shot']}-shot" if settings else "not evaluated"
        cells = [
            row.experiment, str(row.runs), data, row.meta_learner, row.architecture,
            _number(row.parameters), str(settings.get("tasks", ABSENT)),
            *(_accuracy(row.accuracies.get(name)) for name in ACCURACIES), _number(row.cpu_minutes),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    lines += ["", "±: twice the standard error of the mean over runs; of one run, the 95 % interval over its tasks."]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,.0f}"


def _accuracy(value: Estimate | None) -> str:
    return ABSENT if value is None else f"{100 * value.mean:.2f} ± {100 * value.half_width:.2f}"


def plain_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The same as numbers; accuracies are fractions."""
    return [
        {
            "experiment": row.experiment,
            "runs": row.runs,
            **{name: row.settings.get(name) for name in SETTINGS},
            "meta_learner": row.meta_learner,
            "architecture": row.architecture,
            "parameters": row.parameters,
            **{
                f"{name}{suffix}": getattr(row.accuracies[name], part) if row.accuracies else None
                for name in ACCURACIES
                for suffix, part in (("", "mean"), ("_half_width", "half_width"))
            },
            "cpu_minutes": row.cpu_minutes,
        }
        for row in rows
    ]
