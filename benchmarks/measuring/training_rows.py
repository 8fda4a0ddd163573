"""The row about meta-training: images a second of the search phase, against the limit.

Through the command line, as a user runs it: one torchrun process a core, Omniglot's shape, the dense
one-shot network. The temperature stays at 1, so that nothing falls under the threshold and all
operations run in every step. The first step is left out.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

from measuring.flops import Counter
from measuring.machine import CORES, Rates
from measuring.row import Goal, Row
from measuring.settings import Settings
from measuring.subjects import ROOT, omniglot_classes
from metanas.space import SearchSpace

SCRIPT = str(ROOT / "training" / "meta_train.py")


@dataclass(frozen=True, slots=True)
class Training:
    """What the steps took."""

    images_per_second: float
    images: int
    """Counted."""
    processes: int


def measure_training(settings: Settings) -> Training:
    """A few steps of one process a core."""
    output, processes, steps = settings.folder / "run", CORES, 3 if settings.quick else 6
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    data = omniglot_classes().name.split("-")[0].split("/")[0]
    command = [
        sys.executable, *(launcher if processes > 1 else []), SCRIPT, "--data", data, "--device", "cpu",
        "--warm-up-steps", "0", "--search-steps", str(steps), "--fall-steps", str(steps), "--meta-epochs", "0",
        "--prototype-batches", str(processes), "--set", "search_temperature_end=1.0", "--set", "validations=1",
        "--set", "validation_tasks=1", "--set", "task.architecture_steps=1", "--set", "task.weight_steps=1",
        "--set", "eval_queries=1", "--eval-tasks", "1", "--output", str(output),
    ]  # fmt: skip
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"meta-training ended with {done.returncode}:\n{done.stderr}")
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()][1:]
    seconds = sum(row["seconds"] for row in rows)
    images = sum(row["images_per_second"] * row["seconds"] for row in rows)
    return Training(images_per_second=images / seconds, images=round(images), processes=processes)


def training_rows(found: Training, rates: Rates) -> list[Row]:
    """Against 25 and 50 % of the limit."""
    flops = Counter(SearchSpace()).learning()
    limit = rates.all * 1e9 / flops
    share = found.images_per_second / limit
    return [
        Row(
            what=f"meta-training, search phase, dense, 28 x 28 x 1, images a second of {found.processes} processes",
            measured=f"{100 * share:.0f} % of the limit ({found.images_per_second:.0f} of {limit:.0f} images/s)",
            bar="25 %",
            aim="50 %",
            goals=(Goal(share, 0.25, 0.5, at_least=True),),
            limit_seconds=found.images * flops / rates.all / 1e9,
            times_limit=1.0 / share,
            values={
                "images_per_second": found.images_per_second,
                "limit_images_per_second": limit,
                "share": share,
                "gflop_per_image": flops / 1e9,
                "images": found.images,
            },
        )
    ]
