"""Is accuracy lost by the native engine? Test tasks in both protocols, with it and without.

    python benchmarks/accuracy.py --tasks 200 --jobs 2

The same tasks are adapted to on both paths by ``training/meta_evaluate.py``: the native engine, and PyTorch
alone (METANAS_NATIVE=0). As the tasks are the same, what counts is the mean of the differences and its 95 %
interval. Interrupted, it goes on from the tasks that are done (``--work``).
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from measuring import engine
from measuring.subjects import BUNDLED, ROOT

from metanas.artifact import write_json

PATHS: tuple[engine.Path, ...] = ("plain", "native")
PROTOCOLS = ("inductive", "transductive")


def main() -> int:
    """Evaluate both paths for each number of shots, compare, print, write."""
    arguments = _parse()
    results = []
    for shots in arguments.shots:
        of_paths = {path: evaluate(path, shots, arguments) for path in PATHS}
        results.append(summary(shots, of_paths))
    text = table(results, arguments.tasks)
    print(text)
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "accuracy.json", {"tasks": arguments.tasks, "engine": engine.name(), "results": results})
    (output / "accuracy.md").write_text(text, encoding="utf-8")
    return 0


def evaluate(path: engine.Path, shots: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The scores of all tasks on one path."""
    meta = hashlib.sha256(arguments.meta.read_bytes()).hexdigest()[:8]
    folder: Path = arguments.work / f"{meta}_{path}_{shots}shot_{arguments.queries}queries_{arguments.tasks}tasks"
    if not (folder / "results.json").exists():
        command = [
            sys.executable, ROOT / "training" / "meta_evaluate.py", "--meta", arguments.meta, "--data", "omniglot",
            "--ways", 20, "--shots", shots, "--queries", arguments.queries, "--tasks", arguments.tasks,
            "--jobs", arguments.jobs, "--curve-tasks", 0, "--no-figures", "--output", folder,
        ]  # fmt: skip
        print("+ METANAS_NATIVE=" + engine.settings(path)["METANAS_NATIVE"], *command[1:], file=sys.stderr, flush=True)
        subprocess.run(list(map(str, command)), env={**os.environ, **engine.settings(path)}, check=True)
    scores: list[dict[str, Any]] = json.loads((folder / "results.json").read_text(encoding="utf-8"))["runs"][0][
        "scores"
    ]
    return scores


def summary(shots: int, of_paths: dict[engine.Path, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means of both paths, and of the differences task by task."""
    plain, native = of_paths["plain"], of_paths["native"]
    values: dict[str, Any] = {"shots": shots, "tasks": len(plain)}
    for protocol in PROTOCOLS:
        before, after = (np.array([score[protocol] for score in scores]) for scores in (plain, native))
        values[protocol] = {
            "plain": _estimate(before),
            "native": _estimate(after),
            "difference": _estimate(after - before),
            "tasks_that_differ": int((before != after).sum()),
        }
    values["same_genotype"] = sum(_structure(a) == _structure(b) for a, b in zip(plain, native, strict=True))
    for path, scores in of_paths.items():
        values[f"adapt_seconds_{path}"] = float(np.mean([score["adapt_seconds"] for score in scores]))
    return values


def _structure(score: dict[str, Any]) -> Any:
    return {name: [[edge[:2] for edge in node] for node in nodes] for name, nodes in score["genotype"].items()}


def _estimate(values: Any) -> dict[str, float]:
    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "half_width": half}


def table(results: list[dict[str, Any]], tasks: int) -> str:
    """A row for each number of shots and protocol."""
    lines = [
        f"Bundled meta-model, Omniglot test characters, {tasks} tasks; mean with 95 % interval, in per cent: "
        "`python benchmarks/accuracy.py`.",
        "",
        "| 20-way | protocol | PyTorch alone | native engine | difference, task by task | tasks that differ "
        "| same genotype |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in results:
        for protocol in PROTOCOLS:
            of = one[protocol]
            lines.append(
                f"| {one['shots']}-shot | {protocol} | {_text(of['plain'])} | {_text(of['native'])} | "
                f"{_text(of['difference'], digits=3)} | {of['tasks_that_differ']} of {one['tasks']} | "
                f"{one['same_genotype']} of {one['tasks']} |"
            )
    return "\n".join(lines) + "\n"


def _text(estimate: dict[str, float], *, digits: int = 2) -> str:
    return f"{100 * estimate['mean']:.{digits}f} ± {100 * estimate['half_width']:.{digits}f}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--shots", type=int, nargs="+", default=[1])
    parser.add_argument("--queries", type=int, default=15, help="images a class to answer")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--meta", type=Path, default=BUNDLED)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "accuracy", help="for what is done")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
