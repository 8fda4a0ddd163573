"""Two torchrun processes against one: the same meta-weights, and tasks a second.

The one-shot network at the paper's size learns a few meta-steps on the embedded glyphs, once in one
process and once in two; each has one torch thread. Prints and writes the ratio of tasks a second
(the first step is left out) and the largest relative difference of any meta-weight.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from metanas.artifact import load_meta, write_json

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = str(ROOT / "training" / "meta_train.py")


def main() -> int:
    """Run both, compare, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="meta-steps")
    parser.add_argument("--tasks", type=int, default=4, help="tasks of a meta-step")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "distributed.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder) / "one", Path(folder) / "two"
        run([sys.executable, SCRIPT], one, arguments)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        run([*launcher, SCRIPT], two, arguments)
        results = {
            "steps": arguments.steps,
            "tasks_a_step": arguments.tasks,
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "tasks_per_second_one_process": tasks_per_second(one),
            "tasks_per_second_two_processes": tasks_per_second(two),
            "largest_relative_difference": difference(one, two),
        }
    results["ratio"] = results["tasks_per_second_two_processes"] / results["tasks_per_second_one_process"]
    print(json.dumps(results, indent=2))
    write_json(arguments.output, results)
    return 0


def run(command: list[str], output: Path, arguments: argparse.Namespace) -> None:
    """One run of Algorithm 2 on weights and architecture."""
    settings = [
        "--data", "glyphs", "--device", "cpu", "--warm-up", "meta", "--warm-up-steps", "0", "--meta-epochs",
        str(arguments.steps), "--meta-batch-size", str(arguments.tasks), "--prototype-batches", "2",
        "--eval-tasks", "1", "--set", "task.architecture_steps=1", "--set", "task.weight_steps=1",
        "--set", "validation_tasks=1", "--set", "validations=1", "--output", str(output),
    ]  # fmt: skip
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    subprocess.run([*command, *settings], check=True, env=environment, stdout=subprocess.DEVNULL)


def tasks_per_second(output: Path) -> float:
    """Of the steps after the first."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()][1:]
    return sum(row["tasks_per_second"] * row["seconds"] for row in rows) / sum(row["seconds"] for row in rows)


def difference(one: Path, two: Path) -> float:
    """Largest difference of any meta-weight or architecture parameter, relative to the largest of its tensor."""
    left, right = load_meta(one / "meta.pt"), load_meta(two / "meta.pt")
    pairs = [(left.weights[name], right.weights[name]) for name in left.weights]
    pairs += [(left.architecture[name], right.architecture[name]) for name in left.architecture]
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)


if __name__ == "__main__":
    sys.exit(main())
