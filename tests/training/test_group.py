"""Several processes on one run: the same meta-weights as one, and a lost process loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from metanas.artifact import load_meta, unpack
from metanas.errors import InvalidConfigError
from metanas_training.config import Plan
from metanas_training.group import Group
from metanas_training.loop import Trainer
from metanas_training.state import CHECKPOINT_KIND

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = str(REPOSITORY / "training" / "meta_train.py")
TINY = [
    "--device", "cpu", "--channels", "4", "--image-size", "8", "--grey", "--ways", "2", "--train-shots", "2",
    "--meta-batch-size", "5", "--prototype-batches", "3", "--pair-classes", "4", "--eval-tasks", "1",
    "--set", "task.architecture_steps=2", "--set", "task.weight_steps=2", "--checkpoint-minutes", "1e-9",
]  # fmt: skip


def _torchrun(*arguments: str, restarts: int = 0) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--max-restarts", str(restarts), SCRIPT, *arguments,
    ]  # fmt: skip


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture
def arguments(pictures: Path) -> list[str]:
    return ["--data", f"folder:{pictures}", *TINY]


def test_two_processes_end_in_the_meta_weights_of_one(arguments: list[str], tmp_path: Path) -> None:
    """Prototype steps with uneven shares, a search, then five meta-steps of five tasks, shared three to two."""
    plan = ["--meta-epochs", "5", "--warm-up-steps", "2", "--search-steps", "3"]
    one, two = tmp_path / "one", tmp_path / "two"
    done = _run([sys.executable, SCRIPT, *arguments, *plan, "--output", str(one)])
    assert done.returncode == 0, done.stderr
    done = _run(_torchrun(*arguments, *plan, "--output", str(two)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1  # only one process writes
    expected, found = load_meta(one / "meta.pt"), load_meta(two / "meta.pt")
    assert expected.head_scale == pytest.approx(found.head_scale, rel=1e-6)
    for part in ("weights", "architecture", "moments"):
        for name, value in getattr(expected, part).items():
            scale = value.abs().max().item()
            assert (getattr(found, part)[name] - value).abs().max().item() <= 1e-5 * scale, (part, name)
    rows = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert json.loads((two / "environment.json").read_text())["processes"] == 2


PLAN = ["--meta-epochs", "12", "--warm-up-steps", "0", "--search-steps", "0"]


def _lose_a_worker(arguments: list[str], output: Path, *, restarts: int) -> tuple[int, str]:
    """Run, kill one of the two processes after its second step; exit code and messages of torchrun."""
    command = _torchrun(*arguments, *PLAN, "--output", str(output), restarts=restarts)
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as torchrun:
        os.kill(_worker(output, rank=1), signal.SIGKILL)
        _, errors = torchrun.communicate(timeout=250)
    return torchrun.returncode, errors


def _steps(output: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_torchrun_starts_a_run_that_lost_a_process_again_from_its_checkpoint(
    arguments: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    code, errors = _lose_a_worker(arguments, output, restarts=1)
    assert code == 0, errors
    assert f"resuming {output} after" in errors
    assert _steps(output) == list(range(1, 13))  # none lost, none twice
    assert (output / "meta.pt").is_file()


@pytest.mark.slow
def test_a_run_that_lost_a_process_stops_with_a_checkpoint_and_resumes_to_the_weights_of_a_whole_one(
    arguments: list[str], tmp_path: Path
) -> None:
    output, whole = tmp_path / "run", tmp_path / "whole"
    code, errors = _lose_a_worker(arguments, output, restarts=0)
    assert code != 0
    assert "another process of this run is gone" in errors
    metadata, _ = unpack((output / "checkpoint.pt").read_bytes(), CHECKPOINT_KIND, name="checkpoint")
    assert metadata["step"] >= 1
    assert not (output / "meta.pt").exists()
    done = _run([sys.executable, SCRIPT, "--resume", str(output)])
    assert done.returncode == 0, done.stderr
    assert _steps(output) == list(range(1, 13))
    assert _run([sys.executable, SCRIPT, *arguments, *PLAN, "--output", str(whole)]).returncode == 0
    expected, found = load_meta(whole / "meta.pt"), load_meta(output / "meta.pt")
    for name, value in expected.weights.items():
        torch.testing.assert_close(found.weights[name], value, rtol=1e-4, atol=1e-5)


def _worker(output: Path, *, rank: int) -> int:
    """The process id of a worker of the run in ``output``, once the run has made two steps."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        metrics = output / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count("\n") >= 2:
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    command = (process / "cmdline").read_bytes().split(b"\0")
                    environment = (process / "environ").read_bytes().split(b"\0")
                except OSError:  # it has ended meanwhile
                    continue
                if str(output).encode() in command and f"RANK={rank}".encode() in environment:
                    return int(process.name)
        time.sleep(0.05)
    raise AssertionError("the run made no step")


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("meta_batch_size", {"plan": Plan(joint=1)}),
        ("meta_batch_size", {"plan": Plan(warm_up=1), "warm_up": "meta"}),
        ("prototype_batches", {"plan": Plan(warm_up=1)}),
    ],
)
def test_fewer_tasks_than_processes_are_refused_where_the_plan_needs_them(
    make_config: Any, make_state: Any, make_classes: Any, tmp_path: Path, setting: str, values: dict[str, Any]
) -> None:
    other = ({"meta_batch_size", "prototype_batches"} - {setting}).pop()
    for enough in (False, True):
        config = make_config(**{setting: 3 if enough else 2, other: 1, **values})
        trainer = Trainer(
            config, make_state(config), train=make_classes(), validation=make_classes(seed=1),
            checkpoint=tmp_path / "c", group=Group(rank=1, size=3),
        )  # fmt: skip
        if enough:
            trainer._check_shares(config.plan)
        else:
            with pytest.raises(InvalidConfigError, match=f"{setting} is 2, too few for 3 processes to share; set it"):
                trainer.run(on_step=lambda _: None, should_stop=lambda: False)


def test_every_item_is_the_share_of_exactly_one_process() -> None:
    items = list(range(7))
    shares = [Group(rank=rank, size=3).share(items) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == items
