"""A model card: what a meta-model was trained on, what it costs, how good it is, where it fails.

    card        meta-model, evaluations, words  ->  plain values
    kept_rows   a card, the one before          ->  with its rows of tasks that were not evaluated anew
    main        the command line

Figures come from the ``results.json`` of ``meta_evaluate.py`` and from the meta-model's provenance, never
by hand; an evaluation of another file is refused. Source: Mitchell et al., Model Cards for Model
Reporting, arXiv 1810.03993.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metanas.artifact import meta_from_bytes, write_json
from metanas.errors import MetaNASError
from metanas.model import MetaModel
from metanas_training.errors import EvaluationError

KEPT = (
    "data", "n_way", "n_shot", "tasks", "inductive", "transductive", "prototype", "gain", "pruning_loss",
    "parameter_count", "multiply_adds", "structures", "most_common_share", "leave_one_out_accuracy",
    "calibration_error", "calibrated_error", "auroc", "known_refused", "unknown_refused",
)  # fmt: skip


def card(
    meta: MetaModel,
    sha256: str,
    evaluations: Sequence[dict[str, Any]],
    *,
    summary: str,
    data_licence: str,
    limits: Sequence[str],
) -> dict[str, Any]:
    """The card as plain values.

    Args:
        sha256: of the meta-model's file.
        evaluations: contents of ``results.json``.

    Raises:
        EvaluationError: an evaluation is not of this file, or the meta-model does not say what it was trained on.
    """
    rows = []
    for results in evaluations:
        runs = [run for run in results["runs"] if run["meta_sha256"] == sha256]
        if not runs:
            raise EvaluationError(
                f"the evaluation of {results['n_way']}-way {results['n_shot']}-shot tasks is not of this meta-model "
                f"({sha256[:12]}...); evaluate it again"
            )
        found = runs[0]["evaluation"]
        rows.append({name: found[name] for name in KEPT} | {"n_query": results["n_query"], "seed": results["seed"]})
    provenance = meta.provenance
    missing = [name for name in ("data", "seed") if name not in provenance]
    if missing:
        raise EvaluationError(f"the meta-model does not say its {' and '.join(missing)}; train it with meta_train.py")
    cpu_seconds = provenance.get("training_cpu_seconds")
    return {
        "summary": summary,
        "sha256": sha256,
        "trained_on": provenance["data"],
        "data_licence": data_licence,
        "seed": provenance["seed"],
        "processor_minutes": None if cpu_seconds is None else cpu_seconds / 60,
        "image": meta.preprocessing.to_dict(),
        "evaluations": rows,
        "limits": list(limits),
        "provenance": dict(provenance),
    }


def kept_rows(values: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """``values`` with the rows of ``before`` too, in its order, but for those of tasks that ``values`` has itself.

    Raises:
        EvaluationError: ``before`` is the card of another meta-model.
    """
    if before["sha256"] != values["sha256"]:
        raise EvaluationError("the card that is there is of another meta-model: write a new one, without --keep-rows")
    rows = {_tasks_of(row): row for row in before["evaluations"]}
    rows.update({_tasks_of(row): row for row in values["evaluations"]})
    return values | {"evaluations": list(rows.values())}


def _tasks_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("data", "n_way", "n_shot", "n_query", "seed"))


def main(argv: Sequence[str] | None = None) -> int:
    """Write a card; the exit code comes back: 1 where a file cannot be used."""
    arguments = _parser().parse_args(argv)
    try:
        data = arguments.meta.read_bytes()
        values = card(
            meta_from_bytes(data, name=str(arguments.meta)),
            hashlib.sha256(data).hexdigest(),
            [json.loads((folder / "results.json").read_bytes()) for folder in arguments.evaluation],
            summary=arguments.summary,
            data_licence=arguments.data_licence,
            limits=arguments.limit,
        )
        if arguments.keep_rows:
            values = kept_rows(values, json.loads(arguments.output.read_bytes()))
        write_json(arguments.output, values)
    except (MetaNASError, OSError, ValueError) as error:
        print(f"model_card: {error}", file=sys.stderr)
        return 1
    except KeyError as error:
        print(f"model_card: an evaluation lacks {error}; run meta_evaluate.py of this version again", file=sys.stderr)
        return 1
    print(f"wrote {arguments.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="model_card.py", description="Write the card of a meta-model.")
    add = parser.add_argument
    add("--meta", type=Path, required=True, metavar="FILE")
    add("--evaluation", type=Path, nargs="+", required=True, metavar="DIR", help="what meta_evaluate.py --output wrote")
    add("--summary", required=True, help="one line: what it is for")
    add("--data-licence", required=True)
    add("--limit", action="append", default=[], help="what it cannot do; may be given again")
    add("--output", type=Path, required=True, metavar="NAME.card.json")
    add("--keep-rows", action="store_true", help="rows of the card that is there stay, but for tasks evaluated anew")
    return parser
