"""An evaluation as files and as text.

    RunResult      what one meta-model reached
    over_runs      runs of different seeds  ->  mean and two standard errors of the mean
    results        all of it as plain values: ``results.json``
    task_rows      a row for each task: ``tasks.csv``
    genotype_file  the most common architecture: ``genotype.json``
    summary, summary_of_runs   a few lines of text

Source of the interval over runs: Elsken et al., CVPR 2020, Table 1.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

import metanas
from metanas.model import MetaModel
from metanas.space import ConvBlocks, Space, space_to_dict
from metanas_training.architectures import CommonGenotype
from metanas_training.run_files import RunFile
from metanas_training.scores import Estimate, Evaluation, TaskScore

ACCURACIES = ("inductive", "transductive", "prototype")
"""The accuracies that are averaged over runs."""
SIZES = ("parameter_count", "multiply_adds")


@dataclass(frozen=True, slots=True)
class RunResult:
    """What one meta-model reached."""

    file: RunFile
    scores: tuple[TaskScore, ...]
    evaluation: Evaluation


def architecture_kind(meta: MetaModel) -> str:
    """ "searched", "fixed" or "conv_blocks"."""
    if isinstance(meta.space, ConvBlocks):
        return "conv_blocks"
    return "searched" if meta.searches else "fixed"


def over_runs(values: Sequence[float]) -> Estimate:
    """Mean over runs; the half width is twice the standard error of the mean, as in the paper, 0 for one run."""
    array = np.asarray(values, dtype=np.float64)
    spread = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return Estimate(float(array.mean()), 2.0 * spread / len(array) ** 0.5)


def results(runs: Sequence[RunResult], *, n_query: int, seed: int, common: CommonGenotype | None) -> dict[str, Any]:
    """Everything that was measured, as plain values for JSON.

    Args:
        common: ``architectures.most_common`` over the tasks of all runs; None: networks without cells.
    """
    first = runs[0].evaluation
    return {
        "data": first.data,
        "n_way": first.n_way,
        "n_shot": first.n_shot,
        "n_query": n_query,
        "tasks": first.tasks,
        "seed": seed,
        "code_version": metanas.__version__,
        "torch_version": torch.__version__,
        "over_runs": {
            "runs": len(runs),
            **{name: asdict(over_runs([getattr(run.evaluation, name).mean for run in runs])) for name in ACCURACIES},
            **{name: asdict(over_runs([getattr(run.evaluation, name) for run in runs])) for name in SIZES},
        },
        "most_common": None if common is None else {"share": common.share, "genotype": common.genotype.to_dict()},
        "runs": [
            {
                "name": run.file.name,
                "meta_file": run.file.path,
                "meta_sha256": run.file.sha256,
                "architecture": architecture_kind(run.file.meta),
                "space": space_to_dict(run.file.meta.space),
                "provenance": dict(run.file.meta.provenance),
                "evaluation": run.evaluation.to_dict(),
                "scores": [{"task": task, **score.to_dict()} for task, score in enumerate(run.scores)],
            }
            for run in runs
        ],
    }


def task_rows(runs: Sequence[RunResult]) -> list[dict[str, Any]]:
    """A row for each task of each run; the genotype is JSON text, its number is that of its structure."""
    numbers: dict[Any, int] = {}
    rows = []
    for run in runs:
        for task, score in enumerate(run.scores):
            values = score.to_dict()
            number = numbers.setdefault(score.genotype.structure(), len(numbers))
            genotype = json.dumps(values.pop("genotype"), separators=(",", ":"))
            trust = {name: value for name, value in values.pop("trust").items() if "confidence" not in name}
            rows.append(
                {"run": run.file.name, "task": task, **values, **trust, "architecture": number, "genotype": genotype}
            )
    return rows


def genotype_file(space: Space, common: CommonGenotype) -> dict[str, Any]:
    """The most common architecture, for retraining: ``Genotype.from_dict`` reads its "genotype"."""
    return {"space": space_to_dict(space), "genotype": common.genotype.to_dict(), "share": common.share}


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows of equal keys as CSV with a header; None is an empty field."""
    rows = list(rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def summary(scores: Evaluation) -> str:
    """An evaluation in a few lines of text."""
    several = scores.tasks > 1
    interval = "mean with 95 % interval" if several else "too few for an interval"
    text = "\n".join(
        (
            f"{scores.data}, {scores.n_way}-way {scores.n_shot}-shot, {scores.tasks} task{'s' if several else ''}, "
            f"chance {100 / scores.n_way:.1f} %, {interval}:",
            f"  inductive (support statistics)   {scores.inductive}",
            f"  transductive (the paper's)       {scores.transductive}",
            f"  prototypes, no adaptation        {scores.prototype}",
            f"  gain of the steps over them      {scores.gain}",
            f"  lost by pruning                  {scores.pruning_loss or 'nothing is pruned'}",
            f"  parameters of a task network     {scores.parameter_count:,.0f}",
            f"  multiply-adds of one image       {scores.multiply_adds / 1e6:,.2f} million",
            f"  architectures among the tasks    {scores.structures}"
            f" (the most common in {100 * scores.most_common_share:.0f} %)",
            f"  seconds of one adaptation        {scores.adapt_seconds:.1f}",
            f"  leave-one-out on the support     {scores.leave_one_out_accuracy or 'needs two shots'}",
            f"  expected calibration error       {100 * scores.calibration_error:.2f} %, "
            f"{100 * scores.calibrated_error:.2f} % with the tasks' temperatures",
            f"  AUROC of classes outside         {scores.auroc or 'no other classes'}",
            f"  known images refused             {scores.known_refused or 'no threshold'}",
            f"  unknown images refused           {scores.unknown_refused or 'no threshold or no unknown image'}",
        )
    )
    return text if several else text.replace(" ± 0.00", "")  # of one task every interval is that


def summary_of_runs(runs: Sequence[RunResult]) -> str:
    """Each run's summary and, of several, what they reached together."""
    if len(runs) == 1:
        return summary(runs[0].evaluation)
    parts = [f"{run.file.name} ({run.file.path}): {summary(run.evaluation)}" for run in runs]
    together = {name: over_runs([getattr(run.evaluation, name).mean for run in runs]) for name in ACCURACIES}
    sizes = {name: over_runs([getattr(run.evaluation, name) for run in runs]) for name in SIZES}
    parts.append(
        "\n".join(
            (
                f"{len(runs)} runs together, mean with twice the standard error of the mean:",
                f"  inductive (support statistics)   {together['inductive']}",
                f"  transductive (the paper's)       {together['transductive']}",
                f"  prototypes, no adaptation        {together['prototype']}",
                f"  parameters of a task network     {sizes['parameter_count'].mean:,.0f}"
                f" ± {sizes['parameter_count'].half_width:,.0f}",
                f"  multiply-adds of one image       {sizes['multiply_adds'].mean / 1e6:,.2f}"
                f" ± {sizes['multiply_adds'].half_width / 1e6:,.2f} million",
            )
        )
    )
    return "\n\n".join(parts)
