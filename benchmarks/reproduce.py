"""Reduced versions of the rows of Tables 1 and 2, one after the other: docs/reproduce.md.

Every row gets the same minutes on one core and the same pipeline: the configuration of the paper's
row, but planned for those minutes, with the prototype loss in place of thousands of meta-epochs of
warm-up. Prints one table over all rows; a row whose results are there is not run again, one that was
broken off goes on.

    python benchmarks/reproduce.py --minutes 5 --output runs/reproduce

Full versions: the same configurations without --minutes and --warm-up, at the paper's cost.
``--costs`` says what that is on this machine: it times a batch of each and multiplies.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from metanas.steps import operation_weights
from metanas_training.config import TrainingConfig, read_config
from metanas_training.datasets import default_preprocessing
from metanas_training.planning import LEARNER_COST
from metanas_training.state import new_state

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Row:
    """One row: how it is trained and what it is judged on."""

    config: str
    ways: int
    shots: tuple[int, ...]
    tasks: int
    train: tuple[str, ...] = ()


SMALL_IMAGES = ("--image-size", "28")
MOSTLY_MAML = ("--set", "joint_share=0.6")
ROWS = (
    Row("omniglot_reptile_cnn", 20, (1, 5), 20),
    Row("omniglot_autometa", 20, (1, 5), 5),
    Row("omniglot_metanas", 20, (1, 5), 5),
    Row("omniglot_metanas_star", 20, (1,), 5, ("--channels", "28")),
    Row("omniglot_maml", 20, (1,), 20, (*MOSTLY_MAML, "--meta-batch-size", "4")),
    Row("omniglot_maml_plus_plus", 20, (1,), 20, (*MOSTLY_MAML, "--meta-batch-size", "4")),
    Row("omniglot_imprinting", 20, (1, 5), 20),
    Row("omniglot_hour_protonet", 20, (1, 5), 20),
    Row("miniimagenet_reptile_cnn", 5, (1, 5), 40, SMALL_IMAGES),
    Row("miniimagenet_autometa", 5, (1, 5), 5, SMALL_IMAGES),
    Row("miniimagenet_metanas", 5, (1, 5), 5, SMALL_IMAGES),
    Row("miniimagenet_metanas_star", 5, (1, 5), 5, (*SMALL_IMAGES, "--channels", "28")),
    Row("miniimagenet_maml", 5, (1,), 40, (*SMALL_IMAGES, *MOSTLY_MAML, "--set", "train_queries=3")),
    Row("miniimagenet_maml_plus_plus", 5, (1,), 40, (*SMALL_IMAGES, *MOSTLY_MAML, "--set", "train_queries=3")),
)  # fmt: skip


def main() -> int:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="for the training of each row")
    parser.add_argument("--output", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--only", nargs="*", default=None, metavar="CONFIG", help="these rows")
    parser.add_argument("--costs", action="store_true", help="only say what the full versions cost here")
    arguments = parser.parse_args()
    names = {row.config for row in ROWS}
    unknown = sorted(set(arguments.only or ()) - names)
    if unknown:
        parser.error(f"there is no row {', '.join(unknown)}; there are {', '.join(sorted(names))}")
    rows = [row for row in ROWS if arguments.only is None or row.config in arguments.only]
    if arguments.costs:
        for row in rows:
            print(f"{row.config:30} {core_days(row):10.1f} core-days", flush=True)
        return 0
    folders = [run(row, minutes=arguments.minutes, output=arguments.output) for row in rows]
    return call("training/compare_runs.py", *folders, "--csv", arguments.output / "table.csv")


def run(row: Row, *, minutes: float, output: Path) -> Path:
    """Train and judge one row; its run folder."""
    folder = output / row.config
    if (folder / "checkpoint.pt").exists() and not (folder / "meta.pt").exists():
        check("training/meta_train.py", "--resume", folder)
    elif not (folder / "meta.pt").exists():
        check(
            "training/meta_train.py", "--config", ROOT / "configs" / f"{row.config}.toml", "--minutes", minutes,
            *([] if row.config == "omniglot_imprinting" else ["--warm-up", "prototype"]),
            *row.train, "--eval-tasks", 1, "--output", folder,
        )  # fmt: skip
    for shots in row.shots:
        target = folder / f"evaluation-{row.ways}way-{shots}shot"
        if not (target / "results.json").exists():
            check(
                "training/meta_evaluate.py", "--meta", folder / "meta.pt", "--data", row.config.split("_")[0],
                "--ways", row.ways, "--shots", shots, "--tasks", row.tasks, "--no-figures", "--curve-tasks", 0,
                "--output", target,
            )  # fmt: skip
    return folder


def core_days(row: Row, batch: int = 20) -> float:
    """Days of one core of this machine for the full version: images times seconds an image."""
    torch.set_num_threads(1)
    config = TrainingConfig.from_dict({**read_config(ROOT / "configs" / f"{row.config}.toml"), "device": "cpu"})
    preprocessing = default_preprocessing(config.data, image_size=config.image_size)
    genotype = config.network.fixed_genotype()
    state = new_state(config, space=config.network.space(preprocessing), genotype=genotype)
    with torch.no_grad():
        weights = operation_weights(state.network, state.architecture, schedule=config.task, temperature=1.0)
    images = torch.rand(batch, preprocessing.channels, preprocessing.height, preprocessing.width)
    times = []
    for _ in range(3):
        started = time.process_time()
        state.network(images, weights).square().sum().backward()
        times.append(time.process_time() - started)
    if config.plan is None:
        return config.minutes / 60 / 24
    support = min(config.task.batch_size, config.n_way * config.train_shots)
    steps = config.plan.warm_up + config.plan.joint
    count = steps * config.meta_batch_size * (config.inner_steps + 1) * support
    return count * LEARNER_COST[config.meta_learner] * min(times) / batch / 86400


def check(script: str, *arguments: object) -> None:
    """Run a script of ours; stop where it fails."""
    if code := call(script, *arguments):
        raise SystemExit(code)


def call(script: str, *arguments: object) -> int:
    """Run a script of ours; its exit code."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    print("+", script, *map(str, arguments), flush=True)
    return subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
